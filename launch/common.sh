# Sourced by the scripts of this folder that start things elsewhere. For bash 3.2 or newer.
#
#   parse_arguments NAMES "$@"   sets a variable for every --name=value; NAMES ending in ! take none
#   need NAME…                   ends the script unless these were given
#   run COMMAND…                 runs a command, saying which; with --dry-run only prints it
#   quoted WORD…                 prints words as a shell reads them back
# shellcheck shell=bash

script="${script:-$0}"
dry_run=''
flags=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the head of a script.
usage() {
  sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$script"
}

quoted() {
  local word line='' single="'" escaped="'\\''"
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//$single/$escaped}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# What comes after -- goes into the array `flags`. Underscores, so as not to hide who calls.
parse_arguments() {
  local _known=" $1 dry-run! " _argument _name _value
  shift
  while [ $# -gt 0 ]; do
    _argument="$1"
    shift
    case "$_argument" in
      -h | --help) usage && exit 0 ;;
      --)
        # shellcheck disable=SC2034 # for who sources this
        flags=("$@")
        return
        ;;
      --*) ;;
      *) fail "unexpected argument $(quoted "$_argument"): options are written --name=value" ;;
    esac
    _name="${_argument#--}" _value=1
    _name="${_name%%=*}"
    case "$_known" in
      *" $_name! "*) [ "$_argument" = "--$_name" ] || fail "--$_name takes no value" ;;
      *" $_name "*)
        if [ "$_argument" != "--$_name" ]; then
          _value="${_argument#*=}"
        else
          [ $# -gt 0 ] || fail "--$_name needs a value: --$_name=…"
          _value="$1"
          shift
        fi
        [ -n "$_value" ] || fail "--$_name is empty: give --$_name=…"
        ;;
      *) fail "unknown option --$_name: see --help; flags of the program go after --" ;;
    esac
    printf -v "${_name//-/_}" %s "$_value"
  done
}

need() {
  local _name _variable
  for _name in "$@"; do
    _variable="${_name//-/_}"
    [ -n "${!_variable}" ] || fail "--$_name is missing: give --$_name=…, or see --help"
  done
}

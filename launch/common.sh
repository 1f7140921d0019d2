# Functions for the other scripts in this folder, which source this file. Needs bash 3.2 or newer.
#
#   parse_arguments NAMES "$@"   set a variable for each --name=value; a name with ! takes no value
#   need NAME…                   exit with an error unless all these options were given
#   choose_program               check --entry and put it and its flags into the array `program`
#   run COMMAND…                 print a command to stderr and run it; with --dry-run only print it
#   quoted WORD…                 print the words, quoted for a shell
# shellcheck shell=bash

script="${script:-$0}"
launch_folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
dry_run=''
flags=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# Print the comment at the head of the script.
usage() {
  sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$script"
}

# answer_help ARGUMENT: if it asks for help, print it and exit
answer_help() {
  case "${1:-}" in
    -h | --help)
      usage
      exit 0
      ;;
  esac
}

# fail_on_action ACTION KNOWN
fail_on_action() {
  local problem="the action is missing"
  [ -z "$1" ] || problem="unknown action $(quoted "$1")"
  fail "$problem: give $2; see --help"
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

# Everything after -- goes into the array `flags`. The local names begin with an underscore, so that
# they don't hide the variables of the script, which this function sets.
parse_arguments() {
  local _known=" $1 dry-run! " _argument _name _value
  shift
  while [ $# -gt 0 ]; do
    _argument="$1"
    shift
    case "$_argument" in
      -h | --help) usage && exit 0 ;;
      --)
        # shellcheck disable=SC2034 # used by the scripts that source this file
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

# Reads the variables entry, config, workdir and flags of the script. Only training needs both a
# config and a workdir; the other entries report a missing flag themselves.
choose_program() {
  entry="${entry:-main}"
  grep -qs '^if __name__ == "__main__"' "$launch_folder/../tp_jax/$entry.py" ||
    fail "--entry=$entry is unknown: give main, prepare, sample or another command of tp_jax"
  [ "$entry" != main ] || need config workdir
  program=("$entry")
  [ -z "$config" ] || program+=("--config=$config")
  [ -z "$workdir" ] || program+=("--workdir=$workdir")
  [ "${#flags[@]}" -eq 0 ] || program+=("${flags[@]}")
}

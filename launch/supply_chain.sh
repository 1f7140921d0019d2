#!/usr/bin/env bash
# What tp_jax is built from: known vulnerabilities, a software bill of materials, licenses.
#   bash launch/supply_chain.sh audit              look for advisories about the locked versions
#   bash launch/supply_chain.sh sbom [FILE.json]   write a CycloneDX bill of materials; sbom.json by default
#   bash launch/supply_chain.sh notices            write launch/THIRD_PARTY.md: packages and their licenses
# The tools are installed for one use by uv, from the package index. Without an advisory database at
# hand, `audit` says so and succeeds: it has then checked nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/supply_chain.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

answer_help "${1:-}"
action="${1:-}" lock=launch/requirements.lock
case "$action" in
  audit | notices) [ $# -eq 1 ] || fail "unexpected argument $(quoted "$2"); see --help" ;;
  sbom) [ $# -le 2 ] || fail "unexpected argument $(quoted "$3"); see --help" ;;
  *) fail_on_action "$action" "audit, sbom or notices" ;;
esac
use_environment train,test
tool=(.venv/bin/python -m uv --quiet tool run --python .venv/bin/python)

case "$action" in
  audit)
    # The tool ends with 1 if it finds an advisory, and also if it can't ask.
    status=0
    report="$("${tool[@]}" pip-audit --requirement "$lock" --disable-pip --no-deps 2>&1)" || status=$?
    packages=$(grep -c '==' "$lock")
    unknown=$(grep -c 'could not be audited' <<< "$report" || true)
    if [ "$unknown" -gt $((packages / 2)) ] || grep -qi 'connection\|resolve\|timed out' <<< "$report"; then
      echo "skipped: no advisory database can be reached from here, so nothing was checked"
      exit 0
    fi
    printf '%s\n' "$report"
    exit "$status"
    ;;
  sbom)
    file="${2:-sbom.json}"
    "${tool[@]}" --from cyclonedx-bom cyclonedx-py requirements "$lock" --output-file "$file"
    echo "wrote $file: $(grep -c '"bom-ref"' "$file") components"
    ;;
  notices)
    {
      echo '# Third-party packages'
      echo
      echo 'What is installed for training and for the tests, with the licenses that the packages state.'
      echo 'Written by supply_chain.sh notices. No code of theirs is in this repository.'
      echo
      # Of a license that a package states as a whole text, only the first line is kept.
      "${tool[@]}" pip-licenses --python=.venv/bin/python --format=markdown --ignore-packages tp_jax |
        grep -v '^|  *|' | sed 's/  */ /g; s/---*/---/g'
    } > launch/THIRD_PARTY.md
    echo "wrote launch/THIRD_PARTY.md: $(grep -c '^| ' launch/THIRD_PARTY.md) lines"
    ;;
esac

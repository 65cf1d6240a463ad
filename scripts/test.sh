#!/usr/bin/env bash
# The default test suite, in the environment of requirements.lock. Arguments go to pytest: bash scripts/test.sh -k sdas
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# Bytecode is kept even where the environment forbids it (images of containers do): a process of a test that compiles
# torch, diffusers and the rest anew needs seconds more.
export PYTHONDONTWRITEBYTECODE=
# One thread per test process: the tests are tiny, and threads that wait for each other cost more than they give.
OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest --numprocesses auto --dist worksteal "$@"

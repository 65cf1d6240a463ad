#!/usr/bin/env bash
# `detect fit` on embedded photographs: normal images -> diffusion model -> anomaly images -> detector -> report.
#   bash scripts/demo.sh [--category brick|grass|gravel] [--out DIR]
# Run it again after an interruption: every stage goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

category=brick out=
while [ $# -gt 0 ]; do
  case "$1" in
    --category) category=${2:?"demo: --category needs a name: brick, grass or gravel"}; shift 2 ;;
    --out) out=${2:?"demo: --out needs a folder"}; shift 2 ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "demo: unknown option $1; allowed are --category NAME and --out DIR" >&2; exit 2 ;;
  esac
done
out=${out:-runs/demo/$category}

bash scripts/setup.sh
exec .venv/bin/python -m detect fit --dataset textures --category "$category" --out "$out"

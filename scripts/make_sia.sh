#!/usr/bin/env bash
# A whole SIA dataset: for every category of a dataset train a diffusion model, check it, generate anomaly images,
# inspect them and write the dataset card. An estimate of time and disk comes first; --dry-run ends there.
#   bash scripts/make_sia.sh DATASET ROOT OUT [--dry-run] [--categories A B ...] [--num 10000] [--preset base] ...
# Run it again after an interruption: every stage goes on where it stopped. On several GPUs all of them are used.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
here=$PWD
bash scripts/setup.sh
cd "$caller"
exec "$here/.venv/bin/python" "$here/scripts/make_sia.py" "$@"

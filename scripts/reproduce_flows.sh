#!/usr/bin/env bash
# CS-Flow and ValidFlow on their papers' data: bash scripts/reproduce_flows.sh DATA OUT [OPTION ...]
# DATA holds the unpacked archives of MVTec AD, Magnetic Tile Defects and DAGM 2007 as mvtec, mtd and dagm; what is not
# there is left out. Options go to every `detect benchmark`, such as --dry-run or --backbone-weights FILE.
# For a GPU, and with its training state a CS-Flow takes 4.4 GB of disk, a ValidFlow 2.6 GB; interrupted, it goes on.
# PRESET=compact is for a CPU and downloads nothing. SEEDS="0 1 2" trains three detectors of each kind in place of one.
set -euo pipefail
usage="usage: reproduce_flows.sh DATA OUT [OPTION ...]"
data=${1:?"$usage"} out=${2:?"$usage"}
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$here/scripts/setup.sh"
export PATH="$here/.venv/bin:$PATH"
read -ra seeds <<< "${SEEDS:-0}"
methods=("csflow:${PRESET:-paper}" "validflow:${PRESET:-paper}")

for options in "mvtec" "mtd --size 384 384 --num-epochs 60" "dagm --num-epochs 60"; do
  read -r dataset options <<< "$options"
  [ -d "$data/$dataset" ] || { echo "reproduce_flows: $data/$dataset is not there, left out" >&2; continue; }
  # shellcheck disable=SC2086 # options are words
  detect benchmark --dataset "$dataset" --root "$data/$dataset" --methods "${methods[@]}" --seeds "${seeds[@]}" \
    --out "$out/$dataset" $options "$@"
done

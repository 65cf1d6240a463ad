#!/usr/bin/env bash
# The README's figures on Magnetic Tile Defects: bash scripts/reproduce_mtd.sh ROOT OUT [resnet18.safetensors]
# ROOT is the unpacked public archive, with the published train_filenames.txt beside MT_Free for the same split.
# The third argument is a file with resnet18 weights; without it those of the preset are downloaded once.
# Hours on a CPU; interrupted, it goes on. SEEDS="0" trains one detector in place of three.
set -euo pipefail
root=${1:?"usage: reproduce_mtd.sh ROOT OUT [BACKBONE_WEIGHTS]"} out=${2:?"usage: reproduce_mtd.sh ROOT OUT [BACKBONE_WEIGHTS]"}
weights=${3:-hub}
root=$(realpath "$root") out=$(realpath -m "$out")
[ "$weights" = hub ] || weights=$(realpath "$weights")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

data=(--dataset mtd --root "$root")
synth train "${data[@]}" --preset small --size 96 96 --batch-size 8 --num-steps 2800 --flip-horizontal --flip-vertical \
  --out "$out/model"
synth generate --model "$out/model" --num 2000 --out "$out/sia"
read -ra seeds <<< "${SEEDS:-0 1 2}"
common=("${data[@]}" --backbone resnet18.tv_in1k --backbone-weights "$weights" --size 256 256 --seeds "${seeds[@]}")
detect benchmark "${common[@]}" --methods realnet:compact --sources "$out/sia" --num-steps 500 --out "$out/benchmark"
detect benchmark "${common[@]}" --methods patch-nn patch-nn-coreset --out "$out/patches"

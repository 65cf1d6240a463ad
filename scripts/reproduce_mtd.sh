#!/usr/bin/env bash
# The README's figures on Magnetic Tile Defects: bash scripts/reproduce_mtd.sh ROOT OUT [resnet18.safetensors]
# ROOT is the unpacked public archive, with the published train_filenames.txt beside MT_Free for the same split.
# The third argument is a file with resnet18 weights; without it those of the preset are downloaded once.
# SEEDS="0 1 2" trains three detectors. The learning rate is that of the preset `tiny`, as the training is short.
set -euo pipefail
root=${1:?"usage: reproduce_mtd.sh ROOT OUT [BACKBONE_WEIGHTS]"} out=${2:?"usage: reproduce_mtd.sh ROOT OUT [BACKBONE_WEIGHTS]"}
weights=${3:-hub}
root=$(realpath "$root") out=$(realpath -m "$out")
[ "$weights" = hub ] || weights=$(realpath "$weights")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

data=(--dataset mtd --root "$root")
synth train "${data[@]}" --preset small --size 96 96 --batch-size 8 --num-steps 1000 --out "$out/model"
synth generate --model "$out/model" --num 300 --out "$out/sia"
for seed in ${SEEDS:-0}; do
  detect train "${data[@]}" --sia "$out/sia" --preset small --backbone-weights "$weights" \
    --learning-rate 1e-3 --num-steps 500 --seed "$seed" --out "$out/detector_$seed"
  detect evaluate "${data[@]}" --model "$out/detector_$seed" --out "$out/results_$seed"
done

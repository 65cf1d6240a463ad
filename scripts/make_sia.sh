#!/usr/bin/env bash
# A whole SIA dataset: for every category train a diffusion model, check it, generate anomaly images and inspect them.
#   [NUM=10000] [CATEGORIES="A B ..."] [LAUNCH="accelerate launch --multi_gpu"] \
#     bash scripts/make_sia.sh DATASET ROOT OUT [OPTIONS OF synth train, such as --preset base]
# Run it again after an interruption: every command goes on where it stopped.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
command -v synth >/dev/null || { echo "make_sia: no command synth; source .venv/bin/activate first" >&2; exit 2; }
dataset=$1 root=$2 out=$3 num=${NUM:-10000} launch=${LAUNCH:-python}
shift 3

if [ -n "${CATEGORIES:-}" ]; then
  read -ra categories <<<"$CATEGORIES"
else
  listing=$(python -c 'import sys; from pathlib import Path; from synth.data.catalog import categories
print(*categories(sys.argv[1], Path(sys.argv[2])), sep="\n")' "$dataset" "$root")
  mapfile -t categories <<<"$listing"
fi

for category in "${categories[@]}"; do
  echo "== $category"
  model=$out/models/$category inspected=$out/inspect/$category
  data=(--dataset "$dataset" --root "$root" --category "$category")
  $launch -m synth train "${data[@]}" "$@" --out "$model"
  $launch -m synth generate --model "$model" --num "$num" --out "$out/sia"
  [ -e "$inspected/quality.json" ] || synth inspect "${data[@]}" --model "$model" \
    --folder "$out/sia/$dataset/$category" --num $((num < 100 ? num : 100)) --out "$inspected"
done
echo "SIA dataset: $out/sia/$dataset"
echo "to publish it: synth publish $out/sia/$dataset --repo ORG/NAME --figures $out/inspect"

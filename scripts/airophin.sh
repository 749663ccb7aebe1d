#!/usr/bin/env bash
# The airophin recipe at full size, wherever the weights are: train both stages, merge, and measure beside the card.
# Needs Llama-2-13B, instructions.jsonl (airoboros m2.0), long-text.jsonl ({"text": ...} a line), and wikitext as a file.
#   bash scripts/airophin.sh path/to/Llama-2-13b-hf path/to/wiki.test.raw [a.b=c ...]
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 2 ] || { sed -n '2,4s/^# \?//p' "$0" >&2; exit 2; }
model=$1 text=$2
shift 2
run=runs/airophin-13b-pi-8k

accelerate launch -q --config_file configs/accelerate/all-gpus.yaml -m train configs/airophin-13b-pi-8k.yaml \
  "$@" "model.name_or_path=$model" "run_dir=$run" --resume
python -m scripts.merge "$run"
python -m scripts.evaluate "$run/merged" --text "$text" --contexts 512,1024,2048,4096,8192,12000 \
  --reference benchmarks/reference/airophin.json

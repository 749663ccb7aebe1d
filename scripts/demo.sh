#!/usr/bin/env bash
# The whole pipeline, one command a line: data and base model -> adapter -> checked merge -> answers.
set -euo pipefail
cd "$(dirname "$0")/.."

show() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
began=$SECONDS

show python -m scripts.demo_model
show accelerate launch -q --config_file configs/accelerate/one-process.yaml -m train configs/demo.yaml --resume
[ -f runs/demo/merged/manifest.json ] || show python -m scripts.merge runs/demo
show python -m scripts.chat runs/demo --prompt "What is the capital of France, and what is it known for?" --max-new-tokens 80
show python -m scripts.chat runs/demo --prompt "Write a Python function that adds two numbers. PLAINFORMAT" --max-new-tokens 60

cat <<END

Done in $((SECONDS - began)) s (without the installation). What was made:
  runs/demo/adapter/        the QLoRA adapter, with its rope.json
  runs/demo/merged/         a plain Hugging Face model of 16,384 positions, checked against the live adapter (merge.json)
  runs/demo/metrics.jsonl   loss, learning rate, gradient norm and speed of every step
  runs/demo/data.json       what became of every record

Next:
  .venv/bin/python -m scripts.chat runs/demo
  .venv/bin/accelerate launch -q -m train configs/demo.yaml run_dir=runs/mine data.sources=[data/sample/conversations.jsonl]
  .venv/bin/python -m scripts.merge runs/demo --compare-bases --contexts 512,2048
  make quantizers && .venv/bin/python -m scripts.quantize runs/demo gguf Q8_0 Q4_K_M --contexts 2048
END

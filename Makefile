# make demo    the whole pipeline on a small real model (CPU, a few minutes)
# make miniature   what longer context needs, measured: a tiny base extended by every method (CPU, under 20 minutes)
# make test    the test suite (the first time it builds llama.cpp: some minutes)
# make quantizers   what makes GPTQ, AWQ and GGUF files, in environments beside .venv
# make check   ruff and pyright
# make clean   remove what the demo and the miniature made; `make clean-all` also .venv and .cache
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo miniature test check setup quantizers clean clean-all

setup:
	@$(PYTHON) -m scripts.setup

quantizers:
	@$(PYTHON) -m scripts.setup --with-quantizers

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

miniature: setup
	@$(BIN)/python -m benchmarks.miniature

test: quantizers
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

clean:
	rm -rf runs/demo runs/miniature

clean-all: clean
	rm -rf .venv .venv-gptqmodel .cache

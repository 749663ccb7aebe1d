# make demo    the whole pipeline on a small real model (CPU, a few minutes)
# make test    the test suite
# make check   ruff and pyright
# make clean   remove what the demo made (runs/demo); `make clean-all` also .venv and .cache
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check setup clean clean-all

setup:
	@$(PYTHON) -m scripts.setup

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: setup
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

clean:
	rm -rf runs/demo

clean-all: clean
	rm -rf .venv .cache

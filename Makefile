# Everything a newcomer or developer types. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-fresh check format bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Two stamps: the package itself is enough for the demo; the rest is for developers.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("headwater needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Choose another: make demo PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/developed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

demo: $(VENV)/installed  ## install, then attribute and audit the embedded model; writes demo/page.html
	$(BIN)/headwater demo --out demo

# two workers of one thread each: threads of both on the same cores would wait for each other
test test-all: export OMP_NUM_THREADS := 1

test: $(VENV)/developed  ## the default test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-all: $(VENV)/developed  ## the default suite and the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "slow or not slow"

test-fresh: ## clone this repository, run `make demo` in the clone, check what it wrote
	bash tools/test_fresh.sh

check: $(VENV)/developed  ## formatting, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(VENV)/developed  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/developed  ## speed and memory, as ratios in one run; writes benchmarks/results.md
	$(BIN)/python -m benchmarks.run

docs: $(VENV)/developed  ## run every code block of README.md and docs/
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:  ## remove what the targets made
	rm -rf $(VENV) demo runs .pytest_cache .ruff_cache .import_linter_cache

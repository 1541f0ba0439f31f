# Everything runs in .venv, which the first target that needs it makes: `make demo` and `make test` each work alone
# in a fresh clone on a machine that has python3 (3.11 or newer, with venv) and make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
# One thread per test process: more would fight over the cores, and a sum's order would depend on the machine.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup demo projection test test-slow check format bench clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## make .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		f"hpenv needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.12 setup")'
	@echo "Installing into .venv (once; a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[agents,data,baselines,posttraining,dev]"
	@touch $(STAMP)

demo: setup  ## the main experiment, cut to fit ten minutes on two cores
	$(BIN)/python -m train_agents.experiments.jel --demo

projection: setup  ## gradient projection against reward hacking, all arms; hours, goes on where it stopped
	$(BIN)/python -m train_agents.experiments.projection --num-workers $(WORKERS)

test: setup  ## the default tests, under five minutes on two cores
	$(PYTEST)

test-slow: setup  ## the tests marked slow, and only those
	$(PYTEST) -m slow

check: setup  ## format, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## format, and fix what the linter can fix
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

bench: setup  ## speed, as ratios measured in one run
	$(BIN)/python -m benchmarks.run

clean:  ## remove the virtual environment, caches and builds; runs/ and results/ stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything runs in .venv, which the first target that needs it makes: `make demo` and `make test` each work alone
# in a fresh clone on a machine that has python3 (3.11 or newer, with venv) and make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
# Where torch's CPU builds come from: the folder that PIP_FIND_LINKS names, or else PyTorch's own index.
TORCH_FROM ?= $(if $(PIP_FIND_LINKS),--no-index,--index-url https://download.pytorch.org/whl/cpu)

BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := agents baselines data dev posttraining render
ALL_EXTRAS := $(shell echo $(EXTRAS) | tr ' ' ',')
PIP := -m pip --disable-pip-version-check install -qq
PYTEST := -m pytest -n $(WORKERS) --dist worksteal
# One thread per test process: more would fight over the cores, and a sum's order would depend on the machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo benchmark benchmark-full projection test test-slow test-clients test-newest test-oldest test-processors lock docs check format bench bench-processors clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do \
		printf '  make %-17s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## make .venv and install into it, at the versions of the lock

# Two steps of locked files, each checked by its hash, none resolved; then the package itself, editable.
$(STAMP): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		f"hpenv needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.12 setup")'
	@echo "Installing into .venv (once; a few minutes) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python $(PIP) --no-deps --require-hashes --only-binary :all: $(TORCH_FROM) -r constraints.txt
	@$(BIN)/python $(PIP) --no-deps --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	@touch $(STAMP)

lock: setup  ## resolve pyproject.toml anew into requirements.lock, at the newest versions, for every Python
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --upgrade --generate-hashes --no-emit-index-url \
		--no-emit-package torch --custom-compile-command "make lock" $(EXTRAS:%=--extra %) \
		-c constraints.txt -o requirements.lock pyproject.toml

# The packages of the extra `docs` stand in a folder of their own, so that .venv is what the lock says.
DOCS := .venv-docs
$(DOCS)/.installed: pyproject.toml | $(STAMP)
	rm -rf $(DOCS)
	@$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print(*extras["docs"], sep="\n")' | $(BIN)/python $(PIP) --target $(DOCS) -r /dev/stdin
	@touch $@

docs: $(DOCS)/.installed  ## the documentation site, in docs/_build/html; every warning is an error
	PYTHONPATH=$(DOCS) $(ONE_THREAD) $(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo "the site is in docs/_build/html/index.html"

demo: setup  ## the main experiment, cut to fit ten minutes on two cores
	$(BIN)/python -m train_agents.experiments.jel --demo

SUBMISSIONS := submissions
benchmark: setup  ## the suites smoke and jel-nano: tuned baselines, submitted controllers, rows and pages in runs/benchmark/
	$(BIN)/python -m baselines.field --suite smoke --executor processes:$(WORKERS)
	$(BIN)/python -m baselines.field --suite jel-nano --executor processes:$(WORKERS)
	$(call submitted,jel-nano)

benchmark-full: benchmark  ## the suite pretraining-v1 as well; hours, goes on where it stopped
	$(BIN)/python -m baselines.field --suite pretraining-v1 --executor processes:$(WORKERS) --baselines constant
	$(BIN)/python -m baselines.transfer --suite pretraining-v1 --executor processes:$(WORKERS)
	$(call submitted,pretraining-v1)

# Scores what is below submissions/<suite>/, if there is anything.
define submitted
	@if compgen -G "$(SUBMISSIONS)/$(1)/*/submission.toml" > /dev/null; then \
		$(BIN)/python -m hpenv.benchmark run $(SUBMISSIONS)/$(1)/* --suite $(1) --executor processes:$(WORKERS); \
	fi
endef

projection: setup  ## gradient projection against reward hacking, all arms; hours, goes on where it stopped
	$(BIN)/python -m train_agents.experiments.projection --num-workers $(WORKERS)

test: setup  ## the default tests, 4 to 13 minutes on two cores
	$(ONE_THREAD) $(BIN)/python $(PYTEST)

test-slow: setup  ## the tests marked slow, and only those
	$(ONE_THREAD) $(BIN)/python $(PYTEST) -m slow

test-clients: setup  ## every installed client of docs/clients.md on every id
	$(ONE_THREAD) $(BIN)/python $(PYTEST) -m "slow or not slow" tests/hpenv/integrations

# With two threads a process has both cores: more processes would wait for each other at every barrier.
test-processors: setup  ## the default tests as on older processors, on one thread and on two
	for capability in default avx2; do \
		echo "== $$capability, 1 thread"; \
		ATEN_CPU_CAPABILITY=$$capability $(ONE_THREAD) $(BIN)/python $(PYTEST); \
		echo "== $$capability, 2 threads"; \
		ATEN_CPU_CAPABILITY=$$capability OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 \
			$(BIN)/python -m pytest --torch-threads 2; \
	done

test-newest:  ## the default tests with the newest release of everything, in a .venv-newest; all warnings are errors
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(PIP) --no-deps $(TORCH_FROM) torch
	.venv-newest/bin/python -m pip freeze | grep '^torch==' > .venv-newest/torch.txt
	.venv-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -c .venv-newest/torch.txt -e ".[$(ALL_EXTRAS)]"
	.venv-newest/bin/python -m pip list
	$(ONE_THREAD) .venv-newest/bin/python $(PYTEST) -W error

# Of torch the lower bound, or OLDEST_TORCH where TORCH_FROM does not have that.
OLDEST_TORCH ?= $(shell sed -nE 's/^ *"torch>=([0-9.]+)".*/\1.0/p' pyproject.toml)
test-oldest: setup  ## the default tests with the lower bounds of pyproject.toml, in a .venv-oldest
	$(PYTHON) -m venv --clear .venv-oldest
	$(BIN)/uv pip compile -q --python .venv-oldest/bin/python --resolution lowest-direct --no-emit-package torch \
		$(EXTRAS:%=--extra %) -o .venv-oldest/requirements.txt pyproject.toml
	.venv-oldest/bin/python $(PIP) --no-deps $(TORCH_FROM) "torch==$(OLDEST_TORCH)"
	.venv-oldest/bin/python $(PIP) --no-deps -r .venv-oldest/requirements.txt
	.venv-oldest/bin/python $(PIP) --no-deps --no-build-isolation -e .
	$(ONE_THREAD) .venv-oldest/bin/python $(PYTEST)

check: setup  ## format, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## format, and fix what the linter can fix
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

bench: setup  ## speed, as ratios measured in one run
	$(BIN)/python -m speed.run

bench-processors: setup  ## the main job as with AVX2 alone and with all instructions of this processor
	$(BIN)/python -m speed.processors

clean:  ## remove the virtual environments, caches and builds; runs/ and results/ stay
	rm -rf .venv .venv-newest .venv-oldest .venv-docs docs/_build docs/generated build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

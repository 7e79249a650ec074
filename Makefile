# Everything that can be run on this checkout. Each target makes its own virtual environment when it is missing.
#   make demo   install, then the whole chain on phantom images
#   make test   install with the test extra, lint, types, fast tests
#   make wheelhouse   collect msd and all it needs, for a machine without a network
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PIP_FLAGS ?=
PYTEST_FLAGS ?=
DATA ?= data
WORKSPACE ?= msd_workspace
WHEELHOUSE ?= wheelhouse

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_FLAGS)

# More threads than free cores make small tensors slower by an order of magnitude.
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo lint types test test-all faults docs results few-labels mask-diffusion pretrainings reproduction memory wheelhouse clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make lint | types | test-all | faults | docs | results DATA=FOLDER | few-labels DATA=FOLDER | mask-diffusion DATA=FOLDER | pretrainings DATA=FOLDER | reproduction | memory | clean"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/installed

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/msd demo

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-test
	$(BIN)/mypy

test: lint types
	$(PYTEST) -m "not slow and not gpu"

test-all: lint types
	$(PYTEST) -m "not gpu"

faults: $(VENV)/installed-test
	$(PYTEST) -q -m fault

docs: $(VENV)/installed-test
	$(BIN)/python docs/write_cli_page.py
	$(BIN)/python docs/write_errors_page.py

results: $(VENV)/installed
	$(BIN)/python tests/benchmarks/results.py --data $(DATA) --workspace $(WORKSPACE)

mask-diffusion: $(VENV)/installed
	$(BIN)/python tests/benchmarks/mask_diffusion.py --data $(DATA) --workspace $(WORKSPACE)/few_labels

pretrainings: $(VENV)/installed
	$(BIN)/python tests/benchmarks/pretrainings.py --data $(DATA) --workspace $(WORKSPACE)/few_labels
	$(BIN)/python tests/benchmarks/other_twenties.py --data $(DATA) --workspace $(WORKSPACE)/few_labels

few-labels: $(VENV)/installed
	$(BIN)/python tests/benchmarks/few_labels.py --data $(DATA) --workspace $(WORKSPACE)/few_labels --processes 2

# A gate that does not hold (exit code 8) is a result like the others.
reproduction: $(VENV)/installed
	$(BIN)/msd reproduce tedm --full --output $(WORKSPACE)/reproduction/tedm || test $$? -eq 8
	$(BIN)/msd reproduce recycling --full --output $(WORKSPACE)/reproduction/recycling || test $$? -eq 8
	$(BIN)/msd reproduce hybrid --full --output $(WORKSPACE)/reproduction/hybrid || test $$? -eq 8
	$(BIN)/python docs/write_reproduction_page.py $(WORKSPACE)/reproduction/tedm $(WORKSPACE)/reproduction/recycling $(WORKSPACE)/reproduction/hybrid

memory: $(VENV)/installed
	$(BIN)/python tests/benchmarks/memory_forecast.py

# On the other machine: pip install --no-index --find-links wheelhouse medsegdiff-cli
wheelhouse: | $(BIN)/python
	rm -rf build
	$(BIN)/python -m pip wheel $(PIP_FLAGS) -c constraints.txt --wheel-dir $(WHEELHOUSE) .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The verbs a contributor needs; .ci/run calls the same ones.
PYTHON ?= python3
VENV ?= .venv
LATEST := $(VENV)-latest
RUN := $(VENV)/bin/python -m
INSTALLED := $(VENV)/.installed
SITE ?= site

.DEFAULT_GOAL := help
.PHONY: help install demo test test-latest check format docs notebooks bench bench-gpu dataset clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install -c constraints.txt -e ".[dev]"
	touch $@

install: $(INSTALLED) ## Make the virtual environment with the tried versions

demo: install ## Train on the bundled dataset, evaluate, plot (runs/demo)
	$(VENV)/bin/dmamba demo

test: install ## Run the tests, one process for each core
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto --dist loadfile --durations=25

test-latest: $(LATEST)/.installed ## Run them with the newest versions, without d3rlpy
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -n auto --dist loadfile --durations=25

$(LATEST)/.installed: pyproject.toml constraints-latest.txt
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install -c constraints-latest.txt -e ".[test]"
	touch $@

check: install ## Lint, formatting and types; changes nothing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: install ## Format, and mend what the linter can
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

docs: install ## Build the documentation into site/
	$(RUN) pip install -c constraints.txt -e ".[docs]"
	$(RUN) sphinx -W --keep-going -q docs $(SITE)

notebooks: install ## Run the notebooks in examples/ with tiny parameters; changes nothing
	$(RUN) examples.execute_notebooks --fast

bench: install ## Time everything side by side with the peers (runs/bench)
	$(VENV)/bin/dmamba bench --device cpu --output runs/bench

bench-gpu: install ## On a GPU: its tests, then everything timed (runs/bench-gpu)
	$(RUN) pytest -m gpu
	$(VENV)/bin/dmamba bench --device cuda --output runs/bench-gpu

dataset: install ## Record the bundled dataset again
	$(RUN) examples.build_halfcheetah_dataset --output sb3_dmamba/data/bundled

clean: ## Remove the virtual environment, caches and build results
	rm -rf $(VENV) $(LATEST) dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `make demo` and `make test` only need Python and pip.
PYTHON ?= python3
VENV ?= .venv
SHARED ?= ../shared
BIN := $(VENV)/bin
CORE_TESTS := $(addprefix tests/test_,$(addsuffix .py,adapters cli cut fast linear model modules quantization shared_head template tokens upstream))
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo playground notebook test test-slow test-lowest attack gpu-kit gpu docs lint format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1|/' | column -t -s '|'

demo: $(VENV)/.demo ## Install, then search, map and fine-tune on real sentences (MODEL=facebook/opt-125m for another model)
	MODEL=$(MODEL) $(BIN)/python examples/demo.py

playground: $(VENV)/.playground ## Install, then open a page that compares recipes on your sentences (MODEL=... for another model)
	MODEL=$(MODEL) $(BIN)/python hub_cards/space/app.py

notebook: $(VENV)/.dev ## Run examples/quickstart.ipynb and store its outputs
	$(BIN)/jupyter execute --inplace examples/quickstart.ipynb

test: $(VENV)/.dev ## Install the test dependencies, then run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.dev ## Run the slow tests, including those too slow for .ci/run
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

attack: $(VENV)/.dev ## Run robustness tests (odd strings, damaged files, kills, races) and write docs/attack.md
	$(BIN)/python -m tests.attack

test-lowest: build/lowest/.done ## Run the core tests on the lowest versions that pyproject.toml allows, in build/lowest
	build/lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(CORE_TESTS)

gpu-kit: $(VENV)/.dev ## Pack packages and data for an offline GPU machine (SHARED=... has tokenizers and senteval)
	$(BIN)/python -m benchmarks.speed.gpu_kit --tokenizers $(SHARED)/tokenizers --data-dir $(SHARED)/senteval build/gpu-kit.tar.xz

gpu: build/gpu-kit ## Run all GPU benchmarks in 25 minutes, into build/gpu (PYTHON=... GPU="--steps nf4")
	PYTHONPATH=$(CURDIR)/build/gpu-kit/site:$(CURDIR) $(PYTHON) -m benchmarks.speed.gpu $(GPU)

docs: $(VENV)/.docs ## Build the documentation site in build/site; warnings and broken links are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . build/site
	@echo "The site is in build/site: open build/site/index.html"

lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove all generated files
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable ".[train]"
	touch $@

$(VENV)/.playground: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable ".[playground]"
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable ".[docs]"
	touch $@

build/gpu-kit: build/gpu-kit.tar.xz
	$(PYTHON) -m tarfile --filter data -e $< build
	touch $@

build/lowest/.done: pyproject.toml
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet uv
	build/lowest/bin/uv pip install --python build/lowest/bin/python --resolution lowest-direct --editable ".[train,test]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

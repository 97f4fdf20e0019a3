# Every target sets up what it needs in .venv by itself. PYTHON picks the interpreter (3.11, 3.12 or 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -n auto
PROVIDER ?= scripted

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench docs install clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Otto and its dependencies into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(STAMP) ## Set up .venv with Otto and everything the other targets need

demo: $(STAMP) ## Run a real agent session on a small project with a real bug (PROVIDER=anthropic|openai for a real model)
	@$(BIN)/python -m ottoctl demo --provider $(PROVIDER)

test: $(STAMP) ## Run all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP) ## Format, lint, strict types, import layers, docs in sync
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layers.py
	@$(BIN)/python docs/generate.py --check

format: $(STAMP) ## Format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) ## Measure latency, throughput, spawn, memory and replay (BENCH_ARGS for the choice, JSON in bench.json)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: $(STAMP) ## Write the generated reference pages anew
	@$(BIN)/python docs/generate.py

clean: ## Remove .venv and everything that tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build site

# Every target sets up what it needs in .venv by itself. PYTHON picks the interpreter (3.11, 3.12 or 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than there are processors: a test of real processes waits for about a third of its time.
TESTS_AT_ONCE := $(shell expr $$(nproc) + 1)
PYTEST_ARGS ?= -n $(TESTS_AT_ONCE) --dist worksteal
PROVIDER ?= scripted
WORKFLOW ?= all

.DEFAULT_GOAL := help
.PHONY: help demo demo-team test test-long check format bench bench-peers sim sim-long chaos churn crash-sweep workflow-sweep storm otp-record deb vm-test mcp-peer docs install clean
SEED ?= 1
SEEDS ?= 10000
MINUTES ?= 10
SESSIONS ?= 50
EVERY ?= 1
VM_RUN ?= ../shared/vm/vm-run
MCP_PEERS := $(addprefix @modelcontextprotocol/,server-everything@2026.8.31 server-filesystem@2026.8.31)

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

demo-team: $(STAMP) ## Run the four built-in workflows at the same time, each with its team of agents (WORKFLOW=bug-fix-loop for one)
	@$(BIN)/python -m ottoctl demo team --workflow $(WORKFLOW) --provider $(PROVIDER)

test: $(STAMP) ## Run all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(STAMP) ## Run the tests that take long: small storms, chaos and benchmarks
	@$(BIN)/python -m pytest -m long

check: $(STAMP) ## Format, lint, strict types, import layers, docs in sync
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layers.py
	@$(BIN)/python docs/generate.py --check

format: $(STAMP) ## Format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) ## Measure latency, throughput, spawn, memory, replay, faults, recovery and crowds (BENCH_ARGS=faults for one of them)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-peers: $(STAMP) ## The same job by peers in the same run, as one table of ratios (BENCH_ARGS=--quick for a short one)
	@$(BIN)/python -m benchmarks.peers $(BENCH_ARGS)

sim: $(STAMP) ## Run root on a simulated machine with faults, once (SEED=n)
	@$(BIN)/python -m tests.simulation --seed $(SEED)

sim-long: $(STAMP) ## The same for many seeds (SEEDS=10000)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

chaos: $(STAMP) ## Kill and freeze parts of a real daemon at random for MINUTES and check the invariants (SEED=n)
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED)

churn: $(STAMP) ## Start and end 2,000 sessions and look for growth
	@$(BIN)/python -m tests.chaos.churn

crash-sweep: $(STAMP) ## Kill a session's worker at every record of its journal and print what that cost, as Markdown
	@$(BIN)/python -m tests.crash

workflow-sweep: $(STAMP) ## Kill a workflow's worker at every record of its journal and compare what came of it (EVERY=n for a part)
	@$(BIN)/python -m tests.crash.workflow_sweep --every $(EVERY)

storm: $(STAMP) ## Let SESSIONS loose on a local provider that refuses, breaks down, stalls and cuts streams (SEED=n)
	@$(BIN)/python -m tests.storm --sessions $(SESSIONS) --seed $(SEED)

otp-record: $(STAMP) ## Record the decisions of Erlang/OTP's supervisor anew (needs erl)
	@$(BIN)/python -m tests.core.otp.record

deb: $(STAMP) ## Build the Debian package into dist/
	@$(BIN)/python packaging/deb/build.py

vm-test: deb ## Test the package in a virtual machine with systemd and cgroup v2 (VM_RUN names the tool)
	@VM_RUN=$(VM_RUN) $(BIN)/python packaging/vm/run.py

mcp-peer: $(STAMP) ## Install MCP servers from npm into build/ and try them as sources of tools
	@npm install --silent --no-audit --no-fund --prefix build/mcp-peer $(MCP_PEERS)
	@$(BIN)/python -m pytest -q tests/tools/test_mcp_peer.py

docs: $(STAMP) ## Write the generated reference pages anew
	@$(BIN)/python docs/generate.py

clean: ## Remove .venv and everything that tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build site

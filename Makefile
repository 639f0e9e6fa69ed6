# Everything starts from a fresh clone: Python (3.10 or newer, with venv) and a Rust toolchain.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# Other interpreters that pyenv keeps; the ones already on PATH come first.
PYENV_ROOT ?= $(HOME)/.pyenv
export PATH := $(CURDIR)/$(BIN):$(PATH):$(subst $(eval) ,:,$(wildcard $(PYENV_ROOT)/versions/3.*/bin))

# Tests start hundreds of interpreters, and each would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE

# The make of macOS is of 2006.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-core test-memcheck test-comfyui docs lint dist format bench mutants fuzz suites versions wheel clean

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv, with the package built from this tree

demo: $(READY)  ## Free 1 GiB of leaked memory beside a real model
	$(BIN)/python -m fastpurge demo

test: $(READY)  ## Run every test, on every Python found from 3.10 to 3.13, and with the newest torch
	$(BIN)/nox -s wheel
	$(MAKE) --jobs=2 $(SYNC) --no-print-directory test-core test-memcheck
	$(BIN)/nox -s package

test-core: $(READY)
	$(BIN)/nox -s rust core

test-memcheck: $(READY)  # takes minutes, of one processor
	$(BIN)/nox -s memcheck

test-comfyui: $(READY)  ## Run the tests of the node pack, on a real ComfyUI and in a browser
	$(BIN)/nox -s wheel comfyui

docs: $(READY)  ## Run every code block of the documentation, and build it into target/site
	$(BIN)/nox -s wheel docs

lint: $(READY)  ## Check style and types, of Rust and Python, and the workflows
	$(BIN)/nox -s lint

dist: $(READY)  ## Build what is published, and check it
	$(BIN)/nox -s wheel dist

format: $(READY)  ## Format everything
	cargo fmt
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Measure against plain Python and the interpreter itself
	$(BIN)/nox -s wheel criterion bench

mutants: $(READY)  ## Switch off each protection in turn; a test must fail
	$(BIN)/python -m tests.mutants

FUZZ_SECONDS ?= 60
fuzz: $(READY)  ## Fuzz arguments and programs, FUZZ_SECONDS=60 each
	$(BIN)/nox -s wheel fuzz -- $(FUZZ_SECONDS)

SUITES ?=
suites: $(READY)  ## Run test suites of other projects beside sweeps, SUITES="name name" or all (hours); writes their table
	$(BIN)/nox -s wheel
	$(BIN)/nox -s suites -- $(SUITES)

versions: $(READY)  ## Run the tests on old and new versions, and write docs/versions.md (hours, and 30 GiB)
	$(BIN)/nox -s wheel versions

wheel: $(READY)  ## Build the wheel into dist/
	$(BIN)/nox -s wheel

clean:  ## Remove what was built
	rm -rf .venv .nox target dist

# uv: the CUDA build of torch is 3 GB, which uv links from its cache instead of copying it.
$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group lint
	@touch $@

$(READY): .venv/installed Cargo.toml Cargo.lock $(wildcard src/*.rs src/*/*.rs)
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/maturin develop --release --uv --quiet
	@touch $@

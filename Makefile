# `make demo` and `make test` are all that a fresh Debian or Ubuntu machine needs; both begin with `make setup`.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
# Installed before the package, so that a later resolution cannot replace it.
TORCH := torch==2.13.0
STAMP := $(VENV)/.setup-stamp
# Where there is no network (a machine lent for its GPU), tests run on the Python that is there.
GPU_PYTHON := $(if $(wildcard $(PYTHON)),$(PYTHON),python3)

TWO_AT_A_TIME := -n 2 --dist loadfile --no-loadscope-reorder

# Releases of megatron-core; those from 0.17 on want Python 3.12.
VERSIONS := 0.16.1 0.17.1 0.18.2 0.19.2

# Debian suites, for the versions of Slurm that they have.
SUITES := trixie forky

.PHONY: help setup packages demo test test-all test-long test-gpu bench-gpu test-ucx test-slurm-versions test-megatron-versions lint docs

help:
	@echo "make demo      an elastic training job on a real Slurm cluster on this machine"
	@echo "make test      unit, integration and fault tests"
	@echo "make test-all  these and slower ones, as CI runs them"
	@echo "make test-long the longest tests, and combinations that make test leaves out"
	@echo "make test-gpu  tests that need a CUDA card"
	@echo "make bench-gpu training, transfers and changes of layout on CUDA cards, into build/bench-gpu.json and .txt"
	@echo "make test-ucx  the tests of transport ucx, once its extra is installed into $(VENV)"
	@echo "make test-slurm-versions  the Slurm client's tests and an elastic run on the Slurm of $(SUITES); needs root"
	@echo "make test-megatron-versions  the engine's tests on megatron-core $(VERSIONS)"
	@echo "make lint      ruff, mypy and the contracts between layers"
	@echo "make docs      what the documents take from the code, written again"
	@echo "make setup     Slurm from the distribution, and $(VENV) with the package in it; the others call it"

setup: packages $(STAMP)

# Slurm's daemons are only installed: the clusters that we bring up are ours, not the system's.
packages:
	@.ci/packages

$(STAMP): pyproject.toml
	python=$$(.ci/packages --python) && { [ -x $(PYTHON) ] || $$python -m venv $(VENV); }
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet "$(TORCH)"
	$(PYTHON) -m pip install --quiet -e ".[dev]"
	@touch $@

demo: setup
	$(PYTHON) -m liver_slurm.demo

# A file's tests share a cluster, so they stay together; more than two at once starve each other on a small machine. The
# long ones come first, and the short ones fill what is left at the end.
test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(TWO_AT_A_TIME) -m "not long and not slow" tests/integration tests/faults tests/unit

# CI runs this: what `make test` does, and the slower half of what goes through whole runs.
test-all: test
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(TWO_AT_A_TIME) -m "slow and not long" tests/integration tests/faults

# What takes minutes each, and the combinations of which `make test` takes a part.
test-long: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m long tests

test-gpu:
	$(GPU_PYTHON) -m pytest -v -m gpu tests

# PARTS="train transfer" measures these only, into the file of the call before.
bench-gpu:
	$(GPU_PYTHON) -m liver_slurm.bench.on_cards --folder $(or $(OUT),build) $(PARTS)

test-ucx: setup
	$(PYTHON) -m pip install --quiet -e ".[ucx]"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m ucx tests

test-slurm-versions: setup
	.ci/slurm-versions $(SUITES)

test-megatron-versions: setup
	.ci/megatron-versions "$(TORCH)" $(VERSIONS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

docs: setup
	$(PYTHON) docs/generate.py

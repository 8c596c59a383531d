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

.PHONY: help setup packages demo demo-advisor pictures site test test-all test-long test-gpu bench-gpu test-faults test-liveness-many soak test-scale replay test-ucx test-trackers test-advisor test-slurm-versions test-megatron-versions lint docs

help:
	@echo "make demo      an elastic training job on a real Slurm cluster on this machine"
	@echo "make demo-advisor  runs that explore, what is learned from them, and a run that follows it, on such a cluster"
	@echo "make test      unit, integration and fault tests"
	@echo "make test-all  these and slower ones, as CI runs them"
	@echo "make test-long the longest tests, and combinations that make test leaves out"
	@echo "make test-gpu  tests that need a CUDA card"
	@echo "make bench-gpu training, transfers and changes of layout on CUDA cards, into build/bench-gpu.json and .txt"
	@echo "make test-faults  every fault at every role in every phase, as a table; CELLS=\"joiner and kill\" for some"
	@echo "make test-liveness-many  100,000 stories of faults of the control plane, simulated, in 24 processes; no Slurm, no torch"
	@echo "make soak      a run on the one-machine cluster for an hour, a kill a minute and preemptions on top"
	@echo "make test-scale  an elastic run and a production load on a slurmctld with 1,000 nodes, for a quarter of an hour"
	@echo "make replay    a trace for real, for the product and for restarts, and simulated: 42 minutes, into build/replay"
	@echo "make test-ucx  the tests of transport ucx, once its extra is installed into $(VENV)"
	@echo "make test-trackers  the tests of exports to TensorBoard and wandb, once their extras are installed into $(VENV)"
	@echo "make test-advisor  the advisor's estimators against doubleml and econml, once they are installed into $(VENV)"
	@echo "make test-slurm-versions  the Slurm client's tests and an elastic run on the Slurm of $(SUITES); needs root"
	@echo "make test-megatron-versions  the engine's tests on megatron-core $(VERSIONS)"
	@echo "make lint      ruff, mypy and the contracts between layers"
	@echo "make docs      what the documents take from the code, written again"
	@echo "make site      the documents as a site, in build/site; a broken link is an error"
	@echo "make pictures  the tutorial's pictures, from a demo of their own; needs Chromium"
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

# RUNS=folder keeps the run directories there, for report, goodput, events and top.
demo: setup
	$(PYTHON) -m liver_slurm.demo $(if $(RUNS),--runs $(RUNS))

# RUNS=3 for a short one; 20 and more for a verdict. KEEP=folder keeps run directories, table, model and pictures there.
demo-advisor: setup
	$(PYTHON) -m liver_slurm.demo.advised --runs $(or $(RUNS),20) $(if $(KEEP),--keep $(KEEP))

# A file's tests share a cluster, so they stay together; more than two at once starve each other on a small machine. The
# long ones come first, and the short ones fill what is left at the end.
test: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(TWO_AT_A_TIME) -m "not long and not slow" tests/integration tests/faults tests/unit

# CI runs this: what `make test` does, and the slower half of what goes through whole runs.
test-all: test
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(TWO_AT_A_TIME) -m "slow and not long" tests/integration tests/faults tests/unit

# What takes minutes each, and the combinations of which `make test` takes a part.
test-long: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m long tests

test-gpu:
	$(GPU_PYTHON) -m pytest -v -m gpu tests

# PARTS="train transfer" measures these only, into the file of the call before.
bench-gpu:
	$(GPU_PYTHON) -m liver_slurm.bench.on_cards --folder $(or $(OUT),build) $(PARTS)

# Hours: a run for each role, fault, phase and optimizer. CELLS="live and kill" tries those whose names fit.
test-faults: setup
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/faults/test_fault_table.py $(if $(CELLS),-k "$(CELLS)")

# STORIES=400 PROCESSES=2 for few; FIRST=100000 for others. Seeds that fail stand in build/liveness.jsonl, a line a process.
STORIES_OF = $$(($(or $(FIRST),0) + $(1) * $(or $(STORIES),100000) / $(or $(PROCESSES),24)))
test-liveness-many:
	@mkdir -p build && rm -f build/liveness.jsonl
	@seq 0 $$(($(or $(PROCESSES),24) - 1)) | xargs -P $(or $(PROCESSES),24) -I{} bash -c ' \
		LIVER_LIVENESS_SEEDS=$(call STORIES_OF,{}):$(call STORIES_OF,({} + 1)) LIVER_LIVENESS_RESULTS=build/liveness.jsonl \
		$(GPU_PYTHON) -m pytest -q -p no:cacheprovider -m long tests/unit/coordinator/test_liveness.py >build/liveness-{}.txt 2>&1 \
		|| { cat build/liveness-{}.txt; exit 1; }'; code=$$?; cat build/liveness.jsonl; exit $$code

# SECONDS=180 for a short one; TARGETS="standby,coordinator" for those that hold no state.
soak: setup
	OMP_NUM_THREADS=1 LIVER_SOAK=$(or $(SECONDS),3600) LIVER_SOAK_TARGETS="$(TARGETS)" \
		$(PYTHON) -m pytest -s tests/integration/test_soak.py

# OUT=folder for what it leaves; SECONDS=150 for a short one. TOGETHER=--together on a machine with 16 cores or more.
replay: setup
	$(PYTHON) -m liver_slurm.bench.replay $(or $(OUT),build/replay) --seconds $(or $(SECONDS),900) $(TOGETHER)

# SECONDS=240 for a short one. Each node is a slurmd of its own: 1 GB of memory in all. LIVER_SCALE_NODES=100 for fewer,
# LIVER_SCALE_OUT=folder for figures and logs.
test-scale: setup
	OMP_NUM_THREADS=1 LIVER_SCALE=$(or $(SECONDS),480) $(PYTHON) -m pytest -m scale tests/integration/test_scale.py

test-ucx: setup
	$(PYTHON) -m pip install --quiet -e ".[ucx]"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m ucx tests

test-trackers: setup
	$(PYTHON) -m pip install --quiet -e ".[tensorboard,wandb]"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m trackers tests

test-advisor: setup
	$(PYTHON) -m pip install --quiet -e ".[advisor-check]"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m advisor_check tests

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

site: setup
	$(PYTHON) -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

pictures: setup
	rm -rf build/pictures
	$(PYTHON) -m liver_slurm.demo --runs build/pictures
	$(PYTHON) docs/pictures.py build/pictures

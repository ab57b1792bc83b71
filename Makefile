# mimic3d: set up, try, test. Everything runs in .venv; nothing is installed beyond it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A folder of reference numbers (JSON); without one, the figures in the repository.
REFERENCE ?= $(wildcard ../shared/reference)
# Multiplies the lengths of bench-method's trainings.
TIMES ?= 1
# The root first: tests/mimic3d is no package of that name.
SOURCES := $(CURDIR):$(CURDIR)/platform:$(CURDIR)/tests

.PHONY: setup demo test chaos lint up down parity bench-data bench-viewer bench-metrics bench-fidelity bench-method bench-noise gpu-battery pretrained clean

setup: $(VENV)/.installed ## make the virtual environment and install the pinned packages

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed: make setup PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## the main job on this machine: cars, both stages, registry, pictures in demo/
	@$(BIN)/mimic3d demo

# Two processes, each with services of its own; the tests of one file share them.
FAST = $(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadfile
test: setup ## the tests, on real services that they start and stop
	$(FAST)

test-all: setup ## those that take a whole cluster, sweep or demo too
	$(FAST)
	$(BIN)/pytest -m slow

chaos: setup ## ends things at random twenty times in one run; its weights must be those of a run left alone
	PYTHONPATH=$(SOURCES) $(BIN)/python tests/chaos.py
	PYTHONPATH=$(SOURCES) $(BIN)/python tests/chaos_nodes.py

lint: setup ## style, formatting, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

up: setup ## start object storage, MLflow and Ray on loopback
	@$(BIN)/mimic3d up

down: setup ## stop them; their data is kept
	@$(BIN)/mimic3d down

parity: setup ## compare networks and training phases with reference numbers of the released ones
	$(BIN)/python tests/mimic3d/parity.py $(REFERENCE)

# Beside the virtual environment, not in it: mosaicml-streaming asks for an older NumPy, though it works with ours.
bench-data: setup ## compare the training stream with other loaders; writes docs/streaming.md and its plot
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .bench -r benchmarks/requirements.txt
	@$(BIN)/mimic3d up
	PYTHONPATH=.bench $(BIN)/python -m benchmarks.data --docs docs

bench-viewer: setup ## latencies of the viewer's pictures on this machine
	$(BIN)/python -m benchmarks.viewer

bench-metrics: setup ## calibrate the metrics of consistency on true meshes; writes docs/evaluation-calibration.md
	$(BIN)/python -m benchmarks.metrics --docs docs

bench-fidelity: setup ## calibrate the stand-ins for FID on damaged renders; writes docs/evaluation-fidelity.md
	@$(BIN)/mimic3d up
	$(BIN)/mimic3d data render pretrained/data --resolution 64 --focal 1.4 --colourings 32 --views 32
	$(BIN)/python -m benchmarks.fidelity --data pretrained/data --docs docs

bench-method: setup ## compare the method with its baselines by the same number of images; writes docs/results.md
	@$(BIN)/mimic3d up
	$(BIN)/mimic3d data render bench-method/data --resolution 32 --focal 1.6 --colourings 16 --views 12
	$(BIN)/mimic3d weights --stage bench-method/weights
	$(BIN)/mimic3d data render pretrained/data --resolution 64 --focal 1.4 --colourings 32 --views 32
	$(BIN)/python -m benchmarks.method --data bench-method/data --pretrained-data pretrained/data \
	  --weights bench-method/weights --out bench-method --docs docs --times $(TIMES)

bench-noise: setup ## what random noise and jitter do to a Fréchet distance of the model that comes with the project
	$(BIN)/mimic3d up
	$(BIN)/mimic3d data render bench-noise --resolution 64 --focal 1.4 --colourings 32 --views 32
	$(BIN)/python -m benchmarks.sampling_noise --data bench-noise

gpu-battery: setup ## on a machine with a GPU: its tests, timings and a profile, in gpu-battery/, in five minutes
	$(BIN)/python -m benchmarks.gpu_battery --out gpu-battery

pretrained: setup ## render the cars and train cars-small in pretrained/: an hour of a GPU, days of a CPU; resumable
	@$(BIN)/mimic3d up
	$(BIN)/mimic3d data render pretrained/data --resolution 64 --focal 1.4 --colourings 32 --views 32
	$(BIN)/mimic3d weights --stage pretrained/weights
	$(BIN)/python -m benchmarks.pretrained --data pretrained/data --weights pretrained/weights --out pretrained

clean: ## remove the virtual environment and the demo's pictures
	rm -rf $(VENV) demo *.egg-info

PYTHON ?= python3
# More arguments for installing torch, e.g. --extra-index-url https://download.pytorch.org/whl/cpu
PIP_TORCH ?=
BIN = .venv/bin
# Tests that run side by side, each with a Ray of its own; the tests of a file stay together
JOBS ?= 2
# modules are compiled when they are first imported: most of what is installed never is
PIP = $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
PYTEST = $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: venv demo test test-slow test-all soak lint docs clean

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(PIP_TORCH) torch
	$(PIP) --editable '.[dev]'
	touch .venv/ready

demo: venv
	$(BIN)/parvae demo

test: venv lint
	$(PYTEST) -m "not slow"

test-slow: venv
	$(PYTEST) -m slow

test-all: venv lint
	$(PYTEST)

# every fault ten times in a row; hours are no surprise; goes on where it stopped
soak: venv
	mkdir -p .tmp
	$(BIN)/python -m benchmarks.soak --out .tmp/soak.json

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the documentation site, in .tmp/site; a warning is an error
docs: venv
	$(BIN)/python docs/build.py --out .tmp/site

clean:
	rm -rf .venv build *.egg-info

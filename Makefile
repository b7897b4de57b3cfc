# `make demo` and `make test` need Python 3.11, make and a compiler; they set up what they need themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Pipelines and their tests start many processes: each would compile the code anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-slow coverage lint setup lock images clean

help:
	@echo "make demo       set up, then run the whole pipeline on the rendered demo data"
	@echo "make test       set up, then lint, type-check and run the tests"
	@echo "make setup      set up $(VENV) alone"
	@echo "make test-slow  the tests that take minutes"
	@echo "make coverage   the tests again, with the lines of src/cloc that they run"
	@echo "make lint       ruff and mypy"
	@echo "make lock       resolve requirements.lock anew (needs uv)"
	@echo "make images     build the images of the pipeline's tasks (needs docker, podman or buildah; see infra/docker)"

setup: $(READY)

# torch is not in the lock: the same requirement is the CPU build or the CUDA build, as the index has it.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; install Python 3.11 or set PYTHON=..." >&2; exit 1; }
	@echo "setting up $(VENV) (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --progress-bar off torch==2.13.0 -r requirements.lock
	@$(BIN)/pip install -qq --no-deps --editable .
	@touch $(READY)

demo: $(READY)
	@$(BIN)/cloc run --out runs/demo

# By file: tests of one file share a pipeline run or a model (xdist's groups do nothing under pytest 9.2). In the order of
# names: xdist would begin with the files of many tests and end with one worker on the long ones.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not cluster"

test: $(READY) lint
	@$(PYTEST)

test-slow: $(READY)
	@$(BIN)/python -m pytest -m slow

coverage: $(READY)
	@$(PYTEST) --cov

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock:
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-emit-package torch --no-emit-package cloc \
		--no-header --no-annotate $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") -o requirements.lock

images:
	@infra/docker/build

clean:
	rm -rf runs work build dist .pytest_cache .mypy_cache .ruff_cache

# Everything a person does with the repository. Each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint bench crash docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/system-packages
	@bash scripts/system-packages
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/holdfast demo

test: lint
	@$(BIN)/python -m pytest

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/python -m benchmarks

crash: $(STAMP)
	@HOLDFAST_CRASH_ALL=1 $(BIN)/python -m pytest tests/crash

docs: $(STAMP)
	@$(BIN)/python -m holdfast.cli.reference docs/reference

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

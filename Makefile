# Everything a person does with the repository. Each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-bench
PROXIES := .venv-proxies

.PHONY: setup demo test lint bench crash mutants admission microvm docs clean

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

# The peers that the benchmarks compare with stay out of the product's environment.
$(PEERS)/.installed: benchmarks/requirements.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

# mitmproxy pins old versions of what the other peers use, so it has an environment of its own.
$(PROXIES)/.installed: benchmarks/requirements-proxies.txt
	@command -v nginx >/dev/null || [ "$$(id -u)" -ne 0 ] || apt-get install -y -qq --no-install-recommends nginx-light >/dev/null
	@test -x $(PROXIES)/bin/python || $(PYTHON) -m venv $(PROXIES)
	@$(PROXIES)/bin/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@

bench: $(STAMP) $(PEERS)/.installed $(PROXIES)/.installed
	@$(BIN)/python -m benchmarks $(ARGS)

crash: $(STAMP)
	@HOLDFAST_CRASH_ALL=1 $(BIN)/python -m pytest tests/crash

# 200 runs at once on memory for 40.
admission: $(STAMP)
	@HOLDFAST_ADMISSION_ALL=1 $(BIN)/python -m pytest tests/acceptance/test_acceptance_admission.py

# Whether a test notices each policy category that stops doing its work.
mutants: $(STAMP)
	@$(BIN)/python -m tests.mutants

fuzz: $(STAMP)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check atheris
	@$(BIN)/python -m holdfast.testing.egress_fuzz -max_total_time=$(or $(SECONDS),3600) -timeout=10

# Boots guests in software, for some minutes; needs qemu-system-x86 and linux-image-cloud-amd64.
microvm: $(STAMP)
	@command -v qemu-system-x86_64 >/dev/null || { echo "QEMU is missing: apt install qemu-system-x86 linux-image-cloud-amd64"; exit 1; }
	@HOLDFAST_MICROVM=1 $(BIN)/python -m pytest tests/security/test_security_microvm.py

docs: $(STAMP)
	@$(BIN)/python -m holdfast.cli.reference docs/reference

clean:
	rm -rf $(VENV) $(PEERS) $(PROXIES) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

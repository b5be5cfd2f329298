# Needs Python >= 3.11 and make. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Contiguous runs of tests per worker, moved only when one is idle: fixtures are built about once per worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

# Those that need no videos of one's own; compare, depth and real_sets say what they take with --help.
BENCHES := decode steps savings pipeline

.PHONY: install demo test check format bench clean

install: .venv/installed

demo: .venv/installed
	$(BIN)/tubelet demo --out demo

test: .venv/installed
	$(PYTEST)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(PYTEST)

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	@set -e; for name in $(BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

clean:
	rm -rf .venv build dist demo .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# pip and setuptools come first and pinned, so that building the package asks for nothing outside constraints.txt.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tubelet needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "could not create .venv; on Debian or Ubuntu: apt install python3-venv"; rm -rf .venv; exit 1; }
	$(PIP) install --quiet -c constraints.txt pip setuptools
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[test]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

# Everything a fresh machine needs is Python 3.11 or newer; the rest goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-thorough lint types check docs dist clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regrow needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## train dense, static, RigL and IEE networks on handwritten digits, and compare them
	$(BIN)/regrow demo

# tests start many processes, which need not compile what one of them has compiled
test: export PYTHONDONTWRITEBYTECODE =
test: setup  ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

test-thorough: setup  ## all combinations of parameters, of which `test` takes a part
	$(BIN)/python -m pytest -n auto --dist worksteal --thorough

lint: setup
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/ruff format --check src tests benchmarks examples tools
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/house.py src/regrow

types: setup
	$(BIN)/mypy

check: lint types test

docs: export NO_MKDOCS_2_WARNING = 1
docs: setup  ## the documentation as a site, in site/: open site/index.html
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

dist: setup  ## wheel and sdist in dist/, tried in an environment of their own with the core alone
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dist]'
	PYTHON=$(PYTHON) BUILDER=$(BIN)/python tools/release_check.sh

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Two commands for a newcomer: `make demo` and `make test`. Each builds .venv when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch is installed first and by itself: asked for later, torchvision would pull a build of its own.
.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.tests: .venv/.runtime
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: .venv/.runtime            ## train, evaluate and predict on the cohort that ships; prints the report to open
	$(BIN)/cmrcnet demo --out demo --overwrite

lint: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

test: .venv/.tests lint          ## every check and every test
	$(BIN)/python -m pytest

clean:
	rm -rf .venv demo build dist .pytest_cache .ruff_cache

# Two commands for a newcomer: `make demo` and `make test`. Each builds .venv when it is missing or out of date.
# `make test-integrations VENV=/elsewhere` builds and uses another environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-browser lint golden docs wheel-test test-integrations clean
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch is installed first and by itself: asked for later, torchvision would pull a build of its own.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.tests: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: $(VENV)/.runtime            ## train, evaluate and predict on the cohort that ships; prints the report to open
	$(BIN)/cmrcnet demo --out demo --overwrite

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture
	$(BIN)/pyright

test: $(VENV)/.tests lint          ## every check and every test
	$(BIN)/python -m pytest

test-browser: $(VENV)/.tests       ## the viewer in real Chromium, which must be installed (Debian: apt install chromium)
	$(PIP) install --quiet --constraint constraints.txt --editable ".[browser]"
	$(BIN)/python -m pytest -n 0 tests/viewer/test_browser.py

golden: $(VENV)/.tests             ## scores of both real cohorts, held to 1e-6 (needs the cohorts, about ten minutes)
	CMRCNET_GOLDEN="$${CMRCNET_GOLDEN:-$(HOME)/.cache/cmrcnet-golden}" $(BIN)/python -m pytest tests/evaluation/test_golden_scores.py --timeout=3600

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: $(VENV)/.docs                ## the documentation site in docs/_build/html: notebooks are executed, warnings are errors
	rm -rf docs/_build docs/reference/api
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

wheel-test:                      ## build the wheel, install it into an empty environment, run the demo there, away from the source
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir build/wheel .
	build/wheel/venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch
	build/wheel/venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt build/wheel/*.whl
	cd build/wheel && venv/bin/cmrcnet demo --out demo && venv/bin/cmrcnet doctor

$(VENV)/.integrations: $(VENV)/.tests
	$(PIP) install --quiet --constraint constraints.txt --editable ".[integrations]"
	touch $@

test-integrations: $(VENV)/.integrations  ## tables in scanpy, squidpy, spatialdata-plot, napari-spatialdata and LazySlide, the packages themselves
	CMRCNET_INTEGRATIONS=1 QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest tests/integrations -n 0

clean:
	rm -rf .venv demo build dist docs/_build docs/reference/api .pytest_cache .ruff_cache

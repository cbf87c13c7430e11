# make quickstart | make test | make check
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER := $(VENV)/browser

.PHONY: quickstart coarse table2 test check install browser docs clean

quickstart: $(STAMP)  ## teacher + budget -> trained student, about 8 minutes on 2 cores
	$(BIN)/circuitsearch run searches/quickstart.yaml

table2: $(STAMP)  ## Donut-MINT's Table 2, both halves, an estimated 90 minutes on 2 cores
	$(BIN)/circuitsearch run searches/table2.yaml
	$(BIN)/circuitsearch run searches/table2-fine.yaml

coarse: $(STAMP)  ## the same with three seeds and longer training
	$(BIN)/circuitsearch run searches/coarse.yaml

test: $(STAMP) browser  ## every test, one process per core
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(STAMP)  ## what .ci/run checks before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(STAMP)

docs: $(STAMP)  ## the site, into site/; a warning is an error
	$(BIN)/mkdocs build --strict

browser: $(STAMP)  ## Chromium, its driver and axe-core, for tests/browser
	.ci/browser $(BROWSER)

screenshots: browser  ## the pictures of docs/circuit-page.md, from results/quickstart
	CIRCUITSEARCH_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/browser/test_screenshots.py

# torch first and pinned: the constraints file keeps every later requirement on the same build
$(STAMP): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; give PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)

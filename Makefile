# The two commands of the README. Each makes its own virtual environment and needs nothing but Python 3.11+.
PYTHON ?= python3
DEMO := .venv
TEST := .venv-test

.PHONY: demo test test-long lint format clean

demo: $(DEMO)/installed
	$(DEMO)/bin/foveal demo --out demo

$(DEMO)/installed: pyproject.toml $(shell find src -type f -not -name '*.pyc')
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --disable-pip-version-check .
	touch $@

test: lint
	$(TEST)/bin/python -m pytest -m "not long" -n auto --maxprocesses 4 --dist loadfile

test-long: $(TEST)/installed
	$(TEST)/bin/python -m pytest -m long

lint: $(TEST)/installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/pyright

format: $(TEST)/installed
	$(TEST)/bin/ruff check --fix .
	$(TEST)/bin/ruff format .

$(TEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(TEST)/bin/pip install --quiet --editable '.[torch]' --group test
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) demo dist build

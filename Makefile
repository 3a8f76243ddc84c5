# Every target installs what it needs, unless it is already installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := src tests alembic examples benchmarks tools
DB_FOLDER ?= .db
VERSIONS := 15 16 17 18
OLDEST := 15

.DEFAULT_GOAL := help
.PHONY: help install demo test faults mutants matrix matrix-oldest pooler containers check soak format lint types layers sql-lint schema schema-check revision docs docs-check versions lock db db-stop benchmark clean

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

demo: $(READY) ## Run 60 payments through all parts on a real server, and reconcile them
	@$(BIN)/python -m examples.demo

test: $(READY) ## Run the tests on DATABASE_URL, a container or the embedded server
	@$(BIN)/python -m pytest -q -n auto

matrix: $(READY) ## Run the tests on each supported PostgreSQL version, fetched into .servers
	@$(BIN)/python -m tools.servers test $(VERSIONS)

matrix-oldest: $(READY) ## Run the tests of roles, invariants, migrations and schema on the oldest
	@$(BIN)/python -m tools.servers test $(OLDEST) -- tests/roles tests/invariants tests/migrations tests/schema

pooler: $(READY) ## Run tests/repo through PgBouncer in transaction mode (Debian's pgbouncer)
	@$(BIN)/python -m tools.pooler

faults: $(READY) ## Kill, stop and cut everything while payments pass (root; Debian's pgbouncer, faketime)
	@$(BIN)/python -m pytest -q tests/faults

containers: $(READY) ## Run the tests of repo, roles and invariants in a container
	@tools/containers.sh

mutants: $(READY) ## Remove one rule of the schema at a time; ARGS="--sample 50 --minutes 30"
	@$(BIN)/python -m tools.mutants $(ARGS)

soak: $(READY) ## Fuzz every function of every role with 100,000 calls and a new seed
	@FUZZ_CALLS=100000 FUZZ_SEED=$${FUZZ_SEED:-$$(date +%s)} $(BIN)/python -m pytest -q tests/roles/test_fuzz.py

check: format lint types layers versions docs-check schema-check sql-lint test ## Run every check that a change must pass

format: $(READY) ## Check the formatting (make fix corrects it)
	@$(BIN)/ruff format --check $(SOURCES)

lint: $(READY) ## Lint
	@$(BIN)/ruff check $(SOURCES)

types: $(READY) ## Run mypy and basedpyright, both strict
	@$(BIN)/mypy
	@$(BIN)/basedpyright --warnings

layers: $(READY) ## Check the layers of pyproject.toml
	@$(BIN)/lint-imports --no-cache

sql-lint: $(READY) ## Lint schema/current and the offline script with sqlfluff, pgspot and squawk
	@$(BIN)/python -m tools.sql_lint

.PHONY: fix
fix: $(READY) ## Format, and correct what the linter can
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

schema: $(READY) ## Write fingerprint.json and current/load.sql from the files in schema/current
	@$(BIN)/python -m tools.schema write

schema-check: $(READY) ## Compare schema/current, its fingerprint and the revisions
	@$(BIN)/python -m tools.schema check

revision: $(READY) ## Write a revision from schema/current (m="what it brings"), or renew one (rewrite=0009)
	@$(BIN)/python -m tools.revision $(if $(rewrite),"rewrite=$(rewrite)","m=$(m)")

versions: $(READY) ## Compare alembic/versions with versions.lock (tools.versions write renews it)
	@$(BIN)/python -m tools.versions check

docs: $(READY) ## Write the generated pages of docs/
	@$(BIN)/python -m tools.docs write

docs-check: $(READY) ## Check that the generated pages are up to date
	@$(BIN)/python -m tools.docs check

lock: $(READY) ## Renew requirements.lock from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' \
		--all-extras --group dev pyproject.toml -o requirements.lock

db: $(READY) ## Start the development server in .db and print its URL
	@$(BIN)/python -m orchestration.testing.embedded start $(DB_FOLDER)

db-stop: $(READY) ## Stop the development server
	@$(BIN)/python -m orchestration.testing.embedded stop $(DB_FOLDER)

benchmark: $(READY) ## Measure the rates of this machine
	@$(BIN)/python -m benchmarks.rates
	@$(BIN)/python -m benchmarks.prices
	@$(BIN)/python -m benchmarks.kill_switch

clean: ## Remove the virtual environments and caches (not .db, not .servers)
	@rm -rf $(VENV) .venv-system .pytest_cache .mypy_cache .ruff_cache .hypothesis

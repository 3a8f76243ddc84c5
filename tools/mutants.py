"""Removes one rule of the schema at a time and runs the tests that should notice it.

A mutant is a migrated database without one trigger, constraint, unique index, NOT NULL, grant or
call of raise_invariant. The tool runs the tests that are marked with the invariants of the removed
rule. If the rule belongs to no invariant, it runs the tests of the roles for a grant, and the tests
of constraints for any other rule.

It does not run tests/schema, which compares the whole schema and would notice every mutant. This
module is also the pytest plugin that creates the mutant in the template databases of a run.
"""

import argparse
import json
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, make_url

from orchestration.invariants import CATALOGUE
from tools import scratch

VARIABLE = "ORCHESTRATION_MUTANT"
"""The environment variable that passes a mutant to the pytest process."""

TESTS = Path("tests")
SEARCHED = ("invariants", "roles", "repo", "concurrency")
CONSTRAINTS = "tests/invariants/test_constraints.py"

# Each query returns a name and a statement per mutant. The query of refusals returns a function and
# its definition, which can contain several refusals.
QUERIES = {
    "triggers": """
        SELECT format('triggers/%s__%s', c.relname, t.tgname),
               format('DROP TRIGGER %I ON %s', t.tgname, c.oid::regclass)
        FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = 'orchestration'::regnamespace AND NOT t.tgisinternal
        """,
    "constraints": """
        SELECT 'constraints/' || conname,
               format('ALTER TABLE %s DROP CONSTRAINT %I CASCADE', conrelid::regclass, conname)
        FROM pg_constraint
        WHERE connamespace = 'orchestration'::regnamespace
          AND contype IN ('c', 'f', 'p', 'u')
          AND conname <> 'alembic_version_pkc'
        """,
    "indexes": """
        SELECT 'indexes/' || c.relname, format('DROP INDEX %s', c.oid::regclass)
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND i.indisunique
          AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid)
        """,
    "not_null": """
        SELECT format('tables/%s: %s NOT NULL', c.relname, a.attname),
               format('ALTER TABLE %s ALTER %I DROP NOT NULL', c.oid::regclass, a.attname)
        FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND c.relkind = 'r' AND c.relname <> 'alembic_version'
          AND a.attnum > 0 AND a.attnotnull
          -- A column of a primary key keeps its NOT NULL as long as the key.
          AND NOT EXISTS (
            SELECT FROM pg_constraint k
            WHERE k.conrelid = c.oid AND k.contype = 'p' AND a.attnum = ANY (k.conkey))
        """,
    "grants": """
        SELECT format('grants/%s: %s to %s', o.name, x.privilege_type, x.grantee::regrole),
               format('REVOKE %s ON %s FROM %s', x.privilege_type, o.object, x.grantee::regrole)
        FROM (
          SELECT c.relname AS name, 'TABLE ' || c.oid::regclass AS object, c.relowner AS owner,
                 c.relacl AS acl
          FROM pg_class c
          WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind IN ('r', 'v')
          UNION ALL
          SELECT p.proname, 'FUNCTION ' || p.oid::regprocedure, p.proowner, p.proacl
          FROM pg_proc p
          WHERE p.pronamespace = 'orchestration'::regnamespace
        ) o
        CROSS JOIN LATERAL aclexplode(o.acl) x
        WHERE x.grantee NOT IN (0, o.owner)
        """,
    "refusals": """
        SELECT p.proname, pg_get_functiondef(p.oid)
        FROM pg_proc p
        WHERE p.pronamespace = 'orchestration'::regnamespace
          AND p.prosrc ~ 'PERFORM orchestration\\.raise_invariant\\('
        """,
}

REFUSES = "PERFORM orchestration.raise_invariant("
"""The call that a mutant replaces by IGNORES, which takes the same arguments and does nothing."""
IGNORES = "PERFORM jsonb_build_array("
INVARIANT = re.compile(r"INV-[A-Z]{3}-\d{3}")


@dataclass(frozen=True)
class Mutant:
    name: str
    statement: str
    invariants: tuple[str, ...]
    """The invariants whose tests should notice the mutant."""

    def tests(self) -> list[str]:
        """Return the files that contain these tests, as arguments for pytest."""
        if not self.invariants:
            return [CONSTRAINTS] if not self.name.startswith("grants/") else ["tests/roles"]
        files = [
            str(file)
            for folder in SEARCHED[1:]
            for file in sorted((TESTS / folder).glob("test_*.py"))
            if any(id in file.read_text("utf-8") for id in self.invariants)
        ]
        return [str(TESTS / SEARCHED[0]), *files]


def mutants(connection: psycopg.Connection[Any], kinds: Sequence[str]) -> Iterator[Mutant]:
    """Yield the mutants of these kinds, from the catalogue of a migrated database."""
    serves: dict[str, list[str]] = {}
    for entry in CATALOGUE:
        for path in entry.enforced_by:
            serves.setdefault(path, []).append(entry.id)
    for kind in kinds:
        for name, text in connection.execute(QUERIES[kind]).fetchall():
            if kind != "refusals":
                yield Mutant(name, text, tuple(serves.get(name.partition(":")[0], ())))
                continue
            before, *calls = text.split(REFUSES)
            for number, call in enumerate(calls):
                rest = REFUSES.join(calls[number + 1 :])
                done = REFUSES.join([before, *calls[:number]])
                statement = done + IGNORES + call + (REFUSES + rest if rest else "")
                found = INVARIANT.search(call)
                yield Mutant(
                    f"functions/{name}: refusal {number + 1} of {len(calls)}",
                    statement,
                    (found[0],) if found else tuple(serves.get(f"functions/{name}", ())),
                )


# The pytest plugin


def pytest_sessionstart(session: pytest.Session) -> None:
    """Create the mutant in the template databases before any test copies them. With pytest-xdist,
    only the controller does this."""
    if hasattr(session.config, "workerinput"):
        return
    from tests.conftest import _server

    known = session.config.stash[_server]
    for template in ("template", "instructed"):
        with connect(make_url(known["url"]).set(database=known[template])) as connection:
            connection.execute(json.loads(os.environ[VARIABLE])["statement"].encode())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = set(json.loads(os.environ[VARIABLE])["invariants"])
    if not wanted:
        return
    kept = [
        item
        for item in items
        if any(wanted & set(mark.args) for mark in item.iter_markers("invariant"))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


# The command


def connect(url: URL) -> psycopg.Connection[Any]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def test(mutant: Mutant) -> tuple[str, str]:
    """Return the verdict of a run with the mutant, and the line of its output that shows it."""
    given = json.dumps({"statement": mutant.statement, "invariants": mutant.invariants})
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "tools.mutants"),
            *("--tb", "no", *mutant.tests()),
        ],
        env=os.environ | {VARIABLE: given},
        cwd=scratch.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (ran.stdout + ran.stderr).strip().splitlines() or [""]
    told = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
    # pytest's exit code is 5 if it selected no test.
    verdict = {0: "survived", 1: "noticed", 5: "survived"}.get(ran.returncode, "broken")
    return verdict, told


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=QUERIES, default=list(QUERIES))
    parser.add_argument("--only", default="", help="a regular expression that names must match")
    parser.add_argument(
        "--sample",
        type=int,
        help="the largest number of mutants to try, chosen at random by --seed",
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--minutes", type=float, help="start no mutant after this time")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    given = parser.parse_args(arguments)
    with scratch.server() as at, scratch.database(at) as made, connect(made.url) as connection:
        found = sorted(mutants(connection, given.kinds), key=lambda mutant: mutant.name)
    chosen = [mutant for mutant in found if re.search(given.only, mutant.name)]
    random.Random(given.seed).shuffle(chosen)
    chosen = chosen[: given.sample]
    if given.list:
        print(*(mutant.name for mutant in sorted(chosen, key=lambda one: one.name)), sep="\n")
        return 0
    print(f"{len(chosen)} of {len(found)} mutants, seed {given.seed}")
    verdicts: dict[str, list[str]] = {"noticed": [], "survived": [], "broken": []}
    began = time.monotonic()
    for mutant in chosen:
        if given.minutes is not None and time.monotonic() - began > given.minutes * 60:
            break
        verdict, told = test(mutant)
        verdicts[verdict].append(mutant.name)
        print(f"{verdict}: {mutant.name}: {told}", flush=True)
    print(*(f"{verdict}: {len(names)}" for verdict, names in verdicts.items()), sep=", ")
    return 1 if verdicts["survived"] or verdicts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

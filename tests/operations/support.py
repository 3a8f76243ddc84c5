"""Create evidence of every kind, and run the scripts and queries of docs/operations.md."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, create_engine, pool
from tools import scratch

from orchestration import schema
from tests.migrations import evidence
from tests.migrations.evidence import Writers
from tests.support import Connect, activate_policy, connect, digest, scalar

PATIENCE_SECONDS = 60.0

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text("utf-8")


def blocks(heading: str, language: str) -> list[str]:
    """Return the code of this language under a heading of docs/operations.md."""
    _, found, after = DOCUMENT.partition(f"# {heading}\n")
    assert found, heading
    section = re.split(r"^#", after, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def block(heading: str, language: str) -> str:
    [only] = blocks(heading, language)
    return only


def libpq(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def shell(script: str, folder: Path, urls: Mapping[str, URL]) -> subprocess.CompletedProcess[str]:
    """Run a script of the document unchanged, with the URLs under the variable names that it
    uses."""
    return subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{scratch.programs()}{os.pathsep}{os.environ['PATH']}",
            "PGOPTIONS": "-c client_min_messages=warning",
            **{name: libpq(url) for name, url in urls.items()},
        },
        capture_output=True,
        text=True,
        check=False,
    )


def run(script: str, folder: Path, **urls: URL) -> None:
    """Run a script that must succeed and print nothing on stderr."""
    ran = shell(script, folder, urls)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr


def writers(url: URL, logins: Mapping[str, URL], opened: ExitStack) -> Writers:
    def as_role(role: str) -> Connect:
        return opened.enter_context(connect(logins[role].set(database=url.database)))

    return Writers(as_role("control"), as_role("ingest"), as_role("executor"))


def with_writers(url: URL, logins: Mapping[str, URL], act: Callable[[Writers], None]) -> None:
    with ExitStack() as opened:
        act(writers(url, logins, opened))


def fill(url: URL, logins: Mapping[str, URL]) -> None:
    """Create evidence in every table, with policies, instructions and items in each of their
    states."""
    with ExitStack() as opened:
        by = writers(url, logins, opened)
        evidence.fill(
            by.control, schema.REVISION, ingest=by.ingest, executor=by.executor, control=by.control
        )
        work(by, "before")


def go_on(url: URL, logins: Mapping[str, URL], name: str = "after") -> None:
    """Do a day's work as every role, so that rotations, chains, sequences and heads continue."""
    with_writers(url, logins, lambda by: work(by, name))


def work(by: Writers, name: str) -> None:
    activate_policy(by.control, name)
    by.control.execute(
        "SELECT FROM orchestration.revoke_token(%s, p_reason_code => 'keyCompromise')",
        (digest(name),),
    )
    evidence.engage_and_release(by)
    attestation_id = attest(by, name)
    receive = [
        {
            "participant_id": "participant",
            "idempotency_key": f"{name} {end}",
            "instruction_type": "pain.001",
            "end_to_end_id": end,
            "amount_minor": 100,
            "currency": "EUR",
            "debtor_account": "debtor",
            "creditor_account": "creditor",
            "payload": {"key": name},
            "attestation_id": attestation_id,
            "policy_version_id": name,
        }
        for end in ("completes", "fails", "stays")
    ]
    completes, fails, stays = (
        id
        for (id,) in by.ingest.execute(
            "SELECT id FROM orchestration.receive_instruction(%s::jsonb)", (json.dumps(receive),)
        )
    )
    for id in (completes, stays):
        by.executor.execute("SELECT FROM orchestration.authorize_instruction(%s, 1)", (id,))
    by.executor.execute("SELECT FROM orchestration.start_execution(%s, 2)", (completes,))
    attempt(by, completes)
    enqueue(by, completes, [f"{name} dispatched"])
    enqueue(by, stays, [f"{name} rejected", f"{name} waits"])
    for rejected in dispatch(by):
        by.control.execute(
            "SELECT FROM orchestration.resolve_outbox_item(%s, 'REJECTED', 'test')", (rejected,)
        )
        by.control.execute("SELECT FROM orchestration.redrive_outbox_item(%s)", (rejected,))
    (cancelled,) = enqueue(by, stays, [f"{name} cancelled"])
    by.control.execute("SELECT FROM orchestration.cancel_outbox_item(%s, 'test')", (cancelled,))
    by.executor.execute("SELECT FROM orchestration.complete_instruction(%s, 3)", (completes,))
    by.executor.execute("SELECT FROM orchestration.fail_instruction(%s, 1, 'test')", (fails,))


def attest(by: Writers, name: str) -> str:
    """Append records of two callers. The execution of the first record begins and ends."""
    news = [
        {
            "caller_identity": caller,
            "idempotency_key": f"{name} {number}",
            "payload_hash": digest(name),
            "policy_version_id": name,
        }
        for caller in ("caller", "another caller")
        for number in range(3)
    ]
    attested = by.ingest.execute(
        "SELECT id FROM orchestration.append_attestations(%s::jsonb)", (json.dumps(news),)
    ).fetchall()
    for event, terminal_status in (("EXECUTION_STARTED", None), ("EXECUTION_COMPLETED", "SUCCESS")):
        by.executor.execute(
            "SELECT FROM orchestration.record_attestation_event(%s, %s, %s)",
            (attested[0][0], event, terminal_status),
        )
    return str(attested[0][0])


def attempt(by: Writers, instruction_id: object) -> None:
    for log, rail in (("execution", ""), ("transaction", ", p_rail_type => 'rail'")):
        opening = f"SELECT FROM orchestration.open_{log}_attempt(%s, 'worker'{rail})"
        closing = f"SELECT FROM orchestration.close_{log}_attempt(%s, %s, %s, 'E1', 'test')"
        by.executor.execute(opening, (instruction_id,))
        by.executor.execute(closing, (instruction_id, 1, "FAILED"))
        by.executor.execute(opening, (instruction_id,))
        by.executor.execute(closing, (instruction_id, 2, "ABANDONED"))


def enqueue(by: Writers, instruction_id: object, keys: list[str]) -> list[Any]:
    """Enqueue items, and return their ids."""
    items = [
        {
            "instruction_id": str(instruction_id),
            "participant_id": "participant",
            "idempotency_key": key,
            "rail_type": "rail",
            "payload": {"key": key},
        }
        for key in keys
    ]
    rows = by.executor.execute(
        "SELECT outbox_id FROM orchestration.enqueue_payment_outbox(%s::jsonb)",
        (json.dumps(items),),
    ).fetchall()
    return [outbox_id for (outbox_id,) in rows]


def dispatch(by: Writers) -> list[Any]:
    """Claim the items that are due, renew their leases, and complete each as its key says. Return
    the ids of the rejected items."""
    claimed = by.executor.execute(
        "SELECT outbox_id, lease_token, idempotency_key"
        " FROM orchestration.claim_outbox_batch('worker', 1000, '1 minute')"
    ).fetchall()
    completions = []
    rejected = []
    for outbox_id, lease_token, key in claimed:
        by.executor.execute(
            "SELECT orchestration.renew_outbox_lease(%s, %s, 'worker', '1 hour')",
            (outbox_id, lease_token),
        )
        end = key.split()[-1]
        if end == "rejected":
            rejected.append(outbox_id)
        completions.append(
            {
                "outbox_id": str(outbox_id),
                "lease_token": str(lease_token),
                "worker_id": "worker",
                **{
                    "dispatched": {"state": "DISPATCHED"},
                    "rejected": {"state": "FAILED", "outcome": "REJECTED"},
                }.get(end, {"state": "RETRYABLE", "outcome": "NOT_SENT", "retry_in": "0"}),
            }
        )
    by.executor.execute(
        "SELECT FROM orchestration.complete_outbox_attempt(%s::jsonb)", (json.dumps(completions),)
    )
    return rejected


def differences(url: URL) -> list[str]:
    """Return the differences that the fingerprint query finds."""
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        return [
            difference.path
            for difference in schema.compare(schema.expected(), schema.read(connection))
        ]


def findings(url: URL) -> list[tuple[Any, ...]]:
    """Return what the query of the document finds. It runs every verification."""
    with connect(url) as connection:
        return connection.execute(block("Verifying", "sql").encode()).fetchall()


def tables(connection: Connect) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT relname FROM pg_catalog.pg_class"
            " WHERE relnamespace = 'orchestration'::regnamespace AND relkind = 'r'"
            " ORDER BY relname"
        )
    ]


def contents(url: URL) -> dict[str, list[str]]:
    """Return every row of every table, as text."""
    with connect(url) as connection:
        connection.execute("SET timezone = 'UTC'")
        return {
            table: [
                row
                for (row,) in connection.execute(
                    sql.SQL("SELECT t::text FROM orchestration.{} t ORDER BY 1").format(
                        sql.Identifier(table)
                    )
                )
            ]
            for table in tables(connection)
        }


def assert_kept(restored: URL, source: URL) -> None:
    """Check that every row, guard, grant, owner and chain is unchanged."""
    assert contents(restored) == contents(source)
    assert differences(restored) == []
    assert findings(restored) == []


def assert_goes_on(url: URL, logins: Mapping[str, URL]) -> None:
    """Check that every role can still write, and that what it writes continues the existing
    chains."""
    before = contents(url)
    go_on(url, logins)
    after = contents(url)
    # The revision and the version table belong to the migrations, and each gate has only one row.
    grown = {table for table, rows in after.items() if len(rows) > len(before[table])}
    assert grown >= evidence.WRITERS.keys() - {"revoked_client_certs"}
    assert findings(url) == []


def await_true(connection: Connect, query: str, parameters: tuple[Any, ...] = ()) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if scalar(connection, query, parameters):
            return
        time.sleep(0.02)
    raise AssertionError(f"it never came true: {query} {parameters}")


def sqlstate(connection: Connect, statement: str) -> str | None:
    try:
        connection.execute(statement.encode())
    except psycopg.Error as error:
        return error.sqlstate
    return None

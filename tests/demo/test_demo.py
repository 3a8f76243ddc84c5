"""The demo as a person runs it, and its reconciliation if something is wrong."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from examples import pain001
from examples.desk import order
from examples.reconciliation import conclude, reconcile
from examples.worker import record
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.orm import Session
from tools import scratch

from orchestration.records import Completion, NewAttestation, NewInstruction
from orchestration.repo import AttestationRepository, InstructionRepository, OutboxRepository
from orchestration.vocabulary import CompletionState
from tests.support import Connect, activate_policy, digest, documented

ROOT = Path(__file__).resolve().parents[2]

SessionOf = Callable[[str], Session]
LoginOf = Callable[[str], Connect]


@pytest.fixture(scope="module")
def transfers() -> list[pain001.CreditTransfer]:
    return pain001.read(ROOT / "examples" / "payments.pain.001.xml")


def enqueue(
    session: SessionOf, control: Connect, transfers: Sequence[pain001.CreditTransfer]
) -> None:
    """Every transfer is attested, received, authorized and enqueued."""
    activate_policy(control, "v1")
    ingest = session("ingest")
    attestation = AttestationRepository(ingest).append(
        NewAttestation(
            caller_identity="test",
            idempotency_key="file",
            payload_hash=digest("file"),
            policy_version_id="v1",
        )
    )
    received = InstructionRepository(ingest).receive_many(
        [
            NewInstruction(
                participant_id=transfer.debtor_name,
                idempotency_key=transfer.end_to_end_id,
                instruction_type="pain.001",
                end_to_end_id=transfer.end_to_end_id,
                amount_minor=transfer.amount_minor,
                currency=transfer.currency,
                debtor_account=transfer.debtor_account,
                creditor_account=transfer.creditor_account,
                payload=pain001.as_payload(transfer),
                attestation_id=attestation.id,
                policy_version_id="v1",
            )
            for transfer in transfers
        ]
    )
    ingest.commit()
    executor = session("executor")
    for transfer, instruction in zip(transfers, received, strict=True):
        order(executor, instruction, pain001.as_payload(transfer))
    executor.commit()


def dispatch(session: SessionOf, *, at_most: int) -> None:
    executor = session("executor")
    outbox = OutboxRepository(executor)
    claimed = outbox.claim("worker", batch_size=at_most, lease=timedelta(minutes=1))
    done = Completion(state=CompletionState.DISPATCHED, rail_reference="R")
    for item in claimed:
        record(executor, item, done)
    executor.commit()


def conclusion(session: SessionOf, transfers: Sequence[pain001.CreditTransfer]) -> tuple[int, str]:
    """The exit code and the last line."""
    console = Console(file=StringIO(), width=100)
    code = conclude(console, reconcile(session("auditor"), transfers))
    assert isinstance(console.file, StringIO)
    return code, console.file.getvalue().splitlines()[-1]


def without_trailing_blanks(output: str) -> str:
    return "\n".join(line.rstrip() for line in output.splitlines())


def excerpt() -> str:
    """The end of the demo's output, as docs/demo.md shows it."""
    fences = r"^```text\n(  what was tried.*?)\n```$"
    [shown] = re.findall(fences, documented("demo.md"), re.DOTALL | re.MULTILINE)
    return str(shown)


def test_the_demo_ends_as_its_page_shows_and_leaves_nothing_behind(
    server: scratch.Server,
) -> None:
    url = server.url.render_as_string(hide_password=False)
    ran = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    last = ran.stdout.splitlines()[-1]
    assert last == "Balanced: 60 of 60 transactions ended exactly once."
    assert excerpt() in without_trailing_blanks(ran.stdout), "docs/demo.md shows another output"
    names = set(re.findall(rf"{scratch.PREFIX}\w+", ran.stdout))
    assert len(names) == 5, "a database and four logins"
    with scratch.maintenance(server.url) as connection:
        left = connection.scalars(
            text("SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles")
        )
        assert names.isdisjoint(left)


def test_every_transaction_ended_once_balances(
    session: SessionOf, login: LoginOf, transfers: list[pain001.CreditTransfer]
) -> None:
    enqueue(session, login("control"), transfers)
    dispatch(session, at_most=60)
    assert conclusion(session, transfers) == (
        0,
        "Balanced: 60 of 60 transactions ended exactly once.",
    )


def test_a_transaction_that_the_database_lacks_does_not_balance(
    session: SessionOf, login: LoginOf, transfers: list[pain001.CreditTransfer]
) -> None:
    enqueue(session, login("control"), transfers[1:])
    dispatch(session, at_most=60)
    assert conclusion(session, transfers) == (
        1,
        "Not balanced: 59 of 60 transactions ended exactly once, 1 wrong.",
    )


def test_a_pending_transaction_does_not_balance(
    session: SessionOf, login: LoginOf, transfers: list[pain001.CreditTransfer]
) -> None:
    enqueue(session, login("control"), transfers)
    dispatch(session, at_most=59)
    assert conclusion(session, transfers) == (
        1,
        "Not balanced: 59 of 60 transactions ended exactly once, 1 wrong.",
    )


def test_an_item_that_the_file_does_not_know_does_not_balance(
    session: SessionOf, login: LoginOf, transfers: list[pain001.CreditTransfer]
) -> None:
    enqueue(session, login("control"), transfers)
    dispatch(session, at_most=60)
    code, last = conclusion(session, transfers[1:])
    assert code == 1
    assert last == "Not balanced: 59 of 59 transactions ended exactly once, 1 wrong."


def test_an_empty_file_and_an_empty_database_do_not_pass_for_balanced(session: SessionOf) -> None:
    assert conclusion(session, [])[0] == 1

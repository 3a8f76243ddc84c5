"""The judge of the fault scenarios reports each kind of violation that a test plants."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from tools import scratch

from tests.faults.journal import RAIL, Journal
from tests.faults.judge import judge
from tests.operations import support
from tests.support import Connect, connect

ITEMS = "SELECT outbox_id FROM orchestration.payment_outbox_items"
ENDED = (
    "SELECT outbox_id FROM orchestration.payment_outbox_attempts"
    " WHERE state = '{state}' ORDER BY outbox_id LIMIT 1"
)
DISPATCHED = ENDED.format(state="DISPATCHED")
FAILED = ENDED.format(state="FAILED")
PENDING = "SELECT outbox_id FROM orchestration.payment_outbox_pending ORDER BY outbox_id LIMIT 1"

PLANTED = {
    "an item is neither pending nor terminal": (
        f"DELETE FROM orchestration.payment_outbox_pending WHERE outbox_id = ({PENDING})",
    ),
    "an item is pending and terminal": (
        "INSERT INTO orchestration.payment_outbox_pending"
        " (outbox_id, instruction_id, participant_id, sequence_id, rail_type)"
        " SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type"
        f" FROM orchestration.payment_outbox_items WHERE outbox_id = ({FAILED})",
    ),
    "a pending row has no item": (
        "UPDATE orchestration.payment_outbox_pending SET outbox_id = gen_random_uuid()",
    ),
    "an item has more than one terminal attempt": (
        "DROP INDEX orchestration.uq_payment_outbox_attempts_terminal",
        "CREATE TEMP TABLE again AS SELECT * FROM orchestration.payment_outbox_attempts"
        f" WHERE outbox_id = ({DISPATCHED})",
        "UPDATE again SET attempt_no = attempt_no + 1",
        "INSERT INTO orchestration.payment_outbox_attempts SELECT * FROM again",
    ),
    "a payment was dispatched twice": (
        "CREATE TEMP TABLE item AS SELECT * FROM orchestration.payment_outbox_items"
        f" WHERE outbox_id = ({DISPATCHED})",
        "CREATE TEMP TABLE again AS SELECT a.* FROM orchestration.payment_outbox_attempts a"
        " JOIN item USING (outbox_id)",
        "UPDATE item SET outbox_id = '00000000-0000-0000-0000-000000000001', redrive_no = 1,"
        " redrive_of = outbox_id, sequence_id = 1000",
        "UPDATE again SET outbox_id = '00000000-0000-0000-0000-000000000001'",
        "INSERT INTO orchestration.payment_outbox_items SELECT * FROM item",
        "INSERT INTO orchestration.payment_outbox_attempts SELECT * FROM again",
    ),
    "sequence numbers of a participant have a gap or repeat": (
        "UPDATE orchestration.payment_outbox_items SET sequence_id = sequence_id + 1"
        f" WHERE outbox_id = ({ITEMS} ORDER BY sequence_id DESC LIMIT 1)",
    ),
    "a sequence counter does not follow its items": (
        "UPDATE orchestration.participant_outbox_sequences SET next_sequence_id = 100",
    ),
    "a pending item's instruction may not be dispatched": (
        "ALTER TABLE orchestration.payment_outbox_pending"
        " DROP CONSTRAINT fk_payment_outbox_pending_participant_id_instruction_id_open",
        "UPDATE orchestration.instructions SET state = 'RECEIVED' WHERE state = 'AUTHORIZED'",
    ),
    "an instruction is COMPLETED without a dispatched item": (
        "DELETE FROM orchestration.payment_outbox_attempts WHERE state = 'DISPATCHED'",
    ),
    "an instruction is FAILED although money may have moved": (
        "UPDATE orchestration.instructions SET state = 'FAILED', reason = 'planted'"
        " WHERE state = 'COMPLETED'",
    ),
    "a failed attempt has no outcome": (
        "ALTER TABLE orchestration.payment_outbox_attempts"
        " DROP CONSTRAINT ck_payment_outbox_attempts_outcome",
        "UPDATE orchestration.payment_outbox_attempts SET outcome = NULL"
        f" WHERE outbox_id = ({FAILED})",
    ),
    "an attempt that no worker closed is not UNKNOWN": (
        "ALTER TABLE orchestration.payment_outbox_attempts"
        " DROP CONSTRAINT ck_payment_outbox_attempts_requested_state",
        "UPDATE orchestration.payment_outbox_attempts SET requested_state = NULL, error_code = NULL"
        f" WHERE outbox_id = ({FAILED})",
    ),
    "an instruction's history is not its state": (
        "DELETE FROM orchestration.status_history WHERE to_state = 'AUTHORIZED'",
    ),
    "attempts do not open and close in turn": (
        "DELETE FROM orchestration.payment_outbox_attempts WHERE phase = 'OPEN'"
        f" AND outbox_id = ({DISPATCHED})",
    ),
    "a caller's chain is broken": (
        "UPDATE orchestration.ingress_attestations SET payload_hash = repeat('0', 64)"
        " WHERE chain_seq = 1",
    ),
    "a head has no chain": (
        "INSERT INTO orchestration.ingress_attestation_heads (caller_identity, chain_seq,"
        " record_hash) VALUES ('nobody', 1, repeat('0', 64))",
    ),
    "the audit log's chain is broken": ("DELETE FROM orchestration.audit_log WHERE chain_seq = 2",),
}
"""The statements that plant a violation of each rule, while every trigger is disabled."""

UNKEPT = {
    **{
        f"an act is lost: {what}": (what, {"id": "00000000-0000-0000-0000-000000000000"})
        for what in ("attested", "received", "authorized", "enqueued", "revoked")
    },
    "an act is lost: claimed": ("claimed", {"outbox_id": "an item", "attempt_no": 1}),
    "an act is lost: recorded": (
        "recorded",
        {"outbox_id": "an item", "attempt_no": 1, "state": "DISPATCHED"},
    ),
    "a rail was called without an opening": (
        RAIL,
        {"instruction_id": "an instruction", "key": "a key", "attempt_no": 1},
    ),
}


@pytest.fixture(scope="module")
def filled(server: scratch.Server, pytestconfig: pytest.Config) -> Iterator[URL]:
    """A database with evidence of every kind."""
    with scratch.database(server) as database:
        support.fill(database.url, database.logins)
        yield database.url


@pytest.fixture
def planted(filled: URL) -> Iterator[Connect]:
    """A transaction that is rolled back, in which no trigger fires."""
    with connect(filled) as connection, connection.transaction(force_rollback=True):
        for (table,) in connection.execute(
            "SELECT oid::regclass::text FROM pg_class"
            " WHERE relnamespace = 'orchestration'::regnamespace AND relkind = 'r'"
        ).fetchall():
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        yield connection


def with_calls(connection: Connect, folder: Path) -> Journal:
    """Create a journal with a call of the rail for every opened attempt."""
    journal = Journal(folder / "journal")
    for instruction_id, key, attempt_no in connection.execute(
        "SELECT instruction_id, idempotency_key, attempt_no"
        " FROM orchestration.payment_outbox_items"
        " JOIN orchestration.payment_outbox_attempts USING (outbox_id) WHERE phase = 'OPEN'"
    ):
        journal.note(RAIL, instruction_id=instruction_id, key=key, attempt_no=attempt_no)
    return journal


def rules(connection: Connect, journal: Journal) -> set[str]:
    return {finding.rule for finding in judge(connection, journal)}


def test_nothing_is_found_if_nothing_is_planted(planted: Connect, tmp_path: Path) -> None:
    assert judge(planted, with_calls(planted, tmp_path)) == []


@pytest.mark.superuser
@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_reported(planted: Connect, tmp_path: Path, rule: str) -> None:
    journal = with_calls(planted, tmp_path)
    for statement in PLANTED[rule]:
        changed = planted.execute(statement.encode())
        assert changed.rowcount != 0, "nothing was planted"
    assert rule in rules(planted, journal)


@pytest.mark.parametrize("rule", UNKEPT)
def test_an_act_that_the_database_lacks_is_reported(
    planted: Connect, tmp_path: Path, rule: str
) -> None:
    journal = with_calls(planted, tmp_path)
    what, facts = UNKEPT[rule]
    journal.note(what, **facts)
    assert rules(planted, journal) == {rule}


def test_a_dispatched_item_without_a_call_of_the_rail_is_reported(
    planted: Connect, tmp_path: Path
) -> None:
    assert rules(planted, Journal(tmp_path / "journal")) == {
        "an item is DISPATCHED without a call of the rail"
    }

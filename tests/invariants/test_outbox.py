"""INV-OUT, and what ties it to instructions, by raw SQL: triggers and constraints speak, not the
privileges.

One table of attacks serves four proofs: the owner is refused, a login with a stray grant is refused
alike, replica mode silences nothing but the foreign key, and without the object that keeps a rule
its attack succeeds.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import ANY
from uuid import UUID

import pytest

from orchestration import invariants
from tests.invariants.conftest import StageOf
from tests.support import (
    Attack,
    Connect,
    assert_invariant,
    attempt,
    authorize_instructions,
    copy,
    deletes,
    drop,
    inserts,
    refusal,
    scalar,
    truncates,
)

ITEMS = "payment_outbox_items"
PENDING = "payment_outbox_pending"
ATTEMPTS = "payment_outbox_attempts"
SEQUENCES = "participant_outbox_sequences"
TABLES = (ITEMS, PENDING, ATTEMPTS, SEQUENCES)
INSTRUCTIONS = "instructions"

ITEMS_GUARD = f"triggers/{ITEMS}__guard"
ATTEMPTS_GUARD = f"triggers/{ATTEMPTS}__guard"
ENTRY_GUARD = f"triggers/{PENDING}__guard_insert"
UPDATE_GUARD = f"triggers/{PENDING}__guard_update"
REDRIVE_GUARD = f"triggers/{ITEMS}__guard_redrive"
LATE_RESULTS = "payment_outbox_late_results"
INTERVENTIONS = "payment_outbox_interventions"
LATE_GUARD = f"triggers/{LATE_RESULTS}__guard"
END_GUARD = f"triggers/{INSTRUCTIONS}__guard_end"
OPEN_KEY = "fk_payment_outbox_pending_participant_id_instruction_id_open"
OPEN = f"constraints/{OPEN_KEY}"


def id_of(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012}"


def uuid_of(id: str) -> str:
    return f"CAST('{id}' AS uuid)"


FREE, LEASED, EXPIRED, RETRIED, DONE, REJECTED, UNKNOWN, LAST, LAST_EXPIRED, SPENT = (
    id_of(number) for number in range(1, 11)
)
NEW = id_of(99)
TOKEN, OTHER_TOKEN = id_of(1001), id_of(1002)
INSTRUCTION, OTHER_INSTRUCTION = id_of(2001), id_of(2002)
INSTRUCTION_OF = {"p": INSTRUCTION, "q": id_of(2003), "p0": id_of(2004), "p1": id_of(2005)}
RECEIVED_INSTRUCTION, FAILED_INSTRUCTION, NO_INSTRUCTION = id_of(2006), id_of(2007), id_of(2008)
UNKNOWN_INSTRUCTION = id_of(2009)


@pytest.fixture(autouse=True)
def instructions(request: pytest.FixtureRequest) -> None:
    """What every item here refers to, and one instruction in each state that has no items."""
    if "database" in request.fixturenames:
        make_instructions(request.getfixturevalue("owner"))


def make_instructions(owner: Connect) -> None:
    authorize_instructions(
        owner,
        [
            *((id, participant_id) for participant_id, id in INSTRUCTION_OF.items()),
            (OTHER_INSTRUCTION, "p"),
            (FAILED_INSTRUCTION, "p"),
            (UNKNOWN_INSTRUCTION, "p"),
        ],
    )
    for statement in moves(FAILED_INSTRUCTION, "FAILED"):
        owner.execute(statement)
    owner.execute(
        "INSERT INTO orchestration.instructions (id, participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id)"
        " SELECT %s, participant_id, 'received', instruction_type, end_to_end_id, amount_minor,"
        " currency, debtor_account, creditor_account, payload, attestation_id, policy_version_id"
        " FROM orchestration.instructions WHERE id = %s",
        (RECEIVED_INSTRUCTION, INSTRUCTION),
    )


def moves(instruction_id: str, *states: str) -> tuple[str, ...]:
    """Statements that take an instruction through these states; whole, as replica mode needs it."""
    return tuple(
        f"UPDATE orchestration.{INSTRUCTIONS} SET state = '{state}', version = version + 1,"
        f" reason = CASE '{state}' WHEN 'FAILED' THEN 'test' END,"
        f" completed_at = CASE WHEN '{state}' IN ('COMPLETED', 'FAILED') THEN clock_timestamp() END"
        f" WHERE id = '{instruction_id}'"
        for state in states
    )


LATER = "clock_timestamp() + interval '10 years'"

ITEM_COLUMNS = (
    *("outbox_id", "instruction_id", "participant_id", "sequence_id", "idempotency_key"),
    *("redrive_no", "redrive_of", "rail_type", "payload", "payload_salt", "payload_hash"),
    *("max_attempts", "created_at", "db_user", "xact_id"),
)
PENDING_COLUMNS = (
    *("outbox_id", "instruction_id", "participant_id", "sequence_id", "rail_type"),
    *("attempt_count", "next_attempt_at", "claimed_by", "lease_token", "lease_expires_at"),
)
ATTEMPT_COLUMNS = (
    *("outbox_id", "attempt_no", "phase", "state", "outcome", "requested_state"),
    *("lease_token", "worker_id", "claimed_at", "completed_at", "db_user", "xact_id"),
)


def item(outbox_id: str = NEW, sequence_id: int = 11, **changed: str) -> str:
    """A SELECT of one whole item; nothing of it is left to a default or a trigger."""
    values = {
        "outbox_id": f"CAST('{outbox_id}' AS uuid)",
        "instruction_id": f"CAST('{INSTRUCTION}' AS uuid)",
        "participant_id": "'p'",
        "sequence_id": str(sequence_id),
        "idempotency_key": f"'{outbox_id}'",
        "redrive_no": "0",
        "redrive_of": "CAST(NULL AS uuid)",
        "rail_type": "'SEPA'",
        "payload": "jsonb '{\"a\": 1}'",
        "payload_salt": "decode(repeat('00', 16), 'hex')",
        "payload_hash": (
            "encode(sha256('orchestration.payload.v1'::bytea || decode(repeat('00', 16), 'hex')"
            " || convert_to('{\"a\": 1}', 'UTF8')), 'hex')"
        ),
        "max_attempts": "20",
        "created_at": "clock_timestamp()",
        "db_user": "SESSION_USER",
        "xact_id": "CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
    }
    assert changed.keys() <= values.keys()
    return "SELECT " + ", ".join((values | changed)[column] for column in ITEM_COLUMNS)


def pending(outbox_id: str = NEW, sequence_id: int = 11, **changed: str) -> str:
    """A SELECT of one whole pending row, as an item enters."""
    values = {
        "outbox_id": f"CAST('{outbox_id}' AS uuid)",
        "instruction_id": f"CAST('{INSTRUCTION}' AS uuid)",
        "participant_id": "'p'",
        "sequence_id": str(sequence_id),
        "rail_type": "'SEPA'",
        "attempt_count": "0",
        "next_attempt_at": "clock_timestamp()",
        "claimed_by": "CAST(NULL AS text)",
        "lease_token": "CAST(NULL AS uuid)",
        "lease_expires_at": "CAST(NULL AS timestamptz)",
    }
    assert changed.keys() <= values.keys()
    return "SELECT " + ", ".join((values | changed)[column] for column in PENDING_COLUMNS)


def insert(table: str, columns: tuple[str, ...], row: str) -> str:
    return f"INSERT INTO orchestration.{table} ({', '.join(columns)}) {row}"


def enters(
    item: dict[str, str] | None = None, pending: dict[str, str] | None = None
) -> dict[str, str]:
    """The ways to bring in an item and its pending row in one statement."""
    register = insert(ITEMS, ITEM_COLUMNS, globals()["item"](**(item or {})))
    queue = insert(PENDING, PENDING_COLUMNS, globals()["pending"](**(pending or {})))
    return {
        "INSERT": f"WITH p AS ({queue}) {register}",
        "INSERT, the item first": f"WITH i AS ({register} RETURNING 1) {queue}",
    }


def enqueue(outbox_id: str = NEW, sequence_id: int = 11, **changed: str) -> str:
    whole = {"outbox_id": outbox_id, "sequence_id": str(sequence_id)} | changed
    register = insert(ITEMS, ITEM_COLUMNS, item(**whole))
    return f"WITH i AS ({register} RETURNING *)" + insert(
        PENDING,
        PENDING_COLUMNS[:5],
        f" SELECT {', '.join(PENDING_COLUMNS[:5])} FROM i",
    )


def opening(outbox_id: str, attempt_no: int = 1, **changed: str) -> str:
    """A SELECT of one opening, as a claim under TOKEN writes it."""
    values = {
        "outbox_id": f"CAST('{outbox_id}' AS uuid)",
        "attempt_no": str(attempt_no),
        "phase": "'OPEN'",
        "state": "'DISPATCHING'",
        "outcome": "CAST(NULL AS text)",
        "requested_state": "CAST(NULL AS text)",
        "lease_token": f"CAST('{TOKEN}' AS uuid)",
        "worker_id": "'w'",
        "claimed_at": "clock_timestamp()",
        "completed_at": "CAST(NULL AS timestamptz)",
        "db_user": "SESSION_USER",
        "xact_id": "CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
    }
    assert changed.keys() <= values.keys()
    return "SELECT " + ", ".join((values | changed)[column] for column in ATTEMPT_COLUMNS)


def closing(outbox_id: str, state: str, attempt_no: int = 1, **changed: str) -> str:
    """A SELECT of one closing, as a worker's completion writes it."""
    closes = {
        "phase": "'CLOSE'",
        "state": f"'{state}'",
        "requested_state": "CAST(NULL AS text)" if state == "ZOMBIE_REQUEUE" else f"'{state}'",
        "outcome": "'UNKNOWN'" if state == "FAILED" else "CAST(NULL AS text)",
        "claimed_at": (
            f"(SELECT o.claimed_at FROM orchestration.{ATTEMPTS} o WHERE o.outbox_id ="
            f" '{outbox_id}' AND o.attempt_no = {attempt_no} AND o.phase = 'OPEN')"
        ),
        "completed_at": "clock_timestamp()",
    }
    return opening(outbox_id, attempt_no, **(closes | changed))


def record(row: str) -> str:
    return insert(ATTEMPTS, ATTEMPT_COLUMNS, row)


def lease(outbox_id: str, token: str = TOKEN, ends: str = "interval '1 hour'") -> str:
    return (
        f"UPDATE orchestration.{PENDING} SET attempt_count = attempt_count + 1,"
        f" claimed_by = 'w', lease_token = '{token}',"
        f" lease_expires_at = clock_timestamp() + {ends} WHERE outbox_id = '{outbox_id}'"
    )


def claim(outbox_id: str, attempt_no: int = 1, **changed: str) -> str:
    """An opening with its lease: the first under TOKEN, a later one under OTHER_TOKEN."""
    token = TOKEN if attempt_no == 1 else OTHER_TOKEN
    row = opening(outbox_id, attempt_no, **({"lease_token": f"CAST('{token}' AS uuid)"} | changed))
    return f"WITH p AS ({lease(outbox_id, token)}) {record(row)}"


def expire(outbox_id: str) -> str:
    return (
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = clock_timestamp()"
        f" - interval '1 minute' WHERE outbox_id = '{outbox_id}'"
    )


LATE_COLUMNS = (
    *("outbox_id", "result_no", "attempt_no", "source", "outcome", "reason", "lease_token"),
    *("recorded_by", "recorded_at", "instruction_version", "db_user", "xact_id"),
)


def late_result(**changed: str) -> str:
    """What reconciliation found out of the rejected item; nothing is left to a trigger."""
    values = {
        "outbox_id": uuid_of(REJECTED),
        "result_no": "1",
        "attempt_no": "1",
        "source": "'RECONCILIATION'",
        "outcome": "'REJECTED'",
        "reason": "'test'",
        "lease_token": "CAST(NULL AS uuid)",
        "recorded_by": "'test'",
        "recorded_at": "clock_timestamp()",
        "instruction_version": "2",
        "db_user": "SESSION_USER",
        "xact_id": "CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
    }
    assert changed.keys() <= values.keys()
    row = "SELECT " + ", ".join((values | changed)[column] for column in LATE_COLUMNS)
    return insert(LATE_RESULTS, LATE_COLUMNS, row)


def leave(outbox_id: str) -> str:
    return f"DELETE FROM orchestration.{PENDING} WHERE outbox_id = '{outbox_id}'"


FREED = (
    f"UPDATE orchestration.{PENDING} SET claimed_by = NULL, lease_token = NULL,"
    " lease_expires_at = NULL WHERE outbox_id = '{}'"
)

WORLD = (
    *(
        enqueue(
            id,
            number,
            max_attempts="1" if id in (LAST, LAST_EXPIRED, SPENT) else "20",
            instruction_id=uuid_of(UNKNOWN_INSTRUCTION if id == UNKNOWN else INSTRUCTION),
        )
        for number, id in enumerate(
            (FREE, LEASED, EXPIRED, RETRIED, DONE, REJECTED, UNKNOWN, LAST, LAST_EXPIRED, SPENT), 1
        )
    ),
    *(
        claim(id)
        for id in (LEASED, EXPIRED, RETRIED, DONE, REJECTED, UNKNOWN, LAST, LAST_EXPIRED, SPENT)
    ),
    expire(EXPIRED),
    expire(LAST_EXPIRED),
    record(closing(RETRIED, "RETRYABLE")),
    FREED.format(RETRIED),
    record(closing(DONE, "DISPATCHED")),
    leave(DONE),
    record(closing(REJECTED, "FAILED", outcome="'REJECTED'")),
    leave(REJECTED),
    record(closing(UNKNOWN, "FAILED")),
    leave(UNKNOWN),
    late_result(),
    # What the guard prevents: an item whose last attempt was to be retried.
    f"ALTER TABLE orchestration.{ATTEMPTS} DISABLE TRIGGER guard",
    record(closing(SPENT, "RETRYABLE")),
    FREED.format(SPENT),
    f"ALTER TABLE orchestration.{ATTEMPTS} ENABLE ALWAYS TRIGGER guard",
)


def make_world(connection: Connect) -> None:
    """One item in each state an item may be in, and SPENT, in a state that none may be in."""
    connection.execute(f"INSERT INTO orchestration.{SEQUENCES} VALUES ('p')")
    for statement in WORLD:
        connection.execute(statement)


def updates(
    table: str, columns: tuple[str, ...], row: str, key: str, change: str
) -> dict[str, str]:
    """Every way to change the row with the outbox_id that `row` repeats."""
    update = f"UPDATE orchestration.{table} SET {change} WHERE {key}"
    conflict = "outbox_id, attempt_no, phase" if table == ATTEMPTS else "outbox_id"
    return {
        "UPDATE": update,
        "INSERT ON CONFLICT DO UPDATE": (
            f"{insert(table, columns, row)} ON CONFLICT ({conflict}) DO UPDATE SET {change}"
        ),
        "MERGE UPDATE": (
            f"MERGE INTO orchestration.{table} USING (SELECT) AS s ON {key}"
            f" WHEN MATCHED THEN UPDATE SET {change}"
        ),
        "UPDATE in a CTE": f"WITH u AS ({update} RETURNING 1) SELECT * FROM u",
    }


def is_(outbox_id: str) -> str:
    return f"outbox_id = '{outbox_id}'"


def append_only() -> Iterator[Attack]:
    changed = Attack(
        "",
        "INV-OUT-001",
        "P0001",
        ITEMS,
        (),
        {"outbox_id": FREE},
        (f"triggers/{ITEMS}__append_only",),
    )
    for column, value in {
        "outbox_id": f"'{NEW}'",
        "instruction_id": f"'{OTHER_INSTRUCTION}'",
        "participant_id": "'q'",
        "sequence_id": "12",
        "idempotency_key": "'forged'",
        "rail_type": "'SWIFT'",
        "max_attempts": "1000",
        "created_at": "created_at - interval '1 day'",
        "db_user": "'forged'",
        "xact_id": "1",
    }.items():
        yield replace(
            changed,
            name=f"an item's changed {column}",
            statements=(f"UPDATE orchestration.{ITEMS} SET {column} = {value} WHERE {is_(FREE)}",),
        )
    yield replace(
        changed,
        name="an item's changed payload with a hash that fits",
        statements=(
            f"UPDATE orchestration.{ITEMS} SET payload = '{{}}', payload_hash = encode(sha256("
            "'orchestration.payload.v1'::bytea || payload_salt || convert_to('{}', 'UTF8')), 'hex')"
            f" WHERE {is_(FREE)}",
        ),
    )
    yield from replace(changed, name="a changed item").in_forms(
        updates(ITEMS, ITEM_COLUMNS, item(FREE), is_(FREE), "rail_type = 'SWIFT'")
    )
    yield from replace(changed, name="removal of an item").in_forms(deletes(ITEMS, is_(FREE)))
    emptied = replace(changed, detail={}, without=(f"triggers/{ITEMS}__no_truncate",))
    yield from replace(emptied, name="removal of all items").in_forms(truncates(ITEMS))
    yield from replace(
        emptied,
        name="removal of everything",
        without=tuple(f"triggers/{table}__no_truncate" for table in TABLES),
    ).in_forms(truncates(*TABLES))

    for table, what, number in (
        (LATE_RESULTS, "a late result", "result_no"),
        (INTERVENTIONS, "an intervention", "intervention_no"),
    ):
        id = REJECTED if table == LATE_RESULTS else EXPIRED
        kept = replace(
            changed,
            invariant="INV-APP-001",
            table=table,
            detail={"outbox_id": id, number: 1},
            without=(f"triggers/{table}__append_only",),
        )
        yield replace(
            kept,
            name=f"{what} for another reason",
            statements=(f"UPDATE orchestration.{table} SET reason = 'forged' WHERE {is_(id)}",),
        )
        yield from replace(kept, name=f"removal of {what}").in_forms(deletes(table, is_(id)))
        yield from replace(
            kept,
            name=f"removal of {what} with all others",
            detail={},
            without=(f"triggers/{table}__no_truncate",),
        ).in_forms(truncates(table))

    told = replace(
        changed,
        table=ATTEMPTS,
        detail={"outbox_id": DONE, "attempt_no": 1, "phase": "CLOSE"},
        without=(f"triggers/{ATTEMPTS}__append_only",),
    )
    its = f"{is_(DONE)} AND phase = 'CLOSE'"
    for column, value in {
        "attempt_no": "2",
        "lease_token": f"'{OTHER_TOKEN}'",
        "worker_id": "'forged'",
        "claimed_at": "claimed_at - interval '1 day'",
        "completed_at": "completed_at - interval '1 day'",
        "rail_reference": "'forged'",
        "error_message": "'forged'",
        "db_user": "'forged'",
        "xact_id": "1",
    }.items():
        yield replace(
            told,
            name=f"an attempt's changed {column}",
            statements=(f"UPDATE orchestration.{ATTEMPTS} SET {column} = {value} WHERE {its}",),
        )
    yield from replace(told, name="a changed attempt").in_forms(
        updates(ATTEMPTS, ATTEMPT_COLUMNS, closing(DONE, "DISPATCHED"), its, "rail_code = 'X'")
    )
    yield from replace(told, name="removal of an attempt").in_forms(deletes(ATTEMPTS, its))
    yield from replace(
        told,
        name="removal of all attempts",
        detail={},
        without=(f"triggers/{ATTEMPTS}__no_truncate",),
    ).in_forms(truncates(ATTEMPTS))


def forged() -> Iterator[Attack]:
    forged_item = Attack(
        "",
        "INV-OUT-001",
        "22023",
        ITEMS,
        (),
        {"outbox_id": NEW},
        (ITEMS_GUARD,),
        column="db_user",
    )
    for what, column, value in (
        ("a forged db_user", "db_user", "'forger'"),
        ("a created_at to come", "created_at", LATER),
    ):
        yield from replace(forged_item, name=f"an item with {what}").in_forms(
            enters({column: value})
        )
    yield replace(
        forged_item,
        name="an item with a forged xact_id",
        statements=(enters({"xact_id": "1"})["INSERT"],),
        without=(ITEMS_GUARD, ENTRY_GUARD),
    )
    forged_attempt = replace(
        forged_item,
        table=ATTEMPTS,
        detail={"outbox_id": ANY, "attempt_no": 1},
        without=(ATTEMPTS_GUARD,),
    )
    for what, column, value in (
        ("a forged db_user", "db_user", "'forger'"),
        ("a forged xact_id", "xact_id", "1"),
    ):
        yield replace(
            forged_attempt,
            name=f"an opening with {what}",
            statements=(claim(FREE, **{column: value}),),
        )
        yield from replace(forged_attempt, name=f"a closing with {what}").in_forms(
            inserts(ATTEMPTS, ATTEMPT_COLUMNS, closing(LEASED, "DISPATCHED", **{column: value}))
        )
    yield replace(
        forged_attempt,
        name="an attempt with a forged db_user by COPY",
        statements=(
            copy(
                ATTEMPTS,
                {
                    "outbox_id": FREE,
                    "attempt_no": "1",
                    "phase": "OPEN",
                    "state": "DISPATCHING",
                    "lease_token": TOKEN,
                    "worker_id": "w",
                    "claimed_at": "2020-01-01Z",
                    "db_user": "forger",
                },
            ),
        ),
    )


def leases() -> Iterator[Attack]:
    def lost(what: str, row: str, outbox_id: str, state: str, *before: str) -> Attack:
        return Attack(
            what,
            "INV-OUT-002",
            "P7002",
            ATTEMPTS,
            (*before, record(row)),
            {"outbox_id": outbox_id, "attempt_no": 1, "worker_id": ANY, "state": state},
            (ATTEMPTS_GUARD,),
            column="lease_token",
        )

    for what, changed in {
        "a foreign token": {"lease_token": f"CAST('{OTHER_TOKEN}' AS uuid)"},
        "another worker": {"worker_id": "'thief'"},
        "another claimed_at": {"claimed_at": "clock_timestamp()"},
        "a completed_at in the past": {"completed_at": "CAST('2020-01-01Z' AS timestamptz)"},
        "a completed_at of a moment ago": {
            "completed_at": "statement_timestamp() - interval '1 microsecond'"
        },
        "a completed_at to come": {"completed_at": LATER},
        "a completed_at before the lease ends, but to come": {
            "completed_at": "clock_timestamp() + interval '30 minutes'"
        },
        "an infinite completed_at": {"completed_at": "CAST('infinity' AS timestamptz)"},
    }.items():
        row = closing(LEASED, "DISPATCHED", **changed)
        yield lost(f"a closing with {what}", row, LEASED, "DISPATCHED")
    stolen = closing(LEASED, "DISPATCHED", lease_token=f"CAST('{OTHER_TOKEN}' AS uuid)")
    yield from lost("a closing with a foreign token", "", LEASED, "DISPATCHED").in_forms(
        inserts(ATTEMPTS, ATTEMPT_COLUMNS, stolen)
    )
    for state in ("DISPATCHED", "RETRYABLE", "FAILED"):
        yield lost(
            f"a worker's closing as {state} after the lease has expired",
            closing(EXPIRED, state),
            EXPIRED,
            state,
        )
    zombie = closing(LEASED, "ZOMBIE_REQUEUE")
    yield lost("a ZOMBIE_REQUEUE under a running lease", zombie, LEASED, "ZOMBIE_REQUEUE")
    row = closing(LEASED, "FAILED", requested_state="CAST(NULL AS text)")
    yield lost("a repair's FAILED under a running lease", row, LEASED, "FAILED")
    yield replace(
        lost("a closing by COPY", "", LEASED, "DISPATCHED"),
        statements=(
            copy(
                ATTEMPTS,
                {
                    "outbox_id": LEASED,
                    "attempt_no": "1",
                    "phase": "CLOSE",
                    "state": "DISPATCHED",
                    "requested_state": "DISPATCHED",
                    "lease_token": TOKEN,
                    "worker_id": "w",
                    "claimed_at": "2020-01-01Z",
                    "completed_at": "2020-01-01Z",
                },
            ),
        ),
    )

    def prolonged(what: str, worker: str, outbox_id: str, change: str) -> list[Attack]:
        return Attack(
            what,
            "INV-OUT-002",
            "P7002",
            PENDING,
            (),
            {"outbox_id": outbox_id, "worker_id": worker},
            (UPDATE_GUARD,),
            column="lease_expires_at",
        ).in_forms(
            updates(PENDING, PENDING_COLUMNS, pending(outbox_id, 12), is_(outbox_id), change)
        )

    longer = "lease_expires_at = clock_timestamp() + interval '1 hour'"
    yield from prolonged("a lease extended after it has expired", "w", EXPIRED, longer)
    yield from prolonged("a lease taken over", "thief", LEASED, "claimed_by = 'thief'")
    yield prolonged("an expired lease moved back", "w", EXPIRED, "lease_expires_at = '2020-01-01'")[
        0
    ]
    # Under its own token, by a detour.
    again = (
        f"UPDATE orchestration.{PENDING} SET claimed_by = 'w', lease_token = '{TOKEN}', {longer}"
        f" WHERE {is_(EXPIRED)}"
    )
    yield replace(
        prolonged("an expired lease given back and taken up again", "w", EXPIRED, longer)[0],
        name="an expired lease given back and taken up again",
        statements=(FREED.format(EXPIRED), again),
        detail=ANY,
    )


def ceilings() -> Iterator[Attack]:
    def past(what: str, statement: str, outbox_id: str, attempt_no: int) -> Attack:
        return Attack(
            what,
            "INV-OUT-003",
            "P7003",
            ATTEMPTS,
            (statement,),
            {"outbox_id": outbox_id, "attempt_no": attempt_no},
            (ATTEMPTS_GUARD,),
            column="attempt_no",
        )

    yield past("an attempt past the last", claim(SPENT, 2), SPENT, 2)
    yield past("a RETRYABLE of the last attempt", record(closing(LAST, "RETRYABLE")), LAST, 1)
    zombie = record(closing(LAST_EXPIRED, "ZOMBIE_REQUEUE"))
    yield past("a ZOMBIE_REQUEUE of the last attempt", zombie, LAST_EXPIRED, 1)
    name = "ck_payment_outbox_attempts_outcome"
    for what, row in {
        "a FAILED without an outcome": closing(LEASED, "FAILED", outcome="CAST(NULL AS text)"),
        "a FAILED with an outcome that does not exist": closing(
            LEASED, "FAILED", outcome="'PERHAPS'"
        ),
        "a DISPATCHED with an outcome": closing(LEASED, "DISPATCHED", outcome="'NOT_SENT'"),
    }.items():
        yield Attack(
            what,
            "INV-OUT-003",
            "23514",
            ATTEMPTS,
            (record(row),),
            None,
            (f"constraints/{name}",),
            constraint=name,
        )


def keys() -> Iterator[Attack]:
    name = "uq_payment_outbox_items_key"
    yield from Attack(
        "a key once more",
        "INV-OUT-004",
        "23505",
        ITEMS,
        (),
        None,
        (f"constraints/{name}",),
        constraint=name,
    ).in_forms(enters({"idempotency_key": f"'{DONE}'"}))


def orders() -> Iterator[Attack]:
    def broken(
        what: str, statements: tuple[str, ...], outbox_id: str, attempt_no: int = 1
    ) -> Attack:
        return Attack(
            what,
            "INV-OUT-005",
            "P7005",
            ATTEMPTS,
            statements,
            {
                "outbox_id": outbox_id,
                "attempt_no": attempt_no,
                "phase": "OPEN",
                "state": "DISPATCHING",
            },
            (ATTEMPTS_GUARD,),
            column="attempt_no",
        )

    yield from broken("an opening without a claim", (), FREE).in_forms(
        inserts(ATTEMPTS, ATTEMPT_COLUMNS, opening(FREE))
    )
    yield broken("an opening of no item", (record(opening(NEW)),), NEW)
    yield broken("a first attempt with a higher number", (claim(FREE, 2),), FREE, 2)
    yield broken("an attempt whose number skips one", (claim(RETRIED, 3),), RETRIED, 3)
    yield Attack(
        "a count of attempts that were not made",
        "INV-OUT-005",
        "P7005",
        PENDING,
        (f"UPDATE orchestration.{PENDING} SET attempt_count = 5 WHERE {is_(FREE)}",),
        {"outbox_id": FREE, "attempt_count": 5},
        (UPDATE_GUARD,),
        column="attempt_count",
    )
    for what, id in {"a dispatched": DONE, "a failed": REJECTED}.items():
        yield broken(f"an attempt after {what} one", (record(opening(id, 2)),), id, 2)
    for what, changed in {
        "a foreign token": {"lease_token": f"CAST('{OTHER_TOKEN}' AS uuid)"},
        "another worker": {"worker_id": "'thief'"},
        "a claimed_at in the past": {"claimed_at": "CAST('2020-01-01Z' AS timestamptz)"},
        "a claimed_at to come": {"claimed_at": "clock_timestamp() + interval '1 minute'"},
    }.items():
        yield broken(f"an opening with {what}", (claim(FREE, **changed),), FREE)
    yield broken(
        "an opening under a lease that has expired",
        (lease(FREE, ends="interval '-1 second'"), record(opening(FREE))),
        FREE,
    )
    yield replace(
        broken(
            "a closing without an opening",
            (lease(FREE), record(closing(FREE, "DISPATCHED", claimed_at="clock_timestamp()"))),
            FREE,
        ),
        detail={"outbox_id": FREE, "attempt_no": 1, "phase": "CLOSE", "state": "DISPATCHED"},
    )
    twice = Attack(
        "",
        "INV-OUT-005",
        "23505",
        ATTEMPTS,
        (),
        None,
        ("constraints/pk_payment_outbox_attempts", ATTEMPTS_GUARD),
        constraint="pk_payment_outbox_attempts",
    )
    yield replace(
        twice,
        name="an attempt opened twice",
        statements=(record(opening(LEASED)),),
    )
    yield replace(
        twice,
        name="an attempt closed twice",
        statements=(record(closing(RETRIED, "RETRYABLE")),),
    )
    name = "ck_payment_outbox_attempts_state"
    unknown = replace(
        twice, sqlstate="23514", without=(f"constraints/{name}", ATTEMPTS_GUARD), constraint=name
    )
    for what, row in {
        "an opening that closes": opening(FREE, state="'RETRYABLE'"),
        "a phase that does not exist": opening(FREE, phase="'HALF'", state="'ZOMBIE_REQUEUE'"),
    }.items():
        relaxed = (
            "constraints/ck_payment_outbox_attempts_requested_state",
            "constraints/ck_payment_outbox_attempts_opening",
        )
        yield replace(
            unknown, name=what, statements=(record(row),), without=(*unknown.without, *relaxed)
        )


def redrives() -> Iterator[Attack]:
    for state in ("DISPATCHED", "FAILED"):
        yield Attack(
            f"a second terminal attempt as {state}",
            "INV-OUT-006",
            "23505",
            ATTEMPTS,
            (record(closing(DONE, state, 2, claimed_at="clock_timestamp()")),),
            None,
            ("indexes/uq_payment_outbox_attempts_terminal", ATTEMPTS_GUARD),
            constraint="uq_payment_outbox_attempts_terminal",
        )

    def wrong(what: str, of: str, key: str | None = None, no: int = 1, **changed: str) -> Attack:
        columns = {
            "redrive_of": f"CAST('{of}' AS uuid)",
            "redrive_no": str(no),
            "idempotency_key": f"'{key or of}'",
        } | changed
        return Attack(
            what,
            "INV-OUT-006",
            "P7005",
            ITEMS,
            (enqueue(**columns),),
            {"outbox_id": NEW, "redrive_no": no},
            (REDRIVE_GUARD,),
            column="redrive_of",
        )

    yield wrong("a redrive of a dispatched item", DONE)
    yield replace(
        wrong(
            "a redrive of an item whose outcome is unknown",
            UNKNOWN,
            instruction_id=uuid_of(UNKNOWN_INSTRUCTION),
        ),
        without=(REDRIVE_GUARD, ITEMS_GUARD),
    )
    yield wrong("a redrive of a live item", FREE)
    yield wrong("a redrive of a leased item", LEASED)
    yield wrong("a redrive of no item", NEW)
    yield wrong("a redrive under another key", REJECTED, "other")
    yield wrong("a redrive that skips a number", REJECTED, no=2)
    yield wrong(
        "a redrive of another instruction",
        REJECTED,
        instruction_id=uuid_of(OTHER_INSTRUCTION),
    )
    yield replace(
        wrong("a redrive of another participant", REJECTED, participant_id="'q'"),
        without=(REDRIVE_GUARD, OPEN, ITEMS_GUARD),
    )
    yield wrong("a redrive on another rail", REJECTED, rail_type="'SWIFT'")
    yield wrong("a redrive with more attempts", REJECTED, max_attempts="21")
    yield wrong("a redrive with another payload", REJECTED, **hashed('{"a": 2}'))
    other_salt = "decode(repeat('01', 16), 'hex')"
    yield wrong(
        "a redrive with another salt",
        REJECTED,
        payload_salt=other_salt,
        payload_hash=hashed('{"a": 1}', other_salt)["payload_hash"],
    )
    name = "ck_payment_outbox_items_redrive"
    for what, columns in {
        "a first item that follows another": {"redrive_of": f"CAST('{REJECTED}' AS uuid)"},
        "a redrive of nothing": {"redrive_no": "1"},
        "a redrive before the first": {
            "redrive_no": "-1",
            "redrive_of": f"CAST('{REJECTED}' AS uuid)",
        },
    }.items():
        yield Attack(
            what,
            "INV-OUT-006",
            "23514",
            ITEMS,
            (enqueue(**columns),),
            None,
            (f"constraints/{name}", REDRIVE_GUARD),
            constraint=name,
        )


def unresolved() -> Iterator[Attack]:
    def refused(what: str, detail: dict[str, Any], without: str, *statements: str) -> Attack:
        return Attack(
            what,
            "INV-OUT-010",
            "P7404",
            INSTRUCTIONS,
            statements,
            detail,
            (without,),
            column="unresolved",
        )

    changed = {"instruction_id": uuid_of(UNKNOWN_INSTRUCTION)}
    yield from refused(
        "an item beside one whose outcome is unknown",
        {"id": UNKNOWN_INSTRUCTION, "unresolved": 1},
        ITEMS_GUARD,
    ).in_forms(enters(changed, changed))
    yield refused(
        "an unknown outcome that is counted no more",
        {"id": UNKNOWN_INSTRUCTION, "unresolved": 0, "unknown": 1},
        f"triggers/{INSTRUCTIONS}__guard_unresolved_update",
        f"UPDATE orchestration.{INSTRUCTIONS} SET unresolved = 0"
        f" WHERE id = '{UNKNOWN_INSTRUCTION}'",
    )
    yield refused(
        "an instruction that enters with an unknown outcome",
        {"id": NEW, "unresolved": 1, "unknown": 0},
        f"triggers/{INSTRUCTIONS}__guard_unresolved_insert",
        f"INSERT INTO orchestration.{INSTRUCTIONS} (id, unresolved, participant_id,"
        " idempotency_key, instruction_type, end_to_end_id, amount_minor, currency,"
        " debtor_account, creditor_account, payload, payload_salt, payload_hash, attestation_id,"
        " policy_version_id, created_at, updated_at, db_user, xact_id)"
        f" SELECT '{NEW}', 1, participant_id, 'unresolved', instruction_type, end_to_end_id,"
        " amount_minor, currency, debtor_account, creditor_account, payload, payload_salt,"
        " payload_hash, attestation_id, policy_version_id, created_at, created_at, db_user,"
        f" xact_id FROM orchestration.{INSTRUCTIONS} WHERE id = '{INSTRUCTION}'",
    )


def late_results() -> Iterator[Attack]:
    def refused(what: str, sqlstate: str, column: str, no: int, statement: str) -> Attack:
        return Attack(
            what,
            "INV-OUT-011",
            sqlstate,
            LATE_RESULTS,
            (statement,),
            {"outbox_id": REJECTED, "attempt_no": no},
            (LATE_GUARD,),
            column=column,
        )

    never = late_result(result_no="2", attempt_no="9")
    yield refused("a late result of no attempt", "P7005", "attempt_no", 9, never)
    foreign = late_result(
        result_no="2", source="'WORKER'", reason="NULL", lease_token=uuid_of(OTHER_TOKEN)
    )
    yield refused("a late result under another token", "P7002", "lease_token", 1, foreign)
    constrained = Attack("", "INV-OUT-011", "23514", LATE_RESULTS, (), None, ())
    for what, name, changed in (
        (
            "a reconciliation without a reason",
            "ck_payment_outbox_late_results_source",
            {"reason": "NULL"},
        ),
        (
            "an outcome that does not exist",
            "ck_payment_outbox_late_results_outcome",
            {"outcome": "'PERHAPS'"},
        ),
    ):
        yield replace(
            constrained,
            name=what,
            statements=(late_result(result_no="2", **changed),),
            without=(f"constraints/{name}",),
            constraint=name,
        )
    yield replace(
        constrained,
        name="a late result twice",
        sqlstate="23505",
        statements=(late_result(),),
        without=(f"constraints/pk_{LATE_RESULTS}",),
        constraint=f"pk_{LATE_RESULTS}",
    )
    columns = ("outbox_id", "intervention_no", "action", "result_no", "reason", "acted_at")
    yield replace(
        constrained,
        name="a contradiction closed twice",
        sqlstate="23505",
        table=INTERVENTIONS,
        statements=(
            insert(
                INTERVENTIONS,
                (*columns, "db_user", "xact_id"),
                f"SELECT {uuid_of(REJECTED)}, n, 'CLOSE_CONTRADICTION', 1, 'test',"
                " clock_timestamp(), SESSION_USER, 1 FROM generate_series(1, 2) AS n",
            ),
        ),
        without=("indexes/uq_payment_outbox_interventions_closed",),
        constraint="uq_payment_outbox_interventions_closed",
    )


def hashed(payload: str, salt: str = "decode(repeat('00', 16), 'hex')") -> dict[str, str]:
    """An item's columns for that payload, with the hash that the database takes of it."""
    return {
        "payload": f"CAST('{payload}' AS jsonb)",
        "payload_hash": (
            f"encode(sha256('orchestration.payload.v1'::bytea || {salt}"
            f" || convert_to(CAST(CAST('{payload}' AS jsonb) AS text), 'UTF8')), 'hex')"
        ),
    }


def enqueue_all(numbers: dict[str, int], **changed: str) -> str:
    """Several items with their pending rows, by one statement: sequence_id of each outbox_id."""
    rows = " UNION ALL ".join(item(id, number, **changed) for id, number in numbers.items())
    return f"WITH i AS ({insert(ITEMS, ITEM_COLUMNS, rows)} RETURNING *)" + insert(
        PENDING, PENDING_COLUMNS[:5], f" SELECT {', '.join(PENDING_COLUMNS[:5])} FROM i"
    )


def sequences() -> Iterator[Attack]:
    gap = Attack(
        "",
        "INV-OUT-007",
        "22023",
        ITEMS,
        (),
        {"participant_id": "p", "first": 12, "last": 12, "items": 1},
        (ITEMS_GUARD,),
        column="sequence_id",
    )
    yield from replace(gap, name="a number that leaves a gap").in_forms(
        enters({"sequence_id": "12"}, {"sequence_id": "12"})
    )
    yield replace(
        gap,
        name="a gap within a statement",
        statements=(enqueue_all({NEW: 11, id_of(98): 13}),),
        detail={"participant_id": "p", "first": 11, "last": 13, "items": 2},
    )
    yield replace(
        gap,
        name="a new participant's first number after 1",
        statements=(
            enqueue(
                sequence_id=2, participant_id="'q'", instruction_id=uuid_of(INSTRUCTION_OF["q"])
            ),
        ),
        detail={"participant_id": "q", "first": 2, "last": 2, "items": 1},
    )
    yield replace(
        gap,
        name="a gap that a later statement would fill",
        statements=(enqueue(sequence_id=12), enqueue(id_of(98), 11)),
    )
    name = "uq_payment_outbox_items_participant_id_sequence_id"
    yield from Attack(
        "a number once more",
        "INV-OUT-007",
        "23505",
        ITEMS,
        (),
        None,
        (f"constraints/{name}",),
        constraint=name,
    ).in_forms(enters({"sequence_id": "5"}, {"sequence_id": "5"}))
    gone = Attack(
        "removal of a counter",
        "INV-OUT-007",
        "P0001",
        SEQUENCES,
        (),
        {"participant_id": "p", "next_sequence_id": 11},
        (f"triggers/{SEQUENCES}__no_delete",),
    )
    yield from gone.in_forms(deletes(SEQUENCES, "participant_id = 'p'"))
    yield from replace(
        gone,
        name="removal of all counters",
        detail={},
        without=(f"triggers/{SEQUENCES}__no_truncate",),
    ).in_forms(truncates(SEQUENCES))


def losses() -> Iterator[Attack]:
    lost = Attack(
        "an item without its pending row",
        "INV-OUT-009",
        "P7006",
        ITEMS,
        (),
        {"outbox_id": NEW},
        (ITEMS_GUARD,),
        column="outbox_id",
    )
    yield from lost.in_forms(inserts(ITEMS, ITEM_COLUMNS, item()))
    yield replace(
        lost,
        name="an item without its pending row by COPY",
        statements=(
            copy(
                ITEMS,
                {
                    "outbox_id": NEW,
                    "instruction_id": INSTRUCTION,
                    "participant_id": "p",
                    "sequence_id": "11",
                    "idempotency_key": "k",
                    "rail_type": "SEPA",
                    "payload": "{}",
                    "payload_salt": "\\\\x" + "00" * 16,
                    "payload_hash": payload_hash(bytes(16), "{}"),
                },
            ),
        ),
    )
    yield replace(
        lost,
        name="an item before its pending row",
        statements=(
            insert(ITEMS, ITEM_COLUMNS, item()),
            insert(PENDING, PENDING_COLUMNS, pending()),
        ),
    )
    stranger = replace(
        lost, name="a pending row without an item", table=PENDING, without=(ENTRY_GUARD,)
    )
    yield from stranger.in_forms(inserts(PENDING, PENDING_COLUMNS, pending()))
    yield replace(
        stranger,
        name="a pending row without an item by COPY",
        statements=(
            copy(
                PENDING,
                {
                    "outbox_id": NEW,
                    "instruction_id": INSTRUCTION,
                    "participant_id": "p",
                    "sequence_id": "11",
                    "rail_type": "SEPA",
                },
            ),
        ),
    )
    for column, value in {
        "instruction_id": uuid_of(OTHER_INSTRUCTION),
        "sequence_id": "12",
        "rail_type": "'SWIFT'",
    }.items():
        yield replace(
            stranger,
            name=f"a pending row with another {column} than its item",
            statements=(enters(pending={column: value})["INSERT"],),
        )
    yield replace(
        stranger,
        name="a pending row with another participant_id than its item",
        sqlstate="23503",
        statements=(enters(pending={"participant_id": "'q'"})["INSERT"],),
        detail=None,
        without=(OPEN, ENTRY_GUARD),
        column=None,
        constraint=OPEN_KEY,
    )
    yield replace(
        stranger,
        name="a pending row of another participant and its instruction than its item",
        statements=(
            enters(
                pending={
                    "participant_id": "'q'",
                    "instruction_id": uuid_of(INSTRUCTION_OF["q"]),
                }
            )["INSERT"],
        ),
    )
    yield replace(
        stranger,
        name="a pending row that enters with an attempt",
        statements=(enters(pending={"attempt_count": "1"})["INSERT"],),
    )
    leased = {
        "claimed_by": "'w'",
        "lease_token": f"CAST('{TOKEN}' AS uuid)",
        "lease_expires_at": LATER,
    }
    yield from replace(stranger, name="a pending row that enters claimed").in_forms(
        enters(pending=leased)
    )
    for what, id, number in (("dispatched", DONE, 5), ("failed", REJECTED, 6)):
        yield replace(
            stranger,
            name=f"a pending row for a {what} item",
            statements=(insert(PENDING, PENDING_COLUMNS, pending(id, number)),),
            detail={"outbox_id": id},
        )
    yield replace(
        stranger,
        name="a pending row for an item that the same transaction has finished",
        statements=(
            enqueue(),
            claim(NEW),
            record(closing(NEW, "DISPATCHED")),
            leave(NEW),
            insert(PENDING, PENDING_COLUMNS, pending()),
        ),
    )
    removed = replace(
        stranger,
        name="removal of a pending row",
        detail={"outbox_id": FREE},
        without=(f"triggers/{PENDING}__guard_delete",),
    )
    yield from removed.in_forms(deletes(PENDING, is_(FREE)))
    for what, id in {"a leased": LEASED, "an expired": EXPIRED, "a retried": RETRIED}.items():
        yield replace(
            removed,
            name=f"removal of {what} pending row",
            statements=(leave(id),),
            detail={"outbox_id": id},
        )
    yield replace(
        removed,
        name="removal of all pending rows",
        statements=(f"DELETE FROM orchestration.{PENDING}",),
        detail={"outbox_id": ANY},
    )
    yield from replace(
        removed,
        name="emptying the queue",
        detail={},
        column=None,
        without=(f"triggers/{PENDING}__no_truncate",),
    ).in_forms(truncates(PENDING))
    changed = replace(removed, without=(UPDATE_GUARD,))
    for column, value in {
        "outbox_id": f"'{NEW}'",
        "instruction_id": f"'{OTHER_INSTRUCTION}'",
        "participant_id": "'q'",
        "sequence_id": "12",
        "rail_type": "'SWIFT'",
    }.items():
        yield replace(
            changed,
            name=f"a pending row's changed {column}",
            statements=(
                f"UPDATE orchestration.{PENDING} SET {column} = {value} WHERE {is_(FREE)}",
            ),
            without=(UPDATE_GUARD, OPEN) if column == "participant_id" else (UPDATE_GUARD,),
        )
    yield from replace(changed, name="a changed identity").in_forms(
        updates(PENDING, PENDING_COLUMNS, pending(FREE, 1), is_(FREE), "rail_type = 'SWIFT'")
    )
    yield replace(
        changed,
        name="a changed identity in a claim",
        statements=(lease(FREE).replace("SET ", "SET rail_type = 'SWIFT', "),),
    )


def ended(outbox_id: str, sequence_id: int, state: str, instruction_id: str) -> tuple[str, ...]:
    """An item of the instruction from its entry to its end."""
    return (
        enqueue(outbox_id, sequence_id, instruction_id=uuid_of(instruction_id)),
        claim(outbox_id),
        record(closing(outbox_id, state)),
        leave(outbox_id),
    )


def unopened() -> Iterator[Attack]:
    unfit = Attack(
        "",
        "INV-INS-006",
        "23503",
        PENDING,
        (),
        None,
        (OPEN,),
        constraint=OPEN_KEY,
    )

    def items_of(instruction_id: str, outbox_id: str, sequence_id: int) -> dict[str, str]:
        changed = {
            "outbox_id": outbox_id,
            "instruction_id": uuid_of(instruction_id),
            "sequence_id": str(sequence_id),
        }
        return enters(changed | {"idempotency_key": "'attack'"}, changed)

    for what, id in {
        "a received": RECEIVED_INSTRUCTION,
        "a failed": FAILED_INSTRUCTION,
        "no": NO_INSTRUCTION,
    }.items():
        yield from replace(unfit, name=f"an item of {what} instruction").in_forms(
            items_of(id, NEW, 11)
        )
    yield from replace(unfit, name="an item of a completed instruction").in_forms(
        items_of(OTHER_INSTRUCTION, id_of(98), 12),
        before=(
            *ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION),
            *moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        ),
    )
    yield replace(
        unfit,
        name="a redrive of a failed instruction's item",
        statements=(
            enqueue(NEW, 11, instruction_id=uuid_of(OTHER_INSTRUCTION)),
            claim(NEW),
            record(closing(NEW, "FAILED", outcome="'REJECTED'")),
            leave(NEW),
            *moves(OTHER_INSTRUCTION, "FAILED"),
            enqueue(
                id_of(98),
                12,
                instruction_id=uuid_of(OTHER_INSTRUCTION),
                redrive_no="1",
                redrive_of=uuid_of(NEW),
                idempotency_key=f"'{NEW}'",
            ),
        ),
    )
    yield from replace(
        unfit,
        name="an item of another participant's instruction",
        invariant="INV-INS-005",
        without=("constraints/uq_instructions_participant_id_id_open",),
    ).in_forms(items_of(INSTRUCTION_OF["q"], NEW, 11))
    yield replace(
        unfit,
        name="COMPLETED over live items",
        statements=moves(INSTRUCTION, "EXECUTING", "COMPLETED"),
    )
    yield replace(
        unfit,
        name="FAILED over live items",
        statements=moves(INSTRUCTION, "FAILED"),
        without=(OPEN, END_GUARD),
    )

    def early(what: str, before: tuple[str, ...], states: tuple[str, ...], **counts: int) -> Attack:
        from_, to = ("AUTHORIZED", *states)[-2:]
        return Attack(
            what,
            "INV-INS-006",
            "P7404",
            INSTRUCTIONS,
            (*before, *moves(OTHER_INSTRUCTION, *states)),
            {"id": OTHER_INSTRUCTION, "from": from_, "to": to} | counts,
            (END_GUARD,),
            column="state",
        )

    dispatched = ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION)
    unknown = ended(NEW, 11, "FAILED", OTHER_INSTRUCTION)
    completes = ("EXECUTING", "COMPLETED")
    yield early("COMPLETED without any item", (), completes, sent=0, unknown=0)
    yield early("COMPLETED with an unknown item", unknown, completes, sent=0, unknown=1)
    for states in (("FAILED",), ("EXECUTING", "FAILED")):
        after = f"FAILED after {('AUTHORIZED', *states)[-2]}"
        yield early(f"{after} with a dispatched item", dispatched, states, sent=1, unknown=0)
        yield early(f"{after} with an unknown item", unknown, states, sent=0, unknown=1)


def payload_hash(salt: bytes, payload: str) -> str:
    """Made here anew from how the contract describes it."""
    return hashlib.sha256(b"orchestration.payload.v1" + salt + payload.encode()).hexdigest()


ATTACKS = (
    *append_only(),
    *forged(),
    *leases(),
    *ceilings(),
    *keys(),
    *orders(),
    *redrives(),
    *unresolved(),
    *late_results(),
    *sequences(),
    *losses(),
    *unopened(),
)

every_attack = pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, id=str(attack), marks=pytest.mark.invariant(attack.invariant))
        for attack in ATTACKS
    ],
)


def picture(connection: Connect) -> list[Any]:
    return [
        row
        for table in (*TABLES, INSTRUCTIONS)
        for row in connection.execute(
            f"SELECT * FROM orchestration.{table} ORDER BY 1, 2, 3"
            if table != SEQUENCES
            else f"SELECT * FROM orchestration.{table} ORDER BY 1"
        ).fetchall()
    ]


STRAY = (
    "readonly",
    (
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA orchestration"
        " TO symphony_readonly",
    ),
)


def make_instructed_world(owner: Connect) -> None:
    make_instructions(owner)
    make_world(owner)


@every_attack
def test_an_attack_is_refused_until_the_object_that_keeps_the_rule_is_gone(
    stage_of: StageOf, attack: Attack
) -> None:
    stage_of(make_instructed_world, picture, STRAY).prove(attack)


@pytest.mark.superuser
@pytest.mark.parametrize(
    "invariant",
    [
        pytest.param(id, marks=pytest.mark.invariant(id))
        for id in sorted({attack.invariant for attack in ATTACKS if attack.sqlstate != "23503"})
    ],
)
def test_replica_mode_silences_no_refusal(superuser: Connect, invariant: str) -> None:
    make_world(superuser)
    before = picture(superuser)
    superuser.execute("SET session_replication_role = replica")
    for attack in ATTACKS:
        # A foreign key sleeps there; what it lets in is found, as shown below.
        if attack.invariant == invariant and attack.sqlstate != "23503":
            attack.check(attempt(superuser, attack.statements))
    assert picture(superuser) == before


@pytest.mark.invariant("INV-OUT-009")
@pytest.mark.parametrize(
    ("attack", "invariant", "table", "detail", "column"),
    [
        (
            "a pending row with another participant_id than its item",
            "INV-OUT-009",
            PENDING,
            {"outbox_id": NEW},
            "outbox_id",
        ),
    ],
    ids=["pending row"],
)
def test_behind_the_foreign_key_the_guard_refuses_another_participant(
    owner: Connect,
    attack: str,
    invariant: str,
    table: str,
    detail: dict[str, Any],
    column: str,
) -> None:
    (meant,) = (one for one in ATTACKS if one.name == attack)
    make_world(owner)
    drop(owner, OPEN)
    found = attempt(owner, meant.statements)
    assert found is not None
    sqlstate = {"INV-OUT-006": "P7005", "INV-OUT-009": "P7006"}[invariant]
    assert_invariant(found, invariant, sqlstate, table)
    assert (found.keys, found.column) == (detail, column)


NO_REFUSAL = {
    f"triggers/{ITEMS}__sequences",
    f"triggers/{ATTEMPTS}__unresolved",
    f"triggers/{LATE_RESULTS}__unresolved",
}
"""They count and refuse nothing; their own proofs are below."""


@pytest.mark.parametrize(
    "entry",
    [
        *invariants.OUTBOX,
        *(invariants.BY_ID[id] for id in ("INV-INS-005", "INV-INS-006")),
    ],
    ids=lambda entry: entry.id,
)
def test_every_object_that_keeps_a_rule_is_attacked(entry: invariants.Invariant) -> None:
    named = {
        path
        for path in entry.enforced_by
        if path.startswith(("triggers/", "indexes/", "constraints/"))
    }
    attacked = {
        path for attack in ATTACKS if attack.invariant == entry.id for path in attack.without
    }
    assert named or entry.id == "INV-OUT-008"
    assert named - NO_REFUSAL <= attacked


@pytest.mark.invariant(
    "INV-OUT-001", "INV-OUT-002", "INV-OUT-005", "INV-OUT-006", "INV-OUT-007", "INV-OUT-009"
)
@pytest.mark.parametrize("role", ["ingest", "executor", "control", "readonly", "auditor"])
def test_a_runtime_role_has_no_write_at_all(
    owner: Connect, login: Callable[[str], Connect], role: str
) -> None:
    make_world(owner)
    connection = login(role)
    statements = (
        enqueue(),
        record(closing(LEASED, "DISPATCHED", claimed_at="clock_timestamp()")),
        *(f"INSERT INTO orchestration.{table} DEFAULT VALUES" for table in TABLES),
        *(f"DELETE FROM orchestration.{table}" for table in TABLES),
        *(f"TRUNCATE orchestration.{table}" for table in TABLES),
        f"UPDATE orchestration.{ITEMS} SET rail_type = 'SWIFT'",
        f"UPDATE orchestration.{PENDING} SET attempt_count = 0",
        f"UPDATE orchestration.{ATTEMPTS} SET state = 'FAILED'",
        f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 1",
        "SELECT orchestration.bump_participant_outbox_seq('p')",
        "SELECT orchestration.close_dead_attempts('{}')",
    )
    assert {refusal(connection, one).sqlstate for one in statements} == {"42501"}


# What is checked by constraints.


@pytest.mark.parametrize(
    ("table", "column", "value", "constraint"),
    [
        (ITEMS, "participant_id", "''", "ck_payment_outbox_items_participant_id"),
        (ITEMS, "sequence_id", "0", "ck_payment_outbox_items_sequence_id"),
        (ITEMS, "idempotency_key", "''", "ck_payment_outbox_items_idempotency_key"),
        (ITEMS, "rail_type", "''", "ck_payment_outbox_items_rail_type"),
        (ITEMS, "payload", "jsonb '[]'", "ck_payment_outbox_items_payload"),
        (ITEMS, "payload", "jsonb 'null'", "ck_payment_outbox_items_payload"),
        (ITEMS, "payload", "jsonb '{\"a\": 2}'", "ck_payment_outbox_items_payload_hash"),
        (ITEMS, "payload", "jsonb '{\"a\": 1.0}'", "ck_payment_outbox_items_payload_hash"),
        (ITEMS, "payload_hash", "repeat('0', 64)", "ck_payment_outbox_items_payload_hash"),
        (ITEMS, "payload_hash", "''", "ck_payment_outbox_items_payload_hash"),
        (
            ITEMS,
            "payload_salt",
            "decode(repeat('01', 16), 'hex')",
            "ck_payment_outbox_items_payload_hash",
        ),
        (ITEMS, "max_attempts", "0", "ck_payment_outbox_items_max_attempts"),
        (ITEMS, "max_attempts", "1001", "ck_payment_outbox_items_max_attempts"),
        (PENDING, "attempt_count", "-1", "ck_payment_outbox_pending_attempt_count"),
        *(
            (
                ITEMS,
                "created_at",
                f"CAST('{moment}' AS timestamptz)",
                "ck_payment_outbox_items_years",
            )
            for moment in ("infinity", "-infinity", "4000-01-01 BC", "9999-01-01Z")
        ),
        *(
            (PENDING, "next_attempt_at", f"'{moment}'", "ck_payment_outbox_pending_next_attempt_at")
            for moment in ("infinity", "-infinity", "4000-01-01 BC", "9999-01-01Z")
        ),
        (PENDING, "claimed_by", "'w'", "ck_payment_outbox_pending_lease"),
        (PENDING, "lease_token", f"'{TOKEN}'", "ck_payment_outbox_pending_lease"),
        (PENDING, "lease_expires_at", LATER, "ck_payment_outbox_pending_lease"),
        (ATTEMPTS, "attempt_no", "0", "ck_payment_outbox_attempts_attempt_no"),
        (ATTEMPTS, "worker_id", "''", "ck_payment_outbox_attempts_worker_id"),
        (ATTEMPTS, "claimed_at", "'-infinity'", "ck_payment_outbox_attempts_times"),
        (ATTEMPTS, "completed_at", "NULL", "ck_payment_outbox_attempts_times"),
        (ATTEMPTS, "requested_state", "'FAILED'", "ck_payment_outbox_attempts_requested_state"),
        (ATTEMPTS, "requested_state", "NULL", "ck_payment_outbox_attempts_requested_state"),
        (ATTEMPTS, "state", "'SENT'", "ck_payment_outbox_attempts_requested_state"),
    ],
)
def test_a_value_that_no_row_may_hold_is_refused(
    owner: Connect, table: str, column: str, value: str, constraint: str
) -> None:
    make_world(owner)
    statement = {
        ITEMS: lambda: insert(ITEMS, ITEM_COLUMNS, item(**{column: value})),
        PENDING: lambda: insert(PENDING, PENDING_COLUMNS, pending(**{column: value})),
        ATTEMPTS: lambda: (
            record(
                opening(
                    LEASED,
                    **(
                        {
                            "phase": "'CLOSE'",
                            "state": "'DISPATCHED'",
                            "requested_state": "'DISPATCHED'",
                            "completed_at": "clock_timestamp()",
                        }
                        | {column: value}
                    ),
                )
            )
            if column != "attempt_no"
            else record(opening(LEASED, 0))
        ),
    }[table]()
    found = refusal(owner, statement)
    assert (found.sqlstate, found.constraint, found.table) == ("23514", constraint, table)


@pytest.mark.invariant("INV-OUT-002")
def test_a_lease_never_lasts_for_ever(owner: Connect) -> None:
    make_world(owner)
    found = refusal(
        owner,
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = 'infinity' WHERE {is_(LEASED)}",
    )
    assert (found.sqlstate, found.constraint) == ("23514", "ck_payment_outbox_pending_lease")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    ("moment", "accepted"),
    [
        ("9998-12-31 23:59:59.999999Z", True),
        ("0001-01-01 00:00:00Z", True),
        ("9999-01-01 00:00:00Z", False),
        ("20000-01-01 00:00:00Z", False),
        ("0001-12-31 23:59:59Z BC", False),
        ("infinity", False),
    ],
)
def test_an_item_is_due_in_a_year_that_every_calendar_has(
    owner: Connect, moment: str, accepted: bool, zone: str
) -> None:
    owner.execute(f"SET TimeZone = '{zone}'")
    row = {"sequence_id": "1", "next_attempt_at": f"timestamptz '{moment}'"}
    statement = enters({"sequence_id": "1"}, row)["INSERT"]
    found = attempt(owner, [statement])
    if accepted:
        assert found is None
    else:
        assert found is not None
        assert (found.sqlstate, found.constraint) == (
            "23514",
            "ck_payment_outbox_pending_next_attempt_at",
        )
    assert findings(owner) == []


@pytest.mark.parametrize("latency", ["-1"])
def test_a_latency_is_not_negative(owner: Connect, latency: str) -> None:
    make_world(owner)
    found = refusal(
        owner,
        insert(
            ATTEMPTS,
            (*ATTEMPT_COLUMNS, "latency_ms"),
            f"{closing(LEASED, 'DISPATCHED')}, {latency}",
        ),
    )
    assert (found.sqlstate, found.constraint) == ("23514", "ck_payment_outbox_attempts_latency_ms")


@pytest.mark.invariant("INV-OUT-005")
@pytest.mark.parametrize(
    "column", ["rail_reference", "rail_code", "error_code", "error_message", "latency_ms"]
)
def test_an_opening_says_nothing_of_an_end(owner: Connect, column: str) -> None:
    make_world(owner)
    found = refusal(owner, insert(ATTEMPTS, (*ATTEMPT_COLUMNS, column), f"{opening(FREE)}, '1'"))
    assert (found.sqlstate, found.constraint) == ("23514", "ck_payment_outbox_attempts_opening")


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("participant_id = ''", "ck_participant_outbox_sequences_participant_id"),
        ("next_sequence_id = 0", "ck_participant_outbox_sequences_next_sequence_id"),
    ],
)
def test_a_counter_has_an_owner_and_starts_at_one(
    owner: Connect, change: str, constraint: str
) -> None:
    make_world(owner)
    found = refusal(owner, f"UPDATE orchestration.{SEQUENCES} SET {change}")
    assert (found.sqlstate, found.constraint) == ("23514", constraint)


def test_an_item_whose_id_exists_is_left_to_the_primary_key(owner: Connect) -> None:
    make_world(owner)
    for form in enters({"outbox_id": FREE, "db_user": "'forger'"}).values():
        found = refusal(owner, form)
        assert (found.sqlstate, found.constraint) == ("23505", "pk_payment_outbox_items")


@pytest.mark.parametrize(
    "target", ["", "(outbox_id)", "(instruction_id, idempotency_key, redrive_no)"]
)
def test_on_conflict_do_nothing_leaves_an_item_as_it_is(owner: Connect, target: str) -> None:
    make_world(owner)
    before = picture(owner)
    row = insert(ITEMS, ITEM_COLUMNS, item(DONE, rail_type="'SWIFT'"))
    assert attempt(owner, [f"{row} ON CONFLICT {target} DO NOTHING"]) is None
    assert picture(owner) == before


# What the database sets.

MINIMAL = """
WITH i AS (
  INSERT INTO orchestration.payment_outbox_items
    (instruction_id, participant_id, idempotency_key, rail_type, payload)
  VALUES (%(instruction_id)s, %(participant_id)s, %(key)s, 'SEPA', %(payload)s)
  {}
  RETURNING *
)
INSERT INTO orchestration.payment_outbox_pending
  (outbox_id, instruction_id, participant_id, sequence_id, rail_type)
SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type FROM i
RETURNING sequence_id
"""


def enter(
    connection: Connect,
    key: str,
    *,
    participant_id: str = "p",
    instruction_id: str | None = None,
    payload: str = "{}",
    on_conflict: str = "",
) -> int | None:
    """An owner's INSERT that leaves out whatever has a default: the number, or None."""
    row = connection.execute(
        MINIMAL.format(on_conflict),
        {
            "instruction_id": instruction_id or INSTRUCTION_OF[participant_id],
            "participant_id": participant_id,
            "key": key,
            "payload": payload,
        },
    ).fetchone()
    return None if row is None else int(row[0])


def enqueue_by_function(connection: Connect, *keys: str, participant_id: str = "p") -> list[int]:
    rows = connection.execute(
        "SELECT sequence_id FROM orchestration.enqueue_payment_outbox(p_items => %s)",
        (
            json.dumps(
                [
                    {
                        "instruction_id": INSTRUCTION_OF[participant_id],
                        "participant_id": participant_id,
                        "idempotency_key": key,
                        "rail_type": "SEPA",
                        "payload": {},
                    }
                    for key in keys
                ]
            ),
        ),
    ).fetchall()
    return [row[0] for row in rows]


def findings(connection: Connect) -> list[tuple[Any, ...]]:
    """What verify_outbox finds: the word that leads a finding, the item, the participant."""
    rows = connection.execute(
        "SELECT split_part(finding, ':', 1), outbox_id::text, participant_id, detail"
        " FROM orchestration.verify_outbox() ORDER BY 1, 2, detail::text"
    ).fetchall()
    return [tuple(row) for row in rows]


@pytest.mark.invariant("INV-OUT-001", "INV-OUT-009")
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect) -> None:
    with owner.transaction():
        assert enter(owner, "k") == 1
        row = owner.execute(
            "SELECT i.redrive_no, i.redrive_of, i.max_attempts, octet_length(i.payload_salt),"
            " i.created_at BETWEEN now() AND clock_timestamp(), i.db_user = SESSION_USER,"
            " i.xact_id = pg_current_xact_id()::text::bigint, p.attempt_count,"
            " p.next_attempt_at BETWEEN now() AND clock_timestamp(), p.claimed_by"
            " FROM orchestration.payment_outbox_items i"
            " JOIN orchestration.payment_outbox_pending p USING (outbox_id)"
        ).fetchone()
    assert row == (0, None, 20, 16, True, True, True, 0, True, None)
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-001")
def test_an_item_that_is_imported_keeps_the_time_at_which_it_was_created(owner: Connect) -> None:
    imported = enqueue(sequence_id=1, created_at="CAST('2020-01-01Z' AS timestamptz)")
    assert attempt(owner, [imported]) is None
    assert scalar(owner, f"SELECT created_at = '2020-01-01Z' FROM orchestration.{ITEMS}")


@pytest.mark.invariant("INV-OUT-006")
def test_a_redrive_that_follows_a_rejected_item_is_an_item_like_any_other(owner: Connect) -> None:
    make_world(owner)
    statement = enqueue(
        redrive_no="1",
        redrive_of=f"CAST('{REJECTED}' AS uuid)",
        idempotency_key=f"'{REJECTED}'",
    )
    assert attempt(owner, [statement]) is None
    assert findings(owner) == [SPENT_IS_FOUND]


RETRIED_AND_SENT = (
    enqueue(NEW, 11),
    claim(NEW),
    record(closing(NEW, "RETRYABLE", outcome="'NOT_SENT'")),
    FREED.format(NEW),
    claim(NEW, 2),
    record(closing(NEW, "DISPATCHED", 2, lease_token=f"CAST('{OTHER_TOKEN}' AS uuid)")),
    leave(NEW),
)
"""An item whose first attempt certainly did not reach the rail, and whose second one did."""
REDRIVE_OF_SENT = enqueue(
    id_of(98),
    12,
    redrive_no="1",
    redrive_of=uuid_of(NEW),
    idempotency_key=f"'{NEW}'",
)


@pytest.mark.invariant("INV-OUT-006")
def test_a_dispatched_item_is_not_redriven_for_an_earlier_attempt_that_was_not_sent(
    owner: Connect,
) -> None:
    make_world(owner)
    assert attempt(owner, RETRIED_AND_SENT) is None
    for statement in (REDRIVE_OF_SENT, call("redrive_outbox_item", outbox_id=f"'{NEW}'")):
        assert_invariant(refusal(owner, statement), "INV-OUT-006", "P7005", ITEMS)
    drop(owner, REDRIVE_GUARD)
    assert attempt(owner, [REDRIVE_OF_SENT]) is None
    found = ("REDRIVE", id_of(98), "p", {"redrive_of": NEW})
    assert findings(owner) == [found, SPENT_IS_FOUND]


PAYLOADS = (
    "{}",
    '{"b": 1, "a": [1.0, 1.50, 1e3, true, null]}',
    '{"amount": "12,50 €", "name": "Zoë \\u6f22 😀", "path": "a\\\\b\\"c\\n"}',
    '{"deep": {"deeper": [[], {}, {"deepest": -0.0}]}}',
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payload_hash_is_what_anybody_computes(owner: Connect, payload: str) -> None:
    enter(owner, "by hand", payload=payload)
    owner.execute(
        "SELECT FROM orchestration.enqueue_payment_outbox(jsonb_build_array(jsonb_build_object("
        "'instruction_id', %s::text, 'participant_id', 'p', 'idempotency_key', 'by the function',"
        " 'rail_type', 'SEPA', 'payload', %s::jsonb)))",
        (INSTRUCTION, payload),
    )
    rows = owner.execute(
        "SELECT payload_salt, payload::text, payload_hash FROM orchestration.payment_outbox_items"
    ).fetchall()
    assert [payload_hash(salt, stored) for salt, stored, _ in rows] == [row[2] for row in rows]
    assert len({salt for salt, _, _ in rows}) == len(rows) == 2
    assert {len(salt) for salt, _, _ in rows} == {16}


def nested(levels: int) -> str:
    """A payload whose innermost value lies that many levels deep, in lists but for the first."""
    return '{"a": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}"


READABLE = {
    "nested to 500 levels": nested(500),
    "objects nested to 500 levels": '{"a":' * 500 + "1" + "}" * 500,
    "an integer of 1234 digits": '{"a": [{"b": ' + "9" * 1234 + "}]}",
    "a negative integer of 1234 digits": '{"a": -' + "9" * 1234 + "}",
    "a long fraction": '{"a": 0.' + "1" * 5000 + "}",
    "a small fraction": '{"a": 1e-5000, "b": "' + "x" * 1000 + '"}',
    "a string of digits": '{"a": "' + "9" * 5000 + '"}',
    "many members": json.dumps({str(n): [n, str(n), {"n": None}] for n in range(20_000)}),
}
UNREADABLE = {
    "nested to 501 levels": nested(501),
    "objects nested to 501 levels": '{"a":' * 501 + "1" + "}" * 501,
    "nested to 3000 levels": nested(3000),
    "many members and a deep one": json.dumps(
        {str(n): [n, str(n)] for n in range(20_000)} | {"deep": json.loads(nested(501))}
    ),
    "an integer of 1235 digits": '{"a": [{"b": 1' + "0" * 1234 + "}]}",
    "a negative integer of 1235 digits": '{"a": -1' + "0" * 1234 + "}",
    "an integer with an exponent": '{"a": 1e100000}',
    "an integer in a list after others": '{"a": [0, null, "x", true, {}, [], 1e5000]}',
}


@pytest.mark.parametrize("by", ["by hand", "by the function"])
@pytest.mark.parametrize(
    ("payload", "readable"),
    [
        pytest.param(payload, readable, id=name)
        for payloads, readable in ((READABLE, True), (UNREADABLE, False))
        for name, payload in payloads.items()
    ],
)
def test_a_payload_that_no_reader_gets_past_is_kept_out_of_the_queue(
    owner: Connect, login: Callable[[str], Connect], payload: str, readable: bool, by: str
) -> None:
    if by == "by hand":
        found = attempt(owner, [enqueue(sequence_id=1, **hashed(payload))])
    else:
        item = (
            f'{{"instruction_id": "{INSTRUCTION}", "participant_id": "p", "rail_type": "SEPA",'
            f' "idempotency_key": "k", "payload": {payload}}}'
        )
        found = attempt(
            login("executor"),
            [f"SELECT FROM orchestration.enqueue_payment_outbox('[{item}]')"],
        )
    if readable:
        assert found is None
        stored = scalar(owner, f"SELECT payload::text FROM orchestration.{ITEMS}")
        assert isinstance(json.loads(stored), dict)
    else:
        assert found is not None
        constraint = "ck_payment_outbox_items_payload" if by == "by hand" else "INV-API-001"
        assert (found.sqlstate, found.constraint) == ("23514", constraint)


def test_the_payload_hash_has_a_published_vector(owner: Connect) -> None:
    assert attempt(owner, [enqueue(sequence_id=1)]) is None
    found = scalar(owner, f"SELECT payload_hash FROM orchestration.{ITEMS}")
    assert (
        found == hashlib.sha256(b"orchestration.payload.v1" + bytes(16) + b'{"a": 1}').hexdigest()
    )


# INV-OUT-007: numbers and counters.


def numbers(connection: Connect, participant_id: str = "p") -> list[int]:
    rows = connection.execute(
        f"SELECT sequence_id FROM orchestration.{ITEMS} WHERE participant_id = %s ORDER BY 1",
        (participant_id,),
    ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.invariant("INV-OUT-007")
def test_numbers_have_no_gap_after_rollbacks_replays_and_conflicts(owner: Connect) -> None:
    assert enqueue_by_function(owner, "a", "b", "a") == [1, 2, 1]
    with owner.transaction(force_rollback=True):
        assert enqueue_by_function(owner, "c", "d") == [3, 4]
    assert enqueue_by_function(owner, "b", "c", "a") == [2, 3, 1]
    assert enter(owner, "d") == 4
    with owner.transaction(force_rollback=True):
        assert enter(owner, "e") == 5
    with owner.transaction():
        with owner.transaction(force_rollback=True):
            assert enter(owner, "e") == 5
        assert enter(owner, "f") == 5
    for _ in range(20):
        assert enter(owner, "d", on_conflict="ON CONFLICT DO NOTHING") is None
    assert enter(owner, "g", on_conflict="ON CONFLICT DO NOTHING") == 6
    assert enqueue_by_function(owner, "e") == [7]
    assert refusal(owner, enqueue(sequence_id=7)).sqlstate == "23505"
    assert enqueue_by_function(owner, "h", participant_id="q") == [1]
    assert numbers(owner) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(owner, "q") == [1]
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-007")
def test_a_conflict_that_stores_nothing_for_a_new_participant_leaves_its_first_number(
    owner: Connect,
) -> None:
    enter(owner, "k")
    found = enter(
        owner,
        "k",
        participant_id="q",
        instruction_id=INSTRUCTION,
        on_conflict="ON CONFLICT DO NOTHING",
    )
    assert found is None
    assert findings(owner) == []
    assert enter(owner, "l", participant_id="q") == 1


@pytest.mark.invariant("INV-OUT-007")
def test_many_rows_in_one_insert_are_numbered_in_turn(owner: Connect) -> None:
    owner.execute(
        """
        WITH i AS (
          INSERT INTO orchestration.payment_outbox_items
            (instruction_id, participant_id, idempotency_key, rail_type, payload)
          SELECT (ARRAY[%s, %s]::uuid[])[1 + n %% 2], 'p' || n %% 2, n::text, 'SEPA', '{}'
          FROM generate_series(1, 20) n
          RETURNING *
        )
        INSERT INTO orchestration.payment_outbox_pending
          (outbox_id, instruction_id, participant_id, sequence_id, rail_type)
        SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type FROM i
        """,
        (INSTRUCTION_OF["p0"], INSTRUCTION_OF["p1"]),
    )
    assert numbers(owner, "p0") == numbers(owner, "p1") == list(range(1, 11))
    assert findings(owner) == []
    assert enqueue_by_function(owner, "next", participant_id="p1") == [11]


@pytest.mark.invariant("INV-OUT-007")
@pytest.mark.parametrize("way", ["function", "insert", "redrive"])
@pytest.mark.parametrize("counter", ["behind", "missing"])
def test_a_counter_behind_its_items_is_read_again_from_them(
    owner: Connect, way: str, counter: str
) -> None:
    make_world(owner)
    if counter == "behind":
        owner.execute(f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 2")
    else:
        drop(owner, f"triggers/{SEQUENCES}__no_delete")
        owner.execute(f"DELETE FROM orchestration.{SEQUENCES}")
    assert [found[0] for found in findings(owner)] == ["SEQUENCE", "SPENT"]
    if way == "function":
        assert enqueue_by_function(owner, "new", "newer") == [11, 12]
    elif way == "insert":
        assert enter(owner, "new") == 11
    else:
        found = scalar(
            owner, "SELECT sequence_id FROM orchestration.redrive_outbox_item(%s)", (REJECTED,)
        )
        assert found == 11
    assert findings(owner) == [SPENT_IS_FOUND]


@pytest.mark.invariant("INV-OUT-007")
def test_numbers_that_are_supplied_in_turn_are_accepted(owner: Connect) -> None:
    ids = [id_of(number) for number in range(101, 107)]
    assert attempt(owner, [enqueue_all({ids[1]: 2, ids[0]: 1})]) is None
    assert attempt(owner, [enqueue(ids[2], 3)]) is None
    # A counter that is ahead is gone on from, and found.
    owner.execute(f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 6")
    assert attempt(owner, [enqueue(ids[5], 6)]) is None
    assert findings(owner) == [sequence(next_sequence_id=7, items=4, last=6)]
    # So a gap that was left is filled from its beginning.
    assert attempt(owner, [enqueue_all({ids[3]: 4, ids[4]: 5})]) is None
    assert findings(owner) == []
    assert enqueue_by_function(owner, "next") == [7]


@pytest.mark.invariant("INV-OUT-007")
def test_an_item_whose_number_is_supplied_makes_the_counter_that_is_missing(
    owner: Connect,
) -> None:
    statement = enqueue_all({id_of(101): 1, id_of(102): 2})
    assert attempt(owner, [statement]) is None
    of_another = {"participant_id": "'q'", "instruction_id": uuid_of(INSTRUCTION_OF["q"])}
    assert attempt(owner, [enqueue(id_of(103), 1, **of_another)]) is None
    counters = owner.execute(f"SELECT * FROM orchestration.{SEQUENCES} ORDER BY 1").fetchall()
    assert counters == [("p", 3), ("q", 2)]
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-007")
def test_an_item_by_hand_moves_no_counter_back(owner: Connect) -> None:
    enqueue_by_function(owner, "a", "b")
    owner.execute(f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 9")
    assert attempt(owner, [enqueue(sequence_id=3)]) is None
    assert scalar(owner, f"SELECT next_sequence_id FROM orchestration.{SEQUENCES}") == 9


@pytest.mark.invariant("INV-OUT-007")
def test_without_its_trigger_a_counter_stays_behind_and_is_found(owner: Connect) -> None:
    drop(owner, f"triggers/{ITEMS}__sequences")
    assert enqueue_by_function(owner, "a", "b") == [1, 2]
    (found,) = findings(owner)
    assert found[:3] == ("SEQUENCE", None, "p")
    assert found[3] == {"next_sequence_id": 1, "items": 2, "last": 2}
    assert enqueue_by_function(owner, "c") == [3]


@pytest.mark.invariant("INV-OUT-010")
@pytest.mark.parametrize("table", [ATTEMPTS, LATE_RESULTS])
def test_without_its_trigger_an_unknown_outcome_is_miscounted_and_is_found(
    owner: Connect, table: str
) -> None:
    if table == LATE_RESULTS:
        for statement in ended(NEW, 1, "FAILED", OTHER_INSTRUCTION):
            owner.execute(statement)
    drop(owner, f"triggers/{table}__unresolved")
    if table == ATTEMPTS:
        for statement in ended(NEW, 1, "FAILED", OTHER_INSTRUCTION):
            owner.execute(statement)
    else:
        owner.execute(late_result(outbox_id=uuid_of(NEW)))
    counted, unknown = (0, 1) if table == ATTEMPTS else (1, 0)
    detail = {"instruction_id": OTHER_INSTRUCTION, "unresolved": counted, "unknown": unknown}
    assert findings(owner) == [("UNRESOLVED", None, "p", detail)]


# INV-OUT-009: what verify_outbox finds.


def sequence(**detail: int) -> tuple[Any, ...]:
    return ("SEQUENCE", None, "p", detail)


SPENT_IS_FOUND = ("SPENT", SPENT, "p", {"attempt_count": 1, "max_attempts": 1})
"""What make_world leaves to be found."""


def follow(outbox_id: str, openings: int, closings: int, count: int | None) -> tuple[Any, ...]:
    detail = {"openings": openings, "closings": closings, "attempt_count": count}
    return ("ATTEMPTS", outbox_id, None, detail)


DAMAGE: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
    "a pending row removed": ((leave(FREE),), [("LOST", FREE, "p", {})]),
    "a terminal attempt removed": (
        (f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(DONE)}",),
        [("LOST", DONE, "p", {})],
    ),
    "a pending row kept after the end": (
        (insert(PENDING, PENDING_COLUMNS, pending(DONE, 5, attempt_count="1")),),
        [("TWICE", DONE, "p", {"state": "DISPATCHED"})],
    ),
    "a pending row of another rail": (
        (f"UPDATE orchestration.{PENDING} SET rail_type = 'SWIFT' WHERE {is_(FREE)}",),
        [("STRANGER", FREE, "p", {})],
    ),
    "a pending row of no item": (
        (insert(PENDING, PENDING_COLUMNS, pending()),),
        [("STRANGER", NEW, "p", {})],
    ),
    "attempts of no item": (
        (record(opening(NEW)), record(closing(NEW, "DISPATCHED"))),
        [
            ("ORPHAN", NEW, None, {"attempt_no": 1, "phase": "CLOSE"}),
            ("ORPHAN", NEW, None, {"attempt_no": 1, "phase": "OPEN"}),
        ],
    ),
    "an opening removed": (
        (f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(RETRIED)} AND phase = 'OPEN'",),
        [follow(RETRIED, 0, 1, 1)],
    ),
    "a closing removed": (
        (f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(RETRIED)} AND phase = 'CLOSE'",),
        [follow(RETRIED, 1, 0, 1)],
    ),
    "an attempt skipped": (
        (record(opening(RETRIED, 3)), record(closing(RETRIED, "RETRYABLE", 3))),
        [follow(RETRIED, 2, 2, 1)],
    ),
    "an attempt after the end": (
        (record(opening(DONE, 2)), record(closing(DONE, "RETRYABLE", 2))),
        [
            ("ATTEMPT", DONE, None, {"attempt_no": 2, "phase": "CLOSE"}),
            ("ATTEMPT", DONE, None, {"attempt_no": 2, "phase": "OPEN"}),
        ],
    ),
    "a closing by another worker": (
        (
            f"UPDATE orchestration.{ATTEMPTS} SET worker_id = 'z'"
            f" WHERE {is_(RETRIED)} AND phase = 'CLOSE'",
        ),
        [("ATTEMPT", RETRIED, None, {"attempt_no": 1, "phase": "CLOSE"})],
    ),
    "a redrive of what did not fail": (
        (
            f"UPDATE orchestration.{ITEMS} SET redrive_no = 1, redrive_of = '{DONE}'"
            f" WHERE {is_(FREE)}",
        ),
        [("REDRIVE", FREE, "p", {"redrive_of": DONE})],
    ),
    "a lease without an opening after other attempts": (
        (lease(RETRIED),),
        [follow(RETRIED, 1, 1, 2)],
    ),
    "a lease without an opening": ((lease(FREE),), [follow(FREE, 0, 0, 1)]),
    "a count of attempts that were not made": (
        (f"UPDATE orchestration.{PENDING} SET attempt_count = 5 WHERE {is_(FREE)}",),
        [follow(FREE, 0, 0, 5)],
    ),
    "a count of attempts set back": (
        (f"UPDATE orchestration.{PENDING} SET attempt_count = 0 WHERE {is_(RETRIED)}",),
        [follow(RETRIED, 1, 1, 0)],
    ),
    "a lease given up without a closing": (
        (FREED.format(LEASED),),
        [follow(LEASED, 1, 0, 1)],
    ),
    "an item and its traces removed": (
        (
            f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(DONE)}",
            f"DELETE FROM orchestration.{ITEMS} WHERE {is_(DONE)}",
        ),
        [sequence(next_sequence_id=11, items=9, last=10)],
    ),
    "a counter ahead": (
        (f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 20",),
        [sequence(next_sequence_id=20, items=10, last=10)],
    ),
    "a number changed": (
        (f"UPDATE orchestration.{ITEMS} SET sequence_id = 12 WHERE {is_(DONE)}",),
        [sequence(next_sequence_id=11, items=10, last=12)],
    ),
}


@pytest.mark.invariant("INV-OUT-009", "INV-OUT-007")
@pytest.mark.parametrize(("statements", "expected"), DAMAGE.values(), ids=DAMAGE.keys())
def test_verify_outbox_finds_what_only_a_superuser_can_do(
    owner: Connect,
    login: Callable[[str], Connect],
    statements: tuple[str, ...],
    expected: list[tuple[Any, ...]],
) -> None:
    make_world(owner)
    for table in TABLES:
        owner.execute(f"ALTER TABLE orchestration.{table} DISABLE TRIGGER USER")
    assert attempt(owner, statements) is None
    found = findings(login("auditor"))
    assert [one for one in found if one != SPENT_IS_FOUND] == expected
    assert SPENT_IS_FOUND in found


def unauthorized(instruction_id: str, *outbox_ids: str) -> list[tuple[Any, ...]]:
    return [("UNAUTHORIZED", id, "p", {"instruction_id": instruction_id}) for id in outbox_ids]


def untimely(state: str, dispatched: int, unknown: int) -> list[tuple[Any, ...]]:
    detail = {
        "instruction_id": OTHER_INSTRUCTION,
        "state": state,
        "sent": dispatched,
        "unknown": unknown,
    }
    return [("ENDED", None, "p", detail)]


LIVE = (FREE, LEASED, EXPIRED, RETRIED, LAST, LAST_EXPIRED, SPENT)

UNKEPT: dict[str, tuple[str, tuple[str, ...], list[tuple[Any, ...]]]] = {
    **{
        f"an item of {what} instruction": (
            OPEN,
            (enqueue(instruction_id=uuid_of(id)),),
            unauthorized(id, NEW),
        )
        for what, id in {
            "a received": RECEIVED_INSTRUCTION,
            "a failed": FAILED_INSTRUCTION,
            "no": NO_INSTRUCTION,
            "another participant's": INSTRUCTION_OF["q"],
        }.items()
    },
    "an instruction completed over its live items": (
        OPEN,
        moves(INSTRUCTION, "EXECUTING", "COMPLETED"),
        unauthorized(INSTRUCTION, *LIVE),
    ),
    "an instruction completed without an item": (
        END_GUARD,
        moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        untimely("COMPLETED", 0, 0),
    ),
    "an instruction completed with an unknown item": (
        END_GUARD,
        (
            *ended(NEW, 11, "FAILED", OTHER_INSTRUCTION),
            *moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        ),
        untimely("COMPLETED", 0, 1),
    ),
    "an instruction failed with an unknown item": (
        END_GUARD,
        (*ended(NEW, 11, "FAILED", OTHER_INSTRUCTION), *moves(OTHER_INSTRUCTION, "FAILED")),
        untimely("FAILED", 0, 1),
    ),
    "an instruction failed with a dispatched item": (
        END_GUARD,
        (*ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION), *moves(OTHER_INSTRUCTION, "FAILED")),
        untimely("FAILED", 1, 0),
    ),
}


@pytest.mark.invariant("INV-INS-005", "INV-INS-006")
@pytest.mark.parametrize(("without", "statements", "expected"), UNKEPT.values(), ids=UNKEPT.keys())
def test_verify_outbox_finds_instructions_that_are_not_as_their_items(
    owner: Connect,
    login: Callable[[str], Connect],
    without: str,
    statements: tuple[str, ...],
    expected: list[tuple[Any, ...]],
) -> None:
    make_world(owner)
    drop(owner, without)
    assert attempt(owner, statements) is None
    assert [one for one in findings(login("auditor")) if one != SPENT_IS_FOUND] == expected


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-005", "INV-INS-006")
@pytest.mark.parametrize(
    ("statements", "expected"),
    [case[1:] for case in UNKEPT.values() if case[0] == OPEN],
    ids=[name for name, case in UNKEPT.items() if case[0] == OPEN],
)
def test_verify_outbox_finds_what_the_foreign_key_lets_in_in_replica_mode(
    superuser: Connect,
    login: Callable[[str], Connect],
    statements: tuple[str, ...],
    expected: list[tuple[Any, ...]],
) -> None:
    make_world(superuser)
    superuser.execute("SET session_replication_role = replica")
    assert attempt(superuser, statements) is None
    superuser.execute(
        f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 1 + ("
        f"SELECT max(sequence_id) FROM orchestration.{ITEMS})"
    )
    assert [one for one in findings(login("auditor")) if one != SPENT_IS_FOUND] == expected


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize(
    "statements",
    [
        moves(OTHER_INSTRUCTION, "FAILED"),
        moves(OTHER_INSTRUCTION, "EXECUTING", "FAILED"),
        (
            *ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION),
            *ended(id_of(98), 12, "FAILED", OTHER_INSTRUCTION),
            *moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        ),
        (
            enqueue(NEW, 11, instruction_id=uuid_of(OTHER_INSTRUCTION)),
            claim(NEW),
            record(closing(NEW, "FAILED", outcome="'REJECTED'")),
            leave(NEW),
            *moves(OTHER_INSTRUCTION, "FAILED"),
        ),
    ],
    ids=["no item", "no item, executing", "one dispatched and one unknown", "one rejected"],
)
def test_an_instruction_ends_as_its_items_have_ended(
    owner: Connect, statements: tuple[str, ...]
) -> None:
    make_world(owner)
    assert attempt(owner, statements) is None
    assert findings(owner) == [SPENT_IS_FOUND]


@pytest.mark.invariant("INV-OUT-009", "INV-OUT-007")
def test_verify_outbox_finds_nothing_where_all_is_well(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    assert findings(owner) == []
    make_world(owner)
    for role in ("auditor", "control"):
        assert findings(login(role)) == [SPENT_IS_FOUND]
    for table in (ATTEMPTS, PENDING):
        owner.execute(f"ALTER TABLE orchestration.{table} DISABLE TRIGGER USER")
    owner.execute(
        f"UPDATE orchestration.{ATTEMPTS} SET state = 'FAILED', outcome = 'NOT_SENT'"
        f" WHERE {is_(SPENT)} AND phase = 'CLOSE'"
    )
    owner.execute(leave(SPENT))
    for role in ("auditor", "control"):
        assert findings(login(role)) == []


# What an owner's direct change must not do to the functions.


@pytest.mark.invariant("INV-OUT-009", "INV-OUT-005")
def test_a_count_of_attempts_that_were_not_made_does_not_jam_the_claims_of_others(
    owner: Connect,
) -> None:
    enqueue_by_function(owner, "a", "b")
    attempt(
        owner,
        [f"UPDATE orchestration.{PENDING} SET attempt_count = 5 WHERE sequence_id = 1"],
    )
    claimed = owner.execute(
        "SELECT sequence_id FROM orchestration.claim_outbox_batch('w', 10, interval '1 minute')"
    ).fetchall()
    assert (2,) in claimed


# The functions, by hosts in any language.


def call(function: str, **arguments: str) -> str:
    listed = ", ".join(f"p_{name} => {value}" for name, value in arguments.items())
    return f"SELECT * FROM orchestration.{function}({listed})"


TOO_MANY = "(SELECT jsonb_agg(jsonb_build_object('outbox_id', n)) FROM generate_series(1, 10001) n)"


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    "statement",
    [
        call("enqueue_payment_outbox", items="NULL"),
        call("enqueue_payment_outbox", items="'{}'"),
        call("enqueue_payment_outbox", items=TOO_MANY),
        call("complete_outbox_attempt", completions="NULL"),
        call("complete_outbox_attempt", completions="'{}'"),
        call("complete_outbox_attempt", completions=TOO_MANY),
        *(
            call(
                "claim_outbox_batch",
                **({"worker_id": "'w'", "batch_size": "1", "lease": "'1 minute'"} | bad),
            )
            for bad in (
                {"worker_id": "NULL"},
                {"worker_id": "''"},
                {"batch_size": "NULL"},
                {"batch_size": "0"},
                {"batch_size": "-1"},
                {"batch_size": "10001"},
                {"lease": "NULL"},
                {"lease": "'0.999999 seconds'"},
                {"lease": "'-1 hour'"},
                {"lease": "'1 day 0.000001 seconds'"},
                {"lease": "'-100 years 36525 days'"},
                {"lease": "'100 years -36523 days'"},
                {"max_bytes": "NULL"},
                {"max_bytes": "0"},
                {"max_bytes": "-1"},
                {"max_bytes": "1073741825"},
            )
        ),
        call("complete_outbox_attempt", completions="'[]'", partial="NULL"),
        *(
            call(
                "enqueue_payment_outbox",
                items=f"jsonb_build_array(jsonb_build_object('instruction_id', '{INSTRUCTION}',"
                " 'participant_id', 'p', 'idempotency_key', 'k', 'rail_type', 'SEPA',"
                f" 'payload', jsonb '{{}}', 'due_at', {due_at}))",
            )
            for due_at in ("clock_timestamp() + interval '400 days 1 minute'", "'infinity'")
        ),
        *(
            call(
                "renew_outbox_lease",
                outbox_id=f"'{LEASED}'",
                lease_token=f"'{TOKEN}'",
                worker_id="'w'",
                lease=bad,
            )
            for bad in (
                *("NULL", "'0.999999 seconds'", "'1 day 0.000001 seconds'"),
                *("'-100 years 36525 days'", "'100 years -36523 days'"),
            )
        ),
        *(
            call(
                "complete_outbox_attempt",
                completions=f"jsonb_build_array(jsonb_build_object('outbox_id', '{LEASED}',"
                f" 'lease_token', '{TOKEN}', 'worker_id', 'w', 'state', 'RETRYABLE',"
                f" 'retry_in', '{bad}'))",
            )
            for bad in (
                *("-1 microsecond", "100 years 0.000001 seconds"),
                *("-100 years 36524 days", "100 years 1 day"),
            )
        ),
        *(call("repair_expired_leases", limit=bad) for bad in ("NULL", "-1", "10001")),
    ],
)
def test_an_argument_out_of_bounds_is_refused(owner: Connect, statement: str) -> None:
    make_world(owner)
    before = picture(owner)
    found = refusal(owner, statement)
    assert (found.sqlstate, found.constraint) == ("22023", "INV-API-001")
    assert found.message.startswith("INV-API-001: ")
    assert isinstance(found.keys, dict)
    assert found.hint
    assert picture(owner) == before


def lasting(function: str, interval: str) -> str:
    """The call that claims, renews or retries for so long."""
    return {
        "claim": call(
            "claim_outbox_batch",
            **{"worker_id": "'w'", "batch_size": "10", "lease": f"'{interval}'"},
        ),
        "renew": call(
            "renew_outbox_lease",
            outbox_id=f"'{LEASED}'",
            lease_token=f"'{TOKEN}'",
            worker_id="'w'",
            lease=f"'{interval}'",
        ),
        "retry": call(
            "complete_outbox_attempt",
            completions=f"jsonb_build_array(jsonb_build_object('outbox_id', '{LEASED}',"
            f" 'lease_token', '{TOKEN}', 'worker_id', 'w', 'state', 'RETRYABLE',"
            f" 'retry_in', '{interval}'))",
        ),
    }[function]


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("function", ["claim", "renew", "retry"])
@pytest.mark.parametrize("interval", ["infinity", "-infinity"])
def test_an_infinite_time_is_refused(owner: Connect, function: str, interval: str) -> None:
    if owner.info.server_version < 170000:
        pytest.skip("not run: before 17 no interval is infinite")
    make_world(owner)
    found = refusal(owner, lasting(function, interval))
    assert (found.sqlstate, found.constraint) == ("22023", "INV-API-001")


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("function", "id", "interval", "seconds"),
    [
        # By the calendar, this lasts 525 days and the next lies in the past.
        ("claim", FREE, "100 years -36524 days", 86_400),
        ("claim", FREE, "-100 years 36526 days", 86_400),
        ("claim", FREE, "-1 month 30 days 1 second", 1),
        ("claim", FREE, "1 day", 86_400),
        ("renew", LEASED, "100 years -36524 days", 86_400),
        ("renew", LEASED, "-100 years 36526 days", 86_400),
        ("retry", LEASED, "-100 years 36526 days", 86_400),
        ("retry", LEASED, "1 month", 30 * 86_400),
        ("retry", LEASED, "1 year", 365.25 * 86_400),
        ("retry", LEASED, "100 years", 36_525 * 86_400),
        ("retry", LEASED, "0.000001 seconds", 0.000001),
    ],
)
def test_a_time_lasts_the_seconds_it_was_judged_by(
    owner: Connect, function: str, id: str, interval: str, seconds: float, zone: str
) -> None:
    make_world(owner)
    owner.execute(f"SET TimeZone = '{zone}'")
    owner.execute(lasting(function, interval))
    until = "next_attempt_at" if function == "retry" else "lease_expires_at"
    assert scalar(
        owner,
        f"SELECT extract(epoch FROM {until}) - extract(epoch FROM clock_timestamp())"
        f" BETWEEN %s::numeric - 60 AND %s::numeric"
        f" FROM orchestration.{PENDING} WHERE {is_(id)}",
        (seconds, seconds),
    )


@pytest.mark.invariant("INV-API-001", "INV-OUT-002")
@pytest.mark.parametrize(
    ("missing", "sqlstate"),
    [("outbox_id", "P0002"), ("lease_token", "P7002"), ("worker_id", "P7002"), ("lease", "22023")],
)
def test_a_renewal_without_an_argument_is_refused(
    owner: Connect, missing: str, sqlstate: str
) -> None:
    make_world(owner)
    given = {
        "outbox_id": f"'{LEASED}'",
        "lease_token": f"'{TOKEN}'",
        "worker_id": "'w'",
        "lease": "'1 minute'",
    }
    assert refusal(owner, call("renew_outbox_lease", **(given | {missing: "NULL"}))).sqlstate == (
        sqlstate
    )


@pytest.mark.invariant("INV-OUT-003")
@pytest.mark.parametrize("partial", ["false", "true"])
def test_a_failed_completion_without_an_outcome_is_refused_by_the_function(
    owner: Connect, partial: str
) -> None:
    make_world(owner)
    completion = {"outbox_id": LEASED, "lease_token": TOKEN, "worker_id": "w", "state": "FAILED"}
    found = refusal(
        owner,
        call(
            "complete_outbox_attempt",
            completions=f"'{json.dumps([completion])}'::jsonb",
            partial=partial,
        ),
    )
    assert_invariant(found, "INV-OUT-003", "22023", ATTEMPTS)
    assert (found.column, found.keys) == ("outcome", {"outbox_id": LEASED})


@pytest.mark.invariant("INV-API-002")
def test_a_redrive_of_no_item_is_refused(owner: Connect) -> None:
    found = refusal(owner, call("redrive_outbox_item", outbox_id="NULL"))
    assert_invariant(found, "INV-API-002", "P0002", ITEMS)


@pytest.mark.invariant("INV-API-001")
def test_an_item_is_due_within_400_days(owner: Connect) -> None:
    item = {
        "instruction_id": INSTRUCTION,
        "participant_id": "p",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    owner.execute(
        "SELECT FROM orchestration.enqueue_payment_outbox(jsonb_build_array(%s::jsonb"
        " || jsonb_build_object('due_at', clock_timestamp() + interval '399 days 23 hours')))",
        (json.dumps(item),),
    )
    assert len(picture(owner)) > 0


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize(
    "statement",
    [
        call("redrive_outbox_item", outbox_id=f"'{NEW}'"),
        call(
            "renew_outbox_lease",
            outbox_id=f"'{NEW}'",
            lease_token=f"'{TOKEN}'",
            worker_id="'w'",
            lease="'1 minute'",
        ),
        *(
            call(
                "complete_outbox_attempt",
                completions=f"jsonb_build_array(jsonb_build_object('outbox_id', '{NEW}',"
                f" 'lease_token', '{TOKEN}', 'worker_id', 'w', 'state', 'DISPATCHED'))",
                partial=partial,
            )
            for partial in ("false", "true")
        ),
    ],
)
def test_an_act_on_an_unknown_item_is_refused(owner: Connect, statement: str) -> None:
    make_world(owner)
    found = refusal(owner, statement)
    assert_invariant(found, "INV-API-002", "P0002", ITEMS)
    assert (found.column, found.keys) == ("outbox_id", {"outbox_id": NEW})


@pytest.mark.parametrize(
    "missing", ["instruction_id", "participant_id", "idempotency_key", "rail_type", "payload"]
)
def test_an_item_without_a_needed_value_is_refused_by_its_column(
    owner: Connect, missing: str
) -> None:
    values = {
        "instruction_id": INSTRUCTION,
        "participant_id": "p",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    del values[missing]
    found = refusal(
        owner, "SELECT FROM orchestration.enqueue_payment_outbox(%s)", (json.dumps([values]),)
    )
    assert (found.sqlstate, found.column) == ("23502", missing)


def claimed(connection: Connect, batch_size: int, max_bytes: int = 16 * 2**20) -> list[str]:
    """The ids that a claim hands out, in its order."""
    rows = connection.execute(
        "SELECT outbox_id::text FROM orchestration.claim_outbox_batch(p_worker_id => 'w2',"
        " p_batch_size => %s, p_lease => interval '1 hour', p_max_bytes => %s)",
        (batch_size, max_bytes),
    ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.invariant("INV-OUT-003", "INV-OUT-008")
def test_a_claim_takes_what_is_due_and_no_more_than_asked(owner: Connect) -> None:
    make_world(owner)
    owner.execute(enqueue(next_ := id_of(98), 11))
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET next_attempt_at = now() + interval '1 minute'"
        f" WHERE outbox_id = '{next_}'"
    )
    # LAST_EXPIRED ends at its ceiling and takes no place in a batch. SPENT cannot be claimed.
    assert claimed(owner, 2) == [EXPIRED, FREE]
    assert claimed(owner, 2) == [RETRIED]
    assert claimed(owner, 2) == []
    assert findings(owner) == [SPENT_IS_FOUND]
    assert (
        scalar(
            owner,
            f"SELECT outcome FROM orchestration.payment_outbox_status WHERE {is_(LAST_EXPIRED)}",
        )
        == "UNKNOWN"
    )


def fill(
    owner: Connect, count: int, *, first: int = 1, max_attempts: int = 20, payload: str = "{}"
) -> list[str]:
    """Items of participant p that are due one microsecond after the other."""
    return [
        row[0]
        for row in owner.execute(
            "SELECT outbox_id::text FROM orchestration.enqueue_payment_outbox((SELECT jsonb_agg("
            "jsonb_build_object('instruction_id', %s::uuid, 'participant_id', 'p',"
            " 'idempotency_key', 'fill ' || n, 'rail_type', 'SEPA', 'payload', %s::jsonb,"
            " 'max_attempts', %s::integer,"
            " 'due_at', timestamptz '2020-01-01 00:00:00Z' + n * interval '1 microsecond')"
            " ORDER BY n) FROM generate_series(%s::integer, %s::integer) n))",
            (INSTRUCTION, payload, max_attempts, first, first + count - 1),
        ).fetchall()
    ]


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_takes_what_has_been_due_longest_first(owner: Connect) -> None:
    later, sooner = fill(owner, 2, first=3), fill(owner, 2)
    assert claimed(owner, 3) == [*sooner, later[0]]
    assert claimed(owner, 3) == [later[1]]


@pytest.mark.invariant("INV-OUT-003", "INV-OUT-008")
@pytest.mark.parametrize("dead_first", [True, False])
def test_a_claim_fills_its_batch_though_it_ends_items(owner: Connect, dead_first: bool) -> None:
    """The reported case: 5 due, 7 dead and batches of 3 gave 1, 0, 2, 3."""
    dead = fill(owner, 7, first=1 if dead_first else 6, max_attempts=1)
    assert claimed(owner, 7) == dead
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = next_attempt_at"
        " + interval '1 microsecond'"
    )
    due = fill(owner, 5, first=8 if dead_first else 1)
    assert [claimed(owner, 3), claimed(owner, 3), claimed(owner, 3)] == [due[:3], due[3:], []]
    ended = owner.execute(
        f"SELECT outbox_id::text FROM orchestration.{ATTEMPTS} WHERE state = 'FAILED'"
        " AND outcome = 'UNKNOWN' AND error_code = 'RETRY_CEILING_EXCEEDED' ORDER BY 1"
    ).fetchall()
    assert [row[0] for row in ended] == sorted(dead)
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-008", "INV-OUT-009")
def test_what_no_claim_can_close_is_stepped_around(owner: Connect) -> None:
    """An expired lease whose attempt was opened under another token, as only an owner can make."""
    make_world(owner)
    owner.execute(f"ALTER TABLE orchestration.{PENDING} DISABLE TRIGGER guard_update")
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET lease_token = '{OTHER_TOKEN}' WHERE {is_(EXPIRED)}"
    )
    owner.execute(f"ALTER TABLE orchestration.{PENDING} ENABLE ALWAYS TRIGGER guard_update")
    assert claimed(owner, 2) == [FREE, RETRIED]
    repaired = owner.execute(call("repair_expired_leases", limit="10")).fetchall()
    assert repaired == []
    assert scalar(
        owner, f"SELECT lease_token FROM orchestration.{PENDING} WHERE {is_(EXPIRED)}"
    ) == UUID(OTHER_TOKEN)


@pytest.mark.invariant("INV-OUT-008")
@pytest.mark.parametrize(
    ("max_bytes", "count"), [(1, 1), (10_015, 1), (10_016, 1), (20_031, 1), (20_032, 2)]
)
def test_a_claim_ends_before_its_payloads_exceed_the_budget(
    owner: Connect, max_bytes: int, count: int
) -> None:
    # The text of the payload is {"memo": "x..."}, 10,012 bytes and more; stored it is far smaller.
    made = fill(owner, 3, payload=json.dumps({"memo": "x" * 10_004}))
    length = scalar(owner, f"SELECT octet_length(payload::text) FROM orchestration.{ITEMS} LIMIT 1")
    assert length == 10_016
    before = picture(owner)
    assert claimed(owner, 3, max_bytes) == made[:count]
    rest = [str(row[0]) for row in picture(owner) if row in before]
    assert set(made[count:]) <= set(rest)
    assert claimed(owner, 3) == made[count:]


INDEX = "ix_payment_outbox_pending_next_attempt_at_outbox_id"


def met(connection: Connect, act: Callable[[], object]) -> int:
    """How many pending rows `act` reads through the index of due items; it is rolled back."""
    counter = f"SELECT pg_stat_get_xact_tuples_fetched('orchestration.{INDEX}'::regclass)"
    with connection.transaction(force_rollback=True):
        before = scalar(connection, counter)
        act()
        return int(scalar(connection, counter) - before)


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_reads_no_item_that_is_scheduled_for_later(owner: Connect) -> None:
    due = fill(owner, 5)
    fill(owner, 2000, first=6)
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET next_attempt_at = clock_timestamp()"
        " + interval '1 day' WHERE outbox_id <> ALL (%s::uuid[])",
        (due,),
    )
    assert met(owner, lambda: claimed(owner, 3)) == 3
    assert met(owner, lambda: claimed(owner, 100)) == 5
    owner.execute(f"UPDATE orchestration.{PENDING} SET lease_expires_at = NULL")
    repair = call("repair_expired_leases", limit="100")
    assert met(owner, lambda: owner.execute(repair)) <= 5


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-008")
def test_long_leases_are_passed_over_once_and_then_set_apart(owner: Connect) -> None:
    leased = fill(owner, 3000)
    assert claimed(owner, 3000) == leased
    fill(owner, 10, first=3001)
    assert met(owner, lambda: claimed(owner, 1)) >= 3001
    for _ in range(3):
        assert len(claimed(owner, 1)) == 1
    assert met(owner, lambda: claimed(owner, 1)) <= 1010
    # They are found again when their leases end, or are made to end earlier.
    assert scalar(
        owner,
        f"SELECT bool_and(next_attempt_at <= lease_expires_at) FROM orchestration.{PENDING}",
    )
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = clock_timestamp()"
        f" - interval '1 minute' WHERE outbox_id = '{leased[0]}'"
    )
    assert claimed(owner, 1) != [leased[0]]
    assert leased[0] in claimed(owner, 10)
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_updates_every_row_on_its_page(owner: Connect) -> None:
    fill(owner, 1000)
    counters = (
        f"SELECT pg_stat_get_xact_tuples_updated('orchestration.{PENDING}'::regclass),"
        f" pg_stat_get_xact_tuples_hot_updated('orchestration.{PENDING}'::regclass)"
    )
    with owner.transaction():
        updated, hot = owner.execute(counters).fetchall()[0]
        for _ in range(4):
            assert len(claimed(owner, 250)) == 250
        updated_now, hot_now = owner.execute(counters).fetchall()[0]
    assert (updated_now - updated, hot_now - hot) == (1000, 1000)

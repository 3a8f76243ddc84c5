"""Every field of an input reaches its row, and a column that is added later cannot be forgotten.

The tests read the fields of the models, the attributes of the types and the columns of the tables.
They do not list them.
"""

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from orchestration.records import (
    ClaimedItem,
    Completion,
    ExecutionAttempt,
    Input,
    InstructionRecord,
    InterventionRecord,
    KillSwitchRecord,
    LateResultRecord,
    NewAttestation,
    NewInstruction,
    NewOutboxItem,
    OutboxItemRecord,
    PolicyVersionRecord,
    Record,
    TransactionAttempt,
)
from orchestration.repo import AttestationRepository, InstructionRepository, OutboxRepository
from orchestration.repo.outbox import LEASE
from tests.support import Connect, digest, new_instruction_id, refusal

pytestmark = pytest.mark.instructed

Sessions = Callable[[str], Session]

LONG: Final = "x" * 4001
SPARE: Final[tuple[object, ...]] = (
    "a text",
    "NOT_SENT",
    digest("a hash"),
    "EUR",
    7,
    {"an": "object"},
    timedelta(seconds=3),
    date(2026, 7, 1),
    uuid4(),
)
"""A field without a value below gets the first of these that it accepts."""
NOT_STORED: Final = {"due_at", "retry_in"}
"""Fields that set the time of the next attempt."""
SET_ANEW: Final = {
    "outbox_id",
    "sequence_id",
    "redrive_no",
    "redrive_of",
    "created_at",
    "db_user",
    "xact_id",
}
"""The columns in which a redrive differs from its predecessor."""
KEY_AND_PAYLOAD: Final = {
    "instruction_id",
    "participant_id",
    "idempotency_key",
    "payload",
    "payload_salt",
    "payload_hash",
}
"""Columns that other rules protect too."""


def fields(model: type[Input] | type[Record]) -> set[str]:
    return set(model.model_fields)


def filled(model: type[Input], **given: Any) -> dict[str, Any]:
    """A value for every field of the model."""
    return {name: spare(model, name) for name in fields(model) - given.keys()} | given


def spare(model: type[Input], name: str) -> object:
    field = model.model_fields[name]
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, *field.metadata, name])
    for value in SPARE:
        try:
            adapter.validate_python(value)
        except ValidationError:
            continue
        return value
    raise AssertionError(f"{model.__name__}.{name} needs a value in SPARE")


def item() -> NewOutboxItem:
    values = filled(
        NewOutboxItem,
        instruction_id=new_instruction_id("bank-a"),
        participant_id="bank-a",
        idempotency_key="k",
        rail_type="SEPA",
        due_at=None,
    )
    return NewOutboxItem(**values)


def columns(connection: Connect, relation: str) -> list[str]:
    found = connection.execute(
        "SELECT attname::text FROM pg_attribute"
        " WHERE attrelid = to_regclass('orchestration.' || %s) AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
        (relation,),
    ).fetchall()
    assert found
    return [name for (name,) in found]


def row(connection: Connect, table: str, **key: object) -> dict[str, Any]:
    condition = " AND ".join(f"{name} = %({name})s" for name in key)
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"SELECT * FROM orchestration.{table} WHERE {condition}", key)  # type: ignore[arg-type]
        (found,) = cursor.fetchall()
    return found


def assert_stored(given: Input, stored: Mapping[str, Any]) -> None:
    expected = {name: value for name, value in given if name not in NOT_STORED}
    assert {name: stored[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("type_", "keys"),
    [
        ("new_attestation", fields(NewAttestation)),
        ("new_instruction", fields(NewInstruction)),
        ("new_outbox_item", fields(NewOutboxItem)),
        ("outbox_completion", fields(Completion) | LEASE),
    ],
)
def test_a_type_has_the_fields_of_its_model(owner: Connect, type_: str, keys: set[str]) -> None:
    assert set(columns(owner, type_)) == keys


@pytest.mark.parametrize(
    ("relation", "record", "unread"),
    [
        ("payment_outbox_claimed", ClaimedItem, set[str]()),
        ("payment_outbox_item_result", OutboxItemRecord, set[str]()),
        (
            "payment_outbox_late_result_result",
            LateResultRecord,
            {"lease_token", "instruction_version", "xact_id"},
        ),
        ("payment_outbox_intervention_result", InterventionRecord, {"xact_id"}),
        (
            "instruction_result",
            InstructionRecord,
            {
                *("debtor_account", "creditor_account", "payload", "payload_salt"),
                *("xact_id", "open", "unresolved"),
            },
        ),
        ("policy_version_result", PolicyVersionRecord, {"xact_id"}),
        ("kill_switch_result", KillSwitchRecord, {"xact_id"}),
        ("execution_attempt_result", ExecutionAttempt, {"xact_id"}),
        ("transaction_attempt_result", TransactionAttempt, {"xact_id"}),
    ],
)
def test_a_record_has_the_columns_that_its_functions_return(
    owner: Connect, relation: str, record: type[Record], unread: set[str]
) -> None:
    assert set(columns(owner, relation)) == fields(record) | unread


def test_a_worker_gets_every_stored_field_of_the_item() -> None:
    assert fields(NewOutboxItem) - NOT_STORED <= fields(ClaimedItem)
    assert fields(NewOutboxItem) - NOT_STORED - {"payload"} <= fields(OutboxItemRecord)


def test_an_attestation_is_stored_with_every_field(session: Sessions, owner: Connect) -> None:
    new = NewAttestation(**filled(NewAttestation, policy_version_id="instructions"))
    ingest = session("ingest")
    record = AttestationRepository(ingest).append(new)
    ingest.commit()
    assert_stored(new, row(owner, "ingress_attestations", id=record.id))


def test_an_instruction_is_stored_with_every_field(session: Sessions, owner: Connect) -> None:
    (attestation_id,) = owner.execute(
        "SELECT id FROM orchestration.ingress_attestations LIMIT 1"
    ).fetchone() or (None,)
    given = filled(NewInstruction, attestation_id=attestation_id, policy_version_id="instructions")
    new = NewInstruction(**given)
    ingest = session("ingest")
    record = InstructionRepository(ingest).receive(new)
    ingest.commit()
    assert_stored(new, row(owner, "instructions", id=record.id))


def claimed(outbox: OutboxRepository) -> ClaimedItem:
    (found,) = outbox.claim("w", batch_size=1, lease=timedelta(minutes=1))
    return found


@pytest.mark.parametrize("state", ["DISPATCHED", "RETRYABLE"])
def test_a_completion_is_stored_with_every_field(
    session: Sessions, owner: Connect, state: str
) -> None:
    retried = state == "RETRYABLE"
    given = filled(
        Completion,
        state=state,
        outcome="NOT_SENT" if retried else None,
        retry_in=timedelta(days=1, microseconds=1) if retried else None,
    )
    executor = session("executor")
    outbox = OutboxRepository(executor)
    outbox.enqueue(item())
    lease = claimed(outbox)
    completion = Completion(**given)
    outbox.complete(lease, completion)
    executor.commit()
    stored = row(owner, "payment_outbox_attempts", outbox_id=lease.outbox_id, phase="CLOSE")
    assert_stored(completion, stored)
    assert {name: stored[name] for name in LEASE} == {name: getattr(lease, name) for name in LEASE}
    if retried:
        pending = row(owner, "payment_outbox_pending", outbox_id=lease.outbox_id)
        assert pending["next_attempt_at"] - stored["completed_at"] == completion.retry_in


def test_an_item_keeps_every_field_from_input_to_claim_to_redrive(
    session: Sessions, owner: Connect
) -> None:
    executor, control = session("executor"), session("control")
    outbox, new = OutboxRepository(executor), item()
    record = outbox.enqueue(new)
    lease = claimed(outbox)
    assert outbox.held("w") == [lease]
    outbox.complete(lease, Completion(state="FAILED", outcome="REJECTED"))
    executor.commit()
    successor = OutboxRepository(control).redrive(record.outbox_id)
    control.commit()
    again = claimed(outbox)
    for given in (record, lease, successor, again):
        assert_stored(new, new.model_dump() | given.model_dump())
    stored, redriven = (
        row(owner, "payment_outbox_items", outbox_id=id)
        for id in (record.outbox_id, successor.outbox_id)
    )
    assert_stored(new, stored)
    assert {name for name in stored if stored[name] != redriven[name]} == SET_ANEW


CHANGED: Final = {
    "text": "to_jsonb(coalesce(i.{0}, '') || 'x')",
    "integer": "to_jsonb(i.{0} + 1)",
    "jsonb": "'{{\"changed\": 1}}'::jsonb",
}


@pytest.mark.invariant("INV-OUT-006")
def test_a_redrive_by_hand_must_copy_every_column(session: Sessions, owner: Connect) -> None:
    executor = session("executor")
    outbox = OutboxRepository(executor)
    record = outbox.enqueue(item())
    outbox.complete(claimed(outbox), Completion(state="FAILED", outcome="REJECTED"))
    executor.commit()
    types = dict(
        owner.execute(
            "SELECT attname::text, atttypid::regtype::text FROM pg_attribute"
            " WHERE attrelid = 'orchestration.payment_outbox_items'::regclass AND attnum > 0"
        ).fetchall()
    )
    accepted = redrive_by_hand(record.outbox_id, "'{}'::jsonb")
    with owner.transaction(force_rollback=True):
        owner.execute(accepted)  # type: ignore[arg-type]
    for column in types.keys() - SET_ANEW - KEY_AND_PAYLOAD:
        value = CHANGED[types[column]].format(column)
        statement = redrive_by_hand(record.outbox_id, f"jsonb_build_object('{column}', {value})")
        assert refusal(owner, statement).constraint == "INV-OUT-006", column


def redrive_by_hand(outbox_id: UUID, changed: str) -> str:
    return f"""
        WITH stored AS (
          INSERT INTO orchestration.payment_outbox_items
          SELECT (jsonb_populate_record(i, jsonb_build_object(
            'outbox_id', orchestration.uuid_v7(), 'redrive_no', 1, 'redrive_of', i.outbox_id,
            'sequence_id', orchestration.bump_participant_outbox_seq(i.participant_id),
            'created_at', clock_timestamp(), 'db_user', SESSION_USER,
            'xact_id', pg_current_xact_id()::text::bigint
          ) || {changed})).*
          FROM orchestration.payment_outbox_items i
          WHERE i.outbox_id = '{outbox_id}'
          RETURNING *
        )
        INSERT INTO orchestration.payment_outbox_pending (
          outbox_id, instruction_id, participant_id, sequence_id, rail_type
        )
        SELECT s.outbox_id, s.instruction_id, s.participant_id, s.sequence_id, s.rail_type
        FROM stored s
    """


BATCHES: Final = {
    "append_attestations": ("ingest", "new_attestation"),
    "receive_instruction": ("ingest", "new_instruction"),
    "enqueue_payment_outbox": ("executor", "new_outbox_item"),
    "complete_outbox_attempt": ("executor", "outbox_completion"),
}


@pytest.mark.parametrize("function", BATCHES)
def test_every_text_of_an_element_is_bounded_before_the_row_is_written(
    login: Callable[[str], Connect], owner: Connect, function: str
) -> None:
    role, type_ = BATCHES[function]
    connection = login(role)
    element = TypeAdapter(dict[str, Any]).dump_python(element_of(type_), mode="json")
    texts = owner.execute(
        "SELECT attname::text FROM pg_attribute"
        " WHERE attrelid = to_regclass('orchestration.' || %s)"
        " AND attnum > 0 AND atttypid = 'text'::regtype",
        (type_,),
    ).fetchall()
    assert texts
    for (name,) in texts:
        found = refusal(
            connection,
            f"SELECT FROM orchestration.{function}(%s)",
            [Jsonb([element | {name: LONG}])],
        )
        assert (found.constraint, found.column) == ("INV-API-001", name)
        assert "xxx" not in f"{found.message}{found.detail}"


def element_of(type_: str) -> dict[str, Any]:
    match type_:
        case "new_attestation":
            return filled(NewAttestation)
        case "new_instruction":
            return filled(NewInstruction)
        case "new_outbox_item":
            return filled(NewOutboxItem, due_at=None)
        case _:
            return {
                **filled(Completion, state="FAILED", retry_in=None),
                "outbox_id": uuid4(),
                "lease_token": uuid4(),
            }

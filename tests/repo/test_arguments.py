"""The repositories check their arguments first: the error names the argument, and no statement is
sent."""

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from orchestration.errors import InvalidParameterValue
from orchestration.records import (
    ClaimedItem,
    Completion,
    NewAttestation,
    NewOutboxItem,
    microseconds,
)
from orchestration.repo import (
    AttemptLogRepository,
    AttestationRepository,
    OutboxRepository,
    PolicyVersionRepository,
    RevocationRepository,
)
from tests.support import Connect, activate_policy, digest

Sessions = Callable[[str], Session]

LEASE = timedelta(seconds=5)
ID = uuid.uuid4()
SECRET = "Bearer-SECRET"


def item(**changed: Any) -> NewOutboxItem:
    values: dict[str, Any] = {
        "instruction_id": ID,
        "participant_id": "bank-a",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {"nested": {"amount": 1}},
    }
    return NewOutboxItem(**(values | changed))


CLAIMED = ClaimedItem(
    outbox_id=ID,
    instruction_id=ID,
    participant_id="bank-a",
    sequence_id=1,
    idempotency_key="k",
    redrive_no=0,
    rail_type="SEPA",
    payload={},
    payload_hash="0" * 64,
    attempt_no=1,
    max_attempts=1,
    worker_id="w",
    lease_token=ID,
    lease_expires_at=datetime.now(UTC),
    claimed_at=datetime.now(UTC),
)


WRONG: dict[str, tuple[str, Callable[[Session, Any], object], list[Any]]] = {
    "a repository": (
        "session",
        lambda _, v: OutboxRepository(v),
        [None, sessionmaker(), create_engine("postgresql+psycopg://")],
    ),
    "claim worker_id": (
        "worker_id",
        lambda s, v: OutboxRepository(s).claim(v, batch_size=1, lease=LEASE),
        [5, None, b"w", "w\0", "\ud800"],
    ),
    "claim batch_size": (
        "batch_size",
        lambda s, v: OutboxRepository(s).claim("w", batch_size=v, lease=LEASE),
        [True, 1.5, "5", None, 2**63, float("nan")],
    ),
    "claim lease": (
        "lease",
        lambda s, v: OutboxRepository(s).claim("w", batch_size=1, lease=v),
        [None, 30, "30s", float("nan"), timedelta.max],
    ),
    "renew": ("item", lambda s, v: OutboxRepository(s).renew(v, lease=LEASE), [None, 3, ID]),
    "repair": (
        "limit",
        lambda s, v: OutboxRepository(s).repair_expired(limit=v),
        [True, 1.5, "5", None],
    ),
    "get": ("outbox_id", lambda s, v: OutboxRepository(s).get(v), [5, None, "x", "\0"]),
    "attempts": ("outbox_id", lambda s, v: OutboxRepository(s).attempts(v), [5, None, "x"]),
    "redrive": ("outbox_id", lambda s, v: OutboxRepository(s).redrive(v), [5, None, "x"]),
    "enqueue": ("new", lambda s, v: OutboxRepository(s).enqueue(v), [None, {}, [item()]]),
    "complete item": (
        "item",
        lambda s, v: OutboxRepository(s).complete(v, Completion(state="DISPATCHED")),
        [None, ID],
    ),
    "complete completion": (
        "completion",
        lambda s, v: OutboxRepository(s).complete(CLAIMED, v),
        [None, {"state": "FAILED"}, "FAILED"],
    ),
    "enqueue_many": (
        "news",
        lambda s, v: OutboxRepository(s).enqueue_many(v),
        [None, 5, "abc", {}, [None], [1], item(), [item(), {}]],
    ),
    "complete_many": (
        "pairs",
        lambda s, v: OutboxRepository(s).complete_many(v),
        [None, {}, [None], [(1, 2)], [(1,)], [()]],
    ),
    "append": ("new", lambda s, v: AttestationRepository(s).append(v), [None, {}]),
    "append_many": (
        "news",
        lambda s, v: AttestationRepository(s).append_many(v),
        [None, {}, "abc", [None]],
    ),
    "start_execution": (
        "id",
        lambda s, v: AttestationRepository(s).start_execution(v),
        [5, None, "x"],
    ),
    "complete_execution": (
        "terminal_status",
        lambda s, v: AttestationRepository(s).complete_execution(ID, v),
        ["SUCCEEDED", None, 5],
    ),
    "verify_chain": (
        "caller_identity",
        lambda s, v: AttestationRepository(s).verify_chain(v),
        [None, "", "\0", "\ud800", 5],
    ),
    "open_execution": (
        "worker_id",
        lambda s, v: AttemptLogRepository(s).open_execution(ID, worker_id=v),
        [None, "", "\0", 5],
    ),
    "close_execution": (
        "attempt_no",
        lambda s, v: AttemptLogRepository(s).close_execution(ID, v, outcome="FAILED"),
        [None, True, 0, "1", 1.0, 2**31],
    ),
    "open_transaction": (
        "rail_type",
        lambda s, v: AttemptLogRepository(s).open_transaction(ID, worker_id="w", rail_type=v),
        [None, "", "\0", 5],
    ),
    "close_transaction": (
        "outcome",
        lambda s, v: AttemptLogRepository(s).close_transaction(ID, 1, outcome=v),
        [None, "DONE", "succeeded", 5],
    ),
    "close_transaction rail_reference": (
        "rail_reference",
        lambda s, v: AttemptLogRepository(s).close_transaction(
            ID, 1, outcome="SUCCEEDED", rail_reference=v
        ),
        ["", "\0", 5],
    ),
    "policy get": ("id", lambda s, v: PolicyVersionRepository(s).get(v), [None, "", "\0", 5]),
    "retire": ("id", lambda s, v: PolicyVersionRepository(s).retire(v), [None, "", "\0", 5]),
    "require_accepted": (
        "id",
        lambda s, v: PolicyVersionRepository(s).require_accepted(v),
        [None, "", "\0", 5],
    ),
    "rotate": ("new", lambda s, v: PolicyVersionRepository(s).rotate(v, grace=LEASE), [None, {}]),
    "since": ("watermark", lambda s, v: RevocationRepository(s).since(v), [5, "\0", "\ud800"]),
    "revoke_token": (
        "token_hash",
        lambda s, v: RevocationRepository(s).revoke_token(
            token_hash=v, reason_code="unspecified", revoked_by="me"
        ),
        [None, "", SECRET, "A" * 64],
    ),
    "is_client_cert_revoked": (
        "cert_fingerprint_sha256",
        lambda s, v: RevocationRepository(s).is_client_cert_revoked(v),
        [None, SECRET],
    ),
    "is_token_revoked": (
        "at",
        lambda s, v: RevocationRepository(s).is_token_revoked("0" * 64, v),
        [datetime(2026, 1, 1), datetime.max.replace(tzinfo=UTC), "soon"],
    ),
    "require_not_revoked": (
        "token_hash",
        lambda s, v: RevocationRepository(s).require_not_revoked(token_hash=v),
        [SECRET, 5],
    ),
}


CONTENT: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("batch_size", "limit", "attempt_no"), int),
    **dict.fromkeys(("outbox_id", "id"), (UUID, str)),
    "lease": timedelta,
    "at": (datetime, str),
    **dict.fromkeys(("session", "item", "new", "news", "completion", "pairs"), ()),
}
"""The Python types for which wrong content is a ValidationError. The default is str."""


@pytest.mark.parametrize(
    ("name", "act", "value"),
    [
        pytest.param(name, act, value, id=f"{title}-{number}")
        for title, (name, act, values) in WRONG.items()
        for number, value in enumerate(values)
    ],
)
def test_a_wrong_argument_is_refused_by_name_and_the_session_goes_on(
    session: Sessions, name: str, act: Callable[[Session, Any], object], value: Any
) -> None:
    used = session("executor")
    with pytest.raises((TypeError, ValidationError)) as raised:
        act(used, value)
    if isinstance(raised.value, ValidationError):
        assert isinstance(value, CONTENT.get(name, str))
        assert not isinstance(value, bool)
        for error in raised.value.errors(include_url=False):
            assert error["loc"] == (name,)
            assert error["input"] is None
    else:
        assert re.fullmatch(
            rf"{name}(\[\d+\])?: expected (a|an|a batch of) \w+, got \w+", str(raised.value)
        )
        assert isinstance(value, bool) or not isinstance(value, CONTENT.get(name, str))
    assert SECRET not in str(raised.value)
    assert raised.value.__context__ is None
    assert used.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda s: OutboxRepository(s).enqueue("x"), "new: expected a NewOutboxItem, got str"),
        (
            lambda s: OutboxRepository(s).enqueue_many("x"),
            "news: expected a batch of NewOutboxItem, got str",
        ),
        (
            lambda s: OutboxRepository(s).enqueue_many([item(), {}]),
            "news[1]: expected a NewOutboxItem, got dict",
        ),
        (
            lambda s: OutboxRepository(s).claim("w", batch_size="5", lease=LEASE),
            "batch_size: expected an int, got str",
        ),
        (lambda s: OutboxRepository(s).get(5), "outbox_id: expected a UUID, got int"),
        (
            lambda s: AttestationRepository(s).complete_execution(ID, 5),
            "terminal_status: expected a str, got int",
        ),
        (
            lambda _: OutboxRepository(AsyncSession()),
            "session: expected a Session, got AsyncSession",
        ),
    ],
)
def test_a_wrong_type_says_what_was_expected(
    session: Sessions, act: Callable[[Any], object], told: str
) -> None:
    with pytest.raises(TypeError) as raised:
        act(session("executor"))
    assert str(raised.value) == told


def test_an_input_never_shows_what_it_refuses() -> None:
    with pytest.raises(ValidationError) as raised:
        NewAttestation(
            caller_identity="c",
            idempotency_key="k",
            payload_hash="0" * 64,
            policy_version_id="v1",
            token_hash=SECRET,
        )
    assert "token_hash" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_payload_is_a_copy_of_what_was_given() -> None:
    flat: dict[str, Any] = {"amount": 1}
    nested: dict[str, Any] = {"list": [{"amount": 1}]}
    kept = item(payload=flat), item(payload=nested)
    flat["amount"] = nested["list"][0]["amount"] = float("nan")
    assert [one.payload for one in kept] == [{"amount": 1}, {"list": [{"amount": 1}]}]


@pytest.mark.parametrize("value", [float("nan"), "\0", "\ud800", {1}], ids=ascii)
def test_a_payload_changed_after_it_was_checked_is_checked_again(
    session: Sessions, value: object
) -> None:
    changed = item()
    changed.payload["added"] = value
    with pytest.raises(ValidationError) as raised:
        OutboxRepository(session("executor")).enqueue_many([item(), changed])
    assert [error["loc"] for error in raised.value.errors()] == [("news", 1, "payload")]


def test_a_delay_beyond_a_hundred_years_never_reaches_a_batch() -> None:
    assert Completion(state="RETRYABLE", retry_in=timedelta(days=36525)).retry_in
    with pytest.raises(ValidationError) as raised:
        Completion(state="RETRYABLE", retry_in=timedelta(days=36525, microseconds=1))
    assert raised.value.errors()[0]["loc"] == ("retry_in",)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (timedelta(0), "0 microseconds"),
        (timedelta(days=1), "86400000000 microseconds"),
        (-timedelta(microseconds=1), "-1 microseconds"),
    ],
)
def test_a_duration_is_sent_as_elapsed_time_and_never_as_days(
    value: timedelta, written: str
) -> None:
    assert microseconds(value) == written


@pytest.mark.parametrize("days", [10**8, -(10**8)])
def test_the_wire_carries_every_duration_that_is_taken(session: Sessions, days: int) -> None:
    with pytest.raises(InvalidParameterValue):
        OutboxRepository(session("executor")).claim("w", batch_size=1, lease=timedelta(days=days))


PLANTED = """
CREATE FUNCTION public.planted(text, varchar) RETURNS boolean
LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''planted''; END';
CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = varchar, FUNCTION = public.planted)
"""


def test_what_is_looked_up_meets_no_operator_of_others(
    superuser: Connect, session: Sessions
) -> None:
    activate_policy(superuser, "v1")
    for act in ("revoke_token", "revoke_client_cert"):
        superuser.execute(
            f"SELECT FROM orchestration.{act}(%s, p_reason_code => 'unspecified')", (digest("c"),)
        )
    superuser.execute(PLANTED)
    control = session("control")
    policies, revocations = PolicyVersionRepository(control), RevocationRepository(control)
    found = (policies.active(), policies.get("v1"), *policies.accepted())
    assert [one.id for one in found if one] == ["v1", "v1", "v1"]
    assert revocations.is_token_revoked(digest("c"))
    assert revocations.is_client_cert_revoked(digest("c"))

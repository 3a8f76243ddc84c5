"""Calls that are repeated after an unknown outcome: the login that made the first call gets what
was recorded."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.support import (
    ISOLATION_LEVELS,
    Connect,
    activate_policy,
    digest,
    instruction_id,
    refusal,
    scalar,
)

Login = Callable[[str], Connect]

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)

RECEIVE = "SELECT * FROM orchestration.receive_instruction(%s)"
APPEND = "SELECT * FROM orchestration.append_attestations(%s)"
AUTHORIZE = "SELECT * FROM orchestration.authorize_instruction(p_id => %s, p_version => %s)"
START = "SELECT * FROM orchestration.start_execution(p_id => %s, p_version => %s)"
COMPLETE = "SELECT * FROM orchestration.complete_instruction(p_id => %s, p_version => %s)"
FAIL = "SELECT * FROM orchestration.fail_instruction(p_id => %s, p_version => %s, p_reason => %s)"
ROTATE = (
    "SELECT * FROM orchestration.rotate_policy_version(p_id => %s, p_description => 'a policy',"
    " p_checksum => %s, p_grace => '1 hour', p_expected_active => %s)"
)
RETIRE = "SELECT * FROM orchestration.retire_policy_version(p_id => %s)"
ENGAGE = (
    "SELECT * FROM orchestration.engage_kill_switch(p_scope => %s, p_reason => %s,"
    " p_target => %s, p_key => %s)"
)
RELEASE = ENGAGE.replace("engage", "release")


def act(
    connection: Connect, isolation: str, statement: str, *parameters: Any
) -> list[dict[str, Any]]:
    """Run one call in its own transaction, commit it, and return its rows."""
    connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")
    try:
        cursor = connection.execute(statement, parameters)
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
        connection.execute("COMMIT")
    except psycopg.Error:
        connection.execute("ROLLBACK")
        raise
    return rows


def repeated(
    connection: Connect, isolation: str, statement: str, *parameters: Any
) -> dict[str, Any]:
    """Make the same call in two transactions. The second one returns the same row, with replayed
    set."""
    (first,) = act(connection, isolation, statement, *parameters)
    (second,) = act(connection, isolation, statement, *parameters)
    assert first.pop("replayed") is False
    assert second.pop("replayed") is True
    assert second == first
    return first


def received(owner: Connect) -> Any:
    """An instruction that a login other than the executor has received."""
    return scalar(
        owner,
        "INSERT INTO orchestration.instructions (participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id)"
        " SELECT participant_id, %s, instruction_type, end_to_end_id, amount_minor,"
        " currency, debtor_account, creditor_account, payload, attestation_id, policy_version_id"
        " FROM orchestration.instructions WHERE id = %s RETURNING id",
        (uuid4().hex, instruction_id("p", 0)),
    )


def dispatch(owner: Connect, id: Any) -> None:
    """Give the instruction an item that was DISPATCHED, as superuser."""
    item = {
        "instruction_id": str(id),
        "participant_id": "p",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    owner.execute("SELECT FROM orchestration.enqueue_payment_outbox(%s)", (json.dumps([item]),))
    owner.execute(
        "SELECT FROM orchestration.complete_outbox_attempt((SELECT jsonb_agg(jsonb_build_object("
        "'outbox_id', c.outbox_id, 'lease_token', c.lease_token, 'worker_id', 'w',"
        " 'state', 'DISPATCHED')) FROM orchestration.claim_outbox_batch('w', 1, '1 minute') c))"
    )


def history(owner: Connect, id: Any) -> list[int]:
    return [
        version
        for (version,) in owner.execute(
            "SELECT version FROM orchestration.status_history WHERE instruction_id = %s ORDER BY 1",
            (id,),
        )
    ]


# Transitions of instructions.


@pytest.mark.instructed
@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-009", "INV-INS-010")
@each_isolation
def test_a_repeated_transition_returns_what_was_recorded(
    superuser: Connect, login: Login, isolation: str
) -> None:
    executor = login("executor")
    id = received(superuser)
    authorized = repeated(executor, isolation, AUTHORIZE, id, 1)
    assert (authorized["state"], authorized["version"], authorized["open"]) == (
        "AUTHORIZED",
        2,
        True,
    )
    started = repeated(executor, isolation, START, id, 2)
    dispatch(superuser, id)
    completed = repeated(executor, isolation, COMPLETE, id, 3)
    assert (completed["state"], completed["version"], completed["open"]) == ("COMPLETED", 4, False)
    assert completed["completed_at"] == completed["updated_at"]
    # A unit of several calls is repeated as a whole: each call returns what it returned before.
    for statement, version, first in ((AUTHORIZE, 1, authorized), (START, 2, started)):
        (again,) = act(executor, isolation, statement, id, version)
        assert again == first | {"replayed": True}
    assert history(superuser, id) == [1, 2, 3, 4]


@pytest.mark.instructed
@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-009")
@each_isolation
def test_a_repeated_failure_is_answered_for_the_same_reason_only(
    superuser: Connect, login: Login, isolation: str
) -> None:
    executor = login("executor")
    id = received(superuser)
    failed = repeated(executor, isolation, FAIL, id, 1, "AC04")
    assert (failed["state"], failed["reason"], failed["version"]) == ("FAILED", "AC04", 2)
    assert refusal(executor, FAIL, (id, 1, "AC06")).sqlstate == "P7403"
    assert refusal(executor, FAIL, (id, 2, "AC04")).sqlstate == "P7401"
    assert refusal(executor, AUTHORIZE, (id, 1)).sqlstate == "P7403"
    assert history(superuser, id) == [1, 2]


@pytest.mark.instructed
@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-009")
def test_another_login_or_version_repeats_no_transition(superuser: Connect, login: Login) -> None:
    executor = login("executor")
    id = received(superuser)
    executor.execute(AUTHORIZE, (id, 1))
    executor.execute(START, (id, 2))
    for statement, version in ((AUTHORIZE, 1), (START, 2)):
        assert refusal(superuser, statement, (id, version)).sqlstate == "P7403"
    assert refusal(executor, START, (id, 1)).sqlstate == "P7403"
    assert refusal(executor, START, (id, 3)).sqlstate == "P7401"
    assert refusal(executor, START, (id, 2**31 - 1)).sqlstate == "P7403"
    assert refusal(executor, START, (id, None)).sqlstate == "P7403"


@pytest.mark.instructed
@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-010", "INV-KIL-001")
def test_a_call_that_was_accepted_once_is_not_checked_again(
    superuser: Connect, login: Login
) -> None:
    executor = login("executor")
    id = received(superuser)
    executor.execute(AUTHORIZE, (id, 1))
    executor.execute(START, (id, 2))
    for version in ("v8", "v9"):
        activate_policy(superuser, version)
    superuser.execute(ENGAGE, ("GLOBAL", "test", None, None))
    for statement, version in ((AUTHORIZE, 1), (START, 2)):
        (again,) = act(executor, "READ COMMITTED", statement, id, version)
        assert again["replayed"] is True


@pytest.mark.instructed
@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-009")
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_snapshot_older_than_the_transition_gets_40001(
    superuser: Connect, login: Login, isolation: str
) -> None:
    executor, beside = login("executor"), login("executor")
    id = received(superuser)
    executor.execute(f"BEGIN ISOLATION LEVEL {isolation}")
    executor.execute("SELECT FROM orchestration.schema_revision")
    beside.execute(AUTHORIZE, (id, 1))
    with pytest.raises(psycopg.errors.SerializationFailure):
        executor.execute(AUTHORIZE, (id, 1))
    executor.execute("ROLLBACK")
    (again,) = act(executor, isolation, AUTHORIZE, id, 1)
    assert again["replayed"] is True


# Policy versions.


@pytest.mark.invariant("INV-POL-001", "INV-AUD-001")
@each_isolation
def test_a_repeated_rotation_is_answered_even_after_the_next_one(
    owner: Connect, login: Login, isolation: str
) -> None:
    control = login("control")
    repeated(control, isolation, ROTATE, "v1", digest("v1"), None)
    repeated(control, isolation, ROTATE, "v2", digest("v2"), "v1")
    (again,) = act(control, isolation, ROTATE, "v1", digest("v1"), None)
    assert (again["status"], again["replayed"]) == ("GRACE", True)
    assert scalar(
        owner, "SELECT id FROM orchestration.policy_versions WHERE status = 'ACTIVE'"
    ) == ("v2")
    assert (
        scalar(owner, "SELECT count(*) FROM orchestration.audit_log WHERE action = 'ROTATE'") == 2
    )
    assert (
        refusal(control, ROTATE, ("v1", digest("other"), None)).constraint == "pk_policy_versions"
    )
    assert refusal(owner, ROTATE, ("v1", digest("v1"), None)).constraint == "pk_policy_versions"


@pytest.mark.invariant("INV-POL-002", "INV-AUD-001")
@each_isolation
def test_a_repeated_retirement_is_answered_to_the_login_that_retired(
    owner: Connect, login: Login, isolation: str
) -> None:
    control = login("control")
    for version in ("v1", "v2", "v3"):
        control.execute(ROTATE, (version, digest(version), None))
    retired = repeated(control, isolation, RETIRE, "v2")
    assert retired["status"] == "RETIRED"
    assert (
        scalar(owner, "SELECT count(*) FROM orchestration.audit_log WHERE action = 'RETIRE'") == 1
    )
    assert refusal(owner, RETIRE, ("v2",)).sqlstate == "P7101"
    # The rotation to v3 retired v1, and no call of retire_policy_version.
    assert refusal(control, RETIRE, ("v1",)).sqlstate == "P7101"


@pytest.mark.invariant("INV-POL-002")
def test_retired_db_user_is_set_by_the_database(owner: Connect) -> None:
    for version in ("v1", "v2"):
        activate_policy(owner, version)
    owner.execute("UPDATE orchestration.policy_versions SET retired_db_user = 'x' WHERE id = 'v1'")
    owner.execute(
        "UPDATE orchestration.policy_versions SET status = 'RETIRED', retired_db_user = 'x'"
        " WHERE id = 'v1'"
    )
    assert owner.execute(
        "SELECT id, retired_db_user = session_user FROM orchestration.policy_versions ORDER BY id"
    ).fetchall() == [("v1", True), ("v2", None)]


# Kill switches.


@pytest.mark.invariant("INV-KIL-003", "INV-AUD-001")
@each_isolation
def test_a_switch_is_engaged_and_released_once_under_a_key(
    owner: Connect, login: Login, isolation: str
) -> None:
    control = login("control")
    engaged = ("RAIL", "test", "SEPA", "engage")
    released = ("RAIL", "test", "SEPA", "release")
    repeated(control, isolation, ENGAGE, *engaged)
    repeated(control, isolation, RELEASE, *released)
    # A late repetition engages nothing.
    (again,) = act(control, isolation, ENGAGE, *engaged)
    assert (again["event_no"], again["replayed"]) == (1, True)
    assert scalar(owner, "SELECT bool_or(engaged) FROM orchestration.kill_switch_state") is False
    assert (
        scalar(
            owner, "SELECT count(*) FROM orchestration.audit_log WHERE table_name = 'kill_switches'"
        )
        == 2
    )


@pytest.mark.invariant("INV-KIL-003")
@pytest.mark.parametrize(
    "other",
    [
        ("DISPATCH", "test", None, "key"),
        ("RAIL", "another reason", "SEPA", "key"),
        ("RAIL", "test", "SWIFT", "key"),
    ],
)
def test_a_key_is_refused_for_another_act(
    owner: Connect, login: Login, other: tuple[str | None, ...]
) -> None:
    control = login("control")
    control.execute(ENGAGE, ("RAIL", "test", "SEPA", "key"))
    for connection, statement, arguments in (
        (control, ENGAGE, other),
        (control, RELEASE, ("RAIL", "test", "SEPA", "key")),
        (control, RELEASE, other),
        (owner, ENGAGE, ("RAIL", "test", "SEPA", "key")),
    ):
        found = refusal(connection, statement, arguments)
        assert (found.sqlstate, found.constraint) == ("23505", "INV-KIL-003")


@pytest.mark.invariant("INV-KIL-003", "INV-API-001")
@pytest.mark.parametrize(
    ("key", "constraint"),
    [
        ("", "ck_kill_switches_key"),
        ("k" * 1001, "INV-API-001"),
        ("\N{EURO SIGN}" * 334, "INV-API-001"),
    ],
)
def test_a_key_is_one_to_1000_octets(login: Login, key: str, constraint: str) -> None:
    found = refusal(login("control"), ENGAGE, ("GLOBAL", "test", None, key))
    assert (found.sqlstate, found.constraint) == ("23514", constraint)


def test_without_a_key_each_call_is_an_event(owner: Connect, login: Login) -> None:
    control = login("control")
    for _ in range(2):
        (event,) = act(control, "READ COMMITTED", ENGAGE, "GLOBAL", "test", None, None)
        assert event["replayed"] is False
    control.execute(RELEASE, ("GLOBAL", "test", None, None))
    assert refusal(control, RELEASE, ("GLOBAL", "test", None, None)).sqlstate == "P0002"
    assert refusal(control, RELEASE, ("GLOBAL", "test", None, "new")).sqlstate == "P0002"
    assert scalar(owner, "SELECT count(*) FROM orchestration.kill_switches") == 3


# Batches.


@pytest.mark.invariant("INV-ATT-007", "INV-INS-008")
@each_isolation
def test_a_batch_says_of_each_row_whether_it_was_there(
    owner: Connect, login: Login, isolation: str
) -> None:
    activate_policy(owner)
    ingest = login("ingest")

    def attested(*keys: str) -> str:
        return json.dumps(
            [
                {
                    "caller_identity": "alice",
                    "idempotency_key": key,
                    "payload_hash": digest(key),
                    "policy_version_id": "v1",
                }
                for key in keys
            ]
        )

    def replayed(statement: str, batch: str) -> list[tuple[str, bool]]:
        return [
            (row["idempotency_key"], row["replayed"])
            for row in act(ingest, isolation, statement, batch)
        ]

    (attestation,) = act(ingest, isolation, APPEND, attested("a"))

    def asked(*keys: str) -> str:
        return json.dumps(
            [
                {
                    "participant_id": "p",
                    "idempotency_key": key,
                    "instruction_type": "pain.001",
                    "end_to_end_id": key,
                    "amount_minor": 1,
                    "currency": "EUR",
                    "debtor_account": "d",
                    "creditor_account": "c",
                    "payload": {},
                    "attestation_id": str(attestation["id"]),
                    "policy_version_id": "v1",
                }
                for key in keys
            ]
        )

    act(ingest, isolation, RECEIVE, asked("a"))
    for statement, batch in ((APPEND, attested), (RECEIVE, asked)):
        assert replayed(statement, batch("c", "a", "b", "c", "a")) == [
            ("c", False),
            ("a", True),
            ("b", False),
            ("c", True),
            ("a", True),
        ]
        assert replayed(statement, batch("b", "a")) == [("b", True), ("a", True)]
        assert replayed(statement, batch("d", "e")) == [("d", False), ("e", False)]
        assert replayed(statement, batch()) == []

"""If the holder of a gate stops inside its transaction, the server ends it, and the change
proceeds."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.concurrency.support import PATIENCE_SECONDS, begin, refused
from tests.support import (
    ISOLATION_LEVELS,
    Connect,
    assert_invariant,
    await_blocked,
    backend,
    digest,
    new_instruction_id,
    scalar,
)

pytestmark = pytest.mark.instructed

Login = Callable[[str], Connect]

BOUND = "10s"
"""The value of idle_in_transaction_session_timeout that taking a gate sets."""
SHORTER = "300ms"
UNREAD_BOUND = "10000"
"""The value of tcp_user_timeout that taking a gate sets."""


def attest(key: str = "k") -> str:
    item = {
        "caller_identity": "alice",
        "idempotency_key": key,
        "payload_hash": digest(key),
        "policy_version_id": "instructions",
    }
    return f"SELECT FROM orchestration.append_attestations('{json.dumps([item])}')"


CLAIM = "SELECT FROM orchestration.claim_outbox_batch('w', 1, interval '1 hour')"
OWNERS_ATTESTATION = (
    "INSERT INTO orchestration.ingress_attestations"
    " (caller_identity, idempotency_key, payload_hash, policy_version_id)"
    f" VALUES ('alice', 'k', '{digest('k')}', 'instructions')"
)
REQUIRE_POLICY = "SELECT orchestration.require_policy_accepted('instructions')"
REQUIRE_TOKEN = (
    f"SELECT orchestration.require_credential_not_revoked(p_token_hash => '{digest('t')}')"
)
ENGAGE = "SELECT FROM orchestration.engage_kill_switch('GLOBAL', 'test')"
ROTATE = (
    "SELECT FROM orchestration.rotate_policy_version("
    f"'next', 'test', '{digest('next')}', interval '1 hour')"
)
REVOKE = f"SELECT FROM orchestration.revoke_token('{digest('t')}', 'unspecified')"

TAKING = {
    "attesting": ("ingest", attest()),
    "claiming": ("executor", CLAIM),
    "requiring a policy": ("ingest", REQUIRE_POLICY),
    "requiring a credential": ("ingest", REQUIRE_TOKEN),
    "the owner's attestation": ("owner", OWNERS_ATTESTATION),
    "engaging": ("control", ENGAGE),
    "rotating": ("control", ROTATE),
    "revoking": ("control", REVOKE),
    "the owner's switch": (
        "owner",
        "INSERT INTO orchestration.kill_switches (scope, action, reason, actor)"
        " VALUES ('GLOBAL', 'ENGAGE', 'test', 'test')",
    ),
    "an act of governance without a gate": (
        "owner",
        "UPDATE orchestration.schema_revision SET revision = revision",
    ),
}

UNGATED = {
    "completing": (
        "executor",
        """
        SELECT FROM orchestration.complete_outbox_attempt(jsonb_build_array(jsonb_build_object(
          'outbox_id', %(item)s::uuid, 'lease_token', %(token)s::uuid, 'worker_id', 'w',
          'state', 'FAILED', 'outcome', 'REJECTED'
        )))
        """,
    ),
    "renewing": (
        "executor",
        "SELECT orchestration.renew_outbox_lease(%(item)s, %(token)s, 'w', interval '1 minute')",
    ),
    "repairing": ("control", "SELECT FROM orchestration.repair_expired_leases()"),
    "a late result": (
        "executor",
        "SELECT FROM orchestration.record_worker_result(%(item)s, 1, %(token)s, 'w', 'SENT')",
    ),
    "ending a lease": (
        "control",
        "SELECT FROM orchestration.expire_outbox_lease(%(item)s, 'test')",
    ),
    "starting": ("executor", "SELECT FROM orchestration.start_execution(%(instruction)s, 2)"),
    "an attempt log": (
        "executor",
        "SELECT FROM orchestration.open_execution_attempt(%(instruction)s, 'w')",
    ),
}
"""Acts that take no gate, but lock an instruction or a pending row."""


def claimed(owner: Connect) -> tuple[Any, Any, Any]:
    """Create an authorized instruction with one claimed item, and return the lease token."""
    instruction_id = new_instruction_id()
    item = {
        "instruction_id": str(instruction_id),
        "participant_id": "bank-a",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    owner.execute(f"SELECT FROM orchestration.enqueue_payment_outbox('{json.dumps([item])}')")
    row = owner.execute(
        "SELECT outbox_id, lease_token"
        " FROM orchestration.claim_outbox_batch('w', 1, interval '1 hour')"
    ).fetchone()
    assert row is not None
    return instruction_id, *row


CHANGES = {
    "engaging": (ENGAGE, attest("held")),
    "rotating": (ROTATE, REQUIRE_POLICY),
    "revoking": (REVOKE, REQUIRE_TOKEN),
}

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)


@pytest.fixture
def principal(login: Login, owner: Connect) -> Login:
    return lambda role: owner if role == "owner" else login(role)


def idle_bound(connection: Connect) -> Any:
    return scalar(connection, "SELECT current_setting('idle_in_transaction_session_timeout')")


def unread_bound(connection: Connect) -> Any:
    """The time that the server waits for a client that does not read, in milliseconds."""
    return scalar(connection, "SELECT current_setting('tcp_user_timeout')")


# The bound.


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("what", TAKING)
@each_isolation
def test_taking_a_gate_bounds_idle_time_until_the_end_of_the_transaction(
    principal: Login, what: str, isolation: str
) -> None:
    role, statement = TAKING[what]
    connection = principal(role)
    before = idle_bound(connection)
    assert before != BOUND
    begin(connection, isolation)
    connection.execute("SAVEPOINT inner_one")
    connection.execute(statement)
    assert idle_bound(connection) == BOUND
    assert unread_bound(connection) == UNREAD_BOUND
    connection.execute("RELEASE inner_one")
    assert idle_bound(connection) == BOUND
    connection.execute("SAVEPOINT second")
    with suppress(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1 / 0")
    connection.execute("ROLLBACK TO second")
    assert idle_bound(connection) == BOUND
    connection.execute("COMMIT")
    assert idle_bound(connection) == before
    assert unread_bound(connection) == "0"


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("what", UNGATED)
def test_an_act_that_locks_what_a_gated_one_waits_for_is_bounded_too(
    principal: Login, owner: Connect, what: str
) -> None:
    role, statement = UNGATED[what]
    (instruction_id, outbox_id, token) = claimed(owner)
    connection = principal(role)
    connection.execute("BEGIN")
    connection.execute(
        statement, {"instruction": instruction_id, "item": outbox_id, "token": token}
    )
    assert idle_bound(connection) == BOUND
    assert unread_bound(connection) == UNREAD_BOUND


@pytest.mark.invariant("INV-KIL-002")
def test_a_change_gets_in_behind_an_enqueue_that_waits_for_a_stopped_worker(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    (instruction_id, outbox_id, token) = claimed(owner)
    worker, desk, control = login("executor"), login("executor"), login("control")
    worker.execute(f"SET idle_in_transaction_session_timeout = '{SHORTER}'")
    worker.execute("BEGIN")
    worker.execute(
        UNGATED["completing"][1],
        {"instruction": instruction_id, "item": outbox_id, "token": token},
    )
    # The desk has the gate and is not idle, so only the worker's bound can end the wait.
    item = {
        "instruction_id": str(instruction_id),
        "participant_id": "bank-a",
        "idempotency_key": "second",
        "rail_type": "SEPA",
        "payload": {},
    }
    enqueuing = background.submit(
        desk.execute,
        f"SELECT FROM orchestration.enqueue_payment_outbox('{json.dumps([item])}')",
    )
    await_blocked(owner, backend(desk))
    engaging = background.submit(control.execute, ENGAGE)
    engaging.result(PATIENCE_SECONDS)
    enqueuing.result(PATIENCE_SECONDS)
    assert scalar(owner, "SELECT count(*) FROM orchestration.kill_switch_state WHERE engaged") == 1
    with suppress(psycopg.Error):
        worker.execute("ROLLBACK")


@pytest.mark.invariant("INV-KIL-002")
def test_a_change_gets_in_behind_a_client_that_does_not_read_its_reply(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    stopped, control = login("executor"), login("control")
    # The client sets a shorter bound, so that the test does not wait for ten seconds.
    stopped.execute("SET tcp_user_timeout = 500")
    stopped.execute("BEGIN")
    stopped.execute(CLAIM)
    assert unread_bound(stopped) == "500"
    # The backend is busy sending: neither the idle bound nor a statement_timeout ends it.
    stopped.pgconn.send_query(b"SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
    engaging = background.submit(control.execute, ENGAGE)
    engaging.result(PATIENCE_SECONDS)
    assert scalar(owner, "SELECT count(*) FROM orchestration.kill_switch_state WHERE engaged") == 1
    stopped.close()


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize(
    ("given", "then"),
    [
        ("0", BOUND),
        ("11s", BOUND),
        ("1min", BOUND),
        ("1d", BOUND),
        ("2147483647", BOUND),
        ("10s", BOUND),
        ("9999", "9999ms"),
        ("3s", "3s"),
        ("1", "1ms"),
    ],
)
@pytest.mark.parametrize("intervalstyle", ["postgres", "sql_standard", "iso_8601"])
def test_a_shorter_bound_of_the_sessions_own_is_kept(
    owner: Connect, given: str, then: str, intervalstyle: str
) -> None:
    owner.execute("BEGIN")
    owner.execute(f"SET LOCAL intervalstyle = {intervalstyle}")
    # In one statement, because the transaction is then not idle between the two calls.
    rows = owner.execute(
        "WITH given AS MATERIALIZED (SELECT set_config("
        "'idle_in_transaction_session_timeout', %s, true)),"
        " taken AS MATERIALIZED (SELECT orchestration.share_gate('policy_gate') FROM given)"
        " SELECT current_setting('idle_in_transaction_session_timeout') FROM taken",
        (given,),
    ).fetchall()
    assert rows == [(then,)]
    with suppress(psycopg.Error):
        owner.execute("ROLLBACK")


# A holder that has stopped.


@pytest.mark.invariant("INV-KIL-002", "INV-ATT-008", "INV-ATT-009")
@pytest.mark.parametrize("act", CHANGES)
def test_a_change_gets_in_when_the_holder_has_idled_for_its_bound(
    owner: Connect, login: Login, background: ThreadPoolExecutor, act: str
) -> None:
    change, hold = CHANGES[act]
    stopped, control, other = login("ingest"), login("control"), login("ingest")
    # The client sets a shorter bound, so that the test does not wait for ten seconds.
    stopped.execute(f"SET idle_in_transaction_session_timeout = '{SHORTER}'")
    control.execute("SET lock_timeout = '5s'")
    begin(stopped, "READ COMMITTED")
    stopped.execute(hold)
    changing = background.submit(control.execute, change)
    await_blocked(owner, backend(control))
    following = background.submit(other.execute, REQUIRE_POLICY)
    changing.result(PATIENCE_SECONDS)
    following.result(PATIENCE_SECONDS)
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        stopped.execute("SELECT")


@pytest.mark.invariant("INV-KIL-002")
def test_a_change_that_has_stopped_is_ended_too(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    stopped, other = login("control"), login("ingest")
    stopped.execute(f"SET idle_in_transaction_session_timeout = '{SHORTER}'")
    begin(stopped, "READ COMMITTED")
    stopped.execute(ENGAGE)
    attesting = background.submit(other.execute, attest())
    assert await_blocked(owner, backend(other)) == [backend(stopped)]
    attesting.result(PATIENCE_SECONDS)
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        stopped.execute("SELECT")
    assert scalar(owner, "SELECT count(*) FROM orchestration.kill_switches") == 0


@pytest.mark.invariant("INV-KIL-002")
def test_engaging_waits_longer_than_the_lock_timeout_of_its_session(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    writer, control = login("ingest"), login("control")
    control.execute("SET lock_timeout = '1ms'")
    begin(writer, "READ COMMITTED")
    writer.execute(attest())
    engaging = background.submit(control.execute, ENGAGE)
    for _ in range(20):
        assert await_blocked(owner, backend(control)) == [backend(writer)]
    writer.execute("COMMIT")
    engaging.result(PATIENCE_SECONDS)
    assert scalar(control, "SELECT engaged FROM orchestration.kill_switch_state") is True
    assert scalar(control, "SHOW lock_timeout") == "1ms"


# Which sessions hold a gate.

HOLDERS = "SELECT * FROM orchestration.gate_holders() WHERE gate = %s"


def holders(connection: Connect, gate: str) -> list[dict[str, Any]]:
    cursor = connection.execute(HOLDERS, (gate,))
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


GIVING_UP = {
    "kill_switch_gate": ("INV-KIL-002", attest("held"), TAKING["the owner's switch"][1]),
    "policy_gate": (
        "INV-ATT-008",
        REQUIRE_POLICY,
        "UPDATE orchestration.policy_versions SET status = 'RETIRED'",
    ),
    "revocation_gate": (
        "INV-ATT-009",
        REQUIRE_TOKEN,
        "INSERT INTO orchestration.revoked_tokens (token_hash, reason_code, revoked_by)"
        f" VALUES ('{digest('t')}', 'unspecified', 'test')",
    ),
}


@pytest.mark.invariant("INV-KIL-002", "INV-ATT-008", "INV-ATT-009")
@pytest.mark.parametrize("gate", GIVING_UP)
def test_a_change_that_gives_up_names_who_holds_the_gate(
    owner: Connect, login: Login, gate: str
) -> None:
    invariant, hold, change = GIVING_UP[gate]
    writer = login("ingest")
    writer.execute("SET application_name = 'stopped'")
    begin(writer, "READ COMMITTED")
    writer.execute(hold)
    owner.execute("SET lock_timeout = '50ms'")
    found = refused(lambda: owner.execute(change))
    assert_invariant(found, invariant, "55P03", gate)
    assert found.keys == {
        "gate": gate,
        "holders": [
            {
                "pid": backend(writer),
                "login": writer.info.user,
                "application_name": "stopped",
                "mode": "RowShareLock",
            }
        ],
    }


def test_releasing_gives_up_before_the_holder_is_ended(owner: Connect, login: Login) -> None:
    owner.execute(
        "INSERT INTO orchestration.kill_switches (scope, target, action, reason, actor)"
        " VALUES ('RAIL', 'SEPA', 'ENGAGE', 'test', 'test')"
    )
    writer, control = login("ingest"), login("control")
    begin(writer, "READ COMMITTED")
    writer.execute(attest())
    found = refused(
        lambda: control.execute(
            "SELECT FROM orchestration.release_kill_switch('RAIL', 'test', 'SEPA')"
        )
    )
    assert found.sqlstate == "55P03"
    assert [one["pid"] for one in found.keys["holders"]] == [backend(writer)]


def test_the_detail_names_at_most_twenty_holders(owner: Connect, login: Login) -> None:
    _, hold, change = GIVING_UP["policy_gate"]
    for _ in range(21):
        writer = login("ingest")
        begin(writer, "READ COMMITTED")
        writer.execute(hold)
    owner.execute("SET lock_timeout = '50ms'")
    assert len(refused(lambda: owner.execute(change)).keys["holders"]) == 20


@pytest.mark.parametrize("role", ["control", "readonly", "auditor"])
def test_holders_and_waiters_are_listed(
    owner: Connect, login: Login, background: ThreadPoolExecutor, role: str
) -> None:
    reader = login(role)
    assert holders(reader, "kill_switch_gate") == []
    writer, control, late = login("ingest"), login("control"), login("ingest")
    for connection, name in ((writer, "writer"), (control, "control"), (late, "late")):
        connection.execute(sql.SQL("SET application_name = {}").format(name))
    begin(writer, "REPEATABLE READ")
    writer.execute(attest())
    engaging = background.submit(control.execute, ENGAGE)
    await_blocked(owner, backend(control))
    following = background.submit(refused, lambda: late.execute(attest("late")))
    await_blocked(owner, backend(late))
    found = holders(reader, "kill_switch_gate")
    shown = [
        (one["pid"], one["login"], one["application_name"], one["mode"], one["granted"])
        for one in found
    ]
    assert shown[0] == (backend(writer), writer.info.user, "writer", "RowShareLock", True)
    assert sorted(shown[1:]) == sorted(
        [
            (backend(control), control.info.user, "control", "ExclusiveLock", False),
            (backend(late), late.info.user, "late", "RowShareLock", False),
        ]
    )
    assert found[0]["waiting_since"] is None
    assert all(one["waiting_since"] is not None for one in found[1:])
    assert {one["prepared_gid"] for one in found} == {None}
    writer.execute("COMMIT")
    engaging.result(PATIENCE_SECONDS)
    assert following.result(PATIENCE_SECONDS).sqlstate == "P7501"
    assert holders(reader, "kill_switch_gate") == []


@pytest.mark.superuser
def test_a_reader_of_all_statistics_sees_since_when_and_from_where(
    superuser: Connect, login: Login
) -> None:
    writer, auditor = login("ingest"), login("auditor")
    begin(writer, "READ COMMITTED")
    writer.execute(REQUIRE_POLICY)
    (one,) = holders(auditor, "policy_gate")
    assert (one["state"], one["client_addr"], one["transaction_started_at"]) == (None,) * 3
    (one,) = holders(superuser, "policy_gate")
    assert one["state"] == "idle in transaction"
    assert one["client_addr"] is not None
    assert one["transaction_started_at"] is not None


def test_an_act_that_waits_for_the_audit_log_is_listed_as_waiting(
    owner: Connect, login: Login, background: ThreadPoolExecutor
) -> None:
    first, second = login("control"), login("control")
    begin(first, "READ COMMITTED")
    first.execute(REVOKE)
    rotating = background.submit(second.execute, ENGAGE)
    await_blocked(owner, backend(second))
    shown = {one["pid"]: one["granted"] for one in holders(owner, "audit_log_head")}
    assert shown == {backend(first): True, backend(second): False}
    first.execute("COMMIT")
    rotating.result(PATIENCE_SECONDS)
    assert holders(owner, "audit_log_head") == []

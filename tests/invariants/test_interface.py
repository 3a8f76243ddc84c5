"""INV-API-001 and INV-API-003: a function bounds every text before it takes a lock, refuses with a
code of the contract, and does not repeat what its caller may not read."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support import Connect, activate_policy, digest, instruction_id, refusal, scalar

pytestmark = pytest.mark.instructed

Login = Callable[[str], Connect]

ID = "00000000-0000-7000-8000-000000000001"
SECRET = "DE02secretaccount"
NATIVE = {"22P02", "22003", "22007", "22008", "22023", "23502", "23514"}
"""How an argument that is malformed may be refused."""

BOUNDED_OTHERWISE = {
    # Set by the database.
    "db_user": "session_user is a name",
    "retired_db_user": "session_user is a name",
    "db_role": "a role is a name",
    "prev_hash": "the record_hash of the record before",
    "record_hash": "computed; a head copies it from its chain",
    "payload_hash": "compared with the hash of the payload",
    "revision": "written by migrations",
    # Tied to a bounded column by a foreign key or a guard.
    "status_history.participant_id": "foreign key",
    "execution_attempts.participant_id": "foreign key",
    "transaction_attempts.participant_id": "foreign key",
    "payment_outbox_pending.participant_id": "foreign key",
    "payment_outbox_pending.rail_type": "guard_outbox_pending_insert compares it with the item",
    "ingress_attestation_events.caller_identity": "guard_attestation_event",
    "ingress_attestations.policy_version_id": "guard_attestation looks it up",
    "instructions.policy_version_id": "guard_instruction looks it up",
    "revoked_client_certs.cert_fingerprint_sha256": "guard_revocation",
    "revoked_tokens.token_hash": "guard_revocation",
    "status_history.from_state": "ck_status_history_transition",
    "status_history.to_state": "ck_status_history_transition",
}


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-001")
def test_every_text_column_is_bounded(owner: Connect) -> None:
    columns = owner.execute(
        """
        SELECT c.relname, a.attname,
               bool_or(k.definition ~ ('octet_length\\(' || a.attname || '\\) (<=|=) ')
                 OR k.definition ~ ('octet_length\\(COALESCE\\(' || a.attname)
                 OR k.definition ~ ('(\\(|CASE )' || a.attname || ' = ANY|'
                   || '(CASE|WHEN|\\()\\s*\\(?' || a.attname || '(\\s+WHEN| = )'))
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN LATERAL (
          SELECT pg_get_constraintdef(k.oid) AS definition
          FROM pg_constraint k
          WHERE k.conrelid = c.oid AND k.contype = 'c' AND a.attnum = ANY (k.conkey)
        ) k ON true
        WHERE c.relnamespace = 'orchestration'::regnamespace
          AND c.relkind = 'r'
          AND c.relname <> 'alembic_version'
          AND a.atttypid = 'text'::regtype
        GROUP BY c.relname, a.attname
        """
    ).fetchall()
    unbounded = {
        f"{table}.{column}"
        for table, column, bounded in columns
        if not bounded
        and column not in BOUNDED_OTHERWISE
        and f"{table}.{column}" not in BOUNDED_OTHERWISE
    }
    assert len(columns) > 70
    assert unbounded == set()


def attestation(**changed: Any) -> dict[str, Any]:
    return {
        "caller_identity": "caller",
        "idempotency_key": "key",
        "payload_hash": digest("payload"),
        "policy_version_id": "v1",
        "token_hash": digest(SECRET),
    } | changed


def instruction(**changed: Any) -> dict[str, Any]:
    return {
        "participant_id": "bank-a",
        "idempotency_key": "key",
        "instruction_type": "pain.001",
        "end_to_end_id": "e2e",
        "amount_minor": 1,
        "currency": "EUR",
        "debtor_account": SECRET,
        "creditor_account": SECRET,
        "payload": {"iban": SECRET},
        "attestation_id": ID,
        "policy_version_id": "v1",
    } | changed


def item(**changed: Any) -> dict[str, Any]:
    return {
        "instruction_id": str(instruction_id("bank-a", 0)),
        "participant_id": "bank-a",
        "idempotency_key": "key",
        "rail_type": "SEPA",
        "payload": {"iban": SECRET},
    } | changed


def completion(**changed: Any) -> dict[str, Any]:
    return {
        "outbox_id": ID,
        "lease_token": ID,
        "worker_id": "w",
        "state": "RETRYABLE",
        "retry_in": "1 second",
        "latency_ms": 1,
    } | changed


BATCHES: dict[str, tuple[str, Callable[..., dict[str, Any]], str]] = {
    "append_attestations": ("ingest", attestation, "ingress_attestations"),
    "receive_instruction": ("ingest", instruction, "instructions"),
    "enqueue_payment_outbox": ("executor", item, "payment_outbox_items"),
    "complete_outbox_attempt": ("executor", completion, "payment_outbox_attempts"),
}

KEYS = {
    "append_attestations": ("caller_identity", "idempotency_key", "policy_version_id"),
    "receive_instruction": (
        *("participant_id", "idempotency_key", "instruction_type", "end_to_end_id"),
        *("debtor_account", "creditor_account", "policy_version_id"),
    ),
    "enqueue_payment_outbox": ("participant_id", "idempotency_key", "rail_type"),
    "complete_outbox_attempt": ("worker_id", "rail_reference", "rail_code", "error_code"),
}


def calls(function: str, *elements: object) -> tuple[str, tuple[str]]:
    return f"SELECT FROM orchestration.{function}(%s::jsonb)", (json.dumps(elements),)


@pytest.fixture
def gated(owner: Connect, login: Login) -> Login:
    """Logs in as a role while somebody holds every gate: what takes one meets 55P03."""
    owner.execute("BEGIN")
    owner.execute(
        "LOCK TABLE orchestration.kill_switch_gate, orchestration.policy_gate,"
        " orchestration.revocation_gate, orchestration.instructions IN EXCLUSIVE MODE"
    )

    def gated_login(role: str) -> Connect:
        connection = login(role)
        connection.execute("SET lock_timeout = '1ms'")
        return connection

    return gated_login


@pytest.mark.invariant("INV-API-001", "INV-API-003")
@pytest.mark.parametrize("function", BATCHES)
def test_a_text_out_of_bounds_is_refused_before_any_lock(gated: Login, function: str) -> None:
    role, element, table = BATCHES[function]
    connection = gated(role)
    for key in KEYS[function]:
        found = refusal(connection, *calls(function, element(), element(**{key: "ä" * 501})))
        assert (found.sqlstate, found.constraint, found.table, found.column) == (
            *("23514", "INV-API-001", table, key),
        ), found
        assert found.keys == {"ordinal": 2, "column": key}
        assert SECRET not in repr(found)


LONG = "x" * 1001
SCALARS = {
    "resolve_outbox_item: reason": (
        "control",
        f"resolve_outbox_item('{ID}', 'SENT', %s)",
        LONG * 4,
        "reason",
    ),
    "resolve_outbox_item: resolved_by": (
        "control",
        f"resolve_outbox_item('{ID}', 'SENT', 'why', %s)",
        LONG,
        "recorded_by",
    ),
    "resolve_outbox_item: rail_reference": (
        "control",
        f"resolve_outbox_item('{ID}', 'SENT', 'why', 'me', %s)",
        LONG,
        "rail_reference",
    ),
    "record_worker_result: rail_reference": (
        "executor",
        f"record_worker_result('{ID}', 1, '{ID}', 'me', 'SENT', %s)",
        LONG,
        "rail_reference",
    ),
    "cancel_outbox_item: reason": (
        "control",
        f"cancel_outbox_item('{ID}', %s)",
        LONG * 4,
        "reason",
    ),
    "cancel_outbox_item: cancelled_by": (
        "control",
        f"cancel_outbox_item('{ID}', 'why', %s)",
        LONG,
        "acted_by",
    ),
    "expire_outbox_lease: reason": (
        "control",
        f"expire_outbox_lease('{ID}', %s)",
        LONG * 4,
        "reason",
    ),
    "expire_outbox_lease: expired_by": (
        "control",
        f"expire_outbox_lease('{ID}', 'why', %s)",
        LONG,
        "acted_by",
    ),
    "close_contradiction: reason": (
        "control",
        f"close_contradiction('{ID}', 1, %s)",
        LONG * 4,
        "reason",
    ),
    "close_contradiction: closed_by": (
        "control",
        f"close_contradiction('{ID}', 1, 'why', %s)",
        LONG,
        "acted_by",
    ),
    "engage_kill_switch: target": (
        "control",
        "engage_kill_switch('RAIL', 'why', %s, 'me')",
        LONG,
        "target",
    ),
    "engage_kill_switch: scope": ("control", "engage_kill_switch(%s, 'why')", LONG, "scope"),
    "engage_kill_switch: reason": (
        "control",
        "engage_kill_switch('GLOBAL', %s)",
        LONG * 4,
        "reason",
    ),
    "engage_kill_switch: actor": (
        "control",
        "engage_kill_switch('GLOBAL', 'why', NULL, %s)",
        LONG,
        "actor",
    ),
    "release_kill_switch: reason": (
        "control",
        "release_kill_switch('GLOBAL', %s)",
        LONG * 4,
        "reason",
    ),
    "rotate_policy_version: id": (
        "control",
        "rotate_policy_version(%s, 'd', 'c', interval '1 s')",
        LONG,
        "id",
    ),
    "rotate_policy_version: description": (
        "control",
        "rotate_policy_version('v', %s, 'c', interval '1 s')",
        LONG * 4,
        "description",
    ),
    "rotate_policy_version: expected": (
        "control",
        "rotate_policy_version('v', 'd', 'c', interval '1 s', 'me', %s)",
        LONG,
        "id",
    ),
    "retire_policy_version: id": ("control", "retire_policy_version(%s)", LONG, "id"),
    "require_policy_accepted: id": ("ingest", "require_policy_accepted(%s)", LONG, "id"),
    "revoke_token: by": (
        "control",
        "revoke_token(repeat('a', 64), 'keyCompromise', %s)",
        LONG,
        "revoked_by",
    ),
    "revoke_client_cert: reason": (
        "control",
        "revoke_client_cert(repeat('a', 64), %s)",
        LONG,
        "reason_code",
    ),
    "fail_instruction: reason": (
        "executor",
        f"fail_instruction('{ID}', 1, %s)",
        LONG * 4,
        "reason",
    ),
    "claim_outbox_batch: worker": (
        "executor",
        "claim_outbox_batch(%s, 1, interval '1 s')",
        LONG,
        "claimed_by",
    ),
    "renew_outbox_lease: worker": (
        "executor",
        f"renew_outbox_lease('{ID}', '{ID}', %s, interval '1 s')",
        LONG,
        "claimed_by",
    ),
    "record_attestation_event: by": (
        "executor",
        f"record_attestation_event('{ID}', 'EXECUTION_STARTED', NULL, %s)",
        LONG,
        "recorded_by",
    ),
    "open_execution_attempt: worker": (
        "executor",
        f"open_execution_attempt('{ID}', %s)",
        LONG,
        "worker_id",
    ),
    "close_execution_attempt: message": (
        "executor",
        f"close_execution_attempt('{ID}', 1, 'FAILED', 'E', %s)",
        LONG * 4,
        "error_message",
    ),
    "open_transaction_attempt: rail": (
        "executor",
        f"open_transaction_attempt('{ID}', 'w', %s)",
        LONG,
        "rail_type",
    ),
    "close_transaction_attempt: reference": (
        "executor",
        f"close_transaction_attempt('{ID}', 1, 'SUCCEEDED', NULL, NULL, %s)",
        LONG,
        "rail_reference",
    ),
}


@pytest.mark.invariant("INV-API-001")
def test_a_long_scalar_is_refused_before_any_lock(gated: Login) -> None:
    wrong = {}
    connections = {role: gated(role) for role in ("ingest", "executor", "control")}
    for name, (role, call, value, column) in SCALARS.items():
        found = refusal(connections[role], f"SELECT FROM orchestration.{call}", (value,))
        if (found.sqlstate, found.constraint, found.column) != ("23514", "INV-API-001", column):
            wrong[name] = found
    assert wrong == {}


WRONG = (
    *(5, "", "x" * 100_000, "1" * 100_000, -1, 10**30, 1.5, True, [], {}, {"a": 1}, "infinity"),
    *("-infinity", "9999999999999999 years", "2024-02-30", "300000-01-01", "1e400", "\x7f", SECRET),
)


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-001", "INV-API-003")
@pytest.mark.parametrize("function", BATCHES)
def test_no_value_meets_a_code_outside_the_contract_or_comes_back(
    login: Login, function: str
) -> None:
    role, element, _ = BATCHES[function]
    connection = login(role)
    listed = {*NATIVE, "23503", "P0002", "P7002", "P7004", "P7105", "P7303", "P7404"}
    wrong: dict[tuple[str, str], object] = {}
    for key in (*element(), "uetr", "value_date", "due_at", "max_attempts", "outcome"):
        for value in WRONG:
            try:
                with connection.transaction(force_rollback=True):
                    connection.execute(*calls(function, element(**{key: value})))
            except psycopg.Error as error:
                # SECRET itself is sent as a value of a column that its sender may read.
                told = f"{error.diag.message_primary} {error.diag.message_detail}"
                told = told if value != SECRET else ""
                if error.sqlstate not in listed or SECRET in told or len(told) > 2_000:
                    wrong[key, str(value)[:20]] = (error.sqlstate, told[:2_000])
    assert wrong == {}


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("function", BATCHES)
def test_an_array_of_something_else_is_refused(login: Login, function: str) -> None:
    role, element, _ = BATCHES[function]
    connection = login(role)
    for wrong in (None, 1, "x" * 1_000_000, [], [element()]):
        found = refusal(connection, *calls(function, wrong))
        assert found.sqlstate in NATIVE, found
        assert len(found.message) <= 200


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-003")
@pytest.mark.parametrize(
    "function", ["append_attestations", "receive_instruction", "enqueue_payment_outbox"]
)
def test_a_refusal_of_a_missing_value_does_not_show_the_row(login: Login, function: str) -> None:
    role, element, table = BATCHES[function]
    connection = login(role)
    for key in element().keys() - {"token_hash"}:
        found = refusal(connection, *calls(function, element(**{key: None})))
        if (function, key) == ("append_attestations", "policy_version_id"):
            assert found.sqlstate == "P7105"
        else:
            assert (found.sqlstate, found.table, found.column) == ("23502", table, key)
        assert SECRET not in repr(found)
        assert digest(SECRET) not in repr(found)


@pytest.mark.invariant("INV-API-001", "INV-API-003")
@pytest.mark.parametrize("function", ["receive_instruction", "enqueue_payment_outbox"])
def test_a_payload_that_cannot_be_stored_is_refused_before_any_lock(
    gated: Login, function: str
) -> None:
    role, element, table = BATCHES[function]
    connection = gated(role)
    deep: Any = SECRET
    for _ in range(502):
        deep = [deep]
    for payload in ([SECRET], SECRET, {"a": deep}, {"a": 10**1300}, {"a": "x" * 1_000_000}):
        found = refusal(connection, *calls(function, element(payload=payload)))
        assert (found.sqlstate, found.table, found.column) == ("23514", table, "payload"), found
        assert SECRET not in repr(found)


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("function", BATCHES)
def test_a_call_is_bounded_as_a_whole_before_any_lock(gated: Login, function: str) -> None:
    role, element, _ = BATCHES[function]
    found = refusal(
        gated(role),
        f"SELECT FROM orchestration.{function}("
        "(SELECT jsonb_agg(%s::jsonb || jsonb_build_object('more', repeat('x', 900000)))"
        " FROM generate_series(1, 75)))",
        (json.dumps(element()),),
    )
    assert (found.sqlstate, found.constraint) == ("22023", "INV-API-001"), found


@pytest.mark.invariant("INV-API-001")
def test_what_is_at_its_bound_is_stored(login: Login, owner: Connect) -> None:
    connection = login("executor")
    payload = {"a": "x" * (1_000_000 - len('{"a": ""}'))}
    stored = item(
        idempotency_key="k" * 1000,
        rail_type="ä" * 500,
        payload=payload,
    )
    connection.execute(*calls("enqueue_payment_outbox", stored))
    assert (
        scalar(
            owner,
            "SELECT octet_length(payload::text) FROM orchestration.payment_outbox_items"
            " WHERE idempotency_key = %s",
            ("k" * 1000,),
        )
        == 1_000_000
    )


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-003")
def test_a_refusal_repeats_at_most_200_characters_of_a_text(owner: Connect) -> None:
    for message, detail in (("m" * 10_000, {"id": "d" * 10_000}), ("m", {"n": 1, "s": "ä" * 300})):
        found = refusal(
            owner,
            "SELECT orchestration.raise_invariant('INV-API-001', '22023', %s, 't', %s::jsonb, 'h')",
            (message, json.dumps(detail)),
        )
        assert len(found.message) <= 200
        assert all(len(str(value)) <= 200 for value in found.keys.values())
        assert found.keys.keys() == detail.keys()


@pytest.mark.invariant("INV-ATT-007")
def test_a_replay_without_payload_hash_answers_nothing(login: Login, owner: Connect) -> None:
    activate_policy(owner)
    connection = login("ingest")
    connection.execute(*calls("append_attestations", attestation()))
    for changed in ({"payload_hash": None}, {"payload_hash": digest("other")}):
        found = refusal(connection, *calls("append_attestations", attestation(**changed)))
        assert found.sqlstate in {"23502", "P7303"}
        assert digest(SECRET) not in repr(found)

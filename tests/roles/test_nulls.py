"""A null never counts as equal. Each argument, and each key of each JSON argument, is left out and
set to null in turn, in a new call and in a repetition of an earlier one.

The functions come from the catalogue, so a new function is included automatically. A null must be
rejected unless the argument or key is listed here as optional, or as not part of the content of a
replay.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.roles.matrix import AS_CALLER, RUNTIME_ROLES
from tests.roles.test_fuzz import LISTED, Function, functions_of
from tests.support import Connect, digest, instruction_id, scalar

pytestmark = pytest.mark.instructed

OPTIONAL_ARGUMENTS = {
    "verify_attestation_chain": {"p_caller_identity"},  # It reports that no caller is named.
}
OPTIONAL_KEYS = {
    "append_attestations": {
        *("signature_hash", "client_cert_fingerprint_sha256", "token_hash"),
    },
    "receive_instruction": {"uetr", "value_date"},
    "enqueue_payment_outbox": {"due_at", "max_attempts", "context"},
    "complete_outbox_attempt": {
        *("outcome", "rail_reference", "rail_code", "error_code", "error_message", "retry_in"),
        "latency_ms",
    },
}
"""Keys that a new element can omit."""
NO_CONTENT = {
    "append_attestations": {
        *("signature_hash", "client_cert_fingerprint_sha256", "token_hash", "policy_version_id"),
    },
    "receive_instruction": set[str](),
    "enqueue_payment_outbox": {"due_at", "max_attempts", "context"},
    "complete_outbox_attempt": {
        *("outcome", "rail_code", "error_message", "retry_in", "latency_ms"),
    },
}
"""Keys that the repetition of a stored element can omit: they are not part of its content."""


@pytest.fixture
def world(owner: Connect, login: Callable[[str], Connect]) -> dict[str, Any]:
    """A valid value for each name, taken from existing rows. One item is under a lease."""
    policy = scalar(owner, "SELECT id FROM orchestration.policy_versions WHERE status = 'ACTIVE'")
    attestation = scalar(owner, "SELECT min(id::text) FROM orchestration.ingress_attestations")
    instruction = str(instruction_id("bank-a", 0))
    values: dict[str, Any] = {
        "caller_identity": "caller",
        "idempotency_key": "stored",
        "payload_hash": digest("payload"),
        "signature_hash": digest("signature"),
        "client_cert_fingerprint_sha256": digest("certificate"),
        "token_hash": digest("token"),
        "policy_version_id": policy,
        "attestation_id": attestation,
        "participant_id": "bank-a",
        "instruction_type": "pain.001",
        "end_to_end_id": "e2e",
        "uetr": str(UUID(int=7)),
        "value_date": "2026-01-01",
        "amount_minor": 1,
        "currency": "EUR",
        "debtor_account": "debtor",
        "creditor_account": "creditor",
        "payload": {"a": 1},
        "instruction_id": instruction,
        "id": instruction,
        "version": 2,
        "rail_type": "SEPA",
        "max_attempts": 5,
        "context": {"traceparent": "00"},
        "worker_id": "w",
        "state": "FAILED",
        "outcome": "REJECTED",
        "rail_reference": "r",
        "rail_code": "c",
        "error_code": "e",
        "error_message": "m",
        "latency_ms": 5,
        "scope": "RAIL",
        "target": "SEPA",
        "reason": "why",
        "reason_code": "keyCompromise",
        "event": "EXECUTION_STARTED",
        "attempt_no": 1,
        "batch_size": 1,
        "limit": 1,
        "lease": "1 minute",
        "grace": "1 minute",
        "description": "d",
        "checksum": digest("policy"),
        "cert_fingerprint_sha256": digest("certificate"),
    }
    executor = login("executor")
    for _ in range(2):
        item = {name: values[name] for name in ("instruction_id", "participant_id", "rail_type")}
        executor.execute(
            "SELECT FROM orchestration.enqueue_payment_outbox(%s::jsonb)",
            (json.dumps([item | {"idempotency_key": uuid4().hex, "payload": {"a": 1}}]),),
        )
    leases = executor.execute(
        "SELECT outbox_id::text, lease_token::text"
        " FROM orchestration.claim_outbox_batch('w', 2, interval '1 hour')"
    ).fetchall()
    values["outbox_id"], values["lease_token"] = leases[0]
    values["fresh"] = {
        "idempotency_key": "fresh",
        "outbox_id": leases[1][0],
        "lease_token": leases[1][1],
    }
    return values


def by_role(login: Callable[[str], Connect]) -> Iterator[tuple[str, Connect, Function]]:
    for role in RUNTIME_ROLES:
        connection = login(role)
        for function in functions_of(connection):
            yield role, connection, function


def attempt(
    connection: Connect, function: Function, arguments: Mapping[str, Any]
) -> list[Any] | str:
    """Return the rows of a call, or the code of its error. The call is rolled back."""
    kinds = {name: kind for name, kind, _ in function.arguments}
    given = {
        name: json.dumps(value) if kinds[name] == "jsonb" else value
        for name, value in arguments.items()
    }
    named = ", ".join(f"{name} => %({name})s::{kinds[name]}" for name in given)
    try:
        with connection.transaction(force_rollback=True):
            return connection.execute(
                f"SELECT * FROM orchestration.{function.name}({named})", given
            ).fetchall()
    except psycopg.Error as error:
        refused_inside = error.sqlstate == "42501" and function.name in AS_CALLER
        if error.sqlstate not in LISTED and not refused_inside:
            raise AssertionError(f"{function.name}({arguments}): {str(error)[:500]}") from error
        return str(error.sqlstate)


def element(function: Function, argument: str, world: Mapping[str, Any]) -> dict[str, Any]:
    """A valid element of a JSON argument, with each key that its function reads."""
    return {key: world[key] for key in function.keys[argument] if key in world}


def without(one: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The element with this key set to null, and without the key."""
    yield {**one, key: None}
    yield {name: value for name, value in one.items() if name != key}


@pytest.mark.invariant("INV-API-001")
def test_an_argument_without_a_default_may_not_be_null(
    login: Callable[[str], Connect], world: dict[str, Any]
) -> None:
    wrong: list[Any] = []
    for role, connection, function in by_role(login):
        arguments: dict[str, Any] = {}
        for name, kind, _ in function.arguments:
            if kind == "jsonb":
                arguments[name] = [element(function, name, world)] if name in function.keys else {}
            elif kind == "boolean":
                arguments[name] = False
            elif kind.startswith("timestamp"):
                arguments[name] = None
            else:
                arguments[name] = world.get(name.removeprefix("p_"), world.get("reason"))
        for name, _, optional in function.arguments:
            answer = attempt(connection, function, arguments | {name: None})
            may = optional or name in OPTIONAL_ARGUMENTS.get(function.name, ())
            if not may and not isinstance(answer, str):
                wrong.append((role, function.name, name, answer))
    assert wrong == []


@pytest.mark.invariant("INV-API-001", "INV-ATT-007", "INV-INS-008", "INV-OUT-002", "INV-OUT-004")
def test_a_key_that_is_missing_is_no_match(
    login: Callable[[str], Connect], world: dict[str, Any], owner: Connect
) -> None:
    wrong: list[Any] = []
    measured: set[str] = set()
    for role, connection, function in by_role(login):
        for argument in function.keys:
            stored = element(function, argument, world)
            fresh = stored | {key: value for key, value in world["fresh"].items() if key in stored}
            measured.add(function.name)
            assert not isinstance(attempt(connection, function, {argument: [fresh]}), str), (
                f"the sound element of {function.name} is refused: {fresh}"
            )
            for key in stored:
                for one in without(fresh, key):
                    answer = attempt(connection, function, {argument: [one]})
                    accepted = not isinstance(answer, str)
                    if accepted and key not in OPTIONAL_KEYS.get(function.name, ()):
                        wrong.append(("new", role, function.name, key, answer))
            connection.execute(
                f"SELECT FROM orchestration.{function.name}({argument} => %s::jsonb)",
                (json.dumps([stored]),),
            )
            told = attempt(connection, function, {argument: [stored]})
            assert not isinstance(told, str), f"{function.name} does not answer a replay: {told}"
            for key in stored:
                for one in without(stored, key):
                    answer = attempt(connection, function, {argument: [one]})
                    if isinstance(answer, str):
                        continue
                    if key not in NO_CONTENT.get(function.name, ()) or answer != told:
                        wrong.append(("replay", role, function.name, key, answer))
            answer = attempt(connection, function, {argument: [{}]})
            if not isinstance(answer, str):
                wrong.append(("empty", role, function.name, answer))
    assert measured >= {
        *("append_attestations", "receive_instruction", "enqueue_payment_outbox"),
        "complete_outbox_attempt",
    }
    assert wrong == []

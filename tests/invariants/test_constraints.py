"""Each CHECK, UNIQUE, foreign key and NOT NULL rule of the schema refuses a row on its own.

The triggers are disabled, so that the rule itself decides. A row that violates one rule is refused
under the name of this rule, and is accepted once the rule is dropped. The rules come from the
schema, and a CHECK or foreign key without a violation below fails its test.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import sql
from tools import scratch

from orchestration import schema
from orchestration.models import Base
from tests.conftest import _server
from tests.support import Connect, Refusal, attempt_without, connect, digest, drop

Row = dict[str, Any]
Changes = tuple[Row, ...]

NOW = "2026-01-02 03:04:05Z"
BEFORE = "2026-01-01 00:00:00Z"
TOO_LATE = "9999-01-01 00:00:00Z"
SALT = bytes(16)
EARLIER = "00000000-0000-4000-8000-000000000000"
"""The attestation and the authorized instruction that other rows refer to."""
RECEIVED = "00000000-0000-4000-8000-000000000001"
"""An instruction of the same participant that was not authorized."""
ONE, OTHER, NOWHERE = (f"00000000-0000-4000-8000-00000000000{n}" for n in "234")

WRITER = {"db_user": "writer", "xact_id": 1}


def payload_hash(payload: str, salt: bytes = SALT) -> str:
    """`payload` as PostgreSQL writes a jsonb."""
    return hashlib.sha256(b"orchestration.payload.v1" + salt + payload.encode()).hexdigest()


def payload(text: str) -> Row:
    return {"payload": text, "payload_hash": payload_hash(text)}


ATTEMPT: Row = WRITER | {
    "instruction_id": EARLIER,
    "attempt_no": 1,
    "phase": "OPEN",
    "participant_id": "p",
    "worker_id": "w",
    "occurred_at": NOW,
}
REVOCATION: Row = WRITER | {
    "revocation_no": 1,
    "revoked_at": NOW,
    "recorded_at": NOW,
    "expires_at": NOW,
    "reason_code": "unspecified",
    "revoked_by": "c",
}

ROWS: dict[str, Row] = {
    "audit_log": WRITER
    | {
        "chain_seq": 2,
        "action": "ROTATE",
        "table_name": "t",
        "before": "{}",
        "after": "{}",
        "occurred_at": NOW,
        "db_role": "r",
        "client_addr": "10.0.0.1",
        "prev_hash": digest(1),
        "record_hash": digest(2),
    },
    "audit_log_head": {"singleton": True, "chain_seq": 0, "record_hash": ""},
    "execution_attempts": ATTEMPT,
    "ingress_attestation_events": WRITER
    | {
        "attestation_id": EARLIER,
        "event": "EXECUTION_STARTED",
        "caller_identity": "a",
        "occurred_at": NOW,
        "recorded_by": "w",
    },
    "ingress_attestation_heads": {"caller_identity": "a", "chain_seq": 0, "record_hash": ""},
    "ingress_attestations": WRITER
    | {
        "id": ONE,
        "caller_identity": "a",
        "chain_seq": 2,
        "idempotency_key": "k",
        "payload_hash": digest("payload"),
        "signature_hash": digest("signature"),
        "client_cert_fingerprint_sha256": digest("certificate"),
        "token_hash": digest("token"),
        "policy_version_id": "v",
        "execution_started": False,
        "execution_completed": False,
        "attested_at": NOW,
        "prev_hash": digest(1),
        "record_hash": digest(2),
    },
    "instructions": WRITER
    | payload("{}")
    | {
        "id": ONE,
        "participant_id": "p",
        "idempotency_key": "k",
        "instruction_type": "pain.001",
        "end_to_end_id": "e",
        "value_date": "2026-01-02",
        "amount_minor": 1,
        "currency": "EUR",
        "debtor_account": "d",
        "creditor_account": "c",
        "payload_salt": SALT,
        "attestation_id": EARLIER,
        "policy_version_id": "v",
        "state": "RECEIVED",
        "unresolved": 0,
        "version": 1,
        "created_at": NOW,
        "updated_at": NOW,
    },
    "kill_switch_gate": {"singleton": True, "changes": 0},
    "kill_switches": WRITER
    | {
        "event_no": 1,
        "scope": "RAIL",
        "target": "SEPA",
        "action": "ENGAGE",
        "reason": "test",
        "key": "k",
        "actor": "c",
        "occurred_at": NOW,
    },
    "participant_outbox_sequences": {"participant_id": "p", "next_sequence_id": 1},
    "payment_outbox_attempts": WRITER
    | {
        "outbox_id": ONE,
        "attempt_no": 1,
        "phase": "CLOSE",
        "state": "DISPATCHED",
        "requested_state": "DISPATCHED",
        "lease_token": ONE,
        "worker_id": "w",
        "claimed_at": NOW,
        "completed_at": NOW,
    },
    "payment_outbox_interventions": WRITER
    | {
        "outbox_id": ONE,
        "intervention_no": 1,
        "action": "CLOSE_CONTRADICTION",
        "result_no": 1,
        "reason": "test",
        "acted_by": "c",
        "acted_at": NOW,
    },
    "payment_outbox_items": WRITER
    | payload("{}")
    | {
        "outbox_id": ONE,
        "instruction_id": EARLIER,
        "participant_id": "p",
        "sequence_id": 1,
        "idempotency_key": "k",
        "redrive_no": 0,
        "rail_type": "SEPA",
        "payload_salt": SALT,
        "max_attempts": 20,
        "context": "{}",
        "created_at": NOW,
    },
    "payment_outbox_late_results": WRITER
    | {
        "outbox_id": ONE,
        "result_no": 1,
        "attempt_no": 1,
        "source": "RECONCILIATION",
        "outcome": "SENT",
        "rail_reference": "r",
        "reason": "test",
        "recorded_by": "c",
        "recorded_at": NOW,
        "instruction_version": 1,
    },
    "payment_outbox_pending": {
        "outbox_id": ONE,
        "instruction_id": EARLIER,
        "participant_id": "p",
        "sequence_id": 1,
        "rail_type": "SEPA",
        "attempt_count": 0,
        "next_attempt_at": NOW,
    },
    "policy_gate": {"singleton": True, "changes": 0},
    "policy_versions": WRITER
    | {
        "id": "v",
        "description": "test",
        "checksum": digest("v"),
        "status": "ACTIVE",
        "activated_at": NOW,
        "created_at": NOW,
        "created_by": "c",
    },
    "revocation_gate": {"singleton": True, "changes": 0},
    "revoked_client_certs": REVOCATION | {"cert_fingerprint_sha256": digest("certificate")},
    "revoked_tokens": REVOCATION | {"token_hash": digest("token")},
    "schema_revision": {"singleton": True, "revision": "0001", "changes": 0},
    "status_history": WRITER
    | {
        "instruction_id": EARLIER,
        "version": 1,
        "participant_id": "p",
        "to_state": "RECEIVED",
        "occurred_at": NOW,
    },
    "transaction_attempts": ATTEMPT | {"rail_type": "SEPA"},
}
"""A row per table that violates no rule."""

PARENTS: tuple[tuple[str, Row], ...] = (
    (
        "ingress_attestations",
        ROWS["ingress_attestations"] | {"id": EARLIER, "caller_identity": "earlier"},
    ),
    *(
        (
            "instructions",
            ROWS["instructions"] | {"id": id, "idempotency_key": id, "state": state},
        )
        for id, state in {EARLIER: "AUTHORIZED", RECEIVED: "RECEIVED"}.items()
    ),
)


# Violations: the changes that make a row of ROWS violate one CHECK or foreign key and no other
# rule. Each change violates it alone.


def wrong(column: str, *values: Any) -> Changes:
    return tuple({column: value} for value in values)


def text(column: str, most: int = 1000, *, least: int = 1, needs: Row | None = None) -> Changes:
    """Texts of one octet too few and too many; the long one has only half as many characters."""
    long = "é" * (most // 2) + "x" * (1 + most % 2)
    return tuple({**(needs or {}), column: value} for value in [""] * least + [long])


def hash(column: str) -> Changes:
    return wrong(column, "", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "٣" * 32, "0" * 63 + "\n")


def years(column: str, needs: Row | None = None) -> Changes:
    values = ("0001-01-01 00:00:00Z BC", TOO_LATE, "infinity", "-infinity")
    return tuple({**(needs or {}), column: value} for value in values)


def document(column: str, most: int | None) -> Changes:
    """JSON that is not an object, is nested too deep, has too large a number or is too long."""
    deep = '{"k": ' + "[" * 501 + "]" * 501 + "}"
    large = '{"k": 1' + "0" * 1234 + "}"
    texts = ["[]", deep, large, large.replace("1", "-1", 1)]
    if most is not None:
        texts.append('{"k": "' + "x" * (most - 8) + '"}')
    return tuple(payload(text) if column == "payload" else {column: text} for text in texts)


ENDED = {"phase": "CLOSE", "outcome": "FAILED"}
RETIRED = {"status": "RETIRED", "grace_expires_at": NOW, "retired_at": NOW}
OPENED = {
    "phase": "OPEN",
    "state": "DISPATCHING",
    "requested_state": None,
    "completed_at": None,
}


def outcomes() -> Changes:
    return (
        {"outcome": "FAILED"},
        {"phase": "CLOSE"},
        {"phase": "CLOSE", "outcome": "PAID"},
        {"phase": "HALF"},
        {"phase": "HALF", "outcome": "FAILED"},
    )


def errors() -> Changes:
    return (
        {"error_code": "e"},
        {"error_message": "e"},
        {"phase": "CLOSE", "outcome": "SUCCEEDED", "error_code": "e"},
        {"phase": "CLOSE", "outcome": "SUCCEEDED", "error_message": "e"},
        *text("error_code", needs=ENDED),
        *text("error_message", 4000, needs=ENDED),
    )


def attempts(table: str) -> dict[str, Changes]:
    return {
        f"ck_{table}_attempt_no": wrong("attempt_no", 0, -1),
        f"ck_{table}_error": errors(),
        f"ck_{table}_outcome": outcomes(),
        f"ck_{table}_worker_id": text("worker_id"),
        f"ck_{table}_years": years("occurred_at"),
        f"fk_{table}_participant_id_instruction_id": (
            {"participant_id": "q"},
            {"instruction_id": NOWHERE},
        ),
    }


def revocations(table: str) -> dict[str, Changes]:
    return {
        f"ck_{table}_expiry": wrong("expires_at", BEFORE),
        f"ck_{table}_reason_code": wrong("reason_code", "", "removeFromCRL"),
        f"ck_{table}_revocation_no": wrong("revocation_no", 0),
        f"ck_{table}_revoked_by": text("revoked_by"),
        f"ck_{table}_years": (
            *years("revoked_at", {"expires_at": None}),
            *years("recorded_at"),
            *wrong("expires_at", TOO_LATE, "infinity"),
            {"revoked_at": "-infinity", "expires_at": "-infinity"},
        ),
    }


VIOLATIONS: dict[str, Changes] = {
    "ck_audit_log_action": wrong("action", "", "rotate"),
    "ck_audit_log_after": document("after", None),
    "ck_audit_log_before": document("before", None),
    "ck_audit_log_chain_seq": wrong("chain_seq", 0, -1),
    "ck_audit_log_client_addr": wrong("client_addr", "10.0.0.0/8", "fe80::/64"),
    "ck_audit_log_head_chain_seq": wrong("chain_seq", -1),
    "ck_audit_log_head_singleton": wrong("singleton", False),
    "ck_audit_log_prev_hash": ({"chain_seq": 1}, {"prev_hash": ""}),
    "ck_audit_log_record_hash": hash("record_hash"),
    "ck_audit_log_table_name": text("table_name"),
    "ck_audit_log_years": years("occurred_at"),
    **attempts("execution_attempts"),
    "ck_ingress_attestation_events_event": wrong("event", "", "EXECUTION_FAILED"),
    "ck_ingress_attestation_events_recorded_by": text("recorded_by"),
    "ck_ingress_attestation_events_terminal_status": (
        {"terminal_status": "SUCCESS"},
        {"event": "EXECUTION_COMPLETED"},
        {"event": "EXECUTION_COMPLETED", "terminal_status": "DONE"},
    ),
    "ck_ingress_attestation_events_years": years("occurred_at"),
    "fk_ingress_attestation_events_attestation_id": wrong("attestation_id", NOWHERE),
    "ck_ingress_attestation_heads_caller_identity": text("caller_identity"),
    "ck_ingress_attestation_heads_chain_seq": wrong("chain_seq", -1),
    "ck_ingress_attestations_caller_identity": text("caller_identity"),
    "ck_ingress_attestations_chain_seq": wrong("chain_seq", 0, -1),
    "ck_ingress_attestations_client_cert_fingerprint_sha256": hash(
        "client_cert_fingerprint_sha256"
    ),
    "ck_ingress_attestations_execution": (
        {"execution_completed": True, "terminal_status": "SUCCESS"},
    ),
    "ck_ingress_attestations_idempotency_key": text("idempotency_key"),
    "ck_ingress_attestations_payload_hash": hash("payload_hash"),
    "ck_ingress_attestations_prev_hash": ({"chain_seq": 1}, {"prev_hash": ""}),
    "ck_ingress_attestations_record_hash": hash("record_hash"),
    "ck_ingress_attestations_signature_hash": hash("signature_hash"),
    "ck_ingress_attestations_terminal_status": (
        {"terminal_status": "SUCCESS"},
        {"execution_started": True, "execution_completed": True},
        {"execution_started": True, "execution_completed": True, "terminal_status": "DONE"},
    ),
    "ck_ingress_attestations_token_hash": hash("token_hash"),
    "ck_ingress_attestations_years": years("attested_at"),
    "ck_instructions_amount_minor": wrong("amount_minor", 0, -5),
    "ck_instructions_creditor_account": text("creditor_account"),
    "ck_instructions_currency": wrong("currency", "", "EU", "EURO", "eur", "E R", "É1", "EU\n"),
    "ck_instructions_debtor_account": text("debtor_account"),
    "ck_instructions_end_to_end_id": text("end_to_end_id"),
    "ck_instructions_idempotency_key": text("idempotency_key"),
    "ck_instructions_instruction_type": text("instruction_type"),
    "ck_instructions_participant_id": text("participant_id"),
    "ck_instructions_payload": document("payload", 1_000_000),
    "ck_instructions_payload_hash": (
        {"payload_hash": digest("other")},
        {"payload": '{"k": 1}'},
        {"payload_salt": b"\1" * 16},
    ),
    "ck_instructions_payload_salt": tuple(
        {"payload_salt": salt, "payload_hash": payload_hash("{}", salt)}
        for salt in (b"", bytes(15), bytes(17))
    ),
    "ck_instructions_reason": (
        {"reason": "test"},
        {"state": "FAILED", "completed_at": NOW},
        *text("reason", 4000, needs={"state": "FAILED", "completed_at": NOW}),
    ),
    "ck_instructions_state": wrong("state", "", "SETTLED"),
    "ck_instructions_times": (
        {"completed_at": NOW},
        {"state": "COMPLETED"},
        {"state": "FAILED", "reason": "test"},
        *years("created_at"),
    ),
    "ck_instructions_unresolved": wrong("unresolved", -1),
    "ck_instructions_value_date": wrong("value_date", "0001-01-01 BC", "9999-01-01", "infinity"),
    "ck_instructions_version": wrong("version", 0),
    "fk_instructions_attestation_id_policy_version_id": (
        {"attestation_id": NOWHERE},
        {"policy_version_id": "w"},
    ),
    "ck_kill_switch_gate_singleton": wrong("singleton", False),
    "ck_kill_switches_action": wrong("action", "", "engage"),
    "ck_kill_switches_actor": text("actor"),
    "ck_kill_switches_event_no": wrong("event_no", 0),
    "ck_kill_switches_key": text("key"),
    "ck_kill_switches_reason": text("reason", 4000),
    "ck_kill_switches_scope": (
        *({"scope": one} for one in ("GLOBAL", "INGEST", "EXECUTION", "DISPATCH", "BANK")),
        {"scope": "BANK", "target": None},
        {"target": None},
        {"scope": "PARTICIPANT", "target": None},
        *text("target"),
        *text("target", needs={"scope": "PARTICIPANT"}),
    ),
    "ck_participant_outbox_sequences_next_sequence_id": wrong("next_sequence_id", 0),
    "ck_participant_outbox_sequences_participant_id": text("participant_id"),
    "ck_payment_outbox_attempts_attempt_no": wrong("attempt_no", 0),
    "ck_payment_outbox_attempts_latency_ms": wrong("latency_ms", -1),
    "ck_payment_outbox_attempts_opening": tuple(
        OPENED | {column: "1"}
        for column in ("rail_reference", "rail_code", "error_code", "error_message", "latency_ms")
    ),
    "ck_payment_outbox_attempts_outcome": (
        {"outcome": "UNKNOWN"},
        OPENED | {"outcome": "UNKNOWN"},
        {"state": "FAILED", "requested_state": "FAILED"},
        {"state": "FAILED", "requested_state": "FAILED", "outcome": "SENT"},
        {"state": "RETRYABLE", "requested_state": "RETRYABLE", "outcome": "SENT"},
        {"state": "ZOMBIE_REQUEUE", "requested_state": None, "outcome": "UNKNOWN"},
    ),
    "ck_payment_outbox_attempts_requested_state": (
        OPENED | {"requested_state": "DISPATCHED"},
        {"requested_state": None},
        {"requested_state": None, "state": "RETRYABLE"},
        {"requested_state": "RETRYABLE"},
        {"requested_state": "FAILED"},
        {"state": "RETRYABLE"},
        {"requested_state": "DISPATCHING"},
        {"requested_state": None, "state": "ZOMBIE_REQUEUE", "requested_error_code": "e"},
    ),
    "ck_payment_outbox_attempts_state": (
        OPENED | {"state": "RETRYABLE"},
        {
            "phase": "HALF",
            "state": "RETRYABLE",
            "requested_state": "RETRYABLE",
            "completed_at": None,
        },
    ),
    "ck_payment_outbox_attempts_texts": tuple(
        change
        for column in ("requested_error_code", "rail_reference", "rail_code", "error_code")
        for change in text(column, least=0)
    )
    + text("error_message", 4000, least=0),
    "ck_payment_outbox_attempts_times": (
        {"completed_at": None},
        OPENED | {"completed_at": NOW},
        *wrong("claimed_at", "infinity", "-infinity"),
    ),
    "ck_payment_outbox_attempts_worker_id": text("worker_id"),
    "ck_payment_outbox_interventions_acted_by": text("acted_by"),
    "ck_payment_outbox_interventions_action": (
        {"action": "REDRIVE"},
        {"result_no": None},
        {"attempt_no": 1},
        {"time_before": NOW},
        {"time_after": NOW},
        {"action": "CANCEL", "result_no": None},
        {"action": "CANCEL", "attempt_no": 1},
        {"action": "CANCEL", "attempt_no": 1, "result_no": None, "time_before": NOW},
        {"action": "RESCHEDULE", "result_no": None, "time_before": NOW},
        {"action": "RESCHEDULE", "time_before": NOW, "time_after": NOW},
        {"action": "EXPIRE_LEASE", "result_no": None, "time_before": NOW, "time_after": NOW},
        {"action": "EXPIRE_LEASE", "attempt_no": 1, "time_before": NOW, "time_after": NOW},
    ),
    "ck_payment_outbox_interventions_intervention_no": wrong("intervention_no", 0),
    "ck_payment_outbox_interventions_reason": text("reason", 4000),
    "ck_payment_outbox_interventions_years": years("acted_at"),
    "ck_payment_outbox_items_context": document("context", 8192),
    "ck_payment_outbox_items_idempotency_key": text("idempotency_key"),
    "ck_payment_outbox_items_max_attempts": wrong("max_attempts", 0, 1001),
    "ck_payment_outbox_items_participant_id": text("participant_id"),
    "ck_payment_outbox_items_payload": document("payload", 1_000_000),
    "ck_payment_outbox_items_payload_hash": (
        {"payload_hash": digest("other")},
        {"payload": '{"k": 1}'},
        {"payload_salt": b"\1" * 16},
    ),
    "ck_payment_outbox_items_payload_salt": tuple(
        {"payload_salt": salt, "payload_hash": payload_hash("{}", salt)}
        for salt in (b"", bytes(15), bytes(17))
    ),
    "ck_payment_outbox_items_rail_type": text("rail_type"),
    "ck_payment_outbox_items_redrive": (
        {"redrive_no": -1, "redrive_of": OTHER},
        {"redrive_no": 1},
        {"redrive_of": OTHER},
    ),
    "ck_payment_outbox_items_sequence_id": wrong("sequence_id", 0),
    "ck_payment_outbox_items_years": years("created_at"),
    "ck_payment_outbox_late_results_outcome": wrong("outcome", "", "UNKNOWN"),
    "ck_payment_outbox_late_results_rail_reference": text("rail_reference"),
    "ck_payment_outbox_late_results_reason": text("reason", 4000),
    "ck_payment_outbox_late_results_recorded_by": text("recorded_by"),
    "ck_payment_outbox_late_results_result_no": wrong("result_no", 0),
    "ck_payment_outbox_late_results_source": (
        {"source": "RAIL"},
        {"source": "WORKER", "reason": None},
        {"source": "WORKER", "lease_token": ONE},
        {"lease_token": ONE},
        {"reason": None},
    ),
    "ck_payment_outbox_late_results_years": years("recorded_at"),
    "ck_payment_outbox_pending_attempt_count": wrong("attempt_count", -1),
    "ck_payment_outbox_pending_lease": (
        {"claimed_by": "w"},
        {"lease_token": ONE},
        {"lease_expires_at": NOW},
        {"claimed_by": "w", "lease_token": ONE},
        {"claimed_by": "w", "lease_token": ONE, "lease_expires_at": "infinity"},
        *text("claimed_by", least=0, needs={"lease_token": ONE, "lease_expires_at": NOW}),
    ),
    "ck_payment_outbox_pending_next_attempt_at": years("next_attempt_at"),
    "fk_payment_outbox_pending_participant_id_instruction_id_open": (
        {"participant_id": "q"},
        {"instruction_id": NOWHERE},
        {"instruction_id": RECEIVED},
    ),
    "ck_policy_gate_singleton": wrong("singleton", False),
    "ck_policy_versions_checksum": hash("checksum"),
    "ck_policy_versions_created_by": text("created_by"),
    "ck_policy_versions_description": text("description", 4000),
    "ck_policy_versions_id": text("id"),
    "ck_policy_versions_status": (
        {"status": "", "grace_expires_at": NOW},
        {"status": "DRAFT", "grace_expires_at": NOW},
    ),
    "ck_policy_versions_times": (
        {"grace_expires_at": NOW},
        {"retired_at": NOW},
        {"status": "GRACE"},
        {"status": "GRACE", "grace_expires_at": NOW, "retired_at": NOW},
        {"status": "RETIRED", "grace_expires_at": NOW},
    ),
    "ck_policy_versions_years": (
        *years("activated_at"),
        *years("created_at"),
        *years("grace_expires_at", RETIRED),
        *years("retired_at", RETIRED),
    ),
    "ck_revocation_gate_singleton": wrong("singleton", False),
    **revocations("revoked_client_certs"),
    **revocations("revoked_tokens"),
    "ck_schema_revision_singleton": wrong("singleton", False),
    "ck_status_history_reason": (
        {"reason": "test"},
        {"from_state": "EXECUTING", "to_state": "FAILED"},
        *text("reason", 4000, least=0, needs={"from_state": "EXECUTING", "to_state": "FAILED"}),
    ),
    "ck_status_history_transition": (
        {"version": 2},
        {"from_state": "AUTHORIZED"},
        {"to_state": "SETTLED", "from_state": "EXECUTING"},
        *({"to_state": one} for one in ("AUTHORIZED", "EXECUTING", "COMPLETED")),
        {"to_state": "FAILED", "reason": "test"},
        {"to_state": "AUTHORIZED", "from_state": "EXECUTING"},
        {"to_state": "EXECUTING", "from_state": "RECEIVED"},
        {"to_state": "COMPLETED", "from_state": "AUTHORIZED"},
        {"to_state": "FAILED", "from_state": "COMPLETED", "reason": "test"},
    ),
    "fk_status_history_participant_id_instruction_id": (
        {"participant_id": "q"},
        {"instruction_id": NOWHERE},
    ),
    **attempts("transaction_attempts"),
    "ck_transaction_attempts_rail_reference": (
        {"rail_reference": "r"},
        *text("rail_reference", needs=ENDED),
    ),
    "ck_transaction_attempts_rail_type": text("rail_type"),
}

# Unique rules: two rows that differ in every key, except in the columns of the rule. A table with
# one rule needs no difference.

DIFFERENT: dict[str, Row] = {
    "audit_log": {"chain_seq": 3, "prev_hash": digest(2)},
    "ingress_attestations": {
        "id": OTHER,
        "chain_seq": 3,
        "idempotency_key": "l",
        "prev_hash": digest(2),
        "policy_version_id": "w",
    },
    # `open` is generated from the state.
    "instructions": {
        "id": OTHER,
        "participant_id": "q",
        "idempotency_key": "l",
        "state": "AUTHORIZED",
    },
    "kill_switches": {"event_no": 2, "key": "l"},
    "payment_outbox_attempts": {"outbox_id": OTHER, "attempt_no": 2},
    "payment_outbox_interventions": {"outbox_id": OTHER, "intervention_no": 2, "result_no": 2},
    "payment_outbox_items": {"outbox_id": OTHER, "idempotency_key": "l", "sequence_id": 2},
    "policy_versions": {"id": "w"} | RETIRED,
}

PAIRS: dict[str, tuple[Row, Row]] = {
    "uq_instructions_participant_id_id_open": ({}, {"idempotency_key": "l"}),
    "uq_policy_versions_active": ({}, {"id": "w"}),
    "uq_policy_versions_grace": (
        {"status": "GRACE", "grace_expires_at": NOW},
        {"status": "GRACE", "grace_expires_at": NOW, "id": "w"},
    ),
}
"""Both rows of the rules for which the columns alone do not say how they are violated."""


def insert(table: str, row: Row) -> str:
    return (
        sql.SQL("INSERT INTO orchestration.{} ({}) VALUES ({})")
        .format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(map(sql.Literal, row.values())),
        )
        .as_string()
    )


# The rules, by name.

TABLE_RULES = sorted(
    path.partition("/")[2] for path in schema.expected() if path.startswith("constraints/")
)
SINGLE = [name for name in TABLE_RULES if name.startswith(("ck_", "fk_"))]
UNIQUE = sorted(
    path.partition("/")[2]
    for path in schema.expected()
    if path.startswith(("indexes/pk_", "indexes/uq_"))
)
NOT_NULL = [
    (table.name, column.name)
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if not column.nullable
]


@pytest.fixture(scope="module")
def owner(server: scratch.Server, pytestconfig: pytest.Config) -> Iterator[Connect]:
    """In a database without triggers, where every table is empty but for PARENTS."""
    template = pytestconfig.stash[_server]["template"]
    name = scratch.PREFIX + secrets.token_hex(8)
    url = scratch.create_database(server, name, template=template)
    try:
        with connect(url) as connection:
            connection.execute("SET ROLE symphony_owner")
            for table in ROWS:
                named = sql.Identifier("orchestration", table)
                connection.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(named))
                connection.execute(sql.SQL("DELETE FROM {}").format(named))
            for table, row in PARENTS:
                connection.execute(insert(table, row))
            yield connection
    finally:
        scratch.drop_database(server, name)


def names(connection: Connect, query: str, *parameters: object) -> list[Any]:
    return [name for (name,) in connection.execute(query, parameters)]


def table_of(connection: Connect, rule: str) -> str:
    """The table of a constraint or index."""
    (table,) = names(
        connection,
        "SELECT c.relname FROM pg_class c WHERE c.oid IN ("
        " SELECT k.conrelid FROM pg_constraint k"
        " WHERE k.conname = %s AND k.connamespace = 'orchestration'::regnamespace"
        " UNION SELECT i.indrelid FROM pg_index i"
        " WHERE i.indexrelid = to_regclass('orchestration.' || %s))",
        rule,
        rule,
    )
    return str(table)


def path_of(connection: Connect, rule: str) -> str:
    """The path in schema/current of what is dropped to remove a rule."""
    found = names(connection, "SELECT 1 FROM pg_constraint WHERE conname = %s", rule)
    return f"{'constraints' if found else 'indexes'}/{rule}"


def found(refusal: Refusal | None) -> tuple[str | None, str | None, str | None]:
    assert refusal is not None, "accepted"
    return refusal.sqlstate, refusal.table, refusal.constraint


@pytest.mark.parametrize("rule", SINGLE)
def test_a_check_or_foreign_key_refuses_a_row_on_its_own(owner: Connect, rule: str) -> None:
    assert rule in VIOLATIONS, f"{rule}: add the changes that violate it to VIOLATIONS"
    table = table_of(owner, rule)
    refused = ({"ck": "23514", "fk": "23503"}[rule[:2]], table, rule)
    rows = [(change, [insert(table, ROWS[table] | change)]) for change in VIOLATIONS[rule]]
    with owner.transaction(force_rollback=True):
        for change, statements in rows:
            assert found(attempt_without(owner, [], statements)) == refused, change
        drop(owner, f"constraints/{rule}")
        for change, statements in rows:
            assert attempt_without(owner, [], statements) is None, change


# A batch function refuses what the constraints would refuse, whose DETAIL shows the row.

FUNCTIONS = {
    "receive_instruction": (
        "instructions",
        *("participant_id", "idempotency_key", "instruction_type", "end_to_end_id", "value_date"),
        *("amount_minor", "currency", "debtor_account", "creditor_account", "payload"),
        *("attestation_id", "policy_version_id"),
    ),
    "enqueue_payment_outbox": (
        "payment_outbox_items",
        *("instruction_id", "participant_id", "idempotency_key", "rail_type", "payload"),
        *("max_attempts", "context"),
    ),
}
"""The table and the columns that an element of each function's batch gives."""
OPTIONAL = {"value_date", "max_attempts", "context"}


def element(table: str, columns: tuple[str, ...], changes: Row) -> str:
    """An element of a batch, as JSON."""
    row = ROWS[table] | changes
    values = (
        row[column] if column in ("payload", "context") and row[column] else json.dumps(row[column])
        for column in columns
    )
    named = zip(columns, values, strict=True)
    return "{" + ", ".join(f'"{column}": {value}' for column, value in named) + "}"


MALFORMED = [
    (function, column, change)
    for function, (table, *columns) in FUNCTIONS.items()
    for column in columns
    for change in VIOLATIONS.get(f"ck_{table}_{column}", ())
]
MISSING = [
    (function, column, {column: None})
    for function, (_, *columns) in FUNCTIONS.items()
    for column in columns
    if column not in OPTIONAL
]


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    ("function", "column", "change", "sqlstate"),
    [
        *(
            pytest.param(*one, "23514", id=f"{one[0]}-{one[1]}-{n}")
            for n, one in enumerate(MALFORMED)
        ),
        *(pytest.param(*one, "23502", id=f"{one[0]}-{one[1]}-null") for one in MISSING),
    ],
)
def test_a_batch_function_refuses_without_the_constraints_of_its_table(
    owner: Connect, function: str, column: str, change: Row, sqlstate: str
) -> None:
    table, *columns = FUNCTIONS[function]
    batch = f"[{element(table, tuple(columns), change)}]"
    statements = [
        f"ALTER TABLE orchestration.{table} ALTER {one} DROP NOT NULL"
        for (named, one) in NOT_NULL
        if named == table and one not in ("id", "outbox_id")
    ]
    statements.append(
        sql.SQL("SELECT FROM orchestration.{}({})")
        .format(sql.Identifier(function), sql.Literal(batch))
        .as_string()
    )
    checks = names(
        owner,
        "SELECT conname FROM pg_constraint WHERE contype = 'c'"
        " AND conrelid = to_regclass('orchestration.' || %s)",
        table,
    )
    refused = attempt_without(owner, [f"constraints/{one}" for one in checks], statements)
    assert refused is not None, "accepted"
    assert (refused.sqlstate, refused.constraint, refused.table, refused.column) == (
        *(sqlstate, "INV-API-001", table, column),
    )
    assert refused.keys == {"ordinal": 1, "column": column}


@pytest.mark.parametrize("rule", UNIQUE)
def test_a_unique_rule_refuses_a_second_row_on_its_own(owner: Connect, rule: str) -> None:
    table = table_of(owner, rule)
    columns = names(
        owner,
        "SELECT a.attname FROM pg_attribute a JOIN pg_index i ON i.indrelid = a.attrelid"
        " WHERE i.indexrelid = to_regclass('orchestration.' || %s) AND a.attnum = ANY (i.indkey)",
        rule,
    )
    # A rule about fewer of the columns is violated as well, and has its own test.
    behind = names(
        owner,
        "SELECT o.indexrelid::regclass::text"
        " FROM pg_index i JOIN pg_index o ON o.indrelid = i.indrelid"
        " WHERE i.indexrelid = to_regclass('orchestration.' || %s) AND o.indisunique"
        "   AND o.indexrelid <> i.indexrelid AND i.indkey::smallint[] @> o.indkey::smallint[]",
        rule,
    )
    dropped = [path_of(owner, one.removeprefix("orchestration.")) for one in behind]
    kept = {column: ROWS[table][column] for column in columns if column in ROWS[table]}
    first, second = PAIRS.get(rule, ({}, {**DIFFERENT.get(table, {}), **kept}))
    statements = [insert(table, ROWS[table] | change) for change in (first, second)]
    assert found(attempt_without(owner, dropped, statements)) == ("23505", table, rule)
    assert attempt_without(owner, [*dropped, path_of(owner, rule)], statements) is None


@pytest.mark.parametrize(("table", "column"), NOT_NULL)
def test_a_not_null_rule_refuses_a_null_on_its_own(owner: Connect, table: str, column: str) -> None:
    # What else judges the column would refuse the null, too, or needs the rule.
    behind = names(
        owner,
        "SELECT k.conname FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid"
        " WHERE k.conrelid = to_regclass('orchestration.' || %s) AND k.contype NOT IN ('n', 't')"
        "   AND a.attname = %s AND a.attnum = ANY (k.conkey)",
        table,
        column,
    )
    dropped = [f"constraints/{one}" for one in behind]
    named = sql.SQL("ALTER TABLE orchestration.{} ALTER {} ").format(
        sql.Identifier(table), sql.Identifier(column)
    )
    changes = []
    if column not in ROWS[table]:
        changes.append((named + sql.SQL("DROP EXPRESSION")).as_string())
    row = insert(table, ROWS[table] | {column: None})
    refused = attempt_without(owner, dropped, [*changes, row])
    assert refused is not None, "accepted"
    assert (refused.sqlstate, refused.table, refused.column) == ("23502", table, column)
    changes.append((named + sql.SQL("DROP NOT NULL")).as_string())
    if (table, column) == ("instructions", "state"):
        # `open` is generated from the state, and is null if the state is.
        changes.append("ALTER TABLE orchestration.instructions ALTER open DROP NOT NULL")
    assert attempt_without(owner, dropped, [*changes, row]) is None


def test_every_rule_of_the_live_catalogue_is_tested(owner: Connect) -> None:
    constraints = names(
        owner,
        "SELECT conname FROM pg_constraint WHERE connamespace = 'orchestration'::regnamespace"
        " AND contype NOT IN ('n', 't') AND conname <> 'alembic_version_pkc'",
    )
    assert sorted(constraints) == TABLE_RULES
    assert set(constraints) <= {*SINGLE, *UNIQUE}
    indexes = names(
        owner,
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE c.relnamespace = 'orchestration'::regnamespace AND i.indisunique"
        " AND c.relname <> 'alembic_version_pkc'",
    )
    assert sorted(indexes) == UNIQUE
    not_null = owner.execute(
        "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = 'orchestration'::regnamespace AND c.relkind = 'r'"
        " AND a.attnotnull AND a.attnum > 0 AND c.relname <> 'alembic_version'"
    ).fetchall()
    assert sorted(not_null) == sorted(NOT_NULL)


def test_every_violation_is_of_a_rule_that_exists() -> None:
    assert set(VIOLATIONS) - set(SINGLE) == set()
    assert set(PAIRS) - set(UNIQUE) == set()

"""The privileges of every role, as data. The tests compare the catalogue, and each attempt, with
this matrix.

A privilege that is not listed must not exist. Every relation must be listed, even if no role can
read it, so that a new relation is not forgotten. Functions that no role can execute need not be
listed.
"""

from collections.abc import Mapping
from typing import Final

RUNTIME_ROLES: Final = ("ingest", "executor", "control", "readonly", "auditor")
NOBODY: Final = "nobody"
"""A login that is a member of no role: it has only the privileges of PUBLIC."""
PRINCIPALS: Final = (*RUNTIME_ROLES, NOBODY)

EVERYONE: Final = frozenset(RUNTIME_ROLES)
NONE: Final[frozenset[str]] = frozenset()

MAY_SELECT: Final[Mapping[str, frozenset[str]]] = {
    "schema_revision": EVERYONE,
    "alembic_version": NONE,
    "audit_log": frozenset({"control", "auditor"}),
    "audit_log_head": frozenset({"auditor"}),
    "policy_versions": EVERYONE,
    "accepted_policy_versions": EVERYONE,
    "policy_gate": frozenset({"auditor"}),
    "revocation_gate": frozenset({"auditor"}),
    "kill_switch_gate": frozenset({"auditor"}),
    "kill_switches": EVERYONE - {"ingest"},
    "kill_switch_state": EVERYONE,
    "revoked_client_certs": EVERYONE - {"executor"},
    "revoked_tokens": EVERYONE - {"executor"},
    "revoked_client_certs_in_force": EVERYONE - {"executor"},
    "revoked_tokens_in_force": EVERYONE - {"executor"},
    "ingress_attestations": frozenset({"control", "readonly", "auditor"}),
    "ingress_attestation_events": frozenset({"control", "readonly", "auditor"}),
    "ingress_attestation_status": EVERYONE,
    "ingress_attestation_heads": frozenset({"auditor"}),
    "instructions": EVERYONE - {"readonly"},
    "instruction_status": EVERYONE,
    "status_history": EVERYONE - {"ingest"},
    "execution_attempts": EVERYONE - {"ingest"},
    "transaction_attempts": EVERYONE - {"ingest"},
    "payment_outbox_items": frozenset({"executor", "control", "auditor"}),
    "payment_outbox_pending": EVERYONE - {"ingest"},
    "payment_outbox_attempts": EVERYONE - {"ingest"},
    "payment_outbox_status": EVERYONE,
    "payment_outbox_depth": EVERYONE,
    "payment_outbox_claimed": frozenset({"executor"}),
    "payment_outbox_late_results": EVERYONE - {"ingest"},
    "payment_outbox_interventions": EVERYONE - {"ingest"},
    "payment_outbox_unresolved": EVERYONE - {"ingest"},
    "payment_outbox_contradictions": EVERYONE - {"ingest"},
    "participant_outbox_sequences": frozenset({"control", "auditor"}),
    # Row types of functions.
    "policy_version_result": NONE,
    "kill_switch_result": NONE,
    "ingress_attestation_result": NONE,
    "ingress_attestation_event_result": NONE,
    "instruction_result": NONE,
    "execution_attempt_result": NONE,
    "transaction_attempt_result": NONE,
    "payment_outbox_item_summary": NONE,
    "payment_outbox_item_result": NONE,
    "payment_outbox_late_result_result": NONE,
    "payment_outbox_intervention_result": NONE,
}

MAY_EXECUTE: Final[Mapping[str, frozenset[str]]] = {
    "append_attestations": frozenset({"ingest"}),
    "require_policy_accepted": frozenset({"ingest", "executor", "control"}),
    "require_credential_not_revoked": frozenset({"ingest", "executor", "control"}),
    "receive_instruction": frozenset({"ingest"}),
    "authorize_instruction": frozenset({"executor"}),
    "start_execution": frozenset({"executor"}),
    "complete_instruction": frozenset({"executor"}),
    "fail_instruction": frozenset({"executor"}),
    "open_execution_attempt": frozenset({"executor"}),
    "close_execution_attempt": frozenset({"executor"}),
    "open_transaction_attempt": frozenset({"executor"}),
    "close_transaction_attempt": frozenset({"executor"}),
    "enqueue_payment_outbox": frozenset({"executor"}),
    "claim_outbox_batch": frozenset({"executor"}),
    "renew_outbox_lease": frozenset({"executor"}),
    "complete_outbox_attempt": frozenset({"executor"}),
    "repair_expired_leases": frozenset({"executor", "control"}),
    "record_attestation_event": frozenset({"executor"}),
    "rotate_policy_version": frozenset({"control"}),
    "retire_policy_version": frozenset({"control"}),
    "engage_kill_switch": frozenset({"control"}),
    "release_kill_switch": frozenset({"control"}),
    "revoke_client_cert": frozenset({"control"}),
    "revoke_token": frozenset({"control"}),
    "record_late_result": frozenset({"executor", "control"}),
    "record_worker_result": frozenset({"executor"}),
    "resolve_outbox_item": frozenset({"control"}),
    "cancel_outbox_item": frozenset({"control"}),
    "reschedule_outbox_item": frozenset({"control"}),
    "expire_outbox_lease": frozenset({"control"}),
    "close_contradiction": frozenset({"control"}),
    "revocations_since": EVERYONE - {"executor"},
    "redrive_outbox_item": frozenset({"control"}),
    "gate_holders": frozenset({"control", "readonly", "auditor"}),
    "verify_attestation_chain": frozenset({"control", "auditor"}),
    "verify_attempt_logs": frozenset({"control", "auditor"}),
    "verify_outbox": frozenset({"control", "auditor"}),
}

VERIFYING: Final = frozenset({"control", "auditor"})
"""The roles that can execute every `verify_*` function."""

AS_CALLER: Final = frozenset({"gate_holders", "record_late_result"})
"""Functions that run with the privileges of their caller. What they read is not in our tables, and
the server shows more of it to a member of pg_read_all_stats."""

OWNER_VIEWS: Final = frozenset(
    {
        "ingress_attestation_status",
        "instruction_status",
        "kill_switch_state",
        "payment_outbox_status",
        "payment_outbox_depth",
    }
)
"""Views that run as their owner, because they show a role less than the table contains."""

EVIDENCE: Final = (
    "audit_log",
    "kill_switches",
    "policy_versions",
    "revoked_client_certs",
    "revoked_tokens",
    "ingress_attestations",
    "ingress_attestation_events",
    "instructions",
    "status_history",
    "execution_attempts",
    "transaction_attempts",
    "payment_outbox_items",
    "payment_outbox_attempts",
    "payment_outbox_late_results",
    "payment_outbox_interventions",
)

WRITERS: Final = frozenset(
    {
        "audit_log.head",
        "ingress_attestations.heads",
        "instructions.history_insert",
        "instructions.history_update",
        "kill_switches.audit",
        "payment_outbox_items.audit",
        "payment_outbox_items.fill",
        "payment_outbox_items.sequences",
        "payment_outbox_attempts.cancelled",
        "payment_outbox_attempts.unresolved",
        "payment_outbox_interventions.audit",
        "payment_outbox_interventions.fill",
        "payment_outbox_late_results.audit",
        "payment_outbox_late_results.unresolved",
        "payment_outbox_pending.lease_expired",
        "payment_outbox_pending.rescheduled",
        "policy_versions.audit_insert",
        "policy_versions.audit_update",
        "revoked_client_certs.audit",
        "revoked_client_certs.durable",
        "revoked_tokens.audit",
        "revoked_tokens.durable",
        "schema_revision.audit",
        "schema_revision.count",
    }
)
"""Triggers that only assign values, set a parameter or write other rows (`table.trigger`). These
are ENABLE. All other triggers reject statements, and are ENABLE ALWAYS."""


def may_execute(function: str) -> frozenset[str]:
    if function.startswith("verify_"):
        return VERIFYING
    return MAY_EXECUTE.get(function, NONE)

"""The catalogue: one entry per invariant, with the database objects that enforce it.

The objects of an entry are named by their paths in `schema.read()`, so an auditor can read the text
that enforces a rule. The tests compare the catalogue with the SQL.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestration import errors


@dataclass(frozen=True, slots=True)
class Invariant:
    id: str
    sentence: str
    sqlstates: tuple[str, ...]
    """Empty if the rule never rejects anything. The first one is the usual one."""
    enforced_by: tuple[str, ...]

    @property
    def exception(self) -> type[errors.OrchestrationError] | None:
        """The class of the first SQLSTATE."""
        return errors.BY_SQLSTATE[self.sqlstates[0]] if self.sqlstates else None


def _rule(id: str, sentence: str, sqlstates: str, *paths: str, **names: str) -> Invariant:
    """An entry from lists that are separated by white space: `paths` have a folder, `names` are
    grouped by folder."""
    return Invariant(
        id=id,
        sentence=sentence,
        sqlstates=tuple(sqlstates.split()),
        enforced_by=(
            *(path for listed in paths for path in listed.split()),
            *(f"{folder}/{name}" for folder, listed in names.items() for name in listed.split()),
        ),
    )


POLICY_GUARD = "triggers/policy_versions__guard functions/guard_policy_version"
REVOCATION_GUARD = """
    triggers/revoked_client_certs__guard triggers/revoked_tokens__guard functions/guard_revocation
"""
ATTESTATION_GUARD = "triggers/ingress_attestations__guard functions/guard_attestation"
EITHER_GUARD = f"""
    {ATTESTATION_GUARD}
    triggers/ingress_attestation_events__guard functions/guard_attestation_event
"""
INSTRUCTION_GUARD = "triggers/instructions__guard functions/guard_instruction"
ATTEMPTS_GUARD = "triggers/payment_outbox_attempts__guard functions/guard_outbox_attempts"

POLICY = (
    _rule(
        "INV-POL-001",
        "The identity and content of a policy version never change; only its status and times do.",
        "P7101",
        POLICY_GUARD,
    ),
    _rule(
        "INV-POL-002", "RETIRED is final.", "P7101", POLICY_GUARD, functions="retire_policy_version"
    ),
    _rule(
        "INV-POL-003",
        "A policy version in GRACE never becomes ACTIVE again.",
        "P7101",
        POLICY_GUARD,
    ),
    _rule(
        "INV-POL-004",
        "An ACTIVE policy version becomes RETIRED only through GRACE.",
        "P7101",
        POLICY_GUARD,
    ),
    _rule(
        "INV-POL-005",
        "At most one policy version is ACTIVE.",
        "P7104 23505",
        POLICY_GUARD,
        indexes="uq_policy_versions_active",
        functions="rotate_policy_version",
    ),
    _rule(
        "INV-POL-006",
        "Policy versions cannot be deleted or truncated.",
        "P7102",
        triggers="policy_versions__no_delete policy_versions__no_truncate",
        functions="refuse_change",
    ),
    _rule(
        "INV-POL-007",
        "Once a policy version exists, exactly one is ACTIVE at every COMMIT.",
        "P7103",
        triggers="policy_versions__active_remains",
        functions="check_active_policy_remains retire_policy_version",
    ),
    _rule(
        "INV-POL-008",
        "At most one policy version is in GRACE.",
        "23505",
        indexes="uq_policy_versions_grace",
    ),
    _rule(
        "INV-POL-009",
        "activated_at increases strictly from one policy version to the next.",
        "P7101",
        POLICY_GUARD,
    ),
    _rule("INV-POL-010", "A new policy version is inserted as ACTIVE.", "P7101", POLICY_GUARD),
    _rule(
        "INV-POL-011",
        "grace_expires_at is set on entering GRACE; after that it can only be moved earlier.",
        "P7101",
        POLICY_GUARD,
    ),
)

REVOCATION = (
    _rule(
        "INV-REV-001",
        "Revocations are append-only.",
        "P0001",
        triggers="revoked_client_certs__append_only revoked_client_certs__no_truncate "
        "revoked_tokens__append_only revoked_tokens__no_truncate",
        functions="refuse_change",
    ),
    _rule(
        "INV-REV-002",
        "expires_at of a revocation is NULL or not earlier than revoked_at.",
        "23514",
        constraints="ck_revoked_client_certs_expiry ck_revoked_tokens_expiry",
    ),
    _rule(
        "INV-REV-003",
        "A credential is identified by its SHA-256 hash: 64 lowercase hex digits.",
        "P7201",
        REVOCATION_GUARD,
        functions="require_credential_not_revoked",
    ),
    _rule(
        "INV-REV-004",
        "reason_code is one of the CRLReason names of RFC 5280, except removeFromCRL.",
        "23514",
        constraints="ck_revoked_client_certs_reason_code ck_revoked_tokens_reason_code",
    ),
    _rule(
        "INV-REV-005",
        "The database sets revoked_at from its clock; a given revoked_at cannot be in the future.",
        "P7201",
        REVOCATION_GUARD,
    ),
    _rule(
        "INV-REV-006",
        "The revocations of a credential are numbered from 1. Revoking it again returns the "
        "revocation in force if that lasts as long, and otherwise adds another one.",
        "23505 P7201 23514",
        REVOCATION_GUARD,
        constraints="pk_revoked_client_certs pk_revoked_tokens "
        "ck_revoked_client_certs_revocation_no ck_revoked_tokens_revocation_no",
        functions="revoke_client_cert revoke_token",
    ),
    _rule(
        "INV-REV-007",
        "A revocation is in force, and survives a crash, from the moment it is visible until "
        "expires_at. The times of a caller's attestations never go backwards.",
        "P7301",
        ATTESTATION_GUARD,
        triggers="revoked_client_certs__durable revoked_tokens__durable",
        functions="append_attestations authorize_instruction require_credential_not_revoked "
        "keep_commit_durable",
        views="revoked_client_certs_in_force revoked_tokens_in_force",
    ),
)

ATTESTATION = (
    _rule(
        "INV-ATT-001",
        "Attestations and their events are append-only.",
        "P0001",
        triggers="ingress_attestations__append_only ingress_attestations__no_truncate "
        "ingress_attestation_events__append_only ingress_attestation_events__no_truncate",
        functions="refuse_change",
    ),
    _rule(
        "INV-ATT-002",
        "An execution that is completed was started.",
        "P7301 23514",
        EITHER_GUARD,
        constraints="ck_ingress_attestations_execution",
    ),
    _rule(
        "INV-ATT-003",
        "terminal_status is set if and only if the execution is completed.",
        "P7301 23514",
        EITHER_GUARD,
        constraints="ck_ingress_attestations_terminal_status "
        "ck_ingress_attestation_events_terminal_status",
    ),
    _rule(
        "INV-ATT-004",
        "The first record of a caller has chain_seq 1 and an empty prev_hash.",
        "P7302 23514",
        ATTESTATION_GUARD,
        constraints="ck_ingress_attestations_prev_hash",
    ),
    _rule(
        "INV-ATT-005",
        "Each record continues its caller's chain from the head row, without fork or gap. If the "
        "head row is ahead of the chain, the record is rejected.",
        "P7302 23505 P0001",
        ATTESTATION_GUARD,
        constraints="uq_ingress_attestations_caller_identity_chain_seq "
        "uq_ingress_attestations_caller_identity_prev_hash",
        triggers="ingress_attestations__heads ingress_attestation_heads__no_delete "
        "ingress_attestation_heads__no_truncate",
        functions="advance_attestation_heads",
    ),
    _rule(
        "INV-ATT-006",
        "The database computes record_hash in one fixed byte format.",
        "P7302",
        ATTESTATION_GUARD,
        functions="attestation_record_hash",
    ),
    _rule(
        "INV-ATT-007",
        "A caller's idempotency key creates one attestation. A replay returns that attestation; a "
        "replay with a different payload_hash is rejected.",
        "P7303 23505",
        constraints="uq_ingress_attestations_caller_identity_idempotency_key",
        functions="append_attestations",
    ),
    _rule(
        "INV-ATT-008",
        "The policy version of an attestation exists and is accepted when it is recorded.",
        "P7105 P0001 55P03",
        ATTESTATION_GUARD,
        INSTRUCTION_GUARD,
        triggers="policy_versions__gate policy_gate__no_delete policy_gate__no_truncate",
        functions="append_attestations require_policy_accepted retire_policy_version "
        "share_gate lock_gate change_gate",
    ),
    _rule(
        "INV-ATT-009",
        "No client certificate or token is revoked when it is used for an attestation.",
        "P7202 P0001 55P03",
        triggers="revoked_client_certs__gate revoked_tokens__gate revocation_gate__no_delete "
        "revocation_gate__no_truncate",
        functions="append_attestations require_credential_not_revoked share_gate "
        "lock_gate change_gate",
    ),
    _rule(
        "INV-ATT-010",
        "The events of an attestation never go backwards; a repeated event returns the first one.",
        "P7301 23505",
        constraints="pk_ingress_attestation_events",
        triggers="ingress_attestation_events__guard",
        functions="guard_attestation_event record_attestation_event",
    ),
    _rule(
        "INV-ATT-011",
        "attested_at and occurred_at are in the years 1 to 9998 and not in the future. "
        "attested_at can also repeat a later time, that of the caller's newest attestation.",
        "P7301 23514",
        EITHER_GUARD,
        constraints="ck_ingress_attestations_years ck_ingress_attestation_events_years",
    ),
)

INSTRUCTION = (
    _rule(
        "INV-INS-001",
        "An instruction only moves forward: RECEIVED, AUTHORIZED, EXECUTING, COMPLETED; or FAILED "
        "from any of the first three.",
        "P7401 23514",
        INSTRUCTION_GUARD,
        constraints="ck_instructions_state",
        functions="lock_instruction",
    ),
    _rule(
        "INV-INS-002",
        "COMPLETED and FAILED are final, content never changes, and instructions are never "
        "deleted.",
        "P7401 P0001",
        INSTRUCTION_GUARD,
        triggers="instructions__no_delete instructions__no_truncate",
        functions="refuse_change",
    ),
    _rule(
        "INV-INS-003",
        "There is one instruction per participant and idempotency key, whatever its state.",
        "23505",
        constraints="uq_instructions_participant_id_idempotency_key",
    ),
    _rule(
        "INV-INS-004",
        "Every transition, creation included, writes one row of history; nothing else does.",
        "P0001 23505 23503 23514",
        constraints="pk_status_history ck_status_history_transition "
        "fk_status_history_participant_id_instruction_id",
        triggers="instructions__history_insert instructions__history_update status_history__guard",
        functions="record_status_history guard_status_history",
    ),
    _rule(
        "INV-INS-005",
        "An outbox item references an instruction of the same participant.",
        "23503",
        constraints="uq_instructions_participant_id_id_open",
        functions="enqueue_payment_outbox",
    ),
    _rule(
        "INV-INS-006",
        "A pending item's instruction is AUTHORIZED or EXECUTING. It becomes COMPLETED only with "
        "an item that was sent, and FAILED only with none that was sent or is UNKNOWN and "
        "unresolved.",
        "P7404 23503",
        constraints="fk_payment_outbox_pending_participant_id_instruction_id_open",
        triggers="instructions__guard_end",
        functions="guard_instruction_end end_instruction enqueue_payment_outbox "
        "redrive_outbox_item",
    ),
    _rule(
        "INV-INS-007",
        "The receiving login cannot authorize an instruction, and only an executor can enqueue it.",
        "P7405 42501",
        functions="authorize_instruction",
        grants="enqueue_payment_outbox",
    ),
    _rule(
        "INV-INS-008",
        "A replayed key with the same content returns the instruction; otherwise it is rejected.",
        "P7402",
        functions="receive_instruction",
    ),
    _rule(
        "INV-INS-009",
        "A transition that names an outdated version of the instruction is rejected.",
        "P7403",
        functions="lock_instruction",
    ),
    _rule(
        "INV-INS-010",
        "Authorizing requires an accepted policy version and unrevoked credentials at that moment.",
        "P7105 P7202",
        functions="authorize_instruction",
    ),
    _rule(
        "INV-INS-011",
        "An instruction has the policy version of its attestation.",
        "23503",
        constraints="fk_instructions_attestation_id_policy_version_id "
        "uq_ingress_attestations_id_policy_version_id",
    ),
)

OUTBOX = (
    _rule(
        "INV-OUT-001",
        "Outbox items and attempts are append-only, and only the database records who wrote them.",
        "P0001 22023",
        ATTEMPTS_GUARD,
        triggers="payment_outbox_items__append_only payment_outbox_items__no_truncate "
        "payment_outbox_items__guard payment_outbox_attempts__append_only "
        "payment_outbox_attempts__no_truncate",
        functions="refuse_change guard_outbox_items",
    ),
    _rule(
        "INV-OUT-002",
        "Only the worker that holds a lease can renew it or close its attempt, and only before "
        "the lease expires. An abandoned attempt is closed only after its lease has expired.",
        "P7002",
        ATTEMPTS_GUARD,
        triggers="payment_outbox_pending__guard_update",
        functions="guard_outbox_pending_update renew_outbox_lease complete_outbox_attempt "
        "expire_outbox_lease",
    ),
    _rule(
        "INV-OUT-003",
        "No attempt exceeds max_attempts; the last one is DISPATCHED, or FAILED with an outcome.",
        "P7003 23514 22023",
        ATTEMPTS_GUARD,
        constraints="ck_payment_outbox_attempts_outcome",
        functions="complete_outbox_attempt close_dead_attempts",
    ),
    _rule(
        "INV-OUT-004",
        "An idempotency key of an instruction creates one item. A replay returns that item; a "
        "replay with different content is rejected.",
        "P7004 23505 40001",
        constraints="uq_payment_outbox_items_key",
        functions="enqueue_payment_outbox",
    ),
    _rule(
        "INV-OUT-005",
        "A claim opens attempt n before any side effect, and the attempt is closed once. Attempt "
        "n+1 follows only if the closing of attempt n is not terminal.",
        "P7005 23505 23514",
        ATTEMPTS_GUARD,
        constraints="pk_payment_outbox_attempts ck_payment_outbox_attempts_state",
        triggers="payment_outbox_pending__guard_update",
        functions="guard_outbox_pending_update cancel_outbox_item reschedule_outbox_item",
    ),
    _rule(
        "INV-OUT-006",
        "An item has one terminal attempt, and a key one item that is live or DISPATCHED. Only an "
        "item that FAILED as REJECTED or NOT_SENT can be redriven, with the same content.",
        "P7005 23505 23514",
        constraints="ck_payment_outbox_items_redrive",
        indexes="uq_payment_outbox_attempts_terminal",
        triggers="payment_outbox_items__guard_redrive",
        functions="guard_redrive redrive_outbox_item",
    ),
    _rule(
        "INV-OUT-007",
        "The items of a participant are numbered 1, 2, 3 ... without gap or reuse.",
        "23505 22023 P0001 42501",
        constraints="uq_payment_outbox_items_participant_id_sequence_id",
        triggers="payment_outbox_items__guard payment_outbox_items__sequences "
        "participant_outbox_sequences__no_delete participant_outbox_sequences__no_truncate",
        functions="guard_outbox_items advance_outbox_sequences bump_participant_outbox_seq "
        "enqueue_payment_outbox",
        grants="participant_outbox_sequences",
    ),
    _rule(
        "INV-OUT-008",
        "A claim takes the items due longest. It returns at most as many as requested, none that "
        "is leased or due later, and fewer only if no more are due and free within its budget.",
        "",
        functions="claim_outbox_batch pick_due_items set_leases_apart",
    ),
    _rule(
        "INV-OUT-009",
        "Every item is either pending or terminal: none is lost, and none is both.",
        "P7006",
        triggers="payment_outbox_items__guard payment_outbox_pending__guard_insert "
        "payment_outbox_pending__guard_update payment_outbox_pending__guard_delete "
        "payment_outbox_pending__no_truncate",
        functions="guard_outbox_items guard_outbox_pending_insert guard_outbox_pending_update "
        "guard_outbox_pending_delete close_dead_attempts verify_outbox",
    ),
    _rule(
        "INV-OUT-010",
        "No item can be added to an instruction that has an item whose outcome is UNKNOWN and "
        "unresolved, because the payment may have been made.",
        "P7404 40001",
        triggers="payment_outbox_items__guard payment_outbox_attempts__unresolved "
        "payment_outbox_late_results__unresolved instructions__guard_unresolved_insert "
        "instructions__guard_unresolved_update",
        functions="guard_outbox_items enqueue_payment_outbox redrive_outbox_item count_unresolved "
        "guard_unresolved lock_outbox_item",
    ),
    _rule(
        "INV-OUT-011",
        "A late result belongs to an opened attempt, and a worker reports only on its own. A "
        "result that contradicts what is recorded is kept and shown until control closes it.",
        "P7005 P7002 22023 23505 23514",
        constraints="pk_payment_outbox_late_results ck_payment_outbox_late_results_source "
        "ck_payment_outbox_late_results_outcome",
        indexes="uq_payment_outbox_interventions_closed",
        triggers="payment_outbox_late_results__guard",
        functions="guard_late_result record_worker_result resolve_outbox_item close_contradiction",
        views="payment_outbox_contradictions",
    ),
)

KILL_SWITCH = (
    _rule(
        "INV-KIL-001",
        "An engaged kill switch blocks what its scope covers; the last event of a target decides.",
        "P7501 22023 23505 23514",
        constraints="pk_kill_switches ck_kill_switches_scope",
        triggers="ingress_attestations__kill_switch instructions__kill_switch_insert "
        "instructions__kill_switch_update payment_outbox_items__kill_switch "
        "payment_outbox_attempts__kill_switch kill_switches__guard",
        functions="block_execution_if_killed refuse_if_killed claim_outbox_batch guard_kill_switch",
    ),
    _rule(
        "INV-KIL-002",
        "After engaging has committed, no gated write that was in flight can commit.",
        "P0001 55P03",
        triggers="kill_switches__gate kill_switch_gate__no_delete kill_switch_gate__no_truncate",
        functions="bound_idle_time lock_gate change_gate share_gate",
    ),
    _rule(
        "INV-KIL-003",
        "A key identifies one kill switch event. If the same login repeats the same act with the "
        "key, that event is returned; any other use of the key is rejected.",
        "23505 23514",
        constraints="uq_kill_switches_key ck_kill_switches_key",
        functions="engage_kill_switch release_kill_switch",
    ),
)

GENERAL = (
    _rule(
        "INV-APP-001",
        "The history and the attempts of instructions, kill switch events, late results, the "
        "interventions of control and the audit log are append-only.",
        "P0001",
        triggers="status_history__append_only status_history__no_truncate "
        "execution_attempts__append_only execution_attempts__no_truncate "
        "transaction_attempts__append_only transaction_attempts__no_truncate "
        "kill_switches__append_only kill_switches__no_truncate audit_log__append_only "
        "audit_log__no_truncate payment_outbox_late_results__append_only "
        "payment_outbox_late_results__no_truncate payment_outbox_interventions__append_only "
        "payment_outbox_interventions__no_truncate",
        functions="refuse_change",
    ),
    _rule(
        "INV-APP-002",
        "Attempt n of an instruction is opened once and closed once, by the same worker. Attempt "
        "n+1 follows only if attempt n did not succeed.",
        "P7401 23505 23503 23514",
        constraints="pk_execution_attempts pk_transaction_attempts "
        "fk_execution_attempts_participant_id_instruction_id "
        "fk_transaction_attempts_participant_id_instruction_id ck_execution_attempts_outcome "
        "ck_transaction_attempts_outcome",
        triggers="execution_attempts__guard transaction_attempts__guard",
        functions="guard_attempt_log close_execution_attempt close_transaction_attempt",
    ),
    _rule(
        "INV-AUD-001",
        "Every act of governance writes exactly one entry in one hash chain. Verification reports "
        "an entry without an act, and an act without an entry.",
        "P7302 P0001 23505 23514",
        constraints="pk_audit_log uq_audit_log_prev_hash ck_audit_log_action "
        "ck_audit_log_prev_hash ck_audit_log_record_hash",
        triggers="schema_revision__audit schema_revision__count kill_switches__audit "
        "revoked_client_certs__audit revoked_tokens__audit policy_versions__audit_insert "
        "policy_versions__audit_update payment_outbox_items__audit "
        "payment_outbox_late_results__audit payment_outbox_interventions__audit "
        "payment_outbox_interventions__fill payment_outbox_attempts__cancelled "
        "payment_outbox_pending__rescheduled payment_outbox_pending__lease_expired "
        "audit_log__guard audit_log__head audit_log_head__no_delete audit_log_head__no_truncate "
        "schema_revision__no_delete schema_revision__no_truncate",
        functions="record_migration count_schema_change record_act record_policy_entry "
        "record_policy_change record_redrive record_outbox_act fill_intervention "
        "record_intervention guard_audit_log audit_record_hash advance_audit_log_head "
        "verify_audit_log",
    ),
    _rule(
        "INV-API-001",
        "A size, text, payload, lease, due time or grace period out of bounds is rejected, and so "
        "is a value that is not valid for its type.",
        "22023 23514 23502 22P02 22003 22007 22008 22P05",
        constraints="ck_audit_log_table_name ck_execution_attempts_error "
        "ck_execution_attempts_worker_id ck_ingress_attestation_events_recorded_by "
        "ck_ingress_attestation_heads_caller_identity ck_ingress_attestations_caller_identity "
        "ck_ingress_attestations_idempotency_key ck_instructions_creditor_account "
        "ck_instructions_debtor_account ck_instructions_end_to_end_id "
        "ck_instructions_idempotency_key ck_instructions_instruction_type "
        "ck_instructions_participant_id ck_instructions_payload ck_instructions_reason "
        "ck_kill_switches_actor ck_kill_switches_reason "
        "ck_participant_outbox_sequences_participant_id ck_payment_outbox_attempts_texts "
        "ck_payment_outbox_attempts_worker_id ck_payment_outbox_items_idempotency_key "
        "ck_payment_outbox_items_participant_id ck_payment_outbox_items_payload "
        "ck_payment_outbox_items_rail_type ck_payment_outbox_pending_lease "
        "ck_policy_versions_created_by ck_policy_versions_description ck_policy_versions_id "
        "ck_revoked_client_certs_revoked_by ck_revoked_tokens_revoked_by ck_status_history_reason "
        "ck_transaction_attempts_error ck_transaction_attempts_rail_reference "
        "ck_transaction_attempts_rail_type ck_transaction_attempts_worker_id",
        functions="refuse_long_texts refuse_element refuse_unreadable rotate_policy_version "
        "append_attestations receive_instruction end_instruction enqueue_payment_outbox "
        "claim_outbox_batch renew_outbox_lease complete_outbox_attempt repair_expired_leases "
        "resolve_outbox_item cancel_outbox_item reschedule_outbox_item expire_outbox_lease "
        "close_contradiction revocations_since",
    ),
    _rule(
        "INV-API-002",
        "An act references a row that exists.",
        "P0002",
        functions="share_gate release_kill_switch lock_gate record_attestation_event "
        "lock_instruction lock_attempted_instruction close_execution_attempt "
        "close_transaction_attempt "
        "renew_outbox_lease complete_outbox_attempt lock_outbox_item close_contradiction "
        "redrive_outbox_item",
    ),
    _rule(
        "INV-API-003",
        "No error, log line, repr or pickled error shows an account, payload, salt or credential "
        "hash that its reader cannot read.",
        "",
        functions="raise_invariant refuse_long_texts refuse_element refuse_unreadable "
        "is_storable_payload append_attestations receive_instruction end_instruction "
        "enqueue_payment_outbox",
    ),
)

FAMILIES = (POLICY, REVOCATION, ATTESTATION, INSTRUCTION, OUTBOX, KILL_SWITCH, GENERAL)
CATALOGUE: tuple[Invariant, ...] = tuple(entry for family in FAMILIES for entry in family)

BY_ID: Mapping[str, Invariant] = {entry.id: entry for entry in CATALOGUE}

BY_NATIVE_CONSTRAINT: Mapping[str, str] = {
    path.partition("/")[2]: entry.id
    for entry in CATALOGUE
    for path in entry.enforced_by
    if path.startswith(("constraints/", "indexes/"))
}
"""The invariant of each constraint or index that a native code can name."""

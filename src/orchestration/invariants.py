"""The catalogue: one entry a promise, with the database objects that keep it.

`enforced_by` names files of `schema/current/` (without `.sql`), so an auditor reads the very text
that enforces a rule. `make check` compares the catalogue with the SQL: every code that is raised is
in it, every object it names exists, and every entry has a test marked with its id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestration import errors


class Tier(StrEnum):
    """The depth at which a rule is kept, strongest first."""

    CONSTRAINT = "CONSTRAINT"
    """A CHECK, UNIQUE, NOT NULL or foreign key: holds for everyone."""
    TRIGGER = "TRIGGER"
    """Holds for everyone but a superuser or owner who removes it; that is detected."""
    FUNCTION = "FUNCTION"
    """Holds for the runtime roles, who have no other way in."""
    PRIVILEGE = "PRIVILEGE"
    """Holds because nobody was given the right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    id: str
    sentence: str
    tables: tuple[str, ...]
    tier: Tier
    sqlstates: tuple[str, ...]
    exception: type[errors.OrchestrationError] | None
    """The class of the first SQLSTATE; None where the rule never refuses."""
    enforced_by: tuple[str, ...]
    hint: str


POLICY_GUARD = ("triggers/policy_versions__guard", "functions/guard_policy_version")


def _policy(
    number: str,
    sentence: str,
    *,
    tier: Tier = Tier.TRIGGER,
    sqlstates: tuple[str, ...] = ("P7101",),
    exception: type[errors.OrchestrationError] = errors.InvalidPolicyTransition,
    enforced_by: tuple[str, ...] = POLICY_GUARD,
    hint: str,
) -> Invariant:
    return Invariant(
        id=f"INV-POL-{number}",
        sentence=sentence,
        tables=("policy_versions",),
        tier=tier,
        sqlstates=sqlstates,
        exception=exception,
        enforced_by=enforced_by,
        hint=hint,
    )


REVOCATION_GUARD = (
    "triggers/revoked_client_certs__guard",
    "triggers/revoked_tokens__guard",
    "functions/guard_revocation",
)


def _revocation(
    number: str,
    sentence: str,
    *,
    tier: Tier,
    sqlstates: tuple[str, ...],
    exception: type[errors.OrchestrationError],
    enforced_by: tuple[str, ...],
    hint: str,
) -> Invariant:
    return Invariant(
        id=f"INV-REV-{number}",
        sentence=sentence,
        tables=("revoked_client_certs", "revoked_tokens"),
        tier=tier,
        sqlstates=sqlstates,
        exception=exception,
        enforced_by=enforced_by,
        hint=hint,
    )


ATTESTATION_GUARD = ("triggers/ingress_attestations__guard", "functions/guard_attestation")
EITHER_GUARD = (
    *ATTESTATION_GUARD,
    "triggers/ingress_attestation_events__guard",
    "functions/guard_attestation_event",
)


def _attestation(
    number: str,
    sentence: str,
    *,
    enforced_by: tuple[str, ...],
    hint: str,
    tables: tuple[str, ...] = ("ingress_attestations", "ingress_attestation_events"),
    tier: Tier = Tier.TRIGGER,
    sqlstates: tuple[str, ...] = ("P7301",),
    exception: type[errors.OrchestrationError] = errors.InvalidAttestationState,
) -> Invariant:
    return Invariant(
        id=f"INV-ATT-{number}",
        sentence=sentence,
        tables=tables,
        tier=tier,
        sqlstates=sqlstates,
        exception=exception,
        enforced_by=enforced_by,
        hint=hint,
    )


ATTEMPTS_GUARD = ("triggers/payment_outbox_attempts__guard", "functions/guard_outbox_attempts")


def _outbox(
    number: str,
    sentence: str,
    *,
    sqlstates: tuple[str, ...],
    exception: type[errors.OrchestrationError] | None,
    enforced_by: tuple[str, ...],
    hint: str,
    tables: tuple[str, ...] = ("payment_outbox_items", "payment_outbox_attempts"),
    tier: Tier = Tier.TRIGGER,
) -> Invariant:
    return Invariant(
        id=f"INV-OUT-{number}",
        sentence=sentence,
        tables=tables,
        tier=tier,
        sqlstates=sqlstates,
        exception=exception,
        enforced_by=enforced_by,
        hint=hint,
    )


INSTRUCTION_GUARD = ("triggers/instructions__guard", "functions/guard_instruction")


def _instruction(
    number: str,
    sentence: str,
    *,
    enforced_by: tuple[str, ...],
    hint: str,
    tables: tuple[str, ...] = ("instructions",),
    tier: Tier = Tier.TRIGGER,
    sqlstates: tuple[str, ...] = ("P7401",),
    exception: type[errors.OrchestrationError] = errors.InvalidInstructionTransition,
) -> Invariant:
    return Invariant(
        id=f"INV-INS-{number}",
        sentence=sentence,
        tables=tables,
        tier=tier,
        sqlstates=sqlstates,
        exception=exception,
        enforced_by=enforced_by,
        hint=hint,
    )


POLICY = (
    _policy(
        "001",
        "A policy version's identity and content never change; only its status and its times do.",
        hint="Enter the new content as a new version.",
    ),
    _policy(
        "002",
        "RETIRED is final.",
        enforced_by=(*POLICY_GUARD, "functions/retire_policy_version"),
        hint="Enter a new version.",
    ),
    _policy(
        "003",
        "GRACE never returns to ACTIVE.",
        hint="Enter the old content as a new version.",
    ),
    _policy(
        "004",
        "ACTIVE reaches RETIRED only through GRACE.",
        hint="Rotate with a grace of zero, then retire.",
    ),
    _policy(
        "005",
        "At most one policy version is ACTIVE.",
        sqlstates=("P7104", "23505"),
        exception=errors.ActivePolicyConflict,
        enforced_by=(
            "triggers/policy_versions__guard",
            "functions/guard_policy_version",
            "functions/rotate_policy_version",
            "indexes/uq_policy_versions_active",
        ),
        hint="Replace the ACTIVE version by rotation; read it again if another was expected.",
    ),
    _policy(
        "006",
        "Policy versions are never deleted or truncated.",
        sqlstates=("P7102",),
        exception=errors.PolicyDeleteForbidden,
        enforced_by=(
            "triggers/policy_versions__no_delete",
            "triggers/policy_versions__no_truncate",
            "functions/refuse_change",
        ),
        hint="Retire what is no longer wanted.",
    ),
    _policy(
        "007",
        "Once a policy version exists, one is ACTIVE at every COMMIT.",
        sqlstates=("P7103",),
        exception=errors.LastActivePolicy,
        enforced_by=(
            "triggers/policy_versions__active_remains",
            "functions/check_active_policy_remains",
            "functions/retire_policy_version",
        ),
        hint="Replace the ACTIVE version by rotation.",
    ),
    _policy(
        "008",
        "At most one policy version is in GRACE.",
        tier=Tier.CONSTRAINT,
        sqlstates=("23505",),
        exception=errors.UniqueViolation,
        enforced_by=("indexes/uq_policy_versions_grace",),
        hint="Retire the version in GRACE first; rotation does.",
    ),
    _policy(
        "009",
        "activated_at grows strictly from version to version.",
        hint="Leave activated_at out: the database sets it.",
    ),
    _policy("010", "A policy version enters as ACTIVE.", hint="Insert it as ACTIVE, by rotation."),
    _policy(
        "011",
        "grace_expires_at is set on entering GRACE and may only come earlier.",
        hint="Shorten a grace, never lengthen it.",
    ),
)

REVOCATION = (
    _revocation(
        "001",
        "Revocations are append-only.",
        tier=Tier.TRIGGER,
        sqlstates=("P0001",),
        exception=errors.AppendOnlyViolation,
        enforced_by=(
            "triggers/revoked_client_certs__append_only",
            "triggers/revoked_client_certs__no_truncate",
            "triggers/revoked_tokens__append_only",
            "triggers/revoked_tokens__no_truncate",
            "functions/refuse_change",
        ),
        hint="A credential that was revoked wrongly is replaced, not restored.",
    ),
    _revocation(
        "002",
        "A revocation expires, if it does, no earlier than it takes effect.",
        tier=Tier.CONSTRAINT,
        sqlstates=("23514",),
        exception=errors.CheckViolation,
        enforced_by=(
            "constraints/ck_revoked_client_certs_expiry",
            "constraints/ck_revoked_tokens_expiry",
        ),
        hint="Give an expires_at at or after revoked_at, or none.",
    ),
    _revocation(
        "003",
        "A credential is named by 64 lowercase hex digits, its SHA-256.",
        tier=Tier.TRIGGER,
        sqlstates=("P7201",),
        exception=errors.InvalidRevocation,
        enforced_by=(*REVOCATION_GUARD, "functions/require_credential_not_revoked"),
        hint="Give the hash, never the credential.",
    ),
    _revocation(
        "004",
        "reason_code is one of RFC 5280's CRLReason names, removeFromCRL excepted.",
        tier=Tier.CONSTRAINT,
        sqlstates=("23514",),
        exception=errors.CheckViolation,
        enforced_by=(
            "constraints/ck_revoked_client_certs_reason_code",
            "constraints/ck_revoked_tokens_reason_code",
        ),
        hint="Use a name of vocabulary.CRLReason.",
    ),
    _revocation(
        "005",
        "revoked_at comes from the database's clock; a supplied one is never in the future.",
        tier=Tier.TRIGGER,
        sqlstates=("P7201",),
        exception=errors.InvalidRevocation,
        enforced_by=REVOCATION_GUARD,
        hint="Leave revoked_at out, or give a past time.",
    ),
    _revocation(
        "006",
        "The revocations of a credential are numbered from 1; revoking again returns the one in"
        " force that lasts as long, otherwise another joins.",
        tier=Tier.CONSTRAINT,
        sqlstates=("23505", "P7201", "23514"),
        exception=errors.UniqueViolation,
        enforced_by=(
            "constraints/pk_revoked_client_certs",
            "constraints/pk_revoked_tokens",
            "constraints/ck_revoked_client_certs_revocation_no",
            "constraints/ck_revoked_tokens_revocation_no",
            *REVOCATION_GUARD,
            "functions/revoke_client_cert",
            "functions/revoke_token",
        ),
        hint="Revoke through the functions, or leave revocation_no out: the database sets it.",
    ),
    Invariant(
        id="INV-REV-007",
        sentence="A revocation is in force from the moment it is visible until expires_at, and a"
        " caller's attestations never go back in time, even if the clock is set back.",
        tables=("revoked_client_certs", "revoked_tokens", "ingress_attestations"),
        tier=Tier.TRIGGER,
        sqlstates=("P7301",),
        exception=errors.InvalidAttestationState,
        enforced_by=(
            "triggers/ingress_attestations__guard",
            "functions/guard_attestation",
            "functions/append_attestations",
            "functions/authorize_instruction",
            "functions/require_credential_not_revoked",
            "views/revoked_client_certs_in_force",
            "views/revoked_tokens_in_force",
        ),
        hint="Leave attested_at out, or import a caller's attestations in their order.",
    ),
)

ATTESTATION = (
    _attestation(
        "001",
        "Attestations and their events are append-only.",
        sqlstates=("P0001",),
        exception=errors.AppendOnlyViolation,
        enforced_by=(
            "triggers/ingress_attestations__append_only",
            "triggers/ingress_attestations__no_truncate",
            "triggers/ingress_attestation_events__append_only",
            "triggers/ingress_attestation_events__no_truncate",
            "functions/refuse_change",
        ),
        hint="Record what happened since as an event.",
    ),
    _attestation(
        "002",
        "Completed implies started.",
        enforced_by=(*EITHER_GUARD, "constraints/ck_ingress_attestations_execution"),
        sqlstates=("P7301", "23514"),
        hint="Record EXECUTION_STARTED first.",
    ),
    _attestation(
        "003",
        "terminal_status is there if and only if the execution is completed.",
        enforced_by=(
            *EITHER_GUARD,
            "constraints/ck_ingress_attestations_terminal_status",
            "constraints/ck_ingress_attestation_events_terminal_status",
        ),
        sqlstates=("P7301", "23514"),
        hint="Give terminal_status with EXECUTION_COMPLETED, and only with it.",
    ),
    _attestation(
        "004",
        "A caller's first record has chain_seq 1 and an empty prev_hash.",
        sqlstates=("P7302", "23514"),
        exception=errors.ChainDiscontinuity,
        enforced_by=(*ATTESTATION_GUARD, "constraints/ck_ingress_attestations_prev_hash"),
        hint="Leave chain_seq and prev_hash out: the database sets them.",
    ),
    _attestation(
        "005",
        "Each record continues its caller's head, without fork or gap; a head ahead of its chain is"
        " refused.",
        sqlstates=("P7302", "23505", "P0001"),
        exception=errors.ChainDiscontinuity,
        enforced_by=(
            *ATTESTATION_GUARD,
            "triggers/ingress_attestations__heads",
            "functions/advance_attestation_heads",
            "triggers/ingress_attestation_heads__no_delete",
            "triggers/ingress_attestation_heads__no_truncate",
            "constraints/uq_ingress_attestations_caller_identity_chain_seq",
            "constraints/uq_ingress_attestations_caller_identity_prev_hash",
        ),
        hint="Leave chain_seq and prev_hash out; verify a chain whose head is ahead.",
    ),
    _attestation(
        "006",
        "record_hash is computed by the database, in one frozen byte format.",
        sqlstates=("P7302",),
        exception=errors.ChainDiscontinuity,
        enforced_by=(*ATTESTATION_GUARD, "functions/attestation_record_hash"),
        hint="Leave record_hash out: the database computes it.",
    ),
    _attestation(
        "007",
        "A caller's idempotency key is attested once; a replay gives the first record, and with"
        " another payload_hash it is refused.",
        tier=Tier.CONSTRAINT,
        sqlstates=("P7303", "23505"),
        exception=errors.AttestationKeyConflict,
        enforced_by=(
            "functions/append_attestations",
            "constraints/uq_ingress_attestations_caller_identity_idempotency_key",
        ),
        hint="Use a new idempotency key for new content.",
    ),
    _attestation(
        "008",
        "An attestation's policy version is accepted when it is attested, and exists.",
        tables=("ingress_attestations", "policy_versions", "policy_gate"),
        tier=Tier.FUNCTION,
        sqlstates=("P7105", "P0001", "55P03"),
        exception=errors.PolicyNotAccepted,
        enforced_by=(
            *ATTESTATION_GUARD,
            *INSTRUCTION_GUARD,
            "functions/append_attestations",
            "functions/require_policy_accepted",
            "functions/retire_policy_version",
            "functions/share_policy_gate",
            "functions/lock_gate",
            "functions/change_gate",
            "triggers/policy_versions__gate",
            "triggers/policy_gate__no_delete",
            "triggers/policy_gate__no_truncate",
        ),
        hint="Sign under a version of accepted_policy_versions.",
    ),
    _attestation(
        "009",
        "Neither the certificate nor the token is revoked when it is used to attest.",
        tables=(
            "ingress_attestations",
            "revoked_client_certs",
            "revoked_tokens",
            "revocation_gate",
        ),
        tier=Tier.FUNCTION,
        sqlstates=("P7202", "P0001", "55P03"),
        exception=errors.CredentialRevoked,
        enforced_by=(
            "functions/append_attestations",
            "functions/require_credential_not_revoked",
            "functions/share_revocation_gate",
            "functions/lock_gate",
            "functions/change_gate",
            "triggers/revoked_client_certs__gate",
            "triggers/revoked_tokens__gate",
            "triggers/revocation_gate__no_delete",
            "triggers/revocation_gate__no_truncate",
        ),
        hint="Have the caller present another credential.",
    ),
    _attestation(
        "010",
        "An event never regresses or repeats; a repetition is answered with the record.",
        sqlstates=("P7301", "23505"),
        enforced_by=(
            "triggers/ingress_attestation_events__guard",
            "functions/guard_attestation_event",
            "functions/record_attestation_event",
            "constraints/pk_ingress_attestation_events",
        ),
        hint="Read ingress_attestation_status.",
    ),
    _attestation(
        "011",
        "attested_at and occurred_at are in years that every calendar has and not in the future;"
        " only attested_at passes the clock, where it repeats that of the caller's newest"
        " attestation.",
        sqlstates=("P7301", "23514"),
        enforced_by=(
            *EITHER_GUARD,
            "constraints/ck_ingress_attestations_years",
            "constraints/ck_ingress_attestation_events_years",
        ),
        hint="Leave the time out: the database sets it.",
    ),
)

OUTBOX = (
    _outbox(
        "001",
        "Items and attempts are append-only, and who wrote them is the database's to say.",
        sqlstates=("P0001", "22023"),
        exception=errors.AppendOnlyViolation,
        enforced_by=(
            "triggers/payment_outbox_items__append_only",
            "triggers/payment_outbox_items__no_truncate",
            "triggers/payment_outbox_items__guard",
            "triggers/payment_outbox_attempts__append_only",
            "triggers/payment_outbox_attempts__no_truncate",
            "triggers/payment_outbox_attempts__guard",
            "functions/refuse_change",
            "functions/guard_outbox_items",
            "functions/guard_outbox_attempts",
        ),
        hint="Record what happens as an attempt; leave db_user and xact_id out.",
    ),
    _outbox(
        "002",
        "An attempt is closed, and a lease renewed, by the worker that holds it, before it expires;"
        " a dead one is closed only after it has.",
        sqlstates=("P7002",),
        exception=errors.LeaseLost,
        enforced_by=(
            *ATTEMPTS_GUARD,
            "triggers/payment_outbox_pending__guard_update",
            "functions/guard_outbox_pending_update",
            "functions/renew_outbox_lease",
            "functions/complete_outbox_attempt",
            "functions/expire_outbox_lease",
        ),
        hint="Stop working on the item: it may be another worker's by now.",
    ),
    _outbox(
        "003",
        "No attempt goes past the item's max_attempts: the last one ends as DISPATCHED or FAILED,"
        " and FAILED names its outcome.",
        sqlstates=("P7003", "23514", "22023"),
        exception=errors.RetryCeilingExceeded,
        enforced_by=(
            *ATTEMPTS_GUARD,
            "functions/complete_outbox_attempt",
            "functions/close_dead_attempts",
            "constraints/ck_payment_outbox_attempts_outcome",
        ),
        hint="Redrive the item if it may run again.",
    ),
    _outbox(
        "004",
        "An instruction's idempotency key is one item; a replay gives it back, and with other"
        " content it is refused.",
        tier=Tier.CONSTRAINT,
        sqlstates=("P7004", "23505", "40001"),
        exception=errors.OutboxKeyConflict,
        enforced_by=(
            "functions/enqueue_payment_outbox",
            "constraints/uq_payment_outbox_items_key",
        ),
        hint="Use a new idempotency key for new content.",
    ),
    _outbox(
        "005",
        "Attempt n is opened by a claim, before any side effect, and closed once; n+1 follows only"
        " a closing that is not terminal.",
        sqlstates=("P7005", "23505", "23514"),
        exception=errors.InvalidAttemptTransition,
        enforced_by=(
            *ATTEMPTS_GUARD,
            "triggers/payment_outbox_pending__guard_update",
            "functions/guard_outbox_pending_update",
            "functions/cancel_outbox_item",
            "functions/reschedule_outbox_item",
            "constraints/pk_payment_outbox_attempts",
            "constraints/ck_payment_outbox_attempts_state",
        ),
        hint="Attempts are opened by claiming and closed by completing.",
    ),
    _outbox(
        "006",
        "An item has one terminal attempt, and a key one live or DISPATCHED item: a redrive follows"
        " an item that FAILED as REJECTED or NOT_SENT, with its content.",
        sqlstates=("P7005", "23505", "23514"),
        exception=errors.InvalidAttemptTransition,
        enforced_by=(
            "indexes/uq_payment_outbox_attempts_terminal",
            "triggers/payment_outbox_items__guard_redrive",
            "functions/guard_redrive",
            "functions/redrive_outbox_item",
            "constraints/ck_payment_outbox_items_redrive",
        ),
        hint="Resolve what is UNKNOWN first; redrive the newest item of the key.",
    ),
    _outbox(
        "007",
        "A participant's items are numbered 1, 2, 3 ... without gap or reuse.",
        tables=("participant_outbox_sequences", "payment_outbox_items"),
        tier=Tier.CONSTRAINT,
        sqlstates=("23505", "22023", "P0001", "42501"),
        exception=errors.UniqueViolation,
        enforced_by=(
            "constraints/uq_payment_outbox_items_participant_id_sequence_id",
            "triggers/payment_outbox_items__guard",
            "functions/guard_outbox_items",
            "triggers/payment_outbox_items__sequences",
            "functions/advance_outbox_sequences",
            "functions/bump_participant_outbox_seq",
            "functions/enqueue_payment_outbox",
            "triggers/participant_outbox_sequences__no_delete",
            "triggers/participant_outbox_sequences__no_truncate",
            "grants/participant_outbox_sequences",
        ),
        hint="Leave sequence_id out: the database numbers.",
    ),
    _outbox(
        "008",
        "A claim takes what has been due longest. It never returns more than asked, nor an item"
        " that is leased or due later, nor fewer than asked while more are due and free within"
        " its budget.",
        tables=("payment_outbox_pending",),
        tier=Tier.FUNCTION,
        sqlstates=(),
        exception=None,
        enforced_by=(
            "functions/claim_outbox_batch",
            "functions/pick_due_items",
            "functions/set_leases_apart",
        ),
        hint="Nothing to do: the claim leaves such items out.",
    ),
    _outbox(
        "009",
        "No item is lost and none lives twice: it is pending or terminal, always exactly one.",
        tables=("payment_outbox_items", "payment_outbox_pending"),
        sqlstates=("P7006",),
        exception=errors.OutboxItemLost,
        enforced_by=(
            "triggers/payment_outbox_items__guard",
            "triggers/payment_outbox_pending__guard_insert",
            "triggers/payment_outbox_pending__guard_update",
            "triggers/payment_outbox_pending__guard_delete",
            "triggers/payment_outbox_pending__no_truncate",
            "functions/guard_outbox_items",
            "functions/guard_outbox_pending_insert",
            "functions/guard_outbox_pending_update",
            "functions/guard_outbox_pending_delete",
            "functions/close_dead_attempts",
            "functions/verify_outbox",
        ),
        hint="Enqueue and complete by the functions; verify_outbox tells what is amiss.",
    ),
    _outbox(
        "010",
        "No item joins an instruction that has an item whose outcome is UNKNOWN and unresolved: the"
        " payment may have been made.",
        tables=("payment_outbox_items", "payment_outbox_late_results", "instructions"),
        sqlstates=("P7404", "40001"),
        exception=errors.InstructionStateForbids,
        enforced_by=(
            "triggers/payment_outbox_items__guard",
            "functions/guard_outbox_items",
            "functions/enqueue_payment_outbox",
            "functions/redrive_outbox_item",
            "triggers/payment_outbox_attempts__unresolved",
            "triggers/payment_outbox_late_results__unresolved",
            "functions/count_unresolved",
            "triggers/instructions__guard_unresolved_insert",
            "triggers/instructions__guard_unresolved_update",
            "functions/guard_unresolved",
            "functions/lock_outbox_item",
        ),
        hint="Find out what the rail did and resolve the item first.",
    ),
    _outbox(
        "011",
        "A late result belongs to an attempt that was opened, a worker's to its own; one that"
        " contradicts what was recorded or done is stored and shown until control closes it.",
        tables=("payment_outbox_late_results", "payment_outbox_interventions"),
        sqlstates=("P7005", "P7002", "23505", "23514"),
        exception=errors.InvalidAttemptTransition,
        enforced_by=(
            "triggers/payment_outbox_late_results__guard",
            "functions/guard_late_result",
            "functions/record_worker_result",
            "functions/resolve_outbox_item",
            "functions/close_contradiction",
            "views/payment_outbox_contradictions",
            "constraints/pk_payment_outbox_late_results",
            "constraints/ck_payment_outbox_late_results_source",
            "constraints/ck_payment_outbox_late_results_outcome",
            "indexes/uq_payment_outbox_interventions_closed",
        ),
        hint="Record a late result under the token of its own attempt; close a contradiction once.",
    ),
)

INSTRUCTION = (
    _instruction(
        "001",
        "An instruction goes forward only: RECEIVED, AUTHORIZED, EXECUTING, COMPLETED; FAILED from"
        " any of the first three.",
        sqlstates=("P7401", "23514"),
        enforced_by=(
            *INSTRUCTION_GUARD,
            "functions/lock_instruction",
            "constraints/ck_instructions_state",
        ),
        hint="Read the instruction again.",
    ),
    _instruction(
        "002",
        "COMPLETED and FAILED are final, content never changes, and nothing is deleted.",
        sqlstates=("P7401", "P0001"),
        enforced_by=(
            *INSTRUCTION_GUARD,
            "triggers/instructions__no_delete",
            "triggers/instructions__no_truncate",
            "functions/refuse_change",
        ),
        hint="A new try is a new instruction, under a new idempotency key.",
    ),
    _instruction(
        "003",
        "One instruction per participant and idempotency key, whatever its state.",
        tier=Tier.CONSTRAINT,
        sqlstates=("23505",),
        exception=errors.UniqueViolation,
        enforced_by=("constraints/uq_instructions_participant_id_idempotency_key",),
        hint="A new try after FAILED takes a new key.",
    ),
    _instruction(
        "004",
        "Every transition, creation included, leaves exactly one row of history, and no other row"
        " enters.",
        tables=("instructions", "status_history"),
        sqlstates=("P0001", "23505", "23503", "23514"),
        exception=errors.AppendOnlyViolation,
        enforced_by=(
            "triggers/instructions__history_insert",
            "triggers/instructions__history_update",
            "functions/record_status_history",
            "triggers/status_history__guard",
            "functions/guard_status_history",
            "constraints/pk_status_history",
            "constraints/ck_status_history_transition",
            "constraints/fk_status_history_participant_id_instruction_id",
        ),
        hint="The database writes the history itself.",
    ),
    _instruction(
        "005",
        "An outbox item refers to an instruction of its own participant.",
        tables=("instructions", "payment_outbox_pending"),
        tier=Tier.FUNCTION,
        sqlstates=("23503",),
        exception=errors.ForeignKeyViolation,
        enforced_by=(
            "functions/enqueue_payment_outbox",
            "constraints/uq_instructions_participant_id_id_open",
        ),
        hint="Receive and authorize the instruction first.",
    ),
    _instruction(
        "006",
        "A pending item's instruction is AUTHORIZED or EXECUTING; COMPLETED needs an item that was"
        " DISPATCHED or resolved as SENT, FAILED none of these and none that is UNKNOWN and"
        " unresolved.",
        tables=("instructions", "payment_outbox_pending"),
        sqlstates=("P7404", "23503"),
        exception=errors.InstructionStateForbids,
        enforced_by=(
            "triggers/instructions__guard_end",
            "functions/guard_instruction_end",
            "functions/end_instruction",
            "functions/enqueue_payment_outbox",
            "functions/redrive_outbox_item",
            "constraints/fk_payment_outbox_pending_participant_id_instruction_id_open",
        ),
        hint="Authorize it first; end it after its last item.",
    ),
    _instruction(
        "007",
        "The login that received an instruction does not authorize it, and what is dispatched is"
        " not the receiving side's to choose: only an executor enqueues.",
        tier=Tier.FUNCTION,
        sqlstates=("P7405", "42501"),
        exception=errors.SegregationOfDuties,
        enforced_by=("functions/authorize_instruction", "grants/enqueue_payment_outbox"),
        hint="Have another login authorize it, and an executor enqueue.",
    ),
    _instruction(
        "008",
        "A key replayed with the same content gives the instruction, with other content it is"
        " refused.",
        tier=Tier.FUNCTION,
        sqlstates=("P7402",),
        exception=errors.InstructionKeyConflict,
        enforced_by=("functions/receive_instruction",),
        hint="Use a new idempotency key for new content.",
    ),
    _instruction(
        "009",
        "A transition that was decided on a stale version is refused.",
        tier=Tier.FUNCTION,
        sqlstates=("P7403",),
        exception=errors.StaleInstruction,
        enforced_by=("functions/lock_instruction",),
        hint="Read it again and decide anew.",
    ),
    _instruction(
        "010",
        "Authorizing needs an accepted policy and unrevoked credentials at that moment.",
        tier=Tier.FUNCTION,
        sqlstates=("P7105", "P7202"),
        exception=errors.PolicyNotAccepted,
        enforced_by=("functions/authorize_instruction",),
        hint="Receive it anew under a policy and credentials that hold.",
    ),
    _instruction(
        "011",
        "An instruction is received under the policy version of its attestation.",
        tables=("instructions", "ingress_attestations"),
        tier=Tier.CONSTRAINT,
        sqlstates=("23503",),
        exception=errors.ForeignKeyViolation,
        enforced_by=(
            "constraints/fk_instructions_attestation_id_policy_version_id",
            "constraints/uq_ingress_attestations_id_policy_version_id",
        ),
        hint="Name the attestation's own policy version, or attest again under the new one.",
    ),
)

KILL_SWITCH = (
    Invariant(
        id="INV-KIL-001",
        sentence="While a kill switch is engaged, what it stops is refused; the last event of a"
        " scope and target counts.",
        tables=(
            "kill_switches",
            "ingress_attestations",
            "instructions",
            "payment_outbox_items",
            "payment_outbox_attempts",
        ),
        tier=Tier.TRIGGER,
        sqlstates=("P7501", "22023", "23505", "23514"),
        exception=errors.KillSwitchEngaged,
        enforced_by=(
            "triggers/ingress_attestations__kill_switch",
            "triggers/instructions__kill_switch_insert",
            "triggers/instructions__kill_switch_update",
            "triggers/payment_outbox_items__kill_switch",
            "triggers/payment_outbox_attempts__kill_switch",
            "functions/block_execution_if_killed",
            "functions/refuse_if_killed",
            "functions/claim_outbox_batch",
            "triggers/kill_switches__guard",
            "functions/guard_kill_switch",
            "constraints/pk_kill_switches",
            "constraints/ck_kill_switches_scope",
        ),
        hint="Wait until it is released.",
    ),
    Invariant(
        id="INV-KIL-002",
        sentence="When engaging has committed, no gated write that was in flight commits after it.",
        tables=("kill_switches", "kill_switch_gate"),
        tier=Tier.TRIGGER,
        sqlstates=("P0001", "55P03"),
        exception=errors.AppendOnlyViolation,
        enforced_by=(
            "triggers/kill_switches__gate",
            "functions/bound_idle_time",
            "functions/lock_gate",
            "functions/change_gate",
            "functions/share_kill_switch_gate",
            "triggers/kill_switch_gate__no_delete",
            "triggers/kill_switch_gate__no_truncate",
        ),
        hint="Engage by engage_kill_switch.",
    ),
    Invariant(
        id="INV-KIL-003",
        sentence="A key names one kill switch event; the same act repeated under it by the same"
        " login returns that event, anything else is refused.",
        tables=("kill_switches",),
        tier=Tier.CONSTRAINT,
        sqlstates=("23505", "23514"),
        exception=errors.UniqueViolation,
        enforced_by=(
            "constraints/uq_kill_switches_key",
            "constraints/ck_kill_switches_key",
            "functions/engage_kill_switch",
            "functions/release_kill_switch",
        ),
        hint="Use a new key for another act.",
    ),
)

APPEND_ONLY = (
    Invariant(
        id="INV-APP-001",
        sentence="What happened to an instruction or a kill switch, late results, control's"
        " interventions and the audit log are append-only.",
        tables=(
            "status_history",
            "execution_attempts",
            "transaction_attempts",
            "kill_switches",
            "audit_log",
            "payment_outbox_late_results",
            "payment_outbox_interventions",
        ),
        tier=Tier.TRIGGER,
        sqlstates=("P0001",),
        exception=errors.AppendOnlyViolation,
        enforced_by=(
            "triggers/status_history__append_only",
            "triggers/status_history__no_truncate",
            "triggers/execution_attempts__append_only",
            "triggers/execution_attempts__no_truncate",
            "triggers/transaction_attempts__append_only",
            "triggers/transaction_attempts__no_truncate",
            "triggers/kill_switches__append_only",
            "triggers/kill_switches__no_truncate",
            "triggers/audit_log__append_only",
            "triggers/audit_log__no_truncate",
            "triggers/payment_outbox_late_results__append_only",
            "triggers/payment_outbox_late_results__no_truncate",
            "triggers/payment_outbox_interventions__append_only",
            "triggers/payment_outbox_interventions__no_truncate",
            "functions/refuse_change",
        ),
        hint="What was recorded stays; what happens next is a new row.",
    ),
    Invariant(
        id="INV-APP-002",
        sentence="An instruction's attempt n is opened once and closed once, as it was opened; n+1"
        " follows only a closing that did not succeed.",
        tables=("execution_attempts", "transaction_attempts"),
        tier=Tier.TRIGGER,
        sqlstates=("P7401", "23505", "23503", "23514"),
        exception=errors.InvalidInstructionTransition,
        enforced_by=(
            "triggers/execution_attempts__guard",
            "triggers/transaction_attempts__guard",
            "functions/guard_attempt_log",
            "functions/close_execution_attempt",
            "functions/close_transaction_attempt",
            "constraints/pk_execution_attempts",
            "constraints/pk_transaction_attempts",
            "constraints/fk_execution_attempts_participant_id_instruction_id",
            "constraints/fk_transaction_attempts_participant_id_instruction_id",
            "constraints/ck_execution_attempts_outcome",
            "constraints/ck_transaction_attempts_outcome",
        ),
        hint="Read the log: close the attempt that is open, or open the next one.",
    ),
)

AUDIT = (
    Invariant(
        id="INV-AUD-001",
        sentence="Every act of governance leaves exactly one entry in one hash chain; an entry that"
        " no act explains, or an act without an entry, is found.",
        tables=(
            "audit_log",
            "audit_log_head",
            "schema_revision",
            "kill_switches",
            "policy_versions",
            "revoked_client_certs",
            "revoked_tokens",
            "payment_outbox_items",
            "payment_outbox_late_results",
            "payment_outbox_interventions",
        ),
        tier=Tier.TRIGGER,
        sqlstates=("P7302", "P0001", "23505", "23514"),
        exception=errors.ChainDiscontinuity,
        enforced_by=(
            "triggers/schema_revision__audit",
            "triggers/schema_revision__count",
            "functions/record_migration",
            "functions/count_schema_change",
            "triggers/kill_switches__audit",
            "triggers/revoked_client_certs__audit",
            "triggers/revoked_tokens__audit",
            "functions/record_act",
            "triggers/policy_versions__audit_insert",
            "functions/record_policy_entry",
            "triggers/policy_versions__audit_update",
            "functions/record_policy_change",
            "triggers/payment_outbox_items__audit",
            "functions/record_redrive",
            "triggers/payment_outbox_late_results__audit",
            "triggers/payment_outbox_interventions__audit",
            "triggers/payment_outbox_interventions__fill",
            "functions/record_outbox_act",
            "functions/fill_intervention",
            "triggers/payment_outbox_attempts__cancelled",
            "triggers/payment_outbox_pending__rescheduled",
            "triggers/payment_outbox_pending__lease_expired",
            "functions/record_intervention",
            "triggers/audit_log__guard",
            "functions/guard_audit_log",
            "functions/audit_record_hash",
            "triggers/audit_log__head",
            "functions/advance_audit_log_head",
            "triggers/audit_log_head__no_delete",
            "triggers/audit_log_head__no_truncate",
            "triggers/schema_revision__no_delete",
            "triggers/schema_revision__no_truncate",
            "functions/verify_audit_log",
            "constraints/pk_audit_log",
            "constraints/uq_audit_log_prev_hash",
            "constraints/ck_audit_log_action",
            "constraints/ck_audit_log_prev_hash",
            "constraints/ck_audit_log_record_hash",
        ),
        hint="Leave the log to the database: an act writes its own entry.",
    ),
)

INTERFACE = (
    Invariant(
        id="INV-API-001",
        sentence="A size, text, payload, lease, due time or grace out of bounds is refused, and so"
        " is a value that its type does not take.",
        tables=(
            "policy_versions",
            "ingress_attestations",
            "instructions",
            "payment_outbox_items",
            "payment_outbox_late_results",
            "payment_outbox_interventions",
        ),
        tier=Tier.FUNCTION,
        sqlstates=("22023", "23514", "23502", "22P02", "22003", "22007", "22008", "22P05"),
        exception=errors.InvalidParameterValue,
        enforced_by=(
            "functions/refuse_long_texts",
            "functions/refuse_element",
            "functions/refuse_unreadable",
            "functions/rotate_policy_version",
            "functions/append_attestations",
            "functions/receive_instruction",
            "functions/end_instruction",
            "functions/enqueue_payment_outbox",
            "functions/claim_outbox_batch",
            "functions/renew_outbox_lease",
            "functions/complete_outbox_attempt",
            "functions/repair_expired_leases",
            "functions/resolve_outbox_item",
            "functions/cancel_outbox_item",
            "functions/reschedule_outbox_item",
            "functions/expire_outbox_lease",
            "functions/close_contradiction",
            "constraints/ck_audit_log_table_name",
            "constraints/ck_execution_attempts_error",
            "constraints/ck_execution_attempts_worker_id",
            "constraints/ck_ingress_attestation_events_recorded_by",
            "constraints/ck_ingress_attestation_heads_caller_identity",
            "constraints/ck_ingress_attestations_caller_identity",
            "constraints/ck_ingress_attestations_idempotency_key",
            "constraints/ck_instructions_creditor_account",
            "constraints/ck_instructions_debtor_account",
            "constraints/ck_instructions_end_to_end_id",
            "constraints/ck_instructions_idempotency_key",
            "constraints/ck_instructions_instruction_type",
            "constraints/ck_instructions_participant_id",
            "constraints/ck_instructions_payload",
            "constraints/ck_instructions_reason",
            "constraints/ck_kill_switches_actor",
            "constraints/ck_kill_switches_reason",
            "constraints/ck_participant_outbox_sequences_participant_id",
            "constraints/ck_payment_outbox_attempts_texts",
            "constraints/ck_payment_outbox_attempts_worker_id",
            "constraints/ck_payment_outbox_items_idempotency_key",
            "constraints/ck_payment_outbox_items_participant_id",
            "constraints/ck_payment_outbox_items_payload",
            "constraints/ck_payment_outbox_items_rail_type",
            "constraints/ck_payment_outbox_pending_lease",
            "constraints/ck_policy_versions_created_by",
            "constraints/ck_policy_versions_description",
            "constraints/ck_policy_versions_id",
            "constraints/ck_revoked_client_certs_revoked_by",
            "constraints/ck_revoked_tokens_revoked_by",
            "constraints/ck_status_history_reason",
            "constraints/ck_transaction_attempts_error",
            "constraints/ck_transaction_attempts_rail_reference",
            "constraints/ck_transaction_attempts_rail_type",
            "constraints/ck_transaction_attempts_worker_id",
            "functions/revocations_since",
        ),
        hint="Claim 1 to 10,000 items of 1 byte to 1 GiB, send 0 to 10,000 in at most 64 MiB,"
        " due within 400 days, lease 1 s to 1 day, grace from zero; a text key is 1 to"
        " 1,000 octets, a free text at most 4,000, a payload at most 1,000,000, a hash 64 lowercase"
        " hex digits.",
    ),
    Invariant(
        id="INV-API-002",
        sentence="An act names something that exists.",
        tables=(
            "policy_gate",
            "revocation_gate",
            "kill_switch_gate",
            "kill_switches",
            "ingress_attestations",
            "instructions",
            "execution_attempts",
            "transaction_attempts",
            "payment_outbox_items",
            "payment_outbox_late_results",
        ),
        tier=Tier.FUNCTION,
        sqlstates=("P0002",),
        exception=errors.NotFound,
        enforced_by=(
            "functions/share_policy_gate",
            "functions/share_revocation_gate",
            "functions/share_kill_switch_gate",
            "functions/release_kill_switch",
            "functions/lock_gate",
            "functions/record_attestation_event",
            "functions/lock_instruction",
            "functions/lock_attempted_instruction",
            "functions/close_execution_attempt",
            "functions/close_transaction_attempt",
            "functions/renew_outbox_lease",
            "functions/complete_outbox_attempt",
            "functions/lock_outbox_item",
            "functions/close_contradiction",
            "functions/redrive_outbox_item",
        ),
        hint="Read the id again.",
    ),
    Invariant(
        id="INV-API-003",
        sentence="No error, log line, repr or pickled error shows an account, payload, salt or"
        " credential hash that its reader cannot read.",
        tables=(
            "revoked_client_certs",
            "revoked_tokens",
            "ingress_attestations",
            "instructions",
            "payment_outbox_items",
        ),
        tier=Tier.FUNCTION,
        sqlstates=(),
        exception=None,
        enforced_by=(
            "functions/raise_invariant",
            "functions/refuse_long_texts",
            "functions/refuse_element",
            "functions/refuse_unreadable",
            "functions/is_storable_payload",
            "functions/append_attestations",
            "functions/receive_instruction",
            "functions/end_instruction",
            "functions/enqueue_payment_outbox",
        ),
        hint="DETAIL names keys only; read the row itself as a role that may.",
    ),
)

CATALOGUE: tuple[Invariant, ...] = (
    *POLICY,
    *REVOCATION,
    *ATTESTATION,
    *INSTRUCTION,
    *OUTBOX,
    *KILL_SWITCH,
    *APPEND_ONLY,
    *AUDIT,
    *INTERFACE,
)

BY_ID: Mapping[str, Invariant] = {entry.id: entry for entry in CATALOGUE}

BY_NATIVE_CONSTRAINT: Mapping[str, str] = {
    path.partition("/")[2]: entry.id
    for entry in CATALOGUE
    for path in entry.enforced_by
    if path.startswith(("constraints/", "indexes/"))
}
"""The invariant of each constraint or index that a native code may name."""

"""The words that columns may hold, and the bounds of what may be asked for."""

from enum import StrEnum


class PolicyStatus(StrEnum):
    ACTIVE = "ACTIVE"
    GRACE = "GRACE"
    RETIRED = "RETIRED"


class TerminalStatus(StrEnum):
    """How an attested execution ended."""

    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    REPAIRED = "REPAIRED"


class AttestationEvent(StrEnum):
    EXECUTION_STARTED = "EXECUTION_STARTED"
    EXECUTION_COMPLETED = "EXECUTION_COMPLETED"


class CRLReason(StrEnum):
    """RFC 5280, section 5.3.1, without removeFromCRL: a revocation is never taken back."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    CA_COMPROMISE = "cACompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    CERTIFICATE_HOLD = "certificateHold"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    AA_COMPROMISE = "aACompromise"


class CredentialKind(StrEnum):
    CLIENT_CERT = "CLIENT_CERT"
    TOKEN = "TOKEN"


class InstructionState(StrEnum):
    """RECEIVED, AUTHORIZED, EXECUTING, COMPLETED in this order; FAILED from the first three."""

    RECEIVED = "RECEIVED"
    AUTHORIZED = "AUTHORIZED"
    EXECUTING = "EXECUTING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class KillSwitchScope(StrEnum):
    """What a switch stops: everything gated, a stage of it, or one participant or rail."""

    GLOBAL = "GLOBAL"
    INGEST = "INGEST"
    EXECUTION = "EXECUTION"
    DISPATCH = "DISPATCH"
    PARTICIPANT = "PARTICIPANT"
    RAIL = "RAIL"


class KillSwitchAction(StrEnum):
    ENGAGE = "ENGAGE"
    RELEASE = "RELEASE"


class AuditAction(StrEnum):
    """The acts of governance; DEMOTE and SHORTEN are an owner's direct changes of a policy."""

    MIGRATE = "MIGRATE"
    ROTATE = "ROTATE"
    RETIRE = "RETIRE"
    DEMOTE = "DEMOTE"
    SHORTEN = "SHORTEN"
    REVOKE = "REVOKE"
    ENGAGE = "ENGAGE"
    RELEASE = "RELEASE"
    REDRIVE = "REDRIVE"
    RESOLVE = "RESOLVE"
    CANCEL = "CANCEL"
    RESCHEDULE = "RESCHEDULE"
    EXPIRE_LEASE = "EXPIRE_LEASE"
    CLOSE_CONTRADICTION = "CLOSE_CONTRADICTION"


class AttemptPhase(StrEnum):
    OPEN = "OPEN"
    CLOSE = "CLOSE"


class AttemptOutcome(StrEnum):
    """How an attempt of an instruction ended; no attempt follows one that SUCCEEDED."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"


class AttemptState(StrEnum):
    DISPATCHING = "DISPATCHING"
    DISPATCHED = "DISPATCHED"
    RETRYABLE = "RETRYABLE"
    FAILED = "FAILED"
    ZOMBIE_REQUEUE = "ZOMBIE_REQUEUE"


class ItemState(StrEnum):
    """Where an item stands."""

    PENDING = "PENDING"
    DISPATCHING = "DISPATCHING"
    DISPATCHED = "DISPATCHED"
    FAILED = "FAILED"


class CompletionState(StrEnum):
    """The states that a worker may report."""

    DISPATCHED = "DISPATCHED"
    RETRYABLE = "RETRYABLE"
    FAILED = "FAILED"


class Outcome(StrEnum):
    """What is known of the rail's side of an attempt that was not dispatched."""

    REJECTED = "REJECTED"
    UNKNOWN = "UNKNOWN"
    NOT_SENT = "NOT_SENT"


class LateOutcome(StrEnum):
    """What the rail did, as it was found out afterwards."""

    SENT = "SENT"
    REJECTED = "REJECTED"
    NOT_SENT = "NOT_SENT"


class KnownOutcome(StrEnum):
    """What is known of an item that has ended, late results included."""

    SENT = "SENT"
    REJECTED = "REJECTED"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"


class LateSource(StrEnum):
    """Who learnt a late result: the attempt's own worker, or control by reconciliation."""

    WORKER = "WORKER"
    RECONCILIATION = "RECONCILIATION"


class Intervention(StrEnum):
    """What control does about one item."""

    CANCEL = "CANCEL"
    RESCHEDULE = "RESCHEDULE"
    EXPIRE_LEASE = "EXPIRE_LEASE"
    CLOSE_CONTRADICTION = "CLOSE_CONTRADICTION"


class Contradiction(StrEnum):
    """What a late result contradicts: how an attempt was closed, an earlier late result, another
    item of the same key, or an instruction that FAILED."""

    ATTEMPT = "ATTEMPT"
    LATE_RESULT = "LATE_RESULT"
    REDRIVE = "REDRIVE"
    INSTRUCTION = "INSTRUCTION"


MAX_KEY_OCTETS = 1000
"""The longest text key, in UTF-8."""
MAX_TEXT_OCTETS = 4000
"""The longest free text, in UTF-8."""
MAX_PAYLOAD_OCTETS = 1_000_000
"""The longest payload, as jsonb text."""
MAX_ATTEMPTS = 1000
DEFAULT_MAX_ATTEMPTS = 20

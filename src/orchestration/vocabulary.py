"""The values that columns accept, and the bounds of sizes."""

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
    """RFC 5280, section 5.3.1, without removeFromCRL: a revocation is never undone."""

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
    """RECEIVED, AUTHORIZED, EXECUTING, COMPLETED, in this order; or FAILED from the first three."""

    RECEIVED = "RECEIVED"
    AUTHORIZED = "AUTHORIZED"
    EXECUTING = "EXECUTING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class KillSwitchScope(StrEnum):
    """What a kill switch blocks: everything, one stage, one participant or one rail."""

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
    """The acts of governance. DEMOTE and SHORTEN are direct changes of a policy by the owner."""

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
    """How an attempt of an instruction ended. SUCCEEDED is always the last attempt."""

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
    """The state of an outbox item."""

    PENDING = "PENDING"
    DISPATCHING = "DISPATCHING"
    DISPATCHED = "DISPATCHED"
    FAILED = "FAILED"


class CompletionState(StrEnum):
    """The states that a worker can report."""

    DISPATCHED = "DISPATCHED"
    RETRYABLE = "RETRYABLE"
    FAILED = "FAILED"


class Outcome(StrEnum):
    """What the rail did with an attempt that was not dispatched, as far as it is known."""

    REJECTED = "REJECTED"
    UNKNOWN = "UNKNOWN"
    NOT_SENT = "NOT_SENT"


class LateOutcome(StrEnum):
    """What the rail did, as found out later."""

    SENT = "SENT"
    REJECTED = "REJECTED"
    NOT_SENT = "NOT_SENT"


class KnownOutcome(StrEnum):
    """The outcome of a terminal item, including its late results."""

    SENT = "SENT"
    REJECTED = "REJECTED"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"


class LateSource(StrEnum):
    """Who reported a late result: the worker of the attempt, or control after reconciliation."""

    WORKER = "WORKER"
    RECONCILIATION = "RECONCILIATION"


class Intervention(StrEnum):
    """What control can do with one item."""

    CANCEL = "CANCEL"
    RESCHEDULE = "RESCHEDULE"
    EXPIRE_LEASE = "EXPIRE_LEASE"
    CLOSE_CONTRADICTION = "CLOSE_CONTRADICTION"


class Contradiction(StrEnum):
    """What a late result contradicts: the closing of an attempt, an earlier late result, another
    item with the same key, or an instruction that is FAILED."""

    ATTEMPT = "ATTEMPT"
    LATE_RESULT = "LATE_RESULT"
    REDRIVE = "REDRIVE"
    INSTRUCTION = "INSTRUCTION"


MAX_KEY_OCTETS = 1000
"""The longest text key, in octets of UTF-8."""
MAX_TEXT_OCTETS = 4000
"""The longest free text, in octets of UTF-8."""
MAX_PAYLOAD_OCTETS = 1_000_000
"""The longest payload, in octets of its jsonb text."""
MAX_ATTEMPTS = 1000
DEFAULT_MAX_ATTEMPTS = 20

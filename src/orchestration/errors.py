"""The typed exceptions.

`orchestration.translate` chooses the class by SQLSTATE and, for a native code, by the name of the
constraint; never by the message. The families are the branches that end in `Error`: a service can
catch one, for example `except OutboxError`. `except IdempotencyConflict` catches a reused key of
any family. A class with two bases is listed under its first base.

    OrchestrationError
        InsufficientPrivilege 42501
        AppendOnlyViolation P0001
        NotFound P0002
        UniqueViolation 23505
        ForeignKeyViolation 23503
        CheckViolation 23514
        NotNullViolation 23502
        IdempotencyConflict
        OutboxError
            LeaseLost P7002
            RetryCeilingExceeded P7003
            OutboxKeyConflict P7004 (also IdempotencyConflict)
            InvalidAttemptTransition P7005
            OutboxItemLost P7006
        PolicyError
            InvalidPolicyTransition P7101
            PolicyDeleteForbidden P7102
            LastActivePolicy P7103
            ActivePolicyConflict P7104
                ActivePolicyRace (also UniqueViolation)
            PolicyNotAccepted P7105
        RevocationError
            InvalidRevocation P7201
            CredentialRevoked P7202
        AttestationError
            InvalidAttestationState P7301
            ChainDiscontinuity P7302
                ChainRace (also UniqueViolation)
            AttestationKeyConflict P7303 (also IdempotencyConflict)
        InstructionError
            InvalidInstructionTransition P7401
            InstructionKeyConflict P7402 (also IdempotencyConflict)
            StaleInstruction P7403
            InstructionStateForbids P7404
                InstructionStateRace (also ForeignKeyViolation)
            SegregationOfDuties P7405
        KillSwitchError
            KillSwitchEngaged P7501
        InvalidTextRepresentation 22P02
        NumericValueOutOfRange 22003
        InvalidDatetime 22007, 22008
        UntranslatableCharacter 22P05
        InvalidParameterValue 22023
        SerializationFailure 40001
        DeadlockDetected 40P01
        LockNotAvailable 55P03
        QueryCanceled 57014
        FailedTransaction 25P02
        ReadOnlyServer 25006
        DiskFull 53100
        OutOfMemory 53200
        ConnectionLost 57P01, 57P02, 57P03, 57P05, 25P03, 53300
        InvalidPassword 28P01
        InvalidAuthorizationSpecification 28000
        InvalidCatalogName 3D000
        CommitOutcomeUnknown 08007, 40003
        PoolerModeRequired 26000, 42P05
        SchemaNotReady
        UnsupportedDriver
        UnclassifiedDatabaseError
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class Retry(StrEnum):
    """What a caller can do after an error."""

    SAFE = "SAFE"
    """Run the whole unit again and read everything again."""
    AFTER_RESOLUTION = "AFTER_RESOLUTION"
    """First find out what happened, or wait until something changes."""
    NEVER = "NEVER"
    """The same unit will fail again."""


class OrchestrationError(Exception):
    """An error of this library.

    These attributes are None if the database sent nothing for them: `sqlstate` (five characters),
    `invariant` (`INV-...`), `schema`, `table`, `column`, `constraint`, `detail` and `hint`.
    `detail` is a dict with the keys of the offending row. A DETAIL in PostgreSQL's own words is
    under the key `text`; if it would show a whole row, `detail` is None. `retry` is always set.
    `__cause__` is the driver's error.
    """

    sqlstates: ClassVar[tuple[str, ...]] = ()
    default_retry: ClassVar[Retry] = Retry.NEVER

    def __init__(
        self,
        message: str | None = None,
        *,
        sqlstate: str | None = None,
        invariant: str | None = None,
        schema: str | None = None,
        table: str | None = None,
        column: str | None = None,
        constraint: str | None = None,
        detail: Mapping[str, object] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])
        self.sqlstate = sqlstate
        self.invariant = invariant
        self.schema = schema
        self.table = table
        self.column = column
        self.constraint = constraint
        self.detail = None if detail is None else dict(detail)
        self.hint = hint

    @property
    def retry(self) -> Retry:
        return self.default_retry

    def __reduce__(self) -> tuple[object, ...]:
        # By default pickle rebuilds an exception from `args` alone and loses our attributes.
        return (type(self), self.args, self.__dict__)


class InsufficientPrivilege(OrchestrationError):
    """The login's role lacks the privilege."""

    sqlstates = ("42501",)


class AppendOnlyViolation(OrchestrationError):
    """The table is append-only: UPDATE, DELETE and TRUNCATE are refused."""

    sqlstates = ("P0001",)


class NotFound(OrchestrationError):
    """The referenced row does not exist."""

    sqlstates = ("P0002",)


class UniqueViolation(OrchestrationError):
    """A unique constraint or index rejects the row."""

    sqlstates = ("23505",)


class ForeignKeyViolation(OrchestrationError):
    """The row references a row that does not exist."""

    sqlstates = ("23503",)


class CheckViolation(OrchestrationError):
    """A check constraint rejects the row."""

    sqlstates = ("23514",)


class NotNullViolation(OrchestrationError):
    """A required column is missing."""

    sqlstates = ("23502",)


class IdempotencyConflict(OrchestrationError):
    """The idempotency key was used before, with different content."""


class OutboxError(OrchestrationError):
    """An error of the outbox (P70xx)."""


class LeaseLost(OutboxError):
    """The lease has expired, belongs to another worker, or never existed."""

    sqlstates = ("P7002",)


class RetryCeilingExceeded(OutboxError):
    """The item has no attempts left."""

    sqlstates = ("P7003",)


class OutboxKeyConflict(OutboxError, IdempotencyConflict):
    """The outbox item's idempotency key was used before, with different content."""

    sqlstates = ("P7004",)


class InvalidAttemptTransition(OutboxError):
    """The attempt cannot follow the item's earlier attempts."""

    sqlstates = ("P7005",)


class OutboxItemLost(OutboxError):
    """The change would lose an outbox item, or make it pending and terminal at once."""

    sqlstates = ("P7006",)


class PolicyError(OrchestrationError):
    """An error of policy versions (P71xx)."""


class InvalidPolicyTransition(PolicyError):
    """The policy version cannot change in this way."""

    sqlstates = ("P7101",)


class PolicyDeleteForbidden(PolicyError):
    """Policy versions cannot be deleted or truncated."""

    sqlstates = ("P7102",)


class LastActivePolicy(PolicyError):
    """The change would leave no ACTIVE policy version."""

    sqlstates = ("P7103",)


class ActivePolicyConflict(PolicyError):
    """Another policy version is ACTIVE, or the ACTIVE one is not the expected one."""

    sqlstates = ("P7104",)


class ActivePolicyRace(ActivePolicyConflict, UniqueViolation):
    """Another transaction activated a policy version first."""


class PolicyNotAccepted(PolicyError):
    """The policy version is retired, past its grace period, or unknown."""

    sqlstates = ("P7105",)


class RevocationError(OrchestrationError):
    """An error of revocations (P72xx)."""


class InvalidRevocation(RevocationError):
    """The revocation's hash or time is not valid."""

    sqlstates = ("P7201",)


class CredentialRevoked(RevocationError):
    """The client certificate or the token is revoked."""

    sqlstates = ("P7202",)


class AttestationError(OrchestrationError):
    """An error of attestations or of a hash chain (P73xx)."""


class InvalidAttestationState(AttestationError):
    """The attestation's state or time is not valid."""

    sqlstates = ("P7301",)


class ChainDiscontinuity(AttestationError):
    """The record does not continue its hash chain."""

    sqlstates = ("P7302",)


class ChainRace(ChainDiscontinuity, UniqueViolation):
    """Another transaction continued the hash chain first."""

    default_retry = Retry.SAFE


class AttestationKeyConflict(AttestationError, IdempotencyConflict):
    """The attestation's idempotency key was used before, with different content."""

    sqlstates = ("P7303",)


class InstructionError(OrchestrationError):
    """An error of instructions (P74xx)."""


class InvalidInstructionTransition(InstructionError):
    """The instruction, or its attempt, cannot change in this way."""

    sqlstates = ("P7401",)


class InstructionKeyConflict(InstructionError, IdempotencyConflict):
    """The instruction's idempotency key was used before, with different content."""

    sqlstates = ("P7402",)


class StaleInstruction(InstructionError):
    """The instruction has changed since the caller read it."""

    sqlstates = ("P7403",)
    default_retry = Retry.AFTER_RESOLUTION


class InstructionStateForbids(InstructionError):
    """The state of the instruction, or of its outbox items, does not allow this."""

    sqlstates = ("P7404",)
    default_retry = Retry.AFTER_RESOLUTION


class InstructionStateRace(InstructionStateForbids, ForeignKeyViolation):
    """Another transaction ended the instruction or enqueued an item for it first."""


class SegregationOfDuties(InstructionError):
    """The login that received an instruction cannot authorize it."""

    sqlstates = ("P7405",)


class KillSwitchError(OrchestrationError):
    """An error of kill switches (P75xx)."""


class KillSwitchEngaged(KillSwitchError):
    """An engaged kill switch blocks this."""

    sqlstates = ("P7501",)
    default_retry = Retry.AFTER_RESOLUTION


class InvalidTextRepresentation(OrchestrationError):
    """The value is not valid input for the column's type."""

    sqlstates = ("22P02",)


class NumericValueOutOfRange(OrchestrationError):
    """The number is out of range for its type."""

    sqlstates = ("22003",)


class InvalidDatetime(OrchestrationError):
    """The date, time or interval is malformed or out of range."""

    sqlstates = ("22007", "22008")


class UntranslatableCharacter(OrchestrationError):
    """The text contains a character that PostgreSQL cannot store."""

    sqlstates = ("22P05",)


class InvalidParameterValue(OrchestrationError):
    """A parameter is out of bounds or has the wrong shape."""

    sqlstates = ("22023",)


class SerializationFailure(OrchestrationError):
    """A concurrent transaction changed rows that this transaction depends on."""

    sqlstates = ("40001",)
    default_retry = Retry.SAFE


class DeadlockDetected(OrchestrationError):
    """Two transactions waited for each other."""

    sqlstates = ("40P01",)
    default_retry = Retry.SAFE


class LockNotAvailable(OrchestrationError):
    """A lock could not be acquired within lock_timeout."""

    sqlstates = ("55P03",)
    default_retry = Retry.SAFE


class QueryCanceled(OrchestrationError):
    """The statement was cancelled by statement_timeout or by a user."""

    sqlstates = ("57014",)
    default_retry = Retry.AFTER_RESOLUTION


class FailedTransaction(OrchestrationError):
    """The transaction has already failed: the first error is the cause."""

    sqlstates = ("25P02",)


class ReadOnlyServer(OrchestrationError):
    """The server accepts no writes; the connection is discarded."""

    sqlstates = ("25006",)
    default_retry = Retry.SAFE


class DiskFull(OrchestrationError):
    """The server has no disk space left: try again after a pause."""

    sqlstates = ("53100",)
    default_retry = Retry.SAFE


class OutOfMemory(OrchestrationError):
    """The server, or its lock table, has no memory left: try again after a pause."""

    sqlstates = ("53200",)
    default_retry = Retry.SAFE


class ConnectionLost(OrchestrationError):
    """The server cannot be reached, or the connection was lost before COMMIT was sent."""

    sqlstates = ("57P01", "57P02", "57P03", "57P05", "25P03", "53300")
    default_retry = Retry.SAFE


class InvalidPassword(OrchestrationError):
    """The server rejects the password, or requires one and none was given."""

    sqlstates = ("28P01",)


class InvalidAuthorizationSpecification(OrchestrationError):
    """The server rejects the login: an unknown role, or no matching line in pg_hba.conf."""

    sqlstates = ("28000",)


class InvalidCatalogName(OrchestrationError):
    """The database does not exist."""

    sqlstates = ("3D000",)


class CommitOutcomeUnknown(OrchestrationError):
    """It is unknown whether the COMMIT is durable: repeat the act with the same key.

    Either the connection was lost while a COMMIT was in flight, or the wait for a synchronous
    standby was cancelled (warning 01000). In the second case the COMMIT is visible, but it is lost
    if the server fails over before a standby has received it.
    """

    sqlstates = ("08007", "40003")
    default_retry = Retry.AFTER_RESOLUTION


class PoolerModeRequired(OrchestrationError):
    """A transaction-mode pooler is used, but the engine was made without `pooler=True`."""

    sqlstates = ("26000", "42P05")


class SchemaNotReady(OrchestrationError):
    """The schema is missing or older than this code: run `alembic upgrade head`."""


class UnsupportedDriver(OrchestrationError):
    """The driver is not psycopg 3, the only driver whose errors this library can classify."""


class UnclassifiedDatabaseError(OrchestrationError):
    """A database error without a class in this library; all its fields are kept."""


def _classes(root: type[OrchestrationError]) -> list[type[OrchestrationError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


BY_SQLSTATE: Mapping[str, type[OrchestrationError]] = {
    code: cls for cls in _classes(OrchestrationError) for code in vars(cls).get("sqlstates", ())
}
"""The class of each SQLSTATE that has a class."""

BY_CONSTRAINT: Mapping[str, type[UniqueViolation | ForeignKeyViolation]] = {
    "uq_policy_versions_active": ActivePolicyRace,
    "uq_ingress_attestations_caller_identity_chain_seq": ChainRace,
    "uq_ingress_attestations_caller_identity_prev_hash": ChainRace,
    "pk_audit_log": ChainRace,
    "uq_audit_log_prev_hash": ChainRace,
    "fk_payment_outbox_pending_participant_id_instruction_id_open": InstructionStateRace,
}
"""The class of each constraint that has a more specific class than its native code."""

"""The typed exceptions, one a promise of the database or a condition of PostgreSQL.

A class is chosen by SQLSTATE and, for a native code, by the constraint's name; never by message.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class Retry(StrEnum):
    """What a caller may do after an error."""

    SAFE = "SAFE"
    """Run the whole unit again, everything re-read."""
    AFTER_RESOLUTION = "AFTER_RESOLUTION"
    """Something must first be found out or change."""
    NEVER = "NEVER"
    """The same unit will fail again."""


class OrchestrationError(Exception):
    """An error of this library.

    Attributes, None where absent: `sqlstate` (five characters), `invariant` (`INV-...`), `schema`,
    `table`, `column`, `constraint`, `detail` (a dict: the keys of the offending row; a native
    DETAIL stands under `text`, and is None if it would show a row), `hint`. `retry` is always set.
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
        # Exceptions are rebuilt from args alone; ours travel between processes whole.
        return (type(self), self.args, self.__dict__)


class InsufficientPrivilege(OrchestrationError):
    """The login's role may not do this."""

    sqlstates = ("42501",)


class AppendOnlyViolation(OrchestrationError):
    """Evidence is append-only: no UPDATE, DELETE or TRUNCATE."""

    sqlstates = ("P0001",)


class IdempotencyConflict(OrchestrationError):
    """The idempotency key was used before, with other content."""

    sqlstates = ("P7004", "P7303", "P7402")


class LeaseLost(OrchestrationError):
    """The lease is another worker's, has expired, or was never this worker's."""

    sqlstates = ("P7002",)


class RetryCeilingExceeded(OrchestrationError):
    """The item has used all its attempts."""

    sqlstates = ("P7003",)


class InvalidAttemptTransition(OrchestrationError):
    """The attempt does not follow the item's attempts so far."""

    sqlstates = ("P7005",)


class OutboxItemLost(OrchestrationError):
    """The change would lose an item, or let one live twice."""

    sqlstates = ("P7006",)


class InvalidPolicyTransition(OrchestrationError):
    """The policy version may not change like this."""

    sqlstates = ("P7101",)


class PolicyDeleteForbidden(OrchestrationError):
    """Policy versions are never deleted or truncated."""

    sqlstates = ("P7102",)


class LastActivePolicy(OrchestrationError):
    """No ACTIVE policy version would remain."""

    sqlstates = ("P7103",)


class ActivePolicyConflict(OrchestrationError):
    """Another policy version is ACTIVE, or not the expected one."""

    sqlstates = ("P7104",)


class PolicyNotAccepted(OrchestrationError):
    """The policy version is retired, past its grace, or unknown."""

    sqlstates = ("P7105",)


class InvalidRevocation(OrchestrationError):
    """The revocation's hash or time is not valid."""

    sqlstates = ("P7201",)


class CredentialRevoked(OrchestrationError):
    """The client certificate or the token is revoked."""

    sqlstates = ("P7202",)


class InvalidAttestationState(OrchestrationError):
    """The attestation's state or time is not possible."""

    sqlstates = ("P7301",)


class ChainDiscontinuity(OrchestrationError):
    """The record does not continue its hash chain."""

    sqlstates = ("P7302",)


class InvalidInstructionTransition(OrchestrationError):
    """The instruction may not change like this."""

    sqlstates = ("P7401",)


class StaleInstruction(OrchestrationError):
    """The instruction has changed since it was read."""

    sqlstates = ("P7403",)
    default_retry = Retry.AFTER_RESOLUTION


class InstructionStateForbids(OrchestrationError):
    """The instruction's state does not allow this, or its items do not."""

    sqlstates = ("P7404",)
    default_retry = Retry.AFTER_RESOLUTION


class SegregationOfDuties(OrchestrationError):
    """The login that received an instruction does not authorize it."""

    sqlstates = ("P7405",)


class KillSwitchEngaged(OrchestrationError):
    """A kill switch is engaged."""

    sqlstates = ("P7501",)
    default_retry = Retry.AFTER_RESOLUTION


class UniqueViolation(OrchestrationError):
    """A unique constraint or index refuses the row."""

    sqlstates = ("23505",)


class ForeignKeyViolation(OrchestrationError):
    """The row refers to nothing."""

    sqlstates = ("23503",)


class CheckViolation(OrchestrationError):
    """A check constraint refuses the row."""

    sqlstates = ("23514",)


class NotNullViolation(OrchestrationError):
    """A column that must be given is missing."""

    sqlstates = ("23502",)


class ActivePolicyRace(ActivePolicyConflict, UniqueViolation):
    """Another transaction made a policy version ACTIVE first."""


class ChainRace(ChainDiscontinuity, UniqueViolation):
    """Another transaction continued the chain first."""

    default_retry = Retry.SAFE


class InstructionStateRace(InstructionStateForbids, ForeignKeyViolation):
    """A pending item and its instruction's state do not go together."""


class InvalidTextRepresentation(OrchestrationError):
    """A value is not written as its type wants it."""

    sqlstates = ("22P02",)


class NumericValueOutOfRange(OrchestrationError):
    """A number does not fit its type."""

    sqlstates = ("22003",)


class InvalidDatetime(OrchestrationError):
    """A date, a time or an interval is malformed or out of range."""

    sqlstates = ("22007", "22008")


class UntranslatableCharacter(OrchestrationError):
    """A text holds a character that PostgreSQL cannot store."""

    sqlstates = ("22P05",)


class InvalidParameterValue(OrchestrationError):
    """A size, lease or grace is out of bounds, or an argument has the wrong shape."""

    sqlstates = ("22023",)


class NotFound(OrchestrationError):
    """The act names something that does not exist."""

    sqlstates = ("P0002",)


class SerializationFailure(OrchestrationError):
    """The transaction's snapshot is too old for what it does."""

    sqlstates = ("40001",)
    default_retry = Retry.SAFE


class DeadlockDetected(OrchestrationError):
    """Two transactions waited for each other."""

    sqlstates = ("40P01",)
    default_retry = Retry.SAFE


class LockNotAvailable(OrchestrationError):
    """A lock was not free within lock_timeout."""

    sqlstates = ("55P03",)
    default_retry = Retry.SAFE


class QueryCanceled(OrchestrationError):
    """The statement was cancelled, by statement_timeout or by someone."""

    sqlstates = ("57014",)
    default_retry = Retry.AFTER_RESOLUTION


class FailedTransaction(OrchestrationError):
    """The transaction has failed already: the first error is the cause."""

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
    """The server has no memory left, or no room in its lock table: try again after a pause."""

    sqlstates = ("53200",)
    default_retry = Retry.SAFE


class ConnectionLost(OrchestrationError):
    """The server could not be reached, or the connection was lost before COMMIT was sent."""

    sqlstates = ("57P01", "57P02", "57P03", "57P05", "25P03", "53300")
    default_retry = Retry.SAFE


class InvalidPassword(OrchestrationError):
    """The server rejects the password, or asks for one that was not given."""

    sqlstates = ("28P01",)


class InvalidAuthorizationSpecification(OrchestrationError):
    """The server rejects the login: an unknown role, or no matching line in pg_hba.conf."""

    sqlstates = ("28000",)


class InvalidCatalogName(OrchestrationError):
    """The database does not exist."""

    sqlstates = ("3D000",)


class CommitOutcomeUnknown(OrchestrationError):
    """It is unknown whether the COMMIT lasts: replay the same act under the same key.

    Either the connection was lost while a COMMIT was in flight, or the wait for a synchronous
    standby was cancelled (warning 01000): the COMMIT is then visible, and lost if the server fails
    over before a standby has received it.
    """

    sqlstates = ("08007", "40003")
    default_retry = Retry.AFTER_RESOLUTION


class PoolerModeRequired(OrchestrationError):
    """A pooler in transaction mode is in the way, and the engine was made without `pooler=True`."""

    sqlstates = ("26000", "42P05")


class SchemaNotReady(OrchestrationError):
    """The schema is absent or older than this code: run `alembic upgrade head`."""


class UnsupportedDriver(OrchestrationError):
    """The engine does not use psycopg 3, the only driver whose errors this library can classify."""


class UnclassifiedDatabaseError(OrchestrationError):
    """A database error this library has no class for; everything is kept."""


def _classes(root: type[OrchestrationError]) -> list[type[OrchestrationError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


BY_SQLSTATE: Mapping[str, type[OrchestrationError]] = {
    code: cls for cls in _classes(OrchestrationError) for code in vars(cls).get("sqlstates", ())
}
"""The class of each SQLSTATE that has one of its own."""

BY_CONSTRAINT: Mapping[str, type[UniqueViolation | ForeignKeyViolation]] = {
    "uq_policy_versions_active": ActivePolicyRace,
    "uq_ingress_attestations_caller_identity_chain_seq": ChainRace,
    "uq_ingress_attestations_caller_identity_prev_hash": ChainRace,
    "pk_audit_log": ChainRace,
    "uq_audit_log_prev_hash": ChainRace,
    "fk_payment_outbox_pending_participant_id_instruction_id_open": InstructionStateRace,
}
"""The constraints whose violation says more than their native code."""

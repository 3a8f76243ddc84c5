"""The inputs of the repositories (pydantic models) and their results (frozen records).

An input rejects a bad value before it reaches the database: `pydantic.ValidationError` names the
field. Records are plain values, which stay valid after their Session is closed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from math import isfinite
from typing import Annotated, Any, Final, Literal, Self, cast
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    model_validator,
)
from pydantic_core import CoreSchema

from orchestration.errors import LeaseLost
from orchestration.vocabulary import (
    DEFAULT_MAX_ATTEMPTS,
    MAX_ATTEMPTS,
    MAX_KEY_OCTETS,
    MAX_PAYLOAD_OCTETS,
    MAX_TEXT_OCTETS,
    AttemptOutcome,
    AttemptPhase,
    AttemptState,
    AttestationEvent,
    AuditAction,
    CompletionState,
    Contradiction,
    CredentialKind,
    CRLReason,
    InstructionState,
    Intervention,
    ItemState,
    KillSwitchAction,
    KillSwitchScope,
    KnownOutcome,
    LateOutcome,
    LateSource,
    Outcome,
    PolicyStatus,
    TerminalStatus,
)


def _storable(value: str) -> str:
    _check_text("it", value)
    return value


def _check_text(path: str, value: str) -> None:
    if "\x00" in value:
        raise ValueError(f"{path} contains a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} contains a lone surrogate, which is not a character") from None


Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_storable)]
"""Text that PostgreSQL can store: no NUL, no lone surrogate."""


def _at_most(octets: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if len(value.encode()) > octets:
            raise ValueError(f"the text is longer than {octets} octets in UTF-8")
        return value

    return check


_indexable = _at_most(MAX_KEY_OCTETS)

Key = Annotated[Text, StringConstraints(min_length=1), AfterValidator(_indexable)]
"""A text key, which an index must be able to store: 1 to 1000 octets."""
Word = Annotated[Text, AfterValidator(_indexable)]
"""A code or a reference of a rail: at most 1000 octets. It can be empty."""
FreeText = Annotated[Text, AfterValidator(_at_most(MAX_TEXT_OCTETS))]
"""A text for people: at most 4000 octets."""
Reason = Annotated[FreeText, StringConstraints(min_length=1)]
"""A reason or a description: a free text that must not be empty."""
Sha256Hex = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}\z")]
"""64 characters of lowercase hex."""


def _in_years(value: datetime) -> datetime:
    # The conversion to UTC can leave the range of Python's years at either end.
    try:
        year = value.astimezone(UTC).year
    except OverflowError:
        year = 0
    if not 1 <= year <= LAST_YEAR:
        raise ValueError(f"the time must be in the years 1 to {LAST_YEAR} in UTC")
    return value


LAST_YEAR: Final = 9998


def _in_utc(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()


def microseconds(value: timedelta) -> str:
    """Write an interval for PostgreSQL as elapsed time, because a day can have 23 to 25 hours."""
    return f"{value // timedelta(microseconds=1)} microseconds"


AwareTime = Annotated[
    AwareDatetime, AfterValidator(_in_years), PlainSerializer(_in_utc, when_used="json-unless-none")
]
"""A time with a zone, in a year that every time zone can show. A naive time is rejected."""
Elapsed = Annotated[timedelta, PlainSerializer(microseconds, when_used="json-unless-none")]
"""A time span. In JSON it is an interval of PostgreSQL, in microseconds."""


MAX_DEPTH: Final = 500
MAX_INTEGER_BITS: Final = 4096


def _json_object(value: dict[str, Any]) -> dict[str, Any]:
    """Reject a value that JSON or jsonb cannot store, and name its place. The function does not
    recurse, because the caller's data determines the depth."""
    pending: list[tuple[str, object, int]] = [("payload", value, 0)]
    while pending:
        path, node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{path[:80]}... is nested more than {MAX_DEPTH} deep")
        if node is None or isinstance(node, bool):
            continue
        if isinstance(node, str):
            _check_text(path, node)
        elif isinstance(node, int):
            if node.bit_length() > MAX_INTEGER_BITS:
                raise ValueError(f"{path} is an integer of more than {MAX_INTEGER_BITS} bits")
        elif isinstance(node, float):
            if not isfinite(node):
                raise ValueError(f"{path} is {node}, which JSON cannot represent")
        elif isinstance(node, dict):
            for key, child in cast("dict[object, object]", node).items():
                if not isinstance(key, str):
                    raise ValueError(f"{path} has the key {key!r}, which is not a string")
                _check_text(f"{path}: key {key!r}", key)
                pending.append((f"{path}.{key}", child, depth + 1))
        elif isinstance(node, list | tuple):
            for index, child in enumerate(cast("Sequence[object]", node)):
                pending.append((f"{path}[{index}]", child, depth + 1))
        else:
            raise ValueError(f"{path} is a {type(node).__name__}, which JSON cannot represent")
    return value


def _json_payload(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("payload is not a JSON object")
    payload = cast("dict[str, Any]", value)
    # Copy it: the caller can change its dict after the check.
    if _is_plainly_json(payload):
        _check_size(_written(payload))
        return dict(payload)
    written = _written(_json_object(payload))
    _check_size(written)
    return cast("dict[str, Any]", json.loads(written))


_written: Final = json.JSONEncoder(ensure_ascii=False).encode


def _check_size(written: str) -> None:
    if len(written.encode()) > MAX_PAYLOAD_OCTETS:
        raise ValueError(f"payload is longer than {MAX_PAYLOAD_OCTETS} octets as JSON")


def _is_plainly_json(value: dict[str, Any]) -> bool:
    """Whether an object is certainly JSON because it is flat and has ordinary values, as most
    payloads have. `_json_object` walks the others and keeps the path of each value to name it.
    """
    for key, child in value.items():
        if type(key) is not str or not _is_plain_text(key):
            return False
        if type(child) is str:
            if not _is_plain_text(child):
                return False
        elif type(child) is not bool and child is not None and not _is_small_int(child):
            return False
    return True


def _is_plain_text(value: str) -> bool:
    return value.isascii() and "\x00" not in value


def _is_small_int(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _unchanged(value: dict[str, Any]) -> dict[str, Any]:
    """Check a payload again on its way to the database, because the caller can have changed it."""
    return value if _is_plainly_json(value) else _json_object(value)


_checked_again: Final = PlainSerializer(
    _unchanged, return_type=dict[str, Any], when_used="json-unless-none"
)

Payload = Annotated[dict[str, Any], PlainValidator(_json_payload), _checked_again]
"""A JSON object that jsonb can hold: finite numbers, no NUL, no lone surrogate.

An input keeps a copy, so the caller can change its own dict. The copy is a dict too. If it is
changed, it is checked again on the way to the database, with the same `pydantic.ValidationError`.
"""


class Input(BaseModel):
    # A caller can pass the credential instead of its hash by mistake: no error shows the value.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class Record(BaseModel):
    """A row of the database, or a part of one.

    In a record that has `replayed`, it is true if the act was already recorded before the call that
    returned the record. It is false in the results of `get`, `active`, `state` and `history`.
    """

    model_config = ConfigDict(frozen=True)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of a row, without the columns that the record does not have."""
        return cls.model_validate(row)


class NewPolicyVersion(Input):
    """A new policy version. `checksum` is the SHA-256 of the policy document."""

    id: Key
    description: Reason
    checksum: Sha256Hex
    created_by: Key


class PolicyVersionRecord(Record):
    id: str
    description: str
    checksum: str
    status: PolicyStatus
    activated_at: datetime
    grace_expires_at: datetime | None
    retired_at: datetime | None
    retired_db_user: str | None = None
    created_at: datetime
    created_by: str
    db_user: str
    replayed: bool = False


class RevocationRecord(Record):
    """A revocation of a client certificate or a token, which its hash identifies.

    `revocation_no` numbers the revocations of one credential from 1.
    """

    credential: CredentialKind
    hash: str = Field(repr=False)
    revocation_no: int
    revoked_at: datetime
    recorded_at: datetime
    expires_at: datetime | None
    reason_code: CRLReason
    revoked_by: str
    db_user: str


class RevocationsSince(Record):
    """The revocations that became visible after a watermark, and the watermark for the next call.

    A revocation can be reported twice, but none is ever missed, even if the server crashes.
    """

    revocations: tuple[RevocationRecord, ...]
    watermark: str


class NewAttestation(Input):
    """A request to attest: the caller, its key, the payload's SHA-256, policy and credentials."""

    caller_identity: Key
    idempotency_key: Key
    payload_hash: Sha256Hex
    policy_version_id: Key
    signature_hash: Sha256Hex | None = None
    client_cert_fingerprint_sha256: Sha256Hex | None = Field(default=None, repr=False)
    token_hash: Sha256Hex | None = Field(default=None, repr=False)


class AttestationRecord(Record):
    """One record of a caller's chain of attestations."""

    id: UUID
    caller_identity: str
    chain_seq: int
    idempotency_key: str
    payload_hash: str
    signature_hash: str | None
    client_cert_fingerprint_sha256: str | None = Field(repr=False)
    token_hash: str | None = Field(repr=False)
    policy_version_id: str
    execution_started: bool
    execution_completed: bool
    terminal_status: TerminalStatus | None
    attested_at: datetime
    prev_hash: str
    record_hash: str
    db_user: str
    replayed: bool = False


class AttestationEventRecord(Record):
    attestation_id: UUID
    event: AttestationEvent
    caller_identity: str
    terminal_status: TerminalStatus | None
    occurred_at: datetime
    recorded_by: str
    db_user: str
    replayed: bool = False


class AttestationStatus(Record):
    """An attestation together with its events."""

    attestation_id: UUID
    caller_identity: str
    chain_seq: int
    idempotency_key: str
    policy_version_id: str
    attested_at: datetime
    execution_started: bool
    execution_started_at: datetime | None
    execution_completed: bool
    execution_completed_at: datetime | None
    terminal_status: TerminalStatus | None


class ChainReport(Record):
    """The result of verifying a chain: `ok`, or the first break and its reason."""

    ok: bool
    records: int
    break_chain_seq: int | None
    break_attestation_id: UUID | None
    break_reason: str | None


class NewInstruction(Input):
    """A payment instruction of a participant.

    `amount_minor`: minor units of `currency` (ISO 4217), from 1. `uetr`: SWIFT's unique end-to-end
    transaction reference. `attestation_id`: the attestation of the request. `policy_version_id`:
    the policy version of that attestation.
    """

    participant_id: Key
    idempotency_key: Key
    instruction_type: Key
    end_to_end_id: Key
    amount_minor: Annotated[int, Field(strict=True, ge=1, lt=2**63)]
    currency: Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Z]{3}\z")]
    debtor_account: Key = Field(repr=False)
    creditor_account: Key = Field(repr=False)
    payload: Payload = Field(repr=False)
    attestation_id: UUID
    policy_version_id: Key
    uetr: UUID | None = None
    value_date: Annotated[date, Field(lt=date(9999, 1, 1))] | None = None


class InstructionRecord(Record):
    """The state of an instruction, without its accounts and payload."""

    id: UUID
    participant_id: str
    idempotency_key: str
    instruction_type: str
    end_to_end_id: str
    uetr: UUID | None
    value_date: date | None
    amount_minor: int
    currency: str
    payload_hash: str
    attestation_id: UUID
    policy_version_id: str
    state: InstructionState
    reason: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    db_user: str
    replayed: bool = False


class StatusHistoryRecord(Record):
    """One transition of an instruction: its time, the login, and the reason of a failure."""

    instruction_id: UUID
    version: int
    participant_id: str
    from_state: InstructionState | None
    to_state: InstructionState
    reason: str | None
    occurred_at: datetime
    db_user: str


class ExecutionAttempt(Record):
    """The opening (phase OPEN) or closing (phase CLOSE) of a run of an instruction."""

    instruction_id: UUID
    attempt_no: int
    phase: AttemptPhase
    participant_id: str
    worker_id: str
    outcome: AttemptOutcome | None
    error_code: str | None
    error_message: str | None
    occurred_at: datetime
    db_user: str
    replayed: bool = False


class TransactionAttempt(ExecutionAttempt):
    """The opening or closing of a rail call that an instruction made outside the outbox."""

    rail_type: str
    rail_reference: str | None


class KillSwitchRecord(Record):
    """One event of a kill switch. Events are numbered in the order in which they take effect."""

    event_no: int
    scope: KillSwitchScope
    target: str | None
    action: KillSwitchAction
    reason: str
    key: str | None = None
    actor: str
    occurred_at: datetime
    db_user: str
    replayed: bool = False


class KillSwitchState(Record):
    """The state of a kill switch, and its last event."""

    scope: KillSwitchScope
    target: str | None
    engaged: bool
    reason: str
    actor: str
    occurred_at: datetime
    db_user: str


class GateHolder(Record):
    """A transaction that holds a gate, or waits for one (`granted` is False).

    `gate`: `kill_switch_gate`, `policy_gate`, `revocation_gate`, or `audit_log_head`, which every
    act of governance locks. `mode`: `RowShareLock` for a gated write, `ExclusiveLock` for a change.
    `pid` is None for a prepared transaction, which has no backend: `prepared_gid` is its name, and
    `transaction_started_at` the time at which it was prepared. `client_addr`, `state` and
    `transaction_started_at` of another login's backend are None unless the reader is a member of
    `pg_read_all_stats`; `client_addr` is also None on a Unix-domain socket.
    """

    gate: str
    mode: str
    granted: bool
    pid: int | None
    login: str | None
    application_name: str | None
    client_addr: IPv4Address | IPv6Address | None
    state: str | None
    transaction_started_at: datetime | None
    waiting_since: datetime | None
    prepared_gid: str | None


class AuditLogRecord(Record):
    """One act of governance: what it changed, and the login, role and address it came from.

    `before` and `after`: the rows that the act changed, by primary key; for `schema_revision` its
    only row. `before` is None if the act only inserted rows. `db_user` is the login (session_user).
    `db_role` is the role that the login had set, or the login itself. `client_addr` is None on a
    Unix-domain socket.
    """

    chain_seq: int
    action: AuditAction
    table_name: str
    before: dict[str, Any] | None = Field(repr=False)
    after: dict[str, Any] = Field(repr=False)
    occurred_at: datetime
    db_user: str
    db_role: str
    client_addr: IPv4Address | IPv6Address | None
    prev_hash: str
    record_hash: str


class AuditLogReport(Record):
    """The result of verifying the audit log: `ok`, or the first break and its reason.

    `break_chain_seq` is None if an act has no entry. If the break concerns a row,
    `break_table_name` and `break_key` (its primary key) name it.
    """

    ok: bool
    entries: int
    break_chain_seq: int | None
    break_table_name: str | None
    break_key: str | None
    break_reason: str | None


MAX_CONTEXT_OCTETS: Final = 8000


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False).encode()) > MAX_CONTEXT_OCTETS:
        raise ValueError(f"context is longer than {MAX_CONTEXT_OCTETS} octets as JSON")
    return value


Context = Annotated[
    dict[str, Any], PlainValidator(_json_payload), AfterValidator(_small), _checked_again
]
"""A JSON object of at most 8000 octets: W3C trace context, references of the caller."""


LONGEST_SCHEDULE: Final = timedelta(days=400)


def _within_schedule(value: datetime) -> datetime:
    if value > datetime.now(UTC) + LONGEST_SCHEDULE:
        raise ValueError(f"the time must be at most {LONGEST_SCHEDULE.days} days ahead")
    return value


class NewOutboxItem(Input):
    """A payment to dispatch. `payload` is the JSON object for the rail.

    `due_at`: the item is not claimed before this time, at most 400 days ahead. Without it, the
    item is due at once. `max_attempts`: 1 to 1000. `context` is stored with the item but is not
    part of its content: if a replay has a different one, the first is kept.
    """

    instruction_id: UUID
    participant_id: Key
    idempotency_key: Key
    rail_type: Key
    payload: Payload = Field(repr=False)
    due_at: Annotated[AwareTime, AfterValidator(_within_schedule)] | None = None
    max_attempts: Annotated[int, Field(strict=True, ge=1, le=MAX_ATTEMPTS)] = DEFAULT_MAX_ATTEMPTS
    context: Context | None = None


class OutboxItemRecord(Record):
    """An outbox item without its payload; `replayed` if it was already enqueued."""

    outbox_id: UUID
    instruction_id: UUID
    participant_id: str
    sequence_id: int
    idempotency_key: str
    redrive_no: int
    redrive_of: UUID | None
    rail_type: str
    payload_hash: str
    max_attempts: int
    context: dict[str, Any] | None = None
    created_at: datetime
    db_user: str
    replayed: bool = False


class ClaimedItem(Record):
    """An item that this worker has leased. Give the rail `instruction_id` and `idempotency_key`."""

    outbox_id: UUID
    instruction_id: UUID
    participant_id: str
    sequence_id: int
    idempotency_key: str
    redrive_no: int
    rail_type: str
    payload: dict[str, Any] = Field(repr=False)
    payload_hash: str
    attempt_no: int
    max_attempts: int
    context: dict[str, Any] | None = None
    worker_id: str
    lease_token: UUID
    lease_expires_at: datetime
    claimed_at: datetime


LONGEST_DELAY: Final = timedelta(days=36525)
"""A hundred years, the longest delay and the longest grace."""


class _ValidatedAs:
    """Validate only the enum. The Literal beside it is for type checkers: for the union, pydantic
    would report each error twice and would not convert a str that the Literal accepts."""

    def __init__(self, enum: type[StrEnum]) -> None:
        self._enum = enum

    def __get_pydantic_core_schema__(
        self, _source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(self._enum)


class Completion(Input):
    """The result of an attempt, as the worker reports it.

    `outcome`: required for FAILED and optional for RETRYABLE. If a RETRYABLE attempt was the last
    one, the item ends with this outcome, or with UNKNOWN if none was given. NOT_SENT is recorded as
    UNKNOWN if an earlier attempt of the item may have sent the payment.
    `retry_in`: only for RETRYABLE, the delay by the database's clock, at most 36,525 days.
    """

    state: Annotated[
        CompletionState | Literal["DISPATCHED", "RETRYABLE", "FAILED"],
        _ValidatedAs(CompletionState),
    ]
    rail_reference: Word | None = None
    rail_code: Word | None = None
    error_code: Word | None = None
    error_message: FreeText | None = None
    outcome: (
        Annotated[Outcome | Literal["REJECTED", "UNKNOWN", "NOT_SENT"], _ValidatedAs(Outcome)]
        | None
    ) = None
    retry_in: Annotated[Elapsed, Field(ge=timedelta(0), le=LONGEST_DELAY)] | None = None
    latency_ms: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _fits_its_state(self) -> Self:
        if self.outcome is not None and self.state is CompletionState.DISPATCHED:
            raise ValueError("outcome is only allowed with FAILED or RETRYABLE")
        if self.outcome is None and self.state is CompletionState.FAILED:
            raise ValueError("FAILED requires an outcome: REJECTED, NOT_SENT or UNKNOWN")
        if self.retry_in is not None and self.state is not CompletionState.RETRYABLE:
            raise ValueError("retry_in is only allowed with RETRYABLE")
        return self


class CompletionResult(Record):
    """The result for one pair: the attempt's new state, or the LeaseLost that prevented it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    outbox_id: UUID
    state: AttemptState | None
    error: LeaseLost | None
    replayed: bool = False


class RepairedAttempt(Record):
    """An abandoned attempt that was closed: ZOMBIE_REQUEUE, or FAILED if it was the last one."""

    outbox_id: UUID
    attempt_no: int
    state: AttemptState


class OutboxStatus(Record):
    """The state of an item, without its payload: PENDING, DISPATCHING, DISPATCHED or FAILED."""

    outbox_id: UUID
    instruction_id: UUID
    participant_id: str
    sequence_id: int
    idempotency_key: str
    redrive_no: int
    redrive_of: UUID | None
    rail_type: str
    payload_hash: str
    max_attempts: int
    created_at: datetime
    state: ItemState
    outcome: Outcome | None
    attempt_count: int
    next_attempt_at: datetime | None
    claimed_by: str | None
    lease_expires_at: datetime | None
    completed_at: datetime | None
    rail_reference: str | None
    error_code: str | None
    known_outcome: KnownOutcome | None = None


class LateResultRecord(Record):
    """A result of the rail that came after the lease was lost. `result_no` numbers an item's late
    results from 1."""

    outbox_id: UUID
    result_no: int
    attempt_no: int
    source: LateSource
    outcome: LateOutcome
    rail_reference: str | None
    reason: str | None
    recorded_by: str
    recorded_at: datetime
    db_user: str
    replayed: bool = False


class InterventionRecord(Record):
    """What control did with an item.

    `time_before` and `time_after`: for RESCHEDULE the due time, for EXPIRE_LEASE the end of the
    lease.
    """

    outbox_id: UUID
    intervention_no: int
    action: Intervention
    attempt_no: int | None
    result_no: int | None
    time_before: datetime | None
    time_after: datetime | None
    reason: str | None
    acted_by: str
    acted_at: datetime
    db_user: str
    replayed: bool = False


class UnresolvedItem(Record):
    """An item whose outcome is UNKNOWN: the payment may have been made. Control must resolve it.

    `reported_outcome`: the late result of its worker, if there is one.
    """

    outbox_id: UUID
    instruction_id: UUID
    participant_id: str
    idempotency_key: str
    redrive_no: int
    rail_type: str
    end_to_end_id: str
    amount_minor: int
    currency: str
    instruction_state: InstructionState
    attempt_no: int
    since: datetime
    error_code: str | None
    reported_outcome: LateOutcome | None
    rail_reference: str | None


class OutboxContradiction(Record):
    """A late result that contradicts what is recorded. Control must close the contradiction."""

    outbox_id: UUID
    result_no: int
    instruction_id: UUID
    participant_id: str
    idempotency_key: str
    redrive_no: int
    rail_type: str
    end_to_end_id: str
    amount_minor: int
    currency: str
    instruction_state: InstructionState
    attempt_no: int
    source: LateSource
    outcome: LateOutcome
    rail_reference: str | None
    recorded_by: str
    since: datetime
    contradicts: Contradiction


class AttemptRecord(Record):
    """An attempt's opening (phase OPEN) or closing (phase CLOSE)."""

    outbox_id: UUID
    attempt_no: int
    phase: AttemptPhase
    state: AttemptState
    outcome: Outcome | None
    requested_state: CompletionState | None
    requested_error_code: str | None
    lease_token: UUID
    worker_id: str
    claimed_at: datetime
    completed_at: datetime | None
    rail_reference: str | None
    rail_code: str | None
    error_code: str | None
    error_message: str | None
    latency_ms: int | None
    db_user: str


class OutboxDepth(Record):
    """Queue depth per rail. The next claim or repair closes the `expired` leases."""

    rail_type: str
    pending: int
    due: int
    leased: int
    expired: int
    oldest_due_at: datetime | None

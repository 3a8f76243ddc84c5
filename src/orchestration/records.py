"""What goes into a repository (pydantic inputs) and what comes out (frozen records).

Inputs refuse bad values before anything reaches the database, with `pydantic.ValidationError`
naming the field. Records are plain values: they outlive their Session.
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
        raise ValueError(f"{path} holds a NUL character, which PostgreSQL cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} holds a lone surrogate, which is no character") from None


Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_storable)]
"""Text that PostgreSQL can store: no NUL, no lone surrogate."""


def _at_most(octets: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if len(value.encode()) > octets:
            raise ValueError(f"it takes more than {octets} octets in UTF-8")
        return value

    return check


_indexable = _at_most(MAX_KEY_OCTETS)

Key = Annotated[Text, StringConstraints(min_length=1), AfterValidator(_indexable)]
"""A text key that an index can hold: 1 to 1000 octets."""
Word = Annotated[Text, AfterValidator(_indexable)]
"""A code or a reference of a rail: at most 1000 octets, and possibly empty."""
FreeText = Annotated[Text, AfterValidator(_at_most(MAX_TEXT_OCTETS))]
"""A text that people read: at most 4000 octets."""
Reason = Annotated[FreeText, StringConstraints(min_length=1)]
"""A free text that says why or what, so it must not be empty."""
Sha256Hex = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}\z")]
"""64 characters of lowercase hex."""


def _in_years(value: datetime) -> datetime:
    # A shift to UTC may leave Python's years at either end.
    try:
        year = value.astimezone(UTC).year
    except OverflowError:
        year = 0
    if not 1 <= year <= LAST_YEAR:
        raise ValueError(f"the time is not in the years 1 to {LAST_YEAR} of UTC")
    return value


LAST_YEAR: Final = 9998
AwareTime = Annotated[AwareDatetime, AfterValidator(_in_years)]
"""A time with its zone, in a year that every time zone can show; a naive one is refused."""


MAX_DEPTH: Final = 500
MAX_INTEGER_BITS: Final = 4096


def _json_object(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses what JSON or jsonb cannot hold, naming the place. Iterative: depth is data."""
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
                raise ValueError(f"{path} is {node}, which JSON does not know")
        elif isinstance(node, dict):
            for key, child in cast("dict[object, object]", node).items():
                if not isinstance(key, str):
                    raise ValueError(f"{path} has the key {key!r}, which is no string")
                _check_text(f"{path}: key {key!r}", key)
                pending.append((f"{path}.{key}", child, depth + 1))
        elif isinstance(node, list | tuple):
            for index, child in enumerate(cast("Sequence[object]", node)):
                pending.append((f"{path}[{index}]", child, depth + 1))
        else:
            raise ValueError(f"{path} is a {type(node).__name__}, which JSON does not know")
    return value


def _json_payload(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("payload is not a JSON object")
    payload = cast("dict[str, Any]", value)
    # A copy of our own: what the caller does with its dict afterwards was not checked.
    if _is_plainly_json(payload):
        _check_size(_written(payload))
        return dict(payload)
    written = _written(_json_object(payload))
    _check_size(written)
    return cast("dict[str, Any]", json.loads(written))


_written: Final = json.JSONEncoder(ensure_ascii=False).encode


def _check_size(written: str) -> None:
    if len(written.encode()) > MAX_PAYLOAD_OCTETS:
        raise ValueError(f"payload takes more than {MAX_PAYLOAD_OCTETS} octets as JSON")


def _is_plainly_json(value: dict[str, Any]) -> bool:
    """Whether a flat object of ordinary values is JSON beyond doubt; most payloads are.

    What it doubts is walked by `_json_object`, which keeps the path of each value to name it.
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


Payload = Annotated[dict[str, Any], PlainValidator(_json_payload)]
"""A JSON object that jsonb can hold: finite numbers, no NUL, no lone surrogate.

An input keeps a copy, so the caller's own dict may change. The copy is a dict too: what is changed
in it is checked again on the way to the database, with the same `pydantic.ValidationError`.
"""


class Input(BaseModel):
    # What is given by mistake for a hash may be the credential itself: no error shows it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class Record(BaseModel):
    """A row, or a part of one, that has left the database.

    In a record that has `replayed`, it is true if the act had already been recorded before the call
    that returned the record. It is false in what `get`, `active`, `state` and `history` return.
    """

    model_config = ConfigDict(frozen=True)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The record of a row; columns that the record does not show are left out."""
        return cls.model_validate(row)


class NewPolicyVersion(Input):
    """A policy version to rotate in; `checksum` is the SHA-256 of the policy document."""

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
    """A revoked credential: a client certificate or a token, by its hash.

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
    """The revocations that became visible after a watermark, and the next watermark to ask with.

    A revocation may be reported twice, and none is ever missed, also across a crash of the server.
    """

    revocations: tuple[RevocationRecord, ...]
    watermark: str


class NewAttestation(Input):
    """A request to attest: whose it is, its key, the SHA-256 of what was asked, and under what."""

    caller_identity: Key
    idempotency_key: Key
    payload_hash: Sha256Hex
    policy_version_id: Key
    signature_hash: Sha256Hex | None = None
    client_cert_fingerprint_sha256: Sha256Hex | None = Field(default=None, repr=False)
    token_hash: Sha256Hex | None = Field(default=None, repr=False)


class AttestationRecord(Record):
    """One record of a caller's chain, as it was attested."""

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
    """An attestation with its events folded in."""

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
    """What verifying a chain found: `ok`, or the first break and its reason."""

    ok: bool
    records: int
    break_chain_seq: int | None
    break_attestation_id: UUID | None
    break_reason: str | None


class NewInstruction(Input):
    """What a participant asks to be paid, as it was attested.

    `amount_minor`: minor units of `currency` (ISO 4217), from 1. `uetr`: SWIFT's unique end-to-end
    transaction reference. `attestation_id`: who asked; `policy_version_id`: under which rules.
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
    """An instruction as it stands, without its accounts and payload."""

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
    """One transition of an instruction: when, by which login, and why it failed."""

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
    """One event of a kill switch, numbered in the order in which they came to count."""

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
    """Where a switch stands, and the event that put it there."""

    scope: KillSwitchScope
    target: str | None
    engaged: bool
    reason: str
    actor: str
    occurred_at: datetime
    db_user: str


class GateHolder(Record):
    """A transaction that holds a gate, or waits for it (`granted` is False).

    `gate`: `kill_switch_gate`, `policy_gate`, `revocation_gate`, or `audit_log_head`, which every
    act of governance locks. `mode`: `RowShareLock` for a gated write, `ExclusiveLock` for a change.
    `pid` is None for a prepared transaction, which has no backend: `prepared_gid` is its name, and
    `transaction_started_at` the time at which it was prepared. `client_addr`, `state` and
    `transaction_started_at` of another login's backend are None unless the reader is a member of
    `pg_read_all_stats`; `client_addr` is None on a Unix-domain socket too.
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
    """One act of governance: what it changed, by which login, in which role, from where.

    `before` (None where the act entered rows only) and `after`: the rows it changed by primary key,
    of `schema_revision` its one row. `db_user` is the login (session_user), `db_role` the role it
    had set, itself where none; `client_addr` is None on a Unix-domain socket.
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
    """What verifying the audit log found: `ok`, or the first break and its reason.

    `break_chain_seq` is None where an act has no entry; `break_table_name` and `break_key` (the
    primary key) name a row where one is meant.
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
        raise ValueError(f"it takes more than {MAX_CONTEXT_OCTETS} octets as JSON")
    return value


Context = Annotated[dict[str, Any], PlainValidator(_json_payload), AfterValidator(_small)]
"""A JSON object of at most 8000 octets: W3C trace context, references of the caller."""


LONGEST_SCHEDULE: Final = timedelta(days=400)


def _within_schedule(value: datetime) -> datetime:
    if value > datetime.now(UTC) + LONGEST_SCHEDULE:
        raise ValueError(f"the time must be at most {LONGEST_SCHEDULE.days} days ahead")
    return value


class NewOutboxItem(Input):
    """A payment to dispatch; `payload` is the JSON object that the rail gets.

    `due_at`: the item is not claimed before this time, at most 400 days ahead; without it, the
    item is due at once. `max_attempts`: 1 to 1000. `context` travels with the item and is not part
    of its content: a replay may bring another one, and the first is kept.
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
    """An item of the register, without its payload; `replayed` if it was there already."""

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
    """An item under this worker's lease; the rail gets `instruction_id` and `idempotency_key`."""

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
    """Validate as the enum alone. The Literal beside it is for type checkers: as a union pydantic
    would report each error twice, and keep a str that the Literal names as a str."""

    def __init__(self, enum: type[StrEnum]) -> None:
        self._enum = enum

    def __get_pydantic_core_schema__(
        self, _source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(self._enum)


class Completion(Input):
    """What a worker reports of an attempt.

    `outcome`: FAILED must name one. RETRYABLE may; it counts if this was the last attempt, which
    then ends UNKNOWN without one.
    `retry_in`: with RETRYABLE, the delay by the database's clock, up to 36,525 days.
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
    retry_in: Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST_DELAY)] | None = None
    latency_ms: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None

    @model_validator(mode="after")
    def _fits_its_state(self) -> Self:
        if self.outcome is not None and self.state is CompletionState.DISPATCHED:
            raise ValueError("outcome goes with FAILED or RETRYABLE")
        if self.outcome is None and self.state is CompletionState.FAILED:
            raise ValueError("FAILED must name its outcome: REJECTED, NOT_SENT or UNKNOWN")
        if self.retry_in is not None and self.state is not CompletionState.RETRYABLE:
            raise ValueError("retry_in goes with RETRYABLE")
        return self


class CompletionResult(Record):
    """What was recorded for one pair: the attempt's state, or the LeaseLost that kept it out."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    outbox_id: UUID
    state: AttemptState | None
    error: LeaseLost | None
    replayed: bool = False


class RepairedAttempt(Record):
    """A dead attempt that was closed: ZOMBIE_REQUEUE, or FAILED at the ceiling."""

    outbox_id: UUID
    attempt_no: int
    state: AttemptState


class OutboxStatus(Record):
    """Where an item stands, without its payload: PENDING, DISPATCHING, DISPATCHED or FAILED."""

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
    """What the rail did, learnt after the lease was lost; `result_no` counts an item's results."""

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
    """What control did about an item.

    `time_before`, `time_after`: the due time of a RESCHEDULE, the end of the lease of an
    EXPIRE_LEASE.
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
    """An item whose outcome is UNKNOWN until control resolves it: the payment may have been made.

    `reported_outcome`: what its worker has reported since, if anything.
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
    """A late result that contradicts what was recorded or done, until control closes it."""

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
    """How much of a rail is pending; `expired` leases are closed by the next claim or repair."""

    rail_type: str
    pending: int
    due: int
    leased: int
    expired: int
    oldest_due_at: datetime | None

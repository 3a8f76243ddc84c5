"""What goes into a repository (pydantic inputs) and what comes out (frozen records).

Inputs refuse bad values before anything reaches the database, with `pydantic.ValidationError`
naming the field. Records are plain values: they outlive their Session.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints
from sqlalchemy import RowMapping

from orchestration.vocabulary import (
    AttestationEvent,
    CredentialKind,
    CRLReason,
    PolicyStatus,
    TerminalStatus,
)


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("PostgreSQL text cannot hold a NUL character")
    return value


Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_storable)]
"""Text that PostgreSQL can store: no NUL, no lone surrogate."""
Key = Annotated[Text, StringConstraints(min_length=1)]
"""A non-empty text key."""
Sha256Hex = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-f]{64}\z")]
"""64 characters of lowercase hex."""


def _finite_in_postgres(value: datetime) -> datetime:
    # A shift to UTC may leave Python's years at either end.
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None
    return value


AwareTime = Annotated[AwareDatetime, AfterValidator(_finite_in_postgres)]
"""A time with its zone; a naive one is refused."""


class Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Record(BaseModel):
    """A row, or a part of one, that has left the database."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def from_row(cls, row: RowMapping | Mapping[str, Any]) -> Self:
        """The record of a row; columns that the record does not show are left out."""
        return cls.model_validate(dict(row))


class NewPolicyVersion(Input):
    """A policy version to rotate in; `checksum` is the SHA-256 of the policy document."""

    id: Key
    description: Key
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
    created_at: datetime
    created_by: str
    db_user: str


class RevocationRecord(Record):
    """A revoked credential: a client certificate or a token, by its hash."""

    credential: CredentialKind
    hash: str
    revoked_at: datetime
    recorded_at: datetime
    expires_at: datetime | None
    reason_code: CRLReason
    revoked_by: str
    db_user: str


class RevocationsSince(Record):
    """The revocations that became visible after a watermark, and the next watermark to ask with.

    A revocation may be reported twice, and none is ever missed.
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
    client_cert_fingerprint_sha256: Sha256Hex | None = None
    token_hash: Sha256Hex | None = None


class AttestationRecord(Record):
    """One record of a caller's chain, as it was attested."""

    id: UUID
    caller_identity: str
    chain_seq: int
    idempotency_key: str
    payload_hash: str
    signature_hash: str | None
    client_cert_fingerprint_sha256: str | None
    token_hash: str | None
    policy_version_id: str
    execution_started: bool
    execution_completed: bool
    terminal_status: TerminalStatus | None
    attested_at: datetime
    prev_hash: str
    record_hash: str
    db_user: str


class AttestationEventRecord(Record):
    attestation_id: UUID
    event: AttestationEvent
    caller_identity: str
    terminal_status: TerminalStatus | None
    occurred_at: datetime
    recorded_by: str
    db_user: str


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

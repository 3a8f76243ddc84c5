"""Ingress attestations: append-only hash chains, one per caller, and their events (INV-ATT)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import Base, DbUser, XactId, assigned, hex64, in_years, key

TERMINAL_STATUS = "terminal_status IN ('SUCCESS', 'FAILED', 'REPAIRED')"


class IngressAttestation(Base):
    """One record of a caller's chain: the request, its policy version and its credentials.

    The flags are for imports of requests that were already executed. Later changes are events.
    """

    __tablename__ = "ingress_attestations"
    __table_args__ = (
        CheckConstraint(key("caller_identity"), name="caller_identity"),
        CheckConstraint("chain_seq >= 1", name="chain_seq"),
        CheckConstraint(key("idempotency_key"), name="idempotency_key"),
        CheckConstraint(hex64("payload_hash"), name="payload_hash"),
        CheckConstraint(hex64("signature_hash"), name="signature_hash"),
        CheckConstraint(
            hex64("client_cert_fingerprint_sha256"), name="client_cert_fingerprint_sha256"
        ),
        CheckConstraint(hex64("token_hash"), name="token_hash"),
        CheckConstraint(hex64("record_hash"), name="record_hash"),
        CheckConstraint("(chain_seq = 1) = (prev_hash = '')", name="prev_hash"),
        CheckConstraint("execution_started OR NOT execution_completed", name="execution"),
        CheckConstraint(
            f"execution_completed = (terminal_status IS NOT NULL) AND {TERMINAL_STATUS}",
            name="terminal_status",
        ),
        CheckConstraint(in_years("attested_at"), name="years"),
        UniqueConstraint("caller_identity", "chain_seq"),
        UniqueConstraint("caller_identity", "prev_hash"),
        UniqueConstraint("caller_identity", "idempotency_key"),
        UniqueConstraint("id", "policy_version_id"),
        Index("ix_ingress_attestations_xact_id", "xact_id", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=assigned)
    caller_identity: Mapped[str]
    chain_seq: Mapped[int] = mapped_column(server_default=assigned)
    idempotency_key: Mapped[str]
    payload_hash: Mapped[str]
    signature_hash: Mapped[str | None]
    client_cert_fingerprint_sha256: Mapped[str | None]
    token_hash: Mapped[str | None]
    policy_version_id: Mapped[str]
    execution_started: Mapped[bool] = mapped_column(server_default=text("false"))
    execution_completed: Mapped[bool] = mapped_column(server_default=text("false"))
    terminal_status: Mapped[str | None]
    attested_at: Mapped[datetime] = mapped_column(server_default=assigned)
    prev_hash: Mapped[str] = mapped_column(server_default=assigned)
    record_hash: Mapped[str] = mapped_column(server_default=assigned)
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class IngressAttestationEvent(Base):
    """An event of an attestation: its execution has started, or it is completed."""

    __tablename__ = "ingress_attestation_events"
    __table_args__ = (
        CheckConstraint("event IN ('EXECUTION_STARTED', 'EXECUTION_COMPLETED')", name="event"),
        CheckConstraint(
            "(event = 'EXECUTION_COMPLETED') = (terminal_status IS NOT NULL)"
            f" AND {TERMINAL_STATUS}",
            name="terminal_status",
        ),
        CheckConstraint(key("recorded_by"), name="recorded_by"),
        CheckConstraint(in_years("occurred_at"), name="years"),
        Index("ix_ingress_attestation_events_xact_id", "xact_id", postgresql_using="brin"),
    )

    attestation_id: Mapped[UUID] = mapped_column(
        ForeignKey(IngressAttestation.id), primary_key=True
    )
    event: Mapped[str] = mapped_column(primary_key=True)
    caller_identity: Mapped[str] = mapped_column(server_default=assigned)
    terminal_status: Mapped[str | None]
    occurred_at: Mapped[datetime] = mapped_column(server_default=assigned)
    recorded_by: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class IngressAttestationHead(Base):
    """The head of a caller's chain. An append locks this row."""

    __tablename__ = "ingress_attestation_heads"
    __table_args__ = (
        CheckConstraint(key("caller_identity"), name="caller_identity"),
        CheckConstraint("chain_seq >= 0", name="chain_seq"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    caller_identity: Mapped[str] = mapped_column(primary_key=True)
    chain_seq: Mapped[int] = mapped_column(server_default=text("0"))
    record_hash: Mapped[str] = mapped_column(server_default=text("''"))

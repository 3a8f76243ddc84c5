"""The transactional outbox: the items, the pending ones, and every attempt (INV-OUT).

There are no foreign keys among these tables: statement triggers check the references among items,
pending rows and attempts, and cost much less. One foreign key leads to another table: the
instruction of a pending row must be open.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import Base, assigned, in_years, key, payload_rules
from orchestration.vocabulary import MAX_KEY_OCTETS, MAX_TEXT_OCTETS

CLOCK = text("clock_timestamp()")
LOGIN = text("SESSION_USER")
TRANSACTION = text("pg_current_xact_id()::text::bigint")
TERMINAL = text("state IN ('DISPATCHED', 'FAILED')")


class ParticipantOutboxSequence(Base):
    """The next item number of a participant. It is a row because a sequence would leave gaps."""

    __tablename__ = "participant_outbox_sequences"
    __table_args__ = (
        CheckConstraint(key("participant_id"), name="participant_id"),
        CheckConstraint("next_sequence_id >= 1", name="next_sequence_id"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    participant_id: Mapped[str] = mapped_column(primary_key=True)
    next_sequence_id: Mapped[int] = mapped_column(server_default=text("1"))


class PaymentOutboxItem(Base):
    """The identity and payload of an item. The row is never moved or changed."""

    __tablename__ = "payment_outbox_items"
    __table_args__ = (
        CheckConstraint(key("participant_id"), name="participant_id"),
        CheckConstraint("sequence_id >= 1", name="sequence_id"),
        CheckConstraint(key("idempotency_key"), name="idempotency_key"),
        CheckConstraint(
            "redrive_no >= 0 AND (redrive_no = 0) = (redrive_of IS NULL)", name="redrive"
        ),
        CheckConstraint(key("rail_type"), name="rail_type"),
        *payload_rules(),
        CheckConstraint("max_attempts BETWEEN 1 AND 1000", name="max_attempts"),
        CheckConstraint(
            "jsonb_typeof(context) = 'object' AND octet_length(context::text) <= 8192"
            " AND (octet_length(context::text) <= 1000"
            " OR NOT jsonb_path_exists(context, 'strict $.**{501}')"
            " AND NOT jsonb_path_exists(context, 'strict $.** ? (@ >= $n || @ <= -$n)',"
            " ('{\"n\": 1' || repeat('0', 1234) || '}')::jsonb))",
            name="context",
        ),
        CheckConstraint(in_years("created_at"), name="years"),
        UniqueConstraint(
            "instruction_id", "idempotency_key", "redrive_no", name="uq_payment_outbox_items_key"
        ),
        UniqueConstraint("participant_id", "sequence_id"),
        Index("ix_payment_outbox_items_xact_id", "xact_id", postgresql_using="brin"),
    )

    outbox_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=assigned)
    instruction_id: Mapped[UUID]
    participant_id: Mapped[str]
    sequence_id: Mapped[int] = mapped_column(server_default=assigned)
    idempotency_key: Mapped[str]
    redrive_no: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    redrive_of: Mapped[UUID | None]
    rail_type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    payload_salt: Mapped[bytes] = mapped_column(
        LargeBinary(), server_default=text("uuid_send(gen_random_uuid())")
    )
    payload_hash: Mapped[str] = mapped_column(server_default=assigned)
    max_attempts: Mapped[int] = mapped_column(Integer(), server_default=text("20"))
    context: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    db_user: Mapped[str] = mapped_column(server_default=LOGIN)
    xact_id: Mapped[int] = mapped_column(server_default=TRANSACTION)


class PaymentOutboxPending(Base):
    """An item that is not terminal, and its lease. The terminal attempt deletes the row."""

    __tablename__ = "payment_outbox_pending"
    __table_args__ = (
        CheckConstraint("attempt_count >= 0", name="attempt_count"),
        CheckConstraint(in_years("next_attempt_at"), name="next_attempt_at"),
        CheckConstraint(
            "num_nulls(claimed_by, lease_token, lease_expires_at) IN (0, 3)"
            " AND isfinite(lease_expires_at)"
            f" AND octet_length(claimed_by) <= {MAX_KEY_OCTETS}",
            name="lease",
        ),
        ForeignKeyConstraint(
            ["participant_id", "instruction_id", "open"],
            ["instructions.participant_id", "instructions.id", "instructions.open"],
        ),
        Index(None, "next_attempt_at", "outbox_id"),
        {"postgresql_with": {"fillfactor": "40"}},
    )

    outbox_id: Mapped[UUID] = mapped_column(primary_key=True)
    instruction_id: Mapped[UUID] = mapped_column(index=True)
    participant_id: Mapped[str]
    sequence_id: Mapped[int]
    rail_type: Mapped[str]
    attempt_count: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=CLOCK)
    claimed_by: Mapped[str | None]
    lease_token: Mapped[UUID | None]
    lease_expires_at: Mapped[datetime | None]
    open: Mapped[bool] = mapped_column(Computed("true", persisted=True))


class PaymentOutboxAttempt(Base):
    """The opening or the closing of an attempt. The opening commits before the call to the rail."""

    __tablename__ = "payment_outbox_attempts"
    __table_args__ = (
        CheckConstraint("attempt_no >= 1", name="attempt_no"),
        CheckConstraint(
            "CASE phase"
            " WHEN 'OPEN' THEN state = 'DISPATCHING'"
            " WHEN 'CLOSE' THEN state IN ('DISPATCHED', 'RETRYABLE', 'FAILED', 'ZOMBIE_REQUEUE')"
            " ELSE false END",
            name="state",
        ),
        CheckConstraint(
            "CASE state"
            " WHEN 'FAILED' THEN outcome IS NOT NULL"
            " WHEN 'RETRYABLE' THEN true"
            " ELSE outcome IS NULL END"
            " AND outcome IN ('REJECTED', 'UNKNOWN', 'NOT_SENT')",
            name="outcome",
        ),
        CheckConstraint(
            "CASE"
            " WHEN phase = 'OPEN' THEN requested_state IS NULL"
            " WHEN requested_state IS NULL THEN state IN ('FAILED', 'ZOMBIE_REQUEUE')"
            " WHEN requested_state = 'RETRYABLE' THEN state IN ('RETRYABLE', 'FAILED')"
            " WHEN requested_state IN ('DISPATCHED', 'FAILED') THEN state = requested_state"
            " ELSE false END"
            " AND (requested_state IS NOT NULL OR requested_error_code IS NULL)",
            name="requested_state",
        ),
        CheckConstraint(
            "(phase = 'CLOSE') = (completed_at IS NOT NULL) AND isfinite(claimed_at)",
            name="times",
        ),
        CheckConstraint(
            "phase = 'CLOSE' OR num_nonnulls(rail_reference, rail_code, error_code,"
            " error_message, latency_ms) = 0",
            name="opening",
        ),
        CheckConstraint(key("worker_id"), name="worker_id"),
        CheckConstraint("latency_ms >= 0", name="latency_ms"),
        CheckConstraint(
            f"octet_length(requested_error_code) <= {MAX_KEY_OCTETS}"
            f" AND octet_length(rail_reference) <= {MAX_KEY_OCTETS}"
            f" AND octet_length(rail_code) <= {MAX_KEY_OCTETS}"
            f" AND octet_length(error_code) <= {MAX_KEY_OCTETS}"
            f" AND octet_length(error_message) <= {MAX_TEXT_OCTETS}",
            name="texts",
        ),
        Index(
            "uq_payment_outbox_attempts_terminal",
            "outbox_id",
            unique=True,
            postgresql_where=TERMINAL,
        ),
        Index("ix_payment_outbox_attempts_xact_id", "xact_id", postgresql_using="brin"),
    )

    outbox_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    phase: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    outcome: Mapped[str | None]
    requested_state: Mapped[str | None]
    requested_error_code: Mapped[str | None]
    lease_token: Mapped[UUID]
    worker_id: Mapped[str]
    claimed_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    rail_reference: Mapped[str | None]
    rail_code: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    latency_ms: Mapped[int | None] = mapped_column(Integer())
    db_user: Mapped[str] = mapped_column(server_default=LOGIN)
    xact_id: Mapped[int] = mapped_column(server_default=TRANSACTION)

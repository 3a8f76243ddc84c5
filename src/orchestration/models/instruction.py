"""Instructions and the history of their states (INV-INS)."""

from datetime import date, datetime
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

from orchestration.models.base import (
    Base,
    DbUser,
    XactId,
    assigned,
    free_text,
    key,
    payload_rules,
)
from orchestration.vocabulary import MAX_TEXT_OCTETS


class Instruction(Base):
    """A payment instruction of a participant. Its content never changes; its state moves forward.

    `open`: authorized and not ended, so it can have pending items. `unresolved`: the number of its
    items that ended with the outcome UNKNOWN and are not resolved.
    """

    __tablename__ = "instructions"
    __table_args__ = (
        CheckConstraint(key("participant_id"), name="participant_id"),
        CheckConstraint(key("idempotency_key"), name="idempotency_key"),
        CheckConstraint(key("instruction_type"), name="instruction_type"),
        CheckConstraint(key("end_to_end_id"), name="end_to_end_id"),
        CheckConstraint("extract(year FROM value_date) BETWEEN 1 AND 9998", name="value_date"),
        CheckConstraint("amount_minor > 0", name="amount_minor"),
        CheckConstraint("octet_length(currency) = 3 AND currency ~ '^[A-Z]*$'", name="currency"),
        CheckConstraint(key("debtor_account"), name="debtor_account"),
        CheckConstraint(key("creditor_account"), name="creditor_account"),
        *payload_rules(),
        CheckConstraint(
            "state IN ('RECEIVED', 'AUTHORIZED', 'EXECUTING', 'COMPLETED', 'FAILED')", name="state"
        ),
        CheckConstraint(
            f"(state = 'FAILED') = (reason IS NOT NULL) AND {free_text('reason')}", name="reason"
        ),
        CheckConstraint("unresolved >= 0", name="unresolved"),
        CheckConstraint("version >= 1", name="version"),
        CheckConstraint(
            "(state IN ('COMPLETED', 'FAILED')) = (completed_at IS NOT NULL)"
            " AND extract(year FROM created_at AT TIME ZONE 'UTC') BETWEEN 1 AND 9998",
            name="times",
        ),
        UniqueConstraint("participant_id", "idempotency_key"),
        UniqueConstraint("participant_id", "id"),
        UniqueConstraint("participant_id", "id", "open"),
        Index("ix_instructions_unresolved", "id", postgresql_where=text("unresolved > 0")),
        ForeignKeyConstraint(
            ["attestation_id", "policy_version_id"],
            ["ingress_attestations.id", "ingress_attestations.policy_version_id"],
        ),
        Index("ix_instructions_xact_id", "xact_id", postgresql_using="brin"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=assigned)
    participant_id: Mapped[str]
    idempotency_key: Mapped[str]
    instruction_type: Mapped[str]
    end_to_end_id: Mapped[str]
    uetr: Mapped[UUID | None]
    value_date: Mapped[date | None]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    debtor_account: Mapped[str]
    creditor_account: Mapped[str]
    payload: Mapped[dict[str, Any]]
    payload_salt: Mapped[bytes] = mapped_column(
        LargeBinary(), server_default=text("uuid_send(gen_random_uuid())")
    )
    payload_hash: Mapped[str] = mapped_column(server_default=assigned)
    attestation_id: Mapped[UUID] = mapped_column(index=True)
    policy_version_id: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=text("'RECEIVED'"))
    open: Mapped[bool] = mapped_column(
        Computed("state = ANY (ARRAY['AUTHORIZED'::text, 'EXECUTING'::text])", persisted=True)
    )
    unresolved: Mapped[int] = mapped_column(Integer(), server_default=text("0"))
    reason: Mapped[str | None]
    version: Mapped[int] = mapped_column(Integer(), server_default=text("1"))
    created_at: Mapped[datetime] = mapped_column(server_default=assigned)
    updated_at: Mapped[datetime] = mapped_column(server_default=assigned)
    completed_at: Mapped[datetime | None]
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class StatusHistory(Base):
    """One transition of an instruction. The database writes it in the same statement."""

    __tablename__ = "status_history"
    __table_args__ = (
        CheckConstraint(
            "CASE to_state"
            " WHEN 'RECEIVED' THEN from_state IS NULL AND version = 1"
            " WHEN 'AUTHORIZED' THEN from_state = 'RECEIVED'"
            " WHEN 'EXECUTING' THEN from_state = 'AUTHORIZED'"
            " WHEN 'COMPLETED' THEN from_state = 'EXECUTING'"
            " WHEN 'FAILED' THEN from_state IN ('RECEIVED', 'AUTHORIZED', 'EXECUTING')"
            " ELSE false END"
            " AND (from_state IS NOT NULL OR to_state = 'RECEIVED')",
            name="transition",
        ),
        CheckConstraint(
            "(to_state = 'FAILED') = (reason IS NOT NULL)"
            f" AND octet_length(reason) <= {MAX_TEXT_OCTETS}",
            name="reason",
        ),
        ForeignKeyConstraint(
            ["participant_id", "instruction_id"],
            ["instructions.participant_id", "instructions.id"],
        ),
        Index("ix_status_history_xact_id", "xact_id", postgresql_using="brin"),
    )

    instruction_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    participant_id: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    reason: Mapped[str | None]
    occurred_at: Mapped[datetime] = mapped_column(server_default=assigned)
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]

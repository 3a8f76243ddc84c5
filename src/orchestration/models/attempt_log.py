"""The attempt logs of an instruction: its runs, and its rail calls outside the outbox (INV-APP)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import SchemaItem

from orchestration.models.base import (
    Base,
    DbUser,
    XactId,
    assigned,
    free_text,
    in_years,
    key,
)


def _rules(table: str) -> tuple[SchemaItem, ...]:
    """The CHECKs of both logs: an opening has a worker, a closing an outcome."""
    return (
        CheckConstraint("attempt_no >= 1", name="attempt_no"),
        CheckConstraint(key("worker_id"), name="worker_id"),
        CheckConstraint(
            "CASE phase"
            " WHEN 'OPEN' THEN outcome IS NULL"
            " WHEN 'CLOSE' THEN outcome IS NOT NULL"
            " ELSE false END"
            " AND outcome IN ('SUCCEEDED', 'FAILED', 'ABANDONED')",
            name="outcome",
        ),
        CheckConstraint(
            "(num_nonnulls(error_code, error_message) = 0"
            " OR coalesce(outcome <> 'SUCCEEDED', false))"
            f" AND {key('error_code')} AND {free_text('error_message')}",
            name="error",
        ),
        CheckConstraint(in_years("occurred_at"), name="years"),
        ForeignKeyConstraint(
            ["participant_id", "instruction_id"],
            ["instructions.participant_id", "instructions.id"],
        ),
        Index(f"ix_{table}_xact_id", "xact_id", postgresql_using="brin"),
    )


class Attempt:
    """The columns of both logs: a row is the opening or the closing of an attempt."""

    instruction_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt_no: Mapped[int] = mapped_column(Integer(), primary_key=True, autoincrement=False)
    phase: Mapped[str] = mapped_column(primary_key=True)
    participant_id: Mapped[str] = mapped_column(server_default=assigned)
    worker_id: Mapped[str] = mapped_column(server_default=assigned)
    outcome: Mapped[str | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    occurred_at: Mapped[datetime] = mapped_column(server_default=assigned)
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class ExecutionAttempt(Attempt, Base):
    """An attempt to execute an instruction."""

    __tablename__ = "execution_attempts"
    __table_args__ = _rules("execution_attempts")


class TransactionAttempt(Attempt, Base):
    """An attempt to execute an instruction by a rail call outside the outbox."""

    __tablename__ = "transaction_attempts"
    __table_args__ = (
        *_rules("transaction_attempts"),
        CheckConstraint(key("rail_type"), name="rail_type"),
        CheckConstraint(
            f"(rail_reference IS NULL OR phase = 'CLOSE') AND {key('rail_reference')}",
            name="rail_reference",
        ),
    )

    rail_type: Mapped[str] = mapped_column(server_default=assigned)
    rail_reference: Mapped[str | None]

"""Late results and interventions of an outbox item (INV-OUT-011, INV-AUD-001)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import Base, DbUser, XactId, assigned, free_text, in_years, key

LOGIN = text("SESSION_USER")


class PaymentOutboxLateResult(Base):
    """A result of the rail that the worker or reconciliation reported after the lease was lost.

    `result_no` numbers the results of an item. `instruction_version` is the version of the
    instruction at that time.
    """

    __tablename__ = "payment_outbox_late_results"
    __table_args__ = (
        CheckConstraint("result_no >= 1", name="result_no"),
        CheckConstraint(
            "CASE source"
            " WHEN 'WORKER' THEN lease_token IS NOT NULL AND reason IS NULL"
            " WHEN 'RECONCILIATION' THEN lease_token IS NULL AND reason IS NOT NULL"
            " ELSE false END",
            name="source",
        ),
        CheckConstraint("outcome IN ('SENT', 'REJECTED', 'NOT_SENT')", name="outcome"),
        CheckConstraint(key("rail_reference"), name="rail_reference"),
        CheckConstraint(free_text("reason"), name="reason"),
        CheckConstraint(key("recorded_by"), name="recorded_by"),
        CheckConstraint(in_years("recorded_at"), name="years"),
        Index("ix_payment_outbox_late_results_xact_id", "xact_id", postgresql_using="brin"),
    )

    outbox_id: Mapped[UUID] = mapped_column(primary_key=True)
    result_no: Mapped[int] = mapped_column(
        Integer(), primary_key=True, autoincrement=False, server_default=assigned
    )
    attempt_no: Mapped[int] = mapped_column(Integer())
    source: Mapped[str]
    outcome: Mapped[str]
    rail_reference: Mapped[str | None]
    reason: Mapped[str | None]
    lease_token: Mapped[UUID | None]
    recorded_by: Mapped[str] = mapped_column(server_default=LOGIN)
    recorded_at: Mapped[datetime] = mapped_column(server_default=assigned)
    instruction_version: Mapped[int] = mapped_column(Integer(), server_default=assigned)
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class PaymentOutboxIntervention(Base):
    """What control did with an item: cancel, reschedule, end a lease, close a contradiction.

    `time_before` and `time_after`: for RESCHEDULE the due time, for EXPIRE_LEASE the end of the
    lease. `reason` is null if the owner changed the queue directly.
    """

    __tablename__ = "payment_outbox_interventions"
    __table_args__ = (
        CheckConstraint("intervention_no >= 1", name="intervention_no"),
        CheckConstraint(
            "CASE action"
            " WHEN 'CANCEL' THEN attempt_no IS NOT NULL"
            " AND num_nonnulls(result_no, time_before, time_after) = 0"
            " WHEN 'RESCHEDULE' THEN num_nonnulls(attempt_no, result_no) = 0"
            " AND num_nulls(time_before, time_after) = 0"
            " WHEN 'EXPIRE_LEASE' THEN result_no IS NULL"
            " AND num_nulls(attempt_no, time_before, time_after) = 0"
            " WHEN 'CLOSE_CONTRADICTION' THEN result_no IS NOT NULL"
            " AND num_nonnulls(attempt_no, time_before, time_after) = 0"
            " ELSE false END",
            name="action",
        ),
        CheckConstraint(free_text("reason"), name="reason"),
        CheckConstraint(key("acted_by"), name="acted_by"),
        CheckConstraint(in_years("acted_at"), name="years"),
        Index(
            "uq_payment_outbox_interventions_closed",
            "outbox_id",
            "result_no",
            unique=True,
            postgresql_where=text("action = 'CLOSE_CONTRADICTION'"),
        ),
        Index("ix_payment_outbox_interventions_xact_id", "xact_id", postgresql_using="brin"),
    )

    outbox_id: Mapped[UUID] = mapped_column(primary_key=True)
    intervention_no: Mapped[int] = mapped_column(
        Integer(), primary_key=True, autoincrement=False, server_default=assigned
    )
    action: Mapped[str]
    attempt_no: Mapped[int | None] = mapped_column(Integer())
    result_no: Mapped[int | None] = mapped_column(Integer())
    time_before: Mapped[datetime | None]
    time_after: Mapped[datetime | None]
    reason: Mapped[str | None]
    acted_by: Mapped[str] = mapped_column(server_default=LOGIN)
    acted_at: Mapped[datetime] = mapped_column(server_default=assigned)
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]

"""Kill switches: append-only events, and their gate (INV-KIL)."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import (
    Base,
    DbUser,
    Singleton,
    XactId,
    assigned,
    free_text,
    key,
)
from orchestration.vocabulary import MAX_KEY_OCTETS


class KillSwitchGate(Base):
    """The only row is the gate: gated writers lock it in share mode, and an event updates it."""

    __tablename__ = "kill_switch_gate"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[Singleton]
    changes: Mapped[int] = mapped_column(server_default=text("0"))
    changed_at: Mapped[datetime | None]


class KillSwitch(Base):
    """A switch was engaged or released. The last event of a scope and target decides."""

    __tablename__ = "kill_switches"
    __table_args__ = (
        CheckConstraint("event_no >= 1", name="event_no"),
        CheckConstraint(
            "CASE"
            " WHEN scope IN ('GLOBAL', 'INGEST', 'EXECUTION', 'DISPATCH') THEN target IS NULL"
            " WHEN scope IN ('PARTICIPANT', 'RAIL') THEN octet_length(coalesce(target, ''))"
            f" BETWEEN 1 AND {MAX_KEY_OCTETS}"
            " ELSE false END",
            name="scope",
        ),
        CheckConstraint("action IN ('ENGAGE', 'RELEASE')", name="action"),
        CheckConstraint(free_text("reason"), name="reason"),
        CheckConstraint(key("actor"), name="actor"),
        CheckConstraint(key("key"), name="key"),
        UniqueConstraint("key"),
        Index("ix_kill_switches_last", "scope", text("coalesce(target, '')"), "event_no"),
        Index("ix_kill_switches_xact_id", "xact_id", postgresql_using="brin"),
    )

    event_no: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, server_default=assigned
    )
    scope: Mapped[str]
    target: Mapped[str | None]
    action: Mapped[str]
    reason: Mapped[str]
    key: Mapped[str | None]
    actor: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    occurred_at: Mapped[datetime] = mapped_column(server_default=assigned)
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]

"""policy_versions and its gate: the rules that apply to a payment (INV-POL)."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import (
    Base,
    DbUser,
    Singleton,
    XactId,
    assigned,
    free_text,
    hex64,
    in_years,
    key,
)


class PolicyVersion(Base):
    """A policy version. Exactly one is ACTIVE, at most one is in GRACE, the others are RETIRED."""

    __tablename__ = "policy_versions"
    __table_args__ = (
        CheckConstraint(key("id"), name="id"),
        CheckConstraint(free_text("description"), name="description"),
        CheckConstraint(key("created_by"), name="created_by"),
        CheckConstraint(hex64("checksum"), name="checksum"),
        CheckConstraint("status IN ('ACTIVE', 'GRACE', 'RETIRED')", name="status"),
        CheckConstraint(
            "(status = 'ACTIVE') = (grace_expires_at IS NULL)"
            " AND (status = 'RETIRED') = (retired_at IS NOT NULL)",
            name="times",
        ),
        CheckConstraint(
            in_years("activated_at", "grace_expires_at", "retired_at", "created_at"), name="years"
        ),
        Index(
            "uq_policy_versions_active",
            "status",
            unique=True,
            postgresql_where=text("status = 'ACTIVE'"),
        ),
        Index(
            "uq_policy_versions_grace",
            "status",
            unique=True,
            postgresql_where=text("status = 'GRACE'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    checksum: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'ACTIVE'"))
    activated_at: Mapped[datetime] = mapped_column(server_default=assigned)
    grace_expires_at: Mapped[datetime | None]
    retired_at: Mapped[datetime | None]
    retired_db_user: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=assigned)
    created_by: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class PolicyGate(Base):
    """The only row is the gate: writers lock it in share mode, and a change updates it."""

    __tablename__ = "policy_gate"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[Singleton]
    changes: Mapped[int] = mapped_column(server_default=text("0"))
    changed_at: Mapped[datetime | None]

"""The audit log: every act of governance in one hash chain, and the chain's head (INV-AUD)."""

from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from sqlalchemy import CheckConstraint, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import INET
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import (
    Base,
    DbUser,
    Singleton,
    XactId,
    assigned,
    hex64,
    in_years,
    key,
    readable_object,
)


class AuditLogHead(Base):
    """The only row is the head of the chain. A new entry locks it, so entries commit in order."""

    __tablename__ = "audit_log_head"
    __table_args__ = (
        CheckConstraint("singleton", name="singleton"),
        CheckConstraint("chain_seq >= 0", name="chain_seq"),
    )

    singleton: Mapped[Singleton]
    chain_seq: Mapped[int] = mapped_column(server_default=text("0"))
    record_hash: Mapped[str] = mapped_column(server_default=text("''"))


class AuditLog(Base):
    """One act of governance: the rows it changed, and the login, role and address it came from."""

    __tablename__ = "audit_log"
    __table_args__ = (
        CheckConstraint("chain_seq >= 1", name="chain_seq"),
        CheckConstraint(
            "action IN ('MIGRATE', 'ROTATE', 'RETIRE', 'DEMOTE', 'SHORTEN', 'REVOKE', 'ENGAGE',"
            " 'RELEASE', 'REDRIVE', 'RESOLVE', 'CANCEL', 'RESCHEDULE', 'EXPIRE_LEASE',"
            " 'CLOSE_CONTRADICTION')",
            name="action",
        ),
        CheckConstraint(key("table_name"), name="table_name"),
        CheckConstraint(readable_object("before"), name="before"),
        CheckConstraint(readable_object("after"), name="after"),
        CheckConstraint(
            "masklen(client_addr) = CASE family(client_addr) WHEN 4 THEN 32 ELSE 128 END",
            name="client_addr",
        ),
        CheckConstraint(hex64("record_hash"), name="record_hash"),
        CheckConstraint("(chain_seq = 1) = (prev_hash = '')", name="prev_hash"),
        CheckConstraint(in_years("occurred_at"), name="years"),
        UniqueConstraint("prev_hash"),
        Index("ix_audit_log_xact_id", "xact_id", postgresql_using="brin"),
    )

    chain_seq: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, server_default=assigned
    )
    action: Mapped[str]
    table_name: Mapped[str]
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any]]
    occurred_at: Mapped[datetime] = mapped_column(server_default=assigned)
    db_user: Mapped[DbUser]
    db_role: Mapped[str] = mapped_column(server_default=assigned)
    client_addr: Mapped[IPv4Address | IPv6Address | None] = mapped_column(
        INET, server_default=assigned
    )
    prev_hash: Mapped[str] = mapped_column(server_default=assigned)
    record_hash: Mapped[str] = mapped_column(server_default=assigned)
    xact_id: Mapped[XactId]

"""revoked_client_certs, revoked_tokens and their gate; they store only hashes (INV-REV)."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import SchemaItem

from orchestration.models.base import Base, DbUser, Singleton, XactId, assigned, in_years, key
from orchestration.vocabulary import CRLReason

REASONS = ", ".join(f"'{reason}'" for reason in CRLReason)


def _rules(table: str) -> tuple[SchemaItem, ...]:
    return (
        CheckConstraint("revocation_no >= 1", name="revocation_no"),
        CheckConstraint("expires_at IS NULL OR expires_at >= revoked_at", name="expiry"),
        CheckConstraint(f"reason_code IN ({REASONS})", name="reason_code"),
        CheckConstraint(key("revoked_by"), name="revoked_by"),
        CheckConstraint(in_years("revoked_at", "recorded_at", "expires_at"), name="years"),
        Index(f"ix_{table}_expires_at", "expires_at"),
        Index(f"ix_{table}_revoked_at", "revoked_at"),
        Index(f"ix_{table}_xact_id", "xact_id", postgresql_using="brin"),
    )


class Revocation:
    """One revocation of a credential, from `revoked_at` until `expires_at`. A credential can have
    several, numbered from 1. It is revoked while any of them is in force."""

    revocation_no: Mapped[int] = mapped_column(
        Integer(), primary_key=True, autoincrement=False, server_default=assigned, sort_order=-1
    )
    revoked_at: Mapped[datetime] = mapped_column(server_default=assigned)
    recorded_at: Mapped[datetime] = mapped_column(server_default=assigned)
    expires_at: Mapped[datetime | None]
    reason_code: Mapped[str]
    revoked_by: Mapped[str] = mapped_column(server_default=text("SESSION_USER"))
    db_user: Mapped[DbUser]
    xact_id: Mapped[XactId]


class RevokedClientCert(Revocation, Base):
    """A client certificate, identified by the SHA-256 of its DER encoding."""

    __tablename__ = "revoked_client_certs"
    __table_args__ = _rules("revoked_client_certs")

    cert_fingerprint_sha256: Mapped[str] = mapped_column(primary_key=True, sort_order=-2)


class RevokedToken(Revocation, Base):
    """A token, identified by its SHA-256."""

    __tablename__ = "revoked_tokens"
    __table_args__ = _rules("revoked_tokens")

    token_hash: Mapped[str] = mapped_column(primary_key=True, sort_order=-2)


class RevocationGate(Base):
    """The only row is the gate: writers lock it in share mode, and a revocation updates it."""

    __tablename__ = "revocation_gate"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[Singleton]
    changes: Mapped[int] = mapped_column(server_default=text("0"))
    changed_at: Mapped[datetime | None]

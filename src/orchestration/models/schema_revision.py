"""schema_revision: its only row contains the revision of the database."""

from sqlalchemy import CheckConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestration.models.base import Base, Singleton


class SchemaRevision(Base):
    __tablename__ = "schema_revision"
    __table_args__ = (CheckConstraint("singleton", name="singleton"),)

    singleton: Mapped[Singleton]
    revision: Mapped[str]
    changes: Mapped[int] = mapped_column(server_default=text("0"))

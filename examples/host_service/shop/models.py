"""The shop's tables, in the schema `public`."""

from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Text, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of the shop's models, whose metadata is separate from the library's."""


class Order(Base):
    """An order and the instruction that pays it."""

    __tablename__ = "orders"

    number: Mapped[str] = mapped_column(Text(), primary_key=True)
    customer: Mapped[str] = mapped_column(Text())
    amount_minor: Mapped[int] = mapped_column(BigInteger())
    state: Mapped[str] = mapped_column(Text(), default="PLACED")
    instruction_id: Mapped[UUID] = mapped_column(Uuid())


class Delivery(Base):
    """A delivery that the customer has confirmed."""

    __tablename__ = "deliveries"

    order_number: Mapped[str] = mapped_column(ForeignKey(Order.number), primary_key=True)
    attestation_id: Mapped[UUID] = mapped_column(Uuid())

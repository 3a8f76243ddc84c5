"""Orders and their deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "shop_0001"
down_revision = None
branch_labels = ("shop",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("number", sa.Text(), primary_key=True),
        sa.Column("customer", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("instruction_id", sa.Uuid(), nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("order_number", sa.Text(), sa.ForeignKey("orders.number"), primary_key=True),
        sa.Column("attestation_id", sa.Uuid(), nullable=False),
    )
    op.execute(
        """
CREATE FUNCTION orders_keep_their_amount() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
  RAISE EXCEPTION 'order % keeps its amount', OLD.number;
END
$$
"""
    )
    op.execute(
        """
CREATE TRIGGER keep_amount
BEFORE UPDATE OF amount_minor ON orders
FOR EACH ROW WHEN (NEW.amount_minor <> OLD.amount_minor)
EXECUTE FUNCTION orders_keep_their_amount()
"""
    )


def downgrade() -> None:
    op.drop_table("deliveries")
    op.drop_table("orders")
    op.execute("DROP FUNCTION orders_keep_their_amount()")

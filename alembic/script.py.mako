"""${message}

Serves: name the invariants here.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    ${upgrades if upgrades else "pass"}
    op.execute("UPDATE orchestration.schema_revision SET revision = ${repr(up_revision)}")
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
    ${downgrades if downgrades else "pass"}
    op.execute("UPDATE orchestration.schema_revision SET revision = ${repr(down_revision)}")
    op.execute("RESET ROLE")

<%!
def quoted(value):
    return repr(value).replace("'", '"')
%>\
"""${message}

Serves: name the invariants here.
"""

% if "sa." in (upgrades or "") + (downgrades or ""):
import sqlalchemy as sa
% endif
from alembic import op

revision = ${quoted(up_revision)}
down_revision = ${quoted(down_revision)}
branch_labels = ${quoted(branch_labels)}
depends_on = ${quoted(depends_on)}


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

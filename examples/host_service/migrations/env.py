"""The shop's own Alembic environment. It upgrades the shop's branch and the library's branch, and
keeps both in the shop's version table."""

import os

from alembic import context
from sqlalchemy import create_engine, pool, text

from shop.models import Base

# Any number that nothing else in this database uses. The lock lets one upgrade run at a time.
UPGRADE_LOCK = 0x73686F70


def run_online() -> None:
    engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata)
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            context.run_migrations()


def run_offline() -> None:
    # A script has no parameters. The driver's own parameter style would double every %.
    context.configure(
        url="postgresql+psycopg://", literal_binds=True, dialect_opts={"paramstyle": "named"}
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()

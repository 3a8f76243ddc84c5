"""The shop's Alembic environment: its models, its version table, and the library's branch."""

import os

from alembic import context
from sqlalchemy import create_engine, pool, text

from shop.models import Base

# The key of an advisory lock that lets only one upgrade run. Any number will do.
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
    # A script has no parameters: with the driver's paramstyle every % would be doubled.
    context.configure(
        url="postgresql+psycopg://", literal_binds=True, dialect_opts={"paramstyle": "named"}
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()

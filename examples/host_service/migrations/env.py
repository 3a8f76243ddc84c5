"""The shop's own Alembic environment: its models, its version table, and the library's branch."""

import os

from alembic import context
from sqlalchemy import create_engine, pool, text

from shop.models import Base

# Any number of the shop's own: one upgrade at a time.
UPGRADE_LOCK = 0x73686F70

with create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        context.run_migrations()

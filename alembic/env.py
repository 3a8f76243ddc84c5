"""Run the revisions on DATABASE_URL, otherwise on the development server (docs/migrations.md).

In a host's environment the host's own env.py runs instead. The revisions must therefore be correct
without this file. It only makes them safer and puts the version table into our schema.
"""

from logging.config import fileConfig
from pathlib import Path

from alembic import context
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, TextClause, make_url, text

from orchestration import models, upgrading

config = context.config
if config.config_file_name is not None and config.attributes.get("configure_logger", True):
    fileConfig(config.config_file_name, disable_existing_loggers=False)

HERE = Path(__file__).parent
SCHEMA = models.Base.metadata.schema
SCRIPTS = ScriptDirectory.from_config(config)
LOCK = upgrading.UPGRADE_LOCK


def sql(name: str, **values: object) -> TextClause:
    return text((HERE / f"{name}.sql").read_text("utf-8").strip()).bindparams(**values)


def configure(**options: object) -> None:
    context.configure(
        target_metadata=models.Base.metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, type_, parents: type_ != "schema" or name == SCHEMA,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
        on_version_apply=lambda ctx, step, **others: (
            None if step.source_revision_ids else ctx.execute(sql("version_table_to_owner"))
        ),
        **options,
    )


def migrate(connection: Connection | None = None) -> None:
    if connection is not None:
        configure(connection=connection, dont_mutate=not upgrading.has_destination())
    with context.begin_transaction():
        context.run_migrations()


# Alembic looks for its version table before the first revision can create the schema for it.
first = SCRIPTS.get_revision("0001").module
preparation = [sql("settings"), text(first.OWNER_AND_SCHEMA), sql("inherit_owner")]
if context.is_offline_mode():
    start = SCRIPTS.get_revision(context.get_starting_revision_argument() or "base")
    # A script has no parameters. In the driver's own parameter style every % would be doubled.
    style = {"literal_binds": True, "dialect_opts": {"paramstyle": "named"}}
    configure(url=make_url("postgresql+psycopg://"), **style)
    # Without this, psql would continue with the next revision after an error.
    context.get_context().impl.static_output("\\set ON_ERROR_STOP on")
    start_at = sql("script_start", start=start.revision if start else "base")
    settings, *rights = preparation
    for statement in (settings, sql("script_lock", key=LOCK), *rights, start_at):
        context.execute(statement)
    migrate()
    context.execute(sql("script_end", key=LOCK))
else:
    with upgrading.connected(upgrading.server_url(config, HERE.parent / ".db")) as connection:
        if upgrading.has_destination():
            upgrading.change(connection, preparation, migrate)
        else:
            upgrading.look(connection, migrate)

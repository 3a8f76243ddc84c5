"""The shop's autogenerate with `include_schemas`: it must not drop the library's tables."""

import os
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url, pool

from shop.autogenerate import BOTH, leave_out_the_library
from shop.models import Base


def differences(metadata: Any, **options: Any) -> list[Any]:
    """Return the operations of a revision for a database that is at its heads."""
    url = make_url(os.environ["DATABASE_URL"])
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_schemas": True, "target_metadata": metadata, **options}
        )
        found: list[Any] = compare_metadata(context, metadata)
        return found


def test_without_a_remedy_it_would_drop_the_library_s_tables() -> None:
    found = differences(Base.metadata)
    dropped = {change[1].fullname for change in found if change[0] == "remove_table"}
    assert "orchestration.payment_outbox_items" in dropped


def test_a_filter_leaves_the_library_out() -> None:
    assert differences(Base.metadata, include_name=leave_out_the_library) == []


def test_the_library_s_metadata_beside_the_shop_s_finds_nothing_to_do() -> None:
    assert differences(BOTH) == []

"""docs/views.md lists the columns of the views that a role may read."""

import re
from pathlib import Path

from tests.roles.matrix import MAY_SELECT
from tests.support import Connect

DOCUMENT = Path(__file__).parents[2] / "docs" / "views.md"


def test_the_document_lists_every_view_with_its_columns(owner: Connect) -> None:
    found = owner.execute(
        "SELECT table_name, array_agg(column_name || ' ' || data_type ORDER BY ordinal_position)"
        " FROM information_schema.columns"
        " JOIN pg_catalog.pg_views ON schemaname = table_schema AND viewname = table_name"
        " WHERE table_schema = 'orchestration' GROUP BY table_name"
    ).fetchall()
    listed = {
        section.partition("\n")[0]: [
            " ".join(row) for row in re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
        ]
        for section in DOCUMENT.read_text("utf-8").split("\n## ")[1:]
    }
    assert listed == {view: columns for view, columns in found if MAY_SELECT[view]}

"""docs/views.md lists the views of the server under test, with their columns and their readers."""

from tests.roles.matrix import MAY_SELECT
from tests.support import Connect, documented
from tools import docs


def test_the_page_is_what_the_database_says(owner: Connect) -> None:
    assert documented("views.md") == docs.list_views(owner.execute(docs.COLUMNS).fetchall())


def test_every_view_that_a_role_can_read_has_its_purpose(owner: Connect) -> None:
    found = owner.execute(
        "SELECT viewname FROM pg_catalog.pg_views WHERE schemaname = 'orchestration'"
    ).fetchall()
    assert set(docs.PURPOSES) == {view for (view,) in found if MAY_SELECT[view]}

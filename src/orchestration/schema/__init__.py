"""What the database should look like, and what it does look like.

`current/` holds one file per object, generated from a freshly migrated database on PostgreSQL 18
and committed: `git log -p` of one file is that trigger's biography. `read` takes the same picture
of a live database, `compare` names every difference.
"""

from orchestration.schema.catalogue import Difference, compare, expected, read

REVISION = "0011"
"""The revision that this code needs: `orchestration.schema_revision` must not be older."""

__all__ = ["REVISION", "Difference", "compare", "expected", "read"]

"""What the database should look like, and what it does look like.

`current/` holds the SQL that people edit; it loads into an empty database. `fingerprint.json` is
generated from it and holds one canonical text per object, the same on every supported version of
PostgreSQL. `read` takes the same picture of a live database, and `compare` returns every
difference.
"""

from orchestration.schema.catalogue import Difference, compare, expected, read

REVISION = "0011"
"""The revision that this code needs: `orchestration.schema_revision` must not be older."""

__all__ = ["REVISION", "Difference", "compare", "expected", "read"]

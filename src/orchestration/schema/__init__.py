"""Compares the schema of a live database with the schema that this code expects.

`current/` contains the SQL that people edit, and loads into an empty database. From it,
`fingerprint.json` is generated: one canonical text per object, the same on every supported version
of PostgreSQL. `read` returns the same texts for a live database, and `compare` returns every
difference.
"""

from orchestration.schema.catalogue import Difference, compare, expected, read

REVISION = "0011"
"""The oldest revision that this code works with, as in `orchestration.schema_revision`."""

__all__ = ["REVISION", "Difference", "compare", "expected", "read"]

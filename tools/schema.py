"""Writes src/orchestration/schema/current from a freshly migrated database, or compares with it.

usage: python -m tools.schema write|check
"""

import difflib
import secrets
import shutil
import sys
from pathlib import Path

from sqlalchemy import create_engine, pool

from orchestration import schema
from orchestration.testing import embedded
from tools import scratch

CURRENT = Path(schema.__file__).parent / "current"


def picture() -> dict[str, str]:
    """The schema of a new database on the embedded server, whatever DATABASE_URL says: the files
    are of one server version."""
    with embedded.serve(settings={"fsync": "off"}) as running:
        at = scratch.describe(scratch.make_url(running.url), "embedded")
        url = scratch.create_database(at, scratch.PREFIX + secrets.token_hex(4))
        scratch.upgrade(url)
        with create_engine(url, poolclass=pool.NullPool).connect() as connection:
            return schema.read(connection)


def write(found: dict[str, str]) -> None:
    shutil.rmtree(CURRENT, ignore_errors=True)
    for path, definition in found.items():
        file = CURRENT / f"{path}.sql"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(definition + "\n", encoding="utf-8")


def check(found: dict[str, str]) -> int:
    wanted = schema.expected()
    differences = schema.compare(wanted, found)
    for difference in differences:
        print(difference)
        if difference.kind == "changed":
            old, new = wanted[difference.path], found[difference.path]
            print(*difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm=""), sep="\n")
    if differences:
        print("schema/current differs from what the revisions make: run `make schema`.")
    return 1 if differences else 0


def main(verb: str) -> int:
    found = picture()
    if verb == "write":
        write(found)
        return 0
    return check(found)


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))

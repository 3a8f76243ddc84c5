"""Loads src/orchestration/schema/current, writes what is generated from it, and compares it with
the revisions.

usage: python -m tools.schema write       write current/load.sql and fingerprint.json
       python -m tools.schema check       compare current/, fingerprint.json and the revisions
       python -m tools.schema load URL    load current/ into an empty database
"""

import difflib
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import URL, Connection, create_engine, pool

from orchestration import schema
from orchestration.database import normalize_url
from orchestration.testing import embedded
from tools import current, revision_text, scratch

FOLDER = scratch.ROOT / "src" / "orchestration" / "schema"
CURRENT = FOLDER / "current"
FINGERPRINT = FOLDER / "fingerprint.json"


@contextmanager
def server() -> Iterator[scratch.Server]:
    """Yield the embedded server, even if DATABASE_URL is set: every run uses one version."""
    with embedded.serve(settings={"fsync": "off"}) as running:
        yield scratch.describe(scratch.make_url(running.url), "embedded")


@contextmanager
def connected(url: URL) -> Iterator[Connection]:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        yield connection


def picture(url: URL) -> dict[str, str]:
    with connected(url) as connection:
        return schema.read(connection)


def loaded(at: scratch.Server) -> URL:
    """Load current/ into a new database and return its URL."""
    url = scratch.create_database(at, scratch.PREFIX + secrets.token_hex(4))
    load(url)
    return url


def migrated(at: scratch.Server) -> URL:
    """Migrate a new database to the newest revision and return its URL."""
    url = scratch.create_database(at, scratch.PREFIX + secrets.token_hex(4))
    scratch.upgrade(url)
    return url


def load(url: URL) -> None:
    with connected(url) as connection:
        current.load(connection, CURRENT)


def write() -> int:
    with server() as at:
        write_generated(picture(loaded(at)))
    return 0


def write_generated(found: Mapping[str, str]) -> None:
    """Write load.sql, and write fingerprint.json from the texts that were read after loading."""
    script = current.load_script(current.read(CURRENT))
    (CURRENT / current.LOAD).write_text(script, encoding="utf-8")
    FINGERPRINT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def check() -> int:
    files = current.read(CURRENT)
    complaints = list(
        revision_text.stale(
            revision_text.units(files), revision_text.revisions(scratch.VERSIONS)
        ).values()
    )
    if (CURRENT / current.LOAD).read_text("utf-8") != current.load_script(files):
        complaints.append("schema/current/load.sql does not load these files: run `make schema`")
    with server() as at:
        wanted, found = picture(loaded(at)), picture(migrated(at))
    if schema.compare(schema.expected(), wanted):
        complaints.append(
            "schema/fingerprint.json does not match schema/current: run `make schema`"
        )
    if differences := list(described(found, wanted, "the revisions", "schema/current")):
        complaints += differences
        complaints.append(
            "The revisions do not create the schema in schema/current: run "
            '`make revision m="..."`, or `make revision rewrite=NNNN` if NNNN is not released'
        )
    print(*complaints, sep="\n", end="\n" if complaints else "")
    return 1 if complaints else 0


def described(
    old: Mapping[str, str], new: Mapping[str, str], old_name: str, new_name: str
) -> Iterator[str]:
    """Yield each difference, and for a changed object also its changed lines."""
    for difference in schema.compare(new, old):
        yield str(difference)
        if difference.kind == "changed":
            path = difference.path
            yield from difflib.unified_diff(
                old[path].splitlines(), new[path].splitlines(), old_name, new_name, lineterm=""
            )


def main(arguments: list[str]) -> int:
    match arguments:
        case ["write"]:
            return write()
        case ["check"]:
            return check()
        case ["load", url]:
            load(normalize_url(url))
            return 0
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except current.InvalidFiles as error:
        sys.exit(str(error))

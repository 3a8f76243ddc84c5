"""Reads src/orchestration/schema/current: the SQL that people edit, one file per object.

The file of a function, a view or a type holds its definition, owner and grants. The file of a table
also holds its constraints, indexes and triggers. `roles.sql` holds the roles and the schema.
`load.sql` is generated: it includes every other file in an order that PostgreSQL accepts.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import psycopg
from sqlalchemy import Connection

FOLDERS = ("types", "tables", "functions", "views")
ROLES = "roles.sql"
LOAD = "load.sql"
# pg_temp is last, because PostgreSQL would otherwise search it first.
SEARCH_PATH = "SET search_path = pg_catalog, pg_temp"

TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
  | (?P<string> \b[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' )
  | (?P<name> "(?:[^"]|"")*" )
  | (?P<body> \$(?P<tag>\w*)\$ .*? \$(?P=tag)\$ )
  | (?P<end> ; )
    """,
    re.VERBOSE | re.DOTALL,
)
REFERENCE = re.compile(r"\borchestration\.(\w+)")
STATEMENTS = (
    ("triggers", r"CREATE (?:CONSTRAINT )?TRIGGER (\w+)\s.*?\sON orchestration\.(\w+)"),
    ("triggers", r"ALTER TABLE orchestration\.(\w+)\s+ENABLE (?:ALWAYS |REPLICA )?TRIGGER (\w+)"),
    ("tables", r"(?:CREATE|ALTER) TABLE orchestration\.(\w+)"),
    ("tables", r"CREATE (?:UNIQUE )?INDEX \w+\s+ON orchestration\.(\w+)"),
    ("functions", r"CREATE (?:OR REPLACE )?FUNCTION orchestration\.(\w+)"),
    ("functions", r"ALTER FUNCTION orchestration\.(\w+)"),
    ("functions", r"(?:GRANT|REVOKE)\s[^;]*?\sON FUNCTION\s+orchestration\.(\w+)"),
    ("types", r"(?:CREATE|ALTER) (?:TYPE|DOMAIN) orchestration\.(\w+)"),
    ("types", r"(?:GRANT|REVOKE)\s[^;]*?\sON TYPE\s+orchestration\.(\w+)"),
    ("views", r"(?:CREATE (?:OR REPLACE )?|ALTER )VIEW orchestration\.(\w+)"),
    ("grants", r"(?:GRANT|REVOKE)\s[^;]*?\sON (?:TABLE )?\s*orchestration\.(\w+)"),
)


class InvalidFiles(ValueError):
    """The files of schema/current cannot be loaded."""


@dataclass(frozen=True)
class Statement:
    """One statement with the comments before it, without the semicolon after it.

    `kind` and `name` give the unit that the statement belongs to: `triggers/<table>__<trigger>`,
    `grants/<table>`, `tables/<table>`, `functions/<function>`, `types/<type>` or `views/<view>`. A
    GRANT on a view has the kind "grants", because its text does not show that the relation is a
    view.
    """

    text: str
    kind: str
    name: str

    @property
    def unit(self) -> str:
        return f"{self.kind}/{self.name}"


def statements(sql: str) -> list[Statement]:
    return [classified(text) for text in _split(sql)]


def _split(sql: str) -> Iterator[str]:
    start = 0
    for token in TOKEN.finditer(sql):
        if token["end"]:
            yield sql[start : token.start()].strip()
            start = token.end()
    if without(sql[start:], "comment").strip():
        yield sql[start:].strip()


def classified(text: str) -> Statement:
    bare = without(text, "comment").lstrip()
    for kind, pattern in STATEMENTS:
        if found := re.match(pattern, bare, re.DOTALL):
            names = found.groups()
            if kind == "triggers":
                names = names[::-1] if bare.startswith("CREATE") else names
            return Statement(text, kind, "__".join(names))
    return Statement(text, "other", "")


def without(sql: str, *kinds: str) -> str:
    """Return the SQL without the tokens of these kinds: comment, string, name or body."""
    return TOKEN.sub(lambda token: "" if any(token[kind] for kind in kinds) else token[0], sql)


def read(folder: Path) -> dict[str, str]:
    """Return the text of every file by its path without `.sql`, such as `functions/lock_gate`."""
    return {
        f"{kind}/{file.stem}": file.read_text("utf-8")
        for kind in FOLDERS
        for file in sorted((folder / kind).glob("*.sql"))
    }


def order(files: Mapping[str, str]) -> list[str]:
    """Return the paths in an order in which each file comes after the files that it refers to.

    References in string bodies do not count, because `load` switches check_function_bodies off. All
    others do: in signatures, SQL-standard bodies, defaults, constraints, triggers and views.
    """
    owners: dict[str, list[str]] = {}
    for path in files:
        owners.setdefault(path.partition("/")[2], []).append(path)
    graph = {
        path: {
            owner
            for name in REFERENCE.findall(without(sql, "comment", "string", "body"))
            for owner in owners.get(name, [])
            if owner != path
        }
        for path, sql in sorted(files.items())
    }
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InvalidFiles(f"These files refer to each other in a circle: {circle}") from error


def load_script(files: Mapping[str, str]) -> str:
    """Return the text of load.sql."""
    lines = [
        "-- Generated by `make schema`. Run it with psql in an empty database.",
        "\\set ON_ERROR_STOP on",
        f"{SEARCH_PATH};",
        "-- A function's body can refer to an object that a later file creates.",
        "SET check_function_bodies = off;",
        f"\\ir {ROLES}",
        *(f"\\ir {path}.sql" for path in order(files)),
    ]
    return "\n".join(lines) + "\n"


def load(connection: Connection, folder: Path) -> None:
    """Run roles.sql and all other files in a new, empty database."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    driver.execute(SEARCH_PATH)
    driver.execute("SET check_function_bodies = off")
    files = read(folder)
    scripts = {ROLES: (folder / ROLES).read_text("utf-8")}
    scripts |= {f"{path}.sql": files[path] for path in order(files)}
    for name, script in scripts.items():
        try:
            driver.execute(script.encode())
        except psycopg.Error as error:
            raise InvalidFiles(f"schema/current/{name}: {error}") from error
    driver.commit()

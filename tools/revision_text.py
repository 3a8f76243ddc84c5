"""Reads and edits the files of alembic/versions: which statement makes which object, and its text.

A unit is what one `op.execute` of a revision makes: a function, a view or a type with its owner and
grants, a trigger with its enabled state, or the grants on a table. Its text in the revision that
made it last is the text of `schema/current`.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools import current

# SQLAlchemy reads `:name` in the text of op.execute as a bind parameter, unless it is escaped.
PARAMETER = re.compile(r"(?<![:\w\\])(:\w+)(?!:)")
ESCAPED = re.compile(r"\\(:[\w$]*)(?![:\w$])")
CREATE = re.compile(r"^CREATE (?:OR REPLACE )?(?=FUNCTION|VIEW)", re.MULTILINE)
CREATES = re.compile(
    r"CREATE (?:OR REPLACE )?(?:FUNCTION|VIEW|TYPE|TRIGGER|CONSTRAINT TRIGGER)\s|GRANT\s|REVOKE\s"
)
DROPS = re.compile(
    r"DROP (?P<kind>FUNCTION|VIEW|TYPE|TRIGGER) (?P<name>\S+?)(?:\(.*\))?(?: ON (?P<table>\S+))?",
    re.DOTALL,
)
EMPTY = re.compile(r"^def (?!upgrade|downgrade)(\w+)\(\) -> None:\s*(?=^def )", re.MULTILINE)
REVISION_ROW = "UPDATE orchestration.schema_revision "


def units(files: Mapping[str, str]) -> dict[str, str]:
    """Return the text of every unit of schema/current by a name such as `triggers/items__guard`."""
    found: dict[str, str] = {}
    for path in current.order(files):
        if not path.startswith("tables/"):
            found[path] = files[path].strip().removesuffix(";")
            continue
        for statement in current.statements(files[path]):
            if statement.kind in ("triggers", "grants"):
                before = found.get(statement.unit)
                found[statement.unit] = f"{before};\n{statement.text}" if before else statement.text
    return found


def replacing(text: str) -> str:
    """Return the text with CREATE OR REPLACE."""
    return CREATE.sub("CREATE OR REPLACE ", text, count=1)


def creating(text: str) -> str:
    """Return the text with CREATE instead of CREATE OR REPLACE."""
    return CREATE.sub("CREATE ", text, count=1)


def execute(sql: str, indent: str = "    ") -> str:
    """Return the lines of an `op.execute` with this SQL."""
    if '"""' in sql:
        raise ValueError("SQL with three double quotes cannot be written into a revision")
    escaped = PARAMETER.sub(r"\\\1", sql)
    prefix = "r" if "\\" in escaped else ""
    line = f'{indent}op.execute({prefix}"{escaped}")'
    if "\n" not in sql and '"' not in sql and len(line) <= 100:
        return line
    return f'{indent}op.execute(\n{indent}    {prefix}"""\n{escaped}\n"""\n{indent})'


@dataclass
class Call:
    """One statement of a revision that calls `op`."""

    function: str
    name: str
    node: ast.Expr
    call: ast.Call

    @property
    def sql(self) -> str | None:
        """The SQL of an op.execute, as the server receives it."""
        argument = self.call.args[0] if self.call.args else None
        if self.name == "execute" and isinstance(argument, ast.Constant):
            return ESCAPED.sub(r"\1", str(argument.value)).strip()
        return None

    @property
    def made(self) -> str | None:
        """The unit that the call makes."""
        sql = self.sql
        if sql is None or not CREATES.match(current.without(sql, "comment").lstrip()):
            return None
        first = current.classified(sql)
        # A call that only grants on a function changes it. Another call makes the function.
        if first.kind == "functions" and not CREATE.search(sql):
            return None
        return first.unit if first.kind != "other" else None

    @property
    def dropped(self) -> str | None:
        """The unit that the call drops."""
        found = DROPS.fullmatch(self.sql or "")
        if found is None:
            return None
        name = found["name"].removeprefix("orchestration.")
        if found["kind"] == "TRIGGER":
            name = f"{(found['table'] or '').removeprefix('orchestration.')}__{name}"
        return f"{found['kind'].lower()}s/{name}"

    @property
    def table(self) -> str | None:
        """The table of create_table or drop_table, or the table of a created index."""
        position = {"create_table": 0, "drop_table": 0, "create_index": 1}.get(self.name)
        if position is None:
            return None
        argument = self.call.args[position]
        assert isinstance(argument, ast.Constant)
        return str(argument.value)


@dataclass
class Revision:
    """One file of alembic/versions, with the edits that `save` makes."""

    path: Path
    text: str
    edits: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.path.name.partition("_")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    def calls(self) -> Iterator[Call]:
        for function in self.tree.body:
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if (
                        isinstance(node, ast.Expr)
                        and isinstance(node.value, ast.Call)
                        and isinstance(node.value.func, ast.Attribute)
                        and ast.unparse(node.value.func.value) == "op"
                    ):
                        yield Call(function.name, node.value.func.attr, node, node.value)

    def up(self) -> list[Call]:
        return [call for call in self.calls() if call.function != "downgrade"]

    def down(self) -> list[Call]:
        return [call for call in self.calls() if call.function == "downgrade"]

    def made(self) -> dict[str, Call]:
        """Return the call that makes each unit.

        Grants on a table are included only in the revision that creates the table.
        """
        tables = {call.table for call in self.up() if call.name == "create_table"}
        return {
            unit: call
            for call in self.up()
            if (unit := call.made) is not None
            and (not unit.startswith("grants/") or unit.partition("/")[2] in tables)
        }

    def replace(self, call: Call, lines: str) -> None:
        assert call.node.end_lineno is not None
        self.edits.append((call.node.lineno - 1, call.node.end_lineno, lines))

    def remove(self, call: Call) -> None:
        self.replace(call, "")

    def insert_before(self, call: Call, lines: str) -> None:
        self.edits.append((call.node.lineno - 1, call.node.lineno - 1, lines))

    def insert_after(self, call: Call, lines: str) -> None:
        assert call.node.end_lineno is not None
        self.edits.append((call.node.end_lineno, call.node.end_lineno, lines))

    def save(self) -> None:
        lines = self.text.splitlines()
        # Apply the edits from the end, so that no edit moves the lines of another. At one line,
        # apply a replacement first, and then the insertions from the last to the first.
        ranked = enumerate(self.edits)
        for _, (start, end, new) in sorted(
            ranked, key=lambda one: (-one[1][0], one[1][0] == one[1][1], -one[0])
        ):
            lines[start:end] = new.splitlines()
        self.text = without_empty_parts("\n".join(lines) + "\n")
        self.edits.clear()
        self.path.write_text(self.text, encoding="utf-8")
        formatted(self.path)
        self.text = self.path.read_text("utf-8")


def without_empty_parts(text: str) -> str:
    """Return the text without the functions that are now empty, and without their calls."""
    for name in EMPTY.findall(text):
        text = re.sub(
            rf"^def {name}\(\) -> None:\n|^    {name}\(\)\n", "", text, flags=re.MULTILINE
        )
    return text


def formatted(path: Path) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--quiet", "--fix", "--select", "I,F401", path], check=True)
    subprocess.run([*ruff, "format", "--quiet", path], check=True)


def revisions(folder: Path) -> list[Revision]:
    return [Revision(path, path.read_text("utf-8")) for path in sorted(folder.glob("*.py"))]


def makers(chain: list[Revision]) -> dict[str, list[tuple[Revision, Call]]]:
    """Return the revisions that make each unit, in order, each with its call."""
    found: dict[str, list[tuple[Revision, Call]]] = {}
    for revision in chain:
        for unit, call in revision.made().items():
            found.setdefault(unit, []).append((revision, call))
    return found


def stale(wanted: Mapping[str, str], chain: list[Revision]) -> dict[str, str]:
    """A sentence for each function, view, type and trigger whose text in the revisions is not the
    text of schema/current.

    Grants on tables are left to the comparison of the databases: a later revision may change them
    one by one.
    """
    found = makers(chain)
    sentences: dict[str, str] = {}
    for unit, text in sorted(wanted.items()):
        if not unit.startswith(("functions/", "views/", "types/", "triggers/")):
            continue
        if unit not in found:
            sentences[unit] = (
                f'{unit} is in schema/current and in no revision: run `make revision m="..."`'
            )
            continue
        revision, call = found[unit][-1]
        if creating(call.sql or "") != creating(text):
            sentences[unit] = (
                f"{unit} differs between schema/current and revision {revision.id}: run `make "
                f'revision rewrite={revision.id}`, or `make revision m="..."` if {revision.id} is '
                "released"
            )
    return sentences

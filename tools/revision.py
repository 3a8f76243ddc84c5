"""Writes a revision from the models and schema/current, or renews the text of one.

usage: python -m tools.revision m="what the revision brings"
       python -m tools.revision rewrite=NNNN|all

The author edits the models and schema/current. `m=` compares both with a database at head and
writes the next revision. `rewrite=` writes the same changes into a revision that is not released:
its functions, views, types, triggers and grants get the text of schema/current, and its tables are
rendered from the models if they differ. Objects that no revision makes are added to it, and objects
that schema/current no longer has are removed from it. `rewrite=all` renews every revision; new
objects go into the newest one.

Both run the result on scratch databases, compare them with schema/current, and renew
fingerprint.json, load.sql, versions.lock and REVISION.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Any

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Column, FetchedValue, create_engine, pool, text

from orchestration import models, schema
from orchestration.invariants import CATALOGUE
from tools import current, revision_text, scratch
from tools import schema as current_schema
from tools import versions as lock
from tools.revision_text import Call, Revision, execute

PACKAGE = current_schema.FOLDER / "__init__.py"
REVISION = re.compile(r'^REVISION = "(\d+)"$', re.MULTILINE)
INVARIANT = re.compile(r"INV-[A-Z]{3}-\d{3}")
UNITS = ("functions/", "views/", "types/", "triggers/")
ON_TABLE = re.compile(r"(?:ALTER TABLE|\bON) orchestration\.(\w+)")
SQL_FUNCTION = re.compile(r"^ ?LANGUAGE sql\b", re.MULTILINE)
TRIGGER_FUNCTION = re.compile(r"\bRETURNS trigger\b")
IMPORTS = {
    "sa.": "import sqlalchemy as sa",
    "postgresql.": "from sqlalchemy.dialects import postgresql",
}
FILE = '''"""{title}.

Serves: {serves}.
"""

from alembic import op

revision = "{id}"
down_revision = "{down}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
{up_lines}
    op.execute("UPDATE orchestration.schema_revision SET revision = '{id}'")
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute("SET LOCAL ROLE symphony_owner")
{down_lines}
    op.execute("UPDATE orchestration.schema_revision SET revision = '{down}'")
    op.execute("RESET ROLE")
'''

Picture = Mapping[str, str]
Grant = tuple[str, str]  # An object, and a line of its grants in a picture.


class Refused(RuntimeError):
    """The revision cannot be written."""


@dataclass(frozen=True)
class State:
    """The schema as files, as a database loaded from schema/current, and as a database at head."""

    units: Mapping[str, str]
    landed: Mapping[str, str]  # The text of every unit in the last revision that makes it.
    stale: set[str]
    wanted: Picture
    found: Picture
    loaded: URL
    head: URL

    @cached_property
    def differences(self) -> list[schema.Difference]:
        return schema.compare(self.wanted, self.found)

    @cached_property
    def kinds(self) -> dict[str, str]:
        return {difference.path: difference.kind for difference in self.differences}

    def tables(self, kind: str) -> set[str]:
        """Return the new tables (kind "missing") or the removed ones (kind "unexpected")."""
        return {
            path.partition("/")[2]
            for path, found in self.kinds.items()
            if found == kind and path.startswith("tables/")
        }

    def changed_tables(self) -> set[str]:
        """Return the tables whose columns, constraints, indexes or options differ."""
        return {
            table
            for difference in self.differences
            if difference.path.startswith(("tables/", "constraints/", "indexes/"))
            for table in self.tables_of(difference.path)
        }

    def tables_of(self, path: str) -> list[str]:
        if path.startswith("tables/"):
            return [path.partition("/")[2]]
        return ON_TABLE.findall(self.wanted.get(path) or self.found[path])[:1]


def state(at: scratch.Server) -> State:
    loaded, head = current_schema.loaded(at), current_schema.migrated(at)
    units = revision_text.units(current.read(current_schema.CURRENT))
    chain = revision_text.revisions(scratch.VERSIONS)
    return State(
        units,
        {
            unit: revision_text.creating(found[-1][1].sql or "")
            for unit, found in revision_text.makers(chain).items()
        },
        set(revision_text.stale(units, chain)),
        current_schema.picture(loaded),
        current_schema.picture(head),
        loaded,
        head,
    )


# Rewriting


def rewrite(named: str) -> None:
    chain = revision_text.revisions(scratch.VERSIONS)
    chosen = [one for one in chain if named in ("all", one.id)]
    if not chosen:
        raise Refused(f"alembic/versions has no revision {named}")
    with current_schema.server() as at:
        before = state(at)
        made = revision_text.makers(chain)
        for revision in chosen:
            renew(revision, before, made)
        renew_tables(chosen, chain, before)
        add_missing(chosen[-1], before, made)
        for revision in chosen:
            revision.save()
        finish(before.wanted)
        url = current_schema.migrated(at)
        first = chain.index(chosen[0])
        scratch.downgrade(url, chain[first - 1].id if first else "base", destroy_evidence=True)
        scratch.upgrade(url)
        after = current_schema.picture(url)
    left = list(current_schema.described(after, before.wanted, "the revisions", "schema/current"))
    chain = revision_text.revisions(scratch.VERSIONS)
    left += revision_text.stale(before.units, chain).values()
    if left:
        raise Refused("\n".join([*left, f"Revision {named} does not contain all of these changes"]))


def renew(
    revision: Revision, before: State, made: Mapping[str, list[tuple[Revision, Call]]]
) -> None:
    """Write the text of schema/current into a revision. Remove units that it no longer has."""
    for unit, call in revision.made().items():
        if made[unit][-1][0].id != revision.id:
            continue
        text = before.units.get(unit)
        if text is None:
            revision.remove(call)
            for drop in revision.down():
                if drop.dropped == unit:
                    revision.remove(drop)
            continue
        sql = call.sql or ""
        if revision_text.replacing(sql) == sql:
            text = revision_text.replacing(text)
        if sql != text:
            revision.replace(call, execute(text))


def renew_tables(chosen: list[Revision], chain: list[Revision], before: State) -> None:
    changed = before.changed_tables()
    for revision in chosen:
        for call in revision.up():
            if call.table not in changed or call.name not in ("create_table", "create_index"):
                continue
            assert call.table is not None
            if f"tables/{call.table}" in before.wanted and call.name == "create_table":
                revision.replace(call, created(call.table, before.wanted))
                require(revision, created(call.table, before.wanted))
            else:
                revision.remove(call)
        for call in revision.down():
            if call.name == "drop_table" and f"tables/{call.table}" not in before.wanted:
                revision.remove(call)
    known = {call.table for one in chain for call in one.up() if call.name == "create_table"}
    newest = chosen[-1]
    for table in sorted_tables(changed - known):
        require(newest, created(table, before.wanted))
        newest.insert_before(end_of_upgrade(newest), created(table, before.wanted))
        newest.insert_before(
            first_drop(newest), f'    op.drop_table("{table}", schema="orchestration")'
        )


def add_missing(
    revision: Revision, before: State, made: Mapping[str, list[tuple[Revision, Call]]]
) -> None:
    """Add the units that no revision makes yet."""
    own = {call.table for call in revision.up() if call.name == "create_table"}
    own |= before.tables("missing")
    units = {unit: text for unit, text in before.units.items() if unit not in made}
    missing = ordered(units)
    for unit in missing:
        revision.insert_before(end_of_upgrade(revision), execute(before.units[unit]))
    for unit in reversed(missing):
        if unit.startswith(("triggers/", "grants/")) and table_of(unit) in own:
            continue  # DROP TABLE drops it too.
        drop = execute(dropping(unit, before.units[unit]))
        if unit.startswith("functions/") and TRIGGER_FUNCTION.search(before.units[unit]):
            # DROP TABLE drops the triggers of this function. Only then can the function be dropped.
            revision.insert_before(end_of_downgrade(revision), drop)
        else:
            revision.insert_before(first_drop(revision), drop)


def table_of(unit: str) -> str:
    return unit.partition("/")[2].partition("__")[0]


def end_of_upgrade(revision: Revision) -> Call:
    """Return the statement before which new objects are inserted."""
    calls = [call for call in revision.up() if call.function == "upgrade" and call.sql]
    return next(
        (call for call in calls if (call.sql or "").startswith(revision_text.REVISION_ROW)),
        calls[-1],
    )


def end_of_downgrade(revision: Revision) -> Call:
    calls = [call for call in revision.down() if call.sql]
    return next(
        (
            call
            for call in calls
            if (call.sql or "").startswith((revision_text.REVISION_ROW, "RESET ROLE"))
        ),
        calls[-1],
    )


def first_drop(revision: Revision) -> Call:
    return next(
        (call for call in revision.down() if call.dropped or call.name.startswith("drop_")),
        end_of_downgrade(revision),
    )


def dropping(unit: str, text: str) -> str:
    kind, _, name = unit.partition("/")
    if kind == "triggers":
        table, _, trigger = name.partition("__")
        return f"DROP TRIGGER {trigger} ON orchestration.{table}"
    if kind == "grants":
        return f"REVOKE ALL ON orchestration.{name} FROM {', '.join(grantees(text))}"
    return f"DROP {kind.removesuffix('s').upper()} orchestration.{name}"


def grantees(text: str) -> list[str]:
    return sorted(set(re.findall(r"\bsymphony_\w+", text.replace("symphony_owner", ""))))


def sorted_tables(tables: Iterable[str]) -> list[str]:
    wanted = set(tables)
    return [table.name for table in models.Base.metadata.sorted_tables if table.name in wanted]


def created(name: str, wanted: Picture) -> str:
    """Return the lines that create a table of the models with its indexes.

    The columns are in the order of schema/current.
    """
    table = models.Base.metadata.tables.get(f"{models.Base.metadata.schema}.{name}")
    if table is None:
        raise Refused(f"schema/current has the table {name}, and the models do not")
    order = [line.partition(" ")[0] for line in wanted[f"tables/{name}"].splitlines()]
    operation = ops.CreateTableOp.from_table(table)
    columns = [without_assigned(one) for one in operation.columns if isinstance(one, Column)]
    rules = [one for one in operation.columns if not isinstance(one, Column)]
    if unknown := [column.name for column in columns if column.name not in order]:
        raise Refused(f"The models have columns of {name} that schema/current lacks: {unknown}")
    operation.columns = [
        *sorted(columns, key=lambda column: order.index(column.name)),
        *sorted(rules, key=lambda rule: str(rule.name)),
    ]
    indexes = [
        ops.CreateIndexOp.from_index(index)
        for index in sorted(table.indexes, key=lambda index: str(index.name))
    ]
    return rendered([operation, *indexes])


def without_assigned(column: Column[Any]) -> Column[Any]:
    """Return the column, without a default if a trigger assigns its value."""
    if type(column.server_default) is not FetchedValue:
        return column
    plain = column._copy()
    plain.server_default = None
    return plain


def rendered(operations: Sequence[ops.MigrateOperation]) -> str:
    """Return the lines that Alembic renders for the operations, without its comments."""
    code = render_python_code(
        ops.UpgradeOps(list(operations)),
        migration_context=MigrationContext.configure(dialect_name="postgresql"),
    )
    lines = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
    return "" if lines == ["    pass"] or lines == ["pass"] else indent("\n".join(lines))


def indent(lines: str) -> str:
    """Indent the lines as the body of a function."""
    return textwrap.indent(textwrap.dedent("    " + lines.lstrip()), "    ")


def require(revision: Revision, lines: str) -> None:
    """Add the imports that the rendered lines need."""
    for used, imported in IMPORTS.items():
        if used in lines and imported not in revision.text:
            at = next(
                number
                for number, line in enumerate(revision.text.splitlines())
                if line.startswith("from alembic import")
            )
            if not any(edit[2] == imported for edit in revision.edits):
                revision.edits.append((at, at, imported))


# A new revision


def write_new(title: str) -> str:
    last = revision_text.revisions(scratch.VERSIONS)[-1].id
    number = f"{int(last) + 1:04}"
    slug = "_".join(re.findall(r"[a-z0-9]+", title.lower()))[:40].strip("_")
    with current_schema.server() as at:
        before = state(at)
        if not before.differences and not before.stale:
            raise Refused("The revisions already create the schema in schema/current")
        up, down = Steps(before).lines()
        revision = Revision(
            scratch.VERSIONS / f"{number}_{slug}.py",
            FILE.format(
                title=title.rstrip("."),
                serves=", ".join(served(before)) or "name the invariants here",
                id=number,
                down=last,
                up_lines=up,
                down_lines=down,
            ),
        )
        require(revision, revision.text)
        revision.save()
        finish(before.wanted)
        prove(revision, last, before)
    return revision.path.name


def served(before: State) -> list[str]:
    """Return the invariants that changed objects name, or whose `enforced_by` names them."""
    paths = before.kinds.keys()
    texts = [before.wanted.get(path, "") + before.found.get(path, "") for path in paths]
    named = {id for one in texts for id in INVARIANT.findall(one)}
    return sorted(named | {one.id for one in CATALOGUE if paths & set(one.enforced_by)})


class Steps:
    """Builds the lines of upgrade and downgrade.

    upgrade first drops the objects that are removed or made again. Then it changes the tables and
    creates the new objects. downgrade does the same to restore the text of the earlier revisions.
    """

    def __init__(self, before: State) -> None:
        self.before = before
        paths = {path for path in before.kinds if path.startswith(UNITS)} | before.stale
        for path in before.kinds:
            # An object with a changed grant is written whole, so that its text equals its file.
            name = path.partition("/")[2]
            if path.startswith("grants/"):
                holders = {f"{kind}/{name}" for kind in ("functions", "views", "types")}
                paths |= holders & before.units.keys()
        self.new = {path: before.units[path] for path in paths if path in before.units}
        self.old = {path: before.landed[path] for path in paths if path in before.found}
        for table in before.tables("missing"):
            if granted := before.units.get(f"grants/{table}"):
                self.new[f"grants/{table}"] = granted
        self.replaced = {
            path for path in self.new.keys() & self.old.keys() if self.replaceable(path)
        }
        self.make_dependents_again()
        self.order = ordered(self.new, self.old)

    def replaceable(self, path: str) -> bool:
        """Return whether CREATE OR REPLACE can turn either definition into the other."""
        if path.startswith(("triggers/", "types/")):
            return False
        if path.startswith("views/"):
            wanted, found = columns(self.before.loaded, path), columns(self.before.head, path)
            return wanted == found
        wanted, found = (
            picture[path].partition("\n LANGUAGE ")[0]
            for picture in (self.before.wanted, self.before.found)
        )
        return wanted == found

    def make_dependents_again(self) -> None:
        """Also drop and make again each object that refers to a dropped definition."""
        waiting = list((self.new.keys() | self.old.keys()) - self.replaced)
        while waiting:
            kind, _, name = waiting.pop().partition("/")
            for path, one in self.before.units.items():
                if not path.startswith(("functions/", "views/")) or path not in self.before.found:
                    continue
                if name in references(one):
                    again = path in self.replaced or path not in self.new
                    if again and path.partition("/")[2] != name:
                        self.replaced.discard(path)
                        self.new[path] = one
                        self.old[path] = self.before.landed[path]
                        waiting.append(path)
                elif kind == "types" and path not in self.new and name in references_in_body(one):
                    # Sessions keep the type of a PL/pgSQL variable until the function is replaced.
                    self.new[path] = one
                    self.old[path] = self.before.landed[path]
                    self.replaced.add(path)

    def lines(self) -> tuple[str, str]:
        (gained, lost), new, gone = self.grants(), "missing", "unexpected"
        up, down = self.tables()
        return (
            self.one_way(self.old, self.new, gone, lost, up, gained),
            self.one_way(self.new, self.old, new, gained, down, lost),
        )

    def one_way(
        self,
        old: Mapping[str, str],
        new: Mapping[str, str],
        gone: str,
        lost: Sequence[Grant],
        tables: str,
        gained: Sequence[Grant],
    ) -> str:
        with_table = self.before.tables(gone)
        early = [
            revoking(self.target(name), line)
            for name, line in lost
            if name.partition("__")[0] not in with_table
        ]
        late: list[str] = []
        for path in reversed(self.order):
            if path not in old or path in self.replaced:
                continue
            if path.startswith(("triggers/", "grants/")) and table_of(path) in with_table:
                continue
            # DROP TABLE drops the triggers. Only then can their functions be dropped.
            after = path.startswith("functions/") and TRIGGER_FUNCTION.search(old[path])
            (late if after else early).append(dropping(path, old[path]))
        made = [
            revision_text.replacing(new[path]) if path in self.replaced else new[path]
            for path in self.order
            if path in new
        ]
        whole = {path.partition("/")[2] for path in self.replaced}
        granted = [granting(self.target(name), line) for name, line in gained if name not in whole]
        parts = [*map(execute, early), tables, *map(execute, [*late, *made, *granted])]
        return "\n".join(filter(None, parts))

    def grants(self) -> tuple[list[Grant], list[Grant]]:
        """Return the grants that existing objects gain, and those that they lose."""
        gained: list[Grant] = []
        lost: list[Grant] = []
        again = (self.new.keys() | self.old.keys()) - self.replaced
        made_again = {path.partition("/")[2] for path in again if not path.startswith("triggers/")}
        for path in self.before.kinds:
            name = path.partition("/")[2]
            if not path.startswith("grants/") or name in made_again:
                continue
            if name in ("schema", "default_privileges"):
                raise Refused(f"{path} differs: write its GRANT or REVOKE by hand")
            wanted = set(self.before.wanted.get(path, "").splitlines())
            found = set(self.before.found.get(path, "").splitlines())
            gained += [(name, line) for line in sorted(wanted - found)]
            lost += [(name, line) for line in sorted(found - wanted)]
        return gained, lost

    def target(self, name: str) -> str:
        for kind in ("functions", "types"):
            if f"{kind}/{name}" in self.before.units:
                return f"{kind.removesuffix('s').upper()} orchestration.{name}"
        return f"orchestration.{name}"

    def tables(self) -> tuple[str, str]:
        """Return the lines that change the tables, for upgrade and for downgrade.

        Alembic finds most changes between the models and the database at head. It does not notice a
        constraint or an index of which only the text changed, so those are dropped and made again.
        """
        new = self.before.tables("missing")
        rewritten = [
            path
            for path, kind in self.before.kinds.items()
            if kind == "changed" and path.startswith(("constraints/", "indexes/"))
        ]
        left_out = new | {path.partition("/")[2] for path in rewritten}
        with create_engine(self.before.head, poolclass=pool.NullPool).connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "target_metadata": models.Base.metadata,
                    "version_table_schema": models.Base.metadata.schema,
                    "include_schemas": True,
                    "include_name": only_ours,
                    "compare_type": True,
                    "compare_server_default": True,
                    "autogenerate_plugins": [
                        "alembic.autogenerate.*",
                        "alembic.ext.checkconstraint_byname",
                    ],
                },
            )
            script = produce_migrations(context, models.Base.metadata)
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None
        up = rendered(kept(script.upgrade_ops, left_out))
        down = rendered(kept(script.downgrade_ops, left_out))
        made = [created(table, self.before.wanted) for table in sorted_tables(new)]
        dropped = [
            f'    op.drop_table("{table}", schema="orchestration")'
            for table in reversed(sorted_tables(new))
        ]
        up_again = [execute(rewriting(path, self.before.wanted)) for path in rewritten]
        down_again = [execute(rewriting(path, self.before.found)) for path in rewritten]
        return (
            "\n".join(filter(None, [up, *made, *up_again])),
            "\n".join(filter(None, [*down_again, *dropped, down])),
        )


def only_ours(name: str | None, type_: str, parent_names: object) -> bool:
    return type_ != "schema" or name == models.Base.metadata.schema


def kept(operations: ops.OpContainer, left_out: set[str]) -> list[ops.MigrateOperation]:
    """Return the operations, except those on these tables, constraints and indexes."""
    found: list[ops.MigrateOperation] = []
    for one in operations.ops:
        names = {
            getattr(one, attribute, None)
            for attribute in ("table_name", "index_name", "constraint_name")
        }
        if isinstance(one, ops.OpContainer):
            found += kept(one, left_out) if not names & left_out else []
        elif not names & left_out:
            if isinstance(one, ops.AddColumnOp):
                one.column = without_assigned(one.column)
            found.append(one)
    return found


def rewriting(path: str, picture: Picture) -> str:
    """Return the SQL that drops a constraint or an index and creates it as in this picture."""
    kind, _, name = path.partition("/")
    text = picture[path].removesuffix(";")
    if kind == "indexes":
        return f"DROP INDEX orchestration.{name};\n{text}"
    [table] = ON_TABLE.findall(text)[:1]
    return f"ALTER TABLE orchestration.{table} DROP CONSTRAINT {name};\n{text}"


def granting(target: str, line: str) -> str:
    return "GRANT {} ON {} TO {}{}".format(*parts(target, line))


def revoking(target: str, line: str) -> str:
    return "REVOKE {} ON {} FROM {}".format(*parts(target, line))


def parts(target: str, line: str) -> tuple[str, str, str, str]:
    """Return privilege, object, role and option of a line such as `role: SELECT`."""
    role, _, privilege = line.partition(": ")
    option = " WITH GRANT OPTION" if privilege.endswith(" with grant option") else ""
    privilege = privilege.removesuffix(" with grant option")
    table, _, column = target.partition("__")
    if column:
        return f"{privilege} ({column})", table, role, option
    return privilege, target, role, option


def references(text: str) -> set[str]:
    """What must exist as long as the object does."""
    return set(current.REFERENCE.findall(current.without(text, "comment", "string", "body")))


def references_in_body(text: str) -> set[str]:
    return set(current.REFERENCE.findall(current.without(text, "comment", "string")))


def needs(text: str) -> set[str]:
    """What must exist when the object is made: a revision checks the body of a SQL function."""
    if SQL_FUNCTION.search(text):
        text = text.replace("$$", "").replace("$function$", "")
    return references(text)


def types(text: str, paths: Iterable[str]) -> set[str]:
    """The types among these units that a body names: a PL/pgSQL variable needs its type."""
    return {name for name in references_in_body(text) if f"types/{name}" in paths}


def ordered(*sides: Mapping[str, str]) -> list[str]:
    """Return the units in an order in which each comes after the units that it refers to."""
    paths = sorted({path for side in sides for path in side})
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.partition("/")[2], []).append(path)
    graph = {
        path: {
            other
            for side in sides
            for name in needs(side.get(path, "")) | types(side.get(path, ""), paths)
            for other in by_name.get(name, [])
            if other != path
        }
        for path in paths
    }
    return list(TopologicalSorter(graph).static_order())


def columns(url: URL, path: str) -> list[tuple[str, str]]:
    query = text(
        "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = to_regclass(:name) AND attnum > 0 ORDER BY attnum"
    )
    name = f"orchestration.{path.partition('/')[2]}"
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        return [(row[0], row[1]) for row in connection.execute(query, {"name": name})]


def prove(revision: Revision, last: str, before: State) -> None:
    """Run the revision up, down and up. Compare each result with the schema that it should make."""
    for step, wanted, name in (
        ("upgrade", before.wanted, "schema/current"),
        ("downgrade", before.found, f"revision {last}"),
        ("upgrade", before.wanted, "schema/current"),
    ):
        if step == "upgrade":
            scratch.upgrade(before.head)
        else:
            scratch.downgrade(before.head, last, destroy_evidence=True)
        after = current_schema.picture(before.head)
        if left := list(current_schema.described(after, wanted, f"after the {step}", name)):
            raise Refused(
                "\n".join(
                    [*left, f"{revision.path.name} was written, but its {step} is wrong: see above"]
                )
            )


def finish(wanted: Picture) -> None:
    """Renew the files that are generated from schema/current and from the revisions."""
    current_schema.write_generated(wanted)
    lock.main("write")
    newest = revision_text.revisions(scratch.VERSIONS)[-1].id
    package = PACKAGE.read_text("utf-8")
    PACKAGE.write_text(REVISION.sub(f'REVISION = "{newest}"', package), encoding="utf-8")


def main(arguments: list[str]) -> int:
    match [argument.partition("=")[::2] for argument in arguments]:
        case [("m", title)] if title:
            print(f"alembic/versions/{write_new(title)}")
        case [("rewrite", named)] if named:
            rewrite(named)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Refused, current.InvalidFiles) as error:
        sys.exit(str(error))

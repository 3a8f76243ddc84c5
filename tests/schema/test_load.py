"""schema/current is SQL that runs: it loads into an empty database and makes what the revisions
make."""

import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from tools import current, revision_text, scratch
from tools import schema as current_schema
from tools.schema import CURRENT

from orchestration import schema

FILES = current.read(CURRENT)


@pytest.fixture
def empty(server: scratch.Server) -> Iterator[URL]:
    name = scratch.PREFIX + secrets.token_hex(8)
    yield scratch.create_database(server, name)
    scratch.drop_database(server, name)


def test_the_files_make_what_the_revisions_make(empty: URL, database: scratch.Database) -> None:
    current_schema.load(empty)
    loaded = current_schema.picture(empty)
    assert schema.compare(loaded, current_schema.picture(database.url)) == []
    assert schema.compare(schema.expected(), loaded) == []


def test_psql_alone_loads_them(empty: URL) -> None:
    url = empty.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(
        [
            scratch.programs() / "psql",
            "--no-psqlrc",
            "--quiet",
            "-d",
            url,
            "-f",
            CURRENT / "load.sql",
        ],
        check=True,
    )
    assert schema.compare(schema.expected(), current_schema.picture(empty)) == []


def test_every_file_is_loaded() -> None:
    found = {str(file.relative_to(CURRENT)) for file in CURRENT.rglob("*") if file.is_file()}
    included = re.findall(r"^\\ir (.*)$", (CURRENT / "load.sql").read_text("utf-8"), re.MULTILINE)
    assert sorted(included) == sorted(found - {"load.sql"})
    assert (CURRENT / "load.sql").read_text("utf-8") == current.load_script(FILES)


def test_a_file_comes_after_those_that_it_refers_to() -> None:
    files = {
        "views/newest": "CREATE VIEW orchestration.newest AS SELECT FROM orchestration.items",
        "tables/items": "CREATE TABLE orchestration.items (n int CHECK (orchestration.small(n)))",
        "functions/small": "CREATE FUNCTION orchestration.small() RETURNS boolean"
        " AS $$ SELECT FROM orchestration.newest $$; -- orchestration.items",
    }
    assert current.order(files) == ["functions/small", "tables/items", "views/newest"]


def test_files_that_refer_to_each_other_are_named() -> None:
    files = {
        "views/one": "CREATE VIEW orchestration.one AS SELECT FROM orchestration.two",
        "views/two": "CREATE VIEW orchestration.two AS SELECT FROM orchestration.one",
    }
    with pytest.raises(current.InvalidFiles, match=r"in a circle: views/(one|two) -> "):
        current.order(files)


def test_a_file_that_does_not_load_is_named(empty: URL, tmp_path: Path) -> None:
    folder = shutil.copytree(CURRENT, tmp_path / "current")
    file = folder / "views" / "kill_switch_state.sql"
    file.write_text(file.read_text("utf-8").replace("k.reason", "k.cause"), encoding="utf-8")
    with (
        pytest.raises(
            current.InvalidFiles, match=r"schema/current/views/kill_switch_state\.sql: .*cause"
        ),
        current_schema.connected(empty) as connection,
    ):
        current.load(connection, folder)


def test_a_file_holds_what_its_name_says() -> None:
    for path, text in FILES.items():
        kind, _, name = path.partition("/")
        units = {statement.unit for statement in current.statements(text)}
        if kind == "functions":
            assert units == {path}
        elif kind == "views":
            assert units <= {path, f"grants/{name}"}
        else:
            others = {unit for unit in units if not unit.startswith(f"triggers/{name}__")}
            assert others <= {path, f"grants/{name}"}


def test_the_revisions_have_the_text_of_the_files() -> None:
    chain = revision_text.revisions(scratch.VERSIONS)
    assert revision_text.stale(revision_text.units(FILES), chain) == {}


def test_an_edited_function_is_named_with_what_to_run() -> None:
    chain = revision_text.revisions(scratch.VERSIONS)
    edited = {**revision_text.units(FILES), "functions/lock_gate": "CREATE FUNCTION lock_gate()"}
    [sentence] = revision_text.stale(edited, chain).values()
    assert sentence.startswith(
        "functions/lock_gate differs between schema/current and revision 0001: "
        "run `make revision rewrite=0001`"
    )


@pytest.mark.parametrize(
    "path", [path for path, text in FILES.items() if re.search(r"^SET (enable|plan)_", text, re.M)]
)
def test_a_function_that_steers_the_planner_says_why(path: str) -> None:
    _, body = FILES[path].split("AS $$", 1)
    for setting in re.findall(r"^SET ((?:enable|plan)_\w+)", FILES[path], re.M):
        assert re.search(rf"^ *-- .*\b{setting}\b", body, re.M), setting

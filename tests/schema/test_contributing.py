"""The commands in CONTRIBUTING.md exist, and those that load the schema load it."""

import importlib.util
import re
import secrets
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from tools import schema as current_schema
from tools import scratch

from orchestration import schema

TEXT = (scratch.ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"^    (\S.*)$", TEXT, re.MULTILINE)
CODE = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", TEXT)]
COMMANDS = sorted({one for one in (*BLOCKS, *CODE) if one.startswith(("make", ".venv/", "psql "))})
PATHS = sorted(
    {
        path
        for path in re.findall(r"[\w.<>]+(?:/[\w.<>]+)+", "\n".join((*BLOCKS, *CODE)))
        if path.startswith(("src/", "tests/", "tools/", "alembic/", "orchestration/", ".ci/"))
    }
)
MAKES = [shlex.split(command) for command in COMMANDS if command.partition(" ")[0] == "make"]
PROGRAMS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def empty(server: scratch.Server) -> Iterator[URL]:
    name = scratch.PREFIX + secrets.token_hex(8)
    yield scratch.create_database(server, name)
    scratch.drop_database(server, name)


def recipe(command: list[str]) -> str:
    """What make would run, with the install that it may want first left out."""
    ran = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/.ready", *command[1:]],
        cwd=scratch.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def usage(module: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=scratch.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_the_text_has_commands_and_paths() -> None:
    assert {"make check", "make fix", "make matrix", "make sql-lint"} <= set(COMMANDS)
    assert "tools/servers.lock" in PATHS


@pytest.mark.parametrize("command", MAKES, ids=shlex.join)
def test_make_has_the_target_and_what_it_runs_is_there(command: list[str]) -> None:
    lines = recipe(command)
    for module in re.findall(r"bin/python -m ([\w.]+)", lines):
        assert importlib.util.find_spec(module), module
    for program in re.findall(r"\.venv/bin/([\w-]+)", lines):
        assert (PROGRAMS / program).exists(), program
    for path in re.findall(r"(?<![\w/.])(?:tools|tests)/[\w./]+", lines):
        assert (scratch.ROOT / path).exists(), path


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_there(path: str) -> None:
    pattern = re.sub(r"<\w+>", "*", path)
    assert list(scratch.ROOT.glob(pattern)), path


def test_the_tools_take_the_arguments_that_the_text_gives_them() -> None:
    mutants = usage("tools.mutants")
    for option in set(re.findall(r"(?<!\S)--[a-z]+", "\n".join((*BLOCKS, *CODE)))):
        assert option in mutants
    assert "tools.servers test VERSION... [-- PYTEST ARGUMENTS]" in usage("tools.servers")
    assert {"m=", "rewrite="} <= set(re.findall(r"\b(?:m|rewrite)=", usage("tools.revision")))


def test_the_commands_that_load_the_schema_load_it(empty: URL) -> None:
    loads = [line for line in BLOCKS if "load" in line]
    assert len(loads) == 2
    plain = empty.set(drivername="postgresql").render_as_string(hide_password=False)
    [psql] = [shlex.split(line) for line in loads if line.startswith("psql ")]
    psql[0] = str(scratch.programs() / "psql")
    psql[psql.index("my_database")] = plain
    [tool] = [shlex.split(line) for line in loads if line.startswith(".venv/bin/python ")]
    tool[0] = sys.executable
    tool[-1] = empty.render_as_string(hide_password=False)
    subprocess.run([*psql, "--quiet"], cwd=scratch.ROOT, check=True)
    assert schema.compare(schema.expected(), current_schema.picture(empty)) == []
    with current_schema.connected(empty) as connection:
        connection.exec_driver_sql("DROP SCHEMA orchestration CASCADE")
        connection.commit()
    subprocess.run(tool, cwd=scratch.ROOT, check=True)
    assert schema.compare(schema.expected(), current_schema.picture(empty)) == []

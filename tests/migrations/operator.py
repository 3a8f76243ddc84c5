"""The tools of whoever upgrades: `alembic` and `psql` as processes, and scripts of `--sql`."""

import io
import os
import subprocess
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL
from tools import scratch

PAGE = (scratch.ROOT / "docs" / "migrations.md").read_text("utf-8").splitlines()
"""What a DBA reads; each sentence that an upgrade prints has a line to itself."""


def on_the_page(told: str, **names: str) -> bool:
    """Whether the page shows this sentence, with its own names for these."""
    for name, found in names.items():
        told = told.replace(found, name)
    return told in PAGE


def alembic(*arguments: str, database_url: URL | None = None) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if database_url is not None:
        environment["DATABASE_URL"] = database_url.render_as_string(hide_password=False)
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=scratch.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failures(processes: "list[subprocess.Popen[str]]") -> list[str]:
    """What those said that did not end with 0, once all have ended."""
    said = ["".join(ended(process)) for process in processes]
    return [
        words for words, process in zip(said, processes, strict=True) if process.returncode != 0
    ]


def ended(process: "subprocess.Popen[str]", *, within: float = 300.0) -> tuple[str, str]:
    """What a process said that ends by itself; one that does not is ended, and fails the test."""
    try:
        return process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


def ini(folder: Path, *version_locations: Path) -> Path:
    """A copy of alembic.ini in this folder, with more folders of revisions beside ours."""
    original = (scratch.ROOT / "alembic.ini").read_text("utf-8")
    places = "".join(f"\n    {place}" for place in version_locations)
    if places:
        ours = f"version_locations =\n    {scratch.ROOT / 'alembic' / 'versions'}{places}"
        original = original.replace("[alembic]", f"[alembic]\n{ours}")
    copy = folder / "alembic.ini"
    copy.write_text(original.replace("%(here)s", str(scratch.ROOT)), "utf-8")
    return copy


def script(verb: str, revisions: str, *, destroy_evidence: bool = False) -> str:
    """What `alembic upgrade` or `downgrade` with `--sql` prints."""
    printed = io.StringIO()
    x = ["destroy-evidence=yes"] if destroy_evidence else []
    config = scratch.alembic_config(URL.create("postgresql+psycopg"), x=x)
    config.output_buffer = printed
    act(config, verb, revisions, sql=True)
    return printed.getvalue()


def statements(script: str) -> str:
    """What is not psql's own, for another client that leaves it at the first error."""
    first, _, rest = script.partition("\n")
    assert first == r"\set ON_ERROR_STOP on"
    return rest


def act(config: Config, verb: str, revisions: str, *, sql: bool = False) -> None:
    (command.upgrade if verb == "upgrade" else command.downgrade)(config, revisions, sql=sql)


def psql(url: URL, statements: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A DBA loads a script, which tells psql to leave it at the first error."""
    file = folder / "script.sql"
    file.write_text(statements, "utf-8")
    return subprocess.run(
        [
            *(str(scratch.programs() / "psql"), "-X", "-q", "-f", str(file)),
            url.set(drivername="postgresql").render_as_string(hide_password=False),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def sentence(refused: "subprocess.CompletedProcess[str]") -> str:
    """The one error that psql told; what follows it says where."""
    assert refused.returncode == 3, refused.stdout + refused.stderr
    [told] = [line for line in refused.stderr.splitlines() if "ERROR:" in line]
    return told.partition("ERROR:")[2].strip()

"""tools.revision, in a copy of the project: what it writes goes up, down and up."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL
from tests.migrations import test_text as rules
from tools import scratch
from tools.schema import picture

from orchestration import schema

TABLE = "participant_outbox_sequences"
FUNCTION = """-- Counts the participants with a note.
CREATE FUNCTION orchestration.noted(p_pattern text DEFAULT '\\d:number') RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
  SELECT count(*) FROM orchestration.participant_notes n WHERE n.note ~ p_pattern
$$;

ALTER FUNCTION orchestration.noted OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.noted FROM PUBLIC;
GRANT EXECUTE ON FUNCTION orchestration.noted TO symphony_control;
"""
TRIGGER_FUNCTION = """CREATE FUNCTION orchestration.trim_note() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  NEW.note := btrim(NEW.note);
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.trim_note OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.trim_note FROM PUBLIC;
"""
TRIGGER = """
CREATE TRIGGER trim_note BEFORE INSERT OR UPDATE ON orchestration.participant_outbox_sequences
FOR EACH ROW EXECUTE FUNCTION orchestration.trim_note();
ALTER TABLE orchestration.participant_outbox_sequences ENABLE ALWAYS TRIGGER trim_note;

ALTER TABLE"""
VIEW = """CREATE VIEW orchestration.participant_notes
WITH (security_invoker = true)
AS
SELECT s.participant_id, s.note
FROM orchestration.participant_outbox_sequences s;

ALTER VIEW orchestration.participant_notes OWNER TO symphony_owner;
GRANT SELECT ON orchestration.participant_notes TO symphony_control, symphony_auditor;
"""
TYPE = """CREATE TYPE orchestration.new_note AS (participant_id text, note text);

ALTER TYPE orchestration.new_note OWNER TO symphony_owner;
REVOKE USAGE ON TYPE orchestration.new_note FROM PUBLIC;
"""


@dataclass(frozen=True)
class Project:
    """A copy of what the tool reads and writes."""

    root: Path

    @property
    def package(self) -> Path:
        return self.root / "src" / "orchestration"

    @property
    def current(self) -> Path:
        return self.package / "schema" / "current"

    @property
    def revisions(self) -> dict[str, str]:
        folder = self.root / "alembic" / "versions"
        return {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.py"))}

    @property
    def fingerprint(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.package / "schema/fingerprint.json").read_text())
        return found

    def edit(self, file: Path, old: str, new: str) -> None:
        text = file.read_text("utf-8")
        assert old in text, (file, old)
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    def run(self, *command: str, url: URL | None = None) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src")}
        if url is not None:
            environment["DATABASE_URL"] = url.render_as_string(hide_password=False)
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def succeed(self, *command: str, url: URL | None = None) -> None:
        ran = self.run(*command, url=url)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for name in ("alembic", "src", "tools"):
        shutil.copytree(scratch.ROOT / name, tmp_path / name)
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(scratch.ROOT / name, tmp_path / name)
    return Project(tmp_path)


@pytest.fixture
def empty(server: scratch.Server) -> Iterator[URL]:
    name = scratch.PREFIX + secrets.token_hex(8)
    yield scratch.create_database(server, name)
    scratch.drop_database(server, name)


def make_objects(project: Project) -> None:
    """A column with its CHECK and index, a function, a trigger, a view, a type and grants."""
    project.edit(
        project.package / "models" / "outbox.py",
        'CheckConstraint("next_sequence_id >= 1", name="next_sequence_id"),\n',
        'CheckConstraint("next_sequence_id >= 1", name="next_sequence_id"),\n'
        '        CheckConstraint("note <> \'\'", name="note"),\n'
        '        Index(None, "note"),\n',
    )
    project.edit(
        project.package / "models" / "outbox.py",
        'next_sequence_id: Mapped[int] = mapped_column(server_default=text("1"))\n',
        'next_sequence_id: Mapped[int] = mapped_column(server_default=text("1"))\n'
        "    note: Mapped[str | None]\n",
    )
    table = project.current / "tables" / f"{TABLE}.sql"
    project.edit(
        table,
        "  next_sequence_id bigint DEFAULT 1 NOT NULL,\n",
        "  next_sequence_id bigint DEFAULT 1 NOT NULL,\n  note text,\n"
        f"  CONSTRAINT ck_{TABLE}_note CHECK (note <> ''),\n",
    )
    project.edit(
        table,
        "\nALTER TABLE",
        f"\nCREATE INDEX ix_{TABLE}_note ON orchestration.{TABLE} (note);\n{TRIGGER}",
    )
    project.edit(table, "TO symphony_control,", "TO symphony_readonly, symphony_control,")
    (project.current / "functions" / "noted.sql").write_text(FUNCTION, encoding="utf-8")
    (project.current / "functions" / "trim_note.sql").write_text(TRIGGER_FUNCTION, encoding="utf-8")
    (project.current / "views" / "participant_notes.sql").write_text(VIEW, encoding="utf-8")
    (project.current / "types" / "new_note.sql").write_text(TYPE, encoding="utf-8")


def change_objects(project: Project) -> None:
    """A body, a signature, a type, a result view, a CHECK, a trigger and a grant less."""
    project.edit(
        project.current / "types" / "new_outbox_item.sql",
        "  context jsonb\n",
        "  context jsonb,\n  note text\n",
    )
    functions, views, tables = (project.current / kind for kind in ("functions", "views", "tables"))
    project.edit(functions / "lock_gate.sql", "AS $$\n", "AS $$\n-- Another reason.\n")
    project.edit(
        functions / "stopped_targets.sql",
        "stopped_targets(p_scope text)",
        "stopped_targets(p_scope text, p_limit bigint DEFAULT NULL)",
    )
    project.edit(
        views / "policy_version_result.sql", "false AS replayed", "false AS replayed, 1 AS version"
    )
    project.edit(
        project.package / "models" / "outbox.py",
        'CheckConstraint("attempt_count >= 0"',
        'CheckConstraint("attempt_count >= -1"',
    )
    project.edit(
        tables / "payment_outbox_pending.sql",
        "CHECK (attempt_count >= 0)",
        "CHECK (attempt_count >= -1)",
    )
    project.edit(
        tables / "payment_outbox_items.sql",
        "ALTER TABLE orchestration.payment_outbox_items ENABLE ALWAYS TRIGGER kill_switch;\n",
        "",
    )
    project.edit(functions / "gate_holders.sql", "symphony_readonly, ", "")
    (views / "payment_outbox_depth.sql").unlink()


def test_a_new_revision_makes_changes_and_removes_objects(project: Project, empty: URL) -> None:
    landed = project.revisions
    make_objects(project)
    change_objects(project)

    project.succeed("tools.revision", "m=Notes of participants")

    assert project.revisions.items() > landed.items()
    [name] = project.revisions.keys() - landed.keys()
    assert name == "0012_notes_of_participants.py"
    text = project.revisions[name]
    assert 'op.add_column("participant_outbox_sequences"' in text.replace("(\n        ", "(")
    written = project.root / "alembic" / "versions" / name
    rules.test_a_revision_imports_only_alembic_sqlalchemy_and_the_standard_library(written)
    rules.test_a_revision_assembles_no_text(written)
    rules.test_a_revision_opens_with_what_it_serves(written)
    project.succeed("tools.schema", "check")
    project.succeed("tools.versions", "check")
    project.succeed("alembic", "upgrade", "head", url=empty)
    assert picture(empty) == project.fingerprint != schema.expected()
    project.succeed("alembic", "downgrade", landed_head(landed), url=empty)
    assert picture(empty) == schema.expected()
    project.succeed("alembic", "upgrade", "head", url=empty)
    assert picture(empty) == project.fingerprint


def test_a_revision_that_is_not_released_is_renewed_in_place(project: Project, empty: URL) -> None:
    landed, outbox = project.revisions, "0009_outbox.py"
    files = shutil.copytree(project.package, project.root / "kept")
    make_objects(project)

    project.succeed("tools.revision", "rewrite=0009")

    changed = {name for name, text in project.revisions.items() if landed.get(name) != text}
    assert changed == {outbox}
    project.succeed("tools.schema", "check")
    project.succeed("alembic", "upgrade", "head", url=empty)
    assert picture(empty) == project.fingerprint != schema.expected()
    project.succeed("alembic", "-x", "destroy-evidence=yes", "downgrade", "0008", url=empty)
    project.succeed("alembic", "upgrade", "head", url=empty)
    assert picture(empty) == project.fingerprint

    shutil.rmtree(project.package)
    files.rename(project.package)
    project.succeed("tools.revision", "rewrite=0009")
    project.succeed("tools.schema", "check")
    assert project.fingerprint == schema.expected()


def test_a_change_to_another_revision_s_object_is_not_forgotten(project: Project) -> None:
    project.edit(project.current / "functions" / "lock_gate.sql", "AS $$\n", "AS $$\n-- Why.\n")
    ran = project.run("tools.revision", "rewrite=0009")
    assert ran.returncode == 1
    assert "functions/lock_gate differs between schema/current and revision 0001" in ran.stderr


def landed_head(landed: dict[str, str]) -> str:
    return max(landed).partition("_")[0]

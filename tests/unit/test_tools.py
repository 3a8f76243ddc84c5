"""What the project runs on itself says what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from tools import scratch, versions


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what `alembic revision` and `make install` work on."""
    for name in ("alembic.ini", "pyproject.toml", "requirements.lock", "Makefile"):
        shutil.copy(scratch.ROOT / name, tmp_path)
    shutil.copytree(scratch.ROOT / "alembic", tmp_path / "alembic")
    return tmp_path


def test_a_new_revision_passes_make_format_and_make_lint(project: Path) -> None:
    config = Config(project / "alembic.ini")
    command.revision(config, message="a revision", rev_id="9999")
    [made] = (project / "alembic" / "versions").glob("9999_*.py")
    for check in (("format", "--check"), ("check",)):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", str(made)],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_revision_s_digest_is_landed_new_edited_or_gone() -> None:
    assert versions.complaints({"0001": "a"}, {"0001": "a"}) == []
    new, edited, gone = versions.complaints({"0001": "a", "0002": "b"}, {"0001": "x", "0000": "y"})
    assert new == "revision 0002 is new: run `python -m tools.versions write`"
    assert edited.startswith("revision 0001 was edited: restore it and make a new revision, or")
    assert gone.startswith("revision 0000 is gone: restore it, or")


def test_writing_the_lock_lands_what_is_there(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "VERSIONS", project / "alembic" / "versions")
    monkeypatch.setattr(versions, "LOCK", project / "alembic" / "versions.lock")
    (versions.VERSIONS / "9999_new.py").write_text("", "utf-8")
    assert versions.main("check") == 1
    assert "revision 9999 is new" in capsys.readouterr().out
    assert versions.main("write") == 0
    assert versions.main("check") == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "python", ["echo Python 3.10.12; exit 1", "echo Python 3.12.3; test $1 != -m", "exit 127"]
)
def test_make_leaves_no_venv_of_an_unfit_python(project: Path, python: str) -> None:
    unfit = project / "python"
    unfit.write_text(f"#!/bin/sh\n{python}\n", "utf-8")
    unfit.chmod(0o755)
    ran = subprocess.run(
        ["make", "install", f"PYTHON={unfit}"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert ("Python 3.11 or later is needed" in ran.stderr) == ("test" not in python)
    assert not (project / ".venv").exists()

"""Lints the SQL of src/orchestration/schema/current and of the revisions.

usage: python -m tools.sql_lint

sqlfluff checks spelling and layout; its rules are in pyproject.toml. pgspot looks for names that a
caller's search_path or temporary objects could change, also inside the bodies of functions. squawk
reads the tables and the script that `alembic upgrade head --sql` prints, and looks for statements
that would lock or break a database in use.
"""

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools import current, scratch
from tools.schema import CURRENT

PROGRAMS = Path(sysconfig.get_path("scripts"))
PYPROJECT = scratch.ROOT / "pyproject.toml"
UNREAD_BODIES = {
    # These bodies assign to a field of a table's row type. pgspot does not know the fields of a
    # table and stops with "is not a known variable".
    CURRENT / "functions" / "lock_instruction.sql",
    CURRENT / "functions" / "record_intervention.sql",
}
LEFT_OUT = {
    # Each of these columns counts within one item, instruction or credential, or is a duration.
    "prefer-bigint-over-int",
    # A revision runs in one transaction, so one that fails leaves nothing that could be in the way.
    "prefer-robust-stmts",
    # Alembic defines the only varchar column, alembic_version.version_num.
    "prefer-text-field",
}
LEFT_OUT_FOR_TABLES = {
    # The files are loaded into an empty database, in which no session waits for a lock.
    "require-lock-timeout",
    "require-statement-timeout",
}


def sqlfluff(files: Sequence[Path]) -> list[str]:
    """The findings of sqlfluff. It does not parse a body between $$."""
    ran = run("sqlfluff", "lint", "--config", PYPROJECT, "--processes", "0", "--nocolor", *files)
    return ran.stdout.splitlines() or ran.stderr.splitlines() if ran.returncode else []


def pgspot(files: Sequence[Path]) -> list[str]:
    """The findings of pgspot for files that are loaded after roles.sql.

    pgspot accepts `SET search_path = pg_catalog, orchestration, pg_temp` because roles.sql creates
    the schema: no other user can create objects in it. pgspot cannot read SQL-standard bodies.
    PostgreSQL resolves their names when it creates the function, so a caller's search_path has no
    effect on them.
    """
    roles = CURRENT / current.ROLES
    readable = [file for file in files if file.parent.name != "functions" or has_string_body(file)]
    unread = [file for file in readable if file in UNREAD_BODIES]
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.sql"
        start.write_text(current.SEARCH_PATH + ";\n", encoding="utf-8")
        for option, chosen in (
            ("--plpgsql", [file for file in readable if file not in unread]),
            ("--no-plpgsql", unread),
        ):
            ran = run("pgspot", "--append", option, start, roles, *chosen)
            if ran.returncode:
                findings += pgspot_findings(ran.stdout)
                findings += ran.stderr.splitlines()
    return findings


def has_string_body(file: Path) -> bool:
    return "\nAS $$\n" in file.read_text("utf-8")


def pgspot_findings(output: str) -> Iterator[str]:
    """The lines of the output that report something, each with its file."""
    file = ""
    for line in output.splitlines():
        if line.endswith(".sql: "):
            file = line.removesuffix(": ")
        elif line.strip() and not line.startswith((" Errors: ", "TOTAL: ")):
            yield f"{file}: {line.strip()}"


def squawk_tables(files: Sequence[Path]) -> list[str]:
    return squawk(files, LEFT_OUT | LEFT_OUT_FOR_TABLES, "--assume-in-transaction")


def squawk_script(script: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "upgrade_head.sql"
        file.write_text(script, encoding="utf-8")
        return squawk([file], LEFT_OUT)


def squawk(files: Sequence[Path], left_out: set[str], *options: str) -> list[str]:
    ran = run(
        "squawk",
        *("--pg-version", "15", "--reporter", "gcc", "--include", "require-table-schema"),
        *("--exclude", ",".join(sorted(left_out)), *options),
        *files,
    )
    return ran.stdout.splitlines() or ran.stderr.splitlines() if ran.returncode else []


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS / program, *arguments],
        cwd=scratch.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def offline_script() -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head", "--sql"],
        cwd=scratch.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return ran.stdout


def main() -> int:
    files = [CURRENT / f"{path}.sql" for path in current.read(CURRENT)]
    findings = [
        *sqlfluff([CURRENT / current.ROLES, *files]),
        *pgspot(files),
        *squawk_tables([file for file in files if file.parent.name == "tables"]),
        *squawk_script(offline_script()),
    ]
    print(*findings, sep="\n", end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    if sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main())

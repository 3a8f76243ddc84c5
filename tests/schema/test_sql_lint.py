"""`make sql-lint`: each linter reports a violation that is planted in a copied file."""

from pathlib import Path

import pytest
from tools import sql_lint
from tools.schema import CURRENT


def planted(folder: Path, path: str, old: str, new: str) -> Path:
    """A copy of a file of schema/current with one text replaced."""
    copy = folder / path
    copy.parent.mkdir()
    text = (CURRENT / path).read_text("utf-8")
    assert old in text
    copy.write_text(text.replace(old, new), encoding="utf-8")
    return copy


def test_sqlfluff_reports_a_keyword_in_lower_case(tmp_path: Path) -> None:
    file = planted(tmp_path, "views/kill_switch_result.sql", "SELECT k", "select k")
    assert any("CP01" in line for line in sql_lint.sqlfluff([file]))
    assert sql_lint.sqlfluff([CURRENT / "views" / "kill_switch_result.sql"]) == []


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("pg_catalog, orchestration, pg_temp", "pg_catalog, public, pg_temp", "PS004"),
        ("SET search_path = pg_catalog, orchestration, pg_temp\n", "", "PS003"),
        ("\nBEGIN\n", "\nBEGIN\n  SET search_path = 'pg_catalog, pg_temp';\n", "PS018"),
        ("\nBEGIN\n", "\nBEGIN IF\n", 'missing "THEN"'),
    ],
)
def test_pgspot_reports_a_function_that_a_caller_could_mislead(
    tmp_path: Path, old: str, new: str, code: str
) -> None:
    path = "functions/advance_outbox_sequences.sql"
    file = planted(tmp_path, path, old, new)
    assert any(f"{file}: " in line and code in line for line in sql_lint.pgspot([file]))
    assert sql_lint.pgspot([CURRENT / path]) == []


def test_squawk_reports_a_table_without_its_schema(tmp_path: Path) -> None:
    path = "tables/kill_switches.sql"
    file = planted(tmp_path, path, "CREATE TABLE orchestration.", "CREATE TABLE ")
    assert any("require-table-schema" in line for line in sql_lint.squawk_tables([file]))
    assert sql_lint.squawk_tables([CURRENT / path]) == []


def test_squawk_reports_an_offline_script_that_waits_for_locks_without_a_limit() -> None:
    script = sql_lint.offline_script()
    assert sql_lint.squawk_script(script) == []
    found = sql_lint.squawk_script(script.replace("SET lock_timeout = '1s';", ""))
    assert any("require-lock-timeout" in line for line in found)

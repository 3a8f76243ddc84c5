"""The revisions as text: frozen history, literal SQL, nothing of ours imported."""

import ast
import re
import sys
from pathlib import Path

import pytest
from tools.versions import VERSIONS

REVISIONS = sorted(VERSIONS.glob("*.py"))
ALLOWED = {"alembic", "sqlalchemy"} | sys.stdlib_module_names


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names.add((node.module or "").partition(".")[0])
    return names


def holds_text(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(node)
    )


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_imports_only_alembic_sqlalchemy_and_the_standard_library(path: Path) -> None:
    assert imported(parsed(path)) - ALLOWED == set()


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_assembles_no_text(path: Path) -> None:
    assembled = [
        node.lineno
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.JoinedStr)
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"format", "format_map", "join", "replace", "substitute"}
        )
        or (
            isinstance(node, ast.BinOp)
            and isinstance(node.op, ast.Add | ast.Mod)
            and (holds_text(node.left) or holds_text(node.right))
        )
    ]
    assert assembled == []


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_opens_with_what_it_serves(path: Path) -> None:
    opening = ast.get_docstring(parsed(path)) or ""
    assert "Serves:" in opening
    assert re.search(r"INV-[A-Z]{3}-\d{3}|all of them", opening)


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_a_revision_goes_both_ways_in_parts_that_take_no_arguments(path: Path) -> None:
    functions = {node.name: node for node in parsed(path).body if isinstance(node, ast.FunctionDef)}
    assert {"upgrade", "downgrade"} <= functions.keys()
    assert not isinstance(functions["downgrade"].body[0], ast.Pass)
    assert [name for name, node in functions.items() if ast.unparse(node.args)] == []

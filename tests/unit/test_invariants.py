"""The catalogue tells the truth: about the SQL, the errors and the tests."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tests.invariants import attacks

from orchestration import errors, schema
from orchestration.invariants import BY_ID, BY_NATIVE_CONSTRAINT, CATALOGUE, Invariant

TESTS = Path(__file__).parent.parent
CURRENT = schema.expected()

RAISED = re.compile(r"'(INV-[A-Z]{3}-\d{3})',\s*'([0-9A-Z]{5})'")
"""An id and its code, side by side as two literals: how a refusal is written in SQL, in a call of
raise_invariant as in the arguments of a trigger."""

NATIVE_NEEDS = {
    "23505": ("constraints/", "indexes/"),
    "23503": ("constraints/",),
    "23514": ("constraints/",),
    "23502": ("constraints/", "tables/"),
}

each_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.id)


def raised() -> Iterator[tuple[str, str, str]]:
    """(object, invariant, code) of every refusal in the text of functions and triggers."""
    for path, text in CURRENT.items():
        if path.startswith(("functions/", "triggers/")):
            for invariant, code in RAISED.findall(text):
                yield path, invariant, code


@cache
def marked() -> frozenset[tuple[str, str]]:
    """(file, invariant) of every string in a pytest.mark.invariant of the tests, and of every
    attack: its proofs carry its invariant as their mark."""
    made = ((f"invariants/attacks/{noun}.py", attack.invariant) for noun, attack in attacks.every())
    return frozenset((*_marks(), *made))


def _marks() -> Iterator[tuple[str, str]]:
    for file in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "invariant"
                and ast.unparse(node.func) == "pytest.mark.invariant"
            ):
                for argument in node.args:
                    if isinstance(argument, ast.Constant):
                        yield str(file.relative_to(TESTS)), str(argument.value)


def test_every_id_is_unique() -> None:
    assert {id: n for id, n in Counter(entry.id for entry in CATALOGUE).items() if n > 1} == {}
    assert list(BY_ID) == [entry.id for entry in CATALOGUE]


@each_entry
def test_an_entry_is_well_formed(entry: Invariant) -> None:
    assert re.fullmatch(r"INV-[A-Z]{3}-\d{3}", entry.id)
    assert entry.sentence.endswith(".")
    assert len(set(entry.sqlstates)) == len(entry.sqlstates)
    assert len(set(entry.enforced_by)) == len(entry.enforced_by)


@each_entry
def test_what_enforces_an_entry_exists(entry: Invariant) -> None:
    assert entry.enforced_by, f"{entry.id}: name the objects of schema/current that keep it"
    unknown = [path for path in entry.enforced_by if path not in CURRENT]
    assert unknown == [], f"{entry.id}: no such objects; run `make schema` after an edit"


@each_entry
def test_every_code_of_an_entry_has_a_class(entry: Invariant) -> None:
    unknown = [code for code in entry.sqlstates if code not in errors.BY_SQLSTATE]
    assert unknown == [], f"{entry.id}: give these codes a class in errors.py"


@pytest.mark.parametrize(
    ("path", "invariant", "code"), sorted(set(raised())), ids=lambda value: str(value)
)
def test_what_the_sql_raises_is_in_the_catalogue(path: str, invariant: str, code: str) -> None:
    assert invariant in BY_ID, f"{path} raises {invariant}: add its entry to invariants.py"
    entry = BY_ID[invariant]
    assert code in entry.sqlstates, f"{path} raises {code}: add it to sqlstates of {invariant}"
    assert path in entry.enforced_by, f"{path} raises {invariant}: add it to its enforced_by"


@each_entry
def test_every_code_of_an_entry_is_raised_or_stands_on_a_constraint(entry: Invariant) -> None:
    by_sql = {code for _, invariant, code in raised() if invariant == entry.id}
    for code in entry.sqlstates:
        if code in NATIVE_NEEDS:
            kinds = NATIVE_NEEDS[code]
            named = [path for path in entry.enforced_by if path.startswith(kinds)]
            assert named, f"{entry.id}: nothing in its enforced_by gives {code}"
        elif code.startswith("P") or code == "22023":
            assert code in by_sql, f"{entry.id}: nothing in schema/current raises {code}"


def test_a_constraint_or_index_speaks_for_one_invariant() -> None:
    named = Counter(
        path.partition("/")[2]
        for entry in CATALOGUE
        for path in entry.enforced_by
        if path.startswith(("constraints/", "indexes/"))
    )
    shared = [name for name, n in named.items() if n > 1]
    assert shared == [], "leave each of these in the enforced_by of one entry"
    assert set(named) == set(BY_NATIVE_CONSTRAINT)


def test_a_constraint_with_a_class_of_its_own_exists() -> None:
    names = {path.partition("/")[2] for path in CURRENT}
    tables = [path.partition("/")[2] for path in CURRENT if path.startswith("tables/")]
    ours = {
        name
        for name in errors.BY_CONSTRAINT
        if any(name.startswith((f"uq_{table}_", f"fk_{table}_")) for table in tables)
    }
    assert ours
    assert ours <= names


@each_entry
def test_every_entry_is_proved_by_a_test(entry: Invariant) -> None:
    proofs = [file for file, id in marked() if id == entry.id]
    assert proofs, (
        f"add an attack of {entry.id} to tests/invariants/attacks, or mark a test with its id"
    )


def test_every_id_that_a_test_proves_is_in_the_catalogue() -> None:
    unknown = {(file, id) for file, id in marked() if id not in BY_ID}
    assert unknown == set(), "mend the mark, or add the entry to invariants.py"

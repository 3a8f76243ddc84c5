"""The pages of docs/ that are generated: guarantees and errors from the catalogue and the classes,
roles from the grants of `schema/current/`.

usage: python -m tools.docs write|check
"""

import sys
from collections.abc import Callable, Mapping
from typing import Final

from orchestration import errors as typed
from orchestration import schema
from orchestration.invariants import CATALOGUE
from tools.scratch import ROOT, RUNTIME_ROLES

FOLDER = ROOT / "docs"

INVARIANTS = """# The guarantees

Generated from `src/orchestration/invariants.py` by `make docs`. Each object is a file of
`src/orchestration/schema/current/`, generated from a migrated database. The tests of an entry carry
its id, `@pytest.mark.invariant("INV-...")`. `tests/invariants/attacks/` lists the attacks on it;
each must be refused, and must succeed once the object is dropped. [errors.md](errors.md) tells when
to try again.

| id | promise | SQLSTATE | exception | enforced by |
| --- | --- | --- | --- | --- |
"""

ERRORS = """# The errors

Generated from `src/orchestration/errors.py` by `make docs`. Every error carries `sqlstate`,
`invariant`, `schema`, `table`, `column`, `constraint`, `detail`, `hint` and `retry`; `str(error)`
is the message alone. `detail` is a dict: of a refusal of ours the keys of the offending row and
what was wrong with it; of a native error PostgreSQL's own DETAIL under `text`. For a CHECK or a NOT
NULL that DETAIL is the whole row, so `detail` is None (see [limits](limits.md)). What is refused
before it reaches the database raises `pydantic.ValidationError`, or TypeError if its Python type is
wrong. `retry` is

- SAFE: run the whole unit again, everything re-read, as
  `orchestration.transactions.run_in_transaction` does;
- AFTER_RESOLUTION: something must first be found out or change;
- NEVER: the same unit will fail again.

| exception | SQLSTATE | retry | meaning |
| --- | --- | --- | --- |
"""

ROLES = """# The roles

Generated from `src/orchestration/schema/current/grants/` by `make docs`. A login of a service is a
member of one role, and may do what stands in its column and nothing else: nobody has INSERT,
UPDATE, DELETE or TRUNCATE on any table, writes go through the functions. All objects belong to
`symphony_owner`, which nobody logs in as. [migrations.md](migrations.md#what-the-login-needs) tells
what an upgrade's login needs.

"""
DUTIES: Final[Mapping[str, str]] = {
    "ingest": "takes requests in: attests, receives instructions",
    "executor": "works: authorizes and executes instructions, enqueues, claims and completes items",
    "control": "governs: policies, revocations, kill switches, redrives",
    "readonly": "sees where things stand, without accounts and payloads",
    "auditor": "reads everything, and verifies",
}


def invariants() -> str:
    rows = [
        f"| {entry.id} | {entry.sentence} | {', '.join(entry.sqlstates) or '-'} "
        f"| {entry.exception.__name__ if entry.exception else '-'} "
        f"| {', '.join(f'`{path}`' for path in entry.enforced_by)} |"
        for entry in CATALOGUE
    ]
    return INVARIANTS + "\n".join(rows) + "\n"


def errors() -> str:
    rows = [
        f"| {cls.__name__} | {', '.join(codes(cls)) or '-'} | {cls.default_retry} "
        f"| {(cls.__doc__ or '').partition(chr(10))[0]} |"
        for cls in vars(typed).values()
        if isinstance(cls, type) and issubclass(cls, typed.OrchestrationError)
    ]
    return ERRORS + "\n".join(rows) + "\n"


def codes(cls: type[typed.OrchestrationError]) -> tuple[str, ...]:
    """A special case has those of the native condition, its last base."""
    native = cls if "sqlstates" in vars(cls) else cls.__bases__[-1]
    return getattr(native, "sqlstates", ())


def roles() -> str:
    picture = schema.expected()
    duties = "".join(f"- `symphony_{role}` {DUTIES[role]}\n" for role in RUNTIME_ROLES)
    kinds = (("SELECT", ("tables", "views")), ("EXECUTE", ("functions",)))
    return ROLES + duties + "".join(matrix(picture, *kind) for kind in kinds)


def matrix(picture: Mapping[str, str], privilege: str, folders: tuple[str, ...]) -> str:
    names = [f"{privilege} on", *RUNTIME_ROLES]
    lines = ["", f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for path, grants in sorted(picture.items()):
        folder, _, name = path.partition("/")
        if folder != "grants" or not any(f"{kind}/{name}" in picture for kind in folders):
            continue
        holders = {line.partition(":")[0] for line in grants.splitlines() if privilege in line}
        may = ["yes" if f"symphony_{role}" in holders else "-" for role in RUNTIME_ROLES]
        lines.append(f"| `{name}` | {' | '.join(may)} |")
    return "\n".join(lines) + "\n"


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "invariants.md": invariants,
    "errors.md": errors,
    "roles.md": roles,
}


def main(verb: str) -> int:
    status = 0
    for name, page in PAGES.items():
        file = FOLDER / name
        if verb == "write":
            file.write_text(page(), encoding="utf-8")
        elif not file.is_file() or file.read_text("utf-8") != page():
            print(f"docs/{name} is not what `make docs` writes: run it.")
            status = 1
    return status


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))

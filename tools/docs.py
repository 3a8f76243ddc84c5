"""Writes the generated pages of docs/, and checks them and the Markdown of every page.

Invariants and errors come from the catalogue and the classes, roles from the grants in
`schema/fingerprint.json`, views from a migrated database.

usage: python -m tools.docs write|check
"""

import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any, Final

from orchestration import errors as typed
from orchestration import schema
from orchestration.invariants import CATALOGUE, Invariant
from tools import markdown, scratch
from tools.scratch import ROOT, RUNTIME_ROLES

FOLDER = ROOT / "docs"

INVARIANTS = """# The invariants

`make docs` generates this page from `src/orchestration/invariants.py`. Each section has two parts:

- The table names each invariant, the SQLSTATE with which a violation is refused, and the exception
  of the first SQLSTATE. A rule without an SQLSTATE never refuses anything.
- The list names the database objects that enforce each invariant. Their SQL is in
  `src/orchestration/schema/current/`: a trigger, constraint or index in the file of its table, a
  grant in the file of the object that it is on.

The tests of an invariant carry its id, `@pytest.mark.invariant("INV-...")`. The folder
`tests/invariants/attacks/` lists the attacks on it. The tests check that each attack is refused,
and that it succeeds once the object that enforces the invariant is dropped. [errors.md](errors.md)
says when to retry.
"""
FAMILIES: Final[Mapping[str, str]] = {
    "INV-POL": "Policy versions",
    "INV-REV": "Revocations",
    "INV-ATT": "Attestations",
    "INV-INS": "Instructions",
    "INV-OUT": "The outbox",
    "INV-KIL": "Kill switches",
    "INV-APP": "Append-only records",
    "INV-AUD": "The audit log",
    "INV-API": "Arguments and errors",
}

ERRORS = """# Errors

`make docs` generates this page from `src/orchestration/errors.py`.

Every error has the attributes `sqlstate`, `invariant`, `schema`, `table`, `column`, `constraint`,
`detail`, `hint` and `retry`. `str(error)` is the message alone.

- `detail` is a dict. If the library's own SQL refused the row, `detail` contains the keys of that
  row and what is wrong with it. If PostgreSQL raised the error, `detail["text"]` is PostgreSQL's
  DETAIL. For a CHECK or a NOT NULL that DETAIL would be the whole row, so `detail` is None
  ([limits.md](limits.md#what-an-error-shows)).
- `retry` is one of three values:
  - SAFE: run the whole unit again and read everything again.
    `orchestration.transactions.run_in_transaction` does this.
  - AFTER_RESOLUTION: find something out, or wait until something changes, before you try again.
  - NEVER: the same unit will fail again.

Python checks arguments before anything reaches the database. It raises `pydantic.ValidationError`
if the content of an argument is wrong, and `TypeError` if its Python type is wrong.

| exception | SQLSTATE | retry | meaning |
| --- | --- | --- | --- |
"""

ROLES = """# Roles

`make docs` generates this page from the grants in `src/orchestration/schema/current/`.

Make each login of a service a member of one role. The login can then do what the column of that
role says, and nothing else. No role has INSERT, UPDATE, DELETE or TRUNCATE on any table: all writes
go through the functions. `symphony_owner` owns all objects, and no login is a member of it except
[the one that upgrades](migrations.md#what-the-login-needs).

"""
DUTIES: Final[Mapping[str, str]] = {
    "ingest": "takes in requests: it attests and receives instructions",
    "executor": "works: it authorizes and executes instructions, and enqueues, claims and"
    " completes items",
    "control": "governs: policies, revocations, kill switches and redrives",
    "readonly": "reads states, without accounts and payloads",
    "auditor": "reads everything, and verifies",
}

VIEWS = """# Views

`make docs` generates this page from a migrated database. Read these views rather than the tables:
their columns will not change after the first release. A view that runs with its owner's rights
shows the reader only the columns below, so a reader needs no grant on the tables behind it.

The views named `..._result` are not listed. They define the row types that functions return, and no
role can read them.
"""
PURPOSES: Final[Mapping[str, str]] = {
    "accepted_policy_versions": "The policy versions that a token can be signed under now: the"
    " ACTIVE version, and a version in GRACE until its grace expires.",
    "ingress_attestation_status": "Each attestation, with the events of its execution in the same"
    " row.",
    "instruction_status": "Each instruction and its state, without accounts and payload."
    " `unresolved` counts its items whose outcome is unknown.",
    "kill_switch_state": "The last event of each scope and target.",
    "payment_outbox_claimed": "The items under a lease, with their payloads, as"
    " `claim_outbox_batch` returns them.",
    "payment_outbox_contradictions": "Late results that contradict what was recorded or done. A"
    " late result stays in this view until control closes the contradiction.",
    "payment_outbox_depth": "How many items of each rail are pending, due, leased, and leased with"
    " an expired lease.",
    "payment_outbox_status": "Each item and its state, without its payload. `state` is PENDING,"
    " DISPATCHING, DISPATCHED or FAILED. `known_outcome` takes late results into account: it is"
    " SENT, REJECTED, NOT_SENT or UNKNOWN.",
    "payment_outbox_unresolved": "Items whose outcome is unknown. An item stays in this view until"
    " control resolves it.",
    "revoked_client_certs_in_force": "The revocations of client certificates that are in force now:"
    " all that have not expired. The view does not compare `revoked_at` with the clock"
    " (INV-REV-007).",
    "revoked_tokens_in_force": "The revocations of tokens that are in force now: all that have not"
    " expired. The view does not compare `revoked_at` with the clock (INV-REV-007).",
}
COLUMNS: Final = """
SELECT c.relname AS view,
       coalesce('security_invoker=true' = ANY (c.reloptions), false) AS invoker,
       ARRAY(
         SELECT r.name
         FROM unnest(ARRAY['ingest', 'executor', 'control', 'readonly', 'auditor'])
           WITH ORDINALITY AS r (name, position)
         WHERE has_table_privilege('symphony_' || r.name, c.oid, 'SELECT')
         ORDER BY r.position
       ) AS readers,
       a.attname AS column_name,
       format_type(a.atttypid, a.atttypmod) AS type
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = 'orchestration'::regnamespace
  AND c.relkind = 'v'
ORDER BY c.relname, a.attnum
"""


def invariants() -> str:
    families = groupby(CATALOGUE, key=lambda entry: entry.id[:7])
    return INVARIANTS + "".join(family(prefix, list(entries)) for prefix, entries in families)


def family(prefix: str, entries: Iterable[Invariant]) -> str:
    """The section of one family: the table of its invariants, then the objects of each."""
    lines = ["", f"## {FAMILIES[prefix]}", ""]
    lines += ["| id | invariant | SQLSTATE | exception |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {entry.id} | {entry.sentence} | {', '.join(entry.sqlstates) or '-'} "
        f"| {entry.exception.__name__ if entry.exception else '-'} |"
        for entry in entries
    ]
    lines += ["", "Enforced by:", ""]
    for entry in entries:
        objects = ", ".join(f"`{path}`" for path in entry.enforced_by)
        lines.append(wrapped(f"- {entry.id}: {objects}", indent="  "))
    return "\n".join(lines) + "\n"


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        markdown.WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def errors() -> str:
    rows = [
        f"| {cls.__name__} | {', '.join(codes(cls)) or '-'} | {retry(cls)} "
        f"| {(cls.__doc__ or '').partition(chr(10))[0]} |"
        for cls in vars(typed).values()
        if isinstance(cls, type) and issubclass(cls, typed.OrchestrationError)
    ]
    return ERRORS + "\n".join(rows) + "\n"


def codes(cls: type[typed.OrchestrationError]) -> tuple[str, ...]:
    """Return the codes of a class. A family has the codes of its subclasses. A race is a special
    case of a native condition: it has the codes of the native class, its last base."""
    if "sqlstates" in vars(cls) or cls is typed.OrchestrationError:
        return cls.sqlstates
    if children := cls.__subclasses__():
        return tuple(code for child in children for code in codes(child))
    return cls.__bases__[-1].sqlstates


def retry(cls: type[typed.OrchestrationError]) -> str:
    """Return the value of `retry`, or "-" for a base that is never raised itself."""
    return "-" if cls.__subclasses__() and not vars(cls).get("sqlstates") else cls.default_retry


def roles() -> str:
    picture = schema.expected()
    duties = "".join(
        wrapped(f"- `symphony_{role}` {DUTIES[role]}.", indent="  ") + "\n"
        for role in RUNTIME_ROLES
    )
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


def views() -> str:
    """The page of the views, from a new database that is migrated for it."""
    with scratch.own_server({"fsync": "off"}) as at:
        url = scratch.create_database(at, scratch.PREFIX + "docs")
        scratch.upgrade(url)
        with scratch.maintenance(url) as connection:
            return list_views(connection.exec_driver_sql(COLUMNS).all())


def list_views(rows: Iterable[tuple[Any, ...]]) -> str:
    """The page of the views, from the rows of COLUMNS."""
    page = VIEWS
    for (view, invoker, readers), columns in groupby(rows, key=lambda row: tuple(row[:3])):
        if not readers:
            continue
        rights = "the rights of its reader" if invoker else "the rights of its owner"
        told = f"{PURPOSES[view]} Readers: {', '.join(readers)}. The view runs with {rights}."
        page += f"\n## {view}\n\n{wrapped(told)}\n\n| column | type |\n| --- | --- |\n"
        page += "".join(f"| `{name}` | {type_} |\n" for *_, name, type_ in columns)
    return page


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "invariants.md": invariants,
    "errors.md": errors,
    "roles.md": roles,
    "views.md": views,
}


def write() -> int:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
    return 0


def check() -> int:
    found = [
        f"docs/{name} differs from what its source says: run `make docs`"
        for name, page in PAGES.items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text("utf-8") != page()
    ]
    for page in markdown.pages():
        found += [f"{page.relative_to(ROOT)}: {one}" for one in markdown.complaints(page)]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    verbs = {"write": write, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    sys.exit(verbs[sys.argv[1]]())

"""Attacks on the audit log, its head, and the schema's revision."""

from collections.abc import Iterator

from orchestration import invariants, schema
from tests.invariants.attacks.base import (
    Attack,
    Detail,
    Noun,
    Row,
    changes,
    deletes,
    insert,
    inserts,
    truncates,
    updates,
)

LOG, HEAD, REVISION = "audit_log", "audit_log_head", "schema_revision"
GUARD = f"triggers/{LOG}__guard"
LAST = f"(SELECT max(chain_seq) FROM orchestration.{LOG})"
NEXT = int(schema.REVISION) + 1
"""Where the chain continues after the migrations."""

ENTRY: Row = {
    "action": "'REVOKE'",
    "table_name": "'revoked_tokens'",
    "before": "NULL",
    "after": "'{}'",
    "occurred_at": "'2020-01-01Z'",
    "db_user": "'forger'",
    "db_role": "'forger'",
    "client_addr": "'192.0.2.1'",
    "xact_id": "1",
}


def whole(**changed: str) -> Row:
    """An entry with its place in the chain and a record_hash that is wrong."""
    return {
        **ENTRY,
        "chain_seq": f"{LAST} + 1",
        "prev_hash": f"(SELECT record_hash FROM orchestration.{LOG}"
        " ORDER BY chain_seq DESC LIMIT 1)",
        "record_hash": "repeat('0', 64)",
    } | changed


def forged(column: str, detail: Detail, *behind: str) -> Attack:
    return Attack(
        *("", "INV-AUD-001", "P7302", LOG, detail),
        (GUARD, *(f"constraints/{name}" for name in behind)),
        column=column,
    )


def chain() -> Iterator[Attack]:
    leap = whole(chain_seq=f"{LAST} + 2")
    yield from forged("chain_seq", {"chain_seq": NEXT + 1, "expected": NEXT}).each(
        inserts("an entry that leaps", LOG, leap)
    )
    second = f"(SELECT prev_hash FROM orchestration.{LOG} WHERE chain_seq = 2)"
    for name, prev_hash, behind in (
        ("another prev_hash", "repeat('1', 64)", ()),
        ("a fork", second, (f"uq_{LOG}_prev_hash",)),
        ("a second beginning", "''", (f"ck_{LOG}_prev_hash", f"uq_{LOG}_prev_hash")),
    ):
        yield forged("chain_seq", {"chain_seq": NEXT, "expected": NEXT}, *behind).by(
            name, insert(LOG, whole(prev_hash=prev_hash))
        )
    at_next = {"chain_seq": NEXT}
    yield forged("record_hash", at_next).by("another record_hash", insert(LOG, whole()))
    yield forged("record_hash", at_next, f"ck_{LOG}_record_hash").by(
        "a record_hash that is no hash", insert(LOG, whole(record_hash="'none'"))
    )
    future = {"chain_seq": NEXT, "occurred_at": "9000-01-01T00:00:00+00:00"}
    yield forged("occurred_at", future).by(
        "a time in the future", insert(LOG, whole(occurred_at="'9000-01-01Z'"))
    )
    for name, sqlstate, constraint, row in (
        (
            *("a place that is taken", "23505", f"pk_{LOG}"),
            whole(chain_seq=LAST, prev_hash="repeat('2', 64)"),
        ),
        ("an unknown action", "23514", f"ck_{LOG}_action", {**ENTRY, "action": "'FORGET'"}),
    ):
        yield Attack(
            *(name, "INV-AUD-001", sqlstate, LOG, None, (f"constraints/{constraint}",)),
            constraint=constraint,
            # Rows that are copied in replica mode bring their place and their hash along.
            replica=sqlstate != "23514",
            statements=(insert(LOG, row),),
        )


def stays() -> Iterator[Attack]:
    edited = Attack(
        *("", "INV-APP-001", "P0001", LOG, {"chain_seq": 2}), (f"triggers/{LOG}__append_only",)
    )
    yield from edited.each(
        changes(
            LOG,
            "chain_seq = 2",
            {
                "chain_seq": "900",
                "action": "'RETIRE'",
                "table_name": "'forged'",
                "before": "'{}'",
                "occurred_at": "'2020-01-01Z'",
                "db_user": "'forged'",
                "db_role": "'forged'",
                "client_addr": "'192.0.2.1'",
                "prev_hash": "repeat('2', 64)",
                "record_hash": "repeat('0', 64)",
                "xact_id": "1",
            },
        )
    )
    yield from edited.each(
        updates(
            *("another content", LOG, "after = '{}'", "chain_seq = 2"),
            *(whole(chain_seq="2"), "chain_seq"),
        )
    )
    yield from edited.each(deletes(LOG, "chain_seq = 2"))
    yield from edited.each(truncates(LOG), detail={}, without=(f"triggers/{LOG}__no_truncate",))
    for table, detail in (
        (HEAD, {"chain_seq": NEXT - 1}),
        (REVISION, {"revision": schema.REVISION}),
    ):
        kept = Attack(
            *("", "INV-AUD-001", "P0001", table, detail), (f"triggers/{table}__no_delete",)
        )
        yield from kept.each(deletes(table, "singleton"))
        yield from kept.each(
            truncates(table), detail={}, without=(f"triggers/{table}__no_truncate",)
        )


AUDIT_LOG = Noun(
    (*chain(), *stays()),
    {"": ()},
    # They write entries; an act without its entry is found by verify_audit_log.
    sleeping=tuple(
        path
        for path in invariants.BY_ID["INV-AUD-001"].enforced_by
        if path.endswith(("__audit", "__audit_insert", "__audit_update", "__count", "__head"))
        or path.endswith(("__fill", "__cancelled", "__rescheduled", "__lease_expired"))
    ),
)

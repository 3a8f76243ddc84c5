"""Checks a database and a journal after faults, and reports every broken rule.

The rules are written from the contract, and share nothing with the `verify_` functions of the
database: an error there must not hide the same error here. Each query returns the rows that break
its rule.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row

from tests.faults.journal import RAIL, Journal
from tests.support import Connect, attestation_record_hash, audit_record_hash

RULES = {
    "an item is neither pending nor terminal": """
        SELECT outbox_id FROM orchestration.payment_outbox_items
        EXCEPT SELECT outbox_id FROM orchestration.payment_outbox_pending
        EXCEPT SELECT outbox_id FROM orchestration.payment_outbox_attempts
          WHERE state IN ('DISPATCHED', 'FAILED')
    """,
    "an item is pending and terminal": """
        SELECT outbox_id FROM orchestration.payment_outbox_pending
        INTERSECT SELECT outbox_id FROM orchestration.payment_outbox_attempts
          WHERE state IN ('DISPATCHED', 'FAILED')
    """,
    "a pending row has no item": """
        SELECT outbox_id FROM orchestration.payment_outbox_pending
        EXCEPT SELECT outbox_id FROM orchestration.payment_outbox_items
    """,
    "an item has more than one terminal attempt": """
        SELECT outbox_id FROM orchestration.payment_outbox_attempts
        WHERE state IN ('DISPATCHED', 'FAILED')
        GROUP BY outbox_id HAVING count(*) > 1
    """,
    "a payment was dispatched twice": """
        SELECT i.instruction_id, i.idempotency_key
        FROM orchestration.payment_outbox_items i
        JOIN orchestration.payment_outbox_attempts a USING (outbox_id)
        WHERE a.state = 'DISPATCHED'
        GROUP BY 1, 2 HAVING count(*) > 1
    """,
    "sequence numbers of a participant have a gap or repeat": """
        SELECT participant_id
        FROM (SELECT participant_id, sequence_id,
                row_number() OVER (PARTITION BY participant_id ORDER BY sequence_id) AS wanted
              FROM orchestration.payment_outbox_items) i
        GROUP BY participant_id
        HAVING bool_or(sequence_id <> wanted)
    """,
    "a sequence counter does not follow its items": """
        SELECT participant_id
        FROM (SELECT participant_id, max(sequence_id) + 1 AS next
              FROM orchestration.payment_outbox_items GROUP BY participant_id) i
        FULL JOIN orchestration.participant_outbox_sequences s USING (participant_id)
        WHERE s.next_sequence_id IS DISTINCT FROM coalesce(i.next, 1)
    """,
    "a pending item's instruction may not be dispatched": """
        SELECT p.outbox_id
        FROM orchestration.payment_outbox_pending p
        LEFT JOIN orchestration.instructions n
          ON (n.id, n.participant_id) = (p.instruction_id, p.participant_id)
        WHERE coalesce(n.state, '') NOT IN ('AUTHORIZED', 'EXECUTING')
    """,
    "an instruction is COMPLETED without a dispatched item": """
        SELECT n.id FROM orchestration.instructions n
        WHERE n.state = 'COMPLETED' AND NOT EXISTS (
          SELECT FROM orchestration.payment_outbox_items i
          JOIN orchestration.payment_outbox_attempts a USING (outbox_id)
          WHERE i.instruction_id = n.id AND a.state = 'DISPATCHED')
    """,
    "an instruction is FAILED although money may have moved": """
        SELECT n.id FROM orchestration.instructions n
        JOIN orchestration.payment_outbox_items i ON i.instruction_id = n.id
        JOIN orchestration.payment_outbox_attempts a USING (outbox_id)
        WHERE n.state = 'FAILED' AND (a.state = 'DISPATCHED' OR a.outcome = 'UNKNOWN'
          AND a.state = 'FAILED')
    """,
    "a failed attempt has no outcome": """
        SELECT outbox_id FROM orchestration.payment_outbox_attempts
        WHERE state = 'FAILED' AND outcome IS NULL
    """,
    "an attempt that no worker closed is not UNKNOWN": """
        SELECT outbox_id FROM orchestration.payment_outbox_attempts
        WHERE state = 'FAILED' AND requested_state IS NULL
          AND error_code IS DISTINCT FROM 'CANCELLED' AND outcome IS DISTINCT FROM 'UNKNOWN'
    """,
    "an instruction's history is not its state": """
        SELECT n.id
        FROM orchestration.instructions n
        LEFT JOIN orchestration.status_history h ON h.instruction_id = n.id
        GROUP BY n.id
        HAVING array_agg(h.version ORDER BY h.version)
            IS DISTINCT FROM ARRAY(SELECT generate_series(1, n.version))
          OR (array_agg(h.to_state ORDER BY h.version DESC))[1] IS DISTINCT FROM n.state
    """,
}

ATTEMPTS = """
    SELECT a.outbox_id, a.attempt_no, a.phase, a.state, a.lease_token, p.lease_token AS leased
    FROM orchestration.payment_outbox_attempts a
    LEFT JOIN orchestration.payment_outbox_pending p USING (outbox_id)
    ORDER BY a.outbox_id, a.attempt_no, a.phase DESC
"""
CALLS = """
    SELECT i.instruction_id::text, i.idempotency_key, a.attempt_no, a.phase, a.state
    FROM orchestration.payment_outbox_items i
    JOIN orchestration.payment_outbox_attempts a USING (outbox_id)
"""
ACKNOWLEDGED = {
    "attested": "SELECT id::text FROM orchestration.ingress_attestations",
    "received": "SELECT id::text FROM orchestration.instructions",
    "authorized": "SELECT instruction_id::text FROM orchestration.status_history"
    " WHERE to_state = 'AUTHORIZED'",
    "enqueued": "SELECT outbox_id::text FROM orchestration.payment_outbox_items",
    "revoked": "SELECT token_hash FROM orchestration.revoked_tokens",
    "claimed": "SELECT concat_ws(' ', outbox_id, attempt_no)"
    " FROM orchestration.payment_outbox_attempts WHERE phase = 'OPEN'",
    "recorded": "SELECT concat_ws(' ', outbox_id, attempt_no, state)"
    " FROM orchestration.payment_outbox_attempts WHERE phase = 'CLOSE'",
}
"""For each kind of act that was answered with success, a query for the acts that the database
has."""


@dataclass(frozen=True)
class Finding:
    rule: str
    key: str


def judge(connection: Connect, journal: Journal) -> list[Finding]:
    """Return every broken rule. The list is empty if nothing was lost, doubled or wrongly
    accepted."""
    found = [
        Finding(rule, " ".join(map(str, row)))
        for rule, query in RULES.items()
        for row in connection.execute(query.encode())
    ]
    found += _attempts(connection)
    found += _rail(connection, journal)
    found += _lost(connection, journal)
    found += _chains(connection)
    return found


def _attempts(connection: Connect) -> Iterator[Finding]:
    rows = connection.cursor(row_factory=dict_row).execute(ATTEMPTS).fetchall()
    by_item: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_item[row["outbox_id"]].append(row)
    for outbox_id, attempts in by_item.items():
        if not _alternate(attempts):
            yield Finding("attempts do not open and close in turn", str(outbox_id))


def _alternate(attempts: list[dict[str, Any]]) -> bool:
    phases = [(row["attempt_no"], row["phase"]) for row in attempts]
    wanted = [(1 + at // 2, "CLOSE" if at % 2 else "OPEN") for at in range(len(attempts))]
    open_at_end = attempts[-1] if attempts[-1]["phase"] == "OPEN" else None
    leased = attempts[-1]["leased"]
    terminal = [row["state"] in ("DISPATCHED", "FAILED") for row in attempts]
    return (
        phases == wanted
        # An attempt is closed under the lease that it was opened under.
        and all(
            opened["lease_token"] == closed["lease_token"]
            for opened, closed in zip(attempts[::2], attempts[1::2], strict=False)
        )
        # Only the attempt whose lease the pending row has can be open.
        and leased == (open_at_end["lease_token"] if open_at_end else None)
        and not any(terminal[:-1])
    )


def _rail(connection: Connect, journal: Journal) -> Iterator[Finding]:
    opened: set[tuple[str, str, int]] = set()
    dispatched: set[tuple[str, str, int]] = set()
    for instruction_id, key, attempt_no, phase, state in connection.execute(CALLS):
        if phase == "OPEN":
            opened.add((instruction_id, key, attempt_no))
        elif state == "DISPATCHED":
            dispatched.add((instruction_id, key, attempt_no))
    called = {
        (note["instruction_id"], note["key"], note["attempt_no"]) for note in journal.notes(RAIL)
    }
    yield from _each("a rail was called without an opening", called - opened)
    yield from _each("an item is DISPATCHED without a call of the rail", dispatched - called)


def _lost(connection: Connect, journal: Journal) -> Iterator[Finding]:
    for what, query in ACKNOWLEDGED.items():
        if what in ("claimed", "recorded"):
            fields = ("outbox_id", "attempt_no", "state")[: 2 if what == "claimed" else 3]
        else:
            fields = ("id",)
        told = {" ".join(str(note[name]) for name in fields) for note in journal.notes(what)}
        kept = {key for (key,) in connection.execute(query.encode())}
        yield from _each(f"an act is lost: {what}", ((key,) for key in told - kept))


def _chains(connection: Connect) -> Iterator[Finding]:
    cursor = connection.cursor(row_factory=dict_row)
    chains: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in cursor.execute(
        "SELECT * FROM orchestration.ingress_attestations ORDER BY caller_identity, chain_seq"
    ):
        chains[record["caller_identity"]].append(record)
    heads = dict(
        connection.execute(
            "SELECT caller_identity, record_hash FROM orchestration.ingress_attestation_heads"
        ).fetchall()
    )
    for caller, records in chains.items():
        hashes = [attestation_record_hash(record) for record in records]
        if not _unbroken(records, hashes, heads.pop(caller, None)):
            yield Finding("a caller's chain is broken", caller)
    yield from _each("a head has no chain", ((caller,) for caller in heads))
    entries = cursor.execute(
        "SELECT chain_seq, action, table_name, before::text, after::text, occurred_at, db_user,"
        " db_role, host(client_addr) AS client_addr, prev_hash, record_hash"
        " FROM orchestration.audit_log ORDER BY chain_seq"
    ).fetchall()
    row = connection.execute("SELECT record_hash FROM orchestration.audit_log_head").fetchone()
    hashes = [audit_record_hash(entry) for entry in entries]
    if not _unbroken(entries, hashes, row[0] if row else None):
        yield Finding("the audit log's chain is broken", "audit_log")


def _unbroken(records: list[dict[str, Any]], hashes: list[str], head: str | None) -> bool:
    return (
        [record["chain_seq"] for record in records] == list(range(1, len(records) + 1))
        and [record["record_hash"] for record in records] == hashes
        and [record["prev_hash"] for record in records] == ["", *hashes[:-1]]
        and head == hashes[-1]
    )


def _each(rule: str, keys: Iterable[tuple[Any, ...]]) -> Iterator[Finding]:
    for key in sorted(keys):
        yield Finding(rule, " ".join(map(str, key)))

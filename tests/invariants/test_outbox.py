"""Tests of the outbox: valid writes, defaults, numbers, results, and the findings of verification.
`attacks` tests the refusals."""

import hashlib
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from tests.invariants.attacks.base import LATER, insert, moves, payload_hash
from tests.invariants.attacks.outbox import (
    ATTEMPTS,
    DONE,
    END_GUARD,
    EXPIRED,
    FAILED_INSTRUCTION,
    FREE,
    INSTRUCTION,
    INSTRUCTION_OF,
    ITEMS,
    LAST,
    LAST_EXPIRED,
    LATE_RESULTS,
    LEASED,
    NEW,
    NO_INSTRUCTION,
    OF_INSTRUCTIONS,
    OF_ITEMS,
    OPEN,
    OTHER_INSTRUCTION,
    OTHER_TOKEN,
    PENDING,
    RECEIVED_INSTRUCTION,
    REDRIVE_GUARD,
    REJECTED,
    RETRIED,
    SEQUENCES,
    SPENT,
    TABLES,
    TOKEN,
    claim,
    closing,
    ended,
    enqueue,
    enqueue_all,
    enters,
    free,
    id_of,
    is_,
    item,
    late_result,
    lease,
    leave,
    opening,
    pending,
    record,
)
from tests.support import (
    Connect,
    assert_invariant,
    attempt,
    drop,
    picture,
    refusal,
    run,
    scalar,
)


def quoted(id: str) -> str:
    return f"'{id}'"


def make_instructions(owner: Connect) -> None:
    run(owner, OF_INSTRUCTIONS)


def make_world(owner: Connect) -> None:
    """One item in each state, besides what `make_instructions` makes."""
    run(owner, OF_ITEMS)


def make_all(owner: Connect) -> None:
    make_instructions(owner)
    make_world(owner)


@pytest.fixture(autouse=True)
def instructions(request: pytest.FixtureRequest) -> None:
    """What every item here refers to, and one instruction in each state that has no items."""
    if "database" in request.fixturenames and not request.node.get_closest_marker("unchanged"):
        make_instructions(request.getfixturevalue("owner"))


def hash_of(salt: bytes, payload: str) -> str:
    """payload_hash as the contract describes it."""
    return hashlib.sha256(b"orchestration.payload.v1" + salt + payload.encode()).hexdigest()


def hashed(payload: str) -> dict[str, str]:
    """An item's columns for that payload, with the right hash."""
    return {"payload": f"'{payload}'", "payload_hash": payload_hash(payload)}


# What a row must not hold.


@pytest.mark.unchanged(after=make_all)
@pytest.mark.parametrize(
    ("table", "column", "value", "constraint"),
    [
        (ITEMS, "participant_id", "''", "ck_payment_outbox_items_participant_id"),
        (ITEMS, "sequence_id", "0", "ck_payment_outbox_items_sequence_id"),
        (ITEMS, "idempotency_key", "''", "ck_payment_outbox_items_idempotency_key"),
        (ITEMS, "rail_type", "''", "ck_payment_outbox_items_rail_type"),
        (ITEMS, "payload", "'[]'", "ck_payment_outbox_items_payload"),
        (ITEMS, "payload", "'null'", "ck_payment_outbox_items_payload"),
        (ITEMS, "payload", "'{\"a\": 2}'", "ck_payment_outbox_items_payload_hash"),
        (ITEMS, "payload", "'{\"a\": 1.0}'", "ck_payment_outbox_items_payload_hash"),
        (ITEMS, "payload_hash", "repeat('0', 64)", "ck_payment_outbox_items_payload_hash"),
        (ITEMS, "payload_hash", "''", "ck_payment_outbox_items_payload_hash"),
        (
            ITEMS,
            "payload_salt",
            "decode(repeat('01', 16), 'hex')",
            "ck_payment_outbox_items_payload_hash",
        ),
        (ITEMS, "max_attempts", "0", "ck_payment_outbox_items_max_attempts"),
        (ITEMS, "max_attempts", "1001", "ck_payment_outbox_items_max_attempts"),
        (PENDING, "attempt_count", "-1", "ck_payment_outbox_pending_attempt_count"),
        *(
            (
                ITEMS,
                "created_at",
                f"'{moment}'",
                "ck_payment_outbox_items_years",
            )
            for moment in ("infinity", "-infinity", "4000-01-01 BC", "9999-01-01Z")
        ),
        *(
            (PENDING, "next_attempt_at", f"'{moment}'", "ck_payment_outbox_pending_next_attempt_at")
            for moment in ("infinity", "-infinity", "4000-01-01 BC", "9999-01-01Z")
        ),
        (PENDING, "claimed_by", "'w'", "ck_payment_outbox_pending_lease"),
        (PENDING, "lease_token", f"'{TOKEN}'", "ck_payment_outbox_pending_lease"),
        (PENDING, "lease_expires_at", LATER, "ck_payment_outbox_pending_lease"),
        (ATTEMPTS, "attempt_no", "0", "ck_payment_outbox_attempts_attempt_no"),
        (ATTEMPTS, "worker_id", "''", "ck_payment_outbox_attempts_worker_id"),
        (ATTEMPTS, "claimed_at", "'-infinity'", "ck_payment_outbox_attempts_times"),
        (ATTEMPTS, "completed_at", "NULL", "ck_payment_outbox_attempts_times"),
        (ATTEMPTS, "requested_state", "'FAILED'", "ck_payment_outbox_attempts_requested_state"),
        (ATTEMPTS, "requested_state", "NULL", "ck_payment_outbox_attempts_requested_state"),
        (ATTEMPTS, "state", "'SENT'", "ck_payment_outbox_attempts_requested_state"),
    ],
)
def test_a_value_that_no_row_may_hold_is_refused(
    owner: Connect, table: str, column: str, value: str, constraint: str
) -> None:
    statement = {
        ITEMS: lambda: insert(ITEMS, item(**{column: value})),
        PENDING: lambda: insert(PENDING, pending(**{column: value})),
        ATTEMPTS: lambda: (
            record(
                opening(
                    LEASED,
                    **(
                        {
                            "phase": "'CLOSE'",
                            "state": "'DISPATCHED'",
                            "requested_state": "'DISPATCHED'",
                            "completed_at": "clock_timestamp()",
                        }
                        | {column: value}
                    ),
                )
            )
            if column != "attempt_no"
            else record(opening(LEASED, 0))
        ),
    }[table]()
    found = refusal(owner, statement)
    assert (found.sqlstate, found.constraint, found.table) == ("23514", constraint, table)


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-OUT-002")
def test_a_lease_never_lasts_for_ever(owner: Connect) -> None:
    found = refusal(
        owner,
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = 'infinity' WHERE {is_(LEASED)}",
    )
    assert (found.sqlstate, found.constraint) == ("23514", "ck_payment_outbox_pending_lease")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    ("moment", "accepted"),
    [
        ("9998-12-31 23:59:59.999999Z", True),
        ("0001-01-01 00:00:00Z", True),
        ("9999-01-01 00:00:00Z", False),
        ("20000-01-01 00:00:00Z", False),
        ("0001-12-31 23:59:59Z BC", False),
        ("infinity", False),
    ],
)
def test_an_item_is_due_in_a_year_that_every_calendar_has(
    owner: Connect, moment: str, accepted: bool, zone: str
) -> None:
    owner.execute(f"SET TimeZone = '{zone}'")
    row = {"sequence_id": "1", "next_attempt_at": f"timestamptz '{moment}'"}
    statement = enters({"sequence_id": "1"}, row)
    found = attempt(owner, [statement])
    if accepted:
        assert found is None
    else:
        assert found is not None
        assert (found.sqlstate, found.constraint) == (
            "23514",
            "ck_payment_outbox_pending_next_attempt_at",
        )
    assert findings(owner) == []


@pytest.mark.unchanged(after=make_all)
@pytest.mark.parametrize("latency", ["-1"])
def test_a_latency_is_not_negative(owner: Connect, latency: str) -> None:
    found = refusal(
        owner,
        record({**closing(LEASED, "DISPATCHED"), "latency_ms": latency}),
    )
    assert (found.sqlstate, found.constraint) == ("23514", "ck_payment_outbox_attempts_latency_ms")


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-OUT-005")
@pytest.mark.parametrize(
    "column", ["rail_reference", "rail_code", "error_code", "error_message", "latency_ms"]
)
def test_an_opening_says_nothing_of_an_end(owner: Connect, column: str) -> None:
    found = refusal(owner, record({**opening(FREE), column: "'1'"}))
    assert (found.sqlstate, found.constraint) == ("23514", "ck_payment_outbox_attempts_opening")


@pytest.mark.unchanged(after=make_all)
@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("participant_id = ''", "ck_participant_outbox_sequences_participant_id"),
        ("next_sequence_id = 0", "ck_participant_outbox_sequences_next_sequence_id"),
    ],
)
def test_a_counter_has_an_owner_and_starts_at_one(
    owner: Connect, change: str, constraint: str
) -> None:
    found = refusal(owner, f"UPDATE orchestration.{SEQUENCES} SET {change}")
    assert (found.sqlstate, found.constraint) == ("23514", constraint)


@pytest.mark.unchanged(after=make_all)
def test_an_item_whose_id_exists_is_left_to_the_primary_key(owner: Connect) -> None:
    existing = enters({"outbox_id": FREE, "db_user": "'forger'"})
    found = refusal(owner, existing)
    assert (found.sqlstate, found.constraint) == ("23505", "pk_payment_outbox_items")


@pytest.mark.unchanged(after=make_all)
@pytest.mark.parametrize(
    "target", ["", "(outbox_id)", "(instruction_id, idempotency_key, redrive_no)"]
)
def test_on_conflict_do_nothing_leaves_an_item_as_it_is(owner: Connect, target: str) -> None:
    before = picture(owner)
    row = insert(ITEMS, item(DONE, rail_type="'SWIFT'"))
    assert attempt(owner, [f"{row} ON CONFLICT {target} DO NOTHING"]) is None
    assert picture(owner) == before


# What the database sets.

MINIMAL = """
WITH i AS (
  INSERT INTO orchestration.payment_outbox_items
    (instruction_id, participant_id, idempotency_key, rail_type, payload)
  VALUES (%(instruction_id)s, %(participant_id)s, %(key)s, 'SEPA', %(payload)s)
  {}
  RETURNING *
)
INSERT INTO orchestration.payment_outbox_pending
  (outbox_id, instruction_id, participant_id, sequence_id, rail_type)
SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type FROM i
RETURNING sequence_id
"""


def enter(
    connection: Connect,
    key: str,
    *,
    participant_id: str = "p",
    instruction_id: str | None = None,
    payload: str = "{}",
    on_conflict: str = "",
) -> int | None:
    """An owner's INSERT that leaves out whatever has a default: the number, or None."""
    row = connection.execute(
        MINIMAL.format(on_conflict),
        {
            "instruction_id": instruction_id or INSTRUCTION_OF[participant_id],
            "participant_id": participant_id,
            "key": key,
            "payload": payload,
        },
    ).fetchone()
    return None if row is None else int(row[0])


def enqueue_by_function(connection: Connect, *keys: str, participant_id: str = "p") -> list[int]:
    rows = connection.execute(
        "SELECT sequence_id FROM orchestration.enqueue_payment_outbox(p_items => %s)",
        (
            json.dumps(
                [
                    {
                        "instruction_id": INSTRUCTION_OF[participant_id],
                        "participant_id": participant_id,
                        "idempotency_key": key,
                        "rail_type": "SEPA",
                        "payload": {},
                    }
                    for key in keys
                ]
            ),
        ),
    ).fetchall()
    return [row[0] for row in rows]


def findings(connection: Connect) -> list[tuple[Any, ...]]:
    """What verify_outbox finds: the word that leads a finding, the item, the participant."""
    rows = connection.execute(
        "SELECT split_part(finding, ':', 1), outbox_id::text, participant_id, detail"
        " FROM orchestration.verify_outbox() ORDER BY 1, 2, detail::text"
    ).fetchall()
    return [tuple(row) for row in rows]


@pytest.mark.invariant("INV-OUT-001", "INV-OUT-009")
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect) -> None:
    with owner.transaction():
        assert enter(owner, "k") == 1
        row = owner.execute(
            "SELECT i.redrive_no, i.redrive_of, i.max_attempts, octet_length(i.payload_salt),"
            " i.created_at BETWEEN now() AND clock_timestamp(), i.db_user = SESSION_USER,"
            " i.xact_id = pg_current_xact_id()::text::bigint, p.attempt_count,"
            " p.next_attempt_at BETWEEN now() AND clock_timestamp(), p.claimed_by"
            " FROM orchestration.payment_outbox_items i"
            " JOIN orchestration.payment_outbox_pending p USING (outbox_id)"
        ).fetchone()
    assert row == (0, None, 20, 16, True, True, True, 0, True, None)
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-001")
def test_an_item_that_is_imported_keeps_the_time_at_which_it_was_created(owner: Connect) -> None:
    imported = enqueue(sequence_id=1, created_at="'2020-01-01Z'")
    assert attempt(owner, [imported]) is None
    assert scalar(owner, f"SELECT created_at = '2020-01-01Z' FROM orchestration.{ITEMS}")


@pytest.mark.invariant("INV-OUT-006")
def test_a_redrive_that_follows_a_rejected_item_is_an_item_like_any_other(owner: Connect) -> None:
    make_world(owner)
    statement = enqueue(
        redrive_no="1",
        redrive_of=f"'{REJECTED}'",
        idempotency_key=f"'{REJECTED}'",
    )
    assert attempt(owner, [statement]) is None
    assert findings(owner) == [SPENT_IS_FOUND]


RETRIED_AND_SENT = (
    enqueue(NEW, 11),
    claim(NEW),
    record(closing(NEW, "RETRYABLE", outcome="'NOT_SENT'")),
    free(NEW),
    claim(NEW, 2),
    record(closing(NEW, "DISPATCHED", 2, lease_token=f"CAST('{OTHER_TOKEN}' AS uuid)")),
    leave(NEW),
)
"""An item whose first attempt certainly did not reach the rail, and whose second one did."""
REDRIVE_OF_SENT = enqueue(
    id_of(98),
    12,
    redrive_no="1",
    redrive_of=f"CAST('{NEW}' AS uuid)",
    idempotency_key=f"'{NEW}'",
)


@pytest.mark.invariant("INV-OUT-006")
def test_a_dispatched_item_is_not_redriven_for_an_earlier_attempt_that_was_not_sent(
    owner: Connect,
) -> None:
    make_world(owner)
    assert attempt(owner, RETRIED_AND_SENT) is None
    for statement in (REDRIVE_OF_SENT, call("redrive_outbox_item", outbox_id=f"'{NEW}'")):
        assert_invariant(refusal(owner, statement), "INV-OUT-006", "P7005", ITEMS)
    drop(owner, REDRIVE_GUARD)
    assert attempt(owner, [REDRIVE_OF_SENT]) is None
    found = ("REDRIVE", id_of(98), "p", {"redrive_of": NEW})
    assert findings(owner) == [found, SPENT_IS_FOUND]


PAYLOADS = (
    "{}",
    '{"b": 1, "a": [1.0, 1.50, 1e3, true, null]}',
    '{"amount": "12,50 €", "name": "Zoë \\u6f22 😀", "path": "a\\\\b\\"c\\n"}',
    '{"deep": {"deeper": [[], {}, {"deepest": -0.0}]}}',
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payload_hash_is_what_anybody_computes(owner: Connect, payload: str) -> None:
    enter(owner, "by hand", payload=payload)
    owner.execute(
        "SELECT FROM orchestration.enqueue_payment_outbox(jsonb_build_array(jsonb_build_object("
        "'instruction_id', %s::text, 'participant_id', 'p', 'idempotency_key', 'by the function',"
        " 'rail_type', 'SEPA', 'payload', %s::jsonb)))",
        (INSTRUCTION, payload),
    )
    rows = owner.execute(
        "SELECT payload_salt, payload::text, payload_hash FROM orchestration.payment_outbox_items"
    ).fetchall()
    assert [hash_of(salt, stored) for salt, stored, _ in rows] == [row[2] for row in rows]
    assert len({salt for salt, _, _ in rows}) == len(rows) == 2
    assert {len(salt) for salt, _, _ in rows} == {16}


def nested(levels: int) -> str:
    """A payload whose innermost value lies that many levels deep, in lists but for the first."""
    return '{"a": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}"


READABLE = {
    "nested to 500 levels": nested(500),
    "objects nested to 500 levels": '{"a":' * 500 + "1" + "}" * 500,
    "an integer of 1234 digits": '{"a": [{"b": ' + "9" * 1234 + "}]}",
    "a negative integer of 1234 digits": '{"a": -' + "9" * 1234 + "}",
    "a long fraction": '{"a": 0.' + "1" * 5000 + "}",
    "a small fraction": '{"a": 1e-5000, "b": "' + "x" * 1000 + '"}',
    "a string of digits": '{"a": "' + "9" * 5000 + '"}',
    "many members": json.dumps({str(n): [n, str(n), {"n": None}] for n in range(20_000)}),
}
UNREADABLE = {
    "nested to 501 levels": nested(501),
    "objects nested to 501 levels": '{"a":' * 501 + "1" + "}" * 501,
    "nested to 3000 levels": nested(3000),
    "many members and a deep one": json.dumps(
        {str(n): [n, str(n)] for n in range(20_000)} | {"deep": json.loads(nested(501))}
    ),
    "an integer of 1235 digits": '{"a": [{"b": 1' + "0" * 1234 + "}]}",
    "a negative integer of 1235 digits": '{"a": -1' + "0" * 1234 + "}",
    "an integer with an exponent": '{"a": 1e100000}',
    "an integer in a list after others": '{"a": [0, null, "x", true, {}, [], 1e5000]}',
}


@pytest.mark.parametrize("by", ["by hand", "by the function"])
@pytest.mark.parametrize(
    ("payload", "readable"),
    [
        pytest.param(payload, readable, id=name)
        for payloads, readable in ((READABLE, True), (UNREADABLE, False))
        for name, payload in payloads.items()
    ],
)
def test_a_payload_that_no_reader_gets_past_is_kept_out_of_the_queue(
    owner: Connect, login: Callable[[str], Connect], payload: str, readable: bool, by: str
) -> None:
    if by == "by hand":
        found = attempt(owner, [enqueue(sequence_id=1, **hashed(payload))])
    else:
        item = (
            f'{{"instruction_id": "{INSTRUCTION}", "participant_id": "p", "rail_type": "SEPA",'
            f' "idempotency_key": "k", "payload": {payload}}}'
        )
        found = attempt(
            login("executor"),
            [f"SELECT FROM orchestration.enqueue_payment_outbox('[{item}]')"],
        )
    if readable:
        assert found is None
        stored = scalar(owner, f"SELECT payload::text FROM orchestration.{ITEMS}")
        assert isinstance(json.loads(stored), dict)
    else:
        assert found is not None
        constraint = "ck_payment_outbox_items_payload" if by == "by hand" else "INV-API-001"
        assert (found.sqlstate, found.constraint) == ("23514", constraint)


def test_the_payload_hash_has_a_published_vector(owner: Connect) -> None:
    assert attempt(owner, [enqueue(sequence_id=1)]) is None
    found = scalar(owner, f"SELECT payload_hash FROM orchestration.{ITEMS}")
    assert (
        found == hashlib.sha256(b"orchestration.payload.v1" + bytes(16) + b'{"a": 1}').hexdigest()
    )


# INV-OUT-007: numbers and counters.


def numbers(connection: Connect, participant_id: str = "p") -> list[int]:
    rows = connection.execute(
        f"SELECT sequence_id FROM orchestration.{ITEMS} WHERE participant_id = %s ORDER BY 1",
        (participant_id,),
    ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.invariant("INV-OUT-007")
def test_numbers_have_no_gap_after_rollbacks_replays_and_conflicts(owner: Connect) -> None:
    assert enqueue_by_function(owner, "a", "b", "a") == [1, 2, 1]
    with owner.transaction(force_rollback=True):
        assert enqueue_by_function(owner, "c", "d") == [3, 4]
    assert enqueue_by_function(owner, "b", "c", "a") == [2, 3, 1]
    assert enter(owner, "d") == 4
    with owner.transaction(force_rollback=True):
        assert enter(owner, "e") == 5
    with owner.transaction():
        with owner.transaction(force_rollback=True):
            assert enter(owner, "e") == 5
        assert enter(owner, "f") == 5
    for _ in range(20):
        assert enter(owner, "d", on_conflict="ON CONFLICT DO NOTHING") is None
    assert enter(owner, "g", on_conflict="ON CONFLICT DO NOTHING") == 6
    assert enqueue_by_function(owner, "e") == [7]
    assert refusal(owner, enqueue(sequence_id=7)).sqlstate == "23505"
    assert enqueue_by_function(owner, "h", participant_id="q") == [1]
    assert numbers(owner) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(owner, "q") == [1]
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-007")
def test_a_conflict_that_stores_nothing_for_a_new_participant_leaves_its_first_number(
    owner: Connect,
) -> None:
    enter(owner, "k")
    found = enter(
        owner,
        "k",
        participant_id="q",
        instruction_id=INSTRUCTION,
        on_conflict="ON CONFLICT DO NOTHING",
    )
    assert found is None
    assert findings(owner) == []
    assert enter(owner, "l", participant_id="q") == 1


@pytest.mark.invariant("INV-OUT-007")
def test_many_rows_in_one_insert_are_numbered_in_turn(owner: Connect) -> None:
    owner.execute(
        """
        WITH i AS (
          INSERT INTO orchestration.payment_outbox_items
            (instruction_id, participant_id, idempotency_key, rail_type, payload)
          SELECT (ARRAY[%s, %s]::uuid[])[1 + n %% 2], 'p' || n %% 2, n::text, 'SEPA', '{}'
          FROM generate_series(1, 20) n
          RETURNING *
        )
        INSERT INTO orchestration.payment_outbox_pending
          (outbox_id, instruction_id, participant_id, sequence_id, rail_type)
        SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type FROM i
        """,
        (INSTRUCTION_OF["p0"], INSTRUCTION_OF["p1"]),
    )
    assert numbers(owner, "p0") == numbers(owner, "p1") == list(range(1, 11))
    assert findings(owner) == []
    assert enqueue_by_function(owner, "next", participant_id="p1") == [11]


@pytest.mark.invariant("INV-OUT-007")
@pytest.mark.parametrize("way", ["function", "insert", "redrive"])
@pytest.mark.parametrize("counter", ["behind", "missing"])
def test_a_counter_behind_its_items_is_read_again_from_them(
    owner: Connect, way: str, counter: str
) -> None:
    make_world(owner)
    if counter == "behind":
        owner.execute(f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 2")
    else:
        drop(owner, f"triggers/{SEQUENCES}__no_delete")
        owner.execute(f"DELETE FROM orchestration.{SEQUENCES}")
    assert [found[0] for found in findings(owner)] == ["SEQUENCE", "SPENT"]
    if way == "function":
        assert enqueue_by_function(owner, "new", "newer") == [11, 12]
    elif way == "insert":
        assert enter(owner, "new") == 11
    else:
        found = scalar(
            owner, "SELECT sequence_id FROM orchestration.redrive_outbox_item(%s)", (REJECTED,)
        )
        assert found == 11
    assert findings(owner) == [SPENT_IS_FOUND]


@pytest.mark.invariant("INV-OUT-007")
def test_numbers_that_are_supplied_in_turn_are_accepted(owner: Connect) -> None:
    ids = [id_of(number) for number in range(101, 107)]
    assert attempt(owner, [enqueue_all(item(ids[1], 2), item(ids[0], 1))]) is None
    assert attempt(owner, [enqueue(ids[2], 3)]) is None
    # A counter that is ahead is gone on from, and found.
    owner.execute(f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 6")
    assert attempt(owner, [enqueue(ids[5], 6)]) is None
    assert findings(owner) == [sequence(next_sequence_id=7, items=4, last=6)]
    # So a gap that was left is filled from its beginning.
    assert attempt(owner, [enqueue_all(item(ids[3], 4), item(ids[4], 5))]) is None
    assert findings(owner) == []
    assert enqueue_by_function(owner, "next") == [7]


@pytest.mark.invariant("INV-OUT-007")
def test_an_item_whose_number_is_supplied_makes_the_counter_that_is_missing(
    owner: Connect,
) -> None:
    statement = enqueue_all(item(id_of(101), 1), item(id_of(102), 2))
    assert attempt(owner, [statement]) is None
    of_another = {"participant_id": "'q'", "instruction_id": quoted(INSTRUCTION_OF["q"])}
    assert attempt(owner, [enqueue(id_of(103), 1, **of_another)]) is None
    counters = owner.execute(f"SELECT * FROM orchestration.{SEQUENCES} ORDER BY 1").fetchall()
    assert counters == [("p", 3), ("q", 2)]
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-007")
def test_an_item_by_hand_moves_no_counter_back(owner: Connect) -> None:
    enqueue_by_function(owner, "a", "b")
    owner.execute(f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 9")
    assert attempt(owner, [enqueue(sequence_id=3)]) is None
    assert scalar(owner, f"SELECT next_sequence_id FROM orchestration.{SEQUENCES}") == 9


@pytest.mark.invariant("INV-OUT-007")
def test_without_its_trigger_a_counter_stays_behind_and_is_found(owner: Connect) -> None:
    drop(owner, f"triggers/{ITEMS}__sequences")
    assert enqueue_by_function(owner, "a", "b") == [1, 2]
    (found,) = findings(owner)
    assert found[:3] == ("SEQUENCE", None, "p")
    assert found[3] == {"next_sequence_id": 1, "items": 2, "last": 2}
    assert enqueue_by_function(owner, "c") == [3]


@pytest.mark.invariant("INV-OUT-010")
@pytest.mark.parametrize("table", [ATTEMPTS, LATE_RESULTS])
def test_without_its_trigger_an_unknown_outcome_is_miscounted_and_is_found(
    owner: Connect, table: str
) -> None:
    if table == LATE_RESULTS:
        for statement in ended(NEW, 1, "FAILED", OTHER_INSTRUCTION):
            owner.execute(statement)
    drop(owner, f"triggers/{table}__unresolved")
    if table == ATTEMPTS:
        for statement in ended(NEW, 1, "FAILED", OTHER_INSTRUCTION):
            owner.execute(statement)
    else:
        owner.execute(late_result(outbox_id=quoted(NEW)))
    counted, unknown = (0, 1) if table == ATTEMPTS else (1, 0)
    detail = {"instruction_id": OTHER_INSTRUCTION, "unresolved": counted, "unknown": unknown}
    assert findings(owner) == [("UNRESOLVED", None, "p", detail)]


# INV-OUT-009: what verify_outbox finds.


def sequence(**detail: int) -> tuple[Any, ...]:
    return ("SEQUENCE", None, "p", detail)


SPENT_IS_FOUND = ("SPENT", SPENT, "p", {"attempt_count": 1, "max_attempts": 1})
"""What make_world leaves to be found."""


def follow(outbox_id: str, openings: int, closings: int, count: int | None) -> tuple[Any, ...]:
    detail = {"openings": openings, "closings": closings, "attempt_count": count}
    return ("ATTEMPTS", outbox_id, None, detail)


DAMAGE: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
    "a pending row removed": ((leave(FREE),), [("LOST", FREE, "p", {})]),
    "a terminal attempt removed": (
        (f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(DONE)}",),
        [("LOST", DONE, "p", {})],
    ),
    "a pending row kept after the end": (
        (insert(PENDING, pending(DONE, 5, attempt_count="1")),),
        [("TWICE", DONE, "p", {"state": "DISPATCHED"})],
    ),
    "a pending row of another rail": (
        (f"UPDATE orchestration.{PENDING} SET rail_type = 'SWIFT' WHERE {is_(FREE)}",),
        [("STRANGER", FREE, "p", {})],
    ),
    "a pending row of no item": (
        (insert(PENDING, pending()),),
        [("STRANGER", NEW, "p", {})],
    ),
    "attempts of no item": (
        (record(opening(NEW)), record(closing(NEW, "DISPATCHED"))),
        [
            ("ORPHAN", NEW, None, {"attempt_no": 1, "phase": "CLOSE"}),
            ("ORPHAN", NEW, None, {"attempt_no": 1, "phase": "OPEN"}),
        ],
    ),
    "an opening removed": (
        (f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(RETRIED)} AND phase = 'OPEN'",),
        [follow(RETRIED, 0, 1, 1)],
    ),
    "a closing removed": (
        (f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(RETRIED)} AND phase = 'CLOSE'",),
        [follow(RETRIED, 1, 0, 1)],
    ),
    "an attempt skipped": (
        (record(opening(RETRIED, 3)), record(closing(RETRIED, "RETRYABLE", 3))),
        [follow(RETRIED, 2, 2, 1)],
    ),
    "an attempt after the end": (
        (record(opening(DONE, 2)), record(closing(DONE, "RETRYABLE", 2))),
        [
            ("ATTEMPT", DONE, None, {"attempt_no": 2, "phase": "CLOSE"}),
            ("ATTEMPT", DONE, None, {"attempt_no": 2, "phase": "OPEN"}),
        ],
    ),
    "a closing by another worker": (
        (
            f"UPDATE orchestration.{ATTEMPTS} SET worker_id = 'z'"
            f" WHERE {is_(RETRIED)} AND phase = 'CLOSE'",
        ),
        [("ATTEMPT", RETRIED, None, {"attempt_no": 1, "phase": "CLOSE"})],
    ),
    "a redrive of what did not fail": (
        (
            f"UPDATE orchestration.{ITEMS} SET redrive_no = 1, redrive_of = '{DONE}'"
            f" WHERE {is_(FREE)}",
        ),
        [("REDRIVE", FREE, "p", {"redrive_of": DONE})],
    ),
    "a lease without an opening after other attempts": (
        (lease(RETRIED),),
        [follow(RETRIED, 1, 1, 2)],
    ),
    "a lease without an opening": ((lease(FREE),), [follow(FREE, 0, 0, 1)]),
    "a count of attempts that were not made": (
        (f"UPDATE orchestration.{PENDING} SET attempt_count = 5 WHERE {is_(FREE)}",),
        [follow(FREE, 0, 0, 5)],
    ),
    "a count of attempts set back": (
        (f"UPDATE orchestration.{PENDING} SET attempt_count = 0 WHERE {is_(RETRIED)}",),
        [follow(RETRIED, 1, 1, 0)],
    ),
    "a lease given up without a closing": (
        (free(LEASED),),
        [follow(LEASED, 1, 0, 1)],
    ),
    "an item and its traces removed": (
        (
            f"DELETE FROM orchestration.{ATTEMPTS} WHERE {is_(DONE)}",
            f"DELETE FROM orchestration.{ITEMS} WHERE {is_(DONE)}",
        ),
        [sequence(next_sequence_id=11, items=9, last=10)],
    ),
    "a counter ahead": (
        (f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 20",),
        [sequence(next_sequence_id=20, items=10, last=10)],
    ),
    "a number changed": (
        (f"UPDATE orchestration.{ITEMS} SET sequence_id = 12 WHERE {is_(DONE)}",),
        [sequence(next_sequence_id=11, items=10, last=12)],
    ),
}


@pytest.mark.invariant("INV-OUT-009", "INV-OUT-007")
@pytest.mark.parametrize(("statements", "expected"), DAMAGE.values(), ids=DAMAGE.keys())
def test_verify_outbox_finds_what_only_a_superuser_can_do(
    owner: Connect,
    login: Callable[[str], Connect],
    statements: tuple[str, ...],
    expected: list[tuple[Any, ...]],
) -> None:
    make_world(owner)
    for table in TABLES:
        owner.execute(f"ALTER TABLE orchestration.{table} DISABLE TRIGGER USER")
    assert attempt(owner, statements) is None
    found = findings(login("auditor"))
    assert [one for one in found if one != SPENT_IS_FOUND] == expected
    assert SPENT_IS_FOUND in found


def unauthorized(instruction_id: str, *outbox_ids: str) -> list[tuple[Any, ...]]:
    return [("UNAUTHORIZED", id, "p", {"instruction_id": instruction_id}) for id in outbox_ids]


def untimely(state: str, dispatched: int, unknown: int) -> list[tuple[Any, ...]]:
    detail = {
        "instruction_id": OTHER_INSTRUCTION,
        "state": state,
        "sent": dispatched,
        "unknown": unknown,
    }
    return [("ENDED", None, "p", detail)]


LIVE = (FREE, LEASED, EXPIRED, RETRIED, LAST, LAST_EXPIRED, SPENT)

UNKEPT: dict[str, tuple[str, tuple[str, ...], list[tuple[Any, ...]]]] = {
    **{
        f"an item of {what} instruction": (
            OPEN,
            (enqueue(instruction_id=quoted(id)),),
            unauthorized(id, NEW),
        )
        for what, id in {
            "a received": RECEIVED_INSTRUCTION,
            "a failed": FAILED_INSTRUCTION,
            "no": NO_INSTRUCTION,
            "another participant's": INSTRUCTION_OF["q"],
        }.items()
    },
    "an instruction completed over its live items": (
        OPEN,
        moves(INSTRUCTION, "EXECUTING", "COMPLETED"),
        unauthorized(INSTRUCTION, *LIVE),
    ),
    "an instruction completed without an item": (
        END_GUARD,
        moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        untimely("COMPLETED", 0, 0),
    ),
    "an instruction completed with an unknown item": (
        END_GUARD,
        (
            *ended(NEW, 11, "FAILED", OTHER_INSTRUCTION),
            *moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        ),
        untimely("COMPLETED", 0, 1),
    ),
    "an instruction failed with an unknown item": (
        END_GUARD,
        (*ended(NEW, 11, "FAILED", OTHER_INSTRUCTION), *moves(OTHER_INSTRUCTION, "FAILED")),
        untimely("FAILED", 0, 1),
    ),
    "an instruction failed with a dispatched item": (
        END_GUARD,
        (*ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION), *moves(OTHER_INSTRUCTION, "FAILED")),
        untimely("FAILED", 1, 0),
    ),
}


@pytest.mark.invariant("INV-INS-005", "INV-INS-006")
@pytest.mark.parametrize(("without", "statements", "expected"), UNKEPT.values(), ids=UNKEPT.keys())
def test_verify_outbox_finds_instructions_that_are_not_as_their_items(
    owner: Connect,
    login: Callable[[str], Connect],
    without: str,
    statements: tuple[str, ...],
    expected: list[tuple[Any, ...]],
) -> None:
    make_world(owner)
    drop(owner, without)
    assert attempt(owner, statements) is None
    assert [one for one in findings(login("auditor")) if one != SPENT_IS_FOUND] == expected


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-005", "INV-INS-006")
@pytest.mark.parametrize(
    ("statements", "expected"),
    [case[1:] for case in UNKEPT.values() if case[0] == OPEN],
    ids=[name for name, case in UNKEPT.items() if case[0] == OPEN],
)
def test_verify_outbox_finds_what_the_foreign_key_lets_in_in_replica_mode(
    superuser: Connect,
    login: Callable[[str], Connect],
    statements: tuple[str, ...],
    expected: list[tuple[Any, ...]],
) -> None:
    make_world(superuser)
    superuser.execute("SET session_replication_role = replica")
    assert attempt(superuser, statements) is None
    superuser.execute(
        f"UPDATE orchestration.{SEQUENCES} SET next_sequence_id = 1 + ("
        f"SELECT max(sequence_id) FROM orchestration.{ITEMS})"
    )
    assert [one for one in findings(login("auditor")) if one != SPENT_IS_FOUND] == expected


@pytest.mark.invariant("INV-INS-006")
@pytest.mark.parametrize(
    "statements",
    [
        moves(OTHER_INSTRUCTION, "FAILED"),
        moves(OTHER_INSTRUCTION, "EXECUTING", "FAILED"),
        (
            *ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION),
            *ended(id_of(98), 12, "FAILED", OTHER_INSTRUCTION),
            *moves(OTHER_INSTRUCTION, "EXECUTING", "COMPLETED"),
        ),
        (
            enqueue(NEW, 11, instruction_id=quoted(OTHER_INSTRUCTION)),
            claim(NEW),
            record(closing(NEW, "FAILED", outcome="'REJECTED'")),
            leave(NEW),
            *moves(OTHER_INSTRUCTION, "FAILED"),
        ),
    ],
    ids=["no item", "no item, executing", "one dispatched and one unknown", "one rejected"],
)
def test_an_instruction_ends_as_its_items_have_ended(
    owner: Connect, statements: tuple[str, ...]
) -> None:
    make_world(owner)
    assert attempt(owner, statements) is None
    assert findings(owner) == [SPENT_IS_FOUND]


@pytest.mark.invariant("INV-OUT-009", "INV-OUT-007")
def test_verify_outbox_finds_nothing_where_all_is_well(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    assert findings(owner) == []
    make_world(owner)
    for role in ("auditor", "control"):
        assert findings(login(role)) == [SPENT_IS_FOUND]
    for table in (ATTEMPTS, PENDING):
        owner.execute(f"ALTER TABLE orchestration.{table} DISABLE TRIGGER USER")
    owner.execute(
        f"UPDATE orchestration.{ATTEMPTS} SET state = 'FAILED', outcome = 'NOT_SENT'"
        f" WHERE {is_(SPENT)} AND phase = 'CLOSE'"
    )
    owner.execute(leave(SPENT))
    for role in ("auditor", "control"):
        assert findings(login(role)) == []


# What an owner's direct change must not do to the functions.


@pytest.mark.invariant("INV-OUT-009", "INV-OUT-005")
def test_a_count_of_attempts_that_were_not_made_does_not_jam_the_claims_of_others(
    owner: Connect,
) -> None:
    enqueue_by_function(owner, "a", "b")
    attempt(
        owner,
        [f"UPDATE orchestration.{PENDING} SET attempt_count = 5 WHERE sequence_id = 1"],
    )
    claimed = owner.execute(
        "SELECT sequence_id FROM orchestration.claim_outbox_batch('w', 10, interval '1 minute')"
    ).fetchall()
    assert (2,) in claimed


# The functions, by hosts in any language.


def call(function: str, **arguments: str) -> str:
    listed = ", ".join(f"p_{name} => {value}" for name, value in arguments.items())
    return f"SELECT * FROM orchestration.{function}({listed})"


TOO_MANY = "(SELECT jsonb_agg(jsonb_build_object('outbox_id', n)) FROM generate_series(1, 10001) n)"


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    "statement",
    [
        call("enqueue_payment_outbox", items="NULL"),
        call("enqueue_payment_outbox", items="'{}'"),
        call("enqueue_payment_outbox", items=TOO_MANY),
        call("complete_outbox_attempt", completions="NULL"),
        call("complete_outbox_attempt", completions="'{}'"),
        call("complete_outbox_attempt", completions=TOO_MANY),
        *(
            call(
                "claim_outbox_batch",
                **({"worker_id": "'w'", "batch_size": "1", "lease": "'1 minute'"} | bad),
            )
            for bad in (
                {"worker_id": "NULL"},
                {"worker_id": "''"},
                {"batch_size": "NULL"},
                {"batch_size": "0"},
                {"batch_size": "-1"},
                {"batch_size": "10001"},
                {"lease": "NULL"},
                {"lease": "'0.999999 seconds'"},
                {"lease": "'-1 hour'"},
                {"lease": "'1 day 0.000001 seconds'"},
                {"lease": "'-100 years 36525 days'"},
                {"lease": "'100 years -36523 days'"},
                {"max_bytes": "NULL"},
                {"max_bytes": "0"},
                {"max_bytes": "-1"},
                {"max_bytes": "1073741825"},
            )
        ),
        call("complete_outbox_attempt", completions="'[]'", partial="NULL"),
        *(
            call(
                "enqueue_payment_outbox",
                items=f"jsonb_build_array(jsonb_build_object('instruction_id', '{INSTRUCTION}',"
                " 'participant_id', 'p', 'idempotency_key', 'k', 'rail_type', 'SEPA',"
                f" 'payload', jsonb '{{}}', 'due_at', {due_at}))",
            )
            for due_at in ("clock_timestamp() + interval '400 days 1 minute'", "'infinity'")
        ),
        *(
            call(
                "renew_outbox_lease",
                outbox_id=f"'{LEASED}'",
                lease_token=f"'{TOKEN}'",
                worker_id="'w'",
                lease=bad,
            )
            for bad in (
                *("NULL", "'0.999999 seconds'", "'1 day 0.000001 seconds'"),
                *("'-100 years 36525 days'", "'100 years -36523 days'"),
            )
        ),
        *(
            call(
                "complete_outbox_attempt",
                completions=f"jsonb_build_array(jsonb_build_object('outbox_id', '{LEASED}',"
                f" 'lease_token', '{TOKEN}', 'worker_id', 'w', 'state', 'RETRYABLE',"
                f" 'retry_in', '{bad}'))",
            )
            for bad in (
                *("-1 microsecond", "100 years 0.000001 seconds"),
                *("-100 years 36524 days", "100 years 1 day"),
            )
        ),
        *(call("repair_expired_leases", limit=bad) for bad in ("NULL", "-1", "10001")),
    ],
)
def test_an_argument_out_of_bounds_is_refused(owner: Connect, statement: str) -> None:
    before = picture(owner)
    found = refusal(owner, statement)
    assert (found.sqlstate, found.constraint) == ("22023", "INV-API-001")
    assert found.message.startswith("INV-API-001: ")
    assert isinstance(found.keys, dict)
    assert found.hint
    assert picture(owner) == before


def lasting(function: str, interval: str) -> str:
    """The call that claims, renews or retries for so long."""
    return {
        "claim": call(
            "claim_outbox_batch",
            **{"worker_id": "'w'", "batch_size": "10", "lease": f"'{interval}'"},
        ),
        "renew": call(
            "renew_outbox_lease",
            outbox_id=f"'{LEASED}'",
            lease_token=f"'{TOKEN}'",
            worker_id="'w'",
            lease=f"'{interval}'",
        ),
        "retry": call(
            "complete_outbox_attempt",
            completions=f"jsonb_build_array(jsonb_build_object('outbox_id', '{LEASED}',"
            f" 'lease_token', '{TOKEN}', 'worker_id', 'w', 'state', 'RETRYABLE',"
            f" 'retry_in', '{interval}'))",
        ),
    }[function]


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("function", ["claim", "renew", "retry"])
@pytest.mark.parametrize("interval", ["infinity", "-infinity"])
def test_an_infinite_time_is_refused(owner: Connect, function: str, interval: str) -> None:
    if owner.info.server_version < 170000:
        pytest.skip("not run: before 17 no interval is infinite")
    found = refusal(owner, lasting(function, interval))
    assert (found.sqlstate, found.constraint) == ("22023", "INV-API-001")


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("function", "id", "interval", "seconds"),
    [
        # By the calendar, this lasts 525 days and the next lies in the past.
        ("claim", FREE, "100 years -36524 days", 86_400),
        ("claim", FREE, "-100 years 36526 days", 86_400),
        ("claim", FREE, "-1 month 30 days 1 second", 1),
        ("claim", FREE, "1 day", 86_400),
        ("renew", LEASED, "100 years -36524 days", 86_400),
        ("renew", LEASED, "-100 years 36526 days", 86_400),
        ("retry", LEASED, "-100 years 36526 days", 86_400),
        ("retry", LEASED, "1 month", 30 * 86_400),
        ("retry", LEASED, "1 year", 365.25 * 86_400),
        ("retry", LEASED, "100 years", 36_525 * 86_400),
        ("retry", LEASED, "0.000001 seconds", 0.000001),
    ],
)
def test_a_time_lasts_the_seconds_it_was_judged_by(
    owner: Connect, function: str, id: str, interval: str, seconds: float, zone: str
) -> None:
    owner.execute(f"SET TimeZone = '{zone}'")
    until = "next_attempt_at" if function == "retry" else "lease_expires_at"
    with owner.transaction(force_rollback=True):
        owner.execute(lasting(function, interval))
        assert scalar(
            owner,
            f"SELECT extract(epoch FROM {until}) - extract(epoch FROM clock_timestamp())"
            f" BETWEEN %s::numeric - 60 AND %s::numeric"
            f" FROM orchestration.{PENDING} WHERE {is_(id)}",
            (seconds, seconds),
        )


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-API-001", "INV-OUT-002")
@pytest.mark.parametrize(
    ("missing", "sqlstate"),
    [("outbox_id", "P0002"), ("lease_token", "P7002"), ("worker_id", "P7002"), ("lease", "22023")],
)
def test_a_renewal_without_an_argument_is_refused(
    owner: Connect, missing: str, sqlstate: str
) -> None:
    given = {
        "outbox_id": f"'{LEASED}'",
        "lease_token": f"'{TOKEN}'",
        "worker_id": "'w'",
        "lease": "'1 minute'",
    }
    assert refusal(owner, call("renew_outbox_lease", **(given | {missing: "NULL"}))).sqlstate == (
        sqlstate
    )


@pytest.mark.invariant("INV-OUT-003")
@pytest.mark.parametrize("partial", ["false", "true"])
def test_a_failed_completion_without_an_outcome_is_refused_by_the_function(
    owner: Connect, partial: str
) -> None:
    make_world(owner)
    completion = {"outbox_id": LEASED, "lease_token": TOKEN, "worker_id": "w", "state": "FAILED"}
    found = refusal(
        owner,
        call(
            "complete_outbox_attempt",
            completions=f"'{json.dumps([completion])}'::jsonb",
            partial=partial,
        ),
    )
    assert_invariant(found, "INV-OUT-003", "22023", ATTEMPTS)
    assert (found.column, found.keys) == ("outcome", {"outbox_id": LEASED})


@pytest.mark.unchanged(after=make_instructions)
@pytest.mark.invariant("INV-API-002")
def test_a_redrive_of_no_item_is_refused(owner: Connect) -> None:
    found = refusal(owner, call("redrive_outbox_item", outbox_id="NULL"))
    assert_invariant(found, "INV-API-002", "P0002", ITEMS)


@pytest.mark.invariant("INV-API-001")
def test_an_item_is_due_within_400_days(owner: Connect) -> None:
    item = {
        "instruction_id": INSTRUCTION,
        "participant_id": "p",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    owner.execute(
        "SELECT FROM orchestration.enqueue_payment_outbox(jsonb_build_array(%s::jsonb"
        " || jsonb_build_object('due_at', clock_timestamp() + interval '399 days 23 hours')))",
        (json.dumps(item),),
    )
    assert scalar(owner, f"SELECT count(*) FROM orchestration.{PENDING}") == 1


@pytest.mark.unchanged(after=make_all)
@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize(
    "statement",
    [
        call("redrive_outbox_item", outbox_id=f"'{NEW}'"),
        call(
            "renew_outbox_lease",
            outbox_id=f"'{NEW}'",
            lease_token=f"'{TOKEN}'",
            worker_id="'w'",
            lease="'1 minute'",
        ),
        *(
            call(
                "complete_outbox_attempt",
                completions=f"jsonb_build_array(jsonb_build_object('outbox_id', '{NEW}',"
                f" 'lease_token', '{TOKEN}', 'worker_id', 'w', 'state', 'DISPATCHED'))",
                partial=partial,
            )
            for partial in ("false", "true")
        ),
    ],
)
def test_an_act_on_an_unknown_item_is_refused(owner: Connect, statement: str) -> None:
    found = refusal(owner, statement)
    assert_invariant(found, "INV-API-002", "P0002", ITEMS)
    assert (found.column, found.keys) == ("outbox_id", {"outbox_id": NEW})


@pytest.mark.unchanged(after=make_instructions)
@pytest.mark.parametrize(
    "missing", ["instruction_id", "participant_id", "idempotency_key", "rail_type", "payload"]
)
def test_an_item_without_a_needed_value_is_refused_by_its_column(
    owner: Connect, missing: str
) -> None:
    values = {
        "instruction_id": INSTRUCTION,
        "participant_id": "p",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    del values[missing]
    found = refusal(
        owner, "SELECT FROM orchestration.enqueue_payment_outbox(%s)", (json.dumps([values]),)
    )
    assert (found.sqlstate, found.column) == ("23502", missing)


def claimed(connection: Connect, batch_size: int, max_bytes: int = 16 * 2**20) -> list[str]:
    """The ids that a claim hands out, in its order."""
    rows = connection.execute(
        "SELECT outbox_id::text FROM orchestration.claim_outbox_batch(p_worker_id => 'w2',"
        " p_batch_size => %s, p_lease => interval '1 hour', p_max_bytes => %s)",
        (batch_size, max_bytes),
    ).fetchall()
    return [row[0] for row in rows]


@pytest.mark.invariant("INV-OUT-003", "INV-OUT-008")
def test_a_claim_takes_what_is_due_and_no_more_than_asked(owner: Connect) -> None:
    make_world(owner)
    owner.execute(enqueue(next_ := id_of(98), 11))
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET next_attempt_at = now() + interval '1 minute'"
        f" WHERE outbox_id = '{next_}'"
    )
    # LAST_EXPIRED ends at its ceiling and takes no place in a batch. SPENT cannot be claimed.
    assert claimed(owner, 2) == [EXPIRED, FREE]
    assert claimed(owner, 2) == [RETRIED]
    assert claimed(owner, 2) == []
    assert findings(owner) == [SPENT_IS_FOUND]
    assert (
        scalar(
            owner,
            f"SELECT outcome FROM orchestration.payment_outbox_status WHERE {is_(LAST_EXPIRED)}",
        )
        == "UNKNOWN"
    )


def fill(
    owner: Connect, count: int, *, first: int = 1, max_attempts: int = 20, payload: str = "{}"
) -> list[str]:
    """Items of participant p that are due one microsecond after the other."""
    return [
        row[0]
        for row in owner.execute(
            "SELECT outbox_id::text FROM orchestration.enqueue_payment_outbox((SELECT jsonb_agg("
            "jsonb_build_object('instruction_id', %s::uuid, 'participant_id', 'p',"
            " 'idempotency_key', 'fill ' || n, 'rail_type', 'SEPA', 'payload', %s::jsonb,"
            " 'max_attempts', %s::integer,"
            " 'due_at', timestamptz '2020-01-01 00:00:00Z' + n * interval '1 microsecond')"
            " ORDER BY n) FROM generate_series(%s::integer, %s::integer) n))",
            (INSTRUCTION, payload, max_attempts, first, first + count - 1),
        ).fetchall()
    ]


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_takes_what_has_been_due_longest_first(owner: Connect) -> None:
    later, sooner = fill(owner, 2, first=3), fill(owner, 2)
    assert claimed(owner, 3) == [*sooner, later[0]]
    assert claimed(owner, 3) == [later[1]]


@pytest.mark.invariant("INV-OUT-003", "INV-OUT-008")
@pytest.mark.parametrize("dead_first", [True, False])
def test_a_claim_fills_its_batch_though_it_ends_items(owner: Connect, dead_first: bool) -> None:
    """The reported case: 5 due, 7 dead and batches of 3 gave 1, 0, 2, 3."""
    dead = fill(owner, 7, first=1 if dead_first else 6, max_attempts=1)
    assert claimed(owner, 7) == dead
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = next_attempt_at"
        " + interval '1 microsecond'"
    )
    due = fill(owner, 5, first=8 if dead_first else 1)
    assert [claimed(owner, 3), claimed(owner, 3), claimed(owner, 3)] == [due[:3], due[3:], []]
    ended = owner.execute(
        f"SELECT outbox_id::text FROM orchestration.{ATTEMPTS} WHERE state = 'FAILED'"
        " AND outcome = 'UNKNOWN' AND error_code = 'RETRY_CEILING_EXCEEDED' ORDER BY 1"
    ).fetchall()
    assert [row[0] for row in ended] == sorted(dead)
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-008", "INV-OUT-009")
def test_what_no_claim_can_close_is_stepped_around(owner: Connect) -> None:
    """An expired lease whose attempt was opened under another token, as only an owner can make."""
    make_world(owner)
    owner.execute(f"ALTER TABLE orchestration.{PENDING} DISABLE TRIGGER guard_update")
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET lease_token = '{OTHER_TOKEN}' WHERE {is_(EXPIRED)}"
    )
    owner.execute(f"ALTER TABLE orchestration.{PENDING} ENABLE ALWAYS TRIGGER guard_update")
    assert claimed(owner, 2) == [FREE, RETRIED]
    repaired = owner.execute(call("repair_expired_leases", limit="10")).fetchall()
    assert repaired == []
    assert scalar(
        owner, f"SELECT lease_token FROM orchestration.{PENDING} WHERE {is_(EXPIRED)}"
    ) == UUID(OTHER_TOKEN)


@pytest.mark.invariant("INV-OUT-008")
@pytest.mark.parametrize(
    ("max_bytes", "count"), [(1, 1), (10_015, 1), (10_016, 1), (20_031, 1), (20_032, 2)]
)
def test_a_claim_ends_before_its_payloads_exceed_the_budget(
    owner: Connect, max_bytes: int, count: int
) -> None:
    # The text of the payload is {"memo": "x..."}, 10,012 bytes and more; stored it is far smaller.
    made = fill(owner, 3, payload=json.dumps({"memo": "x" * 10_004}))
    length = scalar(owner, f"SELECT octet_length(payload::text) FROM orchestration.{ITEMS} LIMIT 1")
    assert length == 10_016
    assert claimed(owner, 3, max_bytes) == made[:count]
    left = f"SELECT outbox_id::text FROM orchestration.{PENDING} WHERE attempt_count = 0"
    assert {id for (id,) in owner.execute(left)} == {*made[count:]}
    assert claimed(owner, 3) == made[count:]


INDEX = "ix_payment_outbox_pending_next_attempt_at_outbox_id"


def met(connection: Connect, act: Callable[[], object]) -> int:
    """How many pending rows `act` reads through the index of due items; it is rolled back."""
    counter = f"SELECT pg_stat_get_xact_tuples_fetched('orchestration.{INDEX}'::regclass)"
    with connection.transaction(force_rollback=True):
        before = scalar(connection, counter)
        act()
        return int(scalar(connection, counter) - before)


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_reads_no_item_that_is_scheduled_for_later(owner: Connect) -> None:
    due = fill(owner, 5)
    fill(owner, 2000, first=6)
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET next_attempt_at = clock_timestamp()"
        " + interval '1 day' WHERE outbox_id <> ALL (%s::uuid[])",
        (due,),
    )
    assert met(owner, lambda: claimed(owner, 3)) == 3
    assert met(owner, lambda: claimed(owner, 100)) == 5
    owner.execute(f"UPDATE orchestration.{PENDING} SET lease_expires_at = NULL")
    repair = call("repair_expired_leases", limit="100")
    assert met(owner, lambda: owner.execute(repair)) <= 5


@pytest.mark.invariant("INV-OUT-002", "INV-OUT-008")
def test_long_leases_are_passed_over_once_and_then_set_apart(owner: Connect) -> None:
    leased = fill(owner, 3000)
    assert claimed(owner, 3000) == leased
    fill(owner, 10, first=3001)
    assert met(owner, lambda: claimed(owner, 1)) >= 3001
    for _ in range(3):
        assert len(claimed(owner, 1)) == 1
    assert met(owner, lambda: claimed(owner, 1)) <= 1010
    # They are found again when their leases end, or are made to end earlier.
    assert scalar(
        owner,
        f"SELECT bool_and(next_attempt_at <= lease_expires_at) FROM orchestration.{PENDING}",
    )
    owner.execute(
        f"UPDATE orchestration.{PENDING} SET lease_expires_at = clock_timestamp()"
        f" - interval '1 minute' WHERE outbox_id = '{leased[0]}'"
    )
    assert claimed(owner, 1) != [leased[0]]
    assert leased[0] in claimed(owner, 10)
    assert findings(owner) == []


@pytest.mark.invariant("INV-OUT-008")
def test_a_claim_updates_every_row_on_its_page(owner: Connect) -> None:
    fill(owner, 1000)
    counters = (
        f"SELECT pg_stat_get_xact_tuples_updated('orchestration.{PENDING}'::regclass),"
        f" pg_stat_get_xact_tuples_hot_updated('orchestration.{PENDING}'::regclass)"
    )
    with owner.transaction():
        updated, hot = owner.execute(counters).fetchall()[0]
        for _ in range(4):
            assert len(claimed(owner, 250)) == 250
        updated_now, hot_now = owner.execute(counters).fetchall()[0]
    assert (updated_now - updated, hot_now - hot) == (1000, 1000)

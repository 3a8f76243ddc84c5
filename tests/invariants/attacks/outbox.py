"""Attacks on the outbox, and on what ties it to instructions."""

from collections.abc import Iterator

from tests.invariants.attacks.base import (
    LATER,
    SALT,
    SELF,
    Attack,
    Detail,
    Noun,
    Row,
    attest,
    authorize,
    changes,
    copy,
    delete,
    deletes,
    insert,
    inserts,
    moves,
    payload_hash,
    receive,
    rotate,
    truncates,
    update,
    updates,
)

ITEMS, PENDING = "payment_outbox_items", "payment_outbox_pending"
ATTEMPTS, SEQUENCES = "payment_outbox_attempts", "participant_outbox_sequences"
TABLES = (ITEMS, PENDING, ATTEMPTS, SEQUENCES)
LATE_RESULTS, INTERVENTIONS = "payment_outbox_late_results", "payment_outbox_interventions"
INSTRUCTIONS = "instructions"

ITEMS_GUARD = f"triggers/{ITEMS}__guard"
REDRIVE_GUARD = f"triggers/{ITEMS}__guard_redrive"
ATTEMPTS_GUARD = f"triggers/{ATTEMPTS}__guard"
ENTRY_GUARD = f"triggers/{PENDING}__guard_insert"
UPDATE_GUARD = f"triggers/{PENDING}__guard_update"
LATE_GUARD = f"triggers/{LATE_RESULTS}__guard"
END_GUARD = f"triggers/{INSTRUCTIONS}__guard_end"
OPEN = "constraints/fk_payment_outbox_pending_participant_id_instruction_id_open"


def id_of(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012}"


FREE, LEASED, EXPIRED, RETRIED, DONE, REJECTED, UNKNOWN, LAST, LAST_EXPIRED, SPENT = map(
    id_of, range(1, 11)
)
"""One item in each state, in the order of their numbers; SPENT is in a state that no item can
reach."""
NEXT, NEW = id_of(98), id_of(99)
TOKEN, OTHER_TOKEN = id_of(1001), id_of(1002)
INSTRUCTION, OTHER_INSTRUCTION = id_of(2001), id_of(2002)
INSTRUCTION_OF = {"p": INSTRUCTION, "q": id_of(2003), "p0": id_of(2004), "p1": id_of(2005)}
RECEIVED_INSTRUCTION, FAILED_INSTRUCTION, NO_INSTRUCTION = id_of(2006), id_of(2007), id_of(2008)
UNKNOWN_INSTRUCTION, ATTESTATION = id_of(2009), id_of(2010)


# Whole rows: a trigger or a default has nothing to fill in.


def item(outbox_id: str = NEW, sequence_id: int = 11, **changed: str) -> Row:
    whole = {
        "outbox_id": f"'{outbox_id}'",
        "instruction_id": f"'{INSTRUCTION}'",
        "participant_id": "'p'",
        "sequence_id": str(sequence_id),
        "idempotency_key": f"'{outbox_id}'",
        "redrive_no": "0",
        "redrive_of": "NULL",
        "rail_type": "'SEPA'",
        "payload": "'{\"a\": 1}'",
        "payload_salt": SALT,
        "payload_hash": payload_hash('{"a": 1}'),
        "max_attempts": "20",
        "created_at": "clock_timestamp()",
        **SELF,
    }
    assert changed.keys() <= whole.keys()
    return whole | changed


def pending(outbox_id: str = NEW, sequence_id: int = 11, **changed: str) -> Row:
    """A pending row as an item enters."""
    whole = {
        "outbox_id": f"'{outbox_id}'",
        "instruction_id": f"'{INSTRUCTION}'",
        "participant_id": "'p'",
        "sequence_id": str(sequence_id),
        "rail_type": "'SEPA'",
        "attempt_count": "0",
        "next_attempt_at": "clock_timestamp()",
        "claimed_by": "NULL",
        "lease_token": "NULL",
        "lease_expires_at": "NULL",
    }
    assert changed.keys() <= whole.keys()
    return whole | changed


def opening(outbox_id: str, attempt_no: int = 1, **changed: str) -> Row:
    """An opening as a claim under TOKEN writes it."""
    whole = {
        "outbox_id": f"'{outbox_id}'",
        "attempt_no": str(attempt_no),
        "phase": "'OPEN'",
        "state": "'DISPATCHING'",
        "outcome": "NULL",
        "requested_state": "NULL",
        "lease_token": f"'{TOKEN}'",
        "worker_id": "'w'",
        "claimed_at": "clock_timestamp()",
        "completed_at": "NULL",
        **SELF,
    }
    assert changed.keys() <= whole.keys()
    return whole | changed


def closing(outbox_id: str, state: str, attempt_no: int = 1, **changed: str) -> Row:
    """A closing as a worker's completion writes it."""
    closes = {
        "phase": "'CLOSE'",
        "state": f"'{state}'",
        "requested_state": "NULL" if state == "ZOMBIE_REQUEUE" else f"'{state}'",
        "outcome": "'UNKNOWN'" if state == "FAILED" else "NULL",
        "claimed_at": (
            f"(SELECT o.claimed_at FROM orchestration.{ATTEMPTS} o WHERE o.outbox_id ="
            f" '{outbox_id}' AND o.attempt_no = {attempt_no} AND o.phase = 'OPEN')"
        ),
        "completed_at": "clock_timestamp()",
    }
    return opening(outbox_id, attempt_no, **(closes | changed))


def late_result(**changed: str) -> str:
    """What reconciliation found out about the rejected item."""
    whole = {
        "outbox_id": f"'{REJECTED}'",
        "result_no": "1",
        "attempt_no": "1",
        "source": "'RECONCILIATION'",
        "outcome": "'REJECTED'",
        "reason": "'test'",
        "lease_token": "NULL",
        "recorded_by": "'test'",
        "recorded_at": "clock_timestamp()",
        "instruction_version": "2",
        **SELF,
    }
    assert changed.keys() <= whole.keys()
    return insert(LATE_RESULTS, whole | changed)


# Statements.

SHARED = "outbox_id, instruction_id, participant_id, sequence_id, rail_type"


def enters(item_: dict[str, str] | None = None, pending_: dict[str, str] | None = None) -> str:
    """An item and its pending row, given apart, in one statement."""
    return f"WITH p AS ({insert(PENDING, pending(**pending_ or {}))}) " + insert(
        ITEMS, item(**item_ or {})
    )


def both(**changed: str) -> str:
    """An item and its pending row, changed alike, in one statement."""
    return enters(changed, {key: changed[key] for key in changed if key in SHARED})


def enqueue_all(*items: Row) -> str:
    """Items with their pending rows, in one statement."""
    register = insert(ITEMS, *items)
    return (
        f"WITH i AS ({register} RETURNING *)"
        f" INSERT INTO orchestration.{PENDING} ({SHARED}) SELECT {SHARED} FROM i"
    )


def enqueue(outbox_id: str = NEW, sequence_id: int = 11, **changed: str) -> str:
    return enqueue_all(item(outbox_id, sequence_id, **changed))


def record(row: Row) -> str:
    return insert(ATTEMPTS, row)


def is_(outbox_id: str) -> str:
    return f"outbox_id = '{outbox_id}'"


def lease(outbox_id: str, token: str = TOKEN, ends: str = "1 hour") -> str:
    return update(
        PENDING,
        f"attempt_count = attempt_count + 1, claimed_by = 'w', lease_token = '{token}',"
        f" lease_expires_at = clock_timestamp() + interval '{ends}'",
        is_(outbox_id),
    )


def claim(outbox_id: str, attempt_no: int = 1, **changed: str) -> str:
    """An opening with its lease: the first under TOKEN, a later one under OTHER_TOKEN."""
    token = TOKEN if attempt_no == 1 else OTHER_TOKEN
    row = opening(outbox_id, attempt_no, **{"lease_token": f"'{token}'"} | changed)
    return f"WITH p AS ({lease(outbox_id, token)}) {record(row)}"


def expire(outbox_id: str) -> str:
    ended = "lease_expires_at = clock_timestamp() - interval '1 minute'"
    return update(PENDING, ended, is_(outbox_id))


def free(outbox_id: str) -> str:
    freed = "claimed_by = NULL, lease_token = NULL, lease_expires_at = NULL"
    return update(PENDING, freed, is_(outbox_id))


def leave(outbox_id: str) -> str:
    return delete(PENDING, is_(outbox_id))


def ended(
    outbox_id: str, sequence_id: int, state: str, instruction_id: str, **closes: str
) -> tuple[str, ...]:
    """An item of the instruction from its entry to its end."""
    return (
        enqueue(outbox_id, sequence_id, instruction_id=f"'{instruction_id}'"),
        claim(outbox_id),
        record(closing(outbox_id, state, **closes)),
        leave(outbox_id),
    )


# The attacks.

EMPTY = "473b9836702fe17e8799a7bc2a04d460e9edab1a1fc69c350877832c0a54cf63"
"""payload_hash of an empty object under a salt of zeros."""


def append_only() -> Iterator[Attack]:
    kept_item = Attack(
        *("", "INV-OUT-001", "P0001", ITEMS, {"outbox_id": FREE}),
        (f"triggers/{ITEMS}__append_only",),
    )
    yield from kept_item.each(
        changes(
            ITEMS,
            is_(FREE),
            {
                "outbox_id": f"'{NEW}'",
                "instruction_id": f"'{OTHER_INSTRUCTION}'",
                "participant_id": "'q'",
                "sequence_id": "12",
                "idempotency_key": "'forged'",
                "rail_type": "'SWIFT'",
                "max_attempts": "1000",
                "created_at": "created_at - interval '1 day'",
                "db_user": "'forged'",
                "xact_id": "1",
            },
        )
    )
    yield kept_item.by(
        "another payload with the right hash",
        update(
            ITEMS,
            f"payload = '{{}}', payload_hash = {payload_hash('{}', 'payload_salt')}",
            is_(FREE),
        ),
    )
    yield from kept_item.each(
        updates(*("another rail", ITEMS, "rail_type = 'SWIFT'", is_(FREE), item(FREE), "outbox_id"))
    )
    yield from kept_item.each(deletes(ITEMS, is_(FREE)))
    yield from kept_item.each(
        truncates(ITEMS), detail={}, without=(f"triggers/{ITEMS}__no_truncate",)
    )
    yield from kept_item.each(
        truncates(*TABLES),
        detail={},
        without=tuple(f"triggers/{table}__no_truncate" for table in TABLES),
    )

    for table, id, number in (
        (LATE_RESULTS, REJECTED, "result_no"),
        (INTERVENTIONS, EXPIRED, "intervention_no"),
    ):
        kept = Attack(
            *("", "INV-APP-001", "P0001", table, {"outbox_id": id, number: 1}),
            (f"triggers/{table}__append_only",),
        )
        yield kept.by(f"{table}: another reason", update(table, "reason = 'forged'", is_(id)))
        yield from kept.each(deletes(table, is_(id)))
        yield from kept.each(
            truncates(table), detail={}, without=(f"triggers/{table}__no_truncate",)
        )

    kept_attempt = Attack(
        *("", "INV-OUT-001", "P0001", ATTEMPTS),
        {"outbox_id": DONE, "attempt_no": 1, "phase": "CLOSE"},
        (f"triggers/{ATTEMPTS}__append_only",),
    )
    its = f"{is_(DONE)} AND phase = 'CLOSE'"
    yield from kept_attempt.each(
        changes(
            ATTEMPTS,
            its,
            {
                "attempt_no": "2",
                "lease_token": f"'{OTHER_TOKEN}'",
                "worker_id": "'forged'",
                "claimed_at": "claimed_at - interval '1 day'",
                "completed_at": "completed_at - interval '1 day'",
                "rail_reference": "'forged'",
                "error_message": "'forged'",
                "db_user": "'forged'",
                "xact_id": "1",
            },
        )
    )
    yield from kept_attempt.each(
        updates(
            *("another code of the rail", ATTEMPTS, "rail_code = 'X'", its),
            *(closing(DONE, "DISPATCHED"), "outbox_id, attempt_no, phase"),
        )
    )
    yield from kept_attempt.each(deletes(ATTEMPTS, its))
    yield from kept_attempt.each(
        truncates(ATTEMPTS), detail={}, without=(f"triggers/{ATTEMPTS}__no_truncate",)
    )


def forged() -> Iterator[Attack]:
    of_item = Attack(
        *("", "INV-OUT-001", "22023", ITEMS, {"outbox_id": NEW}, (ITEMS_GUARD,)), column="db_user"
    )
    yield of_item.by("an item with a forged db_user", both(db_user="'forger'"))
    yield of_item.by("an item with a created_at in the future", both(created_at=LATER))
    yield of_item.by(
        "an item with a forged xact_id", both(xact_id="1"), without=(ITEMS_GUARD, ENTRY_GUARD)
    )
    of_attempt = Attack(
        *("", "INV-OUT-001", "22023", ATTEMPTS, {"outbox_id": ..., "attempt_no": 1}),
        (ATTEMPTS_GUARD,),
        column="db_user",
    )
    for column, value in {"db_user": "'forger'", "xact_id": "1"}.items():
        row = closing(LEASED, "DISPATCHED", **{column: value})
        yield of_attempt.by(f"an opening with a forged {column}", claim(FREE, **{column: value}))
        yield of_attempt.by(f"a closing with a forged {column}", record(row))
    copied = opening(FREE, claimed_at="'2020-01-01Z'", db_user="'forger'", xact_id="1")
    yield of_attempt.by("an attempt with a forged db_user by COPY", copy(ATTEMPTS, copied))


def leases() -> Iterator[Attack]:
    def lost(name: str, id: str, state: str, *before: str, **changed: str) -> Attack:
        return Attack(
            *(name, "INV-OUT-002", "P7002", ATTEMPTS),
            {"outbox_id": id, "attempt_no": 1, "worker_id": ..., "state": state},
            (ATTEMPTS_GUARD,),
            column="lease_token",
            statements=(*before, record(closing(id, state, **changed))),
        )

    for name, column, value in (
        ("another worker", "worker_id", "'thief'"),
        ("another claimed_at", "claimed_at", "clock_timestamp()"),
        ("a completed_at in the past", "completed_at", "'2020-01-01Z'"),
        (
            "a completed_at a moment ago",
            *("completed_at", "statement_timestamp() - interval '1 microsecond'"),
        ),
        ("a completed_at in the future", "completed_at", LATER),
        (
            "a completed_at in the future, before the lease ends",
            *("completed_at", "clock_timestamp() + interval '30 minutes'"),
        ),
        ("an infinite completed_at", "completed_at", "'infinity'"),
    ):
        yield lost(f"a closing with {name}", LEASED, "DISPATCHED", **{column: value})
    stolen = closing(LEASED, "DISPATCHED", lease_token=f"'{OTHER_TOKEN}'")
    yield from lost("", LEASED, "DISPATCHED").each(
        inserts("a closing with a foreign token", ATTEMPTS, stolen)
    )
    for state in ("DISPATCHED", "RETRYABLE", "FAILED"):
        yield lost(f"{state} after the lease has expired", EXPIRED, state)
    yield lost("a ZOMBIE_REQUEUE under a running lease", LEASED, "ZOMBIE_REQUEUE")
    yield lost("a repair's FAILED under a running lease", LEASED, "FAILED", requested_state="NULL")
    past = {"claimed_at": "'2020-01-01Z'", "completed_at": "'2020-01-01Z'"}
    copied = closing(LEASED, "DISPATCHED", **past)
    yield lost("", LEASED, "DISPATCHED").by(
        "a closing by COPY", copy(ATTEMPTS, {key: copied[key] for key in copied if key not in SELF})
    )

    def prolonged(id: str, worker: str) -> Attack:
        return Attack(
            *("", "INV-OUT-002", "P7002", PENDING, {"outbox_id": id, "worker_id": worker}),
            (UPDATE_GUARD,),
            column="lease_expires_at",
        )

    longer = "lease_expires_at = clock_timestamp() + interval '1 hour'"
    yield from prolonged(EXPIRED, "w").each(
        updates(
            *("a lease extended after it has expired", PENDING, longer, is_(EXPIRED)),
            *(pending(EXPIRED, 12), "outbox_id"),
        )
    )
    yield prolonged(LEASED, "thief").by(
        "a lease taken over", update(PENDING, "claimed_by = 'thief'", is_(LEASED))
    )
    yield prolonged(EXPIRED, "w").by(
        "an expired lease moved back",
        update(PENDING, "lease_expires_at = '2020-01-01'", is_(EXPIRED)),
    )
    yield prolonged(EXPIRED, "w").by(
        "an expired lease given back and taken up again under its token",
        free(EXPIRED),
        update(PENDING, f"claimed_by = 'w', lease_token = '{TOKEN}', {longer}", is_(EXPIRED)),
    )


def native(invariant: str, sqlstate: str, table: str, path: str, *behind: str) -> Attack:
    """Refused by a constraint or index; replica mode disables the foreign keys."""
    return Attack(
        *("", invariant, sqlstate, table, None, (path, *behind)),
        constraint=path.partition("/")[2],
        replica=sqlstate != "23503",
    )


def ceilings() -> Iterator[Attack]:
    def past(name: str, statement: str, id: str, no: int) -> Attack:
        return Attack(
            *(name, "INV-OUT-003", "P7003", ATTEMPTS, {"outbox_id": id, "attempt_no": no}),
            (ATTEMPTS_GUARD,),
            column="attempt_no",
            statements=(statement,),
        )

    yield past("an attempt past the last", claim(SPENT, 2), SPENT, 2)
    yield past("a RETRYABLE of the last attempt", record(closing(LAST, "RETRYABLE")), LAST, 1)
    zombie = record(closing(LAST_EXPIRED, "ZOMBIE_REQUEUE"))
    yield past("a ZOMBIE_REQUEUE of the last attempt", zombie, LAST_EXPIRED, 1)
    outcome = native(
        "INV-OUT-003", "23514", ATTEMPTS, "constraints/ck_payment_outbox_attempts_outcome"
    )
    for name, state, value in (
        ("a FAILED without an outcome", "FAILED", "NULL"),
        ("a FAILED with an unknown outcome", "FAILED", "'PERHAPS'"),
        ("a DISPATCHED with an outcome", "DISPATCHED", "'NOT_SENT'"),
    ):
        yield outcome.by(name, record(closing(LEASED, state, outcome=value)))
    yield native("INV-OUT-004", "23505", ITEMS, "constraints/uq_payment_outbox_items_key").by(
        "a key twice", both(idempotency_key=f"'{DONE}'")
    )


def orders() -> Iterator[Attack]:
    def broken(name: str, id: str, *statements: str, no: int = 1) -> Attack:
        return Attack(
            *(name, "INV-OUT-005", "P7005", ATTEMPTS),
            {"outbox_id": id, "attempt_no": no, "phase": "OPEN", "state": "DISPATCHING"},
            (ATTEMPTS_GUARD,),
            column="attempt_no",
            statements=statements,
        )

    yield from broken("", FREE).each(inserts("an opening without a claim", ATTEMPTS, opening(FREE)))
    yield broken("an opening of no item", NEW, record(opening(NEW)))
    yield broken("a first attempt with a higher number", FREE, claim(FREE, 2), no=2)
    yield broken("an attempt whose number skips one", RETRIED, claim(RETRIED, 3), no=3)
    yield broken("an attempt after a dispatched one", DONE, record(opening(DONE, 2)), no=2)
    yield broken("an attempt after a failed one", REJECTED, record(opening(REJECTED, 2)), no=2)
    for name, column, value in (
        ("a foreign token", "lease_token", f"'{OTHER_TOKEN}'"),
        ("another worker", "worker_id", "'thief'"),
        ("a claimed_at in the past", "claimed_at", "'2020-01-01Z'"),
        ("a claimed_at in the future", "claimed_at", "clock_timestamp() + interval '1 minute'"),
    ):
        yield broken(f"an opening with {name}", FREE, claim(FREE, **{column: value}))
    yield broken(
        "an opening under an expired lease",
        FREE,
        lease(FREE, ends="-1 second"),
        record(opening(FREE)),
    )
    yield broken("", FREE).by(
        "a closing without an opening",
        lease(FREE),
        record(closing(FREE, "DISPATCHED", claimed_at="clock_timestamp()")),
        detail={"outbox_id": FREE, "attempt_no": 1, "phase": "CLOSE", "state": "DISPATCHED"},
    )
    yield Attack(
        *("attempts that were not made", "INV-OUT-005", "P7005", PENDING),
        {"outbox_id": FREE, "attempt_count": 5},
        (UPDATE_GUARD,),
        column="attempt_count",
        statements=(update(PENDING, "attempt_count = 5", is_(FREE)),),
    )
    twice = native("INV-OUT-005", "23505", ATTEMPTS, f"constraints/pk_{ATTEMPTS}", ATTEMPTS_GUARD)
    yield twice.by("an attempt opened twice", record(opening(LEASED)))
    yield twice.by("an attempt closed twice", record(closing(RETRIED, "RETRYABLE")))
    unknown = native(
        *("INV-OUT-005", "23514", ATTEMPTS, f"constraints/ck_{ATTEMPTS}_state", ATTEMPTS_GUARD),
        *(f"constraints/ck_{ATTEMPTS}_requested_state", f"constraints/ck_{ATTEMPTS}_opening"),
    )
    yield unknown.by("an opening that closes", record(opening(FREE, state="'RETRYABLE'")))
    half = opening(FREE, phase="'HALF'", state="'ZOMBIE_REQUEUE'")
    yield unknown.by("an unknown phase", record(half))


def redrives() -> Iterator[Attack]:
    for state in ("DISPATCHED", "FAILED"):
        yield native(
            *("INV-OUT-006", "23505", ATTEMPTS, f"indexes/uq_{ATTEMPTS}_terminal"), ATTEMPTS_GUARD
        ).by(
            f"a second terminal attempt as {state}",
            record(closing(DONE, state, 2, claimed_at="clock_timestamp()")),
        )

    def wrong(name: str, of: str, *behind: str, no: int = 1, **changed: str) -> Attack:
        redrive = {"redrive_of": f"'{of}'", "redrive_no": str(no), "idempotency_key": f"'{of}'"}
        return Attack(
            *(name, "INV-OUT-006", "P7005", ITEMS, {"outbox_id": NEW, "redrive_no": no}),
            (REDRIVE_GUARD, *behind),
            column="redrive_of",
            statements=(enqueue(**redrive | changed),),
        )

    unknown = f"'{UNKNOWN_INSTRUCTION}'"
    another = {"payload": "'{\"a\": 2}'", "payload_hash": payload_hash('{"a": 2}')}
    salt = "decode(repeat('01', 16), 'hex')"
    salted = {"payload_salt": salt, "payload_hash": payload_hash('{"a": 1}', salt)}
    yield wrong("a redrive of a dispatched item", DONE)
    yield wrong("a redrive of an unknown outcome", UNKNOWN, ITEMS_GUARD, instruction_id=unknown)
    yield wrong("a redrive of a live item", FREE)
    yield wrong("a redrive of a leased item", LEASED)
    yield wrong("a redrive of no item", NEW)
    yield wrong("a redrive under another key", REJECTED, idempotency_key="'other'")
    yield wrong("a redrive that skips a number", REJECTED, no=2)
    yield wrong(
        "a redrive of another instruction", REJECTED, instruction_id=f"'{OTHER_INSTRUCTION}'"
    )
    yield wrong(
        "a redrive of another participant", REJECTED, OPEN, ITEMS_GUARD, participant_id="'q'"
    )
    yield wrong("a redrive on another rail", REJECTED, rail_type="'SWIFT'")
    yield wrong("a redrive with more attempts", REJECTED, max_attempts="21")
    yield wrong("a redrive with another payload", REJECTED, **another)
    yield wrong("a redrive with another salt", REJECTED, **salted)
    numbered = native(
        "INV-OUT-006", "23514", ITEMS, f"constraints/ck_{ITEMS}_redrive", REDRIVE_GUARD
    )
    of = f"'{REJECTED}'"
    yield numbered.by("a first item that follows another", enqueue(redrive_of=of))
    yield numbered.by("a redrive of nothing", enqueue(redrive_no="1"))
    yield numbered.by("a redrive before the first", enqueue(redrive_no="-1", redrive_of=of))


def late_results() -> Iterator[Attack]:
    def refused(sqlstate: str, column: str, no: int) -> Attack:
        return Attack(
            *("", "INV-OUT-011", sqlstate, LATE_RESULTS),
            {"outbox_id": REJECTED, "attempt_no": no},
            (LATE_GUARD,),
            column=column,
        )

    yield refused("P7005", "attempt_no", 9).by(
        "a late result of no attempt", late_result(result_no="2", attempt_no="9")
    )
    worker = {"source": "'WORKER'", "reason": "NULL", "lease_token": f"'{OTHER_TOKEN}'"}
    yield refused("P7002", "lease_token", 1).by(
        "a late result under another token", late_result(result_no="2", **worker)
    )
    for name, sqlstate, path, statement in (
        (
            *("a reconciliation without a reason", "23514"),
            *(f"constraints/ck_{LATE_RESULTS}_source", late_result(result_no="2", reason="NULL")),
        ),
        (
            *("an unknown outcome of a late result", "23514"),
            f"constraints/ck_{LATE_RESULTS}_outcome",
            late_result(result_no="2", outcome="'PERHAPS'"),
        ),
        ("a late result twice", "23505", f"constraints/pk_{LATE_RESULTS}", late_result()),
    ):
        yield native("INV-OUT-011", sqlstate, LATE_RESULTS, path).by(name, statement)
    closed = {
        "outbox_id": f"'{REJECTED}'",
        "intervention_no": "1",
        "action": "'CLOSE_CONTRADICTION'",
        "result_no": "1",
        "reason": "'test'",
        "acted_at": "clock_timestamp()",
        **SELF,
    }
    yield native("INV-OUT-011", "23505", INTERVENTIONS, f"indexes/uq_{INTERVENTIONS}_closed").by(
        "a contradiction closed twice",
        insert(INTERVENTIONS, closed, closed | {"intervention_no": "2"}),
    )


def sequences() -> Iterator[Attack]:
    def gap(participant: str, first: int, last: int, items: int) -> Attack:
        return Attack(
            *("", "INV-OUT-007", "22023", ITEMS),
            {"participant_id": participant, "first": first, "last": last, "items": items},
            (ITEMS_GUARD,),
            column="sequence_id",
        )

    yield gap("p", 12, 12, 1).by("a number that leaves a gap", both(sequence_id="12"))
    yield gap("p", 11, 13, 2).by(
        "a gap within a statement", enqueue_all(item(NEW, 11), item(NEXT, 13))
    )
    of_q = {"participant_id": "'q'", "instruction_id": f"'{INSTRUCTION_OF['q']}'"}
    yield gap("q", 2, 2, 1).by("a first number after 1", enqueue(sequence_id=2, **of_q))
    yield gap("p", 12, 12, 1).by(
        "a gap that a later statement would fill", enqueue(NEW, 12), enqueue(NEXT, 11)
    )
    yield native(
        "INV-OUT-007", "23505", ITEMS, f"constraints/uq_{ITEMS}_participant_id_sequence_id"
    ).by("a number twice", both(sequence_id="5"))
    counter = Attack(
        *("", "INV-OUT-007", "P0001", SEQUENCES, {"participant_id": "p", "next_sequence_id": 11}),
        (f"triggers/{SEQUENCES}__no_delete",),
    )
    yield from counter.each(deletes(SEQUENCES, "participant_id = 'p'"))
    yield from counter.each(
        truncates(SEQUENCES), detail={}, without=(f"triggers/{SEQUENCES}__no_truncate",)
    )


def losses() -> Iterator[Attack]:
    lost = Attack(
        *("", "INV-OUT-009", "P7006", ITEMS, {"outbox_id": NEW}, (ITEMS_GUARD,)),
        column="outbox_id",
    )
    yield from lost.each(inserts("an item without its pending row", ITEMS, item()))
    salted = {"payload": "'{}'", "payload_salt": "'\\x" + "00" * 16 + "'"}
    copied = item(**salted, payload_hash=f"'{EMPTY}'")
    left_out = ("redrive_no", "redrive_of", "max_attempts", "created_at", *SELF)
    yield lost.by(
        "an item without its pending row by COPY",
        copy(ITEMS, {key: copied[key] for key in copied if key not in left_out}),
    )
    yield lost.by(
        "an item before its pending row", insert(ITEMS, item()), insert(PENDING, pending())
    )

    def stranger(id: str, *without: str) -> Attack:
        return Attack(
            *("", "INV-OUT-009", "P7006", PENDING, {"outbox_id": id}, without), column="outbox_id"
        )

    alone = stranger(NEW, ENTRY_GUARD)
    yield from alone.each(inserts("a pending row without an item", PENDING, pending()))
    copied = pending()
    yield alone.by(
        "a pending row without an item by COPY",
        copy(PENDING, {key: copied[key] for key in SHARED.split(", ")}),
    )
    for column, value in {
        "instruction_id": f"'{OTHER_INSTRUCTION}'",
        "sequence_id": "12",
        "rail_type": "'SWIFT'",
    }.items():
        yield alone.by(f"a pending row with another {column}", enters(None, {column: value}))
    foreign = enters(None, {"participant_id": "'q'"})
    yield native("INV-OUT-009", "23503", PENDING, OPEN, ENTRY_GUARD).by(
        "a pending row with another participant_id", foreign
    )
    yield alone.by(
        "a pending row with another participant_id past the foreign key", foreign, behind=(OPEN,)
    )
    of_q = {"participant_id": "'q'", "instruction_id": f"'{INSTRUCTION_OF['q']}'"}
    yield alone.by("a pending row of another participant and its instruction", enters(None, of_q))
    leased = {
        "claimed_by": "'w'",
        "lease_token": f"'{TOKEN}'",
        "lease_expires_at": LATER,
    }
    yield alone.by(
        "a pending row that enters with an attempt", enters(None, {"attempt_count": "1"})
    )
    yield alone.by("a pending row that enters claimed", enters(None, leased))
    for id, number in ((DONE, 5), (REJECTED, 6)):
        yield stranger(id, ENTRY_GUARD).by(
            f"a pending row for the ended item {number}", insert(PENDING, pending(id, number))
        )
    yield alone.by(
        "a pending row for an item that the same transaction has ended",
        enqueue(),
        claim(NEW),
        record(closing(NEW, "DISPATCHED")),
        leave(NEW),
        insert(PENDING, pending()),
    )

    removed = (f"triggers/{PENDING}__guard_delete",)
    yield from stranger(FREE, *removed).each(deletes(PENDING, is_(FREE)))
    for name, id in {"a leased": LEASED, "an expired": EXPIRED, "a retried": RETRIED}.items():
        yield stranger(id, *removed).by(f"removal of {name} pending row", leave(id))
    yield stranger(FREE, *removed).by(
        "removal of all pending rows",
        f"DELETE FROM orchestration.{PENDING}",
        detail={"outbox_id": ...},
    )
    yield from stranger(FREE, f"triggers/{PENDING}__no_truncate").each(
        truncates(PENDING), detail={}, column=None
    )
    for column, value, *behind in (
        ("outbox_id", f"'{NEW}'"),
        ("instruction_id", f"'{OTHER_INSTRUCTION}'"),
        ("participant_id", "'q'", OPEN),
        ("sequence_id", "12"),
    ):
        yield from stranger(FREE, UPDATE_GUARD, *behind).each(
            changes(PENDING, is_(FREE), {column: value})
        )
    yield from stranger(FREE, UPDATE_GUARD).each(
        updates(
            *("another rail of a pending row", PENDING, "rail_type = 'SWIFT'", is_(FREE)),
            *(pending(FREE, 1), "outbox_id"),
        )
    )
    yield stranger(FREE, UPDATE_GUARD).by(
        "another rail in a claim", lease(FREE).replace("SET ", "SET rail_type = 'SWIFT', ")
    )


def instructions() -> Iterator[Attack]:
    def uncounted(detail: Detail, without: str) -> Attack:
        return Attack(
            *("", "INV-OUT-010", "P7404", INSTRUCTIONS, detail, (without,)), column="unresolved"
        )

    unknown = f"'{UNKNOWN_INSTRUCTION}'"
    yield uncounted({"id": UNKNOWN_INSTRUCTION, "unresolved": 1}, ITEMS_GUARD).by(
        "an item beside one whose outcome is unknown", both(instruction_id=unknown)
    )
    yield uncounted(
        {"id": UNKNOWN_INSTRUCTION, "unresolved": 0, "unknown": 1},
        f"triggers/{INSTRUCTIONS}__guard_unresolved_update",
    ).by(
        "an unknown outcome that is no longer counted",
        update(INSTRUCTIONS, "unresolved = 0", f"id = {unknown}"),
    )
    columns = (
        "instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, payload_salt, payload_hash, attestation_id,"
        " policy_version_id, created_at, participant_id, db_user, xact_id"
    )
    yield uncounted(
        {"id": NEW, "unresolved": 1, "unknown": 0},
        f"triggers/{INSTRUCTIONS}__guard_unresolved_insert",
    ).by(
        "an instruction that enters with an unknown outcome",
        f"INSERT INTO orchestration.{INSTRUCTIONS} (id, unresolved, idempotency_key, updated_at,"
        f" {columns}) SELECT '{NEW}', 1, 'unresolved', created_at, {columns}"
        f" FROM orchestration.{INSTRUCTIONS} WHERE id = '{INSTRUCTION}'",
    )

    unfit = native("INV-INS-006", "23503", PENDING, OPEN)
    for name, id in {
        "a received": RECEIVED_INSTRUCTION,
        "a failed": FAILED_INSTRUCTION,
        "no": NO_INSTRUCTION,
    }.items():
        yield unfit.by(f"an item of {name} instruction", both(instruction_id=f"'{id}'"))
    other = f"'{OTHER_INSTRUCTION}'"
    dispatched = ended(NEW, 11, "DISPATCHED", OTHER_INSTRUCTION)
    rejected = ended(NEW, 11, "FAILED", OTHER_INSTRUCTION, outcome="'REJECTED'")
    lost = ended(NEW, 11, "FAILED", OTHER_INSTRUCTION)
    completes = ("EXECUTING", "COMPLETED")
    yield unfit.by(
        "an item of a completed instruction",
        *dispatched,
        *moves(OTHER_INSTRUCTION, *completes),
        enqueue(NEXT, 12, instruction_id=other),
    )
    redrive = {"redrive_no": "1", "redrive_of": f"'{NEW}'", "idempotency_key": f"'{NEW}'"}
    yield unfit.by(
        "a redrive of a failed instruction's item",
        *rejected,
        *moves(OTHER_INSTRUCTION, "FAILED"),
        enqueue(NEXT, 12, instruction_id=other, **redrive),
    )
    yield unfit.by(
        "an item of another participant's instruction",
        both(instruction_id=f"'{INSTRUCTION_OF['q']}'"),
        invariant="INV-INS-005",
        without=("constraints/uq_instructions_participant_id_id_open",),
    )
    yield unfit.by("COMPLETED over live items", *moves(INSTRUCTION, *completes))
    yield unfit.by(
        "FAILED over live items", *moves(INSTRUCTION, "FAILED"), without=(OPEN, END_GUARD)
    )

    def early(name: str, before: tuple[str, ...], *states: str, sent: int, unknown: int) -> Attack:
        from_, to = ("AUTHORIZED", *states)[-2:]
        detail: Detail = {"id": OTHER_INSTRUCTION, "from": from_, "to": to}
        return Attack(
            *(f"{name} after {from_}", "INV-INS-006", "P7404", INSTRUCTIONS),
            {**detail, "sent": sent, "unknown": unknown},
            (END_GUARD,),
            column="state",
            statements=(*before, *moves(OTHER_INSTRUCTION, *states)),
        )

    yield early("COMPLETED without any item", (), *completes, sent=0, unknown=0)
    yield early("COMPLETED with an unknown item", lost, *completes, sent=0, unknown=1)
    for states in (("FAILED",), ("EXECUTING", "FAILED")):
        yield early("FAILED with a dispatched item", dispatched, *states, sent=1, unknown=0)
        yield early("FAILED with an unknown item", lost, *states, sent=0, unknown=1)


OF_INSTRUCTIONS = (
    rotate("instructions"),
    attest(ATTESTATION),
    *authorize(
        ATTESTATION,
        "instructions",
        {participant: (id,) for participant, id in INSTRUCTION_OF.items()}
        | {"p": (INSTRUCTION, OTHER_INSTRUCTION, FAILED_INSTRUCTION, UNKNOWN_INSTRUCTION)},
    ),
    *moves(FAILED_INSTRUCTION, "FAILED"),
    *receive(ATTESTATION, "instructions", {"p": (RECEIVED_INSTRUCTION,)}),
)
"""What every item refers to, and one instruction in each state that has no items."""

OF_ITEMS = (
    f"INSERT INTO orchestration.{SEQUENCES} VALUES ('p')",
    *(
        enqueue(
            id,
            number,
            max_attempts="1" if id in (LAST, LAST_EXPIRED, SPENT) else "20",
            instruction_id=f"'{UNKNOWN_INSTRUCTION if id == UNKNOWN else INSTRUCTION}'",
        )
        for number, id in enumerate(
            (FREE, LEASED, EXPIRED, RETRIED, DONE, REJECTED, UNKNOWN, LAST, LAST_EXPIRED, SPENT), 1
        )
    ),
    *(
        claim(id)
        for id in (LEASED, EXPIRED, RETRIED, DONE, REJECTED, UNKNOWN, LAST, LAST_EXPIRED, SPENT)
    ),
    expire(EXPIRED),
    expire(LAST_EXPIRED),
    record(closing(RETRIED, "RETRYABLE")),
    free(RETRIED),
    record(closing(DONE, "DISPATCHED")),
    leave(DONE),
    record(closing(REJECTED, "FAILED", outcome="'REJECTED'")),
    leave(REJECTED),
    record(closing(UNKNOWN, "FAILED")),
    leave(UNKNOWN),
    late_result(),
    # The guard prevents an item whose last attempt was to be retried.
    f"ALTER TABLE orchestration.{ATTEMPTS} DISABLE TRIGGER guard",
    record(closing(SPENT, "RETRYABLE")),
    free(SPENT),
    f"ALTER TABLE orchestration.{ATTEMPTS} ENABLE ALWAYS TRIGGER guard",
)

OUTBOX = Noun(
    tuple(
        attack
        for made in (
            *(append_only, forged, leases, ceilings, orders, redrives, late_results),
            *(sequences, losses, instructions),
        )
        for attack in made()
    ),
    {"": (*OF_INSTRUCTIONS, *OF_ITEMS)},
    # They count.
    sleeping=(
        f"triggers/{ITEMS}__sequences",
        f"triggers/{ATTEMPTS}__unresolved",
        f"triggers/{LATE_RESULTS}__unresolved",
    ),
)

"""Attacks on attestations, their events and the heads of their chains."""

from collections.abc import Iterator

from tests.invariants.attacks.base import (
    LATER,
    Attack,
    Detail,
    Noun,
    Row,
    changes,
    copy,
    deletes,
    insert,
    inserts,
    rotate,
    truncates,
    update,
    updates,
)

ROWS, EVENTS = "ingress_attestations", "ingress_attestation_events"
HEADS = "ingress_attestation_heads"
GUARD, EVENT_GUARD = f"triggers/{ROWS}__guard", f"triggers/{EVENTS}__guard"
REFERRING = (
    *(EVENTS, "instructions", "status_history", "execution_attempts", "transaction_attempts"),
    "payment_outbox_pending",
)
"""What a TRUNCATE of the records reaches through foreign keys."""

ALICE_1, ALICE_2, BOB_1, NEXT = (f"00000000-0000-7000-8000-{n:012}" for n in (1, 2, 3, 9))
LAST_OF_ALICE = f"(SELECT record_hash FROM orchestration.{ROWS} WHERE id = '{ALICE_2}')"
FIRST_OF_ALICE = f"(SELECT record_hash FROM orchestration.{ROWS} WHERE id = '{ALICE_1}')"
RIGHT_HASH = "right"


def attested(**changed: str) -> Row:
    """A whole row that would continue alice's chain: a trigger has nothing to fill in. Its
    record_hash is wrong unless RIGHT_HASH is asked for."""
    values = {
        "id": f"'{NEXT}'",
        "caller_identity": "'alice'",
        "chain_seq": "3",
        "idempotency_key": "'k3'",
        "payload_hash": "repeat('1', 64)",
        "signature_hash": "NULL",
        "client_cert_fingerprint_sha256": "NULL",
        "token_hash": "NULL",
        "policy_version_id": "'v1'",
        "execution_started": "false",
        "execution_completed": "false",
        "terminal_status": "NULL",
        "attested_at": "clock_timestamp()",
        "prev_hash": LAST_OF_ALICE,
        "record_hash": "repeat('0', 64)",
        "db_user": "SESSION_USER::text",
        "xact_id": "1",
    } | changed
    if values["record_hash"] != RIGHT_HASH:
        return values
    # The hash covers a time that is read twice.
    fixed = values | {"record_hash": "''", "attested_at": changed.get("attested_at", "now()")}
    row = f"ROW({', '.join(fixed.values())})::orchestration.{ROWS}"
    return fixed | {"record_hash": f"orchestration.attestation_record_hash({row})"}


def first_of_carol(**changed: str) -> Row:
    """A row that begins a chain, except for what is changed."""
    first = {"caller_identity": "'carol'", "chain_seq": "1", "prev_hash": "''"}
    return attested(**first | changed)


COPIED = first_of_carol(
    idempotency_key="'k1'",
    payload_hash="0" * 64,
    record_hash="0" * 64,
    attested_at="2020-01-01Z",
    db_user="forger",
)


def event(**changed: str) -> Row:
    """A whole row: alice's second attestation, which has no event, starts."""
    return {
        "attestation_id": f"'{ALICE_2}'",
        "event": "'EXECUTION_STARTED'",
        "caller_identity": "'alice'",
        "terminal_status": "NULL",
        "occurred_at": "'2020-01-01Z'",
        "recorded_by": "'forger'",
        "db_user": "'forger'",
        "xact_id": "1",
    } | changed


def append_only() -> Iterator[Attack]:
    frozen = Attack(
        *("", "INV-ATT-001", "P0001", ROWS),
        {"id": ALICE_2, "caller_identity": "alice", "chain_seq": 2},
        (f"triggers/{ROWS}__append_only",),
    )
    second = f"id = '{ALICE_2}'"
    yield from frozen.each(
        changes(
            ROWS,
            second,
            {
                "id": f"'{NEXT}'",
                "caller_identity": "'mallory'",
                "idempotency_key": "'forged'",
                "payload_hash": "repeat('f', 64)",
                "signature_hash": "repeat('f', 64)",
                "client_cert_fingerprint_sha256": "repeat('f', 64)",
                "token_hash": "repeat('f', 64)",
                "policy_version_id": "'v0'",
                "execution_started": "true",
                "attested_at": "'2020-01-01Z'",
                "prev_hash": "repeat('f', 64)",
                "record_hash": "repeat('f', 64)",
                "chain_seq": "7",
                "db_user": "'forged'",
                "xact_id": "1",
            },
        )
    )
    change = "payload_hash = repeat('f', 64)"
    yield from frozen.each(
        updates("a changed record", ROWS, change, second, attested(id=f"'{ALICE_2}'"), "id")
    )
    same_key = insert(ROWS, attested(idempotency_key="'k2'", record_hash=RIGHT_HASH))
    key = "caller_identity, idempotency_key"
    yield frozen.by(
        f"a changed record by INSERT ON CONFLICT ({key})",
        f"{same_key} ON CONFLICT ({key}) DO UPDATE SET {change}",
    )
    yield from frozen.each(deletes(ROWS, second))
    emptied = {
        "detail": {},
        "without": tuple(f"triggers/{table}__no_truncate" for table in (ROWS, *REFERRING)),
    }
    yield frozen.by("removal of all", f"TRUNCATE orchestration.{ROWS} CASCADE", **emptied)
    yield from frozen.each(truncates(ROWS, *REFERRING), **emptied)

    frozen_event = Attack(
        *("", "INV-ATT-001", "P0001", EVENTS),
        {"attestation_id": ALICE_1, "event": "EXECUTION_STARTED"},
        (f"triggers/{EVENTS}__append_only",),
    )
    first = f"attestation_id = '{ALICE_1}'"
    yield from frozen_event.each(
        changes(
            EVENTS,
            first,
            {
                "attestation_id": f"'{ALICE_2}'",
                "caller_identity": "'mallory'",
                "occurred_at": "'2020-01-01Z'",
                "recorded_by": "'forged'",
                "db_user": "'forged'",
                "xact_id": "1",
            },
        )
    )
    completed = "event = 'EXECUTION_COMPLETED', terminal_status = 'SUCCESS'"
    same = event(attestation_id=f"'{ALICE_1}'")
    yield from frozen_event.each(
        updates("a changed event", EVENTS, completed, first, same, "attestation_id, event")
    )
    yield from frozen_event.each(deletes(EVENTS, first))
    yield from frozen_event.each(
        truncates(EVENTS), detail={}, without=(f"triggers/{EVENTS}__no_truncate",)
    )


OF_CAROL = {"caller_identity": "carol", "idempotency_key": "k3"}


def of_rows(number: str, sqlstate: str, column: str, detail: Detail, *behind: str) -> Attack:
    return Attack(
        *("", f"INV-ATT-{number}", sqlstate, ROWS, detail),
        (GUARD, *(f"constraints/{name}" for name in behind)),
        column=column,
    )


def of_events(number: str, column: str, id: str, kind: str, *behind: str) -> Attack:
    return Attack(
        *("", f"INV-ATT-{number}", "P7301", EVENTS, {"attestation_id": id, "event": kind}),
        (EVENT_GUARD, *(f"constraints/{name}" for name in behind)),
        column=column,
    )


def native(number: str, sqlstate: str, table: str, name: str, *behind: str) -> Attack:
    return Attack(
        *("", f"INV-ATT-{number}", sqlstate, table, None, (f"constraints/{name}",)),
        constraint=name,
        behind=behind,
    )


def states() -> Iterator[Attack]:
    incomplete = of_rows(*("002", "P7301", "execution_completed", OF_CAROL, f"ck_{ROWS}_execution"))
    completed = {"execution_completed": "true", "terminal_status": "'SUCCESS'"}
    unstarted = first_of_carol(**completed)
    yield from incomplete.each(inserts("completed without started", ROWS, unstarted))
    yield incomplete.by(
        "completed without started by COPY",
        copy(ROWS, {**COPIED, **completed}),
        detail=OF_CAROL | {"idempotency_key": "k1"},
    )
    yield native("002", "23514", ROWS, f"ck_{ROWS}_execution", GUARD).by(
        "completed without started past the guard", insert(ROWS, unstarted)
    )
    early = event(event="'EXECUTION_COMPLETED'", terminal_status="'FAILED'")
    of_early = of_events("002", "event", ALICE_2, "EXECUTION_COMPLETED")
    yield from of_early.each(
        inserts("COMPLETED before STARTED", EVENTS, early)
        | {"COMPLETED before STARTED by COPY": copy(EVENTS, early)}
    )

    terminal = of_rows(*("003", "P7301", "terminal_status", OF_CAROL, f"ck_{ROWS}_terminal_status"))
    success = first_of_carol(terminal_status="'SUCCESS'")
    for name, row in {
        "completed without a terminal_status": first_of_carol(
            execution_started="true", execution_completed="true"
        ),
        "a terminal_status without completed": success,
        "a terminal_status of what is only started": first_of_carol(
            execution_started="true", terminal_status="'REPAIRED'"
        ),
    }.items():
        yield terminal.by(name, insert(ROWS, row))
    yield native("003", "23514", ROWS, f"ck_{ROWS}_terminal_status", GUARD).by(
        "a terminal_status without completed past the guard", insert(ROWS, success)
    )
    status = f"ck_{EVENTS}_terminal_status"
    yield of_events("003", "terminal_status", ALICE_2, "EXECUTION_STARTED", status).by(
        "a terminal_status of STARTED", insert(EVENTS, event(terminal_status="'SUCCESS'"))
    )
    yield of_events("003", "terminal_status", ALICE_1, "EXECUTION_COMPLETED", status).by(
        "COMPLETED without a terminal_status",
        insert(EVENTS, event(attestation_id=f"'{ALICE_1}'", event="'EXECUTION_COMPLETED'")),
    )

    yield native("010", "23505", EVENTS, f"pk_{EVENTS}").by(
        "a second STARTED", insert(EVENTS, event(attestation_id=f"'{ALICE_1}'"))
    )
    for kind, status in {"EXECUTION_STARTED": "NULL", "EXECUTION_COMPLETED": "'FAILED'"}.items():
        of_bob = event(
            attestation_id=f"'{BOB_1}'",
            caller_identity="'bob'",
            event=f"'{kind}'",
            terminal_status=status,
        )
        yield of_events("010", "event", BOB_1, kind).by(
            f"{kind} of what was recorded as completed", insert(EVENTS, of_bob)
        )
    yield of_events("010", "caller_identity", ALICE_2, "EXECUTION_STARTED").by(
        "an event of another caller", insert(EVENTS, event(caller_identity="'bob'"))
    )

    for moment in (LATER, "'infinity'", "'-infinity'"):
        years = () if moment == LATER else ("years",)
        yield of_rows(
            *("011", "P7301", "attested_at", OF_CAROL | {"attested_at": ...}),
            *(f"ck_{ROWS}_{rule}" for rule in years),
        ).by(f"attested at {moment}", insert(ROWS, first_of_carol(attested_at=moment)))
        yield of_events(
            *("011", "occurred_at", ALICE_2, "EXECUTION_STARTED"),
            *(f"ck_{EVENTS}_{rule}" for rule in years),
        ).by(
            f"occurred at {moment}",
            insert(EVENTS, event(occurred_at=moment)),
            detail={"attestation_id": ALICE_2, "event": "EXECUTION_STARTED", "occurred_at": ...},
        )


def chains() -> Iterator[Attack]:
    for name, seq, prev in (
        ("a chain that begins at 2", 2, "''"),
        ("a chain that begins at 2 after something", 2, "repeat('a', 64)"),
        ("a chain that begins after something", 1, "repeat('a', 64)"),
    ):
        detail = OF_CAROL | {"chain_seq": seq}
        yield of_rows("004", "P7302", "chain_seq", detail, f"ck_{ROWS}_prev_hash").by(
            name, insert(ROWS, first_of_carol(chain_seq=str(seq), prev_hash=prev))
        )
    yield native("004", "23514", ROWS, f"ck_{ROWS}_prev_hash", GUARD).by(
        "a chain that begins at 2 past the guard", insert(ROWS, first_of_carol(chain_seq="2"))
    )

    of_alice = {"caller_identity": "alice", "idempotency_key": "k3"}
    seq_key, prev_key = (
        f"uq_{ROWS}_caller_identity_chain_seq",
        f"uq_{ROWS}_caller_identity_prev_hash",
    )
    for name, seq, prev, behind in (
        ("a gap", 4, LAST_OF_ALICE, ()),
        ("a record after another than the last", 3, "repeat('a', 64)", ()),
        ("a fork at the end", 2, LAST_OF_ALICE, (seq_key,)),
        ("a fork after the first", 3, FIRST_OF_ALICE, (prev_key,)),
        ("a second second record", 2, FIRST_OF_ALICE, (seq_key, prev_key)),
        ("a second beginning", 1, "''", (seq_key, prev_key)),
    ):
        row = attested(chain_seq=str(seq), prev_hash=prev)
        detail = of_alice | {"chain_seq": seq, "expected": 3}
        yield of_rows("005", "P7302", "chain_seq", detail, *behind).by(name, insert(ROWS, row))
        if len(behind) == 1:
            yield native("005", "23505", ROWS, behind[0], GUARD).by(
                f"{name} past the guard", insert(ROWS, row)
            )
    yield of_rows("005", "P7302", "chain_seq", of_alice | {"head": 3, "chain_seq": 2}).by(
        "a head ahead of its chain",
        update(HEADS, "chain_seq = 3, record_hash = repeat('f', 64)", "caller_identity = 'alice'"),
        insert(ROWS, attested()),
    )
    head = Attack(
        *("", "INV-ATT-005", "P0001", HEADS, {"caller_identity": "alice", "chain_seq": 2}),
        (f"triggers/{HEADS}__no_delete",),
    )
    yield from head.each(deletes(HEADS, "caller_identity = 'alice'"))
    yield from head.each(truncates(HEADS), detail={}, without=(f"triggers/{HEADS}__no_truncate",))

    wrong_hash = of_rows("006", "P7302", "record_hash", of_alice | {"chain_seq": 3})
    yield from wrong_hash.each(inserts("a record_hash of something else", ROWS, attested()))
    yield wrong_hash.by(
        "a record_hash of something else by COPY",
        copy(ROWS, COPIED),
        detail={"caller_identity": "carol", "idempotency_key": "k1", "chain_seq": 1},
    )
    yield wrong_hash.by(
        "the record_hash of the record before", insert(ROWS, attested(record_hash=LAST_OF_ALICE))
    )

    yield native("007", "23505", ROWS, f"uq_{ROWS}_caller_identity_idempotency_key").by(
        "an idempotency key attested twice",
        insert(ROWS, attested(idempotency_key="'k1'", record_hash=RIGHT_HASH)),
    )
    unknown = Attack(
        *("", "INV-ATT-008", "P7105", "policy_versions", of_alice | {"id": "v9"}, (GUARD,)),
        column="id",
    )
    yield unknown.by(
        "a policy that does not exist", insert(ROWS, attested(policy_version_id="'v9'"))
    )
    yield unknown.by(
        "a policy without a name by COPY",
        copy(ROWS, {**COPIED, "policy_version_id": ""}),
        detail={"caller_identity": "carol", "idempotency_key": "k1", "id": ""},
    )


IMPORT = (
    f"INSERT INTO orchestration.{ROWS} (id, caller_identity, idempotency_key, payload_hash,"
    " policy_version_id, execution_started, execution_completed, terminal_status) VALUES"
)

ATTESTATION = Noun(
    (*append_only(), *states(), *chains()),
    {
        # alice attested twice and her first has started; bob's one was imported as completed.
        "": (
            rotate("v1"),
            f"{IMPORT} ('{ALICE_1}', 'alice', 'k1', repeat('1', 64), 'v1', false, false, NULL)",
            f"{IMPORT} ('{ALICE_2}', 'alice', 'k2', repeat('2', 64), 'v1', false, false, NULL)",
            f"{IMPORT} ('{BOB_1}', 'bob', 'k1', repeat('1', 64), 'v1', true, true, 'SUCCESS')",
            "SELECT FROM orchestration.record_attestation_event("
            f"p_attestation_id => '{ALICE_1}', p_event => 'EXECUTION_STARTED')",
        )
    },
    sleeping=(f"triggers/{ROWS}__heads",),
)

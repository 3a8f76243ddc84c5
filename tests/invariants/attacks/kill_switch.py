"""Attacks on what a kill switch stops, on the switches' events and on their gate."""

from collections.abc import Iterator

from tests.invariants.attacks.base import (
    SALT,
    SELF,
    Attack,
    Noun,
    Row,
    attest,
    authorize,
    changes,
    copy,
    deletes,
    insert,
    inserts,
    payload_hash,
    rotate,
    truncates,
    update,
    updates,
)

Switch = tuple[str, str | None]

EVENTS, GATE = "kill_switches", "kill_switch_gate"
ATTESTATIONS, INSTRUCTIONS = "ingress_attestations", "instructions"
ITEMS, PENDING = "payment_outbox_items", "payment_outbox_pending"
ATTEMPTS = "payment_outbox_attempts"

ATTESTATION, NEW = (f"00000000-0000-7000-8000-{n:012}" for n in (98, 99))
RECEIVED, AUTHORIZED, EXECUTING, DONE, BEGUN, OTHERS_OWN = (
    f"00000000-0000-7000-8000-{n:012}" for n in range(2000, 2006)
)
FREE, FREE_SWIFT, OF_Q, LEASED, EXPIRED, REJECTED, DISPATCHED = (
    f"00000000-0000-7000-8000-{n:012}" for n in range(1, 8)
)
TOKEN = "00000000-0000-7000-8000-000000001001"
PAYLOAD = '{"a": 1}'


def name_of(switch: Switch) -> str:
    return " ".join(part for part in switch if part)


# Whole rows: a trigger or a default has nothing to fill in.


def event(scope: str = "GLOBAL", target: str | None = None, **changed: str) -> Row:
    """The event that follows the last."""
    return {
        "event_no": f"(SELECT max(event_no) + 1 FROM orchestration.{EVENTS})",
        "scope": f"'{scope}'",
        "target": "NULL" if target is None else f"'{target}'",
        "action": "'ENGAGE'",
        "reason": "'fraud'",
        "actor": "'forger'",
        "key": "NULL",
        "occurred_at": "'2020-01-01Z'",
        "db_user": "'forger'",
        "xact_id": "1",
    } | changed


def attestation() -> Row:
    """The first of a caller's chain, with the right hash."""
    values = {
        "id": f"'{NEW}'",
        "caller_identity": "'carol'",
        "chain_seq": "1",
        "idempotency_key": "'k'",
        "payload_hash": "repeat('1', 64)",
        "signature_hash": "NULL",
        "client_cert_fingerprint_sha256": "NULL",
        "token_hash": "NULL",
        "policy_version_id": "'v1'",
        "execution_started": "false",
        "execution_completed": "false",
        "terminal_status": "NULL",
        "attested_at": "'2020-01-01Z'",
        "prev_hash": "''",
        "record_hash": "''",
        **SELF,
    }
    row = f"CAST(ROW({', '.join(values.values())}) AS orchestration.{ATTESTATIONS})"
    return values | {"record_hash": f"orchestration.attestation_record_hash({row})"}


def instruction(id: str = NEW, participant_id: str = "p") -> Row:
    return {
        "id": f"'{id}'",
        "participant_id": f"'{participant_id}'",
        "idempotency_key": f"'{id}'",
        "instruction_type": "'pain.001'",
        "end_to_end_id": "'e2e'",
        "amount_minor": "100",
        "currency": "'EUR'",
        "debtor_account": "'debtor'",
        "creditor_account": "'creditor'",
        "payload": f"'{PAYLOAD}'",
        "payload_salt": SALT,
        "payload_hash": payload_hash(PAYLOAD),
        "attestation_id": f"'{ATTESTATION}'",
        "policy_version_id": "'v1'",
        "created_at": "clock_timestamp()",
        "updated_at": "clock_timestamp()",
        **SELF,
    }


def enqueue(
    outbox_id: str = NEW,
    instruction_id: str = AUTHORIZED,
    participant_id: str = "p",
    rail_type: str = "SEPA",
) -> str:
    """An item with its pending row."""
    item = {
        "outbox_id": f"'{outbox_id}'",
        "instruction_id": f"'{instruction_id}'",
        "participant_id": f"'{participant_id}'",
        "sequence_id": f"(SELECT coalesce(max(i.sequence_id), 0) + 1 FROM orchestration.{ITEMS} i"
        f" WHERE i.participant_id = '{participant_id}')",
        "idempotency_key": f"'{outbox_id}'",
        "rail_type": f"'{rail_type}'",
        "payload": f"'{PAYLOAD}'",
        "payload_salt": SALT,
        "payload_hash": payload_hash(PAYLOAD),
        "max_attempts": "20",
        "created_at": "clock_timestamp()",
        **SELF,
    }
    shared = "outbox_id, instruction_id, participant_id, sequence_id, rail_type"
    return (
        f"WITH i AS ({insert(ITEMS, item)} RETURNING *)"
        f" INSERT INTO orchestration.{PENDING} ({shared}) SELECT {shared} FROM i"
    )


def record(outbox_id: str, **changed: str) -> str:
    values = {
        "outbox_id": f"'{outbox_id}'",
        "attempt_no": "1",
        "phase": "'OPEN'",
        "state": "'DISPATCHING'",
        "lease_token": f"'{TOKEN}'",
        "worker_id": "'w'",
        "claimed_at": "clock_timestamp()",
        **SELF,
    }
    return insert(ATTEMPTS, values | changed)


def lease(outbox_id: str) -> str:
    return update(
        PENDING,
        f"attempt_count = attempt_count + 1, claimed_by = 'w', lease_token = '{TOKEN}',"
        " lease_expires_at = clock_timestamp() + interval '1 hour'",
        f"outbox_id = '{outbox_id}'",
    )


def claim(outbox_id: str) -> str:
    """An opening with its lease, in one statement."""
    return f"WITH p AS ({lease(outbox_id)}) {record(outbox_id)}"


def close(outbox_id: str, state: str, **changed: str) -> tuple[str, str]:
    """A closing, and the end of the pending row."""
    closing = {
        "phase": "'CLOSE'",
        "state": f"'{state}'",
        "requested_state": f"'{state}'",
        "claimed_at": f"(SELECT o.claimed_at FROM orchestration.{ATTEMPTS} o"
        f" WHERE o.outbox_id = '{outbox_id}')",
        "completed_at": "clock_timestamp()",
    }
    return (
        record(outbox_id, **(closing | changed)),
        f"DELETE FROM orchestration.{PENDING} WHERE outbox_id = '{outbox_id}'",
    )


def step(state: str) -> str:
    """A transition that brings its version, as replica mode needs it."""
    return f"state = '{state}', version = {INSTRUCTIONS}.version + 1"


def move(id: str, state: str) -> str:
    return update(INSTRUCTIONS, step(state), f"id = '{id}'")


GLOBAL: Switch = ("GLOBAL", None)
INGEST: Switch = ("INGEST", None)
EXECUTION: Switch = ("EXECUTION", None)
DISPATCH: Switch = ("DISPATCH", None)
OF_P: Switch = ("PARTICIPANT", "p")
SEPA: Switch = ("RAIL", "SEPA")

ENTRIES: dict[str, tuple[str, tuple[Switch, ...], str]] = {
    "an attestation": (
        f"triggers/{ATTESTATIONS}__kill_switch",
        (GLOBAL, INGEST),
        insert(ATTESTATIONS, attestation()),
    ),
    "an instruction": (
        f"triggers/{INSTRUCTIONS}__kill_switch_insert",
        (GLOBAL, INGEST, OF_P),
        insert(INSTRUCTIONS, instruction()),
    ),
    "an item": (f"triggers/{ITEMS}__kill_switch", (GLOBAL, INGEST, OF_P), enqueue()),
    "authorizing": (
        f"triggers/{INSTRUCTIONS}__kill_switch_update",
        (GLOBAL, EXECUTION, OF_P),
        move(RECEIVED, "AUTHORIZED"),
    ),
    "executing": (
        f"triggers/{INSTRUCTIONS}__kill_switch_update",
        (GLOBAL, EXECUTION, OF_P),
        move(AUTHORIZED, "EXECUTING"),
    ),
    "an opening": (
        f"triggers/{ATTEMPTS}__kill_switch",
        (GLOBAL, DISPATCH, OF_P, SEPA),
        claim(FREE),
    ),
}
"""What is gated, by an owner's own hand: by which trigger, under which switches."""

OTHER_FORMS: dict[str, dict[str, str]] = {
    "an attestation": inserts("an attestation", ATTESTATIONS, attestation()),
    "an instruction": inserts("an instruction", INSTRUCTIONS, instruction()),
    "authorizing": updates(
        *("authorizing", INSTRUCTIONS, step("AUTHORIZED"), f"id = '{RECEIVED}'"),
        *(instruction(RECEIVED), "id"),
    ),
    "an opening": {"an opening after its lease": f"{lease(FREE)}; {record(FREE)}"},
}


def gated() -> Iterator[Attack]:
    for what, (trigger, switches, statement) in ENTRIES.items():
        for switch in switches:
            scope, target = switch
            stopped = Attack(
                *("", "INV-KIL-001", "P7501", EVENTS),
                {"scope": scope, "target": target, "reason": "fraud"},
                (trigger,),
                column="scope",
            )
            engage = insert(EVENTS, event(scope, target))
            yield stopped.by(f"{what} under {name_of(switch)}", engage, statement)
            if switch == GLOBAL:
                for name, form in OTHER_FORMS.get(what, {}).items():
                    yield stopped.by(f"{name} under GLOBAL", engage, form)


MALFORMED: tuple[Switch, ...] = (
    *((scope, target) for scope in ("GLOBAL", "INGEST", "EXECUTION") for target in ("p", "")),
    ("DISPATCH", "SEPA"),
    *((scope, target) for scope in ("PARTICIPANT", "RAIL") for target in (None, "")),
    *(("global", None), ("", None), ("ALL", "p")),
)


def events() -> Iterator[Attack]:
    # Rows that are copied in replica mode bring their numbers along.
    leap = Attack(
        *("", "INV-KIL-001", "22023", EVENTS, {"event_no": 7, "expected": 4}),
        (f"triggers/{EVENTS}__guard",),
        column="event_no",
        replica=False,
    )
    seventh = event(event_no="7")
    yield from leap.each(
        inserts("event number 7", EVENTS, seventh)
        | {"event number 7 by COPY": copy(EVENTS, seventh)}
    )
    yield leap.by(
        "event number 0",
        insert(EVENTS, event(event_no="0")),
        detail={"event_no": 0, "expected": 4},
        without=(*leap.without, f"constraints/ck_{EVENTS}_event_no"),
    )

    def native(invariant: str, sqlstate: str, name: str) -> Attack:
        return Attack(
            *("", invariant, sqlstate, EVENTS, None, (f"constraints/{name}",)), constraint=name
        )

    for number in ("1", "3"):
        yield native("INV-KIL-001", "23505", f"pk_{EVENTS}").by(
            f"event number {number} twice", insert(EVENTS, event(event_no=number))
        )
    for scope, target in MALFORMED:
        yield native("INV-KIL-001", "23514", f"ck_{EVENTS}_scope").by(
            f"{scope!r} of {target!r}", insert(EVENTS, event(scope, target))
        )
    yield native("INV-KIL-003", "23505", f"uq_{EVENTS}_key").by(
        "a key twice",
        insert(EVENTS, event(event_no="4", key="'key'")),
        insert(EVENTS, event(event_no="5", key="'key'", action="'RELEASE'")),
    )
    yield native("INV-KIL-003", "23514", f"ck_{EVENTS}_key").by(
        "an empty key", insert(EVENTS, event(key="''"))
    )

    append_only = Attack(
        *("", "INV-APP-001", "P0001", EVENTS, {"event_no": 3}),
        (f"triggers/{EVENTS}__append_only",),
    )
    yield from append_only.each(
        changes(
            EVENTS,
            "event_no = 3",
            {
                "event_no": "9",
                "scope": "'PARTICIPANT'",
                "target": "'other'",
                "reason": "'forged'",
                "actor": "'forged'",
                "key": "'forged'",
                "occurred_at": "'2020-01-01Z'",
                "db_user": "'forged'",
                "xact_id": "1",
            },
        )
    )
    yield append_only.by(
        "an update that changes nothing", update(EVENTS, "reason = reason", "event_no = 3")
    )
    yield from append_only.each(
        updates(
            *("a release", EVENTS, "action = 'RELEASE'", "event_no = 3"),
            *(event(event_no="3"), "event_no"),
        )
    )
    yield from append_only.each(deletes(EVENTS, "event_no = 3"))
    yield from append_only.each(
        truncates(EVENTS), detail={}, without=(f"triggers/{EVENTS}__no_truncate",)
    )

    gate = Attack(*("", "INV-KIL-002", "P0001", GATE, {}, (f"triggers/{GATE}__no_delete",)))
    yield from gate.each(deletes(GATE, "singleton"))
    yield from gate.each(truncates(GATE), without=(f"triggers/{GATE}__no_truncate",))


def switch(action: str, scope: str, target: str = "NULL") -> str:
    return (
        f"INSERT INTO orchestration.{EVENTS} (scope, target, action, reason)"
        f" VALUES ('{scope}', {target}, '{action}', 'before')"
    )


KILL_SWITCH = Noun(
    (*gated(), *events()),
    {
        # Something for every act to act on. INGEST was engaged and released, and a rail that
        # nothing here uses is stopped.
        "": (
            rotate("v0"),
            rotate("v1"),
            attest(ATTESTATION, policy="v1"),
            *authorize(
                ATTESTATION,
                "v1",
                {"p": (AUTHORIZED, EXECUTING, DONE, BEGUN), "q": (OTHERS_OWN,)},
            ),
            insert(INSTRUCTIONS, instruction(RECEIVED)),
            *(move(id, "EXECUTING") for id in (EXECUTING, DONE)),
            enqueue(FREE),
            enqueue(FREE_SWIFT, rail_type="SWIFT"),
            enqueue(OF_Q, OTHERS_OWN, "q"),
            *(enqueue(id) for id in (LEASED, EXPIRED, REJECTED)),
            enqueue(DISPATCHED, DONE),
            *(claim(id) for id in (LEASED, EXPIRED, REJECTED, DISPATCHED)),
            *close(REJECTED, "FAILED", outcome="'REJECTED'"),
            *close(DISPATCHED, "DISPATCHED"),
            update(
                PENDING,
                "lease_expires_at = clock_timestamp() - interval '1 minute'",
                f"outbox_id = '{EXPIRED}'",
            ),
            switch("ENGAGE", "INGEST"),
            switch("RELEASE", "INGEST"),
            switch("ENGAGE", "RAIL", "'of no one'"),
        )
    },
    # It makes an event wait.
    sleeping=(f"triggers/{EVENTS}__gate",),
)

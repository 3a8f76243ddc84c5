"""INV-KIL, and INV-APP-001 of kill switches, by raw SQL: triggers and constraints speak, not the
privileges; and what every function does while a switch is engaged, as the logins.

One table of attacks serves four proofs: the owner is refused, a login with a stray grant is refused
alike, replica mode silences no refusal but that of a number, and without the object that keeps a
rule its attack succeeds.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from orchestration import invariants
from tests.invariants.conftest import StageOf
from tests.support import (
    Attack,
    Connect,
    Refusal,
    activate_policy,
    assert_invariant,
    attempt,
    authorize_instructions,
    await_blocked,
    backend,
    copy,
    deletes,
    digest,
    drop,
    inserts,
    refusal,
    scalar,
    truncates,
)

Login = Callable[[str], Connect]
Switch = tuple[str, str | None]

EVENTS = "kill_switches"
GATE = "kill_switch_gate"
ATTESTATIONS = "ingress_attestations"
INSTRUCTIONS = "instructions"
ITEMS = "payment_outbox_items"
PENDING = "payment_outbox_pending"
ATTEMPTS = "payment_outbox_attempts"
GATED_TABLES = (ATTESTATIONS, INSTRUCTIONS, "status_history", ITEMS, PENDING, ATTEMPTS)

SWITCHES: tuple[Switch, ...] = (
    ("GLOBAL", None),
    ("INGEST", None),
    ("EXECUTION", None),
    ("DISPATCH", None),
    ("PARTICIPANT", "p"),
    ("RAIL", "SEPA"),
)
OTHERS: tuple[Switch, ...] = (("PARTICIPANT", "p "), ("PARTICIPANT", "P"), ("RAIL", "p"))
"""Switches whose target nothing here is of."""


def name_of(switch: Switch) -> str:
    return " ".join(part for part in switch if part)


each_switch = pytest.mark.parametrize("switch", SWITCHES, ids=name_of)


def id_of(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012}"


NEW = id_of(99)
RECEIVED, AUTHORIZED, EXECUTING, DONE, BEGUN, OTHERS_OWN = (id_of(2000 + n) for n in range(6))
FREE, FREE_SWIFT, OF_Q, LEASED, EXPIRED, REJECTED, DISPATCHED = (id_of(n) for n in range(1, 8))
TOKEN, OTHER_TOKEN = id_of(1001), id_of(1002)

SALT = bytes(16)
PAYLOAD = '{"a": 1}'
HASH = hashlib.sha256(b"orchestration.payload.v1" + SALT + PAYLOAD.encode()).hexdigest()
SELF = {
    "db_user": "CAST(SESSION_USER AS text)",
    "xact_id": "CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
}


# Rows, whole: nothing of them is left to a default or a trigger.


def select(values: dict[str, str]) -> str:
    return f"SELECT {', '.join(values.values())}"


def insert(table: str, values: dict[str, str]) -> str:
    return f"INSERT INTO orchestration.{table} ({', '.join(values)}) {select(values)}"


def every_insert(table: str, values: dict[str, str]) -> dict[str, str]:
    return inserts(table, tuple(values), select(values))


def event(scope: str = "GLOBAL", target: str | None = None, **changed: str) -> dict[str, str]:
    """The event that follows the last."""
    return {
        "event_no": f"(SELECT max(event_no) + 1 FROM orchestration.{EVENTS})",
        "scope": f"'{scope}'",
        "target": "CAST(NULL AS text)" if target is None else f"'{target}'",
        "action": "'ENGAGE'",
        "reason": "'fraud'",
        "actor": "'forger'",
        "key": "CAST(NULL AS text)",
        "occurred_at": "CAST('2020-01-01Z' AS timestamptz)",
        "db_user": "'forger'",
        "xact_id": "CAST(1 AS bigint)",
    } | changed


def copied(**changed: str | None) -> str:
    whole: dict[str, str | None] = {
        "event_no": "4",
        "scope": "GLOBAL",
        "target": None,
        "action": "ENGAGE",
        "reason": "fraud",
        "actor": "forger",
        "key": None,
        "occurred_at": "2020-01-01Z",
        "db_user": "forger",
        "xact_id": "1",
    }
    return copy(EVENTS, whole | changed)


def attestation() -> dict[str, str]:
    """The first of a caller's chain, with the hash that it must have."""
    values = {
        "id": f"CAST('{NEW}' AS uuid)",
        "caller_identity": "'carol'",
        "chain_seq": "CAST(1 AS bigint)",
        "idempotency_key": "'k'",
        "payload_hash": "repeat('1', 64)",
        "signature_hash": "CAST(NULL AS text)",
        "client_cert_fingerprint_sha256": "CAST(NULL AS text)",
        "token_hash": "CAST(NULL AS text)",
        "policy_version_id": "'v1'",
        "execution_started": "false",
        "execution_completed": "false",
        "terminal_status": "CAST(NULL AS text)",
        "attested_at": "CAST('2020-01-01Z' AS timestamptz)",
        "prev_hash": "''",
        "record_hash": "''",
        **SELF,
    }
    row = f"CAST(ROW({', '.join(values.values())}) AS orchestration.{ATTESTATIONS})"
    return values | {"record_hash": f"orchestration.attestation_record_hash({row})"}


def instruction(id: str = NEW, participant_id: str = "p") -> dict[str, str]:
    return {
        "id": f"CAST('{id}' AS uuid)",
        "participant_id": f"'{participant_id}'",
        "idempotency_key": f"'{id}'",
        "instruction_type": "'pain.001'",
        "end_to_end_id": "'e2e'",
        "amount_minor": "100",
        "currency": "'EUR'",
        "debtor_account": "'debtor'",
        "creditor_account": "'creditor'",
        "payload": f"CAST('{PAYLOAD}' AS jsonb)",
        "payload_salt": "decode(repeat('00', 16), 'hex')",
        "payload_hash": f"'{HASH}'",
        "attestation_id": f"(SELECT a.id FROM orchestration.{ATTESTATIONS} a"
        " WHERE a.caller_identity = 'instructions' LIMIT 1)",
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
        "outbox_id": f"CAST('{outbox_id}' AS uuid)",
        "instruction_id": f"CAST('{instruction_id}' AS uuid)",
        "participant_id": f"'{participant_id}'",
        "sequence_id": f"(SELECT coalesce(max(i.sequence_id), 0) + 1 FROM orchestration.{ITEMS} i"
        f" WHERE i.participant_id = '{participant_id}')",
        "idempotency_key": f"'{outbox_id}'",
        "rail_type": f"'{rail_type}'",
        "payload": f"CAST('{PAYLOAD}' AS jsonb)",
        "payload_salt": "decode(repeat('00', 16), 'hex')",
        "payload_hash": f"'{HASH}'",
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
        "outbox_id": f"CAST('{outbox_id}' AS uuid)",
        "attempt_no": "1",
        "phase": "'OPEN'",
        "state": "'DISPATCHING'",
        "lease_token": f"CAST('{TOKEN}' AS uuid)",
        "worker_id": "'w'",
        "claimed_at": "clock_timestamp()",
        **SELF,
    }
    return insert(ATTEMPTS, values | changed)


def lease(outbox_id: str) -> str:
    return (
        f"UPDATE orchestration.{PENDING} SET attempt_count = attempt_count + 1, claimed_by = 'w',"
        f" lease_token = '{TOKEN}', lease_expires_at = clock_timestamp() + interval '1 hour'"
        f" WHERE outbox_id = '{outbox_id}'"
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
    return f"UPDATE orchestration.{INSTRUCTIONS} SET {step(state)} WHERE id = '{id}'"


WORLD = (
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
    f"UPDATE orchestration.{PENDING} SET lease_expires_at = clock_timestamp() - interval '1 minute'"
    f" WHERE outbox_id = '{EXPIRED}'",
)


def make_world(connection: Connect) -> None:
    """Something for every act to act on; INGEST was engaged and released, and a rail that nothing
    here uses is stopped."""
    activate_policy(connection, "v0")
    activate_policy(connection, "v1")
    authorize_instructions(
        connection,
        [
            *((id, "p") for id in (AUTHORIZED, EXECUTING, DONE, BEGUN)),
            (OTHERS_OWN, "q"),
        ],
    )
    for statement in WORLD:
        connection.execute(statement)
    for action, scope, target in (
        ("ENGAGE", "INGEST", None),
        ("RELEASE", "INGEST", None),
        ("ENGAGE", "RAIL", "of no one"),
    ):
        connection.execute(
            f"INSERT INTO orchestration.{EVENTS} (scope, target, action, reason)"
            " VALUES (%s, %s, %s, 'before')",
            (scope, target, action),
        )


def picture(connection: Connect) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM orchestration.{table} ORDER BY 1, 2, 3").fetchall()
        for table in (*GATED_TABLES, EVENTS, GATE)
    ]


# The attacks.


def every_update(id: str, state: str) -> dict[str, str]:
    update = move(id, state)
    participant = "q" if id == OTHERS_OWN else "p"
    return {
        "UPDATE": update,
        "INSERT ON CONFLICT DO UPDATE": (
            f"{insert(INSTRUCTIONS, instruction(id, participant))}"
            f" ON CONFLICT (id) DO UPDATE SET {step(state)}"
        ),
        "MERGE UPDATE": (
            f"MERGE INTO orchestration.{INSTRUCTIONS} USING (SELECT) AS s ON id = '{id}'"
            f" WHEN MATCHED THEN UPDATE SET {step(state)}"
        ),
        "UPDATE in a CTE": f"WITH u AS ({update} RETURNING 1) SELECT * FROM u",
    }


GLOBAL: Switch = ("GLOBAL", None)
INGEST: Switch = ("INGEST", None)
EXECUTION: Switch = ("EXECUTION", None)
DISPATCH: Switch = ("DISPATCH", None)
OF_P: Switch = ("PARTICIPANT", "p")
SEPA: Switch = ("RAIL", "SEPA")

ENTRIES: dict[str, tuple[str, tuple[Switch, ...], dict[str, str]]] = {
    "an attestation": (
        f"triggers/{ATTESTATIONS}__kill_switch",
        (GLOBAL, INGEST),
        every_insert(ATTESTATIONS, attestation()),
    ),
    "an instruction": (
        f"triggers/{INSTRUCTIONS}__kill_switch_insert",
        (GLOBAL, INGEST, OF_P),
        every_insert(INSTRUCTIONS, instruction()),
    ),
    "an item": (
        f"triggers/{ITEMS}__kill_switch",
        (GLOBAL, INGEST, OF_P),
        {"INSERT": enqueue()},
    ),
    "authorizing": (
        f"triggers/{INSTRUCTIONS}__kill_switch_update",
        (GLOBAL, EXECUTION, OF_P),
        every_update(RECEIVED, "AUTHORIZED"),
    ),
    "executing": (
        f"triggers/{INSTRUCTIONS}__kill_switch_update",
        (GLOBAL, EXECUTION, OF_P),
        every_update(AUTHORIZED, "EXECUTING"),
    ),
    "an opening": (
        f"triggers/{ATTEMPTS}__kill_switch",
        (GLOBAL, DISPATCH, OF_P, SEPA),
        {"INSERT": claim(FREE), "INSERT after an UPDATE": f"{lease(FREE)}; {record(FREE)}"},
    ),
}
"""What is gated, by an owner's own hand: by which trigger, under which switches, in which forms."""


def gated() -> Iterator[Attack]:
    for what, (trigger, switches, forms) in ENTRIES.items():
        for scope, target in switches:
            yield from Attack(
                f"{what} under {name_of((scope, target))}",
                "INV-KIL-001",
                "P7501",
                EVENTS,
                (),
                {"scope": scope, "target": target, "reason": "fraud"},
                (trigger,),
                column="scope",
            ).in_forms(forms, before=[insert(EVENTS, event(scope, target))])


MALFORMED: tuple[Switch, ...] = (
    *((scope, target) for scope in ("GLOBAL", "INGEST", "EXECUTION") for target in ("p", "")),
    ("DISPATCH", "SEPA"),
    *((scope, target) for scope in ("PARTICIPANT", "RAIL") for target in (None, "")),
    ("global", None),
    ("", None),
    ("ALL", "p"),
)


def events() -> Iterator[Attack]:
    numbered = Attack(
        "",
        "INV-KIL-001",
        "22023",
        EVENTS,
        (),
        {},
        (f"triggers/{EVENTS}__guard",),
        column="event_no",
    )
    leap = replace(numbered, name="a leap", detail={"event_no": 7, "expected": 4})
    yield from leap.in_forms(every_insert(EVENTS, event(event_no="7")))
    yield from leap.in_forms({"COPY": copied(event_no="7")})
    yield from replace(
        numbered,
        name="no number",
        detail={"event_no": 0, "expected": 4},
        without=(*numbered.without, f"constraints/ck_{EVENTS}_event_no"),
    ).in_forms({"INSERT": insert(EVENTS, event(event_no="0"))})
    twice = Attack(
        "a number twice",
        "INV-KIL-001",
        "23505",
        EVENTS,
        (),
        None,
        (f"constraints/pk_{EVENTS}",),
        constraint=f"pk_{EVENTS}",
    )
    yield from twice.in_forms(every_insert(EVENTS, event(event_no="1")))
    yield from twice.in_forms({"COPY": copied(event_no="3")})
    malformed = Attack(
        "",
        "INV-KIL-001",
        "23514",
        EVENTS,
        (),
        None,
        (f"constraints/ck_{EVENTS}_scope",),
        constraint=f"ck_{EVENTS}_scope",
    )
    for scope, target in MALFORMED:
        yield from replace(malformed, name=f"{scope!r} of {target!r}").in_forms(
            {"INSERT": insert(EVENTS, event(scope, target))}
        )
    yield from replace(malformed, name="a participant of no name").in_forms(
        every_insert(EVENTS, event("PARTICIPANT")) | {"COPY": copied(scope="PARTICIPANT")}
    )

    yield Attack(
        "a key twice",
        "INV-KIL-003",
        "23505",
        EVENTS,
        tuple(
            insert(EVENTS, event(event_no=number, action=action, key="'key'"))
            for number, action in (("4", "'ENGAGE'"), ("5", "'RELEASE'"))
        ),
        None,
        (f"constraints/uq_{EVENTS}_key",),
        constraint=f"uq_{EVENTS}_key",
    )
    yield Attack(
        "a key of no characters",
        "INV-KIL-003",
        "23514",
        EVENTS,
        (insert(EVENTS, event(key="CAST('' AS text)")),),
        None,
        (f"constraints/ck_{EVENTS}_key",),
        constraint=f"ck_{EVENTS}_key",
    )

    append_only = Attack(
        "",
        "INV-APP-001",
        "P0001",
        EVENTS,
        (),
        {"event_no": 3},
        (f"triggers/{EVENTS}__append_only",),
    )
    of_3 = f"UPDATE orchestration.{EVENTS} SET {{}} WHERE event_no = 3"
    for column, value in {
        "event_no": "9",
        "scope": "'PARTICIPANT'",
        "target": "'other'",
        "action": "'RELEASE'",
        "reason": "'forged'",
        "actor": "'forged'",
        "key": "'forged'",
        "occurred_at": "'2020-01-01Z'",
        "db_user": "'forged'",
        "xact_id": "1",
    }.items():
        yield from replace(append_only, name=f"a changed {column}").in_forms(
            {"UPDATE": of_3.format(f"{column} = {value}")}
        )
    released = "action = 'RELEASE'"
    yield from replace(append_only, name="a release by hand").in_forms(
        {
            "INSERT ON CONFLICT DO UPDATE": (
                f"{insert(EVENTS, event(event_no='3'))}"
                f" ON CONFLICT (event_no) DO UPDATE SET {released}"
            ),
            "MERGE UPDATE": (
                f"MERGE INTO orchestration.{EVENTS} USING (SELECT) AS s ON event_no = 3"
                f" WHEN MATCHED THEN UPDATE SET {released}"
            ),
            "UPDATE in a CTE": f"WITH u AS ({of_3.format(released)} RETURNING 1) SELECT * FROM u",
        }
    )
    yield from replace(append_only, name="an update that changes nothing").in_forms(
        {"UPDATE": of_3.format("reason = reason")}
    )
    yield from replace(append_only, name="a removed event").in_forms(
        deletes(EVENTS, "event_no = 3")
    )
    yield from replace(
        append_only,
        name="removal of all events",
        detail={},
        without=(f"triggers/{EVENTS}__no_truncate",),
    ).in_forms(truncates(EVENTS))


def gate() -> Iterator[Attack]:
    stays = Attack(
        "removal of the gate",
        "INV-KIL-002",
        "P0001",
        GATE,
        (),
        {},
        (f"triggers/{GATE}__no_delete",),
    )
    yield from stays.in_forms(deletes(GATE, "singleton"))
    yield from replace(stays, without=(f"triggers/{GATE}__no_truncate",)).in_forms(truncates(GATE))


ATTACKS = (*gated(), *events(), *gate())

every_attack = pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, id=str(attack), marks=pytest.mark.invariant(attack.invariant))
        for attack in ATTACKS
    ],
)


STRAY = (
    "readonly",
    (
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA orchestration"
        " TO symphony_readonly",
        "GRANT EXECUTE ON FUNCTION orchestration.attestation_record_hash TO symphony_readonly",
    ),
)


@every_attack
def test_an_attack_is_refused_until_the_object_that_keeps_the_rule_is_gone(
    stage_of: StageOf, attack: Attack
) -> None:
    stage_of(make_world, picture, STRAY).prove(attack)


@pytest.mark.superuser
@pytest.mark.parametrize(
    "invariant",
    [
        pytest.param("INV-KIL-001", marks=pytest.mark.invariant("INV-KIL-001")),
        pytest.param("INV-KIL-002", marks=pytest.mark.invariant("INV-KIL-002")),
        pytest.param("INV-KIL-003", marks=pytest.mark.invariant("INV-KIL-003")),
        pytest.param("INV-APP-001", marks=pytest.mark.invariant("INV-APP-001")),
    ],
)
def test_replica_mode_silences_no_refusal(superuser: Connect, invariant: str) -> None:
    make_world(superuser)
    before = picture(superuser)
    superuser.execute("SET session_replication_role = replica")
    for attack in ATTACKS:
        # What is copied brings its numbers along.
        if attack.invariant == invariant and attack.sqlstate != "22023":
            attack.check(attempt(superuser, attack.statements))
    assert picture(superuser) == before


NO_REFUSAL = {f"triggers/{EVENTS}__gate"}
"""It makes an event wait and refuses nothing; its own proof is below."""


@pytest.mark.parametrize(
    "entry",
    [*invariants.KILL_SWITCH, invariants.BY_ID["INV-APP-001"]],
    ids=lambda entry: entry.id,
)
def test_every_object_that_keeps_a_rule_is_attacked(entry: invariants.Invariant) -> None:
    named = {
        path
        for path in entry.enforced_by
        if not path.startswith("functions/")
        and (entry.id != "INV-APP-001" or path.startswith(f"triggers/{EVENTS}__"))
    }
    attacked = {
        path for attack in ATTACKS if attack.invariant == entry.id for path in attack.without
    }
    assert named
    assert named - NO_REFUSAL <= attacked


@pytest.mark.invariant("INV-KIL-001", "INV-KIL-002", "INV-APP-001")
@pytest.mark.parametrize("role", ["ingest", "executor", "control", "readonly", "auditor"])
def test_a_runtime_role_has_no_write_at_all(owner: Connect, login: Login, role: str) -> None:
    make_world(owner)
    caller = login(role)
    for statement in (
        f"UPDATE orchestration.{EVENTS} SET action = 'RELEASE'",
        f"DELETE FROM orchestration.{EVENTS}",
        f"TRUNCATE orchestration.{EVENTS}",
        insert(EVENTS, {"scope": "'GLOBAL'", "action": "'RELEASE'", "reason": "'x'"}),
        f"DELETE FROM orchestration.{GATE}",
        f"UPDATE orchestration.{GATE} SET changes = changes",
    ):
        assert refusal(caller, statement).sqlstate == "42501"


# The functions, as the logins.


def literal(text: str | None) -> str:
    return "NULL" if text is None else f"'{text}'"


def engage(scope: str, target: str | None = None, reason: str = "fraud") -> str:
    return (
        f"SELECT * FROM orchestration.engage_kill_switch(p_scope => {literal(scope)},"
        f" p_reason => {literal(reason)}, p_target => {literal(target)}, p_engaged_by => 'ops')"
    )


def engaged(connection: Connect) -> set[Switch]:
    """The switches that are engaged, apart from the one that make_world engages."""
    rows = connection.execute(
        "SELECT scope, target FROM orchestration.kill_switch_state WHERE engaged"
    ).fetchall()
    return {(scope, target) for scope, target in rows} - {("RAIL", "of no one")}


def release(scope: str, target: str | None = None, reason: str = "over") -> str:
    return (
        f"SELECT * FROM orchestration.release_kill_switch(p_scope => {literal(scope)},"
        f" p_reason => {literal(reason)}, p_target => {literal(target)}, p_released_by => 'ops')"
    )


def call(function: str, *entries: dict[str, Any], more: str = "") -> str:
    return f"SELECT * FROM orchestration.{function}('{json.dumps(entries)}'{more})"


def attest(*keys: str) -> str:
    return call(
        "append_attestations",
        *(
            {
                "caller_identity": "dave",
                "idempotency_key": key,
                "payload_hash": digest(key),
                "policy_version_id": "v1",
            }
            for key in keys
        ),
    )


def receive(attestation_id: str, *keys: tuple[str, str]) -> str:
    """Instructions, each given as participant and key."""
    return call(
        "receive_instruction",
        *(
            {
                "participant_id": participant_id,
                "idempotency_key": key,
                "instruction_type": "pain.001",
                "end_to_end_id": key,
                "amount_minor": 100,
                "currency": "EUR",
                "debtor_account": "debtor",
                "creditor_account": "creditor",
                "payload": {"key": key},
                "attestation_id": attestation_id,
                "policy_version_id": "v1",
            }
            for participant_id, key in keys
        ),
    )


def dispatch(*keys: tuple[str, str], rail_type: str = "SEPA") -> str:
    """Items, each given as participant and key."""
    return call(
        "enqueue_payment_outbox",
        *(
            {
                "instruction_id": AUTHORIZED if participant_id == "p" else OTHERS_OWN,
                "participant_id": participant_id,
                "idempotency_key": key,
                "rail_type": rail_type,
                "payload": {"key": key},
            }
            for participant_id, key in keys
        ),
    )


def transition(function: str, id: str, version: int, more: str = "") -> str:
    return f"SELECT * FROM orchestration.{function}('{id}', {version}{more})"


CLAIM = (
    "SELECT outbox_id::text FROM orchestration.claim_outbox_batch("
    "p_worker_id => 'worker', p_batch_size => 100, p_lease => interval '1 hour')"
)


def attested(connection: Connect) -> str:
    return str(
        scalar(
            connection,
            f"SELECT id FROM orchestration.{ATTESTATIONS} WHERE caller_identity = 'instructions'",
        )
    )


GATED: dict[str, tuple[str, Callable[[str], str], tuple[Switch, ...]]] = {
    "attesting": ("ingest", lambda _: attest("k"), (GLOBAL, INGEST)),
    "receiving": ("ingest", lambda id: receive(id, ("p", "k")), (GLOBAL, INGEST, OF_P)),
    "receiving for two": (
        "ingest",
        lambda id: receive(id, ("q", "k"), ("p", "k")),
        (GLOBAL, INGEST, OF_P),
    ),
    "enqueuing": ("executor", lambda _: dispatch(("p", "k")), (GLOBAL, INGEST, OF_P)),
    "enqueuing for two": (
        "executor",
        lambda _: dispatch(("q", "k"), ("p", "k")),
        (GLOBAL, INGEST, OF_P),
    ),
    "authorizing": (
        "executor",
        lambda _: transition("authorize_instruction", RECEIVED, 1),
        (GLOBAL, EXECUTION, OF_P),
    ),
    "executing": (
        "executor",
        lambda _: transition("start_execution", AUTHORIZED, 2),
        (GLOBAL, EXECUTION, OF_P),
    ),
    "claiming": ("executor", lambda _: CLAIM, (GLOBAL, DISPATCH)),
}
"""What is gated, by function: as which login, and which switches stop it."""


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize("act", GATED)
@pytest.mark.parametrize("switch", [*SWITCHES, *OTHERS], ids=name_of)
def test_a_function_is_refused_under_the_switches_that_stop_it_and_under_no_other(
    owner: Connect, login: Login, act: str, switch: Switch
) -> None:
    make_world(owner)
    role, statement, stopped_by = GATED[act]
    control, caller = login("control"), login(role)
    control.execute(engage(*switch))
    before = picture(owner)
    found = attempt(caller, [statement(attested(owner))])
    if switch not in stopped_by:
        assert found is None
        assert picture(owner) != before
        return
    assert_refused(found, switch)
    assert picture(owner) == before
    control.execute(release(*switch))
    assert attempt(caller, [statement(attested(owner))]) is None


def assert_refused(found: Refusal | None, switch: Switch, reason: str = "fraud") -> None:
    assert found is not None
    assert_invariant(found, "INV-KIL-001", "P7501", EVENTS)
    assert found.column == "scope"
    assert found.keys == {"scope": switch[0], "target": switch[1], "reason": reason}
    assert name_of(switch) in found.message


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize("what", ENTRIES)
def test_an_owner_goes_on_by_hand_under_the_switches_that_do_not_stop_it(
    owner: Connect, what: str
) -> None:
    make_world(owner)
    _, switches, forms = ENTRIES[what]
    for scope, target in {*SWITCHES, *OTHERS} - {*switches}:
        owner.execute(engage(scope, target))
    assert engaged(owner) == {*SWITCHES, *OTHERS} - {*switches}
    assert attempt(owner, [next(iter(forms.values()))]) is None


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize(
    ("stopped", "claimed"),
    [
        ([], {FREE, FREE_SWIFT, OF_Q, EXPIRED}),
        ([OF_P], {OF_Q}),
        ([("PARTICIPANT", "q")], {FREE, FREE_SWIFT, EXPIRED}),
        ([SEPA], {FREE_SWIFT}),
        ([("RAIL", "SWIFT")], {FREE, OF_Q, EXPIRED}),
        ([("RAIL", "SWIFT"), ("PARTICIPANT", "q")], {FREE, EXPIRED}),
        ([OF_P, SEPA], set()),
        ([("RAIL", "p"), ("PARTICIPANT", "SEPA")], {FREE, FREE_SWIFT, OF_Q, EXPIRED}),
    ],
    ids=lambda one: " and ".join(map(name_of, one)) if isinstance(one, list) else "",
)
def test_a_claim_leaves_out_what_is_stopped_and_hands_out_the_others(
    owner: Connect, login: Login, stopped: list[Switch], claimed: set[str]
) -> None:
    make_world(owner)
    control, executor = login("control"), login("executor")
    for switch in stopped:
        control.execute(engage(*switch))
    assert {id for (id,) in executor.execute(CLAIM).fetchall()} == claimed
    for switch in stopped:
        control.execute(release(*switch))
    rest = {FREE, FREE_SWIFT, OF_Q, EXPIRED} - claimed
    assert {id for (id,) in executor.execute(CLAIM).fetchall()} == rest


@pytest.mark.invariant("INV-KIL-001")
def test_what_is_stopped_takes_no_place_in_a_batch(owner: Connect, login: Login) -> None:
    make_world(owner)
    login("control").execute(engage(*OF_P))
    one = CLAIM.replace("p_batch_size => 100", "p_batch_size => 1")
    assert login("executor").execute(one).fetchall() == [(OF_Q,)]


@pytest.mark.invariant("INV-KIL-001")
def test_an_attempt_of_a_stopped_participant_that_expired_is_left_as_it_is(
    owner: Connect, login: Login
) -> None:
    make_world(owner)
    login("control").execute(engage(*OF_P))
    attempts = f"SELECT * FROM orchestration.{ATTEMPTS} WHERE outbox_id = '{EXPIRED}'"
    before = owner.execute(attempts).fetchall()
    login("executor").execute(CLAIM)
    assert owner.execute(attempts).fetchall() == before


def completion(state: str) -> str:
    lease = {"outbox_id": LEASED, "lease_token": TOKEN, "worker_id": "w", "state": state}
    outcome = {"outcome": "REJECTED"} if state == "FAILED" else {}
    return call("complete_outbox_attempt", lease | outcome)


def started(id: str) -> str:
    return f"SELECT * FROM orchestration.record_attestation_event('{id}', 'EXECUTION_STARTED')"


def always(*statements: str) -> Callable[[str], tuple[str, ...]]:
    return lambda _: statements


NEVER_GATED: dict[str, tuple[str, Callable[[str], tuple[str, ...]]]] = {
    **{
        f"completing as {state}": ("executor", always(completion(state)))
        for state in ("DISPATCHED", "RETRYABLE", "FAILED")
    },
    "renewing": (
        "executor",
        lambda _: (
            f"SELECT orchestration.renew_outbox_lease('{LEASED}', '{TOKEN}', 'w', '2 hours')",
        ),
    ),
    "repairing as executor": (
        "executor",
        lambda _: ("SELECT * FROM orchestration.repair_expired_leases()",),
    ),
    "repairing as control": (
        "control",
        lambda _: ("SELECT * FROM orchestration.repair_expired_leases()",),
    ),
    "attestation events": (
        "executor",
        lambda id: (
            started(id),
            "SELECT * FROM orchestration.record_attestation_event("
            f"'{id}', 'EXECUTION_COMPLETED', 'SUCCESS')",
        ),
    ),
    "completing an instruction": (
        "executor",
        lambda _: (transition("complete_instruction", DONE, 3),),
    ),
    **{
        f"failing what is {state}": (
            "executor",
            always(transition("fail_instruction", id, version, ", 'test'")),
        )
        for state, id, version in (
            ("RECEIVED", RECEIVED, 1),
            ("AUTHORIZED", BEGUN, 2),
            ("EXECUTING", EXECUTING, 3),
        )
    },
    "rotating": (
        "control",
        lambda _: (
            "SELECT * FROM orchestration.rotate_policy_version(p_id => 'v2',"
            f" p_description => 'x', p_checksum => '{digest(2)}', p_grace => '1 hour')",
        ),
    ),
    "retiring": ("control", lambda _: ("SELECT * FROM orchestration.retire_policy_version('v0')",)),
    "revoking": (
        "control",
        lambda _: (
            f"SELECT * FROM orchestration.revoke_client_cert('{digest(1)}', 'keyCompromise')",
            f"SELECT * FROM orchestration.revoke_token('{digest(2)}', 'keyCompromise')",
        ),
    ),
    "redriving": (
        "control",
        lambda _: (f"SELECT * FROM orchestration.redrive_outbox_item('{REJECTED}')",),
    ),
    "engaging": (
        "control",
        lambda _: tuple(engage(*switch) for switch in (*SWITCHES, *OTHERS)),
    ),
    "releasing": ("control", lambda _: tuple(release(*switch) for switch in SWITCHES)),
}


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize("act", NEVER_GATED)
def test_what_ends_repairs_or_governs_goes_on_under_every_switch(
    owner: Connect, login: Login, act: str
) -> None:
    make_world(owner)
    role, statements = NEVER_GATED[act]
    for switch in SWITCHES:
        login("control").execute(engage(*switch))
    assert engaged(owner) == {*SWITCHES}
    caller = login(role)
    for statement in statements(attested(owner)):
        assert caller.execute(statement).rowcount >= 1


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize(
    "statements",
    [
        close(LEASED, "DISPATCHED"),
        (move(DONE, "COMPLETED"),),
        (
            f"UPDATE orchestration.{INSTRUCTIONS} SET state = 'FAILED', reason = 'x'"
            f" WHERE id = '{EXECUTING}'",
        ),
        (f"UPDATE orchestration.{INSTRUCTIONS} SET state = state",),
    ],
    ids=["a closing", "COMPLETED", "FAILED", "nothing changed"],
)
def test_what_ends_by_an_owner_s_hand_goes_on_under_every_switch(
    owner: Connect, statements: tuple[str, ...]
) -> None:
    make_world(owner)
    for switch in SWITCHES:
        owner.execute(engage(*switch))
    assert engaged(owner) == {*SWITCHES}
    assert attempt(owner, statements) is None


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize("what", ["attestation", "instruction", "item"])
def test_a_replay_is_answered_while_a_switch_is_engaged(
    owner: Connect, login: Login, what: str
) -> None:
    make_world(owner)
    id = attested(owner)
    acts: dict[str, Callable[..., str]] = {
        "attestation": attest,
        "instruction": lambda *keys: receive(id, *(("p", key) for key in keys)),
        "item": lambda *keys: dispatch(*(("p", key) for key in keys)),
    }
    statement = acts[what]
    ingest = login("executor" if what == "item" else "ingest")
    ingest.execute(statement("k1", "k2"))
    first = ingest.execute(statement("k1", "k2")).fetchall()
    for switch in SWITCHES:
        owner.execute(engage(*switch))
    assert ingest.execute(statement("k1", "k2")).fetchall() == first
    assert ingest.execute(statement("k2")).fetchall() == first[1:]
    # With anything new in it a batch is judged, and refused whole.
    found = refusal(ingest, statement("k1", "new", "k2"))
    assert_invariant(found, "INV-KIL-001", "P7501", EVENTS)


@pytest.mark.invariant("INV-KIL-001")
def test_an_insert_that_stores_nothing_is_not_judged(owner: Connect) -> None:
    make_world(owner)
    owner.execute(engage(*GLOBAL))
    assert engaged(owner) == {GLOBAL}
    for statement in (
        insert(INSTRUCTIONS, instruction(RECEIVED)) + " ON CONFLICT DO NOTHING",
        insert(INSTRUCTIONS, instruction()) + " WHERE false",
        move(NEW, "AUTHORIZED"),
    ):
        assert attempt(owner, [statement]) is None


@pytest.mark.invariant("INV-KIL-001")
@each_switch
def test_the_last_event_of_a_scope_and_target_counts(
    owner: Connect, login: Login, switch: Switch
) -> None:
    make_world(owner)
    control = login("control")
    stopped = next(
        next(iter(forms.values())) for _, switches, forms in ENTRIES.values() if switch in switches
    )

    def judged() -> Refusal | None:
        """The gated act, undone."""
        try:
            with owner.transaction(force_rollback=True):
                owner.execute(stopped)
        except psycopg.Error as error:
            return Refusal.of(error)
        return None

    control.execute(engage(*switch, reason="first"))
    assert_refused(judged(), switch, "first")
    control.execute(release(*switch))
    assert judged() is None
    control.execute(engage(*switch, reason="again"))
    control.execute(engage(*switch, reason="and again"))
    assert_refused(judged(), switch, "and again")
    # However often it was engaged, one release ends it.
    control.execute(release(*switch))
    assert judged() is None


@pytest.mark.invariant("INV-KIL-001")
def test_switches_are_released_one_by_one(owner: Connect, login: Login) -> None:
    make_world(owner)
    control, ingest = login("control"), login("executor")
    for switch in (GLOBAL, INGEST, OF_P, ("PARTICIPANT", "q")):
        control.execute(engage(*switch))
    for switch in (GLOBAL, ("PARTICIPANT", "q"), INGEST):
        assert attempt(ingest, [dispatch(("p", "k"))]) is not None
        control.execute(release(*switch))
    assert_refused(attempt(ingest, [dispatch(("p", "k"))]), OF_P)
    assert attempt(ingest, [dispatch(("q", "k"))]) is None


@pytest.mark.invariant("INV-KIL-001")
def test_the_state_shows_the_last_event_of_every_switch(owner: Connect, login: Login) -> None:
    control = login("control")
    for act in (engage, release, engage):
        control.execute(act("RAIL", "SEPA"))
        control.execute(act("INGEST"))
    control.execute(release("INGEST"))
    control.execute(engage("RAIL", "SWIFT"))
    found = control.execute(
        "SELECT scope, target, engaged, reason FROM orchestration.kill_switch_state ORDER BY 1, 2"
    ).fetchall()
    assert found == [
        ("INGEST", None, False, "over"),
        ("RAIL", "SEPA", True, "fraud"),
        ("RAIL", "SWIFT", True, "fraud"),
    ]


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize(
    "switch",
    [
        ("GLOBAL", None),
        ("INGEST", None),
        ("RAIL", "SEPA"),
        ("RAIL", None),
        ("DISPATCH", "of no one"),
        ("NO SCOPE", None),
    ],
    ids=name_of,
)
def test_what_is_not_engaged_is_not_released(owner: Connect, login: Login, switch: Switch) -> None:
    make_world(owner)
    before = picture(owner)
    found = refusal(login("control"), release(*switch))
    assert_invariant(found, "INV-API-002", "P0002", EVENTS)
    assert (found.column, found.keys) == ("scope", {"scope": switch[0], "target": switch[1]})
    assert picture(owner) == before


@pytest.mark.invariant("INV-API-002")
def test_what_was_released_is_not_released_again(login: Login) -> None:
    control = login("control")
    control.execute(engage("GLOBAL"))
    control.execute(release("GLOBAL"))
    assert refusal(control, release("GLOBAL")).sqlstate == "P0002"


@pytest.mark.parametrize(
    ("changed", "sqlstate", "names"),
    [
        ({"action": "'PAUSE'"}, "23514", "ck_kill_switches_action"),
        ({"reason": "''"}, "23514", "ck_kill_switches_reason"),
        ({"actor": "''"}, "23514", "ck_kill_switches_actor"),
        ({"scope": "NULL"}, "23514", "ck_kill_switches_scope"),
        ({"action": "NULL"}, "23502", "action"),
        ({"reason": "NULL"}, "23502", "reason"),
        ({"actor": "NULL"}, "23502", "actor"),
    ],
    ids=str,
)
def test_a_value_that_no_event_may_hold_is_refused(
    owner: Connect, changed: dict[str, str], sqlstate: str, names: str
) -> None:
    make_world(owner)
    found = refusal(owner, insert(EVENTS, event(**changed)))
    assert (found.sqlstate, found.table) == (sqlstate, EVENTS)
    assert names in (found.constraint, found.column)


# What the database sets.


@pytest.mark.invariant("INV-KIL-001")
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect) -> None:
    for number in (1, 2, 3):
        with owner.transaction():
            owner.execute(
                insert(EVENTS, {"scope": "'GLOBAL'", "action": "'ENGAGE'", "reason": "'x'"})
            )
            found = owner.execute(
                "SELECT event_no, target, occurred_at BETWEEN now() AND clock_timestamp(),"
                " actor = session_user, db_user = session_user,"
                f" xact_id = pg_current_xact_id()::text::bigint FROM orchestration.{EVENTS}"
                " ORDER BY event_no DESC LIMIT 1"
            ).fetchone()
        assert found == (number, None, True, True, True, True)


@pytest.mark.invariant("INV-KIL-001")
@pytest.mark.parametrize("form", ["INSERT", "MERGE INSERT", "INSERT in a CTE", "COPY"])
def test_who_changed_a_switch_when_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Login, form: str
) -> None:
    make_world(owner)
    owner.execute(f"GRANT SELECT, INSERT, UPDATE ON orchestration.{EVENTS} TO symphony_executor")
    stray = login("executor")
    before = scalar(owner, "SELECT clock_timestamp()")
    assert attempt(stray, [(every_insert(EVENTS, event()) | {"COPY": copied()})[form]]) is None
    found = owner.execute(
        "SELECT db_user, xact_id = xmin::text::bigint, occurred_at >= %s, actor"
        f" FROM orchestration.{EVENTS} WHERE event_no = 4",
        (before,),
    ).fetchone()
    # actor is the caller's claim.
    assert found == (stray.info.user, True, True, "forger")


@pytest.mark.superuser
@pytest.mark.invariant("INV-KIL-001")
def test_in_replica_mode_values_arrive_as_they_are(superuser: Connect) -> None:
    make_world(superuser)
    changes = f"SELECT changes FROM orchestration.{GATE}"
    before = scalar(superuser, changes)
    superuser.execute("SET session_replication_role = replica")
    assert attempt(superuser, [insert(EVENTS, event(event_no="7"))]) is None
    found = superuser.execute(
        "SELECT db_user, xact_id, occurred_at = '2020-01-01Z'"
        f" FROM orchestration.{EVENTS} WHERE event_no = 7"
    ).fetchone()
    assert found == ("forger", 1, True)
    assert scalar(superuser, changes) == before
    found_none = refusal(superuser, insert(EVENTS, event(event_no="0")))
    assert (found_none.sqlstate, found_none.constraint) == ("23514", f"ck_{EVENTS}_event_no")


@pytest.mark.invariant("INV-KIL-001")
def test_an_engagement_that_was_undone_leaves_no_gap(login: Login) -> None:
    control = login("control")
    numbers = []
    for undone in (True, False, True, True, False):
        with control.transaction(force_rollback=undone):
            numbers.append(control.execute(engage("GLOBAL")).fetchall()[0][0])
    assert numbers == [1, 1, 2, 2, 2]


@pytest.mark.invariant("INV-KIL-001")
def test_many_events_of_one_insert_are_numbered_in_turn(owner: Connect) -> None:
    owner.execute(
        f"INSERT INTO orchestration.{EVENTS} (scope, target, action, reason)"
        " SELECT 'RAIL', 'r' || n, 'ENGAGE', 'x' FROM generate_series(1, 5) AS n"
    )
    found = owner.execute(
        f"SELECT event_no, target FROM orchestration.{EVENTS} ORDER BY event_no"
    ).fetchall()
    assert found == [(n, f"r{n}") for n in range(1, 6)]


def test_who_changed_a_switch_is_the_login_where_nobody_is_named(login: Login) -> None:
    control = login("control")
    for function in ("engage_kill_switch", "release_kill_switch"):
        by = scalar(control, f"SELECT actor FROM orchestration.{function}('GLOBAL', 'x')")
        assert by == control.info.user


# The gate.


LOCK = f"LOCK TABLE orchestration.{GATE} IN EXCLUSIVE MODE"


@pytest.mark.invariant("INV-KIL-002")
def test_every_event_leaves_its_mark_on_the_gate(owner: Connect) -> None:
    changes = f"SELECT changes FROM orchestration.{GATE}"
    counted = [scalar(owner, changes)]
    for act in (engage, release, engage):
        owner.execute(act("GLOBAL"))
        counted.append(scalar(owner, changes))
    assert counted == [0, 1, 2, 3]
    assert scalar(
        owner,
        f"SELECT changed_at <= now() AND changed_at > now() - '1 hour'::interval"
        f" FROM orchestration.{GATE}",
    )


@pytest.mark.invariant("INV-KIL-002")
def test_the_gate_has_one_row(owner: Connect) -> None:
    found = refusal(owner, f"INSERT INTO orchestration.{GATE} DEFAULT VALUES")
    assert (found.sqlstate, found.constraint) == ("23505", f"pk_{GATE}")
    found = refusal(owner, f"INSERT INTO orchestration.{GATE} (singleton) VALUES (false)")
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{GATE}_singleton")


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_gate_without_its_row_stops_every_event_and_the_writers_that_read_it(
    owner: Connect, login: Login, isolation: str
) -> None:
    make_world(owner)
    drop(owner, f"triggers/{GATE}__no_delete")
    owner.execute(f"DELETE FROM orchestration.{GATE}")
    ingest = login("ingest")
    for connection in (owner, ingest):
        connection.execute(
            f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {isolation}"
        )
    for statement in (engage("GLOBAL"), release("RAIL", "of no one"), insert(EVENTS, event())):
        found = refusal(owner, statement)
        assert_invariant(found, "INV-API-002", "P0002", GATE)
        assert found.keys == {}
    if isolation != "READ COMMITTED":
        assert_invariant(refusal(ingest, attest("k")), "INV-API-002", "P0002", GATE)


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("what", ENTRIES)
def test_an_owner_s_gated_write_holds_the_gate_until_commit(
    owner: Connect, login: Login, what: str
) -> None:
    make_world(owner)
    _, _, forms = ENTRIES[what]
    control = login("control")
    control.execute("SET statement_timeout = '50ms'")
    for statement in forms.values():
        with owner.transaction(force_rollback=True):
            owner.execute(statement)
            assert refusal(control, engage("GLOBAL")).sqlstate == "57014"
    control.execute("RESET statement_timeout")
    assert attempt(control, [engage("GLOBAL")]) is None


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("act", GATED)
def test_a_gated_function_holds_the_gate_until_commit(
    owner: Connect, login: Login, act: str
) -> None:
    make_world(owner)
    role, statement, _ = GATED[act]
    caller = login(role)
    owner.execute("SET lock_timeout = '50ms'")
    with caller.transaction():
        caller.execute(statement(attested(owner)))
        assert refusal(owner, LOCK).sqlstate == "55P03"
    assert attempt(owner, [LOCK]) is None


GOVERNING = ("rotating", "retiring", "revoking", "redriving", "engaging", "releasing")
"""Acts that the audit log chains, one after the other."""


@pytest.mark.invariant("INV-KIL-002")
@pytest.mark.parametrize("act", [act for act in NEVER_GATED if act not in GOVERNING])
def test_what_is_never_gated_lets_a_switch_engage_meanwhile(
    owner: Connect, login: Login, act: str
) -> None:
    make_world(owner)
    role, statements = NEVER_GATED[act]
    caller, control = login(role), login("control")
    # Not lock_timeout, which the function sets to 0.
    control.execute("SET statement_timeout = '10s'")
    with caller.transaction():
        for statement in statements(attested(owner)):
            caller.execute(statement)
        control.execute(engage("GLOBAL"))
        assert engaged(control) == {GLOBAL}
    assert_refused(attempt(login("executor"), [CLAIM]), GLOBAL)


@pytest.mark.invariant("INV-KIL-002", "INV-AUD-001")
@pytest.mark.parametrize("act", ["rotating", "retiring", "revoking", "redriving"])
def test_a_switch_that_waits_for_an_act_of_governance_stops_what_is_gated_already(
    owner: Connect, login: Login, act: str
) -> None:
    make_world(owner)
    role, statements = NEVER_GATED[act]
    caller, control, executor = login(role), login("control"), login("executor")
    executor.execute("SET lock_timeout = '50ms'")
    with ThreadPoolExecutor(1) as threads:
        with caller.transaction():
            for statement in statements(attested(owner)):
                caller.execute(statement)
            engaging = threads.submit(control.execute, engage("GLOBAL"))
            assert await_blocked(owner, backend(control)) == [backend(caller)]
            assert refusal(executor, CLAIM).sqlstate == "55P03"
        engaging.result()
    assert_refused(attempt(executor, [CLAIM]), GLOBAL)


@pytest.mark.invariant("INV-KIL-002")
def test_the_owner_s_own_event_is_gated_by_the_trigger_and_by_nothing_else(
    owner: Connect, login: Login
) -> None:
    make_world(owner)
    ingest = login("ingest")
    ingest.execute("BEGIN")
    ingest.execute(attest("k1"))
    owner.execute("SET lock_timeout = '50ms'")
    assert refusal(owner, insert(EVENTS, event())).sqlstate == "55P03"
    ingest.execute("COMMIT")

    drop(owner, f"triggers/{EVENTS}__gate")
    ingest.execute("BEGIN")
    ingest.execute(attest("k2"))
    assert attempt(owner, [insert(EVENTS, event())]) is None
    # Judged before the switch, committed after it: what the gate is there to exclude.
    ingest.execute("COMMIT")
    assert_refused(attempt(ingest, [attest("k3")]), GLOBAL)


@pytest.mark.superuser
@pytest.mark.invariant("INV-KIL-002")
def test_in_replica_mode_an_event_waits_for_writers_too(superuser: Connect, login: Login) -> None:
    make_world(superuser)
    ingest = login("ingest")
    ingest.execute("BEGIN")
    ingest.execute(attest("k"))
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("SET lock_timeout = '50ms'")
    assert refusal(superuser, insert(EVENTS, event())).sqlstate == "55P03"


@pytest.mark.invariant("INV-KIL-002")
def test_a_refused_event_leaves_the_gate_as_it_was(owner: Connect) -> None:
    make_world(owner)
    before = picture(owner)
    for statement in (engage("NO SCOPE"), engage("GLOBAL", reason=""), release("GLOBAL")):
        refusal(owner, statement)
    assert picture(owner) == before

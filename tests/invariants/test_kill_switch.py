"""Tests of every function while a kill switch is engaged, as the logins, and of valid events and
their defaults. `attacks` tests the refusals of direct writes."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.invariants.attacks.base import copy, insert, inserts
from tests.invariants.attacks.kill_switch import (
    ATTEMPTS,
    ATTESTATIONS,
    AUTHORIZED,
    BEGUN,
    DISPATCH,
    DONE,
    ENTRIES,
    EVENTS,
    EXECUTING,
    EXECUTION,
    EXPIRED,
    FREE,
    FREE_SWIFT,
    GATE,
    GLOBAL,
    INGEST,
    INSTRUCTIONS,
    KILL_SWITCH,
    LEASED,
    NEW,
    OF_P,
    OF_Q,
    OTHER_FORMS,
    OTHERS_OWN,
    RECEIVED,
    REJECTED,
    SEPA,
    TOKEN,
    Switch,
    close,
    event,
    instruction,
    move,
    name_of,
)
from tests.support import (
    Connect,
    Refusal,
    assert_invariant,
    attempt,
    await_blocked,
    backend,
    digest,
    drop,
    picture,
    refusal,
    run,
    scalar,
)

Login = Callable[[str], Connect]

SWITCHES: tuple[Switch, ...] = (GLOBAL, INGEST, EXECUTION, DISPATCH, OF_P, SEPA)
OTHERS: tuple[Switch, ...] = (("PARTICIPANT", "p "), ("PARTICIPANT", "P"), ("RAIL", "p"))
"""Switches whose target nothing here is of."""
OTHER_TOKEN = "00000000-0000-7000-8000-000000001002"

each_switch = pytest.mark.parametrize("switch", SWITCHES, ids=name_of)


def make_world(owner: Connect) -> None:
    run(owner, KILL_SWITCH.histories[""])


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
def test_a_function_is_refused_under_the_switches_that_stop_it_and_under_no_other(
    owner: Connect, login: Login, act: str
) -> None:
    make_world(owner)
    role, statement, stopped_by = GATED[act]
    control, caller = login("control"), login(role)
    for switch in stopped_by:
        control.execute(engage(*switch))
        before = picture(owner)
        assert_refused(attempt(caller, [statement(attested(owner))]), switch)
        assert picture(owner) == before
        control.execute(release(*switch))
    for other in {*SWITCHES, *OTHERS} - {*stopped_by}:
        control.execute(engage(*other))
        with caller.transaction(force_rollback=True):
            assert caller.execute(statement(attested(owner))).rowcount > 0
        control.execute(release(*other))
    before = picture(owner)
    assert attempt(caller, [statement(attested(owner))]) is None
    assert picture(owner) != before


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
    _, switches, statement = ENTRIES[what]
    for scope, target in {*SWITCHES, *OTHERS} - {*switches}:
        owner.execute(engage(scope, target))
    assert engaged(owner) == {*SWITCHES, *OTHERS} - {*switches}
    assert attempt(owner, [statement]) is None


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
    control, caller = login("control"), login(role)
    for switch in SWITCHES:
        control.execute(engage(*switch))
    assert engaged(owner) == {*SWITCHES}
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
        f"INSERT INTO orchestration.{INSTRUCTIONS} ({', '.join(instruction())})"
        f" SELECT {', '.join(instruction())} FROM orchestration.{INSTRUCTIONS} WHERE false",
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
    stopped = next(statement for _, switches, statement in ENTRIES.values() if switch in switches)

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


@pytest.mark.unchanged(after=make_world)
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


@pytest.mark.unchanged(after=make_world)
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
@pytest.mark.parametrize("form", [" by INSERT", " by MERGE", " in a CTE", "COPY"])
def test_who_changed_a_switch_when_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Login, form: str
) -> None:
    make_world(owner)
    owner.execute(f"GRANT SELECT, INSERT, UPDATE ON orchestration.{EVENTS} TO symphony_executor")
    stray = login("executor")
    before = scalar(owner, "SELECT clock_timestamp()")
    forms = inserts("", EVENTS, event()) | {"COPY": copy(EVENTS, event(event_no="4"))}
    assert attempt(stray, [forms[form]]) is None
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


@pytest.mark.unchanged
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
    _, _, statement = ENTRIES[what]
    control = login("control")
    control.execute("SET statement_timeout = '50ms'")
    for form in (statement, *OTHER_FORMS.get(what, {}).values()):
        with owner.transaction(force_rollback=True):
            owner.execute(form)
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


@pytest.mark.unchanged(after=make_world)
@pytest.mark.invariant("INV-KIL-002")
def test_a_refused_event_leaves_the_gate_as_it_was(owner: Connect) -> None:
    before = picture(owner)
    for statement in (engage("NO SCOPE"), engage("GLOBAL", reason=""), release("GLOBAL")):
        refusal(owner, statement)
    assert picture(owner) == before

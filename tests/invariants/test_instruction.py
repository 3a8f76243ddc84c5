"""Tests of instructions and their history: valid writes, defaults, results, and the findings of
verification. `attacks` tests the refusals. The tests of the outbox prove INV-INS-005 and
INV-INS-006."""

import json
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import ANY

import pytest
from tools import scratch

from tests.invariants.attacks.base import LATER, becomes, copy, insert, inserts, moves
from tests.invariants.attacks.instruction import (
    ATTESTED_KEY,
    AUTHORIZED,
    CONTENT,
    EXECUTING,
    FAILED,
    FINAL,
    GUARD,
    HISTORY,
    IDS,
    INSTRUCTION,
    INSTRUCTIONS,
    LEGAL,
    NEW,
    NOWHERE,
    OF_Q,
    RECEIVED,
    SENT,
    changed,
    instruction,
    transition,
)
from tests.support import (
    Connect,
    activate_policy,
    assert_invariant,
    attempt,
    digest,
    drop,
    picture,
    refusal,
    run,
    scalar,
)

INSTRUCTION_COLUMNS = tuple(instruction())


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number))


def make_world(owner: Connect) -> None:
    """An instruction in each state, one that may be COMPLETED, and one of another participant."""
    run(owner, INSTRUCTION.histories[""])


# The order of states.


def history_of(connection: Connect, id: str) -> list[Any]:
    return connection.execute(
        f"SELECT version, from_state, to_state, reason FROM orchestration.{HISTORY}"
        " WHERE instruction_id = %s ORDER BY version",
        (id,),
    ).fetchall()


def assert_whole_history(connection: Connect) -> None:
    """Every version of every instruction has its one row, and they lead to its state."""
    assert connection.execute("SELECT * FROM orchestration.verify_instructions()").fetchall() == []
    counted = scalar(connection, f"SELECT count(*) FROM orchestration.{HISTORY}")
    assert counted == scalar(connection, f"SELECT sum(version) FROM orchestration.{INSTRUCTIONS}")


@pytest.mark.invariant("INV-INS-001", "INV-INS-004")
@pytest.mark.parametrize(("before", "after"), LEGAL)
def test_a_step_forward_is_taken_and_recorded_once(owner: Connect, before: str, after: str) -> None:
    make_world(owner)
    id = SENT if after == "COMPLETED" else IDS[before]
    known = history_of(owner, id)
    assert attempt(owner, [changed(id, becomes(after))]) is None
    found = owner.execute(
        "SELECT state, version, completed_at = updated_at, created_at < updated_at,"
        f" open FROM orchestration.{INSTRUCTIONS} WHERE id = %s",
        (id,),
    ).fetchone()
    version = len(known) + 1
    assert found == (
        *(after, version, True if after in FINAL else None, True),
        after in ("AUTHORIZED", "EXECUTING"),
    )
    reason = "test" if after == "FAILED" else None
    assert history_of(owner, id) == [*known, (version, before, after, reason)]
    assert_whole_history(owner)


@pytest.mark.unchanged(after=make_world)
@pytest.mark.invariant("INV-INS-001", "INV-INS-002")
def test_an_update_that_changes_nothing_leaves_nothing(owner: Connect) -> None:
    before = picture(owner)
    assert attempt(owner, [f"UPDATE orchestration.{INSTRUCTIONS} SET state = state"]) is None
    assert picture(owner) == before


@pytest.mark.invariant("INV-INS-001")
def test_without_the_guard_the_constraint_still_knows_the_states(owner: Connect) -> None:
    make_world(owner)
    drop(owner, GUARD)
    for statement in (
        insert(INSTRUCTIONS, instruction(state="PAID")),
        changed(RECEIVED, "state = 'PAID'"),
    ):
        found = refusal(owner, statement)
        assert (found.sqlstate, found.constraint) == ("23514", "ck_instructions_state")


@pytest.mark.unchanged
@pytest.mark.invariant("INV-INS-002")
def test_every_column_but_the_state_of_things_is_attacked(owner: Connect) -> None:
    columns = owner.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        " AND NOT attisdropped AND attgenerated = ''",
        (f"orchestration.{INSTRUCTIONS}",),
    ).fetchall()
    alone = {"state", "reason", "version", "updated_at", "completed_at"}
    # What the items' outcomes make of `unresolved` is attacked with them.
    found = {name for (name,) in columns} - {"unresolved"}
    assert found == CONTENT.keys() | alone == set(INSTRUCTION_COLUMNS)


@pytest.mark.unchanged(after=make_world)
@pytest.mark.invariant("INV-INS-003")
def test_on_conflict_do_nothing_keeps_the_first(owner: Connect) -> None:
    before = picture(owner)
    for target in ("", "(participant_id, idempotency_key)"):
        again = insert(INSTRUCTIONS, instruction(idempotency_key=FAILED))
        assert attempt(owner, [f"{again} ON CONFLICT {target} DO NOTHING"]) is None
    assert picture(owner) == before


@pytest.mark.invariant("INV-INS-003")
def test_participants_do_not_share_their_keys(owner: Connect) -> None:
    make_world(owner)
    other = insert(INSTRUCTIONS, instruction(participant_id="q", idempotency_key=FAILED))
    assert attempt(owner, [other]) is None


@pytest.mark.parametrize(
    "given", [{}, {"state": "PAID"}, {"version": "7"}, {"created_at": f"({LATER})"}], ids=str
)
def test_an_insert_whose_id_exists_is_left_to_the_primary_key(
    owner: Connect, given: dict[str, str]
) -> None:
    make_world(owner)
    drop(owner, "constraints/ck_instructions_state")
    found = refusal(owner, insert(INSTRUCTIONS, instruction(id=RECEIVED, **given)))
    assert (found.sqlstate, found.constraint) == ("23505", "pk_instructions")


# The history.


@pytest.mark.invariant("INV-INS-004")
@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(
            insert(
                INSTRUCTIONS,
                *(instruction(id=id_of(n), idempotency_key=f"{n}") for n in range(100, 105)),
            ),
            id="INSERT of five",
        ),
        pytest.param(
            f"UPDATE orchestration.{INSTRUCTIONS} SET state = 'FAILED', reason = 'test'"
            f" WHERE id IN ('{RECEIVED}', '{AUTHORIZED}', '{EXECUTING}')",
            id="UPDATE of three",
        ),
        pytest.param(
            f"UPDATE orchestration.{INSTRUCTIONS} SET state = 'AUTHORIZED'"
            f" WHERE id IN ('{RECEIVED}', '{AUTHORIZED}', '{OF_Q}')",
            id="UPDATE that moves one of three",
        ),
        pytest.param(
            f"UPDATE orchestration.{INSTRUCTIONS} SET state = 'AUTHORIZED' WHERE false",
            id="UPDATE of none",
        ),
        pytest.param(
            insert(INSTRUCTIONS, instruction(), instruction(id=RECEIVED))
            + " ON CONFLICT (id) DO UPDATE SET state = 'AUTHORIZED'",
            id="INSERT of one, ON CONFLICT DO UPDATE of another",
        ),
        pytest.param(
            insert(INSTRUCTIONS, instruction(), instruction(id=NOWHERE, idempotency_key=FAILED))
            + " ON CONFLICT DO NOTHING",
            id="INSERT of one, ON CONFLICT DO NOTHING",
        ),
        pytest.param(
            f"MERGE INTO orchestration.{INSTRUCTIONS} USING (VALUES (CAST('{NEW}' AS uuid)),"
            f" ('{RECEIVED}')) AS s (id) ON instructions.id = s.id"
            " WHEN MATCHED THEN UPDATE SET state = 'AUTHORIZED'"
            f" WHEN NOT MATCHED THEN INSERT ({', '.join(INSTRUCTION_COLUMNS)})"
            f" VALUES ({', '.join(instruction().values())})",
            id="MERGE of both",
        ),
        pytest.param(
            f"WITH i AS ({insert(INSTRUCTIONS, instruction())} RETURNING id),"
            f" u AS ({moves(AUTHORIZED, 'EXECUTING')[0]})"
            f" {moves(RECEIVED, 'AUTHORIZED')[0]}",
            id="INSERT and UPDATEs in a CTE",
        ),
        pytest.param(
            copy(INSTRUCTIONS, instruction())
            + copy(INSTRUCTIONS, instruction(id=NOWHERE, idempotency_key="other")).partition("\n")[
                2
            ],
            id="COPY of two",
        ),
        pytest.param(
            "DO $$ BEGIN "
            + "; ".join(moves(RECEIVED, "AUTHORIZED", "EXECUTING", "FAILED"))
            + "; END $$",
            id="three steps in a transaction",
        ),
        pytest.param(
            f"DO $$ BEGIN BEGIN {moves(RECEIVED, 'AUTHORIZED')[0]}; RAISE 'back';"
            " EXCEPTION WHEN raise_exception THEN NULL; END;"
            f" {moves(RECEIVED, 'FAILED')[0]}; END $$",
            id="a step that was rolled back",
        ),
    ],
)
def test_every_transition_leaves_one_row_of_history(owner: Connect, statement: str) -> None:
    make_world(owner)
    assert_whole_history(owner)
    assert attempt(owner, [statement]) is None
    assert_whole_history(owner)


@pytest.mark.invariant("INV-INS-004")
def test_a_lost_row_may_be_written_again_but_only_as_it_was(owner: Connect) -> None:
    make_world(owner)
    drop(owner, "triggers/status_history__append_only")
    owner.execute(
        f"DELETE FROM orchestration.{HISTORY} WHERE (instruction_id, version) = (%s, 2)",
        (AUTHORIZED,),
    )
    for forged in (
        transition(AUTHORIZED, 2, "RECEIVED", "AUTHORIZED", participant_id="q"),
        transition(AUTHORIZED, 2, "AUTHORIZED", "EXECUTING"),
        transition(AUTHORIZED, 2, "RECEIVED", "FAILED"),
    ):
        found = refusal(owner, insert(HISTORY, forged))
        assert_invariant(found, "INV-INS-004", "P0001", HISTORY)
        assert found.keys["to_state"] == forged["to_state"].strip("'")
    right = insert(HISTORY, transition(AUTHORIZED, 2, "RECEIVED", "AUTHORIZED"))
    assert attempt(owner, [right]) is None
    assert_whole_history(owner)
    found_row = owner.execute(
        "SELECT h.occurred_at = i.updated_at, h.db_user = session_user,"
        f" h.xact_id = h.xmin::text::bigint FROM orchestration.{HISTORY} h"
        f" JOIN orchestration.{INSTRUCTIONS} i ON i.id = h.instruction_id"
        " WHERE (h.instruction_id, h.version) = (%s, 2)",
        (AUTHORIZED,),
    ).fetchone()
    assert found_row == (True, True, True)


# What the database sets.


FORGED = {
    **inserts("the row", INSTRUCTIONS, instruction()),
    "COPY": copy(INSTRUCTIONS, instruction()),
    "INSERT ON CONFLICT DO UPDATE": insert(INSTRUCTIONS, instruction())
    + " ON CONFLICT (id) DO UPDATE SET db_user = 'forger'",
}


@pytest.mark.invariant("INV-INS-002", "INV-INS-004")
@pytest.mark.parametrize("form", FORGED)
def test_who_wrote_when_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Callable[[str], Connect], form: str
) -> None:
    make_world(owner)
    owner.execute(
        f"GRANT SELECT, INSERT, UPDATE ON orchestration.{INSTRUCTIONS} TO symphony_readonly,"
        " symphony_auditor"
    )
    entered, moved = login("readonly"), login("auditor")
    before = scalar(owner, "SELECT clock_timestamp()")
    assert attempt(entered, [FORGED[form]]) is None
    assert owner.execute(
        "SELECT db_user, xact_id = xmin::text::bigint, created_at = '2020-01-01Z',"
        f" updated_at = created_at FROM orchestration.{INSTRUCTIONS} WHERE id = %s",
        (NEW,),
    ).fetchone() == (entered.info.user, True, True, True)

    forged = "version = 77, updated_at = '2020-01-01Z', completed_at = '2020-01-01Z'"
    fail = f"UPDATE orchestration.{INSTRUCTIONS} SET state = 'FAILED', reason = 'x', {forged}"
    assert attempt(moved, [f"{fail} WHERE id = '{NEW}'"]) is None
    assert owner.execute(
        "SELECT version, updated_at > %s, completed_at = updated_at, db_user"
        f" FROM orchestration.{INSTRUCTIONS} WHERE id = %s",
        (before, NEW),
    ).fetchone() == (2, True, True, entered.info.user)
    assert owner.execute(
        "SELECT h.db_user, h.xact_id = h.xmin::text::bigint,"
        " h.occurred_at = CASE h.version WHEN 1 THEN i.created_at ELSE i.updated_at END"
        f" FROM orchestration.{HISTORY} h"
        f" JOIN orchestration.{INSTRUCTIONS} i ON i.id = h.instruction_id"
        " WHERE i.id = %s ORDER BY h.version",
        (NEW,),
    ).fetchall() == [(entered.info.user, True, True), (moved.info.user, True, True)]


@pytest.mark.invariant("INV-INS-002")
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect) -> None:
    make_world(owner)
    given = {
        column: value
        for column, value in instruction().items()
        if column in INSTRUCTION_COLUMNS[1:12] or column in ("attestation_id", "policy_version_id")
    }
    with owner.transaction():
        owner.execute(insert(INSTRUCTIONS, given))
        found = owner.execute(
            "SELECT orchestration.uuid_v7() > id, octet_length(payload_salt), payload_hash ="
            " encode(sha256('orchestration.payload.v1'::bytea || payload_salt || '{}'::bytea),"
            " 'hex'), state, open, version, created_at BETWEEN now() AND clock_timestamp(),"
            " updated_at = created_at, completed_at, db_user = session_user,"
            f" xact_id = pg_current_xact_id()::text::bigint FROM orchestration.{INSTRUCTIONS}"
            " WHERE idempotency_key = 'new'"
        ).fetchone()
    assert found == (True, 16, True, "RECEIVED", False, 1, True, True, None, True, True)


@pytest.mark.invariant("INV-INS-004")
def test_no_two_steps_share_their_moment(owner: Connect) -> None:
    make_world(owner)
    with owner.transaction():
        for statement in moves(RECEIVED, "AUTHORIZED", "EXECUTING", "FAILED"):
            owner.execute(statement)
    assert (
        scalar(
            owner,
            f"SELECT count(DISTINCT occurred_at) FROM orchestration.{HISTORY}"
            " WHERE instruction_id = %s",
            (RECEIVED,),
        )
        == 4
    )


# What verify_instructions() finds where the triggers slept.


UNRECORDED = "HISTORY: status_history does not lead to the current state of the instruction"
ORPHAN = "ORPHAN: the instruction of the status_history row does not exist"
UNATTESTED = "ORPHAN: the attestation of the instruction does not exist"


@pytest.mark.unchanged(after=make_world)
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("reason", ["", None])
def test_failing_without_a_reason_shows_nothing_of_the_instruction(
    owner: Connect, reason: str | None
) -> None:
    found = refusal(
        owner, "SELECT FROM orchestration.fail_instruction(%s, 1, %s)", (RECEIVED, reason)
    )
    assert_invariant(found, "INV-API-001", "22023", INSTRUCTIONS)
    assert (found.column, found.keys) == ("reason", {"id": RECEIVED})


@pytest.mark.invariant("INV-INS-004")
def test_a_renumbered_history_is_found(owner: Connect, login: Callable[[str], Connect]) -> None:
    make_world(owner)
    owner.execute(f"ALTER TABLE orchestration.{HISTORY} DISABLE TRIGGER USER")
    owner.execute(f"UPDATE orchestration.{HISTORY} SET version = 9 WHERE to_state = 'FAILED'")
    rows = login("auditor").execute("SELECT * FROM orchestration.verify_instructions()").fetchall()
    assert [(row[0], row[3]["last"]) for row in rows] == [(UNRECORDED, "FAILED")]


@pytest.mark.invariant("INV-INS-004")
@pytest.mark.parametrize(
    "forgery",
    ["reason = 'another' WHERE to_state = 'FAILED'", "db_user = 'another' WHERE version = 1"],
)
def test_a_history_that_contradicts_its_instruction_is_found(
    owner: Connect, login: Callable[[str], Connect], forgery: str
) -> None:
    make_world(owner)
    verify = "SELECT finding FROM orchestration.verify_instructions()"
    assert login("auditor").execute(verify).fetchall() == []
    owner.execute(f"ALTER TABLE orchestration.{HISTORY} DISABLE TRIGGER USER")
    owner.execute(f"UPDATE orchestration.{HISTORY} SET {forgery}")
    assert set(login("auditor").execute(verify).fetchall()) == {(UNRECORDED,)}


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-004")
@pytest.mark.parametrize(
    ("statements", "findings"),
    [
        pytest.param(
            [insert(INSTRUCTIONS, instruction())],
            [(UNRECORDED, NEW, {"version": 1, "state": "RECEIVED", "rows": 0, "last": None})],
            id="an instruction without history",
        ),
        pytest.param(
            moves(RECEIVED, "AUTHORIZED"),
            [
                (
                    UNRECORDED,
                    RECEIVED,
                    {"version": 2, "state": "AUTHORIZED", "rows": 1, "last": "RECEIVED"},
                )
            ],
            id="a step without history",
        ),
        pytest.param(
            [
                *moves(RECEIVED, "AUTHORIZED", "EXECUTING"),
                insert(HISTORY, transition(RECEIVED, 3, "AUTHORIZED", "EXECUTING")),
            ],
            [
                (
                    UNRECORDED,
                    RECEIVED,
                    {"version": 3, "state": "EXECUTING", "rows": 2, "last": "EXECUTING"},
                )
            ],
            id="a gap in the history",
        ),
        pytest.param(
            [
                *moves(RECEIVED, "FAILED"),
                insert(HISTORY, transition(RECEIVED, 2, "EXECUTING", "FAILED")),
            ],
            [
                (
                    UNRECORDED,
                    RECEIVED,
                    {"version": 2, "state": "FAILED", "rows": 2, "last": "FAILED"},
                )
            ],
            id="a history that leaps",
        ),
        pytest.param(
            [changed(RECEIVED, "version = 7, state = 'AUTHORIZED'")],
            [
                (
                    UNRECORDED,
                    RECEIVED,
                    {"version": 7, "state": "AUTHORIZED", "rows": 1, "last": "RECEIVED"},
                )
            ],
            id="a version that leaps",
        ),
        pytest.param(
            [insert(HISTORY, transition(NOWHERE, 1, None, "RECEIVED"))],
            [(ORPHAN, NOWHERE, {"version": 1, "to_state": "RECEIVED"})],
            id="history of no instruction",
        ),
        pytest.param(
            [
                insert(INSTRUCTIONS, instruction(attestation_id=NOWHERE)),
                insert(HISTORY, transition(NEW, 1, None, "RECEIVED")),
            ],
            [(UNATTESTED, NEW, {"attestation_id": NOWHERE})],
            id="an instruction of no attestation",
        ),
        pytest.param(
            [
                insert(INSTRUCTIONS, instruction()),
                insert(HISTORY, transition(NEW, 1, None, "RECEIVED")),
                *moves(RECEIVED, "AUTHORIZED"),
                insert(HISTORY, transition(RECEIVED, 2, "RECEIVED", "AUTHORIZED")),
            ],
            [],
            id="all with its history",
        ),
    ],
)
def test_what_replica_mode_lets_in_is_found(
    superuser: Connect,
    login: Callable[[str], Connect],
    statements: list[str],
    findings: list[tuple[str, str, dict[str, Any]]],
) -> None:
    make_world(superuser)
    verify = "SELECT * FROM orchestration.verify_instructions()"
    auditor, control = login("auditor"), login("control")
    assert auditor.execute(verify).fetchall() == []
    superuser.execute("SET session_replication_role = replica")
    assert attempt(superuser, statements) is None
    found = [(finding, uuid.UUID(id), "p", detail) for finding, id, detail in findings]
    assert auditor.execute(verify).fetchall() == found
    assert control.execute(verify).fetchall() == found


@pytest.mark.unchanged(after=make_world)
@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-002")
@pytest.mark.parametrize("version", ["version", "version - 1", "1"])
def test_in_replica_mode_no_transition_goes_without_its_version(
    superuser: Connect, version: str
) -> None:
    superuser.execute("SET session_replication_role = replica")
    found = refusal(
        superuser,
        f"UPDATE orchestration.{INSTRUCTIONS} SET state = 'EXECUTING', version = {version}"
        f" WHERE id = '{AUTHORIZED}'",
    )
    assert_invariant(found, "INV-INS-002", "P7401", INSTRUCTIONS)
    assert found.column == "version"


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-004")
def test_in_replica_mode_values_arrive_as_they_are(superuser: Connect) -> None:
    make_world(superuser)
    superuser.execute("SET session_replication_role = replica")
    assert (
        attempt(
            superuser,
            [
                insert(INSTRUCTIONS, instruction()),
                insert(HISTORY, transition(NEW, 1, None, "RECEIVED")),
            ],
        )
        is None
    )
    for table, id, moment in (
        (INSTRUCTIONS, "id", "created_at"),
        (HISTORY, "instruction_id", "occurred_at"),
    ):
        assert superuser.execute(
            f"SELECT db_user, xact_id, {moment} = '2020-01-01Z' FROM orchestration.{table}"
            f" WHERE {id} = %s",
            (NEW,),
        ).fetchall() == [("forger", 1, True)]


# The functions.


CERT, TOKEN = digest("certificate"), digest("token")
SENDING = {
    "participant_id": "p",
    "idempotency_key": "sent",
    "instruction_type": "pain.001",
    "end_to_end_id": "e2e",
    "amount_minor": 100,
    "currency": "EUR",
    "debtor_account": "debtor",
    "creditor_account": "creditor",
    "payload": {"a": 1},
    "policy_version_id": "v1",
}
COLUMNS = "id, participant_id, idempotency_key, state, version, attestation_id, amount_minor"


def attest(ingest: Connect, key: str = "attested", policy: str = "v1") -> str:
    """An attestation under CERT and TOKEN."""
    return str(
        scalar(
            ingest,
            "SELECT id FROM orchestration.append_attestations(p_attestations => %s::jsonb)",
            (
                json.dumps(
                    [
                        {
                            "caller_identity": "caller",
                            "idempotency_key": key,
                            "payload_hash": digest(key),
                            "client_cert_fingerprint_sha256": CERT,
                            "token_hash": TOKEN,
                            "policy_version_id": policy,
                        }
                    ]
                ),
            ),
        )
    )


RECEIVE = f"SELECT {COLUMNS} FROM orchestration.receive_instruction(p_instructions => %s::jsonb)"


def receive(ingest: Connect, *sent: Mapping[str, Any]) -> list[Any]:
    return ingest.execute(RECEIVE, (json.dumps(sent),)).fetchall()


def received(control: Connect, ingest: Connect) -> tuple[str, str]:
    """One attestation and one instruction under it, RECEIVED by `ingest`."""
    activate_policy(control)
    attestation_id = attest(ingest)
    ((id, *_),) = receive(ingest, SENDING | {"attestation_id": attestation_id})
    return str(id), attestation_id


def act(function: str, id: str, version: int | None) -> str:
    """A call of one of the functions that change the state."""
    given = "NULL" if version is None else str(version)
    reason = ", p_reason => 'test'" if function == "fail_instruction" else ""
    return (
        f"SELECT state, version FROM orchestration.{function}(p_id => '{id}',"
        f" p_version => {given}{reason})"
    )


ACTS = ("authorize_instruction", "start_execution", "complete_instruction", "fail_instruction")


@pytest.fixture
def both(
    server: scratch.Server,
    database: scratch.Database,
    connections: Callable[[Any], Connect],
) -> Iterator[Connect]:
    """A login that may receive and authorize."""
    name, password = scratch.PREFIX + secrets.token_hex(8), secrets.token_urlsafe(16)
    with scratch.maintenance(server.url) as connection:
        scratch.create_login(connection, name, password, "symphony_ingest")
    try:
        with scratch.maintenance(server.url) as connection:
            connection.exec_driver_sql(f'GRANT symphony_executor TO "{name}"')
        yield connections(database.url.set(username=name, password=password))
    finally:
        with scratch.maintenance(server.url) as connection:
            connection.exec_driver_sql(f'DROP ROLE "{name}"')


@pytest.mark.invariant("INV-INS-007")
def test_the_login_that_received_does_not_authorize(
    login: Callable[[str], Connect], both: Connect
) -> None:
    id, _ = received(login("control"), both)
    authorize = act("authorize_instruction", id, 1)
    for role in (None, "symphony_executor", "symphony_ingest"):
        both.execute(f"SET ROLE {role or 'NONE'}")
        if role == "symphony_ingest":
            assert refusal(both, authorize).sqlstate == "42501"
            continue
        found = refusal(both, authorize)
        assert_invariant(found, "INV-INS-007", "P7405", INSTRUCTIONS)
        assert found.column == "db_user"
        assert found.keys == {"id": id, "db_user": both.info.user}
    executor = login("executor")
    assert executor.execute(authorize).fetchall() == [("AUTHORIZED", 2)]


@pytest.mark.invariant("INV-INS-007")
def test_a_login_of_both_roles_authorizes_what_another_received(
    login: Callable[[str], Connect], both: Connect
) -> None:
    id, _ = received(login("control"), login("ingest"))
    assert both.execute(act("authorize_instruction", id, 1)).fetchall() == [("AUTHORIZED", 2)]


@pytest.mark.invariant("INV-INS-007")
def test_the_login_that_received_may_do_everything_else(
    login: Callable[[str], Connect], both: Connect
) -> None:
    id, _ = received(login("control"), both)
    login("executor").execute(act("authorize_instruction", id, 1))
    assert both.execute(act("start_execution", id, 2)).fetchall() == [("EXECUTING", 3)]
    assert both.execute(act("fail_instruction", id, 3)).fetchall() == [("FAILED", 4)]


@pytest.mark.invariant("INV-INS-008")
def test_a_replay_gives_the_instruction_as_it_stands(login: Callable[[str], Connect]) -> None:
    control, ingest, executor = login("control"), login("ingest"), login("executor")
    id, attestation_id = received(control, ingest)
    executor.execute(act("authorize_instruction", id, 1))
    sent = SENDING | {"attestation_id": attestation_id}
    first = (uuid.UUID(id), "p", "sent", "AUTHORIZED", 2, uuid.UUID(attestation_id), 100)
    assert receive(ingest, sent) == [first]
    assert receive(ingest, sent, sent) == [first, first]
    # Who asked, and under which policy, was judged with the first.
    other = attest(ingest, "attested again")
    assert receive(ingest, sent | {"attestation_id": other}) == [first]
    activate_policy(control, "v2", "0")
    assert receive(ingest, sent) == [first]
    assert receive(ingest, sent | {"policy_version_id": "v2"}) == [first]
    assert scalar(executor, f"SELECT count(*) FROM orchestration.{HISTORY}") == 2


@pytest.mark.invariant("INV-INS-008")
@pytest.mark.parametrize(
    "changed",
    [
        {"instruction_type": "pain.008"},
        {"end_to_end_id": "other"},
        {"uetr": NEW},
        {"value_date": "2020-01-01"},
        {"amount_minor": 101},
        {"currency": "USD"},
        {"debtor_account": "other"},
        {"creditor_account": "other"},
        {"payload": {"a": 2}},
        {"payload": {"a": 1.0}},
        {"payload": {}},
    ],
    ids=str,
)
def test_a_key_with_other_content_is_refused(
    login: Callable[[str], Connect], changed: dict[str, Any]
) -> None:
    ingest = login("ingest")
    id, attestation_id = received(login("control"), ingest)
    sent = SENDING | {"attestation_id": attestation_id}
    new = sent | {"idempotency_key": "beside"}
    for batch in ([sent | changed], [new, sent | changed], [sent, sent | changed]):
        found = refusal(ingest, RECEIVE, (json.dumps(batch),))
        assert_invariant(found, "INV-INS-008", "P7402", INSTRUCTIONS)
        assert found.column == "idempotency_key"
        assert found.keys == {"id": id, "participant_id": "p", "idempotency_key": "sent"}
    found = refusal(ingest, RECEIVE, (json.dumps([new, new | changed]),))
    assert_invariant(found, "INV-INS-008", "P7402", INSTRUCTIONS)
    assert found.keys == {"id": ANY, "participant_id": "p", "idempotency_key": "beside"}
    assert scalar(ingest, f"SELECT count(*) FROM orchestration.{INSTRUCTIONS}") == 1


@pytest.mark.invariant("INV-INS-009")
@pytest.mark.parametrize(
    ("function", "given"),
    # Authorizing from version 1 again is a repeat of what this login has done.
    [
        (function, given)
        for function in ACTS
        for given in (0, 1, 3, None)
        if (function, given) != ("authorize_instruction", 1)
    ],
)
def test_a_stale_version_is_refused(
    login: Callable[[str], Connect], function: str, given: int | None
) -> None:
    executor = login("executor")
    id, _ = received(login("control"), login("ingest"))
    executor.execute(act("authorize_instruction", id, 1))
    found = refusal(executor, act(function, id, given))
    assert_invariant(found, "INV-INS-009", "P7403", INSTRUCTIONS)
    assert found.column == "version"
    assert found.keys == {"id": id, "version": 2, "given": given, "state": "AUTHORIZED"}


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize("function", ACTS)
def test_an_act_on_an_unknown_instruction_is_refused(
    login: Callable[[str], Connect], function: str
) -> None:
    found = refusal(login("executor"), act(function, NOWHERE, 1))
    assert_invariant(found, "INV-API-002", "P0002", INSTRUCTIONS)
    assert (found.column, found.keys) == ("id", {"id": NOWHERE})


@pytest.mark.invariant("INV-INS-001", "INV-INS-002")
def test_the_functions_keep_the_order_of_states(login: Callable[[str], Connect]) -> None:
    executor = login("executor")
    id, _ = received(login("control"), login("ingest"))
    for function in ("start_execution", "complete_instruction"):
        found = refusal(executor, act(function, id, 1))
        assert_invariant(found, "INV-INS-001", "P7401", INSTRUCTIONS)
    executor.execute(act("fail_instruction", id, 1))
    for function in ("start_execution", "complete_instruction", "authorize_instruction"):
        found = refusal(executor, act(function, id, 2))
        assert_invariant(found, "INV-INS-002", "P7401", INSTRUCTIONS)


@pytest.mark.invariant("INV-INS-001")
def test_each_step_is_taken_once(login: Callable[[str], Connect], both: Connect) -> None:
    executor = login("executor")
    id, _ = received(login("control"), both)
    for version, (function, state) in enumerate(
        (
            ("authorize_instruction", "AUTHORIZED"),
            ("start_execution", "EXECUTING"),
            ("fail_instruction", "FAILED"),
        ),
        2,
    ):
        executor.execute(act(function, id, version - 1))
        # Nothing is judged any more, also of the login that received it.
        for caller in (executor, both):
            found = refusal(caller, act(function, id, version))
            assert_invariant(found, "INV-INS-001", "P7401", INSTRUCTIONS)
            assert found.column == "state"
            assert found.keys == {"id": id, "from": state, "to": state}


@pytest.mark.invariant("INV-INS-010")
def test_a_policy_that_is_not_accepted_any_more_authorizes_nothing(
    login: Callable[[str], Connect],
) -> None:
    control, executor = login("control"), login("executor")
    id, _ = received(control, login("ingest"))
    activate_policy(control, "v2", "0")
    found = refusal(executor, act("authorize_instruction", id, 1))
    assert_invariant(found, "INV-INS-010", "P7105", "policy_versions")
    assert (found.column, found.keys) == ("id", {"id": "v1", "instruction_id": id})
    assert executor.execute(act("fail_instruction", id, 1)).fetchall() == [("FAILED", 2)]


@pytest.mark.invariant("INV-INS-010")
def test_a_policy_in_grace_authorizes_until_it_is_retired(
    login: Callable[[str], Connect],
) -> None:
    control, ingest, executor = login("control"), login("ingest"), login("executor")
    id, attestation_id = received(control, ingest)
    sent = SENDING | {"attestation_id": attestation_id, "idempotency_key": "second"}
    ((second, *_),) = receive(ingest, sent)
    activate_policy(control, "v2")
    assert executor.execute(act("authorize_instruction", id, 1)).fetchall() == [("AUTHORIZED", 2)]
    activate_policy(control, "v3")
    found = refusal(executor, act("authorize_instruction", str(second), 1))
    assert_invariant(found, "INV-INS-010", "P7105", "policy_versions")


REVOKES = {
    "revoked_client_certs": ("revoke_client_cert", "cert_fingerprint_sha256", CERT),
    "revoked_tokens": ("revoke_token", "token_hash", TOKEN),
}


def revoke(control: Connect, table: str, expires_at: str = "NULL") -> None:
    function, column, hash = REVOKES[table]
    control.execute(
        f"SELECT FROM orchestration.{function}(p_{column} => '{hash}', p_reason_code =>"
        f" 'keyCompromise', p_revoked_at => '2020-01-01Z', p_expires_at => {expires_at})"
    )


@pytest.mark.invariant("INV-INS-010")
@pytest.mark.parametrize("expires_at", ["NULL", LATER])
@pytest.mark.parametrize("table", REVOKES)
def test_a_revoked_credential_authorizes_nothing(
    login: Callable[[str], Connect], table: str, expires_at: str
) -> None:
    control, executor = login("control"), login("executor")
    id, _ = received(control, login("ingest"))
    revoke(control, table, expires_at)
    found = refusal(executor, act("authorize_instruction", id, 1))
    _, column, _ = REVOKES[table]
    assert_invariant(found, "INV-INS-010", "P7202", table)
    # Not the hash: the executor may not read it.
    credential = "CLIENT_CERT" if table == "revoked_client_certs" else "TOKEN"
    assert (found.column, found.keys) == (
        column,
        {"credential": credential, "instruction_id": id},
    )
    assert executor.execute(act("fail_instruction", id, 1)).fetchall() == [("FAILED", 2)]


@pytest.mark.invariant("INV-INS-010")
@pytest.mark.parametrize("table", REVOKES)
def test_a_revocation_that_has_expired_or_comes_after_authorizing_stops_nothing(
    login: Callable[[str], Connect], table: str
) -> None:
    control, executor = login("control"), login("executor")
    id, _ = received(control, login("ingest"))
    revoke(control, table, "'2020-01-02Z'")
    assert executor.execute(act("authorize_instruction", id, 1)).fetchall() == [("AUTHORIZED", 2)]
    (other,) = REVOKES.keys() - {table}
    revoke(control, other)
    assert executor.execute(act("start_execution", id, 2)).fetchall() == [("EXECUTING", 3)]


@pytest.mark.invariant("INV-INS-007", "INV-INS-009", "INV-INS-010")
def test_what_is_judged_first(login: Callable[[str], Connect], both: Connect) -> None:
    control = login("control")
    id, _ = received(control, both)
    for table in reversed(REVOKES):
        revoke(control, table)
        found = refusal(login("executor"), act("authorize_instruction", id, 1))
        assert (found.constraint, found.table) == ("INV-INS-010", table)
    activate_policy(control, "v2", "0")
    found = refusal(login("executor"), act("authorize_instruction", id, 1))
    assert (found.constraint, found.sqlstate) == ("INV-INS-010", "P7105")
    assert refusal(both, act("authorize_instruction", id, 1)).constraint == "INV-INS-007"
    assert refusal(both, act("authorize_instruction", id, 2)).constraint == "INV-INS-009"


@pytest.mark.invariant("INV-ATT-008")
def test_nothing_is_received_under_an_unknown_policy(login: Callable[[str], Connect]) -> None:
    ingest = login("ingest")
    activate_policy(login("control"))
    sent = SENDING | {"attestation_id": attest(ingest), "policy_version_id": "nowhere"}
    found = refusal(ingest, RECEIVE, (json.dumps([sent]),))
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")
    assert found.column == "id"
    assert found.keys == {"id": "nowhere", "participant_id": "p", "idempotency_key": "sent"}


@pytest.mark.invariant("INV-INS-011")
def test_nothing_is_received_under_an_unknown_attestation(
    login: Callable[[str], Connect],
) -> None:
    activate_policy(login("control"))
    sent = SENDING | {"attestation_id": NOWHERE}
    found = refusal(login("ingest"), RECEIVE, (json.dumps([sent]),))
    assert (found.sqlstate, found.constraint) == ("23503", ATTESTED_KEY.partition("/")[2])


@pytest.mark.invariant("INV-INS-011")
def test_an_attestation_under_a_retired_policy_carries_nothing_under_the_new_one(
    login: Callable[[str], Connect],
) -> None:
    control, ingest = login("control"), login("ingest")
    activate_policy(control)
    attestation_id = attest(ingest)
    activate_policy(control, "v2", "0")
    control.execute("SELECT orchestration.retire_policy_version('v1')")
    sent = SENDING | {"attestation_id": attestation_id, "policy_version_id": "v2"}
    found = refusal(ingest, RECEIVE, (json.dumps([sent]),))
    assert (found.sqlstate, found.constraint) == ("23503", ATTESTED_KEY.partition("/")[2])

    # Under its own policy it is received, and the policy is judged when it is authorized.
    ((id, *_),) = receive(ingest, sent | {"policy_version_id": "v1"})
    found = refusal(login("executor"), act("authorize_instruction", str(id), 1))
    assert_invariant(found, "INV-INS-010", "P7105", "policy_versions")


@pytest.mark.superuser
@pytest.mark.invariant("INV-INS-011")
def test_an_instruction_under_another_policy_is_found(
    superuser: Connect, login: Callable[[str], Connect]
) -> None:
    id, attestation_id = received(superuser, login("ingest"))
    activate_policy(superuser, "v2")
    with superuser.transaction():
        superuser.execute("ALTER TABLE orchestration.instructions DISABLE TRIGGER guard")
        superuser.execute("SET LOCAL session_replication_role = replica")
        superuser.execute("UPDATE orchestration.instructions SET policy_version_id = 'v2'")
        superuser.execute("ALTER TABLE orchestration.instructions ENABLE ALWAYS TRIGGER guard")
    found = superuser.execute("SELECT * FROM orchestration.verify_instructions()").fetchall()
    assert found == [
        (
            "POLICY: the instruction and its attestation have different policy versions",
            uuid.UUID(id),
            "p",
            {"attestation_id": attestation_id, "policy_version_id": "v2", "attested_under": "v1"},
        )
    ]


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    "batch", [None, "null", "{}", '"x"', "1", json.dumps([{}] * 10_001)], ids=lambda b: str(b)[:9]
)
def test_a_batch_is_an_array_of_ten_thousand_at_most(
    login: Callable[[str], Connect], batch: str | None
) -> None:
    found = refusal(login("ingest"), RECEIVE, (batch,))
    assert_invariant(found, "INV-API-001", "22023", INSTRUCTIONS)
    assert found.keys == {}


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-001")
def test_a_batch_may_be_empty_or_hold_ten_thousand(login: Callable[[str], Connect]) -> None:
    ingest = login("ingest")
    assert receive(ingest) == []
    # Its size is judged before its rows: here the first of them refuses.
    assert refusal(ingest, RECEIVE, (json.dumps([{}] * 10_000),)).sqlstate == "23502"

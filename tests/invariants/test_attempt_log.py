"""INV-APP of the attempt logs by raw SQL: the triggers and constraints speak, not the privileges.

One table of attacks, on both logs, serves four proofs: the owner is refused, a login with a stray
grant is refused alike, replica mode silences nothing that is ENABLE ALWAYS, and without the object
that keeps a rule its attack succeeds.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import ANY

import pytest

from orchestration import invariants
from orchestration.vocabulary import AttemptOutcome
from tests.invariants.conftest import StageOf
from tests.support import (
    Attack,
    Connect,
    assert_invariant,
    attempt,
    authorize_instructions,
    copy,
    deletes,
    drop,
    inserts,
    refusal,
    scalar,
    truncates,
)

Login = Callable[[str], Connect]
Values = dict[str, str | None]

EXECUTIONS, TRANSACTIONS = "execution_attempts", "transaction_attempts"
LOGS = (EXECUTIONS, TRANSACTIONS)
KEY = "instruction_id, attempt_no, phase"
LATER = "(clock_timestamp() + interval '10 years')"

each_log = pytest.mark.parametrize("log", LOGS)


def id_of(number: int) -> str:
    return str(uuid.UUID(int=number))


UNTRIED, OPEN, FAILED, SUCCEEDED, AGAIN, OF_Q, NOWHERE = map(id_of, range(1, 8))
"""Instructions without an attempt, with one that is open, that ended so, and with a second one that
is open; one of participant q; and none at all."""

TYPES = {
    "instruction_id": "uuid",
    "attempt_no": "integer",
    "occurred_at": "timestamptz",
    "xact_id": "bigint",
}


def row(log: str, id: str, attempt_no: int, phase: str, **changed: str | None) -> Values:
    """One whole row: nothing of it is left to a trigger or a default."""
    whole: Values = {
        "instruction_id": id,
        "attempt_no": str(attempt_no),
        "phase": phase,
        "participant_id": "p",
        "worker_id": "w",
        "outcome": "FAILED" if phase == "CLOSE" else None,
        "error_code": None,
        "error_message": None,
        "occurred_at": "2020-01-01Z",
        "db_user": "forger",
        "xact_id": "1",
    }
    if log == TRANSACTIONS:
        whole |= {"rail_type": "SEPA", "rail_reference": None}
    assert changed.keys() <= whole.keys()
    return whole | changed


def select(values: Mapping[str, str | None]) -> str:
    """A SELECT of that row; a value in parentheses is an expression."""

    def literal(column: str, value: str | None) -> str:
        given = "NULL" if value is None else value if value.startswith("(") else f"'{value}'"
        return f"CAST({given} AS {TYPES.get(column, 'text')})"

    return "SELECT " + ", ".join(literal(*item) for item in values.items())


def entries(log: str, values: Values) -> dict[str, str]:
    """Every way to bring in this row."""
    forms = inserts(log, tuple(values), select(values))
    if not any(value and value.startswith("(") for value in values.values()):
        forms["COPY"] = copy(log, values)
    return forms


def insert(log: str, *rows: Mapping[str, str | None]) -> str:
    listed = ", ".join(rows[0])
    return f"INSERT INTO orchestration.{log} ({listed}) " + " UNION ALL ".join(map(select, rows))


def updates(log: str, change: str) -> dict[str, str]:
    """Every way to change the closing of the attempt that FAILED."""
    condition = f"({KEY}) = ('{FAILED}', 1, 'CLOSE')"
    update = f"UPDATE orchestration.{log} SET {change} WHERE {condition}"
    return {
        "UPDATE": update,
        "INSERT ON CONFLICT DO UPDATE": (
            f"{insert(log, row(log, FAILED, 1, 'CLOSE'))} ON CONFLICT ({KEY}) DO UPDATE"
            f" SET {change}"
        ),
        "MERGE UPDATE": (
            f"MERGE INTO orchestration.{log} USING (SELECT) AS s ON {condition}"
            f" WHEN MATCHED THEN UPDATE SET {change}"
        ),
        "UPDATE in a CTE": f"WITH u AS ({update} RETURNING 1) SELECT * FROM u",
    }


def make_world(owner: Connect) -> None:
    """In both logs, what the ids say."""
    authorize_instructions(
        owner, [*((id, "p") for id in (UNTRIED, OPEN, FAILED, SUCCEEDED, AGAIN)), (OF_Q, "q")]
    )
    for log in LOGS:
        for id in (OPEN, FAILED, SUCCEEDED, AGAIN):
            owner.execute(insert(log, row(log, id, 1, "OPEN")))
        for id, outcome in ((FAILED, "FAILED"), (SUCCEEDED, "SUCCEEDED"), (AGAIN, "ABANDONED")):
            owner.execute(insert(log, row(log, id, 1, "CLOSE", outcome=outcome)))
        owner.execute(insert(log, row(log, AGAIN, 2, "OPEN")))


def picture(connection: Connect) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM orchestration.{log} ORDER BY {KEY}").fetchall()
        for log in LOGS
    ]


# The attacks.


def foreign_key(log: str) -> str:
    return f"constraints/fk_{log}_participant_id_instruction_id"


SLEEPING = set(map(foreign_key, LOGS))
"""What replica mode puts to sleep."""


def attacks_on_the_order_of(log: str) -> Iterator[Attack]:
    guard = f"triggers/{log}__guard"
    refused = Attack("", "INV-APP-002", "P7401", log, (), {}, (guard,), column="attempt_no")

    def of(name: str, values: Values, *without: str, **changed: Any) -> Attack:
        detail = {
            "instruction_id": values["instruction_id"],
            "attempt_no": int(values["attempt_no"] or 0),
            "phase": values["phase"],
        }
        return replace(
            refused,
            name=f"{log}: {name}",
            detail=detail | changed.pop("more", {}),
            without=(guard, *without),
            **changed,
        )

    for name, values, without in (
        ("a second attempt beside the first", row(log, OPEN, 2, "OPEN"), ()),
        ("a third attempt beside the second", row(log, AGAIN, 3, "OPEN"), ()),
        ("an attempt after a success", row(log, SUCCEEDED, 2, "OPEN"), ()),
        ("a number left out", row(log, FAILED, 3, "OPEN"), ()),
        ("a first attempt that is the second", row(log, UNTRIED, 2, "OPEN"), ()),
        (
            "a number before the first",
            row(log, UNTRIED, 0, "OPEN"),
            (f"constraints/ck_{log}_attempt_no",),
        ),
        ("the closing of what was never opened", row(log, UNTRIED, 1, "CLOSE"), ()),
        ("the closing of the next attempt", row(log, FAILED, 2, "CLOSE"), ()),
        ("a success of what was never opened", row(log, OPEN, 2, "CLOSE", outcome="SUCCEEDED"), ()),
    ):
        forms = entries(log, values)
        whole = name.startswith("a second") or name.endswith("never opened")
        yield from of(name, values, *without).in_forms(
            forms if whole else {"INSERT": forms["INSERT"]}
        )

    others = {"participant_id": "q", "worker_id": "another"}
    if log == TRANSACTIONS:
        others["rail_type"] = "SWIFT"
    for column, value in others.items():
        values = row(log, OPEN, 1, "CLOSE", **{column: value})
        without = (foreign_key(log),) if column == "participant_id" else ()
        forms = entries(log, values)
        yield from of(
            f"a closing of another {column}", values, *without, column="worker_id"
        ).in_forms(forms if column == "worker_id" else {"INSERT": forms["INSERT"]})

    for values in (row(log, FAILED, 2, "OPEN"), row(log, OPEN, 1, "CLOSE")):
        yield from of(
            f"an {values['phase']} to come",
            values,
            column="occurred_at",
            more={"occurred_at": ANY},
        ).in_forms(entries(log, values | {"occurred_at": LATER}))
        for moment in ("infinity", "-infinity"):
            yield from of(
                f"an {values['phase']} at {moment}",
                values,
                f"constraints/ck_{log}_years",
                column="occurred_at",
                more={"occurred_at": moment},
            ).in_forms({"COPY": copy(log, values | {"occurred_at": moment})})


def attacks_on_the_row_of(log: str) -> Iterator[Attack]:
    native = Attack("", "INV-APP-002", "", log, (), None, ())

    twice = replace(
        native, sqlstate="23505", constraint=f"pk_{log}", without=(f"constraints/pk_{log}",)
    )
    for name, values in (
        ("an attempt opened twice", row(log, OPEN, 1, "OPEN")),
        ("an attempt opened again", row(log, FAILED, 1, "OPEN", worker_id="another")),
        ("an attempt closed twice", row(log, FAILED, 1, "CLOSE")),
        ("a failure closed as a success", row(log, FAILED, 1, "CLOSE", outcome="SUCCEEDED")),
        ("a success closed as a failure", row(log, SUCCEEDED, 1, "CLOSE")),
    ):
        forms = entries(log, values)
        yield from replace(twice, name=f"{log}: {name}").in_forms(
            forms if name.endswith("twice") else {"INSERT": forms["INSERT"]}
        )
    yield from replace(twice, name=f"{log}: an attempt opened by two rows").in_forms(
        {"INSERT": insert(log, *[row(log, UNTRIED, 1, "OPEN")] * 2)}
    )

    orphan = replace(
        native,
        sqlstate="23503",
        constraint=foreign_key(log).partition("/")[2],
        without=(foreign_key(log),),
    )
    for name, values in (
        ("an attempt of no instruction", row(log, NOWHERE, 1, "OPEN")),
        ("an attempt of another participant", row(log, UNTRIED, 1, "OPEN", participant_id="q")),
        ("a next attempt of another one", row(log, FAILED, 2, "OPEN", participant_id="q")),
    ):
        forms = entries(log, values)
        yield from replace(orphan, name=f"{log}: {name}").in_forms(
            forms if name.endswith("no instruction") else {"INSERT": forms["INSERT"]}
        )

    outcome = f"ck_{log}_outcome"
    unclear = replace(
        native, sqlstate="23514", constraint=outcome, without=(f"constraints/{outcome}",)
    )
    for name, values in (
        ("an opening with an outcome", row(log, UNTRIED, 1, "OPEN", outcome="SUCCEEDED")),
        ("a closing without an outcome", row(log, OPEN, 1, "CLOSE", outcome=None)),
        ("an outcome of its own", row(log, OPEN, 1, "CLOSE", outcome="MAYBE")),
        ("an outcome in small letters", row(log, OPEN, 1, "CLOSE", outcome="failed")),
        ("a phase of its own", row(log, OPEN, 1, "HALF")),
    ):
        forms = entries(log, values)
        yield from replace(unclear, name=f"{log}: {name}").in_forms(
            forms if name.endswith("without an outcome") else {"INSERT": forms["INSERT"]}
        )


def rewritings(log: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """A value for each column, and what else would refuse it."""
    outcome, key = f"constraints/ck_{log}_outcome", f"constraints/pk_{log}"
    of_all: dict[str, tuple[str, tuple[str, ...]]] = {
        "instruction_id": (f"'{UNTRIED}'", ()),
        "attempt_no": ("7", ()),
        "phase": ("'OPEN'", (key, outcome)),
        "participant_id": ("'q'", (foreign_key(log),)),
        "worker_id": ("'forged'", ()),
        "outcome": ("'SUCCEEDED'", ()),
        "error_code": ("'forged'", ()),
        "error_message": ("'forged'", ()),
        "occurred_at": ("'2020-01-02Z'", ()),
        "db_user": ("'forged'", ()),
        "xact_id": ("xact_id", ()),
    }
    of_a_call: dict[str, tuple[str, tuple[str, ...]]] = {
        "rail_type": ("'forged'", ()),
        "rail_reference": ("'forged'", ()),
    }
    return of_all | (of_a_call if log == TRANSACTIONS else {})


def attacks_on_what_happened(log: str) -> Iterator[Attack]:
    closing = {"instruction_id": FAILED, "attempt_no": 1, "phase": "CLOSE"}
    append_only = f"triggers/{log}__append_only"
    refused = Attack("", "INV-APP-001", "P0001", log, (), closing, (append_only,))
    for column, (value, without) in rewritings(log).items():
        forms = updates(log, f"{column} = {value}")
        yield from replace(
            refused, name=f"{log}: another {column}", without=(append_only, *without)
        ).in_forms(forms if column == "outcome" else {"UPDATE": forms["UPDATE"]})
    yield from replace(refused, name=f"{log}: removal").in_forms(
        deletes(log, f"({KEY}) = ('{FAILED}', 1, 'CLOSE')")
    )
    yield from replace(
        refused, name=f"{log}: removal of all", detail={}, without=(f"triggers/{log}__no_truncate",)
    ).in_forms(truncates(log))


ATTACKS = tuple(
    attack
    for log in LOGS
    for made in (attacks_on_the_order_of, attacks_on_the_row_of, attacks_on_what_happened)
    for attack in made(log)
)
PROVED = ("INV-APP-001", "INV-APP-002")

each_invariant = pytest.mark.parametrize(
    "invariant", [pytest.param(id, marks=pytest.mark.invariant(id)) for id in PROVED]
)


STRAY = (
    "readonly",
    (
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA orchestration"
        " TO symphony_readonly",
    ),
)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, id=str(attack), marks=pytest.mark.invariant(attack.invariant))
        for attack in ATTACKS
    ],
)
def test_an_attack_is_refused_until_the_object_that_keeps_the_rule_is_gone(
    stage_of: StageOf, attack: Attack
) -> None:
    stage_of(make_world, picture, STRAY).prove(attack)


@pytest.mark.superuser
@each_invariant
def test_replica_mode_silences_no_refusal(superuser: Connect, invariant: str) -> None:
    make_world(superuser)
    before = picture(superuser)
    superuser.execute("SET session_replication_role = replica")
    tried = [
        attack
        for attack in ATTACKS
        if attack.invariant == invariant and not set(attack.without) <= SLEEPING
    ]
    assert tried
    for attack in tried:
        attack.check(attempt(superuser, attack.statements))
    assert picture(superuser) == before


@each_invariant
def test_every_object_that_keeps_a_rule_is_attacked(invariant: str) -> None:
    # History and kill switches are attacked with their own tables.
    elsewhere = (
        *("functions/", "triggers/status_history__"),
        *("triggers/kill_switches__", "triggers/audit_log__"),
        *("triggers/payment_outbox_late_results__", "triggers/payment_outbox_interventions__"),
    )
    named = {
        path for path in invariants.BY_ID[invariant].enforced_by if not path.startswith(elsewhere)
    }
    attacked = {
        path for attack in ATTACKS if attack.invariant == invariant for path in attack.without
    }
    assert named
    assert named <= attacked


@pytest.mark.invariant("INV-APP-001")
@each_log
def test_every_column_is_attacked(owner: Connect, log: str) -> None:
    columns = owner.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        " AND NOT attisdropped",
        (f"orchestration.{log}",),
    ).fetchall()
    assert {name for (name,) in columns} == rewritings(log).keys()
    assert rewritings(log).keys() == row(log, UNTRIED, 1, "OPEN").keys()


@pytest.mark.invariant("INV-APP-001", "INV-APP-002")
@pytest.mark.parametrize("role", ["ingest", "executor", "control", "readonly", "auditor"])
@each_log
def test_a_runtime_role_has_no_write_at_all(
    owner: Connect, login: Login, role: str, log: str
) -> None:
    make_world(owner)
    caller = login(role)
    for statement in (
        insert(log, row(log, UNTRIED, 1, "OPEN")),
        f"UPDATE orchestration.{log} SET db_user = db_user",
        f"DELETE FROM orchestration.{log}",
        f"TRUNCATE orchestration.{log}",
    ):
        assert refusal(caller, statement).sqlstate == "42501"


# What a row may say.


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (f"ck_{log}_{check}", row(log, OPEN if phase == "CLOSE" else UNTRIED, 1, phase, **changed))
        for log in LOGS
        for check, phase, changed in (
            ("worker_id", "OPEN", {"worker_id": ""}),
            ("error", "OPEN", {"error_code": "x"}),
            ("error", "OPEN", {"error_message": "x"}),
            ("error", "CLOSE", {"outcome": "SUCCEEDED", "error_code": "x"}),
            ("error", "CLOSE", {"outcome": "SUCCEEDED", "error_message": "x"}),
            ("error", "CLOSE", {"error_code": ""}),
            ("error", "CLOSE", {"error_message": ""}),
            ("years", "OPEN", {"occurred_at": "0001-01-01Z BC"}),
            ("rail_type", "OPEN", {"rail_type": ""}),
            ("rail_reference", "OPEN", {"rail_reference": "x"}),
            ("rail_reference", "CLOSE", {"rail_reference": ""}),
        )
        if log == TRANSACTIONS or not check.startswith("rail")
    ],
    ids=str,
)
def test_what_a_row_may_not_say(owner: Connect, check: str, values: Values) -> None:
    make_world(owner)
    log = TRANSACTIONS if "rail_type" in values else EXECUTIONS
    found = refusal(owner, insert(log, values))
    assert (found.sqlstate, found.table, found.constraint) == ("23514", log, check)
    drop(owner, f"constraints/{check}")
    assert attempt(owner, [insert(log, values)]) is None


@pytest.mark.parametrize(
    ("log", "column"),
    [(EXECUTIONS, "worker_id"), (TRANSACTIONS, "worker_id"), (TRANSACTIONS, "rail_type")],
)
def test_an_opening_says_who_and_by_which_rail(owner: Connect, log: str, column: str) -> None:
    make_world(owner)
    found = refusal(owner, insert(log, row(log, UNTRIED, 1, "OPEN", **{column: None})))
    assert (found.sqlstate, found.table, found.column) == ("23502", log, column)


@pytest.mark.invariant("INV-APP-002")
@each_log
@pytest.mark.parametrize("outcome", AttemptOutcome)
def test_one_attempt_follows_another_until_one_succeeds(
    owner: Connect, log: str, outcome: str
) -> None:
    make_world(owner)
    told = {} if outcome == "SUCCEEDED" else {"error_code": "E1", "error_message": "no"}
    rows = (
        row(log, UNTRIED, 1, "OPEN"),
        row(log, UNTRIED, 1, "CLOSE", outcome="FAILED", error_code="E0"),
        row(log, UNTRIED, 2, "OPEN", worker_id="another"),
        row(log, UNTRIED, 2, "CLOSE", outcome=outcome, worker_id="another", **told),
    )
    for one in rows:
        assert attempt(owner, [insert(log, one)]) is None
    third = attempt(owner, [insert(log, row(log, UNTRIED, 3, "OPEN"))])
    if outcome == "SUCCEEDED":
        assert third is not None
        assert_invariant(third, "INV-APP-002", "P7401", log)
    else:
        assert third is None
    assert_no_finding(owner)


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_a_statement_may_bring_in_attempts_that_follow_each_other(owner: Connect, log: str) -> None:
    make_world(owner)
    rows = (
        row(log, UNTRIED, 1, "OPEN"),
        row(log, UNTRIED, 1, "CLOSE", outcome="ABANDONED"),
        row(log, UNTRIED, 2, "OPEN"),
    )
    assert attempt(owner, [insert(log, *rows)]) is None
    assert_no_finding(owner)
    found = attempt(owner, [insert(log, row(log, FAILED, 3, "OPEN"), row(log, FAILED, 2, "OPEN"))])
    assert found is not None
    assert_invariant(found, "INV-APP-002", "P7401", log)


@pytest.mark.invariant("INV-APP-002")
def test_the_two_logs_do_not_count_each_other_s_attempts(owner: Connect) -> None:
    make_world(owner)
    for log in LOGS:
        assert attempt(owner, [insert(log, row(log, UNTRIED, 1, "OPEN"))]) is None


@pytest.mark.invariant("INV-APP-002")
@each_log
@pytest.mark.parametrize(
    "changed",
    [{}, {"participant_id": "q"}, {"worker_id": "another"}, {"occurred_at": LATER}],
    ids=str,
)
def test_a_row_that_is_there_is_left_to_the_primary_key(
    owner: Connect, log: str, changed: dict[str, str]
) -> None:
    make_world(owner)
    before = picture(owner)
    again = insert(log, row(log, FAILED, 1, "CLOSE", **changed))
    found = refusal(owner, again)
    assert (found.sqlstate, found.constraint) == ("23505", f"pk_{log}")
    for target in ("", f"({KEY})"):
        assert attempt(owner, [f"{again} ON CONFLICT {target} DO NOTHING"]) is None
    assert picture(owner) == before


# What the database sets.


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect, log: str) -> None:
    make_world(owner)
    rail = {"rail_type": "SEPA"} if log == TRANSACTIONS else {}
    opening = {"instruction_id": OF_Q, "attempt_no": "1", "phase": "OPEN", "worker_id": "w"} | rail
    closing = {"instruction_id": OF_Q, "attempt_no": "1", "phase": "CLOSE", "outcome": "FAILED"}
    with owner.transaction():
        owner.execute(insert(log, opening))
        owner.execute(insert(log, closing))
        found = owner.execute(
            "SELECT participant_id, worker_id, occurred_at BETWEEN now() AND clock_timestamp(),"
            " db_user = session_user, xact_id = pg_current_xact_id()::text::bigint"
            f" FROM orchestration.{log} WHERE instruction_id = %s",
            (OF_Q,),
        ).fetchall()
    assert found == [("q", "w", True, True, True)] * 2
    if log == TRANSACTIONS:
        rails = owner.execute(f"SELECT DISTINCT rail_type FROM orchestration.{log}").fetchall()
        assert rails == [("SEPA",)]


@pytest.mark.invariant("INV-APP-002")
@each_log
@pytest.mark.parametrize("form", entries(EXECUTIONS, row(EXECUTIONS, UNTRIED, 1, "OPEN")))
def test_who_wrote_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Login, log: str, form: str
) -> None:
    make_world(owner)
    owner.execute(f"GRANT SELECT, INSERT ON orchestration.{log} TO symphony_readonly")
    writer = login("readonly")
    assert attempt(writer, [entries(log, row(log, UNTRIED, 1, "OPEN"))[form]]) is None
    assert owner.execute(
        "SELECT db_user, xact_id = xmin::text::bigint, occurred_at = '2020-01-01Z'"
        f" FROM orchestration.{log} WHERE instruction_id = %s",
        (UNTRIED,),
    ).fetchall() == [(writer.info.user, True, True)]


# What verify_attempt_logs() finds where the guard slept or is gone.


VERIFY = "SELECT * FROM orchestration.verify_attempt_logs()"
ORPHAN = "ORPHAN: the instruction of the attempt does not exist"
UNOPENED = "CLOSE: the attempt was closed but not opened, or by a different worker or rail"
UNORDERED = "ORDER: the attempt was opened, but the previous one is not closed or SUCCEEDED"


def assert_no_finding(connection: Connect) -> None:
    assert connection.execute(VERIFY).fetchall() == []


FINDINGS = {
    "a gap": ([(UNTRIED, 2, "OPEN", {})], [(UNORDERED, 0)]),
    "two that are open": ([(OPEN, 2, "OPEN", {})], [(UNORDERED, 0)]),
    "one after a success": ([(SUCCEEDED, 2, "OPEN", {})], [(UNORDERED, 0)]),
    "a closing alone": ([(UNTRIED, 1, "CLOSE", {})], [(UNOPENED, 0)]),
    "a closing of the next one": (
        [(AGAIN, 3, "CLOSE", {}), (AGAIN, 4, "OPEN", {})],
        [(UNOPENED, 0)],
    ),
    "a closing by another worker": ([(OPEN, 1, "CLOSE", {"worker_id": "x"})], [(UNOPENED, 0)]),
    "an order that holds": (
        [(OPEN, 1, "CLOSE", {}), (OPEN, 2, "OPEN", {}), (UNTRIED, 1, "OPEN", {})],
        [],
    ),
}


@pytest.mark.invariant("INV-APP-002")
@each_log
@pytest.mark.parametrize("name", FINDINGS)
def test_what_comes_in_without_the_guard_is_found(
    owner: Connect, login: Login, log: str, name: str
) -> None:
    make_world(owner)
    auditor, control = login("auditor"), login("control")
    assert_no_finding(auditor)
    given, findings = FINDINGS[name]
    drop(owner, f"triggers/{log}__guard")
    for id, attempt_no, phase, changed in given:
        assert attempt(owner, [insert(log, row(log, id, attempt_no, phase, **changed))]) is None
    found = []
    for finding, index in findings:
        id, attempt_no, phase, _ = given[index]
        detail = {"log": log, "attempt_no": attempt_no, "phase": phase}
        found.append((finding, uuid.UUID(id), "p", detail))
    assert auditor.execute(VERIFY).fetchall() == found
    assert control.execute(VERIFY).fetchall() == found


@pytest.mark.invariant("INV-APP-002")
def test_a_closing_of_another_rail_is_found(owner: Connect) -> None:
    make_world(owner)
    drop(owner, f"triggers/{TRANSACTIONS}__guard")
    owner.execute(insert(TRANSACTIONS, row(TRANSACTIONS, OPEN, 1, "CLOSE", rail_type="SWIFT")))
    assert [found for found, *_ in owner.execute(VERIFY)] == [UNOPENED]


@pytest.mark.superuser
@pytest.mark.invariant("INV-APP-002")
@each_log
def test_what_replica_mode_lets_in_is_found_and_stands_as_it_came(
    superuser: Connect, login: Login, log: str
) -> None:
    make_world(superuser)
    superuser.execute("SET session_replication_role = replica")
    for values in (
        row(log, NOWHERE, 1, "OPEN"),
        row(log, NOWHERE, 1, "CLOSE"),
        row(log, UNTRIED, 1, "OPEN", participant_id="q"),
    ):
        assert attempt(superuser, [insert(log, values)]) is None
    assert login("auditor").execute(VERIFY).fetchall() == [
        (ORPHAN, uuid.UUID(id), participant, {"log": log, "attempt_no": 1, "phase": phase})
        for id, participant, phase in (
            (UNTRIED, "q", "OPEN"),
            (NOWHERE, "p", "OPEN"),
            (NOWHERE, "p", "CLOSE"),
        )
    ]
    assert superuser.execute(
        f"SELECT DISTINCT db_user, xact_id, occurred_at = '2020-01-01Z' FROM orchestration.{log}"
        " WHERE instruction_id = ANY (%s::uuid[])",
        ([NOWHERE, UNTRIED],),
    ).fetchall() == [("forger", 1, True)]
    found = attempt(superuser, [insert(log, row(log, OF_Q, 1, "OPEN", occurred_at=None))])
    assert found is not None
    assert (found.sqlstate, found.column) == ("23502", "occurred_at")


# The functions.


def opening(log: str, id: str, worker_id: str | None = "w") -> str:
    rail = "" if log == EXECUTIONS else ", p_rail_type => 'SEPA'"
    worker = "NULL" if worker_id is None else f"'{worker_id}'"
    return (
        "SELECT attempt_no, phase, participant_id, worker_id, outcome"
        f" FROM orchestration.open_{log[:-1]}("
        f"p_instruction_id => '{id}', p_worker_id => {worker}{rail})"
    )


def closing(log: str, id: str, attempt_no: int | None, outcome: str | None, **told: str) -> str:
    number = "NULL" if attempt_no is None else attempt_no
    ended = "NULL" if outcome is None else f"'{outcome}'"
    words = "".join(f", p_{name} => '{value}'" for name, value in told.items())
    return (
        "SELECT attempt_no, phase, participant_id, worker_id, outcome"
        f" FROM orchestration.close_{log[:-1]}("
        f"p_instruction_id => '{id}', p_attempt_no => {number}, p_outcome => {ended}{words})"
    )


@pytest.fixture
def executor(owner: Connect, login: Login) -> Connect:
    make_world(owner)
    return login("executor")


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_the_functions_number_the_attempts(executor: Connect, log: str) -> None:
    for number, outcome in enumerate(("FAILED", "ABANDONED", "SUCCEEDED"), 1):
        opened = executor.execute(opening(log, OF_Q, f"w{number}")).fetchall()
        assert opened == [(number, "OPEN", "q", f"w{number}", None)]
        closed = executor.execute(closing(log, OF_Q, number, outcome)).fetchall()
        assert closed == [(number, "CLOSE", "q", f"w{number}", outcome)]


@pytest.mark.invariant("INV-APP-002")
@each_log
@pytest.mark.parametrize(("id", "next_one"), [(OPEN, 2), (AGAIN, 3), (SUCCEEDED, 2)])
def test_nothing_is_opened_beside_an_open_attempt_or_after_a_success(
    executor: Connect, log: str, id: str, next_one: int
) -> None:
    found = refusal(executor, opening(log, id))
    assert_invariant(found, "INV-APP-002", "P7401", log)
    assert found.column == "attempt_no"
    assert found.keys == {"instruction_id": id, "attempt_no": next_one, "phase": "OPEN"}


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_the_same_closing_again_gives_the_recorded_one(
    executor: Connect, login: Login, log: str
) -> None:
    told = {"error_code": "E1", "error_message": "no"}
    if log == TRANSACTIONS:
        told["rail_reference"] = "R1"
    close = "SELECT * FROM " + closing(log, OPEN, 1, "FAILED", **told).partition(" FROM ")[2]
    ((*first, replayed),) = executor.execute(close).fetchall()
    assert replayed is False
    again = [(*first, True)]
    assert executor.execute(close).fetchall() == again
    assert login("executor").execute(close).fetchall() == again
    executor.execute(opening(log, OPEN))
    assert executor.execute(close).fetchall() == again
    assert scalar(executor, f"SELECT count(*) FROM orchestration.{log} WHERE xact_id > 0") == 10


@pytest.mark.invariant("INV-APP-002")
@each_log
def test_another_closing_of_a_closed_attempt_is_refused(executor: Connect, log: str) -> None:
    told = {"error_code": "E1", "error_message": "no"}
    if log == TRANSACTIONS:
        told["rail_reference"] = "R1"
    others: list[tuple[str, dict[str, str]]] = [
        ("SUCCEEDED", {}),
        ("ABANDONED", told),
        ("FAILED", {}),
        ("FAILED", told | {"error_code": "E2"}),
        ("FAILED", told | {"error_message": "No"}),
        ("FAILED", {name: word for name, word in told.items() if name != "error_code"}),
        ("FAILED", {name: word for name, word in told.items() if name != "error_message"}),
    ]
    if log == TRANSACTIONS:
        others.append(("FAILED", told | {"rail_reference": "R2"}))
    executor.execute(closing(log, OPEN, 1, "FAILED", **told))
    for outcome, words in others:
        found = refusal(executor, closing(log, OPEN, 1, outcome, **words))
        assert_invariant(found, "INV-APP-002", "P7401", log)
        assert found.column == "outcome"
        assert found.keys == {"instruction_id": OPEN, "attempt_no": 1, "outcome": "FAILED"}


@pytest.mark.invariant("INV-API-002")
@each_log
@pytest.mark.parametrize("attempt_no", [None, -1, 0, 2])
def test_closing_what_was_never_opened_is_refused(
    executor: Connect, log: str, attempt_no: int | None
) -> None:
    found = refusal(executor, closing(log, OPEN, attempt_no, "FAILED"))
    assert_invariant(found, "INV-API-002", "P0002", log)
    assert found.column == "attempt_no"
    assert found.keys == {"instruction_id": OPEN, "attempt_no": attempt_no}


@pytest.mark.invariant("INV-API-002")
@each_log
def test_an_act_on_an_unknown_instruction_is_refused(executor: Connect, log: str) -> None:
    for statement in (opening(log, NOWHERE), closing(log, NOWHERE, 1, "FAILED")):
        found = refusal(executor, statement)
        assert_invariant(found, "INV-API-002", "P0002", "instructions")
        assert (found.column, found.keys) == ("id", {"id": NOWHERE})


@each_log
def test_a_constraint_shows_of_the_instruction_nothing_but_its_participant(
    executor: Connect, log: str
) -> None:
    for statement, column, constraint in (
        (opening(log, UNTRIED, None), "worker_id", None),
        (opening(log, UNTRIED, ""), None, f"ck_{log}_worker_id"),
        (closing(log, OPEN, 1, None), None, f"ck_{log}_outcome"),
        (closing(log, OPEN, 1, "MAYBE"), None, f"ck_{log}_outcome"),
        (closing(log, OPEN, 1, "SUCCEEDED", error_code="x"), None, f"ck_{log}_error"),
        (closing(log, FAILED, 1, "SUCCEEDED", error_code="x"), None, f"ck_{log}_error"),
    ):
        found = refusal(executor, statement)
        assert (found.table, found.column, found.constraint) == (log, column, constraint)
        assert found.detail is not None
        assert not {"debtor", "creditor", "EUR"} & set(found.detail.replace(",", " ").split())

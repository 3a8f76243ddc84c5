"""Tests of the attempt logs: valid writes, defaults and results. `attacks` tests the refusals."""

from collections.abc import Callable
from uuid import UUID

import pytest

from orchestration.vocabulary import AttemptOutcome
from tests.invariants.attacks import attempt_log as attacks
from tests.invariants.attacks.attempt_log import (
    AGAIN,
    ATTEMPT_LOG,
    EXECUTIONS,
    FAILED,
    KEY,
    LOGS,
    NOWHERE,
    OF_Q,
    OPEN,
    SUCCEEDED,
    TRANSACTIONS,
    UNTRIED,
    rewritings,
)
from tests.invariants.attacks.base import Row, copy, insert, inserts
from tests.support import (
    Connect,
    assert_invariant,
    attempt,
    attempt_without,
    drop,
    picture,
    refusal,
    run,
    scalar,
)

Login = Callable[[str], Connect]

LATER = "(clock_timestamp() + interval '10 years')"

each_log = pytest.mark.parametrize("log", LOGS)


def row(log: str, id: str, attempt_no: int, phase: str, **changed: str | None) -> Row:
    """A whole row; a value in parentheses is an expression."""
    return attacks.row(
        *(log, id, attempt_no, phase),
        **{
            column: "NULL" if value is None else value if value.startswith("(") else f"'{value}'"
            for column, value in changed.items()
        },
    )


def make_world(owner: Connect) -> None:
    run(owner, ATTEMPT_LOG.histories[""])


@pytest.mark.unchanged
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


# What a row may say.


@pytest.mark.unchanged(after=make_world)
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
def test_what_a_row_may_not_say(owner: Connect, check: str, values: Row) -> None:
    log = TRANSACTIONS if "rail_type" in values else EXECUTIONS
    found = refusal(owner, insert(log, values))
    assert (found.sqlstate, found.table, found.constraint) == ("23514", log, check)
    assert attempt_without(owner, [f"constraints/{check}"], [insert(log, values)]) is None


@pytest.mark.unchanged(after=make_world)
@pytest.mark.parametrize(
    ("log", "column"),
    [(EXECUTIONS, "worker_id"), (TRANSACTIONS, "worker_id"), (TRANSACTIONS, "rail_type")],
)
def test_an_opening_says_who_and_by_which_rail(owner: Connect, log: str, column: str) -> None:
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


@pytest.mark.unchanged(after=make_world)
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
    rail = {"rail_type": "'SEPA'"} if log == TRANSACTIONS else {}
    of_q = {"instruction_id": f"'{OF_Q}'", "attempt_no": "1"}
    opening = of_q | {"phase": "'OPEN'", "worker_id": "'w'"} | rail
    closing = of_q | {"phase": "'CLOSE'", "outcome": "'FAILED'"}
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
@pytest.mark.parametrize("form", [" by INSERT", " by MERGE", " in a CTE", "COPY"])
def test_who_wrote_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Login, log: str, form: str
) -> None:
    make_world(owner)
    owner.execute(f"GRANT SELECT, INSERT ON orchestration.{log} TO symphony_readonly")
    writer = login("readonly")
    opening = row(log, UNTRIED, 1, "OPEN")
    forms = inserts("", log, opening) | {"COPY": copy(log, opening)}
    assert attempt(writer, [forms[form]]) is None
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
        found.append((finding, UUID(id), "p", detail))
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
        (ORPHAN, UUID(id), participant, {"log": log, "attempt_no": 1, "phase": phase})
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

"""Tests of policy versions: valid writes, defaults and results. `attacks` tests the refusals."""

from collections.abc import Callable
from functools import partial
from unittest.mock import ANY

import psycopg
import pytest

from tests.invariants.attacks.base import LATER, insert
from tests.invariants.attacks.policy_version import DEMOTE, version
from tests.support import (
    Connect,
    Refusal,
    activate_policy,
    assert_invariant,
    attempt,
    digest,
    drop,
    refusal,
    scalar,
)


def live_through(history: str, connection: Connect) -> None:
    """`+v1 +v2 -v1` rotates to v1, then to v2, and retires v1."""
    for step in history.split():
        if step.startswith("+"):
            activate_policy(connection, step[1:])
        else:
            connection.execute("SELECT FROM orchestration.retire_policy_version(%s)", (step[1:],))


VERSIONS = "orchestration.policy_versions"
V1, V1_V2, V1_TO_V3, RETIRED = (
    partial(live_through, history) for history in ("+v1", "+v1 +v2", "+v1 +v2 +v3", "+v1 +v2 -v1")
)


def statuses(connection: Connect) -> dict[str, str]:
    rows = connection.execute("SELECT id, status FROM orchestration.policy_versions").fetchall()
    return dict(rows)


def entered(id: str, **changed: str) -> str:
    return insert("policy_versions", version(id, **changed))


# The order of judgement.


@pytest.mark.unchanged(after=RETIRED)
@pytest.mark.invariant("INV-POL-001")
def test_identity_is_judged_before_the_transition(owner: Connect) -> None:
    found = refusal(
        owner,
        f"UPDATE {VERSIONS} SET status = 'ACTIVE', checksum = 'x' WHERE id = 'v1'",
    )
    assert_invariant(found, "INV-POL-001", "P7101", "policy_versions")
    assert found.keys == {"id": "v1", "from": "RETIRED", "to": "ACTIVE"}


@pytest.mark.unchanged(after=V1_V2)
@pytest.mark.invariant("INV-POL-003", "INV-POL-005")
def test_a_transition_is_judged_before_the_conflict_with_the_active_one(owner: Connect) -> None:
    found = refusal(
        owner,
        f"UPDATE {VERSIONS} SET status = 'ACTIVE', grace_expires_at = NULL WHERE id = 'v1'",
    )
    assert_invariant(found, "INV-POL-003", "P7101", "policy_versions")


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-POL-009", "INV-POL-010", "INV-POL-005")
@pytest.mark.parametrize(
    ("columns", "invariant"),
    [
        ({"status": "'GRACE'", "grace_expires_at": "clock_timestamp()"}, "INV-POL-010"),
        ({"activated_at": "'2020-01-01'"}, "INV-POL-009"),
        ({"created_at": LATER}, "INV-POL-001"),
    ],
)
def test_an_entry_is_judged_before_its_conflict_with_the_active_one(
    owner: Connect, columns: dict[str, str], invariant: str
) -> None:
    found = refusal(owner, entered("v2", **columns))
    assert_invariant(found, invariant, "P7101", "policy_versions")


@pytest.mark.unchanged(after=V1)
@pytest.mark.parametrize(
    "columns",
    [
        {},
        {
            "status": "'RETIRED'",
            "grace_expires_at": "clock_timestamp()",
            "retired_at": "clock_timestamp()",
        },
        {"activated_at": "'2020-01-01'"},
        {"created_at": LATER},
    ],
    ids=["the same", "as RETIRED", "older", "to come"],
)
def test_an_insert_whose_id_exists_is_left_to_the_primary_key(
    owner: Connect, columns: dict[str, str]
) -> None:
    found = refusal(owner, entered("v1", **columns))
    assert (found.sqlstate, found.constraint) == ("23505", "pk_policy_versions")


@pytest.mark.unchanged(after=V1)
def test_an_insert_whose_id_exists_need_not_give_the_times(owner: Connect) -> None:
    found = refusal(
        owner,
        f"INSERT INTO {VERSIONS} (id, description, checksum) VALUES ('v1', 'x', repeat('0', 64))",
    )
    assert (found.sqlstate, found.constraint) == ("23505", "pk_policy_versions")


@pytest.mark.parametrize("target", ["", "(id)"])
def test_on_conflict_do_nothing_leaves_an_existing_version_as_it_is(
    owner: Connect, target: str
) -> None:
    activate_policy(owner)
    before = statuses(owner)
    found = attempt(owner, [f"{entered('v1')} ON CONFLICT {target} DO NOTHING"])
    assert found is None
    assert statuses(owner) == before


# What is checked by constraints.


@pytest.mark.unchanged
@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("id", "''", "ck_policy_versions_id"),
        ("description", "''", "ck_policy_versions_description"),
        ("created_by", "''", "ck_policy_versions_created_by"),
        ("checksum", "''", "ck_policy_versions_checksum"),
        ("checksum", "repeat('0', 63)", "ck_policy_versions_checksum"),
        ("checksum", "repeat('0', 65)", "ck_policy_versions_checksum"),
        ("checksum", "repeat('A', 64)", "ck_policy_versions_checksum"),
        ("checksum", "repeat('0', 63) || E'\\n'", "ck_policy_versions_checksum"),
        ("checksum", "repeat('0', 64) || E'\\n'", "ck_policy_versions_checksum"),
        ("retired_at", "clock_timestamp()", "ck_policy_versions_times"),
        ("grace_expires_at", "clock_timestamp()", "ck_policy_versions_times"),
        ("created_at", "'4000-01-01 BC'", "ck_policy_versions_years"),
        ("activated_at", "'0001-12-31 23:59:59Z BC'", "ck_policy_versions_years"),
    ],
)
def test_a_value_that_no_version_may_hold_is_refused(
    owner: Connect, column: str, value: str, constraint: str
) -> None:
    values = {"id": "'v1'", "description": "'x'", "checksum": "repeat('0', 64)"} | {column: value}
    found = refusal(
        owner,
        f"INSERT INTO {VERSIONS} ({', '.join(values)}) VALUES ({', '.join(values.values())})",
    )
    assert (found.sqlstate, found.constraint) == ("23514", constraint)


@pytest.mark.unchanged(after=V1)
@pytest.mark.parametrize(
    "change",
    [
        "status = 'GRACE', grace_expires_at = '4000-01-01 BC'",
        "status = 'GRACE', grace_expires_at = '9999-01-01Z'",
    ],
)
def test_a_grace_ends_in_a_year_that_every_calendar_has(owner: Connect, change: str) -> None:
    found = refusal(owner, f"UPDATE {VERSIONS} SET {change}")
    assert (found.sqlstate, found.constraint) == ("23514", "ck_policy_versions_years")


@pytest.mark.unchanged(after=V1)
def test_a_status_that_does_not_exist_is_refused(owner: Connect) -> None:
    found = refusal(owner, f"UPDATE {VERSIONS} SET status = 'PAUSED', grace_expires_at = now()")
    assert found.sqlstate == "23514"
    assert found.constraint == "ck_policy_versions_status"


@pytest.mark.invariant("INV-POL-011")
@pytest.mark.parametrize(
    ("history", "change", "detail"),
    [
        ("+v1", "status = 'GRACE'", {"id": "v1", "from": "ACTIVE", "to": "GRACE"}),
        ("+v1", "grace_expires_at = now()", {"id": "v1", "from": "ACTIVE", "to": "ACTIVE"}),
        ("+v1 +v2", "grace_expires_at = NULL", {"id": "v1", "from": "GRACE", "to": "GRACE"}),
        (
            "+v1 +v2",
            "status = 'RETIRED', grace_expires_at = NULL",
            {"id": "v1", "from": "GRACE", "to": "RETIRED"},
        ),
    ],
)
def test_a_grace_has_an_end_while_there_is_one(
    owner: Connect, history: str, change: str, detail: dict[str, str]
) -> None:
    live_through(history, owner)
    found = refusal(owner, f"UPDATE {VERSIONS} SET {change} WHERE id = 'v1'")
    assert_invariant(found, "INV-POL-011", "P7101", "policy_versions")
    assert found.column == "grace_expires_at"
    assert found.keys == detail


@pytest.mark.unchanged
@pytest.mark.parametrize("column", ["id", "description", "checksum", "created_by"])
def test_a_missing_value_is_refused_by_its_column(owner: Connect, column: str) -> None:
    values = {
        "id": "'v1'",
        "description": "'x'",
        "checksum": "repeat('0', 64)",
        "created_by": "'x'",
    } | {column: "NULL"}
    found = refusal(
        owner,
        f"INSERT INTO {VERSIONS} ({', '.join(values)}) VALUES ({', '.join(values.values())})",
    )
    assert (found.sqlstate, found.table, found.column) == ("23502", "policy_versions", column)


# What the database sets.


@pytest.mark.invariant("INV-POL-001", "INV-POL-009")
def test_the_database_says_who_wrote_a_version_and_in_which_transaction(owner: Connect) -> None:
    with owner.transaction():
        owner.execute(entered("v1"))
        row = owner.execute(
            "SELECT db_user = session_user, xact_id = pg_current_xact_id()::text::bigint,"
            " created_by FROM orchestration.policy_versions"
        ).fetchone()
    assert row == (True, True, "forger")


@pytest.mark.invariant("INV-POL-001")
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect) -> None:
    with owner.transaction():
        owner.execute(
            "INSERT INTO orchestration.policy_versions (id, description, checksum)"
            " VALUES ('v1', 'test', %s)",
            (digest("v1"),),
        )
        row = owner.execute(
            "SELECT status, grace_expires_at, retired_at, created_by = session_user,"
            " activated_at BETWEEN now() AND clock_timestamp(),"
            " created_at BETWEEN now() AND clock_timestamp() FROM orchestration.policy_versions"
        ).fetchone()
    assert row == ("ACTIVE", None, None, True, True, True)


@pytest.mark.invariant("INV-POL-001")
def test_a_version_that_is_imported_keeps_the_time_at_which_it_was_created(owner: Connect) -> None:
    owner.execute(entered("v1", created_at="'2020-01-01Z'"))
    row = owner.execute("SELECT created_at = '2020-01-01Z' FROM orchestration.policy_versions")
    assert row.fetchone() == (True,)


@pytest.mark.invariant("INV-POL-002")
def test_retired_at_is_the_clock_whatever_is_supplied(owner: Connect) -> None:
    live_through("+v1 +v2", owner)
    with owner.transaction():
        owner.execute(
            "UPDATE orchestration.policy_versions SET status = 'RETIRED', retired_at = '2020-01-01'"
            " WHERE id = 'v1'"
        )
        row = owner.execute(
            "SELECT retired_at BETWEEN now() AND clock_timestamp()"
            " FROM orchestration.policy_versions WHERE id = 'v1'"
        ).fetchone()
    assert row == (True,)


@pytest.mark.invariant("INV-POL-002")
@pytest.mark.parametrize("id", ["v1", "v2"])
def test_a_retired_at_before_retirement_is_not_stored(owner: Connect, id: str) -> None:
    live_through("+v1 +v2", owner)
    owner.execute(
        "UPDATE orchestration.policy_versions SET retired_at = '2020-01-01' WHERE id = %s", (id,)
    )
    row = owner.execute(
        "SELECT retired_at FROM orchestration.policy_versions WHERE id = %s", (id,)
    ).fetchone()
    assert row == (None,)


@pytest.mark.superuser
@pytest.mark.invariant("INV-POL-001")
def test_in_replica_mode_values_arrive_as_they_are(superuser: Connect) -> None:
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(entered("v1", created_at="'2020-01-01Z'"))
    row = superuser.execute("SELECT db_user, xact_id FROM orchestration.policy_versions").fetchone()
    gate = superuser.execute("SELECT changes FROM orchestration.policy_gate").fetchone()
    assert row == ("forger", 1)
    assert gate == (0,)


# INV-POL-007 at COMMIT, and rotation beside it.


@pytest.mark.invariant("INV-POL-007")
def test_the_last_active_version_may_go_and_come_within_a_transaction(owner: Connect) -> None:
    activate_policy(owner)
    assert attempt(owner, [DEMOTE, entered("v2")]) is None
    assert statuses(owner) == {"v1": "GRACE", "v2": "ACTIVE"}


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-POL-007")
def test_the_last_active_version_is_missed_at_commit_and_not_before(owner: Connect) -> None:
    owner.execute("BEGIN")
    owner.execute(DEMOTE)
    owner.execute("SELECT 1")
    with pytest.raises(psycopg.Error) as raised:
        owner.execute("COMMIT")
    found = Refusal.of(raised.value)
    assert_invariant(found, "INV-POL-007", "P7103", "policy_versions")
    assert statuses(owner) == {"v1": "ACTIVE"}


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-POL-007")
def test_the_last_active_version_is_missed_at_once_where_constraints_are_immediate(
    owner: Connect,
) -> None:
    owner.execute("BEGIN")
    owner.execute("SET CONSTRAINTS ALL IMMEDIATE")
    with pytest.raises(psycopg.Error) as raised:
        owner.execute(DEMOTE)
    owner.execute("ROLLBACK")
    assert_invariant(Refusal.of(raised.value), "INV-POL-007", "P7103", "policy_versions")


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-POL-007")
def test_set_constraints_immediate_judges_what_went_before(owner: Connect) -> None:
    owner.execute("BEGIN")
    owner.execute(DEMOTE)
    with pytest.raises(psycopg.Error) as raised:
        owner.execute("SET CONSTRAINTS ALL IMMEDIATE")
    owner.execute("ROLLBACK")
    assert_invariant(Refusal.of(raised.value), "INV-POL-007", "P7103", "policy_versions")


@pytest.mark.invariant("INV-POL-005", "INV-POL-007")
def test_rotation_works_under_immediate_constraints(login: Callable[[str], Connect]) -> None:
    control = login("control")
    with control.transaction():
        control.execute("SET CONSTRAINTS ALL IMMEDIATE")
        live_through("+v1 +v2 +v3", control)
    assert statuses(control) == {"v1": "RETIRED", "v2": "GRACE", "v3": "ACTIVE"}


@pytest.mark.invariant("INV-POL-008", "INV-POL-009")
def test_two_rotations_in_one_transaction_keep_their_order(login: Callable[[str], Connect]) -> None:
    control = login("control")
    with control.transaction():
        live_through("+v1 +v2 +v3", control)
    rows = control.execute(
        "SELECT id, status, activated_at > lag(activated_at) OVER (ORDER BY id)"
        " FROM orchestration.policy_versions ORDER BY id"
    ).fetchall()
    assert rows == [("v1", "RETIRED", None), ("v2", "GRACE", True), ("v3", "ACTIVE", True)]


def set_the_clock_back(owner: Connect) -> None:
    """A v1 of an hour ahead: what a clock leaves behind that was then set back by an hour."""
    owner.execute("ALTER TABLE orchestration.policy_versions DISABLE TRIGGER guard")
    owner.execute(entered("v1", activated_at="clock_timestamp() + interval '1 hour'"))
    owner.execute("ALTER TABLE orchestration.policy_versions ENABLE ALWAYS TRIGGER guard")


@pytest.mark.invariant("INV-POL-009")
def test_rotation_goes_on_after_the_clock_went_back(owner: Connect) -> None:
    set_the_clock_back(owner)
    live_through("+v2 +v3", owner)
    rows = owner.execute(
        "SELECT id, activated_at - lag(activated_at) OVER (ORDER BY id) = interval '1 microsecond'"
        " FROM orchestration.policy_versions ORDER BY id"
    ).fetchall()
    assert rows == [("v1", None), ("v2", True), ("v3", True)]


@pytest.mark.invariant("INV-POL-009")
def test_activated_at_may_pass_the_clock_by_a_microsecond_and_no_more(owner: Connect) -> None:
    set_the_clock_back(owner)
    newest = "(SELECT max(activated_at) FROM orchestration.policy_versions)"
    two = entered("v2", activated_at=f"{newest} + interval '2 microseconds'")
    found = attempt(owner, [DEMOTE, two])
    assert found is not None
    assert_invariant(found, "INV-POL-009", "P7101", "policy_versions")
    one = entered("v2", activated_at=f"{newest} + interval '1 microsecond'")
    assert attempt(owner, [DEMOTE, one]) is None


@pytest.mark.invariant("INV-POL-011")
def test_a_grace_may_come_to_its_end_earlier(owner: Connect) -> None:
    live_through("+v1 +v2", owner)
    sooner = f"UPDATE {VERSIONS} SET grace_expires_at = clock_timestamp() WHERE id = 'v1'"
    assert attempt(owner, [sooner]) is None
    accepted = owner.execute("SELECT id FROM orchestration.accepted_policy_versions").fetchall()
    assert accepted == [("v2",)]


# The functions.


def rotate(
    id: str = "v2",
    *,
    grace: str = "interval '1 hour'",
    expected_active: str = "NULL",
    checksum: str = "repeat('0', 64)",
) -> str:
    return (
        f"SELECT * FROM orchestration.rotate_policy_version(p_id => '{id}',"
        f" p_description => 'test', p_checksum => {checksum}, p_grace => {grace},"
        f" p_expected_active => {expected_active})"
    )


@pytest.mark.invariant("INV-POL-004", "INV-POL-007")
def test_an_emergency_is_a_grace_of_zero_and_retirement_in_one_transaction(
    login: Callable[[str], Connect],
) -> None:
    control = login("control")
    activate_policy(control)
    assert (
        attempt(
            control,
            [
                rotate(grace="interval '0'"),
                "SELECT orchestration.retire_policy_version('v1')",
            ],
        )
        is None
    )
    assert statuses(control) == {"v1": "RETIRED", "v2": "ACTIVE"}


@pytest.mark.invariant("INV-ATT-008")
def test_a_grace_of_zero_ends_acceptance_at_once(login: Callable[[str], Connect]) -> None:
    control = login("control")
    activate_policy(control)
    control.execute(rotate(grace="interval '0'"))
    assert statuses(control) == {"v1": "GRACE", "v2": "ACTIVE"}
    found = refusal(control, "SELECT orchestration.require_policy_accepted('v1')")
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    "grace",
    [
        "interval '-1 microsecond'",
        "NULL",
        "interval '101 years'",
        "interval '-1 month'",
        "interval '100 years 0.000001 seconds'",
        # By the calendar these two begin in the past and end after a century.
        "interval '-100 years 36524 days'",
        "interval '100 years 1 day'",
    ],
)
def test_a_grace_out_of_bounds_is_refused(login: Callable[[str], Connect], grace: str) -> None:
    control = login("control")
    found = refusal(control, rotate(grace=grace))
    assert_invariant(found, "INV-API-001", "22023", "policy_versions")
    assert found.column == "grace_expires_at"
    assert found.keys == {"id": "v2", "grace": ANY}
    assert statuses(control) == {"v1": "ACTIVE"}


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-API-001")
def test_an_infinite_grace_is_refused(login: Callable[[str], Connect]) -> None:
    control = login("control")
    if control.info.server_version < 170000:
        pytest.skip("not run: before 17 no interval is infinite")
    for grace in ("interval 'infinity'", "interval '-infinity'"):
        found = refusal(control, rotate(grace=grace))
        assert_invariant(found, "INV-API-001", "22023", "policy_versions")
    assert statuses(control) == {"v1": "ACTIVE"}


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize(
    ("grace", "seconds"),
    [
        ("100 years -36525 days", 0),
        ("-100 years 36526 days", 86_400),
        ("100 years -36518 days", 7 * 86_400),
        ("1 year", 365.25 * 86_400),
        ("100 years", 36_525 * 86_400),
        ("0.000001 seconds", 0.000001),
    ],
)
def test_a_grace_lasts_the_seconds_it_was_judged_by(
    login: Callable[[str], Connect], grace: str, seconds: float, zone: str
) -> None:
    control = login("control")
    control.execute(f"SET TimeZone = '{zone}'")
    activate_policy(control)
    control.execute(rotate(grace=f"interval '{grace}'"))
    # Both are read from the clock within the one rotation.
    assert scalar(
        control,
        "SELECT extract(epoch FROM o.grace_expires_at) - extract(epoch FROM n.activated_at)"
        " BETWEEN %s::numeric - 60 AND %s::numeric"
        " FROM orchestration.policy_versions o, orchestration.policy_versions n"
        " WHERE o.id = 'v1' AND n.id = 'v2'",
        (seconds, seconds),
    )


@pytest.mark.invariant("INV-POL-005")
@pytest.mark.parametrize(
    ("history", "active"), [("", None), ("+v1 +v2", "v2")], ids=["none", "another"]
)
def test_rotation_from_another_version_than_expected_changes_nothing(
    login: Callable[[str], Connect], history: str, active: str | None
) -> None:
    control = login("control")
    live_through(history, control)
    before = statuses(control)
    found = refusal(control, rotate("v3", expected_active="'v1'"))
    assert_invariant(found, "INV-POL-005", "P7104", "policy_versions")
    assert found.column == "status"
    assert found.keys == {"id": "v3", "active": active, "expected_active": "v1"}
    assert statuses(control) == before


@pytest.mark.invariant("INV-POL-005")
def test_rotation_from_the_expected_version_takes_place(login: Callable[[str], Connect]) -> None:
    control = login("control")
    activate_policy(control)
    control.execute(rotate(expected_active="'v1'"))
    assert statuses(control) == {"v1": "GRACE", "v2": "ACTIVE"}


@pytest.mark.unchanged(after=V1_V2)
@pytest.mark.parametrize(
    ("statement", "sqlstate", "constraint"),
    [
        (rotate("v1"), "23505", "pk_policy_versions"),
        (rotate("v2"), "23505", "pk_policy_versions"),
        (rotate("v3", checksum="'short'"), "23514", "ck_policy_versions_checksum"),
        (rotate(""), "23514", "ck_policy_versions_id"),
    ],
)
def test_a_rotation_that_is_refused_leaves_all_versions_as_they_are(
    login: Callable[[str], Connect], statement: str, sqlstate: str, constraint: str
) -> None:
    control = login("control")
    found = refusal(control, statement)
    assert (found.sqlstate, found.constraint) == (sqlstate, constraint)
    assert statuses(control) == {"v1": "GRACE", "v2": "ACTIVE"}


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-POL-007")
def test_the_active_version_is_not_retired(login: Callable[[str], Connect]) -> None:
    control = login("control")
    with pytest.raises(psycopg.Error) as raised, control.transaction():
        control.execute("SELECT orchestration.retire_policy_version('v1')")
    found = Refusal.of(raised.value)
    assert_invariant(found, "INV-POL-007", "P7103", "policy_versions")
    assert (found.column, found.keys) == ("status", {"id": "v1"})


@pytest.mark.invariant("INV-POL-002")
@pytest.mark.parametrize("history", ["+v1 +v2 +v3", "+v1 +v2 -v1"], ids=["rotation", "owner"])
def test_what_a_rotation_or_another_login_retired_is_not_retired_again(
    owner: Connect, login: Callable[[str], Connect], history: str
) -> None:
    control = login("control")
    live_through(history, owner)
    found = refusal(control, "SELECT orchestration.retire_policy_version('v1')")
    assert_invariant(found, "INV-POL-002", "P7101", "policy_versions")
    assert found.keys == {"id": "v1", "from": "RETIRED", "to": "RETIRED"}


@pytest.mark.unchanged(after=V1)
@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.parametrize("id", ["'v9'", "NULL"])
@pytest.mark.parametrize("function", ["retire_policy_version", "require_policy_accepted"])
def test_an_unknown_version_is_not_accepted(
    login: Callable[[str], Connect], function: str, id: str
) -> None:
    control = login("control")
    found = refusal(control, f"SELECT orchestration.{function}({id})")
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")
    assert found.column == "id"
    assert found.keys == {"id": None if id == "NULL" else "v9"}


@pytest.mark.unchanged(after=V1_TO_V3)
@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.parametrize("role", ["ingest", "executor", "control"])
def test_active_and_grace_are_accepted_and_retired_is_not(
    owner: Connect, login: Callable[[str], Connect], role: str
) -> None:
    caller = login(role)
    for id in ("v2", "v3"):
        caller.execute("SELECT orchestration.require_policy_accepted(%s)", (id,))
    found = refusal(caller, "SELECT orchestration.require_policy_accepted('v1')")
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")


# The gate.


@pytest.mark.invariant("INV-ATT-008")
def test_every_change_leaves_its_mark_on_the_gate(owner: Connect) -> None:
    def changes() -> int:
        row = owner.execute("SELECT changes FROM orchestration.policy_gate").fetchone()
        assert row is not None
        return int(row[0])

    counted = [changes()]
    for step in ("+v1", "+v2", "-v1"):
        live_through(step, owner)
        counted.append(changes())
    assert counted == sorted(set(counted))


@pytest.mark.unchanged
@pytest.mark.invariant("INV-ATT-008")
def test_the_gate_has_one_row(owner: Connect) -> None:
    found = refusal(owner, "INSERT INTO orchestration.policy_gate DEFAULT VALUES")
    assert (found.sqlstate, found.constraint) == ("23505", "pk_policy_gate")
    found = refusal(owner, "INSERT INTO orchestration.policy_gate (singleton) VALUES (false)")
    assert (found.sqlstate, found.constraint) == ("23514", "ck_policy_gate_singleton")


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize(
    "statement",
    [
        rotate(),
        rotate(expected_active="'v9'"),
        "SELECT FROM orchestration.retire_policy_version('v1')",
    ],
)
def test_a_gate_without_its_row_stops_every_change(owner: Connect, statement: str) -> None:
    activate_policy(owner)
    drop(owner, "triggers/policy_gate__no_delete")
    owner.execute("DELETE FROM orchestration.policy_gate")
    found = refusal(owner, statement)
    assert_invariant(found, "INV-API-002", "P0002", "policy_gate")
    assert statuses(owner) == {"v1": "ACTIVE"}


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_gate_without_its_row_stops_the_writers_that_read_it(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    activate_policy(owner)
    drop(owner, "triggers/policy_gate__no_delete")
    owner.execute("DELETE FROM orchestration.policy_gate")
    ingest = login("ingest")
    ingest.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {isolation}")
    found = refusal(ingest, "SELECT orchestration.require_policy_accepted('v1')")
    assert_invariant(found, "INV-API-002", "P0002", "policy_gate")

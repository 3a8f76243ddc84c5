"""Tests of revocations and their gate: valid writes, defaults and results. `attacks` tests the
refusals."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import ANY

import psycopg
import pytest

from orchestration.vocabulary import CRLReason
from tests.invariants.attacks import base
from tests.invariants.attacks.base import LATER, copy, insert
from tests.invariants.attacks.revocation import (
    KEYS,
    MALFORMED,
    NEW,
    OLD,
    RECORDED,
    REVOCATION,
    TABLES,
    revocation,
)
from tests.support import (
    Connect,
    Refusal,
    activate_policy,
    assert_invariant,
    attempt,
    digest,
    drop,
    refusal,
    run,
    scalar,
)

FUNCTIONS = {"revoked_client_certs": "revoke_client_cert", "revoked_tokens": "revoke_token"}

each_table = pytest.mark.parametrize("table", TABLES)


def entered(table: str, hash: str = NEW, **changed: str) -> str:
    """INSERT of a whole row."""
    return insert(table, revocation(table, **{KEYS[table]: f"'{hash}'"} | changed))


def history(connection: Connect) -> None:
    """One credential of each kind is revoked already, and one caller has attested."""
    run(connection, REVOCATION.histories[""])


def attestation(id: str, attested_at: str) -> dict[str, str]:
    """The whole first row of a chain."""
    return {
        "id": id,
        "caller_identity": "caller",
        "chain_seq": "1",
        "idempotency_key": id,
        "payload_hash": digest(id),
        "policy_version_id": "v1",
        "attested_at": attested_at,
        "prev_hash": "",
        "record_hash": digest(id, "record"),
        "db_user": "forger",
        "xact_id": "1",
    }


# The order of judgement.


@pytest.mark.unchanged
@pytest.mark.invariant("INV-REV-003")
@each_table
def test_a_missing_hash_is_refused_as_no_hash(owner: Connect, table: str) -> None:
    found = refusal(
        owner, f"INSERT INTO orchestration.{table} (reason_code) VALUES ('unspecified')"
    )
    assert_invariant(found, "INV-REV-003", "P7201", table)
    assert (found.column, found.keys) == (
        KEYS[table],
        {"column": KEYS[table], "octets": None},
    )


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-REV-006")
@pytest.mark.parametrize(
    "again",
    [{}, {"expires_at": "'2021-01-01Z'"}, {"reason_code": "'superseded'"}, {"revoked_at": LATER}],
    ids=["the same", "with an expiry", "for another reason", "to come"],
)
@each_table
def test_an_insert_whose_hash_exists_is_left_to_the_primary_key(
    owner: Connect, table: str, again: dict[str, str]
) -> None:
    found = refusal(owner, entered(table, OLD, **again))
    assert (found.sqlstate, found.constraint, found.table) == ("23505", f"pk_{table}", table)


@pytest.mark.invariant("INV-REV-006")
@pytest.mark.parametrize("target", ["", "key"])
@each_table
def test_on_conflict_do_nothing_keeps_the_first_revocation(
    owner: Connect, table: str, target: str
) -> None:
    history(owner)
    rows = f"SELECT * FROM orchestration.{table}"
    before = owner.execute(rows).fetchall()
    at = f"({KEYS[table]}, revocation_no)" if target else ""
    insert = entered(table, OLD)
    assert attempt(owner, [f"{insert} ON CONFLICT {at} DO NOTHING"]) is None
    assert owner.execute(rows).fetchall() == before


@pytest.mark.invariant("INV-REV-002")
@each_table
def test_a_revocation_may_expire_in_the_moment_it_takes_effect(owner: Connect, table: str) -> None:
    insert = entered(table, expires_at="'2020-01-01Z'")
    assert attempt(owner, [insert]) is None


@pytest.mark.invariant("INV-REV-004")
@pytest.mark.parametrize("reason", CRLReason)
@each_table
def test_every_reason_of_the_vocabulary_is_accepted(
    owner: Connect, table: str, reason: CRLReason
) -> None:
    insert = entered(table, reason_code=f"'{reason}'")
    assert attempt(owner, [insert]) is None


@pytest.mark.unchanged
@pytest.mark.parametrize(
    ("column", "value", "sqlstate"),
    [
        ("revoked_by", "''", "23514"),
        ("revoked_by", "NULL", "23502"),
        ("reason_code", "NULL", "23502"),
    ],
)
@each_table
def test_a_missing_value_is_refused_by_its_column(
    owner: Connect, table: str, column: str, value: str, sqlstate: str
) -> None:
    values = {
        KEYS[table]: f"'{NEW}'",
        "reason_code": "'unspecified'",
        "revoked_by": "'x'",
    } | {column: value}
    found = refusal(
        owner,
        f"INSERT INTO orchestration.{table} ({', '.join(values)})"
        f" VALUES ({', '.join(values.values())})",
    )
    assert (found.sqlstate, found.table) == (sqlstate, table)
    if sqlstate == "23514":
        assert found.constraint == f"ck_{table}_{column}"
    else:
        assert found.column == column


# What the database sets.


@pytest.mark.invariant("INV-REV-005")
@each_table
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect, table: str) -> None:
    with owner.transaction():
        owner.execute(
            f"INSERT INTO orchestration.{table} ({KEYS[table]}, reason_code)"
            " VALUES (%s, 'unspecified')",
            (NEW,),
        )
        found = owner.execute(
            "SELECT revoked_at BETWEEN now() AND clock_timestamp(), recorded_at = revoked_at,"
            " expires_at, revoked_by = session_user, db_user = session_user,"
            f" xact_id = pg_current_xact_id()::text::bigint FROM orchestration.{table}"
        ).fetchone()
    assert found == (True, True, None, True, True, True)


FORGED = {
    "INSERT": lambda table: entered(table),
    "INSERT ON CONFLICT DO UPDATE": lambda table: (
        entered(table)
        + f" ON CONFLICT ({KEYS[table]}, revocation_no) DO UPDATE SET db_user = 'forger'"
    ),
    "MERGE": lambda table: base.inserts("", table, revocation(table))[" by MERGE"],
    "COPY": lambda table: copy(table, revocation(table)),
}


@pytest.mark.invariant("INV-REV-005")
@pytest.mark.parametrize("form", FORGED)
@each_table
def test_who_recorded_a_revocation_when_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Callable[[str], Connect], table: str, form: str
) -> None:
    owner.execute(
        "GRANT SELECT, INSERT, UPDATE ON orchestration.revoked_client_certs,"
        " orchestration.revoked_tokens TO symphony_executor"
    )
    stray = login("executor")
    before = scalar(owner, "SELECT clock_timestamp()")
    assert attempt(stray, [FORGED[form](table)]) is None
    found = owner.execute(
        f"SELECT db_user, xact_id = xmin::text::bigint, recorded_at >= %s, revoked_by,"
        f" revoked_at = '2020-01-01Z' FROM orchestration.{table}",
        (before,),
    ).fetchone()
    # revoked_by is the caller's claim, and a revoked_at in the past an import's right.
    assert found == (stray.info.user, True, True, "forger", True)


@pytest.mark.superuser
@pytest.mark.invariant("INV-REV-005")
@each_table
def test_in_replica_mode_values_arrive_as_they_are(superuser: Connect, table: str) -> None:
    superuser.execute("SET session_replication_role = replica")
    insert = entered(table)
    assert attempt(superuser, [insert]) is None
    found = superuser.execute(
        f"SELECT db_user, xact_id, recorded_at = '2020-01-01Z' FROM orchestration.{table}"
    ).fetchone()
    assert found == ("forger", 1, True)
    assert scalar(superuser, "SELECT changes FROM orchestration.revocation_gate") == 0


# The functions.


def revoke(
    table: str,
    hash: str = NEW,
    *,
    reason_code: str = "'unspecified'",
    revoked_by: str = "'ops'",
    expires_at: str = "NULL",
    revoked_at: str = "NULL",
) -> str:
    return (
        f"SELECT * FROM orchestration.{FUNCTIONS[table]}(p_{KEYS[table]} => '{hash}',"
        f" p_reason_code => {reason_code}, p_revoked_by => {revoked_by},"
        f" p_expires_at => {expires_at}, p_revoked_at => {revoked_at})"
    )


@pytest.mark.invariant("INV-REV-005")
@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("NULL", "revoked_at BETWEEN now() AND clock_timestamp()"),
        ("'2020-01-01Z'", "revoked_at = '2020-01-01Z'"),
        ("'0001-01-01Z'", "revoked_at = '0001-01-01Z'"),
        ("clock_timestamp()", "revoked_at BETWEEN now() AND clock_timestamp()"),
    ],
    ids=["left out", "past", "long past", "now"],
)
@each_table
def test_a_revocation_takes_effect_at_the_clock_or_at_a_past_time(
    login: Callable[[str], Connect], table: str, moment: str, expected: str
) -> None:
    control = login("control")
    with control.transaction():
        control.execute(revoke(table, revoked_at=moment))
        found = control.execute(
            f"SELECT {expected}, recorded_at BETWEEN now() AND clock_timestamp(),"
            f" db_user = session_user FROM orchestration.{table}"
        ).fetchone()
    assert found == (True, True, True)


@pytest.mark.unchanged
@pytest.mark.invariant("INV-REV-005")
@pytest.mark.parametrize(
    "moment", [LATER, "clock_timestamp() + interval '1 minute'", "'infinity'", "'-infinity'"]
)
@each_table
def test_a_revocation_to_come_is_refused(
    login: Callable[[str], Connect], table: str, moment: str
) -> None:
    control = login("control")
    found = refusal(control, revoke(table, revoked_at=moment))
    assert_invariant(found, "INV-REV-005", "P7201", table)
    assert found.column == "revoked_at"
    assert found.keys == {"revocation_no": 1, "revoked_at": ANY}
    assert scalar(control, f"SELECT count(*) FROM orchestration.{table}") == 0


@pytest.mark.unchanged
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    "times",
    [
        {"revoked_at": "'4000-01-01 BC'"},
        {"revoked_at": "'0001-12-31 23:59:59Z BC'"},
        {"expires_at": "'9999-01-01Z'"},
        {"expires_at": "'20000-01-01Z'"},
        {"expires_at": "'infinity'"},
    ],
    ids=lambda times: ", ".join(times.values()),
)
@each_table
def test_a_time_that_not_every_calendar_has_is_refused(
    login: Callable[[str], Connect], table: str, times: dict[str, str], zone: str
) -> None:
    control = login("control")
    control.execute(f"SET TimeZone = '{zone}'")
    found = refusal(control, revoke(table, **times))
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{table}_years")
    assert control.execute(f"SELECT FROM orchestration.{table}").rowcount == 0


@pytest.mark.unchanged
@pytest.mark.superuser
@each_table
def test_a_time_of_recording_that_not_every_calendar_has_is_refused_in_replica_mode(
    superuser: Connect, table: str
) -> None:
    superuser.execute("SET session_replication_role = replica")
    found = attempt(superuser, [copy(table, revocation(table, recorded_at="4000-01-01Z BC"))])
    assert found is not None
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{table}_years")


@pytest.mark.unchanged
@pytest.mark.invariant("INV-REV-003")
@pytest.mark.parametrize(
    "hash", [hash for hash in MALFORMED.values() if "\\" not in hash and "\n" not in hash]
)
@each_table
def test_a_function_takes_no_malformed_hash(
    login: Callable[[str], Connect], table: str, hash: str
) -> None:
    found = refusal(login("control"), revoke(table, hash))
    assert_invariant(found, "INV-REV-003", "P7201", table)
    assert found.column == KEYS[table]


@pytest.mark.invariant("INV-REV-006")
@each_table
def test_a_revocation_without_an_end_answers_every_later_one(
    login: Callable[[str], Connect], table: str
) -> None:
    control = login("control")
    first = control.execute(revoke(table, reason_code="'keyCompromise'")).fetchall()
    for again in (
        revoke(table),
        revoke(table, reason_code="'keyCompromise'"),
        revoke(table, reason_code="'certificateHold'", expires_at=LATER),
        revoke(table, revoked_by="'somebody else'"),
        revoke(table, revoked_at="'2020-01-01Z'"),
        revoke(table, revoked_at="'2020-01-01Z'", expires_at="'2020-01-02Z'"),
    ):
        assert control.execute(again).fetchall() == first
    assert control.execute(f"SELECT * FROM orchestration.{table}").fetchall() == first
    assert len(first) == 1


def numbers(connection: Connect, table: str) -> list[int]:
    return [
        number
        for (number,) in connection.execute(
            f"SELECT revocation_no FROM orchestration.{table} WHERE {KEYS[table]} = %s ORDER BY 1",
            (NEW,),
        )
    ]


def require_new(table: str) -> str:
    return require(cert=NEW) if table == "revoked_client_certs" else require(token=NEW)


@pytest.mark.invariant("INV-REV-006", "INV-ATT-009")
@each_table
def test_a_credential_is_revoked_again_after_its_hold_has_expired(
    login: Callable[[str], Connect], table: str
) -> None:
    control, ingest = login("control"), login("ingest")
    hold = revoke(
        table,
        reason_code="'certificateHold'",
        revoked_at="'2020-01-01Z'",
        expires_at="'2020-01-02Z'",
    )
    (held,) = control.execute(hold).fetchall()
    assert attempt(ingest, [require_new(table)]) is None

    (revoked,) = control.execute(revoke(table, reason_code="'keyCompromise'")).fetchall()
    assert (held[1], revoked[1], revoked[5]) == (1, 2, "keyCompromise")
    assert_invariant(refusal(ingest, require_new(table)), "INV-ATT-009", "P7202", table)
    # Both are answered with what is recorded.
    assert control.execute(revoke(table, reason_code="'keyCompromise'")).fetchall() == [revoked]
    assert control.execute(hold).fetchall() == [revoked]
    assert numbers(control, table) == [1, 2]


@pytest.mark.invariant("INV-REV-006")
@each_table
def test_a_hold_in_force_answers_a_shorter_one_and_is_joined_by_a_longer_one(
    login: Callable[[str], Connect], table: str
) -> None:
    control = login("control")
    (hold,) = control.execute(revoke(table, expires_at="'2100-01-01Z'")).fetchall()
    for again in (
        revoke(table, expires_at="'2100-01-01Z'"),
        revoke(table, expires_at="'2099-12-31Z'"),
        revoke(table, expires_at="'2100-01-01Z'", revoked_at="'2020-01-01Z'"),
    ):
        assert control.execute(again).fetchall() == [hold]
    (longer,) = control.execute(revoke(table, expires_at="'2100-01-02Z'")).fetchall()
    (permanent,) = control.execute(revoke(table)).fetchall()
    assert [hold[1], longer[1], permanent[1]] == numbers(control, table) == [1, 2, 3]
    assert control.execute(revoke(table, expires_at="'2100-01-01Z'")).fetchall() == [permanent]


@pytest.mark.invariant("INV-REV-006")
@each_table
def test_an_import_that_is_repeated_is_answered_and_one_of_another_period_joins(
    login: Callable[[str], Connect], table: str
) -> None:
    control = login("control")
    period = {"revoked_at": "'2020-02-01Z'", "expires_at": "'2020-03-01Z'"}
    (first,) = control.execute(revoke(table, **period)).fetchall()
    assert control.execute(revoke(table, **period)).fetchall() == [first]
    # The act that set the end, repeated after the end: it would be over before it began.
    assert control.execute(revoke(table, expires_at="'2020-03-01Z'")).fetchall() == [first]
    earlier = {"revoked_at": "'2020-01-01Z'", "expires_at": "'2020-01-02Z'"}
    (joined,) = control.execute(revoke(table, **earlier)).fetchall()
    assert (first[1], joined[1]) == (1, 2)


@pytest.mark.invariant("INV-REV-006")
@each_table
def test_an_owner_may_leave_the_number_out(owner: Connect, table: str) -> None:
    for _ in range(2):
        owner.execute(
            f"INSERT INTO orchestration.{table} ({KEYS[table]}, reason_code)"
            " VALUES (%s, 'unspecified'), (%s, 'unspecified')",
            (NEW, NEW),
        )
    assert numbers(owner, table) == [1, 2, 3, 4]
    # Two acts of two rows each, and an entry tells them apart.
    assert scalar(owner, "SELECT ok FROM orchestration.verify_audit_log()")
    keys = "SELECT jsonb_object_keys(after) FROM orchestration.audit_log WHERE action = 'REVOKE'"
    assert {key for (key,) in owner.execute(keys)} == {f"{NEW}/{number}" for number in range(1, 5)}


@pytest.mark.invariant("INV-REV-006")
@each_table
def test_revoking_twice_in_one_transaction_keeps_the_first_record(
    login: Callable[[str], Connect], table: str
) -> None:
    control = login("control")
    with control.transaction():
        first = control.execute(revoke(table)).fetchall()
        assert control.execute(revoke(table, revoked_by="'else'")).fetchall() == first


def test_who_revoked_is_the_login_where_nobody_is_named(login: Callable[[str], Connect]) -> None:
    control = login("control")
    for table in TABLES:
        found = scalar(
            control,
            f"SELECT revoked_by FROM orchestration.{FUNCTIONS[table]}"
            f"(p_{KEYS[table]} => %s, p_reason_code => 'unspecified')",
            (NEW,),
        )
        assert found == control.info.user


def require(cert: str | None = None, token: str | None = None) -> str:
    def literal(value: str | None) -> str:
        return "NULL" if value is None else f"'{value}'"

    return (
        "SELECT orchestration.require_credential_not_revoked("
        f"p_client_cert_fingerprint_sha256 => {literal(cert)}, p_token_hash => {literal(token)})"
    )


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-009")
@pytest.mark.parametrize(
    ("cert", "token", "table"),
    [
        (OLD, None, "revoked_client_certs"),
        (OLD, NEW, "revoked_client_certs"),
        (None, OLD, "revoked_tokens"),
        (NEW, OLD, "revoked_tokens"),
        (OLD, OLD, "revoked_client_certs"),
    ],
)
@pytest.mark.parametrize("role", ["ingest", "executor", "control"])
def test_a_refused_credential_names_the_table_that_revokes_it(
    owner: Connect,
    login: Callable[[str], Connect],
    role: str,
    cert: str | None,
    token: str | None,
    table: str,
) -> None:
    found = refusal(login(role), require(cert, token))
    assert_invariant(found, "INV-ATT-009", "P7202", table)
    # Not the hash: the executor may not read it.
    credential = "CLIENT_CERT" if table == "revoked_client_certs" else "TOKEN"
    assert (found.column, found.keys) == (KEYS[table], {"credential": credential})


@pytest.mark.invariant("INV-REV-003")
@pytest.mark.parametrize(
    "hash", [hash for hash in MALFORMED.values() if "\\" not in hash and "\n" not in hash]
)
@pytest.mark.parametrize("credential", ["cert", "token"])
def test_a_malformed_hash_is_not_taken_for_one_that_is_not_revoked(
    login: Callable[[str], Connect], credential: str, hash: str
) -> None:
    found = refusal(login("ingest"), require(**{credential: hash}))
    assert_invariant(found, "INV-REV-003", "P7201", "revoked_tokens")


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-009")
def test_what_is_not_revoked_passes(owner: Connect, login: Callable[[str], Connect]) -> None:
    ingest = login("ingest")
    for cert, token in ((None, None), (NEW, None), (None, NEW), (NEW, NEW)):
        assert attempt(ingest, [require(cert, token)]) is None


@pytest.mark.invariant("INV-ATT-009")
def test_a_certificate_is_not_judged_by_the_revoked_tokens(
    login: Callable[[str], Connect],
) -> None:
    login("control").execute(revoke("revoked_tokens"))
    assert attempt(login("ingest"), [require(cert=NEW)]) is None


@pytest.mark.invariant("INV-ATT-009")
@pytest.mark.parametrize(
    ("expires_at", "refused"),
    [
        ("'2020-01-01Z'", False),
        ("clock_timestamp()", False),
        (LATER, True),
        ("'9998-12-31 23:59:59.999999Z'", True),
        ("NULL", True),
    ],
)
@each_table
def test_a_revocation_counts_until_it_expires(
    login: Callable[[str], Connect], table: str, expires_at: str, refused: bool
) -> None:
    login("control").execute(revoke(table, revoked_at="'2020-01-01Z'", expires_at=expires_at))
    found = attempt(login("ingest"), [require_new(table)])
    assert (found is not None) is refused
    if found is not None:
        assert_invariant(found, "INV-ATT-009", "P7202", table)


# The gate.


@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_every_revocation_leaves_its_mark_on_the_gate(owner: Connect, table: str) -> None:
    changes = "SELECT changes FROM orchestration.revocation_gate"
    counted = [scalar(owner, changes)]
    for number in range(3):
        owner.execute(revoke(table, digest(number)))
        counted.append(scalar(owner, changes))
    assert counted == sorted(set(counted))
    assert scalar(
        owner,
        "SELECT changed_at BETWEEN now() - interval '1 hour' AND now() FROM"
        " orchestration.revocation_gate",
    )


@pytest.mark.unchanged
@pytest.mark.invariant("INV-ATT-009")
def test_the_gate_has_one_row(owner: Connect) -> None:
    found = refusal(owner, "INSERT INTO orchestration.revocation_gate DEFAULT VALUES")
    assert (found.sqlstate, found.constraint) == ("23505", "pk_revocation_gate")
    found = refusal(owner, "INSERT INTO orchestration.revocation_gate (singleton) VALUES (false)")
    assert (found.sqlstate, found.constraint) == ("23514", "ck_revocation_gate_singleton")


def lose_the_gate(owner: Connect) -> None:
    drop(owner, "triggers/revocation_gate__no_delete")
    owner.execute("DELETE FROM orchestration.revocation_gate")


@pytest.mark.invariant("INV-API-002")
@each_table
def test_a_gate_without_its_row_stops_every_revocation(owner: Connect, table: str) -> None:
    lose_the_gate(owner)
    for statement in (revoke(table), entered(table)):
        found = refusal(owner, statement)
        assert_invariant(found, "INV-API-002", "P0002", "revocation_gate")
        assert found.keys == {}
    assert scalar(owner, f"SELECT count(*) FROM orchestration.{table}") == 0


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_gate_without_its_row_stops_the_writers_that_read_it(
    owner: Connect, login: Callable[[str], Connect], isolation: str
) -> None:
    lose_the_gate(owner)
    ingest = login("ingest")
    ingest.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {isolation}")
    found = refusal(ingest, require(token=NEW))
    assert_invariant(found, "INV-API-002", "P0002", "revocation_gate")


@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_the_owners_own_revocation_is_gated_by_the_trigger_and_by_nothing_else(
    owner: Connect, login: Callable[[str], Connect], table: str
) -> None:
    insert = entered(table)
    ingest = login("ingest")
    ingest.execute("BEGIN")
    ingest.execute(require(cert=NEW, token=NEW))
    owner.execute("SET lock_timeout = '50ms'")
    assert refusal(owner, insert).sqlstate == "55P03"
    ingest.execute("COMMIT")

    drop(owner, f"triggers/{table}__gate")
    ingest.execute("BEGIN")
    ingest.execute(require(cert=NEW, token=NEW))
    assert attempt(owner, [insert]) is None
    # Judged before the revocation, committed after it: what the gate is there to exclude.
    ingest.execute("COMMIT")
    assert scalar(owner, f"SELECT count(*) FROM orchestration.{table}") == 1


@pytest.mark.unchanged
@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-009")
@each_table
def test_in_replica_mode_a_revocation_waits_for_writers_too(
    superuser: Connect, login: Callable[[str], Connect], table: str
) -> None:
    ingest = login("ingest")
    ingest.execute("BEGIN")
    ingest.execute(require(cert=NEW, token=NEW))
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("SET lock_timeout = '50ms'")
    found = refusal(superuser, entered(table))
    assert found.sqlstate == "55P03"


@pytest.mark.unchanged
@pytest.mark.invariant("INV-ATT-009")
def test_the_requirement_holds_the_gate_until_commit_and_not_longer(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    ingest = login("ingest")
    owner.execute("SET lock_timeout = '50ms'")
    lock = "LOCK TABLE orchestration.revocation_gate IN EXCLUSIVE MODE"
    with ingest.transaction():
        ingest.execute(require())
        assert refusal(owner, lock).sqlstate == "55P03"
    assert attempt(owner, [lock]) is None


@pytest.mark.unchanged
def test_a_refused_revocation_leaves_the_gate_as_it_was(owner: Connect) -> None:
    with pytest.raises(psycopg.Error) as raised:
        owner.execute(revoke("revoked_tokens", "short"))
    assert Refusal.of(raised.value).sqlstate == "P7201"
    assert scalar(owner, "SELECT changes FROM orchestration.revocation_gate") == 0


# A clock that was set back.


def store_ahead(owner: Connect, table: str, statement: str, parameters: tuple[Any, ...]) -> None:
    """Store what its guard would refuse as in the future: as if the clock had been set back."""
    owner.execute(f"ALTER TABLE orchestration.{table} DISABLE TRIGGER guard")
    owner.execute(statement, parameters)
    owner.execute(f"ALTER TABLE orchestration.{table} ENABLE ALWAYS TRIGGER guard")


@pytest.mark.invariant("INV-REV-007", "INV-ATT-009")
@each_table
def test_a_stored_revocation_is_in_force_whatever_the_clock_says(
    owner: Connect, login: Callable[[str], Connect], table: str
) -> None:
    store_ahead(owner, table, entered(table, revoked_at=LATER), ())
    assert_invariant(refusal(login("ingest"), require_new(table)), "INV-ATT-009", "P7202", table)
    control = login("control")
    assert (
        control.execute(revoke(table)).fetchall()
        == control.execute(f"SELECT * FROM orchestration.{table}").fetchall()
    )


def attest(caller: str, key: str, policy: str) -> str:
    item = {
        "caller_identity": caller,
        "idempotency_key": key,
        "payload_hash": digest(key),
        "policy_version_id": policy,
    }
    return (
        "SELECT attested_at FROM orchestration.append_attestations("
        f"jsonb_build_array('{json.dumps(item)}'::jsonb))"
    )


@pytest.mark.invariant("INV-REV-007", "INV-ATT-011")
def test_an_attestation_follows_its_caller_and_an_expired_grace_stays_expired(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    ingest = login("ingest")
    activate_policy(owner, "v1")
    activate_policy(owner, "v2", "1 hour")
    grace = scalar(
        owner, "SELECT grace_expires_at FROM orchestration.policy_versions WHERE id = 'v1'"
    )
    whole = attestation(RECORDED, str(grace))
    store_ahead(
        owner,
        "ingress_attestations",
        f"INSERT INTO orchestration.ingress_attestations ({', '.join(whole)})"
        f" VALUES ({', '.join(['%s'] * len(whole))})",
        tuple(whole.values()),
    )
    # This caller has seen the grace expire; another has not.
    found = refusal(ingest, attest("caller", "k1", "v1"))
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")
    assert scalar(ingest, attest("another", "k1", "v1")) < grace

    for number in range(2):
        assert scalar(ingest, attest("caller", f"k{number}", "v2")) == grace
    insert = (
        "INSERT INTO orchestration.ingress_attestations"
        " (caller_identity, idempotency_key, payload_hash, policy_version_id, attested_at)"
        " VALUES ('caller', %s, %s, 'v2', %s)"
    )
    later = grace + timedelta(microseconds=1)
    found = refusal(owner, insert, ("later", digest("later"), later))
    assert_invariant(found, "INV-ATT-011", "P7301", "ingress_attestations")
    owner.execute(insert, ("equal", digest("equal"), grace))
    now = scalar(owner, "SELECT clock_timestamp()")
    found = refusal(owner, insert, ("now", digest("now"), now))
    assert_invariant(found, "INV-REV-007", "P7301", "ingress_attestations")

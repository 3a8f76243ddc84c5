"""INV-REV and the revocation gate of INV-ATT-009 by raw SQL: the triggers and constraints speak,
not the privileges.

One table of attacks serves four proofs: the owner is refused, a login with a stray grant is refused
alike, replica mode silences nothing, and without the object that keeps a rule its attack succeeds.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import ANY

import psycopg
import pytest

from orchestration import invariants
from orchestration.vocabulary import CRLReason
from tests.invariants.conftest import StageOf
from tests.support import (
    Attack,
    Connect,
    Refusal,
    activate_policy,
    assert_invariant,
    attempt,
    copy,
    deletes,
    digest,
    drop,
    inserts,
    refusal,
    scalar,
    truncates,
)

KEYS = {"revoked_client_certs": "cert_fingerprint_sha256", "revoked_tokens": "token_hash"}
FUNCTIONS = {"revoked_client_certs": "revoke_client_cert", "revoked_tokens": "revoke_token"}
TABLES = tuple(KEYS)

OLD = digest("revoked before")
NEW = digest("revoked in the attack")
LATER = "clock_timestamp() + interval '10 years'"

each_table = pytest.mark.parametrize("table", TABLES)


def columns(table: str) -> tuple[str, ...]:
    return (
        *(KEYS[table], "revocation_no"),
        *("revoked_at", "recorded_at", "expires_at", "reason_code", "revoked_by"),
        *("db_user", "xact_id"),
    )


def row(
    *,
    hash: str = NEW,
    revocation_no: int = 1,
    revoked_at: str = "'2020-01-01Z'",
    expires_at: str = "NULL",
    reason_code: str = "unspecified",
) -> str:
    """A SELECT of one whole row: nothing of it is left to a trigger."""
    key = hash if "(" in hash else f"'{hash}'"
    return (
        f"SELECT {key}, {revocation_no}, CAST({revoked_at} AS timestamptz),"
        f" CAST('2020-01-01Z' AS timestamptz), CAST({expires_at} AS timestamptz),"
        f" '{reason_code}', 'forger', 'forger', CAST(1 AS bigint)"
    )


def copied(table: str, **changed: str | None) -> str:
    whole: dict[str, str | None] = {
        KEYS[table]: NEW,
        "revocation_no": "1",
        "revoked_at": "2020-01-01Z",
        "recorded_at": "2020-01-01Z",
        "expires_at": None,
        "reason_code": "unspecified",
        "revoked_by": "forger",
        "db_user": "forger",
        "xact_id": "1",
    }
    return copy(table, whole | changed)


def updates(table: str, change: str) -> dict[str, str]:
    """Every way to change a row that is there."""
    key = KEYS[table]
    update = f"UPDATE orchestration.{table} SET {change} WHERE {key} = '{OLD}'"
    return {
        "UPDATE": update,
        "INSERT ON CONFLICT DO UPDATE": (
            f"INSERT INTO orchestration.{table} ({', '.join(columns(table))}) {row(hash=OLD)}"
            f" ON CONFLICT ({key}, revocation_no) DO UPDATE SET {change}"
        ),
        "MERGE UPDATE": (
            f"MERGE INTO orchestration.{table} USING (SELECT) AS s ON {key} = '{OLD}'"
            f" WHEN MATCHED THEN UPDATE SET {change}"
        ),
        "UPDATE in a CTE": f"WITH u AS ({update} RETURNING 1) SELECT * FROM u",
    }


MALFORMED = {
    "an empty hash": "",
    "a short hash": "0" * 63,
    "a long hash": "0" * 65,
    "a hash in upper case": "A" * 64,
    "a hash of other letters": "g" * 64,
    "a hash with a prefix": "\\x" + "0" * 62,
    "a credential in the place of its hash": "secret",
    "a hash in other digits": "٣" * 64,
    "a hash in other digits, of 64 octets": "٣" * 32,
}


def attacks_on(table: str) -> Iterator[Attack]:
    key = KEYS[table]
    every = columns(table)
    guard = f"triggers/{table}__guard"

    append_only = Attack(
        "",
        "INV-REV-001",
        "P0001",
        table,
        (),
        {"revocation_no": 1, "revoked_at": ANY},
        (f"triggers/{table}__append_only",),
    )
    for column, value in {
        "revoked_at": "revoked_at + interval '1 day'",
        "expires_at": "clock_timestamp()",
        "reason_code": "'superseded'",
        "revoked_by": "'forged'",
        "recorded_at": "'2020-01-01Z'",
        "db_user": "'forged'",
        "xact_id": "1",
        "revocation_no": "2",
        key: f"'{NEW}'",
    }.items():
        yield from replace(append_only, name=f"a changed {column} of {table}").in_forms(
            {"UPDATE": f"UPDATE orchestration.{table} SET {column} = {value}"}
        )
    yield from replace(append_only, name=f"an ended revocation in {table}").in_forms(
        updates(table, "expires_at = clock_timestamp()")
    )
    yield from replace(append_only, name=f"an update of {table} that changes nothing").in_forms(
        {"UPDATE": f"UPDATE orchestration.{table} SET reason_code = reason_code"}
    )
    yield from replace(append_only, name=f"removal from {table}").in_forms(
        deletes(table, f"{key} = '{OLD}'")
    )
    yield from replace(
        append_only,
        name=f"removal of all of {table}",
        detail={},
        without=(f"triggers/{table}__no_truncate",),
    ).in_forms(truncates(table))

    expiry = Attack(
        f"an expiry in {table} before the revocation",
        "INV-REV-002",
        "23514",
        table,
        (),
        None,
        (f"constraints/ck_{table}_expiry",),
        constraint=f"ck_{table}_expiry",
    )
    yield from expiry.in_forms(
        inserts(table, every, row(expires_at="'2020-01-01Z'::timestamptz - interval '1 us'"))
    )
    yield from expiry.in_forms({"COPY": copied(table, expires_at="2019-12-31Z")})

    malformed = Attack("", "INV-REV-003", "P7201", table, (), {}, (guard,), column=key)
    for name, hash in MALFORMED.items():
        yield from replace(
            malformed,
            name=f"{name} in {table}",
            detail={"column": key, "octets": len(hash.encode())},
        ).in_forms({"INSERT": inserts(table, every, row(hash=hash))["INSERT"]})
    yield from replace(
        malformed, name=f"a hash and a line feed in {table}", detail={"column": key, "octets": 64}
    ).in_forms(
        {"INSERT": inserts(table, every, row(hash="(repeat('0', 63) || chr(10))"))["INSERT"]}
    )
    short = replace(malformed, name=f"half a hash in {table}", detail={"column": key, "octets": 32})
    yield from short.in_forms(inserts(table, every, row(hash="0" * 32)))
    yield from short.in_forms(
        {
            "COPY": copied(table, **{key: "0" * 32}),
            "INSERT ON CONFLICT DO NOTHING": (
                f"INSERT INTO orchestration.{table} ({', '.join(every)}) {row(hash='0' * 32)}"
                " ON CONFLICT DO NOTHING"
            ),
        }
    )

    reason = Attack(
        "",
        "INV-REV-004",
        "23514",
        table,
        (),
        None,
        (f"constraints/ck_{table}_reason_code",),
        constraint=f"ck_{table}_reason_code",
    )
    for code in ("removeFromCRL", "", "KeyCompromise", "keyCompromise ", "1"):
        yield from replace(reason, name=f"the reason {code!r} in {table}").in_forms(
            {"INSERT": inserts(table, every, row(reason_code=code))["INSERT"]}
        )
    yield from replace(reason, name=f"an unknown reason in {table}").in_forms(
        inserts(table, every, row(reason_code="lost"))
    )
    yield from replace(reason, name=f"an unknown reason in {table}").in_forms(
        {"COPY": copied(table, reason_code="lost")}
    )

    future = Attack(
        "",
        "INV-REV-005",
        "P7201",
        table,
        (),
        {"revocation_no": 1, "revoked_at": ANY},
        (guard,),
        column="revoked_at",
    )
    yield from replace(future, name=f"a revoked_at to come in {table}").in_forms(
        inserts(table, every, row(revoked_at=LATER))
    )
    for moment in ("infinity", "-infinity"):
        yield from replace(
            future,
            name=f"a revoked_at of {moment} in {table}",
            detail={"revocation_no": 1, "revoked_at": moment},
            without=(guard, f"constraints/ck_{table}_years"),
        ).in_forms({"COPY": copied(table, revoked_at=moment)})

    twice = Attack(
        f"a second revocation in {table}",
        "INV-REV-006",
        "23505",
        table,
        (),
        None,
        (f"constraints/pk_{table}",),
        constraint=f"pk_{table}",
    )
    yield from twice.in_forms(inserts(table, every, row(hash=OLD)))
    yield from twice.in_forms({"COPY": copied(table, **{key: OLD})})
    yield from replace(twice, name=f"a third revocation in {table}").in_forms(
        {
            "INSERT of two rows": (
                f"INSERT INTO orchestration.{table} ({', '.join(every)}) {row()} UNION ALL {row()}"
            )
        }
    )
    gap = Attack(
        "",
        "INV-REV-006",
        "P7201",
        table,
        (),
        {"revocation_no": 3, "expected": 2},
        (guard,),
        column="revocation_no",
    )
    yield from replace(gap, name=f"a gap in the revocations of one credential in {table}").in_forms(
        inserts(table, every, row(hash=OLD, revocation_no=3))
        | {"COPY": copied(table, **{key: OLD}, revocation_no="3")}
    )
    yield from replace(
        gap,
        name=f"a first revocation without number 1 in {table}",
        detail={"revocation_no": 0, "expected": 1},
        without=(guard, f"constraints/ck_{table}_revocation_no"),
    ).in_forms({"INSERT": inserts(table, every, row(revocation_no=0))["INSERT"]})


GATE_STAYS = Attack(
    "removal of the gate",
    "INV-ATT-009",
    "P0001",
    "revocation_gate",
    (),
    {},
    ("triggers/revocation_gate__no_delete",),
)

RECORDED, EARLIER = (str(uuid.UUID(int=number)) for number in (1, 2))
"""An attestation of a caller, and one that would join the caller's chain before it."""


def attestation(id: str, chain_seq: int, attested_at: str) -> dict[str, str | None]:
    """One whole row of a chain: nothing of it is left to a trigger."""
    return {
        "id": id,
        "caller_identity": "caller",
        "chain_seq": str(chain_seq),
        "idempotency_key": id,
        "payload_hash": digest(id),
        "policy_version_id": "v1",
        "attested_at": attested_at,
        "prev_hash": "" if chain_seq == 1 else digest("the record before"),
        "record_hash": digest(id, "record"),
        "db_user": "forger",
        "xact_id": "1",
    }


BACK_IN_TIME = Attack(
    "an attestation before the caller's newest one",
    "INV-REV-007",
    "P7301",
    "ingress_attestations",
    (),
    {
        "caller_identity": "caller",
        "idempotency_key": EARLIER,
        "attested_at": ANY,
        "newest": ANY,
    },
    ("triggers/ingress_attestations__guard",),
    column="attested_at",
)


def attestations_back_in_time() -> Iterator[Attack]:
    whole = attestation(EARLIER, 2, "2019-12-31T23:59:59.999999Z") | {"prev_hash": None}
    types = {"id": "uuid", "chain_seq": "bigint", "attested_at": "timestamptz", "xact_id": "bigint"}
    last = f"(SELECT record_hash FROM orchestration.ingress_attestations WHERE id = '{RECORDED}')"
    select = "SELECT " + ", ".join(
        last if value is None else f"CAST('{value}' AS {types.get(column, 'text')})"
        for column, value in whole.items()
    )
    yield from BACK_IN_TIME.in_forms(inserts("ingress_attestations", tuple(whole), select))


ATTACKS = (
    *attestations_back_in_time(),
    *attacks_on("revoked_client_certs"),
    *attacks_on("revoked_tokens"),
    *GATE_STAYS.in_forms(deletes("revocation_gate", "singleton")),
    *replace(GATE_STAYS, without=("triggers/revocation_gate__no_truncate",)).in_forms(
        truncates("revocation_gate")
    ),
    *replace(
        GATE_STAYS,
        name="removal of the gate and of all revocations",
        without=(
            "triggers/revocation_gate__no_truncate",
            "triggers/revoked_client_certs__no_truncate",
            "triggers/revoked_tokens__no_truncate",
        ),
    ).in_forms(truncates("revocation_gate", *TABLES)),
)

every_attack = pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, id=str(attack), marks=pytest.mark.invariant(attack.invariant))
        for attack in ATTACKS
    ],
)


def history(connection: Connect) -> None:
    """One credential of each kind is revoked already, and one caller has attested."""
    activate_policy(connection)
    connection.execute(
        "INSERT INTO orchestration.ingress_attestations"
        " (id, caller_identity, idempotency_key, payload_hash, policy_version_id, attested_at)"
        " VALUES (%s, 'caller', %s, %s, 'v1', '2020-01-01Z')",
        (RECORDED, RECORDED, digest(RECORDED)),
    )
    for table in TABLES:
        connection.execute(
            f"INSERT INTO orchestration.{table} ({KEYS[table]}, reason_code)"
            " VALUES (%s, 'keyCompromise')",
            (OLD,),
        )


def picture(connection: Connect) -> list[Any]:
    return [
        connection.execute(f"SELECT * FROM orchestration.{table} ORDER BY 1").fetchall()
        for table in (*TABLES, "revocation_gate", "ingress_attestations")
    ]


STRAY = (
    "executor",
    (
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON orchestration.revoked_client_certs,"
        " orchestration.revoked_tokens, orchestration.revocation_gate,"
        " orchestration.ingress_attestations TO symphony_executor",
    ),
)


@every_attack
def test_an_attack_is_refused_until_the_object_that_keeps_the_rule_is_gone(
    stage_of: StageOf, attack: Attack
) -> None:
    stage_of(history, picture, STRAY).prove(attack)


@pytest.mark.superuser
@every_attack
def test_replica_mode_silences_no_refusal(stage_of: StageOf, attack: Attack) -> None:
    stage_of(history, picture, STRAY).prove_in_replica_mode(attack)


@pytest.mark.parametrize("entry", invariants.REVOCATION, ids=lambda entry: entry.id)
def test_every_object_that_keeps_a_rule_is_attacked(entry: invariants.Invariant) -> None:
    named = {path for path in entry.enforced_by if not path.startswith(("functions/", "views/"))}
    attacked = {
        path for attack in ATTACKS if attack.invariant == entry.id for path in attack.without
    }
    assert named
    assert named <= attacked


@pytest.mark.invariant(
    "INV-REV-001",
    "INV-REV-002",
    "INV-REV-003",
    "INV-REV-004",
    "INV-REV-005",
    "INV-REV-006",
    "INV-ATT-009",
)
@pytest.mark.parametrize("role", ["ingest", "executor", "control", "readonly", "auditor"])
@each_table
def test_a_runtime_role_has_no_write_at_all(
    owner: Connect, login: Callable[[str], Connect], role: str, table: str
) -> None:
    history(owner)
    caller = login(role)
    for statement in (
        f"UPDATE orchestration.{table} SET reason_code = 'superseded'",
        f"DELETE FROM orchestration.{table}",
        f"TRUNCATE orchestration.{table}",
        inserts(table, columns(table), row())["INSERT"],
        "DELETE FROM orchestration.revocation_gate",
        "UPDATE orchestration.revocation_gate SET changes = changes",
    ):
        assert refusal(caller, statement).sqlstate == "42501"


# The order of judgement.


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


@pytest.mark.invariant("INV-REV-006")
@pytest.mark.parametrize(
    "again",
    [{}, {"expires_at": "'2021-01-01Z'"}, {"reason_code": "superseded"}, {"revoked_at": LATER}],
    ids=["the same", "with an expiry", "for another reason", "to come"],
)
@each_table
def test_an_insert_whose_hash_exists_is_left_to_the_primary_key(
    owner: Connect, table: str, again: dict[str, str]
) -> None:
    history(owner)
    found = refusal(owner, inserts(table, columns(table), row(hash=OLD, **again))["INSERT"])
    assert (found.sqlstate, found.constraint, found.table) == ("23505", f"pk_{table}", table)


@pytest.mark.invariant("INV-REV-006")
@pytest.mark.parametrize("target", ["", "key"])
@each_table
def test_on_conflict_do_nothing_keeps_the_first_revocation(
    owner: Connect, table: str, target: str
) -> None:
    history(owner)
    before = picture(owner)[TABLES.index(table)]
    at = f"({KEYS[table]}, revocation_no)" if target else ""
    insert = inserts(table, columns(table), row(hash=OLD))["INSERT"]
    assert attempt(owner, [f"{insert} ON CONFLICT {at} DO NOTHING"]) is None
    assert picture(owner)[TABLES.index(table)] == before


@pytest.mark.invariant("INV-REV-002")
@each_table
def test_a_revocation_may_expire_in_the_moment_it_takes_effect(owner: Connect, table: str) -> None:
    insert = inserts(table, columns(table), row(expires_at="'2020-01-01Z'"))["INSERT"]
    assert attempt(owner, [insert]) is None


@pytest.mark.invariant("INV-REV-004")
@pytest.mark.parametrize("reason", CRLReason)
@each_table
def test_every_reason_of_the_vocabulary_is_accepted(
    owner: Connect, table: str, reason: CRLReason
) -> None:
    insert = inserts(table, columns(table), row(reason_code=reason))["INSERT"]
    assert attempt(owner, [insert]) is None


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
    "INSERT": lambda table: inserts(table, columns(table), row())["INSERT"],
    "INSERT ON CONFLICT DO UPDATE": lambda table: (
        inserts(table, columns(table), row())["INSERT"]
        + f" ON CONFLICT ({KEYS[table]}, revocation_no) DO UPDATE SET db_user = 'forger'"
    ),
    "MERGE": lambda table: inserts(table, columns(table), row())["MERGE INSERT"],
    "COPY": copied,
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
    insert = inserts(table, columns(table), row())["INSERT"]
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


@pytest.mark.superuser
@each_table
def test_a_time_of_recording_that_not_every_calendar_has_is_refused_in_replica_mode(
    superuser: Connect, table: str
) -> None:
    superuser.execute("SET session_replication_role = replica")
    found = attempt(superuser, [copied(table, recorded_at="4000-01-01Z BC")])
    assert found is not None
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{table}_years")


@pytest.mark.invariant("INV-REV-003")
@pytest.mark.parametrize("hash", [hash for hash in MALFORMED.values() if "\\" not in hash])
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
    history(owner)
    found = refusal(login(role), require(cert, token))
    assert_invariant(found, "INV-ATT-009", "P7202", table)
    # Not the hash: the executor may not read it.
    credential = "CLIENT_CERT" if table == "revoked_client_certs" else "TOKEN"
    assert (found.column, found.keys) == (KEYS[table], {"credential": credential})


@pytest.mark.invariant("INV-REV-003")
@pytest.mark.parametrize("hash", [hash for hash in MALFORMED.values() if "\\" not in hash])
@pytest.mark.parametrize("credential", ["cert", "token"])
def test_a_malformed_hash_is_not_taken_for_one_that_is_not_revoked(
    login: Callable[[str], Connect], credential: str, hash: str
) -> None:
    found = refusal(login("ingest"), require(**{credential: hash}))
    assert_invariant(found, "INV-REV-003", "P7201", "revoked_tokens")


@pytest.mark.invariant("INV-ATT-009")
def test_what_is_not_revoked_passes(owner: Connect, login: Callable[[str], Connect]) -> None:
    history(owner)
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
    for statement in (revoke(table), inserts(table, columns(table), row())["INSERT"]):
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
    insert = inserts(table, columns(table), row())["INSERT"]
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
    found = refusal(superuser, inserts(table, columns(table), row())["INSERT"])
    assert found.sqlstate == "55P03"


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


def test_a_refused_revocation_leaves_the_gate_as_it_was(owner: Connect) -> None:
    with pytest.raises(psycopg.Error) as raised:
        owner.execute(revoke("revoked_tokens", "short"))
    assert Refusal.of(raised.value).sqlstate == "P7201"
    assert scalar(owner, "SELECT changes FROM orchestration.revocation_gate") == 0


# A clock that was set back.


def store_ahead(owner: Connect, table: str, statement: str, parameters: tuple[Any, ...]) -> None:
    """Store what its guard would refuse as in the future: as if the clock had been set back."""
    with owner.transaction():
        owner.execute(f"ALTER TABLE orchestration.{table} DISABLE TRIGGER guard")
        owner.execute(statement, parameters)
        owner.execute(f"ALTER TABLE orchestration.{table} ENABLE ALWAYS TRIGGER guard")


@pytest.mark.invariant("INV-REV-007", "INV-ATT-009")
@each_table
def test_a_stored_revocation_is_in_force_whatever_the_clock_says(
    owner: Connect, login: Callable[[str], Connect], table: str
) -> None:
    store_ahead(owner, table, inserts(table, columns(table), row(revoked_at=LATER))["INSERT"], ())
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
    whole = attestation(RECORDED, 1, str(grace))
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

"""INV-AUD-001, and INV-APP-001 of the audit log, by raw SQL: every act of governance leaves one
entry, and verification finds where the log does not fit. How it refuses is in `attacks`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import pytest

from orchestration import schema
from tests.invariants.attacks.audit_log import ENTRY, HEAD, LAST, LOG, NEXT, REVISION
from tests.invariants.attacks.base import insert
from tests.support import (
    Connect,
    activate_policy,
    audit_record_hash,
    digest,
    drop,
    instruction_id,
    picture,
    refusal,
    scalar,
    vectors,
)

Login = Callable[[str], Connect]

ZEROS = f"'{'0' * 64}'"


def entry_no(connection: Connect) -> int:
    """The last entry's place in the chain."""
    return int(scalar(connection, f"SELECT max(chain_seq) FROM orchestration.{LOG}"))


def client_of(connection: Connect) -> str | None:
    """The client's address as the server sees it."""
    address: str | None = scalar(connection, "SELECT host(inet_client_addr())")
    return address


def entries(connection: Connect, since: int) -> list[dict[str, Any]]:
    cursor = connection.execute(
        "SELECT action, table_name, before, after, db_user, db_role, host(client_addr) AS client"
        f" FROM orchestration.{LOG} WHERE chain_seq > %s ORDER BY chain_seq",
        (since,),
    )
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


@dataclass(frozen=True)
class Report:
    """What verify_audit_log found."""

    ok: bool
    entries: int
    chain_seq: int | None
    table_name: str | None
    key: str | None
    reason: str | None


def verify(connection: Connect) -> Report:
    row = connection.execute("SELECT * FROM orchestration.verify_audit_log()").fetchone()
    assert row is not None
    return Report(*row)


def assert_whole(connection: Connect) -> None:
    found = verify(connection)
    assert found == Report(True, entry_no(connection), None, None, None, None)


# The acts, as the functions do them.


def engage(scope: str = "GLOBAL") -> str:
    return f"SELECT FROM orchestration.engage_kill_switch('{scope}', 'fraud')"


def rotate(id: str) -> str:
    return (
        f"SELECT FROM orchestration.rotate_policy_version('{id}', 'new', '{digest(id)}', '1 hour')"
    )


def revoke(what: str, function: str) -> str:
    return f"SELECT FROM orchestration.{function}('{digest(what)}', 'keyCompromise')"


REDRIVE: Final = "SELECT FROM orchestration.redrive_outbox_item(%s)"


def reject_an_item(connection: Connect) -> UUID:
    """An item that failed and may be redriven; as owner, by the functions."""
    outbox_id: UUID = scalar(
        connection,
        "SELECT outbox_id FROM orchestration.enqueue_payment_outbox("
        " jsonb_build_array(jsonb_build_object("
        " 'instruction_id', %s::text, 'participant_id', 'p', 'idempotency_key', 'k',"
        " 'rail_type', 'SEPA', 'payload', jsonb_build_object('secret', 'of a person'))))",
        (str(instruction_id("p", 0)),),
    )
    connection.execute(
        "WITH claimed AS (SELECT * FROM orchestration.claim_outbox_batch('w', 1, '1 hour'))"
        " SELECT d.* FROM claimed c CROSS JOIN LATERAL"
        " orchestration.complete_outbox_attempt(jsonb_build_array(jsonb_build_object("
        " 'outbox_id', c.outbox_id, 'lease_token', c.lease_token, 'worker_id', 'w',"
        " 'state', 'FAILED', 'outcome', 'REJECTED'))) d"
    )
    return outbox_id


@dataclass(frozen=True)
class Act:
    """One call of a function, what had to be before it, and the entry it leaves."""

    statement: str
    action: str
    table: str
    before: tuple[str, ...] = ()
    """Keys of the rows that were there."""
    after: tuple[str, ...] = ()
    """Keys of the rows that are there."""
    prepared_by: tuple[str, ...] = ()


ACTS: Final[dict[str, Act]] = {
    "the first rotation": Act(rotate("v1"), "ROTATE", "policy_versions", (), ("v1",)),
    "a rotation": Act(
        rotate("v2"), "ROTATE", "policy_versions", ("v1",), ("v1", "v2"), (rotate("v1"),)
    ),
    "a rotation that retires": Act(
        *(rotate("v3"), "ROTATE", "policy_versions", ("v1", "v2"), ("v1", "v2", "v3")),
        (rotate("v1"), rotate("v2")),
    ),
    "a retirement": Act(
        "SELECT FROM orchestration.retire_policy_version('v1')",
        *("RETIRE", "policy_versions", ("v1",), ("v1",)),
        (rotate("v1"), rotate("v2")),
    ),
    "the revocation of a certificate": Act(
        revoke("c", "revoke_client_cert"),
        *("REVOKE", "revoked_client_certs", (), (f"{digest('c')}/1",)),
    ),
    "the revocation of a token": Act(
        revoke("t", "revoke_token"),
        *("REVOKE", "revoked_tokens", (), (f"{digest('t')}/1",)),
    ),
    "engaging": Act(engage(), "ENGAGE", "kill_switches", (), ("1",)),
    "releasing": Act(
        "SELECT FROM orchestration.release_kill_switch('GLOBAL', 'over')",
        *("RELEASE", "kill_switches", (), ("2",)),
        (engage(),),
    ),
}

every_act = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


def row_of(connection: Connect, table: str, key: str) -> Any:
    """A row as the log tells of it."""
    column = {
        "policy_versions": "id",
        "revoked_client_certs": "cert_fingerprint_sha256 || '/' || revocation_no",
        "revoked_tokens": "token_hash || '/' || revocation_no",
        "kill_switches": "event_no::text",
        "payment_outbox_items": "outbox_id::text",
    }[table]
    return scalar(
        connection,
        "SELECT to_jsonb(t) - '{payload,payload_salt,context,xact_id}'::text[]"
        f" FROM orchestration.{table} t WHERE {column} = %s",
        (key,),
    )


@pytest.mark.invariant("INV-AUD-001")
@every_act
def test_an_act_leaves_one_entry_that_tells_who_did_what_from_where(
    superuser: Connect, login: Login, act: Act
) -> None:
    superuser.execute("SET timezone = 'UTC'")
    control = login("control")
    for statement in act.prepared_by:
        control.execute(statement)
    was = {key: row_of(superuser, act.table, key) for key in act.before}
    since = entry_no(superuser)
    # However the session shows its times, the log tells them alike.
    control.execute("SET timezone = 'Asia/Kathmandu'")
    control.execute(act.statement)
    (told,) = entries(superuser, since)
    assert told == {
        "action": act.action,
        "table_name": act.table,
        "before": was or None,
        "after": {key: row_of(superuser, act.table, key) for key in act.after},
        "db_user": control.info.user,
        "db_role": control.info.user,
        "client": client_of(control),
    }
    assert_whole(superuser)


@pytest.mark.invariant("INV-AUD-001")
@every_act
def test_an_act_that_was_undone_leaves_no_entry(superuser: Connect, login: Login, act: Act) -> None:
    control = login("control")
    for statement in act.prepared_by:
        control.execute(statement)
    before = picture(superuser)
    control.execute("BEGIN")
    control.execute(act.statement)
    control.execute("ROLLBACK")
    assert picture(superuser) == before
    control.execute(act.statement)
    assert_whole(superuser)


@pytest.mark.invariant("INV-AUD-001")
@every_act
def test_an_act_under_a_role_names_the_login_and_the_role(
    superuser: Connect, login: Login, act: Act
) -> None:
    control = login("control")
    for statement in act.prepared_by:
        control.execute(statement)
    since = entry_no(superuser)
    control.execute("SET ROLE symphony_control")
    control.execute(act.statement)
    (told,) = entries(superuser, since)
    assert (told["db_user"], told["db_role"]) == (control.info.user, "symphony_control")


@pytest.mark.instructed
@pytest.mark.invariant("INV-AUD-001")
def test_a_redrive_leaves_one_entry_without_the_payload(owner: Connect, login: Login) -> None:
    outbox_id = reject_an_item(owner)
    owner.execute("SET timezone = 'UTC'")
    since = entry_no(owner)
    control = login("control")
    control.execute(REDRIVE, (outbox_id,))
    (told,) = entries(owner, since)
    (key,) = told["after"]
    assert told == {
        "action": "REDRIVE",
        "table_name": "payment_outbox_items",
        "before": None,
        "after": {key: row_of(owner, "payment_outbox_items", key)},
        "db_user": control.info.user,
        "db_role": control.info.user,
        "client": client_of(control),
    }
    assert told["after"][key]["redrive_of"] == str(outbox_id)
    assert "of a person" not in str(told)
    # The live successor is given back, and nothing was done.
    control.execute(REDRIVE, (outbox_id,))
    assert entry_no(owner) == since + 1
    assert_whole(owner)


@pytest.mark.instructed
@pytest.mark.invariant("INV-AUD-001")
def test_enqueuing_is_no_act_of_governance(owner: Connect) -> None:
    since = entry_no(owner)
    reject_an_item(owner)
    assert entry_no(owner) == since


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize(
    "replayed", [revoke("c", "revoke_client_cert"), revoke("t", "revoke_token")]
)
def test_what_was_done_before_leaves_no_second_entry(
    superuser: Connect, login: Login, replayed: str
) -> None:
    control = login("control")
    control.execute(replayed)
    since = entry_no(superuser)
    control.execute(replayed)
    assert entry_no(superuser) == since
    assert_whole(superuser)


@pytest.mark.unchanged
@pytest.mark.invariant("INV-AUD-001")
def test_every_revision_has_its_entry_and_each_goes_on_from_the_one_before(
    superuser: Connect, database: Any
) -> None:
    told = entries(superuser, 0)
    assert {one["action"] for one in told} == {"MIGRATE"}
    revisions = [one["after"]["revision"] for one in told]
    assert revisions == sorted(set(revisions))
    assert revisions[0] == "0001"
    assert revisions[-1] == schema.REVISION
    assert [one["before"] and one["before"]["revision"] for one in told] == [None, *revisions[:-1]]
    assert {one["db_role"] for one in told} == {"symphony_owner"}
    assert {one["db_user"] for one in told} == {database.url.username}
    assert_whole(superuser)


# An owner's own hand: a change of the tables is an act like any other.

BY_HAND: Final[dict[str, tuple[tuple[str, ...], str, str, int, int]]] = {
    "an entered version": (
        (
            "INSERT INTO orchestration.policy_versions (id, description, checksum)"
            f" VALUES ('v1', 'by hand', {ZEROS})",
        ),
        *("ROTATE", "policy_versions", 0, 1),
    ),
    "a demotion and its replacement in one statement": (
        (
            rotate("v1"),
            "WITH d AS (UPDATE orchestration.policy_versions SET status = 'GRACE',"
            " grace_expires_at = now() + interval '1 hour' WHERE id = 'v1' RETURNING id)"
            " INSERT INTO orchestration.policy_versions (id, description, checksum)"
            f" SELECT 'v2', 'by hand', {ZEROS} FROM d",
        ),
        *("ROTATE", "policy_versions", 1, 2),
    ),
    "a shortened grace": (
        (
            rotate("v1"),
            rotate("v2"),
            "UPDATE orchestration.policy_versions SET grace_expires_at = now() WHERE id = 'v1'",
        ),
        *("SHORTEN", "policy_versions", 1, 1),
    ),
    "a retirement": (
        (
            rotate("v1"),
            rotate("v2"),
            "UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE id = 'v1'",
        ),
        *("RETIRE", "policy_versions", 1, 1),
    ),
    "two revocations in one statement": (
        (
            "INSERT INTO orchestration.revoked_tokens (token_hash, reason_code)"
            f" VALUES ('{digest('a')}', 'superseded'), ('{digest('b')}', 'superseded')",
        ),
        *("REVOKE", "revoked_tokens", 0, 2),
    ),
    "a revocation by MERGE": (
        (
            "MERGE INTO orchestration.revoked_client_certs USING (SELECT) AS s ON false"
            " WHEN NOT MATCHED THEN INSERT (cert_fingerprint_sha256, reason_code)"
            f" VALUES ({ZEROS}, 'superseded')",
        ),
        *("REVOKE", "revoked_client_certs", 0, 1),
    ),
    "two events of a switch in one statement": (
        (
            "INSERT INTO orchestration.kill_switches (scope, target, action, reason) VALUES"
            " ('RAIL', 'a', 'ENGAGE', 'x'), ('RAIL', 'b', 'ENGAGE', 'x')",
        ),
        *("ENGAGE", "kill_switches", 0, 2),
    ),
    "a released switch": (
        (
            "INSERT INTO orchestration.kill_switches (scope, action, reason)"
            " VALUES ('GLOBAL', 'RELEASE', 'x')",
        ),
        *("RELEASE", "kill_switches", 0, 1),
    ),
    "another revision": (
        (f"UPDATE orchestration.{REVISION} SET revision = 'forged'",),
        *("MIGRATE", REVISION, 4, 4),
    ),
}


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("change", BY_HAND.values(), ids=BY_HAND)
def test_an_owner_s_change_by_hand_leaves_one_entry(
    owner: Connect, change: tuple[tuple[str, ...], str, str, int, int]
) -> None:
    (*prepared, statement), action, table, before, after = change
    for one in prepared:
        owner.execute(one)
    since = entry_no(owner)
    owner.execute(statement)
    (told,) = entries(owner, since)
    assert (told["action"], told["table_name"]) == (action, table)
    if table != REVISION:
        assert (len(told["before"] or ()), len(told["after"])) == (before, after)
    assert (told["db_user"], told["db_role"]) == (owner.info.user, "symphony_owner")
    assert_whole(owner)


@pytest.mark.invariant("INV-AUD-001")
def test_a_demotion_and_its_replacement_by_hand_in_two_statements_are_two_acts(
    owner: Connect,
) -> None:
    activate_policy(owner, "v1")
    since = entry_no(owner)
    with owner.transaction():
        owner.execute(
            "UPDATE orchestration.policy_versions SET status = 'GRACE', grace_expires_at = now()"
        )
        owner.execute(
            "INSERT INTO orchestration.policy_versions (id, description, checksum)"
            f" VALUES ('v2', 'by hand', {ZEROS})"
        )
    assert [
        (one["action"], sorted(one["before"] or ()), sorted(one["after"]))
        for one in entries(owner, since)
    ] == [("DEMOTE", ["v1"], ["v1"]), ("ROTATE", [], ["v2"])]
    assert_whole(owner)


WHOLE_VERSION = "(id, description, checksum) SELECT '{}', 'd', repeat('0', 64)"
SHORTENED = (
    "UPDATE orchestration.policy_versions SET grace_expires_at = now() WHERE id = 'v1' RETURNING id"
)
DEMOTED = (
    "UPDATE orchestration.policy_versions SET status = 'GRACE',"
    " grace_expires_at = now() + interval '1 hour' WHERE id = 'v1'"
)


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize(
    ("beside", "told_before"),
    [
        (SHORTENED, ["v1"]),
        (
            "UPDATE orchestration.policy_versions SET status = status WHERE id = 'v1' RETURNING id",
            [],
        ),
        (
            "UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE id = 'v1'"
            " RETURNING id",
            ["v1"],
        ),
    ],
    ids=["shortened", "unchanged", "retired"],
)
def test_a_version_entered_beside_another_change_is_told_with_it(
    owner: Connect, beside: str, told_before: list[str]
) -> None:
    activate_policy(owner, "v1")
    with owner.transaction():
        owner.execute(DEMOTED)
        since = entry_no(owner)
        owner.execute(
            f"WITH s AS ({beside}) INSERT INTO orchestration.policy_versions"
            f" {WHOLE_VERSION.format('v2')} FROM s"
        )
    (told,) = entries(owner, since)
    assert (told["action"], sorted(told["before"] or ())) == ("ROTATE", told_before)
    assert sorted(told["after"]) == [*told_before, "v2"]
    assert_whole(owner)


@pytest.mark.invariant("INV-AUD-001")
def test_a_command_number_of_a_change_made_in_vain_hides_no_entry(owner: Connect) -> None:
    """A row that was changed in a savepoint since undone shows a combined command number, which
    may be that of the statement that enters the next version."""
    activate_policy(owner, "v1")
    number = "SELECT cmin::text::integer FROM orchestration.policy_versions WHERE id = 'v1'"
    with owner.transaction():
        owner.execute(DEMOTED)
        owner.execute("CREATE TEMP TABLE padding (n integer)")
        for _ in range(30):
            owner.execute("INSERT INTO padding VALUES (1)")
        for _ in range(10):
            owner.execute("SAVEPOINT s")
            owner.execute("UPDATE padding SET n = n")
            owner.execute("ROLLBACK TO SAVEPOINT s")
            owner.execute("RELEASE SAVEPOINT s")
        owner.execute("SAVEPOINT s")
        owner.execute(SHORTENED)
        owner.execute("ROLLBACK TO SAVEPOINT s")
        combined = scalar(owner, number)
        now = 0
        while now < combined - 1:
            now = scalar(owner, "INSERT INTO padding VALUES (2) RETURNING cmin::text::integer")
        since = entry_no(owner)
        owner.execute(f"INSERT INTO orchestration.policy_versions {WHOLE_VERSION.format('v2')}")
    (told,) = entries(owner, since)
    assert list(told["after"]) == ["v2"]
    assert_whole(owner)


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize(
    "statement",
    [
        f"INSERT INTO orchestration.policy_versions {WHOLE_VERSION.format('v3')}"
        " RETURNING (SELECT max(r.id) FROM orchestration.rotate_policy_version("
        f" 'v4', 'd', {ZEROS}, '1 hour') r)",
        "UPDATE orchestration.policy_versions SET grace_expires_at = now() WHERE id = 'v1'"
        " RETURNING (SELECT max(r.id) FROM orchestration.retire_policy_version('v1') r)",
    ],
    ids=["entered", "shortened"],
)
def test_an_act_within_an_act_on_the_same_version_is_refused(
    owner: Connect, statement: str
) -> None:
    if "INSERT" not in statement:
        activate_policy(owner, "v1")
        activate_policy(owner, "v2")
    before = picture(owner)
    found = refusal(owner, statement)
    assert (found.sqlstate, found.constraint) == ("P7302", "INV-AUD-001")
    assert picture(owner) == before


@pytest.mark.invariant("INV-AUD-001")
def test_a_statement_that_engages_and_releases_does_two_acts(owner: Connect) -> None:
    since = entry_no(owner)
    owner.execute(
        "INSERT INTO orchestration.kill_switches (scope, target, action, reason) VALUES"
        " ('GLOBAL', NULL, 'RELEASE', 'x'), ('RAIL', 'a', 'ENGAGE', 'x')"
    )
    assert [(one["action"], list(one["after"])) for one in entries(owner, since)] == [
        ("ENGAGE", ["2"]),
        ("RELEASE", ["1"]),
    ]
    assert_whole(owner)


THERE_AND_BACK: Final[dict[str, tuple[str, str]]] = {
    "kill_switches": ("RELEASE", "jsonb_set(row, '{1,action}', '\"RELEASE\"')"),
    "policy_versions": ("RETIRE", "jsonb_set(row, '{v2,status}', '\"RETIRED\"')"),
    REVISION: ("MIGRATE", "row || jsonb_build_object('revision', '0000')"),
}


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("table", THERE_AND_BACK)
def test_two_entries_by_hand_that_lead_there_and_back_are_found(owner: Connect, table: str) -> None:
    activate_policy(owner, "v1")
    activate_policy(owner, "v2")
    owner.execute(engage())
    since = entry_no(owner)
    action, forged = THERE_AND_BACK[table]
    row = (
        f"(SELECT CASE a.table_name WHEN 'policy_versions' THEN a.after - 'v1' ELSE a.after END"
        f" AS row FROM orchestration.{LOG} a WHERE a.table_name = '{table}'"
        " ORDER BY a.chain_seq DESC LIMIT 1) r"
    )
    owner.execute(
        f"WITH r AS (SELECT * FROM {row}) INSERT INTO orchestration.{LOG}"
        " (action, table_name, before, after)"
        f" SELECT '{action}', '{table}', row, {forged} FROM r"
        f" UNION ALL SELECT '{action}', '{table}', {forged}, row FROM r"
    )
    assert entry_no(owner) == since + 2
    found = verify(owner)
    assert (found.ok, found.table_name) == (False, table)
    assert found.chain_seq in (since + 1, since + 2)


@pytest.mark.invariant("INV-AUD-001")
def test_rotations_in_savepoints_that_were_undone_leave_the_one_that_was_not(
    owner: Connect,
) -> None:
    activate_policy(owner, "v1")
    since = entry_no(owner)
    with owner.transaction():
        for id in ("v2", "v3"):
            owner.execute("SAVEPOINT before")
            activate_policy(owner, id)
            owner.execute("ROLLBACK TO SAVEPOINT before")
        activate_policy(owner, "v4")
        activate_policy(owner, "v5")
    assert [sorted(one["after"]) for one in entries(owner, since)] == [
        ["v1", "v4"],
        ["v1", "v4", "v5"],
    ]
    assert_whole(owner)


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE orchestration.policy_versions SET status = status",
        "UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE false",
        "INSERT INTO orchestration.kill_switches (scope, action, reason)"
        " SELECT 'GLOBAL', 'ENGAGE', 'x' WHERE false",
    ],
)
def test_a_statement_that_changes_nothing_is_no_act(owner: Connect, statement: str) -> None:
    activate_policy(owner, "v1")
    since = entry_no(owner)
    owner.execute(statement)
    assert entry_no(owner) == since


# What verification finds.


@pytest.mark.invariant("INV-AUD-001")
def test_an_entry_by_hand_is_chained_and_says_who_made_it(owner: Connect) -> None:
    since = entry_no(owner)
    owner.execute(insert(LOG, ENTRY))
    owner.execute(insert(LOG, {**ENTRY, **{"occurred_at": "CAST(NULL AS timestamptz)"}}))
    rows = owner.execute(
        "SELECT chain_seq, prev_hash = lag(record_hash) OVER (ORDER BY chain_seq), db_user,"
        " db_role, host(client_addr), occurred_at IS NOT NULL, xact_id > 1"
        f" FROM orchestration.{LOG} ORDER BY chain_seq"
    ).fetchall()[since:]
    who = (owner.info.user, "symphony_owner", client_of(owner))
    assert rows == [(since + 1, True, *who, True, True), (since + 2, True, *who, True, True)]


@pytest.mark.invariant("INV-AUD-001")
def test_entries_of_one_insert_continue_each_other(owner: Connect) -> None:
    since = entry_no(owner)
    owner.execute(
        f"INSERT INTO orchestration.{LOG} (action, table_name, after)"
        " SELECT 'REVOKE', 'revoked_tokens', '{}' FROM generate_series(1, 5)"
    )
    assert entry_no(owner) == since + 5
    assert scalar(owner, f"SELECT chain_seq FROM orchestration.{HEAD}") == since + 5
    assert verify(owner).chain_seq == since + 1


@pytest.mark.superuser
@pytest.mark.invariant("INV-AUD-001")
def test_in_replica_mode_an_act_writes_no_entry_and_verification_says_so(
    superuser: Connect,
) -> None:
    since = entry_no(superuser)
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(
        "INSERT INTO orchestration.kill_switches (event_no, scope, action, reason, actor,"
        " occurred_at, db_user, xact_id) VALUES (1, 'GLOBAL', 'ENGAGE', 'x', 'x', now(), 'x', 1)"
    )
    assert entry_no(superuser) == since
    assert verify(superuser) == Report(
        *(False, since, None, "kill_switches", "1", "no entry records this act")
    )


@pytest.mark.superuser
@pytest.mark.invariant("INV-AUD-001")
def test_in_replica_mode_an_entry_arrives_as_it_was(superuser: Connect) -> None:
    """What a subscriber of a logical replication does: the rows of the head come by themselves."""
    superuser.execute(engage())
    columns = "chain_seq, action, table_name, before, after, occurred_at, db_user, db_role"
    superuser.execute(
        f"CREATE TEMP TABLE last AS SELECT * FROM orchestration.{LOG} WHERE chain_seq = {LAST};"
        f" ALTER TABLE orchestration.{LOG} DISABLE TRIGGER append_only;"
        f" DELETE FROM orchestration.{LOG} WHERE chain_seq = {LAST};"
        f" ALTER TABLE orchestration.{LOG} ENABLE ALWAYS TRIGGER append_only;"
        " SET session_replication_role = replica;"
        f" UPDATE orchestration.{HEAD} SET chain_seq = chain_seq - 1;"
        f" INSERT INTO orchestration.{LOG} SELECT * FROM last;"
        f" UPDATE orchestration.{HEAD} SET chain_seq = chain_seq + 1;"
        " SET session_replication_role = origin"
    )
    same = f"SELECT count(*) FROM (SELECT {columns} FROM orchestration.{LOG} INTERSECT"
    assert scalar(superuser, f"{same} SELECT {columns} FROM last) same") == 1
    assert_whole(superuser)


# Tampering: what is found, and where.


@dataclass(frozen=True)
class Tampering:
    """What a superuser does to a log of `NEXT` entries, the last of which engages a switch."""

    statements: tuple[str, ...]
    chain_seq: int | None
    reason: str
    table_name: str | None = None
    key: str | None = None


def without_guards(statement: str) -> tuple[str, ...]:
    """Past the triggers that refuse in replica mode too."""
    return (
        f"ALTER TABLE orchestration.{LOG} DISABLE TRIGGER ALL",
        f"ALTER TABLE orchestration.{HEAD} DISABLE TRIGGER ALL",
        statement,
    )


REHASH = (
    f"UPDATE orchestration.{LOG} a SET record_hash = orchestration.audit_record_hash(a)"
    " WHERE chain_seq = {0}"
)
MIDDLE = 3
GONE = f"DELETE FROM orchestration.{LOG} WHERE chain_seq = {{}}"
FORGED = f"INSERT INTO orchestration.{LOG} (action, table_name, before, after) VALUES ({{}})"

TAMPERED: Final[dict[str, Tampering]] = {
    "an edited entry": Tampering(
        without_guards(f"UPDATE orchestration.{LOG} SET db_user = 'other' WHERE chain_seq = 3"),
        *(MIDDLE, "record_hash is not the hash of the entry"),
    ),
    "an entry edited and hashed again": Tampering(
        (
            *without_guards(
                f"UPDATE orchestration.{LOG} SET db_user = 'other' WHERE chain_seq = 3"
            ),
            REHASH.format(MIDDLE),
        ),
        *(MIDDLE + 1, "prev_hash is not the record_hash of the row before"),
    ),
    "a removed entry": Tampering(
        without_guards(GONE.format(MIDDLE)), MIDDLE + 1, "entries before this one are missing"
    ),
    "a removed end": Tampering(
        without_guards(GONE.format(NEXT)),
        *(NEXT, "the newest entries are missing: the head is ahead"),
    ),
    "a removed end, with the head set back": Tampering(
        (
            *without_guards(GONE.format(NEXT)),
            f"UPDATE orchestration.{HEAD} SET (chain_seq, record_hash) ="
            f" (SELECT chain_seq, record_hash FROM orchestration.{LOG}"
            f" WHERE chain_seq = {NEXT - 1})",
        ),
        *(None, "no entry records this act", "kill_switches", "1"),
    ),
    "an end edited and hashed again": Tampering(
        (
            *without_guards(
                f"UPDATE orchestration.{LOG} SET db_user = 'other' WHERE chain_seq = {NEXT}"
            ),
            REHASH.format(NEXT),
        ),
        *(NEXT, "the head has a different record_hash"),
    ),
    "an entry of nothing": Tampering(
        (FORGED.format("'REVOKE', 'revoked_tokens', NULL, '{}'"),),
        *(NEXT + 1, "no act explains this entry", "revoked_tokens"),
    ),
    "an entry of a row that never was": Tampering(
        (FORGED.format("'REVOKE', 'revoked_tokens', NULL, '{\"a\": {}}'"),),
        *(NEXT + 1, "no act explains this entry", "revoked_tokens", "a"),
    ),
    "an entry of no table": Tampering(
        (FORGED.format("'REVOKE', 'elsewhere', NULL, '{\"a\": {}}'"),),
        *(NEXT + 1, "no act explains this entry", "elsewhere", "a"),
    ),
    "an act told twice": Tampering(
        (
            f"INSERT INTO orchestration.{LOG} (action, table_name, after) SELECT action,"
            f" table_name, after FROM orchestration.{LOG} WHERE chain_seq = {NEXT}",
        ),
        *(NEXT + 1, "no act explains this entry", "kill_switches", "1"),
    ),
    "an act told otherwise beforehand": Tampering(
        (
            FORGED.format("'RELEASE', 'kill_switches', NULL, '{\"2\": {\"event_no\": 2}}'"),
            engage(),
        ),
        NEXT + 1,
        "no act explains this entry: its row has different content now",
        *("kill_switches", "2"),
    ),
    "a state that is no object": Tampering(
        (
            FORGED.format(
                "'ROTATE', 'policy_versions', NULL, '{\"v0\": {\"status\": \"ACTIVE\"}}'"
            ),
            FORGED.format("'RETIRE', 'policy_versions', '{\"v0\": 5}', '{\"v0\": 6}'"),
        ),
        NEXT + 1,
        "no act explains this entry: the next entry starts from different content",
        *("policy_versions", "v0"),
    ),
    "a migration that never was": Tampering(
        (
            f"INSERT INTO orchestration.{LOG} (action, table_name, before, after)"
            " SELECT 'MIGRATE', 'schema_revision', to_jsonb(r),"
            " to_jsonb(r) || jsonb_build_object('revision', '0000')"
            f" FROM orchestration.{REVISION} r",
        ),
        NEXT + 1,
        "no act explains this entry",
        *(REVISION, ""),
    ),
    "a migration there and back that never was": Tampering(
        (
            f"INSERT INTO orchestration.{LOG} (action, table_name, before, after)"
            " SELECT 'MIGRATE', 'schema_revision', to_jsonb(r),"
            " to_jsonb(r) || jsonb_build_object('revision', '0000', 'changes', r.changes + 1)"
            f" FROM orchestration.{REVISION} r UNION ALL"
            " SELECT 'MIGRATE', 'schema_revision',"
            " to_jsonb(r) || jsonb_build_object('revision', '0000', 'changes', r.changes + 1),"
            " to_jsonb(r) || jsonb_build_object('changes', r.changes + 2)"
            f" FROM orchestration.{REVISION} r",
        ),
        NEXT + 2,
        "no act explains this entry: its row has different content now",
        *(REVISION, ""),
    ),
    "an act of which nothing changed": Tampering(
        (
            f"INSERT INTO orchestration.{LOG} (action, table_name, before, after)"
            " SELECT 'MIGRATE', 'schema_revision', to_jsonb(r), to_jsonb(r)"
            f" FROM orchestration.{REVISION} r",
        ),
        *(NEXT + 1, "no act explains this entry", REVISION, ""),
    ),
    "a row changed behind the log's back": Tampering(
        (
            "SET session_replication_role = replica",
            f"UPDATE orchestration.{REVISION} SET revision = '0000'",
        ),
        NEXT - 1,
        "no act explains this entry: its row has different content now",
        *(REVISION, ""),
    ),
}


@pytest.mark.superuser
@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("tampering", TAMPERED.values(), ids=TAMPERED)
def test_what_was_tampered_with_is_found_where_it_stands(
    superuser: Connect, login: Login, tampering: Tampering
) -> None:
    login("control").execute(engage())
    assert_whole(superuser)
    for statement in tampering.statements:
        superuser.execute(statement)
    superuser.execute("RESET session_replication_role")
    for role in ("auditor", "control"):
        found = verify(login(role))
        assert not found.ok
        assert (found.chain_seq, found.table_name, found.key, found.reason) == (
            *(tampering.chain_seq, tampering.table_name, tampering.key, tampering.reason),
        )


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_without_its_trigger_an_act_has_no_entry_and_verification_says_so(
    owner: Connect, login: Login, act: Act
) -> None:
    control = login("control")
    for statement in act.prepared_by:
        control.execute(statement)
    since = entry_no(owner)
    for trigger in (
        ("audit_insert", "audit_update") if act.table == "policy_versions" else ("audit",)
    ):
        drop(owner, f"triggers/{act.table}__{trigger}")
    control.execute(act.statement)
    assert entry_no(owner) == since
    found = verify(owner)
    assert not found.ok
    assert found.table_name == act.table


@pytest.mark.instructed
@pytest.mark.invariant("INV-AUD-001")
def test_without_its_trigger_a_redrive_has_no_entry_and_verification_says_so(
    owner: Connect, login: Login
) -> None:
    outbox_id = reject_an_item(owner)
    drop(owner, "triggers/payment_outbox_items__audit")
    login("control").execute(REDRIVE, (outbox_id,))
    found = verify(owner)
    assert (found.chain_seq, found.table_name, found.reason) == (
        *(None, "payment_outbox_items", "no entry records this act"),
    )


@pytest.mark.invariant("INV-AUD-001")
def test_a_head_that_is_behind_is_read_again_from_the_log_and_reported(owner: Connect) -> None:
    drop(owner, f"triggers/{LOG}__head")
    owner.execute(engage())
    owner.execute(engage())
    assert entry_no(owner) == NEXT + 1
    assert verify(owner) == Report(False, NEXT + 1, NEXT - 1, None, None, "the head is behind")


@pytest.mark.superuser
@pytest.mark.invariant("INV-AUD-001")
def test_a_head_that_is_missing_is_reported(superuser: Connect) -> None:
    drop(superuser, f"triggers/{HEAD}__no_delete")
    superuser.execute(f"DELETE FROM orchestration.{HEAD}")
    found = verify(superuser)
    assert (found.ok, found.chain_seq, found.reason) == (False, NEXT - 1, "the head is missing")


@pytest.mark.invariant("INV-AUD-001")
def test_the_head_only_moves_forward(owner: Connect) -> None:
    owner.execute(
        f"WITH first AS (INSERT INTO orchestration.{LOG} (action, table_name, after)"
        " VALUES ('REVOKE', 'revoked_tokens', '{}') RETURNING 1)"
        " INSERT INTO orchestration.kill_switches (scope, action, reason)"
        " SELECT 'GLOBAL', 'ENGAGE', 'x' FROM first"
    )
    assert scalar(owner, f"SELECT chain_seq FROM orchestration.{HEAD}") == entry_no(owner)


@pytest.mark.superuser
@pytest.mark.invariant("INV-AUD-001")
def test_a_head_ahead_of_the_log_stops_every_act(superuser: Connect, login: Login) -> None:
    superuser.execute(f"UPDATE orchestration.{HEAD} SET chain_seq = chain_seq + 1")
    found = refusal(login("control"), engage())
    assert (found.sqlstate, found.constraint, found.table) == ("P7302", "INV-AUD-001", LOG)
    assert found.keys == {"head": NEXT, "chain_seq": NEXT - 1}
    assert scalar(superuser, "SELECT count(*) FROM orchestration.kill_switches") == 0


@pytest.mark.superuser
@pytest.mark.invariant("INV-AUD-001")
def test_a_head_that_is_missing_is_made_again(superuser: Connect, login: Login) -> None:
    drop(superuser, f"triggers/{HEAD}__no_delete")
    superuser.execute(f"DELETE FROM orchestration.{HEAD}")
    login("control").execute(engage())
    assert scalar(superuser, f"SELECT chain_seq FROM orchestration.{HEAD}") == NEXT
    assert_whole(superuser)


@pytest.mark.invariant("INV-AUD-001")
def test_every_change_of_the_revision_is_counted_whatever_it_says(owner: Connect) -> None:
    changes = scalar(owner, f"SELECT changes FROM orchestration.{REVISION}")
    owner.execute(f"UPDATE orchestration.{REVISION} SET changes = 0")
    assert scalar(owner, f"SELECT changes FROM orchestration.{REVISION}") == changes + 1
    assert_whole(owner)


@pytest.mark.invariant("INV-AUD-001")
def test_the_hash_of_an_entry_is_that_of_the_published_format(owner: Connect) -> None:
    activate_policy(owner, "v1")
    activate_policy(owner, "Zürich 株式会社")
    cursor = owner.execute(
        f"SELECT chain_seq, action, table_name, before::text AS before, after::text AS after,"
        " occurred_at, db_user, db_role, host(client_addr) AS client_addr, prev_hash, record_hash"
        f" FROM orchestration.{LOG}"
    )
    names = [column.name for column in cursor.description or ()]
    records = [dict(zip(names, row, strict=True)) for row in cursor]
    assert len(records) == NEXT + 1
    for record in records:
        assert audit_record_hash(record) == record["record_hash"]


@pytest.mark.unchanged
@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("vector", vectors("audit-log.md"), ids=lambda vector: vector["name"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_the_database_gives_the_published_hash(
    owner: Connect, vector: dict[str, Any], zone: str
) -> None:
    owner.execute(f"SET timezone = '{zone}'")
    record = vector["record"]
    told = {key: json.loads(record[key]) for key in ("before", "after") if record[key]}
    found = scalar(
        owner,
        "SELECT orchestration.audit_record_hash("
        "jsonb_populate_record(NULL::orchestration.audit_log, %s::jsonb))",
        (json.dumps(record | told),),
    )
    assert found == vector["record_hash"]

"""Tests of attestations, their events and their chains: valid writes, defaults, results, and the
findings of verification. `attacks` tests the refusals."""

import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
from psycopg.rows import dict_row

from tests.invariants.attacks import attestation as attacks
from tests.invariants.attacks import base
from tests.invariants.attacks.attestation import (
    ATTESTATION,
    EVENTS,
    FIRST_OF_ALICE,
    HEADS,
    LAST_OF_ALICE,
    RIGHT_HASH,
    ROWS,
    attested,
    event,
    first_of_carol,
)
from tests.invariants.attacks.base import LATER, insert
from tests.support import (
    Connect,
    activate_policy,
    assert_invariant,
    attempt,
    attestation_record_hash,
    digest,
    drop,
    picture,
    refusal,
    run,
    scalar,
    vectors,
)

ALICE_1, ALICE_2, BOB_1, NEXT = map(
    UUID, (attacks.ALICE_1, attacks.ALICE_2, attacks.BOB_1, attacks.NEXT)
)
ZEROS = "0" * 64


def entered(**changed: str) -> str:
    """INSERT of a whole row that would continue alice's chain."""
    return insert(ROWS, attested(**changed))


def attest(
    connection: Connect, caller: str, *keys: str, policy: str = "v1", **fields: str
) -> list[dict[str, Any]]:
    """Append through the function; needs ingest or owner."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM orchestration.append_attestations(%s)",
            (batch(caller, *keys, policy=policy, **fields),),
        )
        return cursor.fetchall()


def batch(caller: str, *keys: str, policy: str = "v1", **fields: str) -> str:
    return json.dumps(
        [
            {
                "caller_identity": caller,
                "idempotency_key": key,
                "payload_hash": digest(key),
                "policy_version_id": policy,
                **fields,
            }
            for key in keys
        ]
    )


def history(connection: Connect) -> None:
    """alice attested twice and her first has started; bob's one was imported as completed."""
    run(connection, ATTESTATION.histories[""])


def record_event(connection: Connect, id: UUID, kind: str, status: str | None = None) -> Any:
    return connection.execute(
        "SELECT * FROM orchestration.record_attestation_event(p_attestation_id => %s,"
        " p_event => %s, p_terminal_status => %s)",
        (id, kind, status),
    ).fetchone()


def chain(connection: Connect, caller: str) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            f"SELECT * FROM orchestration.{ROWS} WHERE caller_identity = %s ORDER BY chain_seq",
            (caller,),
        )
        return cursor.fetchall()


def head(connection: Connect, caller: str) -> tuple[Any, ...] | None:
    return connection.execute(
        f"SELECT chain_seq, record_hash FROM orchestration.{HEADS} WHERE caller_identity = %s",
        (caller,),
    ).fetchone()


def verify(connection: Connect, caller: str) -> tuple[Any, ...]:
    found = connection.execute(
        "SELECT ok, records, break_chain_seq, break_attestation_id, break_reason"
        " FROM orchestration.verify_attestation_chain(%s)",
        (caller,),
    ).fetchall()
    assert len(found) == 1
    return found[0]


def assert_whole(connection: Connect, caller: str, length: int) -> None:
    """By our own reckoning: no gap, each link right, each hash right, and the head at the end."""
    records = chain(connection, caller)
    assert [record["chain_seq"] for record in records] == list(range(1, length + 1))
    before = ""
    for record in records:
        assert record["prev_hash"] == before
        assert record["record_hash"] == attestation_record_hash(record)
        before = record["record_hash"]
    assert head(connection, caller) == (length, before)
    assert verify(connection, caller) == (True, length, None, None, None)


@pytest.mark.invariant("INV-ATT-005")
def test_without_its_trigger_a_head_falls_behind_and_is_read_again_from_the_chain(
    owner: Connect,
) -> None:
    history(owner)
    drop(owner, f"triggers/{ROWS}__heads")
    attest(owner, "alice", "k3", "k4")
    assert head(owner, "alice") == (2, chain(owner, "alice")[1]["record_hash"])
    attest(owner, "alice", "k5")
    assert [record["chain_seq"] for record in chain(owner, "alice")] == [1, 2, 3, 4, 5]
    assert verify(owner, "alice") == (True, 5, None, None, None)


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-001")
def test_attestations_that_events_refer_to_are_not_truncated_without_them(owner: Connect) -> None:
    assert refusal(owner, f"TRUNCATE orchestration.{ROWS}").sqlstate == "0A000"


# What an insert by hand may leave out and supply.

BY_HAND = (
    f"INSERT INTO orchestration.{ROWS} (caller_identity, idempotency_key, payload_hash,"
    " policy_version_id) VALUES (%(caller)s, %(key)s, repeat('1', 64), 'v1')"
)


@pytest.mark.invariant("INV-ATT-004", "INV-ATT-005", "INV-ATT-006", "INV-ATT-011")
def test_what_an_insert_leaves_out_is_filled_in(owner: Connect) -> None:
    activate_policy(owner)
    with owner.transaction():
        for key in ("k1", "k2"):
            owner.execute(BY_HAND, {"caller": "alice", "key": key})
        found = owner.execute(
            "SELECT db_user = session_user, xact_id = pg_current_xact_id()::text::bigint,"
            " attested_at BETWEEN now() AND clock_timestamp(), execution_started,"
            " execution_completed, terminal_status, substr(id::text, 15, 1)"
            f" FROM orchestration.{ROWS}"
        ).fetchall()
    assert found == [(True, True, True, False, False, None, "7")] * 2
    assert_whole(owner, "alice", 2)


@pytest.mark.invariant("INV-ATT-005", "INV-ATT-006")
def test_right_values_that_are_supplied_are_accepted(owner: Connect) -> None:
    history(owner)
    assert attempt(owner, [entered(record_hash=RIGHT_HASH)]) is None
    stored = chain(owner, "alice")[2]
    assert (stored["id"], stored["chain_seq"]) == (NEXT, 3)
    assert_whole(owner, "alice", 3)


@pytest.mark.invariant("INV-ATT-006")
@pytest.mark.parametrize(
    "supplied",
    [
        {"chain_seq": "3::bigint"},
        {"prev_hash": LAST_OF_ALICE},
        {"chain_seq": "3::bigint", "prev_hash": LAST_OF_ALICE},
        {"id": f"'{NEXT}'::uuid"},
        {},
    ],
    ids=lambda supplied: ", ".join(supplied) or "nothing",
)
def test_any_part_of_the_chain_may_be_supplied_or_left_out(
    owner: Connect, supplied: dict[str, str]
) -> None:
    history(owner)
    left_out = {
        "id": "NULL::uuid",
        "chain_seq": "NULL::bigint",
        "prev_hash": "NULL::text",
        "record_hash": "NULL::text",
        "attested_at": "NULL::timestamptz",
    }
    assert attempt(owner, [entered(**left_out | supplied)]) is None
    assert_whole(owner, "alice", 3)


@pytest.mark.invariant("INV-ATT-006")
@pytest.mark.parametrize("form", [" by INSERT", " by MERGE", " in a CTE"])
def test_who_attested_and_in_which_transaction_is_taken_from_nobody(
    owner: Connect, login: Callable[[str], Connect], form: str
) -> None:
    history(owner)
    owner.execute(
        f"GRANT SELECT, INSERT ON orchestration.{ROWS}, orchestration.{EVENTS} TO symphony_executor"
    )
    stray = login("executor")
    forged = attested(db_user="'forger'", record_hash="NULL::text")
    assert attempt(stray, [base.inserts("", ROWS, forged)[form]]) is None
    assert attempt(stray, [base.inserts("", EVENTS, event())[form]]) is None
    for table, key in ((ROWS, "id"), (EVENTS, "attestation_id")):
        found = owner.execute(
            f"SELECT db_user, xact_id = xmin::text::bigint FROM orchestration.{table}"
            f" WHERE {key} = %s",
            (NEXT if table == ROWS else ALICE_2,),
        ).fetchone()
        assert found == (stray.info.user, True)
    assert (
        scalar(
            owner,
            f"SELECT recorded_by FROM orchestration.{EVENTS} WHERE db_user = %s",
            (stray.info.user,),
        )
        == "forger"
    )
    assert_whole(owner, "alice", 3)


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-006")
def test_a_hash_over_a_forged_db_user_is_refused(owner: Connect) -> None:
    found = refusal(owner, entered(db_user="'forger'", record_hash=RIGHT_HASH))
    assert_invariant(found, "INV-ATT-006", "P7302", ROWS)


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-006")
def test_in_replica_mode_values_arrive_as_they_are_and_are_still_checked(
    superuser: Connect,
) -> None:
    history(superuser)
    superuser.execute("SET session_replication_role = replica")
    arriving = attested(db_user="'forger'", record_hash=RIGHT_HASH)
    assert attempt(superuser, [insert(ROWS, arriving)]) is None
    stored = chain(superuser, "alice")[2]
    assert (stored["db_user"], stored["xact_id"]) == ("forger", 1)
    # The head arrives by its own row; until then it is behind, which harms nothing.
    assert head(superuser, "alice") == (2, stored["prev_hash"])
    assert verify(superuser, "alice") == (True, 3, None, None, None)
    superuser.execute("SET session_replication_role = origin")
    attest(superuser, "alice", "k4")
    assert_whole(superuser, "alice", 4)


@pytest.mark.unchanged(after=history)
@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-005")
@pytest.mark.parametrize("column", ["id", "chain_seq", "prev_hash", "record_hash", "attested_at"])
def test_in_replica_mode_nothing_is_filled_in(superuser: Connect, column: str) -> None:
    superuser.execute("SET session_replication_role = replica")
    missing = attested(**{"record_hash": RIGHT_HASH} | {column: "NULL"})
    found = attempt(superuser, [insert(ROWS, missing)])
    assert found is not None
    assert found.sqlstate in {"P7302", "23502"}


@pytest.mark.unchanged(after=history)
@pytest.mark.parametrize("target", ["", "(id)"])
def test_on_conflict_do_nothing_leaves_an_existing_record_as_it_is(
    owner: Connect, target: str
) -> None:
    before = picture(owner)
    again = entered(id=f"'{ALICE_1}'::uuid")
    assert attempt(owner, [f"{again} ON CONFLICT {target} DO NOTHING"]) is None
    assert picture(owner) == before


@pytest.mark.unchanged(after=history)
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"chain_seq": "7::bigint"},
        {"prev_hash": "NULL::text"},
        {"chain_seq": "NULL::bigint", "record_hash": "NULL::text"},
        {"chain_seq": "1::bigint", "prev_hash": "NULL::text"},
        {"chain_seq": "NULL::bigint", "prev_hash": "''"},
        {"attested_at": f"CAST({LATER} AS timestamptz)"},
        {"policy_version_id": "'v9'"},
        {"caller_identity": "'carol'"},
    ],
    ids=lambda changed: ", ".join(changed) or "another key",
)
def test_an_insert_whose_id_exists_is_left_to_the_primary_key(
    owner: Connect, changed: dict[str, str]
) -> None:
    found = refusal(owner, entered(id=f"'{ALICE_1}'::uuid", **changed))
    assert (found.sqlstate, found.constraint, found.table) == ("23505", f"pk_{ROWS}", ROWS)


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-007")
@pytest.mark.parametrize("key", ["k2", "k9"], ids=["a used key", "a new key"])
@pytest.mark.parametrize(
    "target",
    [
        "(caller_identity, idempotency_key)",
        "(caller_identity, chain_seq)",
        "(caller_identity, prev_hash)",
    ],
)
@pytest.mark.parametrize("caller", ["alice", "bob", "carol"])
def test_a_record_under_an_existing_id_is_passed_over_for_its_own_values_only(
    owner: Connect, caller: str, target: str, key: str
) -> None:
    before = picture(owner)
    insert = (
        f"INSERT INTO orchestration.{ROWS}"
        " (id, caller_identity, idempotency_key, payload_hash, policy_version_id)"
        f" VALUES ('{ALICE_1}', '{caller}', '{key}', repeat('1', 64), 'v1')"
        f" ON CONFLICT {target} DO NOTHING"
    )
    found = attempt(owner, [insert])
    if (caller, key) == ("alice", "k2") and "idempotency_key" in target:
        assert found is None
    else:
        assert found is not None
        assert (found.sqlstate, found.constraint) == ("23505", f"pk_{ROWS}")
    assert picture(owner) == before


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-007")
def test_an_existing_key_inserted_by_hand_is_a_unique_violation(owner: Connect) -> None:
    before = picture(owner)
    found = refusal(owner, BY_HAND, {"caller": "alice", "key": "k1"})
    assert (found.sqlstate, found.constraint) == (
        "23505",
        f"uq_{ROWS}_caller_identity_idempotency_key",
    )
    assert picture(owner) == before


@pytest.mark.unchanged(after=activate_policy)
@pytest.mark.parametrize(
    ("column", "value", "sqlstate", "name"),
    [
        ("caller_identity", "''", "23514", f"ck_{ROWS}_caller_identity"),
        ("caller_identity", "NULL", "23502", None),
        ("idempotency_key", "''", "23514", f"ck_{ROWS}_idempotency_key"),
        ("idempotency_key", "NULL", "23502", None),
        ("payload_hash", "repeat('A', 64)", "23514", f"ck_{ROWS}_payload_hash"),
        ("payload_hash", "repeat('a', 63)", "23514", f"ck_{ROWS}_payload_hash"),
        ("payload_hash", "repeat('a', 63) || chr(10)", "23514", f"ck_{ROWS}_payload_hash"),
        ("payload_hash", "NULL", "23502", None),
        ("signature_hash", "''", "23514", f"ck_{ROWS}_signature_hash"),
        (
            "client_cert_fingerprint_sha256",
            "repeat('g', 64)",
            "23514",
            f"ck_{ROWS}_client_cert_fingerprint_sha256",
        ),
        ("token_hash", "'secret'", "23514", f"ck_{ROWS}_token_hash"),
        ("policy_version_id", "NULL", "23502", None),
        ("execution_started", "NULL", "23502", None),
        ("execution_completed", "NULL", "23502", None),
    ],
)
def test_a_value_that_no_record_may_hold_is_refused(
    owner: Connect, column: str, value: str, sqlstate: str, name: str | None
) -> None:
    values = {
        "caller_identity": "'alice'",
        "idempotency_key": "'k1'",
        "payload_hash": "repeat('1', 64)",
        "policy_version_id": "'v1'",
    } | {column: value}
    found = refusal(
        owner,
        f"INSERT INTO orchestration.{ROWS} ({', '.join(values)})"
        f" VALUES ({', '.join(values.values())})",
    )
    assert (found.sqlstate, found.table) == (sqlstate, ROWS)
    assert (found.constraint if name else found.column) == (name or column)
    assert head(owner, "alice") is None


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-003")
def test_a_terminal_status_that_does_not_exist_is_refused(owner: Connect) -> None:
    found = refusal(
        owner,
        insert(
            ROWS,
            attested(
                execution_started="true",
                execution_completed="true",
                terminal_status="'DONE'::text",
                record_hash=RIGHT_HASH,
            ),
        ),
    )
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{ROWS}_terminal_status")
    found = refusal(
        owner,
        insert(
            EVENTS,
            event(
                attestation_id=f"'{ALICE_1}'::uuid",
                event="'EXECUTION_COMPLETED'",
                terminal_status="'DONE'::text",
            ),
        ),
    )
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{EVENTS}_terminal_status")


@pytest.mark.invariant("INV-ATT-011")
@pytest.mark.parametrize("moment", ["2020-01-01 12:00:00.000001Z", "0001-01-01 00:00:00Z"])
def test_a_past_attested_at_is_kept_to_the_microsecond(owner: Connect, moment: str) -> None:
    history(owner)
    select = first_of_carol(attested_at=f"'{moment}'::timestamptz", record_hash="NULL::text")
    assert attempt(owner, [insert(ROWS, select)]) is None
    assert scalar(
        owner,
        f"SELECT attested_at = %s::timestamptz FROM orchestration.{ROWS} WHERE id = %s",
        (moment, NEXT),
    )
    assert verify(owner, "carol") == (True, 1, None, None, None)


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-011")
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    "moment", ["4000-01-01 00:00:00Z BC", "0001-12-31 23:59:59Z BC", "0001-01-01 00:00:00+01"]
)
def test_a_time_that_not_every_calendar_has_is_refused(
    owner: Connect, moment: str, zone: str
) -> None:
    owner.execute(f"SET TimeZone = '{zone}'")
    for table, statement in (
        (
            ROWS,
            insert(
                ROWS,
                first_of_carol(attested_at=f"'{moment}'::timestamptz", record_hash="NULL::text"),
            ),
        ),
        (EVENTS, insert(EVENTS, event(occurred_at=f"'{moment}'::timestamptz"))),
    ):
        found = refusal(owner, statement)
        assert (found.sqlstate, found.constraint) == ("23514", f"ck_{table}_years")


@pytest.mark.invariant("INV-ATT-002", "INV-ATT-003")
@pytest.mark.parametrize(
    ("started", "completed", "status"),
    [("true", "false", "NULL"), *(("true", "true", f"'{s}'") for s in ("SUCCESS", "FAILED"))],
)
def test_ingress_that_already_ran_is_imported_with_its_flags(
    owner: Connect, started: str, completed: str, status: str
) -> None:
    history(owner)
    select = attested(
        execution_started=started,
        execution_completed=completed,
        terminal_status=f"{status}::text",
        record_hash=RIGHT_HASH,
    )
    assert attempt(owner, [insert(ROWS, select)]) is None
    assert_whole(owner, "alice", 3)
    found = owner.execute(
        "SELECT execution_started, execution_completed, terminal_status"
        " FROM orchestration.ingress_attestation_status WHERE attestation_id = %s",
        (NEXT,),
    ).fetchone()
    assert found == (True, completed == "true", None if status == "NULL" else status.strip("'"))


# The chain.


@pytest.mark.invariant("INV-ATT-004", "INV-ATT-005")
def test_the_rows_of_one_insert_continue_their_callers_chains(owner: Connect) -> None:
    activate_policy(owner)
    owner.execute(
        f"INSERT INTO orchestration.{ROWS}"
        " (caller_identity, idempotency_key, payload_hash, policy_version_id)"
        " SELECT CASE n % 3 WHEN 0 THEN 'alice' WHEN 1 THEN 'bob' ELSE 'carol' END, n::text,"
        " repeat('1', 64), 'v1' FROM generate_series(0, 29) AS n"
    )
    for caller in ("alice", "bob", "carol"):
        assert_whole(owner, caller, 10)
    assert [record["idempotency_key"] for record in chain(owner, "bob")] == [
        str(number) for number in range(1, 30, 3)
    ]


@pytest.mark.invariant("INV-ATT-005")
def test_the_rows_of_one_copy_continue_their_callers_chains(owner: Connect) -> None:
    activate_policy(owner)
    with owner.cursor().copy(
        f"COPY orchestration.{ROWS}"
        " (caller_identity, idempotency_key, payload_hash, policy_version_id) FROM STDIN"
    ) as stream:
        for number in range(40):
            stream.write_row((f"caller {number % 2}", str(number), ZEROS, "v1"))
    assert_whole(owner, "caller 0", 20)
    assert_whole(owner, "caller 1", 20)


@pytest.mark.invariant("INV-ATT-005", "INV-ATT-007")
def test_do_nothing_in_the_middle_of_a_multi_row_insert_leaves_no_gap(owner: Connect) -> None:
    history(owner)
    owner.execute(
        f"INSERT INTO orchestration.{ROWS}"
        " (caller_identity, idempotency_key, payload_hash, policy_version_id)"
        " SELECT 'alice', key, repeat('1', 64), 'v1'"
        " FROM unnest(ARRAY['k1', 'k3', 'k3', 'k2', 'k4', 'k1']) AS key ON CONFLICT DO NOTHING"
    )
    assert [record["idempotency_key"] for record in chain(owner, "alice")] == [
        *("k1", "k2", "k3", "k4"),
    ]
    assert_whole(owner, "alice", 4)


@pytest.mark.invariant("INV-ATT-005", "INV-ATT-007")
@pytest.mark.parametrize("target", ["", "(caller_identity, idempotency_key)"])
def test_an_insert_that_stored_nothing_leaves_no_gap(owner: Connect, target: str) -> None:
    history(owner)
    before = picture(owner)
    with owner.transaction():
        done = owner.execute(
            f"{BY_HAND} ON CONFLICT {target} DO NOTHING",
            {"caller": "alice", "key": "k1"},
        )
        assert done.rowcount == 0
        assert picture(owner) == before
        owner.execute(BY_HAND, {"caller": "alice", "key": "k3"})
    assert_whole(owner, "alice", 3)


@pytest.mark.invariant("INV-ATT-005")
def test_a_first_insert_that_is_undone_leaves_no_gap(owner: Connect) -> None:
    activate_policy(owner)
    with owner.transaction(force_rollback=True):
        attest(owner, "alice", "k1")
    with owner.transaction():
        attest(owner, "alice", "k2")
        with owner.transaction(force_rollback=True):
            attest(owner, "alice", "k3", "k4")
        attest(owner, "alice", "k5")
    assert [record["idempotency_key"] for record in chain(owner, "alice")] == ["k2", "k5"]
    assert_whole(owner, "alice", 2)


@pytest.mark.invariant("INV-ATT-005", "INV-ATT-007")
def test_one_key_replayed_a_hundred_times_moves_no_head(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    history(owner)
    ingest = login("ingest")
    first = attest(ingest, "alice", "k3")
    again = [made | {"replayed": True} for made in first]
    for _ in range(100):
        assert attest(ingest, "alice", "k3") == again
    assert_whole(owner, "alice", 3)
    attest(ingest, "alice", "k4")
    assert_whole(owner, "alice", 4)


@pytest.mark.invariant("INV-ATT-005")
def test_a_chain_whose_tail_was_removed_is_not_continued(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    history(owner)
    owner.execute(f"ALTER TABLE orchestration.{ROWS} DISABLE TRIGGER append_only")
    owner.execute(f"DELETE FROM orchestration.{ROWS} WHERE id = %s", (ALICE_2,))
    owner.execute(f"ALTER TABLE orchestration.{ROWS} ENABLE ALWAYS TRIGGER append_only")
    for connection, statement in (
        (owner, entered(chain_seq="2::bigint", prev_hash=FIRST_OF_ALICE)),
        (
            login("ingest"),
            f"SELECT orchestration.append_attestations('{batch('alice', 'k3')}')",
        ),
    ):
        found = refusal(connection, statement)
        assert_invariant(found, "INV-ATT-005", "P7302", ROWS)
        assert found.column == "chain_seq"
        assert found.keys == {
            "caller_identity": "alice",
            "idempotency_key": "k3",
            "head": 2,
            "chain_seq": 1,
        }
    # Other chains go on.
    attest(login("ingest"), "bob", "k2")
    assert_whole(owner, "bob", 2)


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-005")
def test_a_chain_that_vanished_as_a_whole_is_not_begun_again(superuser: Connect) -> None:
    history(superuser)
    superuser.execute(f"ALTER TABLE orchestration.{ROWS} DISABLE TRIGGER append_only")
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(f"DELETE FROM orchestration.{ROWS} WHERE caller_identity = 'alice'")
    superuser.execute("SET session_replication_role = origin")
    superuser.execute(f"ALTER TABLE orchestration.{ROWS} ENABLE ALWAYS TRIGGER append_only")
    found = refusal(superuser, entered(chain_seq="1::bigint", prev_hash="''"))
    assert_invariant(found, "INV-ATT-005", "P7302", ROWS)
    assert found.keys["chain_seq"] == 0


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-005")
def test_a_missing_head_is_read_again_from_the_chain(superuser: Connect) -> None:
    history(superuser)
    superuser.execute(f"ALTER TABLE orchestration.{HEADS} DISABLE TRIGGER no_delete")
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(f"DELETE FROM orchestration.{HEADS}")
    superuser.execute("SET session_replication_role = origin")
    superuser.execute(f"ALTER TABLE orchestration.{HEADS} ENABLE ALWAYS TRIGGER no_delete")
    attest(superuser, "alice", "k3", "k4")
    assert_whole(superuser, "alice", 4)
    superuser.execute(BY_HAND, {"caller": "bob", "key": "k2"})
    assert_whole(superuser, "bob", 2)


@pytest.mark.invariant("INV-ATT-005")
@pytest.mark.parametrize("seq", [0, 1])
def test_a_head_that_is_behind_is_read_again_from_the_chain(owner: Connect, seq: int) -> None:
    history(owner)
    owner.execute(
        f"UPDATE orchestration.{HEADS} SET chain_seq = %s, record_hash = ''"
        " WHERE caller_identity = 'alice'",
        (seq,),
    )
    attest(owner, "alice", "k3")
    assert_whole(owner, "alice", 3)


# The function.


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-007")
def test_a_key_with_other_content_is_refused(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    before = picture(owner)
    statement = "SELECT orchestration.append_attestations(%s)"
    found = refusal(login("ingest"), statement, (batch("alice", "k1", payload_hash=ZEROS),))
    assert_invariant(found, "INV-ATT-007", "P7303", ROWS)
    assert found.column == "idempotency_key"
    assert found.keys == {
        "id": str(ALICE_1),
        "caller_identity": "alice",
        "idempotency_key": "k1",
    }
    assert picture(owner) == before


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-007")
@pytest.mark.parametrize("given", [{"payload_hash": None}, {}], ids=["null", "left out"])
def test_a_replay_without_its_payload_hash_is_refused_and_shows_nothing(
    owner: Connect, login: Callable[[str], Connect], given: dict[str, None]
) -> None:
    before = picture(owner)
    (item,) = json.loads(batch("alice", "k1"))
    del item["payload_hash"]
    statement = "SELECT orchestration.append_attestations(%s)"
    found = refusal(login("ingest"), statement, (json.dumps([item | given]),))
    assert_invariant(found, "INV-API-001", "23502", ROWS)
    assert found.keys == {"ordinal": 1, "column": "payload_hash"}
    assert picture(owner) == before


@pytest.mark.invariant("INV-ATT-007")
def test_two_callers_may_use_one_key(owner: Connect, login: Callable[[str], Connect]) -> None:
    history(owner)
    ingest = login("ingest")
    attest(ingest, "carol", "k1")
    attest(ingest, "dave", "k1", payload_hash=ZEROS)
    assert_whole(owner, "carol", 1)
    assert_whole(owner, "dave", 1)


@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.parametrize("policy", ["v1", "v9", None])
def test_a_policy_that_is_not_accepted_is_refused(
    owner: Connect, login: Callable[[str], Connect], policy: str | None
) -> None:
    for id in ("v1", "v2", "v3"):
        activate_policy(owner, id)
    items = json.loads(batch("alice", "k1")) + json.loads(batch("alice", "k2"))
    items[0]["policy_version_id"] = "v2"
    items[1]["policy_version_id"] = policy
    statement = "SELECT orchestration.append_attestations(%s)"
    found = refusal(login("ingest"), statement, (json.dumps(items),))
    assert_invariant(found, "INV-ATT-008", "P7105", "policy_versions")
    assert found.column == "id"
    assert found.keys == {"id": policy, "caller_identity": "alice", "idempotency_key": "k2"}
    assert chain(owner, "alice") == []


@pytest.mark.invariant("INV-ATT-008")
def test_the_owner_may_import_what_was_attested_under_a_retired_policy(owner: Connect) -> None:
    history(owner)
    for id in ("v2", "v3"):
        activate_policy(owner, id)
    owner.execute(BY_HAND, {"caller": "alice", "key": "k3"})
    assert_whole(owner, "alice", 3)


@pytest.mark.invariant("INV-ATT-009")
@pytest.mark.parametrize(
    ("field", "table", "column"),
    [
        (
            "client_cert_fingerprint_sha256",
            "revoked_client_certs",
            "cert_fingerprint_sha256",
        ),
        ("token_hash", "revoked_tokens", "token_hash"),
    ],
)
def test_a_revoked_credential_attests_nothing_more(
    owner: Connect, login: Callable[[str], Connect], field: str, table: str, column: str
) -> None:
    history(owner)
    ingest, revoked = login("ingest"), digest("revoked")
    earlier = attest(ingest, "alice", "k3", **{field: revoked})
    function = "revoke_client_cert" if table == "revoked_client_certs" else "revoke_token"
    login("control").execute(
        f"SELECT FROM orchestration.{function}(%s, 'keyCompromise')",
        (revoked,),
    )
    statement = "SELECT orchestration.append_attestations(%s)"
    found = refusal(ingest, statement, (batch("alice", "k4", **{field: revoked}),))
    assert_invariant(found, "INV-ATT-009", "P7202", table)
    assert found.column == column
    # Never the hash.
    credential = "CLIENT_CERT" if table == "revoked_client_certs" else "TOKEN"
    assert found.keys == {
        "credential": credential,
        "caller_identity": "alice",
        "idempotency_key": "k4",
    }
    # Acceptance is judged once: the replay is answered.
    again = [made | {"replayed": True} for made in earlier]
    assert attest(ingest, "alice", "k3", **{field: revoked}) == again
    assert_whole(owner, "alice", 3)


@pytest.mark.unchanged
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("batch", ["{}", '"x"', "null", "1", None])
def test_what_is_no_batch_is_refused(login: Callable[[str], Connect], batch: str | None) -> None:
    statement = "SELECT orchestration.append_attestations(%s::jsonb)"
    found = refusal(login("ingest"), statement, (batch,))
    assert_invariant(found, "INV-API-001", "22023", ROWS)


# Events.


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    "column", ["payload_hash", "signature_hash", "client_cert_fingerprint_sha256", "token_hash"]
)
@pytest.mark.parametrize(
    "value",
    ["Bearer secret", "", "secret" + "a" * 57, "secret" + "a" * 58, "A" * 64, "a" * 63 + "\n"],
    ids=["a credential", "nothing", "63 characters", "no hex", "upper case", "a line's end"],
)
@pytest.mark.parametrize("key", ["k1", "new"], ids=["a replay", "a new record"])
def test_a_malformed_hash_is_refused_and_never_shown(
    owner: Connect, login: Callable[[str], Connect], column: str, value: str, key: str
) -> None:
    before = picture(owner)
    whole = json.loads(batch("alice", "k1", "k2", "k3"))
    whole[2] |= {"idempotency_key": key, column: value}
    found = refusal(
        login("ingest"), "SELECT orchestration.append_attestations(%s)", (json.dumps(whole),)
    )
    assert_invariant(found, "INV-API-001", "22023", ROWS)
    assert (found.column, found.keys) == (column, {"ordinal": 3, "column": column})
    assert not value or value not in repr(found)
    assert "secret" not in repr(found)
    assert picture(owner) == before


@pytest.mark.unchanged(after=history)
def test_of_malformed_hashes_the_first_is_named(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    whole = json.loads(batch("alice", *(f"n{n}" for n in range(20)), token_hash=ZEROS))
    whole[11] |= {"token_hash": "x", "payload_hash": None}
    whole[7] |= {"token_hash": "x", "signature_hash": "y"}
    found = refusal(
        login("ingest"), "SELECT orchestration.append_attestations(%s)", (json.dumps(whole),)
    )
    assert found.keys == {"ordinal": 8, "column": "signature_hash"}


@pytest.mark.unchanged(after=history)
def test_a_missing_payload_hash_is_left_to_the_column(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    found = refusal(
        login("ingest"),
        "SELECT orchestration.append_attestations(%s)",
        (json.dumps([json.loads(batch("alice", "k3"))[0] | {"payload_hash": None}]),),
    )
    assert (found.sqlstate, found.table, found.column) == ("23502", ROWS, "payload_hash")


@pytest.mark.invariant("INV-ATT-002", "INV-ATT-010")
def test_an_event_is_recorded_once_and_a_repetition_is_answered_with_it(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    history(owner)
    executor = login("executor")
    *started, replayed = record_event(executor, ALICE_2, "EXECUTION_STARTED")
    assert replayed is False
    assert record_event(executor, ALICE_2, "EXECUTION_STARTED") == (*started, True)
    *completed, replayed = record_event(executor, ALICE_2, "EXECUTION_COMPLETED", "REPAIRED")
    assert replayed is False
    again = record_event(executor, ALICE_2, "EXECUTION_COMPLETED", "REPAIRED")
    assert again == (*completed, True)
    assert record_event(executor, ALICE_2, "EXECUTION_STARTED") == (*started, True)
    stored = owner.execute(
        f"SELECT * FROM orchestration.{EVENTS} WHERE attestation_id = %s ORDER BY event DESC",
        (ALICE_2,),
    ).fetchall()
    assert stored == [tuple(started), tuple(completed)]
    found = executor.execute(
        "SELECT execution_started, execution_started_at, execution_completed,"
        " execution_completed_at, terminal_status"
        " FROM orchestration.ingress_attestation_status WHERE attestation_id = %s",
        (ALICE_2,),
    ).fetchone()
    assert found == (True, started[4], True, completed[4], "REPAIRED")


@pytest.mark.invariant("INV-ATT-010")
def test_a_completion_with_another_status_is_refused(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    history(owner)
    executor = login("executor")
    record_event(executor, ALICE_1, "EXECUTION_COMPLETED", "SUCCESS")
    statement = (
        "SELECT orchestration.record_attestation_event(p_attestation_id => %s,"
        " p_event => 'EXECUTION_COMPLETED', p_terminal_status => 'FAILED')"
    )
    for id in (ALICE_1, BOB_1):
        found = refusal(executor, statement, (id,))
        assert_invariant(found, "INV-ATT-010", "P7301", EVENTS)
        assert found.column == "terminal_status"
        assert found.keys == {
            "attestation_id": str(id),
            "event": "EXECUTION_COMPLETED",
            "terminal_status": "SUCCESS",
        }


@pytest.mark.invariant("INV-ATT-003")
@pytest.mark.parametrize("completed_before", [False, True])
def test_a_completion_without_a_status_is_refused(
    owner: Connect, login: Callable[[str], Connect], completed_before: bool
) -> None:
    history(owner)
    executor = login("executor")
    if completed_before:
        record_event(executor, ALICE_1, "EXECUTION_COMPLETED", "SUCCESS")
    found = refusal(
        executor,
        "SELECT orchestration.record_attestation_event(%s, 'EXECUTION_COMPLETED')",
        (ALICE_1,),
    )
    assert_invariant(found, "INV-ATT-003", "P7301", EVENTS)
    assert found.column == "terminal_status"


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-010")
def test_a_flag_counts_as_its_event(owner: Connect, login: Callable[[str], Connect]) -> None:
    executor = login("executor")
    record = chain(owner, "bob")[0]
    for kind, status in (("EXECUTION_STARTED", None), ("EXECUTION_COMPLETED", "SUCCESS")):
        assert record_event(executor, BOB_1, kind, status) == (
            *(BOB_1, kind, "bob", status, record["attested_at"]),
            *(record["db_user"], record["db_user"], record["xact_id"], True),
        )
    assert (
        scalar(
            owner,
            f"SELECT count(*) FROM orchestration.{EVENTS} WHERE attestation_id = %s",
            (BOB_1,),
        )
        == 0
    )


@pytest.mark.invariant("INV-ATT-002")
def test_what_was_imported_as_started_completes_without_another_start(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    history(owner)
    select = attested(execution_started="true", record_hash=RIGHT_HASH)
    assert attempt(owner, [insert(ROWS, select)]) is None
    record_event(login("executor"), NEXT, "EXECUTION_COMPLETED", "SUCCESS")
    found = owner.execute(
        "SELECT execution_started, execution_started_at, execution_completed, terminal_status"
        " FROM orchestration.ingress_attestation_status WHERE attestation_id = %s",
        (NEXT,),
    ).fetchone()
    assert found == (True, None, True, "SUCCESS")


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-ATT-002")
def test_a_completion_before_the_start_is_refused_by_the_function_too(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    found = refusal(
        login("executor"),
        "SELECT orchestration.record_attestation_event(%s, 'EXECUTION_COMPLETED', 'SUCCESS')",
        (ALICE_2,),
    )
    assert_invariant(found, "INV-ATT-002", "P7301", EVENTS)


@pytest.mark.unchanged(after=history)
@pytest.mark.invariant("INV-API-002")
def test_an_event_of_nothing_is_refused(owner: Connect, login: Callable[[str], Connect]) -> None:
    found = refusal(
        login("executor"),
        "SELECT orchestration.record_attestation_event(%s, 'EXECUTION_STARTED')",
        (NEXT,),
    )
    assert_invariant(found, "INV-API-002", "P0002", ROWS)
    assert found.keys == {"id": str(NEXT)}
    by_hand = insert(EVENTS, event(attestation_id=f"'{NEXT}'"))
    found = refusal(owner, by_hand)
    assert (found.sqlstate, found.constraint) == ("23503", f"fk_{EVENTS}_attestation_id")


@pytest.mark.unchanged(after=history)
@pytest.mark.parametrize("kind", ["EXECUTION_PAUSED", ""])
def test_an_event_that_does_not_exist_is_refused(
    owner: Connect, login: Callable[[str], Connect], kind: str
) -> None:
    found = refusal(
        login("executor"), "SELECT orchestration.record_attestation_event(%s, %s)", (ALICE_1, kind)
    )
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{EVENTS}_event")


def test_an_event_with_an_empty_recorder_is_refused(
    owner: Connect, login: Callable[[str], Connect]
) -> None:
    history(owner)
    found = refusal(
        login("executor"),
        "SELECT orchestration.record_attestation_event(%s, 'EXECUTION_STARTED',"
        " p_recorded_by => '')",
        (ALICE_2,),
    )
    assert (found.sqlstate, found.constraint) == ("23514", f"ck_{EVENTS}_recorded_by")


# The hash.

VECTORS = vectors("attestation-chain.md")

SETTINGS: Sequence[dict[str, str]] = (
    {"TimeZone": "UTC", "DateStyle": "ISO, MDY"},
    {"TimeZone": "Asia/Kolkata", "DateStyle": "German, DMY", "IntervalStyle": "iso_8601"},
    {"TimeZone": "America/St_Johns", "DateStyle": "SQL, YMD", "extra_float_digits": "-15"},
    {"TimeZone": "Pacific/Apia", "DateStyle": "Postgres, MDY", "bytea_output": "escape"},
    {"lc_numeric": "C", "lc_time": "C", "lc_monetary": "C"},
    {"client_encoding": "LATIN1", "standard_conforming_strings": "on"},
    {"enable_seqscan": "off", "jit": "off", "plan_cache_mode": "force_generic_plan"},
)

each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: next(iter(s.values())))


def apply(connection: Connect, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))


@pytest.mark.unchanged
@pytest.mark.invariant("INV-ATT-006")
@each_setting
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_database_gives_the_published_hashes_under_any_setting(
    owner: Connect, vector: dict[str, Any], settings: dict[str, str]
) -> None:
    apply(owner, settings)
    found = scalar(
        owner,
        "SELECT orchestration.attestation_record_hash("
        "jsonb_populate_record(NULL::orchestration.ingress_attestations, %s::jsonb))",
        (json.dumps(vector["record"], ensure_ascii=True),),
    )
    assert found == vector["record_hash"]


@pytest.mark.invariant("INV-ATT-006")
@each_setting
def test_what_the_database_wrote_under_any_setting_is_hashed_by_the_format(
    owner: Connect, login: Callable[[str], Connect], settings: dict[str, str]
) -> None:
    activate_policy(owner)
    ingest = login("ingest")
    apply(ingest, settings)
    caller = "Zoë, 3:a,-,"
    whole = batch(
        caller,
        *("k1", "🏦,", "-", "株:x,"),
        signature_hash=digest("s"),
        client_cert_fingerprint_sha256=digest("c"),
        token_hash=digest("t"),
    )
    for sent in (whole, batch(caller, "bare")):
        ingest.execute("SELECT count(*) FROM orchestration.append_attestations(%s)", (sent,))
    assert_whole(owner, caller, 5)
    apply(owner, settings)
    assert verify(owner, caller) == (True, 5, None, None, None)


# Verification.


def tamper(owner: Connect, *statements: str) -> None:
    """What an owner can do who takes the guards away for a moment."""
    with owner.transaction():
        owner.execute(f"ALTER TABLE orchestration.{ROWS} DISABLE TRIGGER append_only")
        for statement in statements:
            owner.execute(statement)
        owner.execute(f"ALTER TABLE orchestration.{ROWS} ENABLE ALWAYS TRIGGER append_only")


def of(key: str) -> str:
    return f"caller_identity = 'alice' AND idempotency_key = '{key}'"


REHASH = "record_hash = orchestration.attestation_record_hash(ingress_attestations)"
TAMPERED = {
    "an edited payload_hash": (
        [f"UPDATE orchestration.{ROWS} SET payload_hash = repeat('f', 64) WHERE {of('k3')}"],
        (5, 3, "k3", "record_hash is not the hash of the record"),
    ),
    "an edited record_hash": (
        [f"UPDATE orchestration.{ROWS} SET record_hash = repeat('f', 64) WHERE {of('k3')}"],
        (5, 3, "k3", "record_hash is not the hash of the record"),
    ),
    "an edited prev_hash": (
        [f"UPDATE orchestration.{ROWS} SET prev_hash = repeat('f', 64) WHERE {of('k3')}"],
        (5, 3, "k3", "prev_hash is not the record_hash of the row before"),
    ),
    "an edited record that was hashed again": (
        [
            f"UPDATE orchestration.{ROWS} SET payload_hash = repeat('f', 64) WHERE {of('k3')}",
            f"UPDATE orchestration.{ROWS} SET {REHASH} WHERE {of('k3')}",
        ],
        (5, 4, "k4", "prev_hash is not the record_hash of the row before"),
    ),
    "an edited last record that was hashed again": (
        [
            f"UPDATE orchestration.{ROWS} SET payload_hash = repeat('f', 64) WHERE {of('k5')}",
            f"UPDATE orchestration.{ROWS} SET {REHASH} WHERE {of('k5')}",
        ],
        (5, 5, None, "the head has a different record_hash"),
    ),
    "a removed middle record": (
        [f"DELETE FROM orchestration.{ROWS} WHERE {of('k3')}"],
        (4, 4, "k4", "records before this one are missing"),
    ),
    "a removed first record": (
        [f"DELETE FROM orchestration.{ROWS} WHERE {of('k1')}"],
        (4, 2, "k2", "records before this one are missing"),
    ),
    "two removed records, the later ones renumbered": (
        [
            f"DELETE FROM orchestration.{ROWS} WHERE {of('k3')}",
            f"UPDATE orchestration.{ROWS} SET chain_seq = 3 WHERE {of('k4')}",
        ],
        (4, 3, "k4", "prev_hash is not the record_hash of the row before"),
    ),
    "a trimmed tail": (
        [f"DELETE FROM orchestration.{ROWS} WHERE {of('k5')} OR {of('k4')}"],
        (3, 5, None, "the newest records are missing: the head is ahead"),
    ),
    "nothing left": (
        [f"DELETE FROM orchestration.{ROWS} WHERE caller_identity = 'alice'"],
        (0, 5, None, "the newest records are missing: the head is ahead"),
    ),
    "an edited flag": (
        [f"UPDATE orchestration.{ROWS} SET execution_started = true WHERE {of('k1')}"],
        (5, 1, "k1", "record_hash is not the hash of the record"),
    ),
    "an attested_at shifted by a microsecond": (
        [
            f"UPDATE orchestration.{ROWS} SET attested_at = attested_at - interval '1 us'"
            f" WHERE {of('k2')}"
        ],
        (5, 2, "k2", "record_hash is not the hash of the record"),
    ),
    "an attested_at that goes back, hashed again": (
        [
            f"UPDATE orchestration.{ROWS} SET attested_at = '2020-01-01Z' WHERE {of('k5')}",
            f"UPDATE orchestration.{ROWS} SET {REHASH} WHERE {of('k5')}",
        ],
        (5, 5, "k5", "attested_at is earlier than in the record before"),
    ),
    "another db_user": (
        [f"UPDATE orchestration.{ROWS} SET db_user = 'somebody' WHERE {of('k2')}"],
        (5, 2, "k2", "record_hash is not the hash of the record"),
    ),
    "two breaks": (
        [
            f"UPDATE orchestration.{ROWS} SET payload_hash = repeat('f', 64) WHERE {of('k4')}",
            f"UPDATE orchestration.{ROWS} SET policy_version_id = 'v0' WHERE {of('k2')}",
        ],
        (5, 2, "k2", "record_hash is not the hash of the record"),
    ),
}


@pytest.mark.invariant("INV-ATT-001", "INV-ATT-005", "INV-ATT-006", "INV-REV-007")
@pytest.mark.parametrize("role", ["auditor", "control"])
@pytest.mark.parametrize("what", TAMPERED)
def test_verification_finds_the_first_break_and_says_where(
    owner: Connect, login: Callable[[str], Connect], what: str, role: str
) -> None:
    activate_policy(owner)
    keys = ("k1", "k2", "k3", "k4", "k5")
    ids = {record["idempotency_key"]: record["id"] for record in attest(owner, "alice", *keys)}
    attest(owner, "bob", *keys)
    statements, (records, seq, key, reason) = TAMPERED[what]
    tamper(owner, *statements)
    verifier = login(role)
    assert verify(verifier, "alice") == (False, records, seq, ids[key] if key else None, reason)
    assert verify(verifier, "bob") == (True, 5, None, None, None)


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-001", "INV-ATT-010")
def test_verification_finds_an_event_without_an_attestation_of_its_caller(
    superuser: Connect, login: Callable[[str], Connect]
) -> None:
    history(superuser)
    attest(superuser, "carol", "k1")
    auditor = login("auditor")
    reason = "an event has no attestation of the same caller"
    superuser.execute("SET session_replication_role = replica")

    # An event of alice's goes over to carol, who never attested what it names.
    superuser.execute(f"ALTER TABLE orchestration.{EVENTS} DISABLE TRIGGER append_only")
    superuser.execute(f"UPDATE orchestration.{EVENTS} SET caller_identity = 'carol'")
    assert verify(auditor, "alice") == (True, 2, None, None, None)
    assert verify(auditor, "carol") == (False, 1, None, ALICE_1, reason)

    # The attestation of an event vanishes, together with every other trace of its caller.
    superuser.execute(f"UPDATE orchestration.{EVENTS} SET caller_identity = 'alice'")
    superuser.execute(f"ALTER TABLE orchestration.{ROWS} DISABLE TRIGGER append_only")
    superuser.execute(f"DELETE FROM orchestration.{ROWS} WHERE caller_identity = 'alice'")
    superuser.execute(f"ALTER TABLE orchestration.{HEADS} DISABLE TRIGGER no_delete")
    superuser.execute(f"DELETE FROM orchestration.{HEADS} WHERE caller_identity = 'alice'")
    assert verify(auditor, "alice") == (False, 0, None, ALICE_1, reason)
    assert verify(auditor, "carol") == (True, 1, None, None, None)


@pytest.mark.unchanged
def test_a_chain_of_no_caller_is_not_called_whole(login: Callable[[str], Connect]) -> None:
    (found,) = login("auditor").execute(
        "SELECT ok, records, break_chain_seq, break_attestation_id, break_reason"
        " FROM orchestration.verify_attestation_chain(NULL)"
    )
    assert found == (False, 0, None, None, "p_caller_identity is null")


@pytest.mark.unchanged
@pytest.mark.parametrize("caller", ["nobody", ""])
def test_an_unknown_callers_chain_holds(login: Callable[[str], Connect], caller: str) -> None:
    assert verify(login("auditor"), caller) == (True, 0, None, None, None)


@pytest.mark.superuser
@pytest.mark.invariant("INV-ATT-010")
def test_in_replica_mode_events_arrive_as_they_are(superuser: Connect) -> None:
    history(superuser)
    superuser.execute("SET session_replication_role = replica")
    assert attempt(superuser, [insert(EVENTS, event())]) is None
    found = superuser.execute(
        f"SELECT db_user, xact_id FROM orchestration.{EVENTS} WHERE attestation_id = %s",
        (ALICE_2,),
    ).fetchone()
    assert found == ("forger", 1)

"""Logical replication: a subscriber has every row, guard, grant and chain, in whatever order its
tables are copied. It accepts writes after it has taken over."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from sqlalchemy import URL
from tools import scratch

from tests.operations.conftest import Source
from tests.operations.support import (
    assert_goes_on,
    assert_kept,
    await_true,
    block,
    blocks,
    contents,
    differences,
    findings,
    go_on,
    run,
    sqlstate,
    tables,
    with_writers,
)
from tests.support import connect, scalar

pytestmark = pytest.mark.own_cluster

UNEVENLY_ORDERED = {
    "audit_log": "uq_audit_log_prev_hash",
    "execution_attempts": "pk_execution_attempts",
    "ingress_attestation_events": "pk_ingress_attestation_events",
    "ingress_attestations": "uq_ingress_attestations_caller_identity_prev_hash",
    "payment_outbox_attempts": "pk_payment_outbox_attempts",
    "transaction_attempts": "pk_transaction_attempts",
}
"""Indexes whose order differs from the order of the inserts: by hash, or CLOSE before OPEN."""


@dataclass(frozen=True)
class Pair:
    """A database with evidence that publishes, and a database that subscribes to it."""

    publisher: URL
    subscriber: URL
    folder: Path

    def subscribe(self) -> None:
        script = block("Logical replication", "sh")
        option = "\nWITH (run_as_owner = true)"
        assert option in script
        with connect(self.subscriber) as superuser:
            if superuser.info.server_version < 160000:
                script = script.replace(option, "")
        run(script, self.folder, SOURCE=self.publisher, TARGET=self.subscriber)

    def catch_up(self) -> None:
        """Wait until all tables are copied and everything that is committed so far is applied."""
        with connect(self.subscriber) as there:
            await_true(
                there,
                "SELECT count(*) > 0 AND bool_and(srsubstate = 'r')"
                " FROM pg_catalog.pg_subscription_rel",
            )
        with connect(self.publisher) as here:
            position = scalar(here, "SELECT pg_catalog.pg_current_wal_lsn()")
            await_true(
                here,
                "SELECT coalesce(bool_and(replay_lsn >= %s::pg_lsn), false)"
                " FROM pg_catalog.pg_stat_replication",
                (position,),
            )


@pytest.fixture
def pair(
    source: Source,
    elsewhere: scratch.Server,
    empty: Callable[[scratch.Server], URL],
    tmp_path: Path,
) -> Iterator[Pair]:
    """A copy of the database with evidence, and an empty database on another cluster. A
    subscription that exists at the end is dropped before them."""
    made = Pair(empty(source.at), empty(elsewhere), tmp_path)
    run(block("Custom format", "sh"), tmp_path, SOURCE=source.url, TARGET=made.publisher)
    yield made
    with connect(made.subscriber) as superuser:
        superuser.execute("DROP SUBSCRIPTION IF EXISTS orchestration")


def at(subscriber: URL, logins: Mapping[str, URL]) -> dict[str, URL]:
    """The logins on the subscriber's server, to which the roles were copied with their
    passwords."""
    return {
        role: url.set(host=subscriber.host, port=subscriber.port) for role, url in logins.items()
    }


def engage(by: Any) -> None:
    by.control.execute(
        "SELECT FROM orchestration.engage_kill_switch(p_scope => 'GLOBAL', p_reason => 'test')"
    )


def release(by: Any) -> None:
    by.control.execute(
        "SELECT FROM orchestration.release_kill_switch(p_scope => 'GLOBAL', p_reason => 'test')"
    )


def mix(publisher: URL) -> None:
    """Store the rows in an order that differs from the order in which they were inserted."""
    with connect(publisher) as superuser:
        for table, index in UNEVENLY_ORDERED.items():
            superuser.execute(
                sql.SQL("CLUSTER orchestration.{} USING {}").format(
                    sql.Identifier(table), sql.Identifier(index)
                )
            )


def test_a_subscriber_holds_what_the_publisher_holds_and_takes_over(
    source: Source, pair: Pair
) -> None:
    mix(pair.publisher)
    # The copied rows were written before the switch was engaged.
    with_writers(pair.publisher, source.logins, engage)
    with connect(pair.publisher) as superuser:
        superuser.execute(block("Logical replication", "sql").encode())
    pair.subscribe()
    pair.catch_up()
    assert_kept(pair.subscriber, pair.publisher)

    with_writers(pair.publisher, source.logins, release)
    go_on(pair.publisher, source.logins, "streamed")
    with_writers(pair.publisher, source.logins, engage)
    pair.catch_up()
    assert_kept(pair.subscriber, pair.publisher)

    with connect(pair.subscriber) as superuser:
        superuser.execute("DROP SUBSCRIPTION orchestration")
    logins = at(pair.subscriber, source.logins)
    with_writers(pair.subscriber, logins, release)
    assert_goes_on(pair.subscriber, logins)
    assert differences(pair.subscriber) == []


def test_a_subscriber_takes_over_from_a_publisher_that_is_gone(source: Source, pair: Pair) -> None:
    with connect(pair.publisher) as here:
        here.execute(block("Logical replication", "sql").encode())
    pair.subscribe()
    pair.catch_up()
    alone, afterwards = blocks("Taking over", "sql")
    with connect(pair.subscriber) as there:
        there.execute(alone.encode())
    logins = at(pair.subscriber, source.logins)
    assert_goes_on(pair.subscriber, logins)
    assert differences(pair.subscriber) == []

    with connect(pair.publisher) as here:
        await_true(here, "SELECT bool_and(NOT active) FROM pg_catalog.pg_replication_slots")
        here.execute(afterwards.encode())
        assert scalar(here, "SELECT count(*) FROM pg_catalog.pg_replication_slots") == 0


@pytest.mark.parametrize("last_first", [False, True], ids=["a to z", "z to a"])
def test_tables_that_are_copied_one_by_one_during_work_agree_in_the_end(
    source: Source,
    pair: Pair,
    last_first: bool,
) -> None:
    with connect(pair.publisher) as here:
        names = sorted(tables(here), reverse=last_first)
        here.execute("CREATE PUBLICATION orchestration")
        pair.subscribe()
        with connect(pair.subscriber) as there:
            for number, name in enumerate(names):
                go_on(pair.publisher, source.logins, f"day {number}")
                here.execute(
                    sql.SQL("ALTER PUBLICATION orchestration ADD TABLE orchestration.{}").format(
                        sql.Identifier(name)
                    )
                )
                there.execute("ALTER SUBSCRIPTION orchestration REFRESH PUBLICATION")
                pair.catch_up()
        assert_kept(pair.subscriber, pair.publisher)


PARTS = {
    "what began before": (
        [
            "audit_log WHERE (chain_seq > 1)",
            "ingress_attestations WHERE (chain_seq > 1)",
            "instructions",
            "execution_attempts WHERE (phase = 'CLOSE')",
            "payment_outbox_items WHERE (redrive_no > 0)",
            "payment_outbox_attempts WHERE (phase = 'CLOSE')",
        ],
        {
            ("audit log", "entries before this one are missing"),
            ("attestations", "records before this one are missing"),
            ("attempt logs", "CLOSE"),
            ("instructions", "HISTORY"),
            ("instructions", "ORPHAN"),
            ("outbox", "ATTEMPTS"),
            ("outbox", "CANCELLED"),
            ("outbox", "ENDED"),
            ("outbox", "LOST"),
            ("outbox", "ORPHAN"),
            ("outbox", "REDRIVE"),
            ("outbox", "SEQUENCE"),
        },
    ),
    "policies": (
        [
            "schema_revision",
            "audit_log WHERE (table_name = 'schema_revision')",
            "ingress_attestations",
            "instructions",
            "status_history",
        ],
        {
            ("audit log", "the head is missing"),
            ("attestations", "the policy version does not exist"),
            ("instructions", "ORPHAN"),
            ("outbox", "ENDED"),
        },
    ),
    "starts": (
        [
            "schema_revision",
            "audit_log",
            "audit_log_head",
            "policy_versions",
            "ingress_attestations",
            "ingress_attestation_events WHERE (event = 'EXECUTION_COMPLETED')",
        ],
        {
            ("audit log", "no act explains this entry"),
            ("attestations", "EXECUTION_COMPLETED without EXECUTION_STARTED"),
        },
    ),
}
"""Publications that leave something out, and the findings of the verify functions on the
subscriber."""


@pytest.mark.parametrize("missing", PARTS)
def test_an_incomplete_copy_is_accepted_and_reported(
    pair: Pair,
    missing: str,
) -> None:
    parts, expected = PARTS[missing]
    with connect(pair.publisher) as here:
        listed = ", ".join(f"TABLE orchestration.{part}" for part in parts)
        here.execute(f"CREATE PUBLICATION orchestration FOR {listed}".encode())
        pair.subscribe()
        pair.catch_up()
        found = {
            (place, finding.partition(":")[0]) for place, _, finding in findings(pair.subscriber)
        }
        assert found == expected


@pytest.mark.parametrize("table", ["audit_log", "payment_outbox_items", "payment_outbox_pending"])
def test_a_copy_is_rejected_unless_subscription_workers_are_recognized(
    pair: Pair,
    table: str,
) -> None:
    with connect(pair.publisher) as here:
        mix(pair.publisher)
        here.execute(
            "CREATE OR REPLACE FUNCTION orchestration.copies_a_subscription() RETURNS boolean"
            " LANGUAGE sql STABLE RETURN false"
        )
        here.execute(
            sql.SQL("CREATE PUBLICATION orchestration FOR TABLE orchestration.{}").format(
                sql.Identifier(table)
            )
        )
        pair.subscribe()
        with connect(pair.subscriber) as there:
            await_true(
                there, "SELECT sync_error_count > 0 FROM pg_catalog.pg_stat_subscription_stats"
            )
        assert contents(pair.subscriber)[table] == []


def test_a_publisher_whose_rows_are_forged_is_refused(pair: Pair) -> None:
    """The guards check what a row shows by itself: a row with a wrong hash stops the
    subscription."""
    with connect(pair.publisher) as here:
        here.execute(block("Logical replication", "sql").encode())
        pair.subscribe()
        pair.catch_up()
        before = contents(pair.subscriber)
        here.execute("ALTER TABLE orchestration.ingress_attestations DISABLE TRIGGER guard")
        here.execute(
            "INSERT INTO orchestration.ingress_attestations (id, caller_identity, chain_seq,"
            " idempotency_key, payload_hash, policy_version_id, attested_at, prev_hash,"
            " record_hash, db_user, xact_id)"
            " SELECT gen_random_uuid(), 'forged', 1, 'forged', repeat('0', 64), 'v1', now(), '',"
            " repeat('0', 64), 'forged', 1"
        )
        with connect(pair.subscriber) as there:
            await_true(
                there,
                "SELECT apply_error_count > 0 FROM pg_catalog.pg_stat_subscription_stats",
            )
        assert contents(pair.subscriber) == before


REPLICA_MODE_ATTACKS = {
    "an entry beyond the log's end": (
        "INSERT INTO orchestration.audit_log"
        " SELECT (jsonb_populate_record(a, '{\"chain_seq\": 1000}')).*"
        " FROM orchestration.audit_log a WHERE chain_seq = 2",
        "P7302",
    ),
    "a policy that enters as RETIRED": (
        "INSERT INTO orchestration.policy_versions"
        ' SELECT (jsonb_populate_record(p, \'{"id": "new"}\')).*'
        " FROM orchestration.policy_versions p WHERE status = 'RETIRED' LIMIT 1",
        "P7101",
    ),
    "an instruction that enters as COMPLETED": (
        "INSERT INTO orchestration.instructions (id, participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, payload_salt, payload_hash, attestation_id,"
        " policy_version_id, state, version, created_at, updated_at, completed_at, db_user,"
        " xact_id)"
        " SELECT gen_random_uuid(), participant_id, 'new', instruction_type, end_to_end_id,"
        " amount_minor, currency, debtor_account, creditor_account, payload, payload_salt,"
        " payload_hash, attestation_id, policy_version_id, state, version, created_at,"
        " updated_at, completed_at, db_user, xact_id"
        " FROM orchestration.instructions WHERE state = 'COMPLETED' LIMIT 1",
        "P7401",
    ),
    "a pending row of an item that has ended": (
        "INSERT INTO orchestration.payment_outbox_pending"
        " (outbox_id, instruction_id, participant_id, sequence_id, rail_type)"
        " SELECT i.outbox_id, i.instruction_id, i.participant_id, i.sequence_id, i.rail_type"
        " FROM orchestration.payment_outbox_items i"
        " JOIN orchestration.payment_outbox_attempts a USING (outbox_id)"
        " WHERE a.state = 'DISPATCHED' LIMIT 1",
        "P7006",
    ),
}


@pytest.mark.parametrize("attack", REPLICA_MODE_ATTACKS)
def test_a_login_that_only_sets_replica_mode_is_rejected_while_a_subscription_exists(
    pair: Pair,
    attack: str,
) -> None:
    statement, refused = REPLICA_MODE_ATTACKS[attack]
    with connect(pair.publisher) as here:
        here.execute(block("Logical replication", "sql").encode())
    pair.subscribe()
    pair.catch_up()
    with connect(pair.subscriber) as superuser:
        superuser.execute("SET session_replication_role = replica")
        assert sqlstate(superuser, statement) == refused

"""A reader of revocations misses none after a crash of the server, and none on a standby."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.records import RevocationsSince
from orchestration.repo import RevocationRepository
from tests.operations.restartable import Restartable, restartable, standby
from tests.operations.support import await_true
from tests.support import Connect, connect, digest, scalar

pytestmark = pytest.mark.own_cluster

# The WAL writer would flush WAL that no commit flushes.
SETTINGS = {"fsync": "off", "autovacuum": "off", "wal_writer_delay": "10s"}
ROLLED_BACK = 20


@pytest.fixture
def crashing() -> Iterator[Restartable]:
    with restartable(SETTINGS) as server:
        server.start()
        yield server


def since(url: URL, watermark: str | None) -> RevocationsSince:
    engine = create_engine(url)
    try:
        with sessionmaker(engine)() as session:
            return RevocationRepository(session).since(watermark)
    finally:
        engine.dispose()


def hashes(page: RevocationsSince) -> set[str]:
    return {revocation.hash for revocation in page.revocations}


def revoke(connection: Connect, name: str) -> int:
    """Revoke a token, and return the id of the transaction."""
    return int(
        scalar(
            connection,
            "SELECT xact_id FROM orchestration.revoke_token(%s, 'keyCompromise')",
            (digest(name),),
        )
    )


def use_up_transaction_ids(connection: Connect) -> None:
    """Roll back transactions, as rejected calls do. Each one uses an id and flushes no WAL."""
    for _ in range(ROLLED_BACK):
        with connection.transaction(force_rollback=True):
            connection.execute("SELECT pg_current_xact_id()")


@pytest.mark.parametrize("told", [True, False], ids=["one revocation told", "none told"])
@pytest.mark.parametrize("given_up", ["SET", "SET LOCAL"])
def test_a_watermark_misses_no_revocation_after_a_crash(
    crashing: Restartable, told: bool, given_up: str
) -> None:
    url = scratch.create_database(crashing.server, scratch.PREFIX + "crash")
    scratch.upgrade(url)
    with connect(url) as connection:
        if told:
            # An acknowledged revocation is durable, even if its session turns synchronous_commit
            # off.
            with connection.transaction():
                revoke(connection, "before")
                connection.execute(f"{given_up} synchronous_commit = off")
        use_up_transaction_ids(connection)
        page = since(url, None)
        assert hashes(page) == ({digest("before")} if told else set())
        naive = scalar(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    crashing.crash()
    crashing.start()

    url = url.set(port=crashing.port)
    with connect(url) as connection:
        # The server uses an id again that is below the xmax of the snapshot before the crash.
        assert revoke(connection, "after") < naive
        found = since(url, page.watermark)
        assert hashes(found) == {digest("after")}
        assert hashes(since(url, found.watermark)) == set()
        assert hashes(since(url, None)) == hashes(page) | {digest("after")}


def catch_up(primary: Connect, there: Connect) -> None:
    position = scalar(primary, "SELECT pg_current_wal_flush_lsn()")
    await_true(there, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,))


def test_a_standby_misses_no_lower_transaction_that_commits_later(crashing: Restartable) -> None:
    url = scratch.create_database(crashing.server, scratch.PREFIX + "standby")
    scratch.upgrade(url)
    with (
        standby(crashing) as following,
        connect(url) as slow,
        connect(url) as fast,
    ):
        following.start()
        there = following.url.set(database=url.database)
        with connect(there) as replica:
            slow.execute("BEGIN")
            slow.execute("SELECT pg_current_xact_id()")
            revoke(fast, "fast")
            catch_up(fast, replica)
            page = since(there, None)
            assert hashes(page) == {digest("fast")}

            revoke(slow, "slow")
            slow.execute("COMMIT")
            catch_up(slow, replica)
            assert hashes(since(there, page.watermark)) >= {digest("slow")}

            # A watermark of the primary is used on a standby that lags.
            replica.execute("SELECT pg_wal_replay_pause()")
            revoke(fast, "later")
            ahead = since(url, page.watermark)
            behind = since(there, ahead.watermark)
            replica.execute("SELECT pg_wal_replay_resume()")
            catch_up(fast, replica)
            assert digest("later") in hashes(ahead)
            assert digest("later") in hashes(since(there, behind.watermark))

"""A crash of the server: a reader of revocations misses none afterwards."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.records import RevocationsSince
from orchestration.repo import RevocationRepository
from tests.operations.restartable import Restartable, restartable
from tests.support import Connect, connect, digest, scalar

pytestmark = pytest.mark.own_cluster

# The WAL writer would flush what no commit flushes.
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
    """Revoke a token; the id of the transaction that did."""
    return int(
        scalar(
            connection,
            "SELECT xact_id FROM orchestration.revoke_token(%s, 'keyCompromise')",
            (digest(name),),
        )
    )


def use_up_transaction_ids(connection: Connect) -> None:
    """As refusals do: each has an id, and nothing of it is flushed."""
    for _ in range(ROLLED_BACK):
        with connection.transaction(force_rollback=True):
            connection.execute("SELECT pg_current_xact_id()")


@pytest.mark.parametrize("told", [True, False], ids=["one revocation told", "none told"])
def test_a_watermark_misses_no_revocation_after_a_crash(crashing: Restartable, told: bool) -> None:
    url = scratch.create_database(crashing.server, scratch.PREFIX + "crash")
    scratch.upgrade(url)
    with connect(url) as connection:
        if told:
            # An acknowledged revocation is durable, even if its session asks for less.
            connection.execute("SET synchronous_commit = off")
            revoke(connection, "before")
        use_up_transaction_ids(connection)
        page = since(url, None)
        assert hashes(page) == ({digest("before")} if told else set())
        naive = scalar(connection, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    crashing.crash()
    crashing.start()

    url = url.set(port=crashing.port)
    with connect(url) as connection:
        # The id is given out again that the whole snapshot would have called seen.
        assert revoke(connection, "after") < naive
        found = since(url, page.watermark)
        assert hashes(found) == {digest("after")}
        assert hashes(since(url, found.watermark)) == set()
        assert hashes(since(url, None)) == hashes(page) | {digest("after")}

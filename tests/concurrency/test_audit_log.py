"""The audit log under concurrency: one chain without fork or gap, and one entry per act."""

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.concurrency.support import begin, errors_of, take_snapshot, together
from tests.support import ISOLATION_LEVELS, Connect, await_blocked, backend, digest, scalar

Login = Callable[[str], Connect]

ACTORS = 8
EACH = 5

each_isolation = pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
each_snapshot = pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])


@pytest.fixture(autouse=True)
def the_log_is_whole_afterwards(owner: Connect) -> Iterator[None]:
    yield
    assert owner.execute("SELECT ok FROM orchestration.verify_audit_log()").fetchone() == (True,)


def revoke(connection: Connect, what: str) -> None:
    connection.execute(
        "SELECT FROM orchestration.revoke_token(%s, 'keyCompromise')", (digest(what),)
    )


def engage(connection: Connect, rail: str) -> None:
    connection.execute("SELECT FROM orchestration.engage_kill_switch('RAIL', 'test', %s)", (rail,))


def rotate(connection: Connect, id: str) -> None:
    connection.execute(
        "SELECT FROM orchestration.rotate_policy_version(%s, 'd', %s, '1 hour')", (id, digest(id))
    )


ACTS: tuple[Callable[[Connect, str], None], ...] = (revoke, engage, rotate)


def count(connection: Connect) -> int:
    return int(scalar(connection, "SELECT count(*) FROM orchestration.audit_log"))


@pytest.mark.invariant("INV-AUD-001")
@each_isolation
def test_concurrent_acts_leave_one_chain_and_one_entry_each(
    owner: Connect, login: Login, isolation: str
) -> None:
    before = count(owner)

    def acting(actor: int) -> Callable[[threading.Barrier], int]:
        connection = login("control")

        def act(barrier: threading.Barrier) -> int:
            done = 0
            barrier.wait()
            for number in range(EACH):
                while True:
                    try:
                        begin(connection, isolation)
                        ACTS[(actor + number) % len(ACTS)](connection, f"{actor}-{number}")
                        connection.execute("COMMIT")
                    except (
                        psycopg.errors.SerializationFailure,
                        psycopg.errors.LockNotAvailable,
                    ):
                        connection.execute("ROLLBACK")
                        continue
                    done += 1
                    break
            return done

        return act

    assert together([acting(actor) for actor in range(ACTORS)]) == [EACH] * ACTORS
    assert count(owner) == before + ACTORS * EACH


@pytest.mark.invariant("INV-AUD-001")
@each_isolation
def test_an_act_waits_for_the_one_before_it_and_continues_the_chain_or_gets_40001(
    owner: Connect, login: Login, isolation: str
) -> None:
    before = count(owner)
    first, second = login("control"), login("control")
    begin(first, isolation)
    engage(first, "a")
    begin(second, isolation)
    take_snapshot(second)

    def wait(_: threading.Barrier) -> None:
        revoke(second, "t")
        second.execute("COMMIT")

    def let_go(_: threading.Barrier) -> None:
        assert backend(first) in await_blocked(owner, backend(second))
        first.execute("COMMIT")

    results = together([wait, let_go])
    if isolation == "READ COMMITTED":
        assert results == [None, None]
        assert count(owner) == before + 2
    else:
        assert errors_of(results) == ["40001"]
        assert count(owner) == before + 1


@pytest.mark.invariant("INV-AUD-001")
@each_isolation
def test_an_act_that_is_rolled_back_leaves_no_gap_for_the_one_that_waits(
    owner: Connect, login: Login, isolation: str
) -> None:
    before = count(owner)
    first, second = login("control"), login("control")
    begin(first, isolation)
    engage(first, "a")
    begin(second, isolation)
    take_snapshot(second)

    def wait(_: threading.Barrier) -> None:
        revoke(second, "t")
        second.execute("COMMIT")

    def let_go(_: threading.Barrier) -> None:
        assert backend(first) in await_blocked(owner, backend(second))
        first.execute("ROLLBACK")

    assert together([wait, let_go]) == [None, None]
    assert count(owner) == before + 1


@pytest.mark.invariant("INV-AUD-001")
@each_snapshot
def test_an_act_under_an_older_snapshot_gets_40001(
    owner: Connect, login: Login, isolation: str
) -> None:
    late = login("control")
    begin(late, isolation)
    take_snapshot(late)
    engage(login("control"), "a")
    with pytest.raises(psycopg.errors.SerializationFailure):
        revoke(late, "t")
    late.execute("ROLLBACK")
    revoke(late, "t")
    assert scalar(owner, "SELECT count(*) FROM orchestration.revoked_tokens") == 1


@pytest.mark.invariant("INV-AUD-001")
def test_a_policy_rotated_by_many_at_once_has_one_entry_per_version(
    owner: Connect, login: Login
) -> None:
    before = count(owner)

    def rotating(number: int) -> Callable[[threading.Barrier], None]:
        connection = login("control")

        def act(barrier: threading.Barrier) -> None:
            barrier.wait()
            rotate(connection, f"v{number}")

        return act

    assert errors_of(together([rotating(number) for number in range(ACTORS)])) == []
    assert count(owner) == before + ACTORS
    assert (
        scalar(
            owner,
            "SELECT count(DISTINCT key) FROM orchestration.audit_log a,"
            " jsonb_object_keys(a.after) AS key WHERE a.action = 'ROTATE'",
        )
        == ACTORS
    )

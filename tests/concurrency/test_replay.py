"""If sixteen sessions make the same call at once, its effect happens once."""

from collections.abc import Callable

import pytest

from tests.concurrency.support import errors_of, together
from tests.repo.test_replay import ENGAGE, ROTATE, START, act
from tests.support import ISOLATION_LEVELS, Connect, digest, instruction_id

pytestmark = pytest.mark.instructed

ACTS = {
    "start": ("executor", START, (instruction_id("p", 0), 2)),
    "rotate": ("control", ROTATE, ("v9", digest("v9"), None)),
    "engage": ("control", ENGAGE, ("RAIL", "test", "SEPA", "key")),
}


@pytest.mark.invariant("INV-INS-009", "INV-POL-001", "INV-KIL-003")
@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
def test_of_sixteen_at_once_one_is_done_and_the_others_get_its_result(
    login: Callable[[str], Connect], isolation: str, name: str
) -> None:
    role, statement, parameters = ACTS[name]
    connections = [login(role) for _ in range(16)]

    def repeat(connection: Connect) -> bool:
        (row,) = act(connection, isolation, statement, *parameters)
        return bool(row["replayed"])

    results = together(
        [lambda barrier, c=one: (barrier.wait(), repeat(c))[1] for one in connections]
    )
    assert results.count(False) == 1
    refused = errors_of(results)
    assert results.count(True) + len(refused) == 15
    assert set(refused) <= (set() if isolation == "READ COMMITTED" else {"40001"})
    # A rejected caller gets the recorded answer in a new transaction.
    assert repeat(connections[0]) is True

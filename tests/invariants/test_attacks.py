"""The proofs of all attacks: the owner is refused, a login with a stray grant is refused alike,
replica mode silences nothing, and the attack succeeds once the objects that refuse it are dropped.

A refused attack changes nothing, and the attack that succeeds is rolled back together with the
drop. So the attacks with one history share a database per worker process.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import URL
from tools import scratch

from orchestration import invariants
from tests.conftest import Clones
from tests.invariants import attacks
from tests.invariants.attacks import Attack
from tests.support import Connect, Refusal, attempt, attempt_without, connect, picture, run

STRAY = "readonly"
GRANTS = (
    "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA orchestration"
    " TO symphony_readonly",
    # Some attacks compute the right record_hash.
    "GRANT EXECUTE ON FUNCTION orchestration.attestation_record_hash TO symphony_readonly",
)

PARAMETERS = [
    pytest.param(
        *(noun, attack), id=f"{noun}: {attack}", marks=pytest.mark.invariant(attack.invariant)
    )
    for noun, attack in attacks.every()
]
IN_REPLICA_MODE = [
    one
    for one, (_, attack) in zip(PARAMETERS, attacks.every(), strict=True)
    if attack.replica and not attack.behind
]


class Stage:
    """A database with a history that no attack changes, and the connections that attack it."""

    def __init__(
        self, database: scratch.Database, opened: ExitStack, history: tuple[str, ...]
    ) -> None:
        self._database = database
        self._opened = opened
        self._replica: Connect | None = None
        self.owner = self._open(database.url)
        self.owner.execute("SET ROLE symphony_owner")
        run(self.owner, (*history, *GRANTS))
        self.stray = self._open(database.as_role(STRAY))
        self.before = picture(self.owner)

    def _open(self, url: URL) -> Connect:
        connection = self._opened.enter_context(connect(url))
        connection.execute("SET timezone = 'UTC'")
        return connection

    @property
    def replica(self) -> Connect:
        if self._replica is None:
            self._replica = self._open(self._database.url)
            self._replica.execute("SET session_replication_role = replica")
        return self._replica


class Stages:
    def __init__(self, clones: Clones, opened: ExitStack) -> None:
        self._clones, self._opened = clones, opened
        self._made: dict[tuple[str, str], Stage] = {}

    def of(self, noun: str, attack: Attack) -> Stage:
        key = noun, attack.history
        if key not in self._made:
            history = attacks.NOUNS[noun].histories[attack.history]
            database = self._opened.enter_context(self._clones.one())
            self._made[key] = Stage(database, self._opened, history)
        return self._made[key]

    def assert_unchanged(self) -> None:
        """What was refused was rolled back, so one look at the end is enough."""
        for stage in self._made.values():
            assert picture(stage.owner) == stage.before


@pytest.fixture(scope="module")
def stages(clones: Clones) -> Iterator[Stages]:
    with ExitStack() as opened:
        made = Stages(clones, opened)
        yield made
        made.assert_unchanged()


def assert_refused(attack: Attack, found: Refusal | None) -> None:
    assert found is not None, f"accepted: {attack.statements}"
    assert (found.sqlstate, found.table, found.column) == (
        *(attack.sqlstate, attack.table, attack.column),
    ), found
    if attack.detail is None:
        assert found.constraint == attack.constraint, found
        return
    assert found.constraint == attack.invariant, found
    assert found.message.startswith(f"{attack.invariant}: ")
    assert found.hint
    shown: dict[str, Any] = found.keys
    expected = {
        key: shown.get(key) if value is ... else value for key, value in attack.detail.items()
    }
    assert shown == expected


@pytest.mark.parametrize(("noun", "attack"), PARAMETERS)
def test_an_attack_is_refused_until_the_objects_that_refuse_it_are_dropped(
    stages: Stages, noun: str, attack: Attack
) -> None:
    stage = stages.of(noun, attack)
    if attack.behind:
        assert_refused(attack, attempt_without(stage.owner, attack.behind, attack.statements))
    else:
        assert_refused(attack, attempt(stage.owner, attack.statements))
        assert_refused(attack, attempt(stage.stray, attack.statements))
    dropped = (*attack.behind, *attack.without)
    assert attempt_without(stage.owner, dropped, attack.statements) is None


@pytest.mark.superuser
@pytest.mark.parametrize(("noun", "attack"), IN_REPLICA_MODE)
def test_replica_mode_silences_no_refusal(stages: Stages, noun: str, attack: Attack) -> None:
    stage = stages.of(noun, attack)
    assert_refused(attack, attempt(stage.replica, attack.statements))


NAMED = {
    entry.id: {
        path
        for path in entry.enforced_by
        if path.startswith(("triggers/", "constraints/", "indexes/"))
    }
    for entry in invariants.CATALOGUE
    # The bounds of arguments and columns have their own tests.
    if not entry.id.startswith("INV-API-")
}


@pytest.mark.parametrize("invariant", [id for id, named in NAMED.items() if named])
def test_every_object_that_enforces_an_invariant_is_attacked(invariant: str) -> None:
    attacked = {
        path
        for _, attack in attacks.every()
        if attack.invariant == invariant
        for path in attack.without
    }
    assert NAMED[invariant] - attacks.SLEEPING <= attacked

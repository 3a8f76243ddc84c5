"""The proofs that every list of attacks shares, and the databases in which they are made.

A refused attack changes nothing, and the attack that succeeds once its object is dropped is rolled
back together with the drop. So the attacks of a module share one database per worker process.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import make_url
from tools import scratch

from tests.conftest import _server
from tests.support import Attack, Connect, attempt, attempt_without, connect


class Stage:
    """A database with a history that no proof changes, and the connections that attack it."""

    def __init__(
        self,
        database: scratch.Database,
        connections: ExitStack,
        build: Callable[[Connect], object],
        picture: Callable[[Connect], object],
        stray: tuple[str, Sequence[str]] | None,
    ) -> None:
        self._database = database
        self._connections = connections
        self._picture = picture
        self.owner = self._open(database.url)
        self.owner.execute("SET ROLE symphony_owner")
        build(self.owner)
        self._before = picture(self.owner)
        self._stray: Connect | None = None
        if stray is not None:
            role, grants = stray
            for grant in grants:
                self.owner.execute(grant)
            self._stray = self._open(database.as_role(role))
        self._replica: Connect | None = None

    def _open(self, url: Any) -> Connect:
        return self._connections.enter_context(connect(url))

    def prove(self, attack: Attack) -> None:
        """The owner and a role with a stray grant are refused; without the object the attack
        succeeds."""
        attack.check(attempt(self.owner, attack.statements))
        if self._stray is not None:
            attack.check(attempt(self._stray, attack.statements))
        self.assert_unchanged()
        assert attempt_without(self.owner, attack.without, attack.statements) is None

    def prove_in_replica_mode(self, attack: Attack) -> None:
        """`session_replication_role = replica` silences no refusal."""
        if self._replica is None:
            self._replica = self._open(self._database.url)
            self._replica.execute("SET session_replication_role = replica")
        attack.check(attempt(self._replica, attack.statements))

    def assert_unchanged(self) -> None:
        assert self._picture(self.owner) == self._before


StageOf = Callable[..., Stage]


@pytest.fixture(scope="module")
def stage_of(server: scratch.Server, pytestconfig: pytest.Config) -> Iterator[StageOf]:
    """`stage_of(build, picture, stray)`: the module's database with the history that `build` makes
    as owner, made at the first call; `picture` reads what no attack may change, and `stray` is a
    role and what it is granted by mistake. Different histories are told apart by `history`."""
    known = pytestconfig.stash[_server]
    made: dict[str, Stage] = {}
    with ExitStack() as resources:

        def stage(
            build: Callable[[Connect], object],
            picture: Callable[[Connect], object],
            stray: tuple[str, Sequence[str]] | None,
            *,
            history: str = "",
        ) -> Stage:
            if history not in made:
                name = scratch.PREFIX + secrets.token_hex(8)
                url = scratch.create_database(server, name, template=known["template"])
                resources.callback(scratch.drop_database, server, name)
                logins = {role: make_url(login) for role, login in known["logins"].items()}
                connections = resources.enter_context(ExitStack())
                made[history] = Stage(
                    scratch.Database(url, logins), connections, build, picture, stray
                )
            return made[history]

        yield stage

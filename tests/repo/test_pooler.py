"""What a pooler in transaction mode rejects, and what it must not carry over to other clients."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Engine, pool, text
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import errors
from orchestration.database import SETTINGS, create_engine
from orchestration.errors import Retry
from orchestration.repo import PolicyVersionRepository
from orchestration.transactions import run_in_transaction

pytestmark = pytest.mark.pooled


@pytest.fixture
def engine_by(database: scratch.Database) -> Iterator[Callable[..., Engine]]:
    """An engine that `make` makes for the control login, with one connection."""
    with ExitStack() as opened:

        def engine(make: Callable[..., Engine], **kw: Any) -> Engine:
            made = make(database.as_role("control"), **kw)
            opened.callback(made.dispose)
            return made

        yield engine


def test_a_default_engine_is_refused_and_the_error_names_the_option(
    engine_by: Callable[..., Engine],
) -> None:
    engine = engine_by(create_engine)
    tries: list[int] = []

    def work(session: Session) -> None:
        tries.append(1)
        PolicyVersionRepository(session).active()

    for act in (
        engine.connect,
        lambda: PolicyVersionRepository(Session(engine)).active(),
        lambda: run_in_transaction(sessionmaker(engine), work),
    ):
        with pytest.raises(errors.PoolerModeRequired, match="pooler=True") as raised:
            act()
        assert raised.value.retry is Retry.NEVER
        assert isinstance(raised.value.__cause__, Exception)
    assert tries == [1]


def test_prepared_statements_are_refused_and_the_error_names_the_option(
    engine_by: Callable[..., Engine],
) -> None:
    def ask_until_prepared() -> None:
        with Session(engine_by(plain_engine)) as session:
            for _ in range(10):
                PolicyVersionRepository(session).active()
                session.commit()

    ask_until_prepared()
    with pytest.raises(errors.PoolerModeRequired, match="pooler=True") as raised:
        ask_until_prepared()
    assert raised.value.retry is Retry.NEVER
    assert raised.value.sqlstate in errors.PoolerModeRequired.sqlstates


def test_the_settings_hold_and_are_not_carried_to_another_client(
    engine_by: Callable[..., Engine],
) -> None:
    def settings_on(engine: Engine) -> tuple[int, dict[str, str]]:
        with engine.connect() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            assert isinstance(pid, int)
            return pid, {name: str(connection.scalar(text(f"SHOW {name}"))) for name in SETTINGS}

    host = engine_by(plain_engine, poolclass=pool.NullPool)
    backend, before = settings_on(host)
    ours, held = settings_on(engine_by(create_engine, pooler=True))
    after = settings_on(host)
    assert after == (backend, before)
    assert ours == backend
    assert held["lock_timeout"] == "10s" != before["lock_timeout"]
    assert held["statement_timeout"] == "1min" != before["statement_timeout"]
    assert held["synchronous_commit"] == "on"


def test_a_hosts_own_error_is_its_own(engine_by: Callable[..., Engine]) -> None:
    with engine_by(plain_engine).connect() as connection, pytest.raises(DBAPIError):
        connection.execute(text("SELECT 1 / 0"))

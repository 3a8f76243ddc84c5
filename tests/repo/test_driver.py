"""A driver other than psycopg 3 is rejected before anything is sent."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tools import scratch

from orchestration import repo
from orchestration.database import install_error_translation
from orchestration.errors import Retry, UnsupportedDriver
from tests.support import Connect

REPOSITORIES = [getattr(repo, name) for name in repo.__all__]


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "hosts"

    id: Mapped[int] = mapped_column(primary_key=True)


OTHERS: dict[str, Callable[[], Engine]] = {
    "postgresql+asyncpg": lambda: create_async_engine("postgresql+asyncpg://h/d").sync_engine,
    "sqlite+pysqlite": lambda: create_engine("sqlite://"),
}


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest) -> Iterator[tuple[str, Engine]]:
    engine = OTHERS[request.param]()
    yield request.param, engine
    engine.dispose()


def assert_refused(raised: pytest.ExceptionInfo[UnsupportedDriver], name: str) -> None:
    assert name in str(raised.value)
    assert raised.value.retry is Retry.NEVER
    assert "postgresql+psycopg" in (raised.value.hint or "")


def test_a_host_cannot_install_the_translation_for_it(other: tuple[str, Engine]) -> None:
    name, engine = other
    with pytest.raises(UnsupportedDriver) as raised:
        install_error_translation(engine)
    assert_refused(raised, name)


@pytest.mark.parametrize("make", REPOSITORIES)
def test_every_repository_refuses_its_session_at_once(
    other: tuple[str, Engine], make: Callable[[Session], object]
) -> None:
    name, engine = other
    with Session(engine) as session:
        with pytest.raises(UnsupportedDriver) as raised:
            make(session)
        assert_refused(raised, name)


def test_a_session_that_is_bound_later_is_refused_before_anything_is_written(
    other: tuple[str, Engine],
) -> None:
    name, engine = other
    connected: list[object] = []
    event.listen(engine, "do_connect", lambda *_: connected.append(1))
    with Session() as session:
        outbox = repo.OutboxRepository(session)
        session.bind = engine
        session.add(Row(id=1))
        with pytest.raises(UnsupportedDriver) as raised:
            outbox.depth()
        assert_refused(raised, name)
        assert connected == []


def test_asyncpg_stores_nothing_where_it_lost_writes_in_silence(
    database: scratch.Database, superuser: Connect
) -> None:
    superuser.execute("CREATE TABLE public.hosts (id integer PRIMARY KEY)")

    async def enqueue() -> None:
        engine = create_async_engine(database.url.set(drivername="postgresql+asyncpg"))
        try:
            async with AsyncSession(engine) as session:
                session.add(Row(id=1))
                await session.flush()
                await session.run_sync(lambda sync: repo.OutboxRepository(sync).depth())
                await session.commit()
        finally:
            await engine.dispose()

    with pytest.raises(UnsupportedDriver):
        asyncio.run(enqueue())
    assert superuser.execute("SELECT count(*) FROM public.hosts").fetchone() == (0,)


def test_psycopg_3_serves_an_async_session_too(database: scratch.Database) -> None:
    async def depth() -> object:
        engine = create_async_engine(database.as_role("executor"))
        install_error_translation(engine.sync_engine)
        try:
            async with AsyncSession(engine) as session:
                return await session.run_sync(lambda sync: repo.OutboxRepository(sync).depth())
        finally:
            await engine.dispose()

    assert asyncio.run(depth()) == []


@pytest.mark.parametrize("wrong", [None, "postgresql+psycopg://"])
def test_what_is_not_an_engine_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match="engine: expected an Engine, got"):
        install_error_translation(wrong)

"""The engines: their defaults, typed errors for every statement, and lost connections."""

import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, Table, event, func, insert, pool, select, text
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tools import scratch

from orchestration import errors
from orchestration import models as orm
from orchestration.database import (
    NETWORK_BOUNDS,
    SETTINGS,
    STARTUP_OPTIONS,
    create_engine,
    install_error_translation,
    normalize_url,
)
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import AttestationRecord, NewAttestation, NewPolicyVersion
from orchestration.repo import AttestationRepository, OutboxRepository, PolicyVersionRepository
from orchestration.transactions import run_in_transaction
from tests.support import POOLED, Connect, activate_policy, await_blocked, digest, scalar

ENDPOINT = tuple[str, int]


def new(id: str, content: str = "test") -> NewPolicyVersion:
    return NewPolicyVersion(
        id=id, description="test", checksum=digest(id, content), created_by="test"
    )


@pytest.fixture
def engine_at() -> Iterator[Callable[..., Engine]]:
    """Create engines with `orchestration.database`, and dispose of them at the end."""
    with ExitStack() as opened:

        def make(url: URL, **kw: Any) -> Engine:
            made = create_engine(url, **({"pooler": POOLED} | kw))
            opened.callback(made.dispose)
            return made

        yield make


@pytest.fixture
def host_engine_at() -> Iterator[Callable[..., Engine]]:
    """Create a host's own engines with SQLAlchemy."""
    with ExitStack() as opened:

        def make(url: URL, **kw: Any) -> Engine:
            made = plain_engine(url, **kw)
            opened.callback(made.dispose)
            return made

        yield make


@pytest.fixture
def empty_database(server: scratch.Server) -> Iterator[URL]:
    """A database without the schema."""
    name = scratch.PREFIX + secrets.token_hex(8)
    url = scratch.create_database(server, name)
    try:
        yield url
    finally:
        scratch.drop_database(server, name)


# The transaction has failed, but COMMIT is sent nevertheless.


@pytest.mark.parametrize("whose", ["ours", "translating", "the host's"])
def test_a_swallowed_refusal_refuses_the_commit_and_the_session_goes_on(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    host_engine_at: Callable[..., Engine],
    whose: str,
) -> None:
    engine = (engine_at if whose == "ours" else host_engine_at)(database.as_role("control"))
    if whose == "translating":
        install_error_translation(engine)
    with Session(engine) as session:
        versions = PolicyVersionRepository(session)
        versions.rotate(new("v1"), grace=timedelta(0))
        with suppress(errors.UniqueViolation):
            versions.rotate(new("v1", "other"), grace=timedelta(0))
        with pytest.raises(errors.FailedTransaction) as raised:
            session.commit()
        assert raised.value.sqlstate == "25P02"
        assert raised.value.__cause__ is not None
        session.rollback()
        assert versions.active() is None
        versions.rotate(new("v1"), grace=timedelta(0))
        with suppress(errors.UniqueViolation), session.begin_nested():
            versions.rotate(new("v1", "other"), grace=timedelta(0))
        session.commit()
        assert versions.accepted() == [versions.get("v1")]


def test_a_swallowed_error_of_core_refuses_the_commit_too(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with engine_at(database.as_role("control")).connect() as connection:
        with suppress(OrchestrationError):
            connection.execute(text("SELECT 1 / 0"))
        with pytest.raises(errors.FailedTransaction) as raised:
            connection.commit()
        assert isinstance(raised.value.__cause__, psycopg.errors.DivisionByZero)
        connection.rollback()
        assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize(
    "setting", ["datestyle = 'German'", "intervalstyle = 'iso_8601'", "client_encoding = 'LATIN1'"]
)
def test_a_logins_own_settings_change_nothing(
    database: scratch.Database,
    superuser: Connect,
    engine_at: Callable[..., Engine],
    setting: str,
) -> None:
    url = database.as_role("control")
    superuser.execute(f'ALTER ROLE "{url.username}" IN DATABASE "{database.name}" SET {setting}')
    with Session(engine_at(url)) as session:
        versions = PolicyVersionRepository(session)
        given = NewPolicyVersion(
            id="v1", description="\N{SNOWMAN}", checksum=digest("v1"), created_by="test"
        )
        made = versions.rotate(given, grace=timedelta(0))
        session.commit()
        assert versions.get("v1") == made
        assert made.description == "\N{SNOWMAN}"


# A server that disconnects at a chosen moment.


@dataclass
class Cut:
    """When the proxy closes the connection: at which message of the client, and before or after the
    server has received it."""

    at: bytes
    what: Literal["request", "reply"]


@dataclass
class Proxy:
    """Forwards TCP, and closes the next connection that `cut` describes."""

    target: ENDPOINT
    cut: Cut | None = None
    happened: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)

    def listen(self) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        self._start(self._accept, listener)
        port: int = listener.getsockname()[1]
        return port

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self.target)
                self._sockets += [client, server]
                silent = threading.Event()
                self._start(self._to_server, client, server, silent)
                self._start(self._to_client, client, server, silent)

    def _to_server(
        self, client: socket.socket, server: socket.socket, silent: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                if self.cut is not None and self.cut.at in data:
                    if self.cut.what == "request":
                        self._drop(client, server)
                        return
                    silent.set()
                server.sendall(data)
        self._end(client, server)

    def _to_client(
        self, client: socket.socket, server: socket.socket, silent: threading.Event
    ) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if silent.is_set():
                    self._drop(client, server)
                    return
                client.sendall(data)
        self._end(client, server)

    def _drop(self, client: socket.socket, server: socket.socket) -> None:
        self.cut = None
        self.happened.set()
        self._end(client, server)

    def _end(self, *both: socket.socket) -> None:
        for one in both:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxied() -> Iterator[Callable[[URL], tuple[Proxy, URL]]]:
    """A proxy in front of the server of a URL, and the URL of the proxy, in clear text."""
    with ExitStack() as opened:

        def make(url: URL) -> tuple[Proxy, URL]:
            proxy = Proxy((url.host or "127.0.0.1", url.port or 5432))
            opened.callback(proxy.close)
            through = url.set(host="127.0.0.1", port=proxy.listen())
            return proxy, through.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})

        yield make


@contextmanager
def raises(cls: type[OrchestrationError], retry: Retry) -> Iterator[pytest.ExceptionInfo[Any]]:
    with pytest.raises(cls) as raised:
        yield raised
    assert type(raised.value) is cls
    assert raised.value.retry is retry
    assert isinstance(raised.value.__cause__, psycopg.Error)


@pytest.mark.parametrize(
    ("what", "committed"), [("request", False), ("reply", True)], ids=["before", "after"]
)
def test_a_connection_lost_during_commit_leaves_an_outcome_that_a_replay_finds_out(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    what: Literal["request", "reply"],
    committed: bool,
) -> None:
    proxy, url = proxied(database.as_role("control"))
    engine = engine_at(url)
    with Session(engine) as session:
        PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        proxy.cut = Cut(b"COMMIT", what)
        with raises(errors.CommitOutcomeUnknown, Retry.AFTER_RESOLUTION):
            session.commit()
    assert proxy.happened.is_set()

    with Session(engine) as session:
        versions = PolicyVersionRepository(session)
        found = versions.get("v1")
        assert (found is not None) is committed
        assert versions.rotate(new("v1"), grace=timedelta(0)).replayed is committed


@pytest.mark.parametrize(
    ("what", "committed"), [("request", False), ("reply", True)], ids=["before", "after"]
)
def test_in_autocommit_every_statement_carries_a_commit_whose_outcome_may_be_unknown(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    what: Literal["request", "reply"],
    committed: bool,
) -> None:
    proxy, url = proxied(database.as_role("control"))
    engine = engine_at(url, isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        proxy.cut = Cut(b"rotate_policy_version", what)
        with raises(errors.CommitOutcomeUnknown, Retry.AFTER_RESOLUTION):
            PolicyVersionRepository(session).rotate(new("v2"), grace=timedelta(0))
    with Session(engine) as session:
        assert (PolicyVersionRepository(session).get("v2") is not None) is committed


def test_in_autocommit_an_outcome_is_unknown_on_a_hosts_engine_too(
    database: scratch.Database,
    host_engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
) -> None:
    proxy, url = proxied(database.as_role("control"))
    with Session(host_engine_at(url, isolation_level="AUTOCOMMIT")) as session:
        proxy.cut = Cut(b"rotate_policy_version", "reply")
        with raises(errors.CommitOutcomeUnknown, Retry.AFTER_RESOLUTION):
            PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))


@pytest.mark.parametrize("what", ["request", "reply"])
def test_a_connection_lost_before_commit_is_safe_to_try_again(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    what: Literal["request", "reply"],
) -> None:
    proxy, url = proxied(database.as_role("control"))
    engine = engine_at(url)
    with Session(engine) as session:
        PolicyVersionRepository(session).active()
        proxy.cut = Cut(b"rotate_policy_version", what)
        with raises(errors.ConnectionLost, Retry.SAFE):
            PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
    with Session(engine) as session:
        assert PolicyVersionRepository(session).get("v1") is None


def test_a_commit_that_went_well_leaves_no_doubt_about_what_follows(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
) -> None:
    proxy, url = proxied(database.as_role("control"))
    with Session(engine_at(url)) as session:
        versions = PolicyVersionRepository(session)
        versions.rotate(new("v1"), grace=timedelta(0))
        session.commit()
        proxy.cut = Cut(b"rotate_policy_version", "request")
        with raises(errors.ConnectionLost, Retry.SAFE):
            versions.rotate(new("v2"), grace=timedelta(0))


def test_a_connection_lost_during_the_commit_of_two_phases_leaves_an_unknown_outcome(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
) -> None:
    proxy, url = proxied(database.as_role("control"))
    with engine_at(url).connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text("SELECT 1"))
        proxy.cut = Cut(b"COMMIT", "request")
        with raises(errors.CommitOutcomeUnknown, Retry.AFTER_RESOLUTION):
            transaction.commit()


READS: dict[str, Callable[[Session], object]] = {
    "a row": lambda session: PolicyVersionRepository(session).active(),
    "a host's own": lambda session: session.execute(text("SELECT 1")).all(),
    "a view": lambda session: OutboxRepository(session).depth(),
    "a chain": lambda session: AttestationRepository(session).verify_chain("caller"),
}
WRITES: dict[str, Callable[[Session], object]] = {
    "a function": lambda session: AttestationRepository(session).append(attestation()),
    "a host's function": lambda session: session.execute(text("SELECT public.write()")),
    "a statement": lambda session: session.execute(text("INSERT INTO public.hosts VALUES (1)")),
    "an object": lambda session: session.add(HostsRow(id=1)),
    "a notification": lambda session: session.execute(text("SELECT pg_notify('hosts', 'x')")),
}
ROLES = {"a chain": "auditor", "a function": "ingest"}


class HostsBase(DeclarativeBase):
    pass


class HostsRow(HostsBase):
    __tablename__ = "hosts"
    __table_args__: ClassVar[dict[str, str]] = {"schema": "public"}

    id: Mapped[int] = mapped_column(primary_key=True)


def attestation() -> NewAttestation:
    return NewAttestation(
        caller_identity="caller",
        idempotency_key="key",
        payload_hash=digest("payload"),
        policy_version_id="v1",
    )


@pytest.fixture
def hosts_table(superuser: Connect, owner: Connect) -> None:
    activate_policy(owner, "v1")
    superuser.execute(
        """
        CREATE TABLE public.hosts (id integer PRIMARY KEY);
        GRANT ALL ON public.hosts TO PUBLIC;
        CREATE FUNCTION public.write() RETURNS void LANGUAGE sql
        AS 'INSERT INTO public.hosts VALUES (1)'
        """
    )


@pytest.mark.usefixtures("hosts_table")
@pytest.mark.parametrize("whose", ["ours", "the host's"])
@pytest.mark.parametrize("what", ["request", "reply"])
@pytest.mark.parametrize("act", READS)
def test_a_unit_that_only_read_runs_again_after_its_commit_was_lost(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    host_engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    whose: str,
    what: Literal["request", "reply"],
    act: str,
) -> None:
    proxy, url = proxied(database.as_role(ROLES.get(act, "control")))
    engine = (engine_at if whose == "ours" else host_engine_at)(url)
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        READS[act](session)
        if tries == 1:
            proxy.cut = Cut(b"COMMIT", what)

    run_in_transaction(sessionmaker(engine), work)
    assert tries == 2
    assert proxy.happened.is_set()


@pytest.mark.usefixtures("hosts_table")
@pytest.mark.parametrize("whose", ["ours", "the host's"])
@pytest.mark.parametrize("act", WRITES)
def test_a_unit_that_wrote_ends_unknown_when_its_commit_was_lost(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    host_engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    whose: str,
    act: str,
) -> None:
    proxy, url = proxied(database.as_role(ROLES.get(act, "control")))
    engine = (engine_at if whose == "ours" else host_engine_at)(url)
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        WRITES[act](session)
        proxy.cut = Cut(b"COMMIT", "reply")

    with raises(errors.CommitOutcomeUnknown, Retry.AFTER_RESOLUTION):
        run_in_transaction(sessionmaker(engine), work)
    assert tries == 1


@pytest.mark.invariant("INV-API-003")
def test_a_value_that_its_type_refuses_is_shown_up_to_200_characters(
    engine: Callable[[str], Engine],
) -> None:
    value = "x" * 6_000
    with (
        engine("executor").connect() as connection,
        pytest.raises(errors.InvalidTextRepresentation) as raised,
    ):
        connection.execute(text("SELECT CAST(:value AS uuid)"), {"value": value})
    for shown in (str(raised.value), str(raised.value.__cause__)):
        assert shown.startswith("invalid input syntax for type uuid")
        assert len(shown) == 200


@pytest.mark.usefixtures("hosts_table")
def test_an_outcome_that_is_unknown_is_replayed_if_the_unit_says_so(
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    owner: Connect,
) -> None:
    proxy, url = proxied(database.as_role("ingest"))
    made: list[AttestationRecord] = []

    def work(session: Session) -> AttestationRecord:
        made.append(AttestationRepository(session).append(attestation()))
        if len(made) == 1:
            proxy.cut = Cut(b"COMMIT", "reply")
        return made[-1]

    found = run_in_transaction(sessionmaker(engine_at(url)), work, replayable=True)
    assert [one.id for one in made] == [found.id, found.id]
    stored = owner.execute("SELECT count(*) FROM orchestration.ingress_attestations").fetchone()
    assert stored == (1,)


@pytest.mark.usefixtures("hosts_table")
@pytest.mark.parametrize("what", ["request", "reply"])
@pytest.mark.parametrize("translating", [True, False])
def test_a_hosts_own_statement_whose_connection_is_lost_runs_again(
    database: scratch.Database,
    host_engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
    owner: Connect,
    what: Literal["request", "reply"],
    translating: bool,
) -> None:
    proxy, url = proxied(database.as_role("control"))
    engine = host_engine_at(url)
    if translating:
        install_error_translation(engine)
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        session.execute(text("SELECT 1"))
        if tries == 1:
            proxy.cut = Cut(b"INSERT", what)
        session.execute(text("INSERT INTO public.hosts VALUES (1)"))

    run_in_transaction(sessionmaker(engine), work)
    assert tries == 2
    assert owner.execute("SELECT count(*) FROM public.hosts").fetchone() == (1,)


@pytest.mark.usefixtures("hosts_table")
def test_a_hosts_own_statement_in_autocommit_leaves_an_unknown_outcome(
    database: scratch.Database,
    host_engine_at: Callable[..., Engine],
    proxied: Callable[[URL], tuple[Proxy, URL]],
) -> None:
    proxy, url = proxied(database.as_role("control"))
    engine = host_engine_at(url, isolation_level="AUTOCOMMIT")

    def work(session: Session) -> None:
        proxy.cut = Cut(b"INSERT", "reply")
        session.execute(text("INSERT INTO public.hosts VALUES (1)"))

    with raises(errors.CommitOutcomeUnknown, Retry.AFTER_RESOLUTION):
        run_in_transaction(sessionmaker(engine), work)


@pytest.mark.usefixtures("hosts_table")
@pytest.mark.parametrize("whose", ["ours", "the host's"])
def test_a_transaction_that_the_server_found_idle_has_not_been_committed(
    database: scratch.Database,
    superuser: Connect,
    engine_at: Callable[..., Engine],
    host_engine_at: Callable[..., Engine],
    whose: str,
) -> None:
    engine = (engine_at if whose == "ours" else host_engine_at)(database.as_role("control"))
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        session.execute(text("INSERT INTO public.hosts VALUES (:id)"), {"id": tries})
        if tries == 1:
            idle_too_long(session, superuser)

    run_in_transaction(sessionmaker(engine), work)
    assert tries == 2
    assert superuser.execute("SELECT id FROM public.hosts").fetchall() == [(2,)]


@pytest.mark.usefixtures("hosts_table")
def test_a_commit_after_the_server_has_hung_up_is_safe_to_try_again(
    database: scratch.Database, superuser: Connect, engine_at: Callable[..., Engine]
) -> None:
    with Session(engine_at(database.as_role("control"))) as session:
        session.execute(text("INSERT INTO public.hosts VALUES (1)"))
        idle_too_long(session, superuser)
        with raises(errors.ConnectionLost, Retry.SAFE) as raised:
            session.commit()
        assert raised.value.sqlstate == "25P03"
        session.rollback()
        assert session.scalar(text("SELECT count(*) FROM public.hosts")) == 0


def idle_too_long(session: Session, observer: Connect) -> None:
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    # Long enough for the client to read the reply first: the server's last words come alone.
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '300ms'"))
    await_gone(observer, pid)


def await_gone(observer: Connect, pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if scalar(observer, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,)) == 0:
            return
        time.sleep(0.005)
    raise AssertionError(f"the backend {pid} is still there")


@pytest.mark.superuser
def test_a_warning_of_a_deferred_trigger_is_no_doubt_about_the_commit(
    database: scratch.Database, superuser: Connect, engine_at: Callable[..., Engine]
) -> None:
    superuser.execute(
        """
        CREATE TABLE public.warned (id integer);
        CREATE FUNCTION public.warn() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN RAISE WARNING ''canceling wait for synchronous replication''; RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON public.warned
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.warn()
        """
    )
    engine = engine_at(database.url)
    run_in_transaction(
        sessionmaker(engine), lambda s: s.execute(text("INSERT INTO public.warned VALUES (1)"))
    )
    assert superuser.execute("SELECT count(*) FROM public.warned").fetchone() == (1,)


@pytest.mark.superuser
def test_a_backend_that_is_terminated_before_commit_is_a_lost_connection(
    database: scratch.Database, superuser: Connect, engine_at: Callable[..., Engine]
) -> None:
    engine = engine_at(database.as_role("control"))
    with Session(engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        assert superuser.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,)).fetchone()
        with raises(errors.ConnectionLost, Retry.SAFE) as raised:
            PolicyVersionRepository(session).active()
        assert raised.value.sqlstate == "57P01"
    with Session(engine) as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid


@pytest.mark.superuser
@pytest.mark.direct("a pooler hides the SQLSTATE of a backend's end")
def test_a_backend_that_is_terminated_during_commit_leaves_an_unknown_outcome(
    database: scratch.Database,
    superuser: Connect,
    connections: Callable[[URL], Connect],
    engine_at: Callable[..., Engine],
) -> None:
    superuser.execute(
        """
        CREATE TABLE public.slow (id integer);
        CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON public.slow
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait()
        """
    )
    connections(database.url).execute("SELECT pg_advisory_lock(1)")
    raised: list[BaseException] = []

    def commit(session: Session) -> None:
        try:
            session.commit()
        except BaseException as error:
            raised.append(error)

    with Session(engine_at(database.url)) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        session.execute(text("INSERT INTO public.slow VALUES (1)"))
        committing = threading.Thread(target=commit, args=(session,))
        committing.start()
        try:
            await_blocked(superuser, pid)
        finally:
            superuser.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
            committing.join()
    (error,) = raised
    assert type(error) is errors.CommitOutcomeUnknown
    assert error.sqlstate == "57P01"
    assert superuser.execute("SELECT count(*) FROM public.slow").fetchone() == (0,)


def test_a_connection_that_is_refused_is_lost(engine_at: Callable[..., Engine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    engine = engine_at(URL.create("postgresql", host="127.0.0.1", port=port, username="x"))
    with raises(errors.ConnectionLost, Retry.SAFE), engine.connect():
        pass
    with Session(engine) as session, raises(errors.ConnectionLost, Retry.SAFE):
        PolicyVersionRepository(session).active()


def test_a_connection_that_is_refused_is_lost_inside_a_call_on_a_hosts_engine(
    host_engine_at: Callable[..., Engine],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = URL.create("postgresql+psycopg", host="127.0.0.1", port=port, username="x")
    with Session(host_engine_at(url)) as session, raises(errors.ConnectionLost, Retry.SAFE):
        PolicyVersionRepository(session).active()


# A schema that is missing or outdated.


def test_a_missing_schema_is_reported_on_the_engines_first_use(
    empty_database: URL, engine_at: Callable[..., Engine]
) -> None:
    engine = engine_at(empty_database)
    for _ in range(2):
        with raises(errors.SchemaNotReady, Retry.NEVER) as raised, engine.connect():
            pass
        assert "alembic upgrade head" in str(raised.value)
        assert raised.value.sqlstate == "42P01"


def test_a_schema_that_comes_after_the_first_use_is_found(
    empty_database: URL, engine_at: Callable[..., Engine]
) -> None:
    engine = engine_at(empty_database)
    with pytest.raises(errors.SchemaNotReady), engine.connect():
        pass
    scratch.upgrade(empty_database)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE orchestration.schema_revision SET revision = '0001'",
        "DROP TRIGGER no_delete ON orchestration.schema_revision;"
        " DELETE FROM orchestration.schema_revision",
    ],
    ids=["an older one", "none"],
)
def test_a_schema_older_than_the_code_is_reported_on_the_engines_first_use(
    owner: Connect, database: scratch.Database, engine_at: Callable[..., Engine], change: str
) -> None:
    owner.execute(change)
    engine = engine_at(database.as_role("ingest"))
    with pytest.raises(errors.SchemaNotReady, match="alembic upgrade head"), engine.connect():
        pass


def test_a_schema_newer_than_the_code_is_fine(
    owner: Connect, database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    owner.execute("UPDATE orchestration.schema_revision SET revision = '9999'")
    with engine_at(database.as_role("ingest")).connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_login_without_any_role_of_ours_is_reported_on_the_engines_first_use(
    owner: Connect, database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    owner.execute("REVOKE USAGE ON SCHEMA orchestration FROM symphony_ingest")
    engine = engine_at(database.as_role("ingest"))
    with raises(errors.InsufficientPrivilege, Retry.NEVER), engine.connect():
        pass


def test_a_missing_schema_is_reported_inside_a_call_on_a_hosts_engine(
    empty_database: URL, host_engine_at: Callable[..., Engine]
) -> None:
    with Session(host_engine_at(empty_database)) as session:
        versions = PolicyVersionRepository(session)
        for act in (versions.active, lambda: versions.retire("v1")):
            with raises(errors.SchemaNotReady, Retry.NEVER) as raised:
                act()
            assert "alembic upgrade head" in str(raised.value)
            session.rollback()


@pytest.mark.parametrize(
    ("change", "sqlstate"),
    [
        ("ALTER TABLE orchestration.policy_versions RENAME TO gone", "42P01"),
        ("ALTER TABLE orchestration.policy_versions RENAME created_by TO gone", "42703"),
        ("ALTER SCHEMA orchestration RENAME TO gone", "42P01"),
    ],
)
def test_an_object_that_vanished_after_the_first_use_is_reported_inside_a_call(
    superuser: Connect,
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    change: str,
    sqlstate: str,
) -> None:
    with Session(engine_at(database.as_role("ingest"))) as session:
        PolicyVersionRepository(session).active()
        session.commit()
        superuser.execute(change)
        with raises(errors.SchemaNotReady, Retry.NEVER) as raised:
            PolicyVersionRepository(session).active()
        assert raised.value.sqlstate == sqlstate
        session.rollback()
        # An error of the caller's own statement for a missing object is not translated.
        with pytest.raises(errors.UnclassifiedDatabaseError):
            session.execute(text("SELECT * FROM nothing_of_ours"))


# Conditions of the server.


@pytest.mark.direct("startup options")
def test_a_server_that_takes_no_writes_loses_its_connections(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    engine = engine_at(
        database.as_role("control"),
        connect_args={"options": "-c default_transaction_read_only=on"},
        poolclass=pool.QueuePool,
        pool_size=1,
        max_overflow=0,
    )
    with Session(engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with raises(errors.ReadOnlyServer, Retry.SAFE) as raised:
            PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        assert raised.value.sqlstate == "25006"
    with Session(engine) as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid


def test_after_the_first_error_the_transaction_is_reported_as_failed(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with engine_at(database.as_role("ingest")).connect() as connection:
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(text("DELETE FROM orchestration.policy_versions"))
        with raises(errors.FailedTransaction, Retry.NEVER) as raised:
            connection.execute(text("SELECT 1"))
        assert raised.value.sqlstate == "25P02"
        connection.rollback()
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_statement_that_times_out_is_cancelled(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with Session(engine_at(database.as_role("ingest"))) as session:
        session.execute(text("SET LOCAL statement_timeout = '100ms'"))
        with raises(errors.QueryCanceled, Retry.AFTER_RESOLUTION) as raised:
            session.execute(text("SELECT pg_sleep(60)"))
        assert raised.value.sqlstate == "57014"


def test_a_lock_that_is_not_free_in_time_is_not_available(
    owner: Connect, database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with owner.transaction(), Session(engine_at(database.url)) as session:
        owner.execute("LOCK TABLE orchestration.policy_versions IN ACCESS EXCLUSIVE MODE")
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with raises(errors.LockNotAvailable, Retry.SAFE):
            PolicyVersionRepository(session).active()


# Every code, raised by a server.


def say(sqlstate: str, **fields: str) -> str:
    options = "".join(f", {name} = '{value}'" for name, value in fields.items())
    return f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'{options}; END $$"


FULL = {
    "MESSAGE": "INV-POL-002: said so",
    "SCHEMA": "orchestration",
    "TABLE": "policy_versions",
    "COLUMN": "status",
    "CONSTRAINT": "INV-POL-002",
    "DETAIL": '{"id": "v1"}',
    "HINT": "do otherwise",
}


@pytest.fixture(params=["ours", "a host's"])
def translating_engine(
    request: pytest.FixtureRequest,
    database: scratch.Database,
    engine_at: Callable[..., Engine],
    host_engine_at: Callable[..., Engine],
) -> Engine:
    if request.param == "ours":
        return engine_at(database.url)
    engine = host_engine_at(database.url)
    install_error_translation(engine)
    return engine


def test_every_code_that_names_us_is_typed_with_everything_the_server_said(
    translating_engine: Engine,
) -> None:
    for code, cls in errors.BY_SQLSTATE.items():
        with translating_engine.connect() as connection, pytest.raises(cls) as raised:
            connection.exec_driver_sql(say(code, **FULL))
        error = raised.value
        assert type(error) is cls
        assert isinstance(error.__cause__, psycopg.Error)
        assert str(error) == "INV-POL-002: said so"
        assert vars(error) == {
            "sqlstate": code,
            "invariant": "INV-POL-002",
            "schema": "orchestration",
            "table": "policy_versions",
            "column": "status",
            "constraint": "INV-POL-002",
            "detail": {"id": "v1"},
            "hint": "do otherwise",
        }


def test_an_invariant_says_that_a_refusal_is_ours_even_without_our_schema(
    translating_engine: Engine,
) -> None:
    for code, cls in errors.BY_SQLSTATE.items():
        if not code.startswith("P"):
            continue
        with translating_engine.connect() as connection, pytest.raises(cls):
            connection.exec_driver_sql(say(code, CONSTRAINT="INV-POL-002"))


@pytest.mark.parametrize(
    "statement",
    [
        say("P0001", MESSAGE="the hosts own rule"),
        say("P0001", CONSTRAINT="host_rule"),
        say("P7101", CONSTRAINT="host_rule"),
        say("23514", CONSTRAINT="INV-POL-002", SCHEMA="public"),
        say("40001"),
        "INSERT INTO public.hosts VALUES (1)",
        "SELECT * FROM nothing",
        "SELECT 1 / 0",
    ],
)
def test_a_hosts_own_error_passes_unchanged_on_its_engine(
    superuser: Connect,
    database: scratch.Database,
    host_engine_at: Callable[..., Engine],
    statement: str,
) -> None:
    superuser.execute("CREATE TABLE public.hosts (id integer PRIMARY KEY)")
    superuser.execute("INSERT INTO public.hosts VALUES (1)")
    untouched, translating = host_engine_at(database.url), host_engine_at(database.url)
    install_error_translation(translating)
    found = []
    for engine in (untouched, translating):
        with engine.connect() as connection, pytest.raises(DBAPIError) as raised:
            connection.exec_driver_sql(statement)
        assert isinstance(raised.value.orig, psycopg.Error)
        found.append((type(raised.value), type(raised.value.orig), raised.value.orig.sqlstate))
    assert found[0] == found[1]


def test_a_hosts_own_error_is_typed_on_an_engine_of_ours(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with engine_at(database.url).connect() as connection:
        with raises(errors.UnclassifiedDatabaseError, Retry.NEVER) as raised:
            connection.exec_driver_sql("SELECT 1 / 0")
        assert raised.value.sqlstate == "22012"


VERSIONS = orm.PolicyVersion.__table__
assert isinstance(VERSIONS, Table)


def values(id: str) -> dict[str, str]:
    return {"id": id, "description": "test", "checksum": digest(id)}


def at_execute(session: Session) -> None:
    session.execute(insert(VERSIONS).values(values("v2")))


def at_executemany(session: Session) -> None:
    session.execute(insert(VERSIONS), [values("v2"), values("v3")])


def at_insertmanyvalues(session: Session) -> None:
    session.execute(insert(VERSIONS).returning(VERSIONS.c.id), [values("v2"), values("v3")]).all()


def at_flush(session: Session) -> None:
    session.add(orm.PolicyVersion(**values("v2")))
    session.flush()


def at_autoflush(session: Session) -> None:
    session.add(orm.PolicyVersion(**values("v2")))
    session.execute(text("SELECT 1"))


def at_autoflush_before_a_call(session: Session) -> None:
    session.add(orm.PolicyVersion(**values("v2")))
    PolicyVersionRepository(session).active()


def at_flush_in_commit(session: Session) -> None:
    session.add(orm.PolicyVersion(**values("v2")))
    session.commit()


@pytest.mark.invariant("INV-POL-005")
@pytest.mark.parametrize(
    "act",
    [
        at_execute,
        at_executemany,
        at_insertmanyvalues,
        at_flush,
        at_autoflush,
        at_autoflush_before_a_call,
        at_flush_in_commit,
    ],
)
def test_a_refusal_is_the_same_wherever_it_arises(
    translating_engine: Engine, act: Callable[[Session], None]
) -> None:
    with Session(translating_engine) as session:
        PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        session.commit()
        with raises(errors.ActivePolicyConflict, Retry.NEVER) as raised:
            act(session)
    error = raised.value
    assert (error.sqlstate, error.invariant, error.constraint) == ("P7104", *["INV-POL-005"] * 2)
    assert (error.schema, error.table, error.column) == (
        "orchestration",
        "policy_versions",
        "status",
    )
    assert error.detail == {"id": "v2", "status": "ACTIVE", "active": "v1"}
    assert error.hint == "Call rotate_policy_version to replace the ACTIVE version."


@pytest.mark.invariant("INV-POL-007")
def test_a_refusal_at_commit_is_typed(translating_engine: Engine) -> None:
    with Session(translating_engine) as session:
        PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        session.commit()
        active = session.get_one(orm.PolicyVersion, "v1")
        active.status, active.grace_expires_at = "GRACE", active.activated_at
        session.flush()
        with raises(errors.LastActivePolicy, Retry.NEVER) as raised:
            session.commit()
        assert (raised.value.invariant, raised.value.detail) == ("INV-POL-007", {"id": "v1"})
        session.rollback()
        assert session.get_one(orm.PolicyVersion, "v1").status == "ACTIVE"


@pytest.mark.invariant("INV-POL-001", "INV-POL-002")
def test_a_change_of_an_orm_object_is_refused_at_flush(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with Session(engine_at(database.url)) as session:
        PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        session.commit()
        session.get_one(orm.PolicyVersion, "v1").description = "other"
        with raises(errors.InvalidPolicyTransition, Retry.NEVER) as raised:
            session.flush()
        assert raised.value.invariant == "INV-POL-001"


@pytest.mark.invariant("INV-POL-006")
def test_a_deletion_of_an_orm_object_is_refused_at_commit(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    with Session(engine_at(database.url)) as session:
        PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        session.commit()
        session.delete(session.get_one(orm.PolicyVersion, "v1"))
        with raises(errors.PolicyDeleteForbidden, Retry.NEVER) as raised:
            session.commit()
        assert raised.value.detail == {"id": "v1", "status": "ACTIVE"}


@pytest.mark.invariant("INV-POL-005", "INV-POL-008")
@pytest.mark.parametrize(
    ("without_guard", "cls", "invariant"),
    [
        (True, errors.ActivePolicyRace, "INV-POL-005"),
        (False, errors.UniqueViolation, "INV-POL-008"),
    ],
)
def test_a_native_code_is_typed_by_its_constraint(
    owner: Connect,
    translating_engine: Engine,
    without_guard: bool,
    cls: type[OrchestrationError],
    invariant: str,
) -> None:
    if without_guard:
        statement = (
            "INSERT INTO orchestration.policy_versions (id, description, checksum, activated_at,"
            " created_at, db_user, xact_id) VALUES ('v3', 'test', repeat('0', 64),"
            " clock_timestamp(), clock_timestamp(), 'x', 1)"
        )
        owner.execute("DROP TRIGGER guard ON orchestration.policy_versions")
    else:
        statement = (
            "UPDATE orchestration.policy_versions SET status = 'GRACE',"
            " grace_expires_at = clock_timestamp() WHERE id = 'v2'"
        )
    with Session(translating_engine) as session:
        if without_guard:
            session.execute(text(statement.replace("'v3'", "'v1'")))
        else:
            for id in ("v1", "v2"):
                PolicyVersionRepository(session).rotate(new(id), grace=timedelta(hours=1))
        with raises(cls, Retry.NEVER) as raised:
            session.execute(text(statement))
    assert raised.value.sqlstate == "23505"
    assert raised.value.invariant == invariant
    assert raised.value.schema == "orchestration"
    assert raised.value.table == "policy_versions"
    assert set(raised.value.detail or {}) == {"text"}


def test_a_typed_error_is_never_wrapped_again(translating_engine: Engine) -> None:
    with Session(translating_engine) as session, pytest.raises(OrchestrationError) as raised:
        PolicyVersionRepository(session).retire("v9")
    seen = [raised.value.__cause__, raised.value.__context__]
    assert all(isinstance(error, psycopg.Error | DBAPIError) for error in seen)
    assert isinstance(raised.value.__cause__, psycopg.Error)


# Defaults of an engine.


def connect_arguments(engine: Engine) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def remember(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        seen.update(parameters)

    event.listen(engine, "do_connect", remember)
    with engine.connect():
        pass
    return seen


def setting(engine: Engine, name: str) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT current_setting(:name)"), {"name": name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("idle_in_transaction_session_timeout", "1min"),
        ("lock_timeout", "10s"),
        ("statement_timeout", "1min"),
        ("synchronous_commit", "on"),
    ],
)
def test_the_startup_options_are_in_force(
    database: scratch.Database, engine_at: Callable[..., Engine], name: str, value: str
) -> None:
    assert setting(engine_at(database.as_role("ingest")), name) == value


def test_behind_a_pooler_nothing_is_sent_that_it_would_not_take(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    arguments = connect_arguments(engine_at(database.as_role("ingest"), pooler=True))
    assert "options" not in arguments
    assert arguments["prepare_threshold"] is None


CURRENT_SETTINGS = select(*[func.current_setting(name).label(name) for name in SETTINGS])
ISOLATION = "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"


def current_settings(connection: Connection) -> dict[str, str]:
    return dict(connection.execute(CURRENT_SETTINGS).one()._mapping)


@pytest.mark.superuser
@pytest.mark.direct("an engine without pooler=True")
def test_behind_a_pooler_the_same_settings_hold_for_each_transaction(
    database: scratch.Database, engine_at: Callable[..., Engine], superuser: Connect
) -> None:
    url = database.as_role("control")
    own = f'ALTER ROLE "{url.username}" IN DATABASE "{database.name}" SET '
    for one in ("datestyle = SQL", "intervalstyle = iso_8601", "lock_timeout = '1h'"):
        superuser.execute(own + one)
    ours, pooled = engine_at(url), engine_at(url, pooler=True)
    with ours.connect() as connection:
        expected = current_settings(connection)
    with pooled.connect() as connection:
        for end in (connection.commit, connection.rollback):
            with connection.begin_nested():
                assert current_settings(connection) == expected
            assert current_settings(connection) == expected
            end()
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        driver.autocommit = True
        assert driver.execute("SHOW lock_timeout").fetchone() == ("1h",)
        driver.autocommit = False
    with Session(pooled) as session:
        made = PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(days=40))
        session.commit()
        assert PolicyVersionRepository(session).get("v1") == made


@pytest.mark.parametrize("isolation", ISOLATION)
def test_behind_a_pooler_a_transaction_has_the_isolation_it_was_given(
    database: scratch.Database, engine_at: Callable[..., Engine], isolation: str
) -> None:
    characteristics = text(
        "SELECT upper(current_setting('transaction_isolation')),"
        " current_setting('transaction_read_only'), current_setting('transaction_deferrable')"
    )
    options = {"postgresql_readonly": True, "postgresql_deferrable": True}
    engine = engine_at(database.as_role("control"), pooler=True)
    with engine.connect().execution_options(isolation_level=isolation, **options) as connection:
        assert tuple(connection.execute(characteristics).one()) == (isolation, "on", "on")
        connection.rollback()
        assert tuple(connection.execute(characteristics).one()) == (isolation, "on", "on")
    engine = engine_at(database.as_role("control"), pooler=True, isolation_level=isolation)
    with engine.connect() as connection:
        assert tuple(connection.execute(characteristics).one()) == (isolation, "off", "off")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.scalar(text("SELECT now() < clock_timestamp()"))
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        assert driver.info.transaction_status is TransactionStatus.IDLE


@pytest.mark.direct("an engine without pooler=True")
def test_behind_a_pooler_the_settings_cost_no_round_trip(
    database: scratch.Database, engine_at: Callable[..., Engine], tmp_path: Path
) -> None:
    def round_trips(pooler: bool) -> int:
        trace = tmp_path / str(pooler)
        engine = engine_at(database.url, pooler=pooler, connect_args={"prepare_threshold": None})
        with engine.connect() as connection, trace.open("w") as file:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            driver.pgconn.trace(file.fileno())
            connection.execute(text("SELECT 1"))
            with connection.begin_nested():
                connection.execute(text("SELECT :x"), {"x": 1})
            connection.execute(text("SELECT :x"), [{"x": 1}, {"x": 2}])
            connection.commit()
            connection.exec_driver_sql("SELECT 1")
            connection.rollback()
            driver.pgconn.untrace()
        return trace.read_text().count("ReadyForQuery")

    assert round_trips(pooler=True) == round_trips(pooler=False) > 0


@pytest.mark.superuser
@pytest.mark.direct("a pooler replaces the backend")
def test_behind_a_pooler_a_connection_lost_while_it_idled_is_safe_to_try_again(
    database: scratch.Database, engine_at: Callable[..., Engine], superuser: Connect
) -> None:
    engine = engine_at(database.as_role("control"), pooler=True, pool_size=1, max_overflow=0)
    with Session(engine) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    superuser.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    with Session(engine) as session, raises(errors.ConnectionLost, Retry.SAFE):
        PolicyVersionRepository(session).active()
    with Session(engine) as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid


@pytest.mark.direct("an engine without pooler=True")
def test_without_a_pooler_the_drivers_prepared_statements_stay(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    arguments = connect_arguments(engine_at(database.as_role("ingest")))
    assert arguments["options"] == STARTUP_OPTIONS
    assert "prepare_threshold" not in arguments


@pytest.mark.direct("startup options")
def test_the_callers_own_connect_args_are_kept(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    mine = {"options": "-c lock_timeout=7s", "application_name": "mine", "connect_timeout": 3}
    engine = engine_at(database.as_role("ingest"), connect_args=mine)
    assert connect_arguments(engine).items() >= mine.items()
    assert setting(engine, "lock_timeout") == "7s"
    assert setting(engine, "application_name") == "mine"
    assert mine == {
        "options": "-c lock_timeout=7s",
        "application_name": "mine",
        "connect_timeout": 3,
    }


@pytest.mark.direct("an engine without pooler=True")
@pytest.mark.parametrize("pooler", [True, False])
def test_a_silent_network_is_bounded_unless_the_caller_says_otherwise(
    database: scratch.Database, engine_at: Callable[..., Engine], pooler: bool
) -> None:
    url = database.as_role("ingest")
    assert connect_arguments(engine_at(url, pooler=pooler)).items() >= NETWORK_BOUNDS.items()
    mine = {"tcp_user_timeout": "7000", "keepalives": "0"}
    arguments = connect_arguments(engine_at(url.update_query_dict(mine), pooler=pooler))
    assert arguments.items() >= mine.items()
    engine = engine_at(url, pooler=pooler, connect_args={"keepalives_idle": 1})
    assert connect_arguments(engine)["keepalives_idle"] == 1


@pytest.mark.direct("startup options")
def test_what_the_url_says_is_kept(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    mine = {"options": "-c lock_timeout=7s", "connect_timeout": "3"}
    url = database.as_role("ingest").update_query_dict(mine)
    engine = engine_at(url)
    assert str(connect_arguments(engine)["connect_timeout"]) == "3"
    assert setting(engine, "lock_timeout") == "7s"


@pytest.mark.parametrize("name", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_name_of_the_dialect_means_the_same_driver(name: str) -> None:
    assert normalize_url(f"{name}://u@h/d").render_as_string() == "postgresql+psycopg://u@h/d"


@pytest.mark.parametrize(
    "url",
    [
        "secret",
        "",
        "mysql://u:secret@h/d",
        "sqlite:///secret.db",
        "postgresql+asyncpg://u:secret@h/d",
        "postgresql://u:secret@h:port/d",
    ],
)
def test_another_kind_of_url_is_refused_by_the_form_of_ours(url: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        normalize_url(url)
    assert "postgresql+psycopg://user:password@host:port/database" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.superuser
@pytest.mark.direct("a pooler replaces the backend")
def test_a_connection_lost_while_sqlalchemy_looks_at_the_server_is_typed(
    database: scratch.Database, engine_at: Callable[..., Engine], superuser: Connect
) -> None:
    engine = engine_at(database.as_role("ingest"))

    def end(driver: Any, _record: Any) -> None:
        superuser.execute("SELECT pg_terminate_backend(%s, 10000)", (driver.info.backend_pid,))

    event.listen(engine, "connect", end, insert=True)
    with raises(errors.ConnectionLost, Retry.SAFE), engine.connect():
        pass


def test_the_engine_of_a_plain_url_works(
    database: scratch.Database, engine_at: Callable[..., Engine]
) -> None:
    plain = database.as_role("ingest").set(drivername="postgresql")
    assert setting(engine_at(plain), "lock_timeout") == "10s"


@pytest.mark.invariant("INV-API-003")
def test_no_error_and_no_echo_of_our_engine_shows_a_parameter(
    database: scratch.Database, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "DE02secretaccount"
    engine = create_engine(database.url, pooler=POOLED, echo=True, poolclass=pool.NullPool)
    with caplog.at_level("INFO"), engine.connect() as connection:
        connection.execute(text("SELECT CAST(:secret AS text)"), {"secret": secret})
        with pytest.raises(errors.OrchestrationError) as raised:
            connection.execute(
                text("SELECT 1 / length(substr(CAST(:secret AS text), 99))"), {"secret": secret}
            )
    assert "SELECT CAST" in caplog.text
    assert secret not in caplog.text
    assert secret not in "".join(traceback.format_exception(raised.value))


@pytest.mark.invariant("INV-API-003")
def test_a_row_that_a_check_refuses_is_in_no_traceback(database: scratch.Database) -> None:
    secret = digest("DE02secretaccount")
    engine = create_engine(database.url, pooler=POOLED, poolclass=pool.NullPool)
    statement = text(
        "INSERT INTO orchestration.revoked_tokens (token_hash, reason_code) VALUES (:hash, 'none')"
    )
    with engine.connect() as connection, pytest.raises(errors.CheckViolation) as raised:
        connection.execute(statement, {"hash": secret})
    assert raised.value.detail is None
    assert secret not in "".join(traceback.format_exception(raised.value))

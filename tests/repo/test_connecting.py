"""A server that refuses a connection. If only a change of the configuration can help, the
connection is not tried again."""

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy import create_engine as plain_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import errors
from orchestration.database import create_engine
from orchestration.errors import OrchestrationError, Retry
from orchestration.repo import PolicyVersionRepository
from orchestration.transactions import run_in_transaction
from tests.support import Connect

Make = Callable[..., Engine]

pytestmark = pytest.mark.direct("a pooler refuses a connection itself, without a SQLSTATE")


@pytest.fixture
def engine_at() -> Iterator[Callable[[Make, URL], Engine]]:
    with ExitStack() as opened:

        def at(make: Make, url: URL) -> Engine:
            made = make(url)
            opened.callback(made.dispose)
            return made

        yield at


def nobody_listens() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


WRONG: dict[str, tuple[Callable[[URL], URL], type[OrchestrationError], str]] = {
    "wrong password": (lambda url: url.set(password="x"), errors.InvalidPassword, "28P01"),
    "no password": (
        lambda url: URL.create(url.drivername, url.username, None, url.host, url.port, "postgres"),
        errors.InvalidPassword,
        "28P01",
    ),
    "unknown role": (lambda url: url.set(username="nobody"), errors.InvalidPassword, "28P01"),
    "unknown database": (
        lambda url: url.set(database="nowhere"),
        errors.InvalidCatalogName,
        "3D000",
    ),
    "unknown setting": (
        lambda url: url.update_query_dict({"options": "-c nothing=1"}),
        errors.UnclassifiedDatabaseError,
        "42704",
    ),
}


@pytest.mark.parametrize("make", [create_engine, plain_engine], ids=["ours", "a host's"])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_a_server_refuses_for_good_is_never_tried_again(
    database: scratch.Database, engine_at: Callable[[Make, URL], Engine], wrong: str, make: Make
) -> None:
    change, cls, sqlstate = WRONG[wrong]
    tries = 0

    def work(session: Session) -> object:
        nonlocal tries
        tries += 1
        return PolicyVersionRepository(session).active()

    factory = sessionmaker(engine_at(make, change(database.as_role("ingest"))))
    with pytest.raises(cls) as raised:
        run_in_transaction(factory, work)
    assert (type(raised.value), raised.value.sqlstate) == (cls, sqlstate)
    assert raised.value.retry is Retry.NEVER
    assert tries == 1


def test_a_hosts_own_statement_at_a_wrong_password_is_not_tried_again(
    database: scratch.Database, engine_at: Callable[[Make, URL], Engine]
) -> None:
    tries = 0

    def work(session: Session) -> object:
        nonlocal tries
        tries += 1
        return session.execute(text("SELECT 1"))

    factory = sessionmaker(engine_at(plain_engine, database.as_role("ingest").set(password="x")))
    with pytest.raises(OperationalError):
        run_in_transaction(factory, work)
    assert tries == 1


@pytest.mark.parametrize(
    ("where", "cls"),
    [
        (("there", "there"), errors.InvalidPassword),
        (("there", "nowhere"), errors.ConnectionLost),
        (("nowhere", "there"), errors.ConnectionLost),
    ],
)
def test_of_several_hosts_all_must_refuse(
    database: scratch.Database,
    engine_at: Callable[[Make, URL], Engine],
    where: tuple[str, ...],
    cls: type[OrchestrationError],
) -> None:
    """A host that is down could accept a login that another host refuses."""
    url = database.as_role("ingest")
    ports = {"there": url.port, "nowhere": nobody_listens()}
    hosts = [f"{url.host}:{ports[one]}" for one in where]
    several = url.set(host=None, port=None, password="x").update_query_dict({"host": hosts})
    with pytest.raises(cls) as raised, engine_at(create_engine, several).connect():
        pass
    assert type(raised.value) is cls


def test_a_role_that_has_no_connection_left_is_tried_again(
    database: scratch.Database,
    superuser: Connect,
    connections: Callable[[URL], Connect],
    engine_at: Callable[[Make, URL], Engine],
) -> None:
    login, password = scratch.PREFIX + secrets.token_hex(4), secrets.token_hex(8)
    superuser.execute(
        f"CREATE ROLE {login} LOGIN PASSWORD '{password}' CONNECTION LIMIT 1".encode()
    )
    try:
        url = database.url.set(username=login, password=password)
        connections(url)
        with (
            pytest.raises(errors.ConnectionLost) as raised,
            engine_at(create_engine, url).connect(),
        ):
            pass
        assert (raised.value.sqlstate, raised.value.retry) == ("53300", Retry.SAFE)
    finally:
        superuser.execute(f"DROP ROLE {login}".encode())


@contextmanager
def mute_server(answer: bytes) -> Iterator[int]:
    """A port whose server answers each connection with these bytes and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(1000)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def refusal(fields: dict[str, str]) -> bytes:
    body = b"".join(f"{name}{value}".encode() + b"\0" for name, value in fields.items()) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("fields", "cls", "sqlstate"),
    [
        (
            {"S": "FATAL", "V": "FATAL", "C": "57P03", "M": "starting up"},
            errors.ConnectionLost,
            "57P03",
        ),
        (
            {"S": "FATALE", "V": "FATAL", "C": "28000", "M": "aucune entrée dans pg_hba.conf"},
            errors.InvalidAuthorizationSpecification,
            "28000",
        ),
        ({"S": "FATAL", "C": "28P01", "M": "a pooler"}, errors.InvalidPassword, "28P01"),
        ({"S": "FATAL", "M": 'C "28P01"'}, errors.ConnectionLost, None),
    ],
)
def test_the_code_decides_and_never_the_wording(
    engine_at: Callable[[Make, URL], Engine],
    fields: dict[str, str],
    cls: type[OrchestrationError],
    sqlstate: str | None,
) -> None:
    with mute_server(refusal(fields)) as port:
        url = URL.create("postgresql", "u", "p", "127.0.0.1", port, "d", {"sslmode": "disable"})
        with pytest.raises(cls) as raised, engine_at(create_engine, url).connect():
            pass
    assert (type(raised.value), raised.value.sqlstate) == (cls, sqlstate)


def test_a_server_that_hangs_up_is_a_lost_connection(
    engine_at: Callable[[Make, URL], Engine],
) -> None:
    with mute_server(b"") as port:
        url = URL.create("postgresql", "u", "p", "127.0.0.1", port, "d")
        with pytest.raises(errors.ConnectionLost), engine_at(create_engine, url).connect():
            pass

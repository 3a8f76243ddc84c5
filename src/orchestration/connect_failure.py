"""Finds out why a server refused a connection: libpq hides the SQLSTATE of a failed connect.

psycopg reports a refused connect only by libpq's message, which is localized. So this module
repeats a failed connect once with libpq's protocol trace switched on. The trace shows the server's
ErrorResponse with its SQLSTATE, which is not localized.
"""

import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo
from sqlalchemy import Engine

LONGEST_LOOK_SECONDS: Final = 3.0

# A server's FATAL error has the fields S, V, C in this order. A pooler can leave out V.
_REFUSAL: Final = re.compile(
    rb'^B\t\S+\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "([0-9A-Z]{5})"', re.MULTILINE
)


def refusal_state(error: BaseException, engine: Engine | None) -> str | None:
    """The SQLSTATE with which the server refused a connection, or None.

    The result is None if `error` does not come from a failed connect, if no server answered, if the
    second try succeeds, or if the system is not Linux: psycopg has no trace elsewhere. If the URL
    of `engine` names several hosts, all of them must refuse, because a host that is down might
    accept the login.
    """
    if (
        not isinstance(error, psycopg.Error)
        or error.pgconn is None
        or error.sqlstate is not None
        or isinstance(error, psycopg.errors.ConnectionTimeout)
        or sys.platform != "linux"
    ):
        return None
    state = None
    for parameters in _each_host(error.pgconn, engine):
        state = _look(parameters)
        if state is None:
            return None
    return state


def _each_host(failed: pq.abc.PGconn, engine: Engine | None) -> Iterator[Mapping[str, str]]:
    known = {
        option.keyword.decode(): option.val.decode()
        for option in failed.info
        if option.val is not None
    }
    arguments: Mapping[str, Any] = {}
    if engine is not None:
        arguments = engine.dialect.create_connect_args(engine.url)[1]
    hosts = str(arguments.get("host") or "").split(",")
    if len(hosts) == 1:
        # psycopg has already resolved the name: the parameters contain hostaddr.
        yield known
        return
    ports = str(arguments.get("port") or known.get("port") or "").split(",")
    known.pop("hostaddr", None)
    for number, host in enumerate(hosts):
        yield known | {"host": host, "port": ports[number] if len(ports) > 1 else ports[0]}


def _look(parameters: Mapping[str, str]) -> str | None:
    # The file is in memory, because the trace can contain a password.
    trace = os.memfd_create("orchestration")
    connection = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        connection.trace(trace)
        connection.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        if not _finish(connection):
            return None
        # libpq closes the connection if the server asks for a password and none was given.
        if connection.needs_password:
            return psycopg.errors.InvalidPassword.sqlstate
        connection.untrace()
        found = _REFUSAL.search(os.pread(trace, os.fstat(trace).st_size, 0))
        return found[1].decode() if found else None
    except psycopg.Error:
        return None
    finally:
        connection.finish()
        os.close(trace)


def _finish(connection: pq.abc.PGconn) -> bool:
    """Continue until the server has answered, and return whether it refused."""
    deadline = time.monotonic() + LONGEST_LOOK_SECONDS
    while connection.status != pq.ConnStatus.BAD:
        polled = connection.connect_poll()
        if polled == pq.PollingStatus.OK:
            return False
        if polled == pq.PollingStatus.FAILED:
            break
        reading = [connection.socket] if polled == pq.PollingStatus.READING else []
        writing = [] if reading else [connection.socket]
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not any(select.select(reading, writing, [], remaining)):
            return False
    return True

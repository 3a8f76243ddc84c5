"""A network drops every packet without notice. A call on our engine ends nevertheless.

The client runs in its own network namespace, which a virtual link joins to ours, and reaches the
server through a forwarder at our end of that link. Taking our end down loses all packets in both
directions. The namespace and the link end with the processes in it.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import URL
from tools import scratch

from orchestration.testing._supervisor import end_with_parent
from tests.support import Connect, await_blocked

BOUND_SECONDS = 30
"""The longest time that a call may take on a connection that went silent."""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))),
    reason="not run: needs root, and the programs ip, unshare and nsenter",
)

CLIENT = """
import json, sys
from datetime import timedelta
from sqlalchemy import text
from sqlalchemy.orm import Session
from orchestration.database import create_engine
from orchestration.errors import OrchestrationError
from orchestration.repo import OutboxRepository

with Session(create_engine(sys.argv[1])) as session:
    print(json.dumps({"pid": session.scalar(text("SELECT pg_backend_pid()"))}), flush=True)
    sys.stdin.readline()
    try:
        OutboxRepository(session).claim("w", batch_size=1, lease=timedelta(minutes=1))
        raised = None
    except OrchestrationError as error:
        raised = type(error).__name__, error.retry.value
    print(json.dumps({"raised": raised}), flush=True)
"""


class Client:
    """A process that connects, and claims on command, in another network namespace."""

    def __init__(self, url: URL, namespace: int) -> None:
        self._process = subprocess.Popen(
            [
                *("nsenter", f"--net=/proc/{namespace}/ns/net", sys.executable, "-c", CLIENT),
                url.render_as_string(hide_password=False),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_parent(signal.SIGKILL),
        )

    def said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        heard, _, _ = select.select([self._process.stdout], [], [], BOUND_SECONDS)
        assert heard, f"the client is silent after {BOUND_SECONDS} s"
        parsed: dict[str, Any] = json.loads(self._process.stdout.readline())
        return parsed

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def ip(*arguments: str, of: int | None = None) -> None:
    entering = ["nsenter", f"--net=/proc/{of}/ns/net"] if of is not None else []
    subprocess.run([*entering, "ip", *arguments], check=True, capture_output=True)


@contextmanager
def forwarder(address: str, target: URL) -> Iterator[int]:
    """Forward TCP from a free port of this address to the server, and return the port."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server((address, 0)))
        ends: list[socket.socket] = [listener]

        def copy(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    server = socket.create_connection((target.host, target.port))
                    ends.extend((client, server))
                    for pair in ((client, server), (server, client)):
                        threading.Thread(target=copy, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@pytest.fixture
def joined(database: scratch.Database) -> Iterator[Callable[[], tuple[Client, Callable[[], None]]]]:
    """A client that can reach the server, and a function that cuts its network."""
    with ExitStack() as opened:

        def join() -> tuple[Client, Callable[[], None]]:
            link, net = f"orch{os.getpid()}", f"10.{231 + os.getpid() % 20}.{os.getpid() % 250}"
            # The namespace lasts as long as this process and the client.
            holder = subprocess.Popen(
                ["unshare", "--net", "sleep", "infinity"],
                stdin=subprocess.DEVNULL,
                preexec_fn=end_with_parent(signal.SIGKILL),
            )
            opened.callback(holder.wait)
            opened.callback(holder.kill)
            ours = os.readlink("/proc/self/ns/net")
            while os.readlink(f"/proc/{holder.pid}/ns/net") == ours:
                pass
            ip(
                "link",
                "add",
                link,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                str(holder.pid),
            )
            ip("address", "add", f"{net}.1/24", "dev", link)
            ip("link", "set", link, "up")
            ip("address", "add", f"{net}.2/24", "dev", "eth0", of=holder.pid)
            ip("link", "set", "eth0", "up", of=holder.pid)
            port = opened.enter_context(forwarder(f"{net}.1", database.url))
            url = database.as_role("executor").set(host=f"{net}.1", port=port)
            client = Client(url, namespace=holder.pid)
            opened.callback(client.close)
            return client, lambda: ip("link", "set", link, "down")

        yield join


@pytest.mark.parametrize("cut", ["before the request", "while the reply is awaited"])
def test_a_claim_on_a_silent_connection_ends(
    owner: Connect, joined: Callable[[], tuple[Client, Callable[[], None]]], cut: str
) -> None:
    client, cut_network = joined()
    pid = client.said()["pid"]
    if cut == "before the request":
        cut_network()
        client.go_on()
        ended = client.said()
    else:
        with owner.transaction():
            owner.execute(
                "LOCK TABLE orchestration.payment_outbox_pending IN ACCESS EXCLUSIVE MODE"
            )
            client.go_on()
            # The server has acknowledged the request, so only the keepalive probes detect the cut.
            await_blocked(owner, pid)
            cut_network()
            ended = client.said()
    assert ended["raised"] == ["ConnectionLost", "SAFE"]

"""A TCP proxy in front of PostgreSQL that cuts connections at COMMIT."""

import asyncio
import random
import socket
import struct
import threading
from dataclasses import dataclass, field

HOST = "127.0.0.1"
STARTUP_HEADER = struct.Struct("!II")
MESSAGE_HEADER = struct.Struct("!cI")
# SSLRequest, GSSENCRequest: the server answers with one byte, and a startup message follows.
NEGOTIATIONS = (80877103, 80877104)
READ_OCTETS = 65536


@dataclass
class Frontend:
    """The messages of one client, separated from its stream of bytes."""

    buffered: bytes = b""
    started: bool = False

    def messages(self, data: bytes) -> list[bytes]:
        self.buffered += data
        found: list[bytes] = []
        while (length := self._length()) is not None and len(self.buffered) >= length:
            message, self.buffered = self.buffered[:length], self.buffered[length:]
            if not self.started:
                self.started = STARTUP_HEADER.unpack_from(message)[1] not in NEGOTIATIONS
            found.append(message)
        return found

    def _length(self) -> int | None:
        if not self.started:
            if len(self.buffered) < STARTUP_HEADER.size:
                return None
            return int(STARTUP_HEADER.unpack_from(self.buffered)[0])
        if len(self.buffered) < MESSAGE_HEADER.size:
            return None
        return 1 + int(MESSAGE_HEADER.unpack_from(self.buffered)[1])


def is_commit(message: bytes) -> bool:
    """Whether this is a simple query with the text COMMIT, as psycopg sends it."""
    return message[:1] == b"Q" and message[5:].rstrip(b"\0; ").upper() == b"COMMIT"


@dataclass
class CuttingProxy:
    """Forwards connections to a server, and cuts a share of the COMMITs that pass.

    Every second cut connection is closed before the server gets the COMMIT, so that nothing is
    committed. The others are closed after the server has answered, and the client does not get the
    answer. The client cannot distinguish the two cases.
    """

    target: tuple[str, int]
    share: float
    seed: int = 1
    commits: int = 0
    cut: int = 0
    port: int = 0
    _random: random.Random = field(init=False, repr=False)
    _loop: asyncio.AbstractEventLoop = field(init=False, repr=False)
    _thread: threading.Thread = field(init=False, repr=False)
    _connections: set["asyncio.Task[None]"] = field(default_factory=set, repr=False)

    def __enter__(self) -> "CuttingProxy":
        self._random = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server((HOST, 0))
        self.port = listener.getsockname()[1]
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=listener)
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._forward(client, reply)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            reply.close()

    async def _forward(self, client: asyncio.StreamReader, reply: asyncio.StreamWriter) -> None:
        server, request = await asyncio.open_connection(*self.target)
        lost = asyncio.Event()
        try:
            up = asyncio.create_task(self._requests(client, request, lost))
            down = asyncio.create_task(self._replies(server, reply, lost))
            _, pending = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            for one in pending:
                one.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            request.close()

    async def _requests(
        self, client: asyncio.StreamReader, request: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        frontend = Frontend()
        while data := await client.read(READ_OCTETS):
            for message in frontend.messages(data):
                if is_commit(message):
                    self.commits += 1
                    if self._random.random() < self.share:
                        self.cut += 1
                        if self.cut % 2 == 0:
                            return
                        lost.set()
                request.write(message)
            await request.drain()
            if lost.is_set():
                # The reply ends the connection.
                await asyncio.Event().wait()

    async def _replies(
        self, server: asyncio.StreamReader, reply: asyncio.StreamWriter, lost: asyncio.Event
    ) -> None:
        while data := await server.read(READ_OCTETS):
            if lost.is_set():
                return
            reply.write(data)
            await reply.drain()

"""For the client's tests: upstreams on real sockets of which a test says every byte, and a stand-in for a client's exchange."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit.wire import new_loop
from coordinator.kit.wire_upstream import UpstreamConnection

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"Content-Length: 2\r\n\r\nok"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
AT_ONCE_S = 0.1
"""Within this an upstream's call is to be freed."""
PATIENCE_S = 20.0
"""For what comes at once when it comes at all: a busy machine may stop for seconds."""


def guarded(
    make: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None], *, most_s: float = 60.0
) -> None:
    """Run ``work`` on a new loop. Fails for an exception that nobody caught and for a task that is left."""
    strays: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: strays.append(context))
        async with asyncio.timeout(most_s):
            await work
        async with asyncio.timeout(PATIENCE_S):  # an upstream may learn of a connection when its client has left
            while asyncio.all_tasks() - {asyncio.current_task()}:  # noqa: ASYNC110 - no event announces it
                await asyncio.sleep(0.001)
        gc.collect(1)  # a future whose exception nobody asked for says so when it goes

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(watched())
    assert strays == []


def on_each_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes of a coroutine two tests: on the loop that this lane is meant for, and on the standard library's."""

    @functools.wraps(test)
    def run(make: Callable[[], asyncio.AbstractEventLoop], **fixtures: Any) -> None:
        guarded(make, test(**fixtures))

    given = inspect.signature(test)
    ours = inspect.Parameter("make", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = given.replace(parameters=[ours, *given.parameters.values()])  # type: ignore[attr-defined]
    loops = [pytest.param(new_loop, id="uvloop"), pytest.param(asyncio.new_event_loop, id="asyncio")]
    return pytest.mark.parametrize("make", loops)(run)


class Talk:
    """One connection of an upstream, seen from its own end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.closed = asyncio.Event()
        """The client hung up (seen by whoever reads or drains)."""

    async def head(self) -> bytes:
        """A request up to its body; empty when the client hung up."""
        try:
            return await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
            return b""

    async def request(self) -> bytes:
        """A whole request; empty when the client hung up."""
        head = await self.head()
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return head + await self.reader.readexactly(length)

    async def end(self) -> None:
        """Wait until the client hangs up."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.closed.set()

    def say(self, data: bytes) -> None:
        """Raises ``ConnectionError`` when the client is known to be gone."""
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)

    def hang_up(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with RST."""
        if self.writer.is_closing():
            raise ConnectionResetError
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


class Upstream:
    """A listening upstream. ``talk`` is called for each connection; these are kept in ``talks``."""

    def __init__(self, talk: Callable[[Talk], Awaitable[None]]) -> None:
        self._stopped = False
        self._talk = talk
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.scheme = "http"
        self.talks: list[Talk] = []

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._stopped:
            writer.transport.abort()
            return
        self._tasks.add(task)
        talk = Talk(reader, writer)
        self.talks.append(talk)
        try:
            await self._talk(talk)
        except (ConnectionError, asyncio.IncompleteReadError):
            talk.closed.set()
        except asyncio.CancelledError:
            pass  # the test is over
        self._tasks.discard(task)

    async def stop(self) -> None:
        self._stopped = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        for talk in self.talks:
            talk.writer.transport.abort()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def listening(
    talk: Callable[[Talk], Awaitable[None]], *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Upstream]:
    upstream = Upstream(talk)
    server = await asyncio.start_server(upstream.serve, host, 0, ssl=tls)
    upstream.port = server.sockets[0].getsockname()[1]
    upstream.scheme = "https" if tls else "http"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.stop()


def saying(answer: bytes, *, hang_up: bool = False) -> Callable[[Talk], Awaitable[None]]:
    """An upstream that says the same to every request."""

    async def talk(talk: Talk) -> None:
        while await talk.request():
            talk.say(answer)
            if hang_up:
                talk.hang_up()
                return

    return talk


class Sink:
    """Stands in for a client's exchange: what flows into it, and room that a test takes and gives."""

    def __init__(self) -> None:
        self.finished = False
        self.full = False
        self.gone = False
        self.sent: list[bytes] = []
        self.more = asyncio.Event()
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None

    @property
    def body(self) -> bytes:
        return b"".join(self.sent)

    def send(self, data: bytes) -> None:
        assert not self.finished
        self.sent.append(data)
        self.more.set()

    def finish(self) -> None:
        assert not self.finished
        self.finished = True
        self.more.set()

    def on_room(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self._pause, self._resume = pause, resume

    def fill(self) -> None:
        self.full = True
        self._pause()

    def drain(self) -> None:
        self.full = False
        self._resume()


class Ear:
    """What the client's connections heard, byte for byte: a test that says a byte can wait until it was taken."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.heard_bytes = 0
        self.lost = 0
        self._changed = asyncio.Event()
        heard, lost = UpstreamConnection.data_received, UpstreamConnection.connection_lost

        def data_received(connection: UpstreamConnection, data: bytes) -> None:
            heard(connection, data)
            self.heard_bytes += len(data)
            self._changed.set()

        def connection_lost(connection: UpstreamConnection, exc: Exception | None) -> None:
            lost(connection, exc)
            self.lost += 1
            self._changed.set()

        patch.setattr(UpstreamConnection, "data_received", data_received)
        patch.setattr(UpstreamConnection, "connection_lost", connection_lost)

    async def until(self, heard_bytes: int) -> None:
        """Wait until so many bytes were taken, or a connection was lost."""
        async with asyncio.timeout(PATIENCE_S):
            while self.heard_bytes < heard_bytes and not self.lost:
                self._changed.clear()
                await self._changed.wait()


async def say_split(talk: Talk, ear: Ear, pieces: list[bytes]) -> None:
    """Say each piece when the one before was taken."""
    for piece in pieces:
        if not piece:
            continue
        before = ear.heard_bytes
        talk.say(piece)
        await ear.until(before + len(piece))
        if ear.lost:
            return


async def at_once(once: Callable[[], Awaitable[Talk]]) -> None:
    """``once`` does what should free an upstream's call, and returns it: seen to be freed at once in one of five tries (a
    busy machine may spoil some)."""
    loop = asyncio.get_running_loop()
    took_s = []
    while len(took_s) < 5 and (not took_s or min(took_s) >= AT_ONCE_S):
        talk = await once()
        began = loop.time()
        await asyncio.wait_for(talk.closed.wait(), PATIENCE_S)
        took_s.append(loop.time() - began)
    assert min(took_s) < AT_ONCE_S


async def soon(condition: Callable[[], object]) -> None:
    """Return once ``condition()`` is true, looking at it on every turn of the loop."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - no event announces it
            await asyncio.sleep(0)

"""A scripted upstream and a client, both on bare sockets, so that every byte and every break is a test's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from coordinator.domain.event import Published, RequestServed
from coordinator.domain.settings import GatewaySettings
from coordinator.gateway.claimant import Claimant
from coordinator.gateway.gateway import Gateway
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.surface.metrics import exposition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from coordinator.gateway.documents import Document
    from coordinator.kit.store import Store

PROVIDER_KEY = "sk-provider-secret-0123456789"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nrequest-id: r1\r\n\r\n"


@dataclass
class Exchange:
    """One request as the upstream got it, and the wire to answer it on. ``gone`` is set when the other end hung up."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    connection: int = 0

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def plain(self, body: bytes, status: str = "200 OK", more: str = "") -> None:
        await self.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)


Script = "Callable[[Exchange], Awaitable[None]]"


async def hello(exchange: Exchange) -> None:
    await exchange.plain(b'{"type":"message"}', more="Content-Type: application/json\r\n")


class Upstream:
    """Answers each request as ``script`` says; keeps connections alive between them."""

    def __init__(self, script: Callable[[Exchange], Awaitable[None]] = hello) -> None:
        self.script = script
        self.seen: list[Exchange] = []
        self.connections = 0
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        number = self.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                exchange = await read_request(reader, writer)
                exchange.connection = number
                self.seen.append(exchange)
                watching = asyncio.create_task(_watch(reader, exchange.gone))
                try:
                    await self.script(exchange)
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
                    if writer.is_closing() or reader.at_eof() or reader.exception() is not None:
                        exchange.gone.set()  # a script that was just sending noticed first
        writer.close()


async def _watch(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    """EOF is noticed without taking anything of the next request."""
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - a stream has no event for its end
        await asyncio.sleep(0.002)
    gone.set()


async def read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    return first, [(name, value.strip()) for name, _, value in (one.partition(":") for one in lines)]


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    first, headers = await read_head(reader)
    method, target, _ = first.split(" ", 2)
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Exchange(method, target, headers, await reader.readexactly(length), writer)


@dataclass
class Reply:
    """An answer as a client sees it; ``whole``: it ended as it should."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class Talk:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._chunked = False

    async def head(self) -> tuple[int, dict[str, str]]:
        first, pairs = await read_head(self.reader)
        headers = {name.lower(): value for name, value in pairs}
        self._chunked = headers.get("transfer-encoding") == "chunked"
        return int(first.split()[1]), headers

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def reply(self) -> Reply:
        status, headers = await self.head()
        body = b""
        try:
            if not self._chunked:
                return Reply(status, headers, await self.reader.readexactly(int(headers.get("content-length", 0))))
            while part := await self.chunk():
                body += part
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(status, headers, body, whole=False)
        return Reply(status, headers, body)

    def close(self) -> None:
        self.writer.close()


class House:
    """A gateway that runs, and what is known of it."""

    def __init__(
        self,
        state: Path,
        upstream: str,
        *,
        claimant: Claimant = Claimant(),  # noqa: B008 - frozen
        environment: Mapping[str, str] | None = None,
        origins: Mapping[str, Callable[[], Iterable[Document]]] | None = None,
        store: Store | None = None,
        **settings: Any,
    ) -> None:
        self.claimant = claimant
        self.claimants: dict[str, Claimant] = {}
        """By task, where they are not the same for all."""
        self.bus = Bus(SystemClock())
        self.events: list[Published] = []
        self.bus.tap(self.events.append)
        self.live = {("fix-it", 1), ("fix-it", 2), ("other", 1)}
        given = {"ANTHROPIC_API_KEY": PROVIDER_KEY, "OPENAI_API_KEY": "sk-openai-secret"}
        usual = {"anthropic_url": upstream, "openai_url": f"{upstream}/v1", "retries": 0, "hold_s": 0.0, "dedup": "off"}
        made = GatewaySettings(**{**usual, **settings})
        self.gateway = Gateway(
            state,
            made,
            given if environment is None else environment,
            self.bus,
            SystemClock(),
            store,
            origins=origins or {},
            render=exposition,
            who=lambda task, generation: (
                self.claimants.get(task, self.claimant) if (task, generation) in self.live else None
            ),
        )
        self.stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    async def __aenter__(self) -> Self:
        state = self.gateway._state
        state.mkdir(exist_ok=True)
        self.gateway.open()
        self._task = asyncio.create_task(self.gateway.run(self.stopping))
        await until(lambda: any(one.event.kind == "gateway_ready" for one in self.events) or self._task.done())  # type: ignore[union-attr]
        if self._task.done():
            self._task.result()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self.stopping.set()
        assert self._task is not None
        await self._task

    def served(self) -> list[RequestServed]:
        return [one.event for one in self.events if isinstance(one.event, RequestServed)]

    def said(self, kind: str) -> list[str]:
        return [str(one.event.to_json()) for one in self.events if one.event.kind == kind]

    async def talk(self) -> Talk:
        return Talk(*await asyncio.open_connection("127.0.0.1", self.port, limit=2**20))

    async def ask(
        self,
        path: str = "/v1/messages",
        body: bytes = b"{}",
        *,
        claim: tuple[str, int] = ("fix-it", 1),
        method: str = "POST",
        **replaced: str,
    ) -> Talk:
        """A request sent; ``replaced`` are headers by name (``x_api_key``), empty ones are left out."""
        base, key = self.gateway.credentials(*claim)
        prefix = base.removeprefix(self.gateway.url)
        headers = {"host": f"127.0.0.1:{self.port}", "x-api-key": key, "content-length": str(len(body))}
        headers |= {"anthropic-version": "2023-06-01"}
        headers |= {name.replace("_", "-"): value for name, value in replaced.items()}
        target = replaced.pop("target", "") or f"{prefix}{path}"
        headers.pop("target", None)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        talk = await self.talk()
        talk.writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        return talk

    async def reply(self, path: str = "/v1/messages", body: bytes = b"{}", **more: Any) -> Reply:
        talk = await self.ask(path, body, **more)
        try:
            async with asyncio.timeout(10):
                return await talk.reply()
        finally:
            talk.close()


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Let the loop turn until it is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - many conditions have no event
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def housed(
    state: Path, script: Callable[[Exchange], Awaitable[None]] = hello, **more: Any
) -> AsyncIterator[tuple[House, Upstream]]:
    async with Upstream(script) as upstream, House(state, upstream.url, **more) as house:
        yield house, upstream

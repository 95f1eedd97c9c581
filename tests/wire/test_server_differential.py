"""The same bytes mean the same to this server and to two others, or it refuses them. It may be stricter, never laxer."""

from __future__ import annotations

import contextlib
import os
import random
from collections import defaultdict
from typing import TYPE_CHECKING

import h11
import pytest
from aiohttp import web

from coordinator.kit.wire import new_loop
from tests.wire.served import Meaning, Remembering, Served, serving, turns
from tests.wire.test_server_framing import CLOSED, LAST, REFUSED, UNDERSTOOD
from tests.wire.upstream import guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TABLE = {name: raw for table in (UNDERSTOOD, CLOSED, REFUSED) for name, (raw, _) in table.items()}
MUTATED = int(os.environ.get("WIRE_FUZZ", "400"))
BATCH = 400

STRICTER_THAN_WE: dict[str, dict[str, str]] = {
    "aiohttp": {
        "trailers are dropped": "it takes trailers for fields, and refuses two hosts",
        "trailers are dropped, and more": "the same",
    },
    "h11": {"HTTP/1.0 that wants to be kept, and more": "it keeps no connection of HTTP/1.0"},
}
"""Cases in which another server refuses what we take, with the reason why it need not."""


async def meanings(served: Served, handler: Remembering, raw: bytes) -> list[Meaning]:
    """What our server served of ``raw``."""
    handler.seen.clear()
    async with served.caller() as caller:
        await caller.say(raw)
        await turns(6)
        caller.shut()
        await caller.hear_out()
    return list(handler.seen)


class Pages:
    """aiohttp's server, which remembers as ours does."""

    def __init__(self) -> None:
        self._seen: dict[int, list[Meaning]] = defaultdict(list)
        self.served: Served

    async def page(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        body = await request.read()
        self._seen[port].append((request.method.encode(), request.raw_path.encode(errors="surrogateescape"), body))
        return web.Response(body=body)

    async def meanings(self, raw: bytes) -> list[Meaning]:
        """What it served of ``raw``. Said in small pieces: of one read it serves nothing when something in it is wrong.
        It does not always close when the client does, so that nobody waits for that."""
        step = 1 if len(raw) < 1000 else 10_000
        async with self.served.caller() as caller:
            port = caller.socket.getsockname()[1]
            self._seen.pop(port, None)
            for at in range(0, len(raw), step):
                await caller.say(raw[at : at + step])
                await turns(2)
            await turns(6)
        return self._seen.pop(port, [])


@contextlib.asynccontextmanager
async def aiohttp_pages() -> AsyncIterator[Pages]:
    pages = Pages()
    sizes = {"max_line_size": 1 << 16, "max_field_size": 1 << 16, "max_headers": 1 << 10}
    runner = web.ServerRunner(web.Server(pages.page, access_log=None, lingering_time=0, **sizes), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pages.served = Served(None, runner.addresses[0][:2])  # type: ignore[arg-type]
    try:
        yield pages
    finally:
        await runner.cleanup()


def h11_meanings(raw: bytes) -> list[Meaning]:
    found: list[Meaning] = []
    while raw := raw.lstrip(b"\r\n"):  # it does not pass over empty lines (RFC 9112 section 2.2)
        talk = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 22)
        talk.receive_data(raw)
        request, body = None, b""
        try:
            while (event := talk.next_event()) is not h11.NEED_DATA and not isinstance(event, h11.EndOfMessage):
                if isinstance(event, h11.Data):
                    body += event.data
                else:
                    request = event
        except h11.RemoteProtocolError:
            return found
        if not isinstance(event, h11.EndOfMessage) or not isinstance(request, h11.Request):
            return found
        found.append((request.method, request.target, body))
        talk.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
        talk.send(h11.EndOfMessage())
        if talk.our_state is not h11.DONE or talk.their_state is not h11.DONE:
            return found
        raw = talk.trailing_data[0]
    return found


def origin_form(meaning: Meaning) -> Meaning:
    """We take scheme and authority off a target, others leave that to their handlers."""
    method, target, body = meaning
    if target[:7].lower() == b"http://":
        rest = target[7:]
        target = rest[len(rest.partition(b"/")[0].partition(b"?")[0]) :]
        target = target if target[:1] == b"/" else b"/" + target
    return method, target, body


def agree(ours: list[Meaning], theirs: list[Meaning]) -> bool:
    """Whether we took nothing that they did not take, and nothing otherwise than they did."""
    return ours == [origin_form(meaning) for meaning in theirs[: len(ours)]]


@pytest.mark.parametrize("behind", [b"", LAST], ids=["alone", "and more"])
def test_table(behind: bytes) -> None:
    """Every case of the framing table."""

    async def main() -> None:
        handler = Remembering()
        differ: dict[str, list[str]] = {"aiohttp": [], "h11": []}
        async with serving(handler) as served, aiohttp_pages() as pages:
            for name, raw in TABLE.items():
                case = f"{name}, and more" if behind else name
                ours = await meanings(served, handler, raw + behind)
                differ["aiohttp"] += [] if agree(ours, await pages.meanings(raw + behind)) else [case]
                differ["h11"] += [] if agree(ours, h11_meanings(raw + behind)) else [case]
        for other, cases in differ.items():
            assert set(cases) == {
                case for case in STRICTER_THAN_WE[other] if case.endswith(", and more") == bool(behind)
            }

    guarded(new_loop, main())


PARTS = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b",", b";", b"0", b"1", b"3", b"a", b"\xff", b"-", b"+", b"/", b"*", b"#", b"\r\n\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n", b"Host: b\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"HTTP/1.0", b"HTTP/1.1", LAST,
]  # fmt: skip


def mutated(chance: random.Random, raw: bytes) -> bytes:
    """A few bytes left out, doubled, changed, or put in."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(raw) + 1)
        to = min(len(raw), at + chance.choice((0, 0, 1, 1, 2, 7)))
        put = chance.choice((b"", raw[at:to] * 2, chance.choice(PARTS), chance.choice(PARTS), chance.randbytes(1)))
        raw = raw[:at] + put + raw[to:]
    return raw


@pytest.mark.timeout(120 + MUTATED // 50)
def test_mutated() -> None:
    """Understood cases with something wrong in them."""
    taken = 0
    understood = [raw for table in (UNDERSTOOD, CLOSED) for raw, _ in table.values() if len(raw) < 500]

    async def main(count: int, chance: random.Random) -> None:
        nonlocal taken
        handler = Remembering()
        async with serving(handler) as served, aiohttp_pages() as pages:
            for _ in range(count):
                raw = mutated(chance, chance.choice(understood)) + chance.choice((b"", LAST))
                ours = await meanings(served, handler, raw)
                taken += len(ours)
                if b"evil" not in raw:  # STRICTER_THAN_WE says why
                    assert agree(ours, await pages.meanings(raw)), raw
                assert agree(ours[: 1 if b"HTTP/1.0" in raw else 10], h11_meanings(raw)), raw

    for seed, begin in enumerate(range(0, MUTATED, BATCH)):
        guarded(new_loop, main(min(BATCH, MUTATED - begin), random.Random(seed)))
    assert MUTATED / 4 < taken < MUTATED * 2  # neither refused nor served all of them

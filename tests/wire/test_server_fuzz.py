"""Whatever a client sends, and whatever a handler does: no exception that nobody caught, no hang, nothing left behind.

``WIRE_FUZZ`` says how many cases are tried (a million takes about an hour).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import TYPE_CHECKING

import pytest

from coordinator.kit.wire import new_loop
from tests.wire.served import ALLOWED, Caller, Got, Remembering, Served, serving, turns
from tests.wire.test_server_differential import mutated
from tests.wire.test_server_framing import CLOSED, LAST, REFUSED, UNDERSTOOD
from tests.wire.upstream import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from coordinator.kit.wire_server import Exchange

CASES = int(os.environ.get("WIRE_FUZZ", "3000"))
BATCH, TOGETHER = 600, 20

SEEDS = [raw for table in (UNDERSTOOD, CLOSED, REFUSED) for raw, _ in table.values() if len(raw) < 3000]
STATUSES = {200, 400, 408, 413, 417, 429, 431, 500, 501, 505}


def in_batches(main: Callable[[int, int], Coroutine[None, None, None]]) -> None:
    """Run it with seed and count, on a new loop each time."""
    for seed, begin in enumerate(range(0, CASES, BATCH)):
        loop = asyncio.new_event_loop if seed % 5 == 4 else new_loop
        guarded(loop, main(seed, min(BATCH, CASES - begin)))


async def together(count: int, case: Callable[[int], Coroutine[None, None, None]]) -> None:
    """``case(0) … case(count - 1)``, some at a time."""
    waiting = iter(range(count))

    async def some() -> None:
        for n in waiting:
            await case(n)

    await asyncio.gather(*(some() for _ in range(TOGETHER)))


class Moody(Remembering):
    """Answers some on the head alone, some in pieces, some late."""

    def admit(self, exchange: Exchange) -> int:
        mood = len(exchange.target) % 5
        if mood == 3:
            exchange.reply(429, (), b"later")
        return 10 if mood == 4 else ALLOWED

    async def serve(self, exchange: Exchange) -> None:
        if len(exchange.body) % 2:
            await turns(1)
        exchange.start(200, (), length=None)
        exchange.send(exchange.body)
        await exchange.room()
        exchange.finish()


async def spoken(served: Served, chance: random.Random) -> None:
    """One connection: a few requests with something wrong in them, in pieces, and an end."""
    raw = b"".join(mutated(chance, chance.choice(SEEDS)) for _ in range(chance.choice((1, 1, 2, 3))))
    raw += chance.choice((b"", LAST))
    async with served.caller() as caller:
        while raw:
            size = chance.choice((1, 2, 7, 50, 500, 5000))
            await caller.say(raw[:size])
            raw = raw[size:]
            await turns(chance.choice((0, 0, 1, 3)))
        end = chance.choice((Caller.shut, Caller.shut, Caller.close, Caller.break_off))
        end(caller)
        if end is Caller.shut:
            for got in await caller.answers():
                assert got.status in STATUSES


@pytest.mark.timeout(120 + CASES // 50)
def test_requests(caplog: pytest.LogCaptureFixture) -> None:
    async def main(seed: int, count: int) -> None:
        async with serving(Moody()) as served:
            await together(count, lambda n: spoken(served, random.Random(f"{seed} {n}")))
        assert caplog.records == []

    in_batches(main)


class Script:
    """What a handler does, and what a client must make of it."""

    def __init__(self, number: bytes) -> None:
        chance = random.Random(number)
        self.pieces = [chance.randbytes(chance.choice((0, 1, 10, 3000, 20_000))) for _ in range(chance.randrange(4))]
        self.body = b"".join(self.pieces)
        size = len(self.body)
        self.length = chance.choice((None, None, size, size, size, max(0, size - 1), size + 1))
        self.end = chance.choice(("finish", "finish", "finish", "reply", "return", "raise", "cut"))
        self.begins = self.end != "reply" and chance.random() < 0.9
        self.pauses = chance.random() < 0.5

    async def play(self, exchange: Exchange) -> None:
        if self.begins:
            exchange.start(200, (), length=self.length)
            for piece in self.pieces:
                exchange.send(piece)
                if self.pauses:
                    await exchange.room()
                    await turns(1)
        if self.end == "raise":
            raise LookupError("nothing")
        if self.end == "reply":
            exchange.reply(200, (), self.body)
        elif self.end == "cut":
            exchange.cut()
        elif self.end == "finish" and self.begins:
            exchange.finish()

    def judge(self, got: Got | None, *, head: bool) -> bool:
        """Returns whether the connection goes on as far as the handler is concerned."""
        body = b"" if head else self.body
        whole = head or self.length in (None, len(self.body))
        if self.end == "reply" or (self.begins and self.end == "finish" and whole):
            assert got is not None
            assert (got.status, got.body, got.cut) == (200, body, False)
            return True
        if not self.begins and self.end != "cut":
            assert got is not None
            assert (got.status, got.body, got.cut) == (500, b"", False)
            return True
        if head or (self.length is not None and self.length <= len(body)):  # it went wrong when all was said
            assert got is None or got.cut or got.body == body[: self.length]
        else:
            assert got is None or got.cut
        return False


async def performed(served: Served, chance: random.Random) -> None:
    """One connection with a few requests, and the scripts that they are answered by."""
    async with served.caller() as caller:
        for _ in range(3):
            method, number = chance.choice(("GET", "GET", "HEAD")), b"%d" % chance.randrange(1 << 30)
            version = chance.choice((b"1.1", b"1.1", b"1.0"))
            await caller.say(b"%b /%b HTTP/%b\r\nHost: a\r\n\r\n" % (method.encode(), number, version))
            got = await caller.answer(method)
            goes_on = Script(number).judge(got, head=method == "HEAD")
            if not goes_on or got is None or got.headers.get("connection") == "close":
                return


@pytest.mark.timeout(120 + CASES // 50)
def test_answers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    handler = Remembering(lambda exchange: Script(exchange.target[1:]).play(exchange))

    async def main(seed: int, count: int) -> None:
        async with serving(handler) as served:
            await together(count // 3, lambda n: performed(served, random.Random(f"{seed} {n}")))
        handler.exchanges.clear()
        handler.seen.clear()

    in_batches(main)

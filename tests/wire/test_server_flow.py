"""Pieces, slow ends, gone ends and time: what a connection costs, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.kit import wire_intake
from coordinator.kit.wire import new_loop
from coordinator.kit.wire_intake import WireIntake
from coordinator.kit.wire_server import Exchange, WireServer
from tests.wire.served import PATIENCE_S, Caller, Got, Meaning, Remembering, Served, serving, turns, until
from tests.wire.upstream import guarded, on_each_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = b"Host: a\r\n"
KEPT = b"POST /kept HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
LAST = b"POST /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
OLD = b"POST /old HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\n\0\r\n\xffa\r\n2\r\nbc\r\n0\r\nT: 1\r\n\r\n"
ABC_KEPT: Meaning = (b"POST", b"/kept", b"abc")
ABC_CHUNKED: Meaning = (b"POST", b"/chunked", b"\0\r\n\xffabc")


class Waiting(Remembering):
    """Serves until it is told to go on, and knows how that ended."""

    def __init__(self, then: Callable[[Exchange], Awaitable[None]] | None = None) -> None:
        super().__init__(self._wait)
        self._then = then
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()

    async def _wait(self, exchange: Exchange) -> None:
        self.entered.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            assert exchange.gone
            self.cancelled.set()
            raise
        if self._then is None:
            exchange.reply(200, (), b"done")
        else:
            await self._then(exchange)


async def pour(exchange: Exchange) -> None:
    """64 MB, as fast as the client takes them."""
    exchange.start(200, (), length=1 << 26)
    for _ in range(1 << 12):
        exchange.send(b"x" * (1 << 14))
        await exchange.room()
    exchange.finish()


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


# ----------------------------------------------------------------------------------------------------------------- pieces


@on_each_loop
@pytest.mark.parametrize(("raw", "meaning"), [(KEPT, ABC_KEPT), (CHUNKED, ABC_CHUNKED)], ids=["length", "chunks"])
async def test_a_request_may_be_split_at_every_byte(
    raw: bytes, meaning: Meaning, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bytes] = []
    received = WireIntake.data_received

    def noting(intake: WireIntake, data: bytes) -> None:
        reads.append(data)
        received(intake, data)

    monkeypatch.setattr(WireIntake, "data_received", noting)
    handler = Remembering()
    async with serving(handler) as served, served.caller() as caller:
        for at in range(1, len(raw)):
            await caller.say(raw[:at])
            await turns()
            await caller.say(raw[at:])
            got = await caller.answer()
            assert got is not None
            assert got.body == meaning[2]
    assert handler.seen == [meaning] * (len(raw) - 1)
    assert len(reads) > 1.9 * len(raw)  # they did come in two pieces


@on_each_loop
async def test_bodies_arrive_unchanged_however_the_stream_is_cut() -> None:
    """Lengths and chunks of all sizes, cut at random places into pieces of all sizes."""
    chance = random.Random(9)
    bodies, stream = [], b""
    for n in range(60):
        body = chance.randbytes(chance.choice((0, 1, 2, 100, 2047, 2049, 20_000, 150_000)))
        bodies.append(body)
        if n % 3:
            stream += b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (n, len(body), body)
        else:
            cuts = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(20)))
            chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
            stream += b"POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % n
            stream += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"
        stream += b"|"
    handler = Remembering()
    async with serving(handler) as served, served.caller() as caller:
        for n, request in enumerate(stream.split(b"|POST")):
            rest = (b"POST" if n else b"") + request.removesuffix(b"|" if n == 59 else b"")
            while rest:
                size = chance.choice((1, 3, 10, 1000, 5000, 70_000))
                await caller.say(rest[:size])
                rest = rest[size:]
                await turns(2)
            got = await caller.answer()
            assert got is not None
            assert got.body == bodies[n]
    assert [body for _, _, body in handler.seen] == bodies


@on_each_loop
async def test_a_body_byte_by_byte_takes_no_more_memory_than_another() -> None:
    class Held(Remembering):
        def admit(self, exchange: Exchange) -> int:
            self.intake = exchange._wire
            return 1 << 20

    handler = Held()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n")
        for n in range(2999):
            await caller.say(bytes([n % 251]))
            await turns(1)
        await until(lambda: handler.intake._body.got_bytes == 2999, "the body does not come")
        assert len(handler.intake._body._pieces) < 5
        await caller.say(b"!")
        got = await caller.answer()
        assert got is not None
        assert got.body == bytes(n % 251 for n in range(2999)) + b"!"


@on_each_loop
async def test_what_comes_ahead_of_its_turn_is_bounded() -> None:
    handler = Waiting()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(KEPT)
        await within(handler.entered)
        intake = handler.exchanges[0]._wire
        flood = asyncio.create_task(caller.say(KEPT * 200_000))  # 15 MB
        await until(lambda: intake._stopped, "reading does not pause")
        await turns(20)
        assert len(intake._ahead) <= wire_intake._AHEAD_BYTES + 256 * 1024  # and what one read of the socket gives
        handler.go_on.set()
        for _ in range(100):
            assert (await caller.answer() or Got(0, {}, b"")).body == b"done"
        flood.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flood
        caller.break_off()


@on_each_loop
async def test_who_does_not_read_answers_gets_no_further_ones() -> None:
    handler = Remembering(admit=lambda exchange: exchange.reply(200, (), b"x" * 100_000) or 0)
    async with serving(handler, send_bytes=10_000) as served, served.caller(receive_bytes=10_000) as caller:
        await caller.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 60 + LAST)
        await until(lambda: handler.exchanges and handler.exchanges[0]._wire.full, "nothing is held")
        await turns(20)
        assert len(handler.exchanges) < 10
        assert sum(len(answer.body) for answer in await caller.answers()) == 61 * 100_000


# ------------------------------------------------------------------------------------------------------------- slow reader


@on_each_loop
async def test_a_reader_of_one_byte_costs_one_buffer() -> None:
    handler = Remembering(pour)
    async with serving(handler, send_bytes=10_000) as served, served.caller(receive_bytes=10_000) as caller:
        await caller.say(KEPT)
        for _ in range(200):
            assert len(await caller.hear(1)) == 1
        exchange = handler.exchanges[0]
        await until(lambda: exchange.full, "the answer never gets full")
        await turns(20)
        assert exchange.sent_bytes < 500_000
        assert exchange._wire.transport.get_write_buffer_size() <= wire_intake._BUFFER_BYTES + (1 << 14)
        caller.break_off()
        await until(lambda: exchange.gone, "the reset is not seen")


@on_each_loop
async def test_a_slow_reader_gets_all_of_it() -> None:
    async def serve(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        for n in range(100):
            exchange.send(bytes([n]) * 30_000)
            await exchange.room()
        exchange.finish()

    async with serving(Remembering(serve), send_bytes=10_000) as served:
        async with served.caller(receive_bytes=10_000) as caller:
            await caller.say(KEPT)
            got = await caller.answer()
    assert got is not None
    assert got.body == b"".join(bytes([n]) * 30_000 for n in range(100))


@on_each_loop
async def test_a_thousand_slow_readers_stay_within_their_buffers() -> None:
    count = 1000
    handler = Remembering(pour)
    async with serving(handler, send_bytes=10_000) as served, contextlib.AsyncExitStack() as stack:
        before = resident_bytes()
        callers = [await stack.enter_async_context(served.caller(receive_bytes=4_000)) for _ in range(count)]
        for caller in callers:
            await caller.say(KEPT)
        for caller in callers:
            assert len(await caller.hear(1)) == 1
        await until(lambda: sum(exchange.full for exchange in handler.exchanges) == count, "not all get full")
        waiting = [exchange._wire.transport.get_write_buffer_size() for exchange in handler.exchanges]
        assert min(waiting) > 0
        assert max(waiting) <= wire_intake._BUFFER_BYTES + (1 << 14)
        assert resident_bytes() - before < 150_000_000
        for caller in callers:
            caller.break_off()


def resident_bytes() -> int:
    """Memory of this process; 0 where the machine does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


@on_each_loop
async def test_who_feeds_the_answer_is_told_to_pause_and_to_go_on() -> None:
    told: list[str] = []
    over = asyncio.Event()

    async def serve(exchange: Exchange) -> None:
        exchange.on_room(lambda: told.append("pause"), lambda: told.append("resume"))
        exchange.start(200, (), length=None)
        while not exchange.full:
            exchange.send(b"x" * 10_000)
        assert told == ["pause"]
        await exchange.room()
        assert told == ["pause", "resume"]
        exchange.finish()
        over.set()

    async with serving(Remembering(serve), send_bytes=10_000) as served:
        async with served.caller(receive_bytes=10_000) as caller:
            await caller.say(LAST)
            assert not (await caller.answer() or Got(0, {}, b"", cut=True)).cut
            await within(over)
    assert told == ["pause", "resume"]


@on_each_loop
async def test_the_hooks_end_with_their_answer() -> None:
    told: list[str] = []

    async def serve(exchange: Exchange) -> None:
        if exchange.target == b"/kept":
            exchange.on_room(lambda: told.append("pause"), lambda: told.append("resume"))
        exchange.reply(200, (), b"" if exchange.target == b"/kept" else b"x" * 1_000_000)

    async with serving(Remembering(serve), send_bytes=10_000) as served:
        assert [len(answer.body) for answer in await served.ask(KEPT, LAST)] == [0, 1_000_000]
    assert told == []


@on_each_loop
async def test_waiting_for_room_ends_when_the_client_is_gone() -> None:
    ends: list[str] = []

    async def feed(exchange: Exchange) -> None:
        try:
            await exchange.room()
        except ConnectionResetError:
            ends.append("reset")

    async def serve(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        while not exchange.full:
            exchange.send(b"x" * 10_000)
        feeding = asyncio.create_task(feed(exchange))  # somebody else's task is not cancelled
        try:
            await exchange.room()
        finally:
            await feeding
            ends.append("served")
            exchange.send(b"more")
            exchange.finish()

    async with serving(Remembering(serve), send_bytes=10_000) as served:
        async with served.caller(receive_bytes=10_000) as caller:
            await caller.say(LAST)
            await caller.hear(1)
            caller.break_off()
            await until(lambda: len(ends) >= 2, "nobody notices")
    assert ends == ["reset", "served"]


# ------------------------------------------------------------------------------------------------------------- hanging up


@on_each_loop
@pytest.mark.parametrize("end", ["close", "shut", "break_off"])
async def test_a_client_that_hangs_up_ends_its_call_at_once(end: str) -> None:
    handler = Waiting()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(KEPT)
        await within(handler.entered)
        began = time.monotonic()
        getattr(caller, end)()
        await within(handler.cancelled)
        assert time.monotonic() - began < 1  # it takes a millisecond; this machine may be busy


@on_each_loop
@pytest.mark.parametrize("others", [False, True])
async def test_a_handler_may_go_on_for_others(others: bool) -> None:
    asked: list[bool] = []
    handler = Waiting()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(KEPT)
        await within(handler.entered)
        handler.exchanges[0].on_gone = lambda: asked.append(others) or others
        caller.close()
        if not others:
            await within(handler.cancelled)
        await until(lambda: handler.exchanges[0].gone, "it is not noticed")
        await turns()
        assert asked == [others]
        assert bool(served.server.tasks) == others
        handler.go_on.set()
    assert handler.cancelled.is_set() != others


@on_each_loop
async def test_a_client_that_hangs_up_ends_its_call_though_its_answer_waits_to_be_read() -> None:
    handler = Remembering(pour)
    async with serving(handler, send_bytes=10_000) as served, served.caller(receive_bytes=10_000) as caller:
        await caller.say(KEPT)
        await until(lambda: handler.exchanges and handler.exchanges[0].full, "the answer never gets full")
        caller.shut()
        await until(lambda: handler.exchanges[0].gone and not served.server.tasks, "it is served on")


@on_each_loop
async def test_a_client_that_hangs_up_in_its_answer_ends_its_call() -> None:
    async def stream(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        try:
            while True:
                exchange.send(b"x")
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    ended = asyncio.Event()
    for raw, end in ((KEPT, Caller.close), (KEPT, Caller.break_off), (LAST, Caller.close), (OLD, Caller.break_off)):
        ended.clear()
        async with serving(Remembering(stream)) as served, served.caller() as caller:
            await caller.say(raw)
            await caller.hear()
            end(caller)
            await within(ended)


@on_each_loop
@pytest.mark.parametrize("raw", [LAST, OLD], ids=["Connection: close", "HTTP/1.0"])
async def test_a_client_that_said_that_it_asks_no_more_may_shut_its_side(raw: bytes) -> None:
    async def stream(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        for _ in range(20):
            exchange.send(b"x" * 10_000)
            await exchange.room()
        exchange.finish()

    handler = Waiting(stream)
    async with serving(handler, send_bytes=10_000) as served, served.caller(receive_bytes=10_000) as caller:
        await caller.say(raw)
        caller.shut()
        await within(handler.entered)
        await turns()
        handler.go_on.set()
        got = await caller.answer()
        assert got is not None
        assert (len(got.body), got.cut) == (200_000, False)
        assert await caller.hear_out() == b""
        assert not caller.reset


@on_each_loop
async def test_a_client_that_sent_all_its_requests_may_shut_its_side() -> None:
    handler = Waiting()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(KEPT + KEPT + KEPT)
        caller.shut()
        await within(handler.entered)
        await turns()
        handler.go_on.set()
        assert [answer.body for answer in await caller.answers()] == [b"done"] * 3
        assert not caller.reset


@on_each_loop
async def test_a_client_that_is_answered_may_shut_its_side_before_it_has_read_all() -> None:
    handler = Remembering(admit=lambda exchange: exchange.reply(200, (), b"x" * 1_000_000) or 10)
    async with serving(handler, send_bytes=10_000) as served, served.caller(receive_bytes=10_000) as caller:
        await caller.say(KEPT)
        caller.shut()
        (got,) = await caller.answers()
        assert (len(got.body), got.cut) == (1_000_000, False)


@on_each_loop
@pytest.mark.parametrize("raw", [KEPT, CHUNKED], ids=["length", "chunks"])
@pytest.mark.parametrize("end", ["shut", "break_off"])
async def test_a_connection_that_ends_at_each_byte_of_a_request_leaves_nothing(raw: bytes, end: str) -> None:
    handler = Remembering()
    async with serving(handler) as served:
        for at in range(len(raw)):
            async with served.caller() as caller:
                await caller.say(raw[:at])
                await turns(1 + at % 3)
                getattr(caller, end)()
                if end == "shut":
                    assert await caller.hear_out() == b""
    assert handler.seen == []
    assert not any(exchange.task for exchange in handler.exchanges)


@on_each_loop
async def test_a_reset_at_each_byte_of_an_answer_leaves_nothing() -> None:
    async def serve(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        while True:
            exchange.send(b"abc")
            await turns(1)

    handler = Remembering(serve)
    async with serving(handler) as served:
        for at in range(100):
            async with served.caller() as caller:
                await caller.say(LAST)
                for _ in range(at):
                    await caller.hear(1)
                caller.break_off()
    assert all(exchange.gone and not exchange.finished for exchange in handler.exchanges)


@on_each_loop
@pytest.mark.parametrize("end", [Exchange.finish, Exchange.cut])
async def test_a_reset_that_is_not_seen_yet_troubles_nobody(
    end: Callable[[Exchange], None], caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:

        async def serve(exchange: Exchange) -> None:
            exchange.start(200, (), length=None)
            exchange.send(b"abc")
            await turns()
            caller.break_off()
            end(exchange)
            ended.set()

        served = await stack.enter_async_context(serving(Remembering(serve)))
        caller = await stack.enter_async_context(served.caller())
        await caller.say(OLD)
        await within(ended)
    assert caplog.records == []


@on_each_loop
async def test_what_a_handler_does_behind_its_answer_holds_nobody_and_is_not_cancelled() -> None:
    behind, done = asyncio.Event(), []

    async def serve(exchange: Exchange) -> None:
        exchange.reply(200, (), b"")
        await behind.wait()
        done.append(exchange.target)

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        for _ in range(3):
            await caller.say(KEPT)
            assert (await caller.answer() or Got(0, {}, b"")).status == 200
        caller.close()
        await until(lambda: not served.connections, "the connection stays")
        behind.set()
    assert done == [b"/kept"] * 3


# ------------------------------------------------------------------------------------------------------------------- time


async def ends(served: Served, *pieces: bytes, every_s: float = 0.0) -> tuple[list[int], float]:
    """What a client that sends these pieces and then waits is told, and how long it took."""
    began = time.monotonic()
    async with served.caller() as caller:
        heard = asyncio.create_task(caller.answers())
        for piece in pieces:
            await caller.say(piece)
            await asyncio.wait([heard], timeout=every_s)
        async with asyncio.timeout(PATIENCE_S):
            statuses = [answer.status for answer in await heard]
    return statuses, time.monotonic() - began


SLOW: dict[str, tuple[list[bytes], float, list[int]]] = {
    "nothing is said": ([], 0.0, []),
    "an empty line": ([b"\r\n"], 0.0, []),
    "part of a head": ([KEPT[:30]], 0.0, [408]),
    "a head byte by byte": ([KEPT[:30], *[b"x"] * 90], 0.03, [408]),
    "no body": ([KEPT[:-3]], 0.0, [408]),
    "part of a body": ([KEPT[:-1]], 0.0, [408]),
    "a body byte by byte": ([KEPT[:-3].replace(b" 3", b" 99"), *[b"x"] * 90], 0.03, [408]),
    "a long body that stops": ([KEPT[:-3].replace(b" 3", b" 300000"), b"x" * 200_000], 0.0, [408]),
    "chunks that stop": ([CHUNKED[:-20]], 0.0, [408]),
    "an endless trailer": ([CHUNKED[:-2], *[b"X: y\r\n"] * 90], 0.03, [408]),
    "an endless chunk extension": ([CHUNKED[: CHUNKED.index(b";x")], *[b";x=y"] * 90], 0.03, [408]),
    "one request and no more": ([KEPT], 0.0, [200]),
    "one request and a part": ([KEPT + KEPT[:5]], 0.0, [200, 408]),
}


@pytest.mark.parametrize(("pieces", "every_s", "statuses"), SLOW.values(), ids=SLOW)
def test_who_takes_too_long_is_closed(pieces: list[bytes], every_s: float, statuses: list[int]) -> None:
    async def main() -> None:
        async with serving(Remembering(), head_s=0.15, body_s=0.15, idle_s=0.15) as served:
            told, took_s = await ends(served, *pieces, every_s=every_s)
        assert told == statuses
        assert 0.14 < took_s < 2

    guarded(new_loop, main())


@on_each_loop
async def test_limits_are_not_those_of_a_call_that_is_served_or_of_a_sender_that_is_quick_enough() -> None:
    handler = Waiting()
    async with serving(handler, head_s=0.05, body_s=0.2, idle_s=0.05) as served, served.caller() as caller:
        await caller.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n")
        for _ in range(20):  # 5 KB each: slower than body_s allows, and quick enough for its size
            await caller.say(b"x" * 10_000)
            await asyncio.sleep(0.02)
        await within(handler.entered)
        await asyncio.sleep(0.3)
        handler.go_on.set()
        assert (await caller.answer() or Got(0, {}, b"")).body == b"done"


@on_each_loop
async def test_an_answer_that_nobody_takes_is_given_up() -> None:
    handler = Remembering(lambda exchange: asyncio.sleep(0, exchange.reply(200, (), b"x" * 1_000_000)))
    async with serving(handler, send_bytes=10_000, idle_s=0.1) as served:
        for raw in (KEPT, LAST):
            async with served.caller(receive_bytes=10_000) as caller:
                await caller.say(raw)
                await until(lambda: handler.exchanges, "it is not served")
                await until(lambda: not served.connections, "the connection stays")
                handler.exchanges.clear()


@on_each_loop
async def test_who_does_not_close_after_its_last_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_intake, "_LINGER_S", 0.1)
    async with serving(Remembering(), head_s=0.2) as served, served.caller() as caller:
        await caller.say(LAST)
        await until(lambda: served.connections, "it is not there")
        await until(lambda: not served.connections, "the connection stays")


@on_each_loop
async def test_a_connection_too_many_is_told_so() -> None:
    async with serving(Remembering(), connections=2) as served:
        async with served.caller() as first, served.caller(), served.caller() as third:
            (told,) = await third.answers()
            assert (told.status, told.headers["connection"]) == (503, "close")
            await first.say(KEPT)
            assert (await first.answer() or Got(0, {}, b"")).status == 200
            first.close()
            await until(lambda: served.connections == 1, "the connection stays")
            assert [answer.status for answer in await served.ask(LAST)] == [200]


# ------------------------------------------------------------------------------------------------------------------- stop


@on_each_loop
async def test_a_stop_closes_idle_connections_and_lets_calls_end() -> None:
    handler = Waiting()
    async with serving(handler) as served, served.caller() as idle, served.caller() as busy:
        await idle.say(KEPT[:0])
        await busy.say(KEPT)
        await within(handler.entered)
        await until(lambda: served.connections == 2, "a connection is missing")
        stopping = asyncio.create_task(served.server.stop(PATIENCE_S))
        assert await idle.hear_out() == b""
        assert not stopping.done()
        with pytest.raises(ConnectionRefusedError):
            async with served.caller():
                pass
        handler.go_on.set()
        got = await busy.answer()
        assert got == Got(200, {"content-length": "4", "connection": "close"}, b"done")
        await stopping
        assert await busy.hear_out() == b""


@on_each_loop
async def test_a_stop_closes_behind_an_answer_that_had_begun_before() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def serve(exchange: Exchange) -> None:
        exchange.start(200, (), length=None)
        begun.set()
        await go_on.wait()
        exchange.finish()

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(KEPT)
        await within(begun)
        stopping = asyncio.create_task(served.server.stop(PATIENCE_S))
        await turns()
        go_on.set()
        began = time.monotonic()
        await stopping
        assert time.monotonic() - began < PATIENCE_S / 2
        assert await caller.answer() == Got(200, {"transfer-encoding": "chunked"}, b"")


@on_each_loop
async def test_a_stop_cuts_what_does_not_end() -> None:
    handler = Waiting()
    async with serving(handler) as served, served.caller() as caller:
        await caller.say(KEPT)
        await within(handler.entered)
        await served.server.stop(0.05)
        assert handler.cancelled.is_set()
        assert not served.connections
        assert not served.server.tasks
        assert await caller.answer() is None


@on_each_loop
async def test_a_stop_waits_for_what_handlers_do_behind_their_answer() -> None:
    done: list[int] = []

    async def serve(exchange: Exchange) -> None:
        exchange.reply(200, (), b"")
        await asyncio.sleep(0.05)
        done.append(1)

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(KEPT)
        assert await caller.answer() is not None
        await served.server.stop(PATIENCE_S)
        assert done == [1]


@on_each_loop
async def test_a_stop_ends_what_handlers_do_behind_their_answer_for_ever() -> None:
    async def serve(exchange: Exchange) -> None:
        exchange.reply(200, (), b"")
        await asyncio.Event().wait()

    async with serving(Remembering(serve)) as served, served.caller() as caller:
        await caller.say(KEPT)
        assert await caller.answer() is not None
        await served.server.stop(0.05)
        assert not served.server.tasks


@on_each_loop
async def test_a_stop_waits_for_nothing_when_there_is_nothing() -> None:
    async with serving(Remembering()) as served, served.caller() as caller:
        await caller.say(KEPT)
        assert await caller.answer() is not None
        began = time.monotonic()
        await served.server.stop(PATIENCE_S)
        assert time.monotonic() - began < PATIENCE_S / 2


@on_each_loop
async def test_new_ones_are_refused_while_old_ones_go_on() -> None:
    async with serving(Remembering()) as served, served.caller() as caller:
        await caller.say(KEPT)
        assert (await caller.answer() or Got(0, {}, b"")).status == 200
        served.server.refuse_new()
        await turns()
        with pytest.raises(ConnectionRefusedError):
            async with served.caller():
                pass
        await caller.say(KEPT)
        assert (await caller.answer() or Got(0, {}, b"")).headers == {
            "content-length": "3",
            "content-type": "application/octet-stream",
        }


@on_each_loop
async def test_a_stop_may_come_early_and_twice() -> None:
    server = WireServer(Remembering())
    await server.stop(1)
    async with serving(Remembering()) as served:
        await served.server.stop(1)
        await served.server.stop(1)


@on_each_loop
async def test_a_listener_that_cannot_listen_is_closed() -> None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server = WireServer(Remembering())
    with pytest.raises((ValueError, OSError)):
        await server.start(listener)
    assert listener.fileno() == -1


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_on_their_way_take_no_more_than_they_may_together(chunked: bool) -> None:
    half = b"x" * 40_000
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 80000"
    part = b"%x\r\n%b\r\n" % (len(half), half) if chunked else half
    end = b"0\r\n\r\n" if chunked else b""
    handler = Remembering()
    async with serving(handler, room_bytes=100_000) as served:
        room = served.server.body_room
        async with served.caller() as one, served.caller() as other:
            for caller in (one, other):
                await caller.say(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n%b" % (framing, part))
            await until(lambda: room.taken_bytes == 80_000, "two halves")
            await other.say(part)
            refused = await other.answer("POST")
            assert refused is not None
            assert refused.status == 503
            await until(lambda: room.taken_bytes == 40_000, "one half is given back")
            await one.say(part + end)
            got = await one.answer("POST")
            assert got is not None
            assert (got.status, len(got.body)) == (200, 80_000)
            assert room.taken_bytes == 0
            await one.say(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n%b" % (framing, part))
            await until(lambda: room.taken_bytes == 40_000, "a half")
        await until(lambda: room.taken_bytes == 0, "who hangs up leaves nothing behind")

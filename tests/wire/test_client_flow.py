"""From the upstream's socket to whoever reads: who is slow holds the upstream, who is gone frees it, nothing is lost."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit.wire import AnswerCut
from coordinator.kit.wire_client import Origin
from tests.wire.upstream import (
    CHUNKED,
    OK,
    PATIENCE_S,
    PLAIN,
    Ear,
    Sink,
    Talk,
    at_once,
    listening,
    on_each_loop,
    saying,
    soon,
)

if TYPE_CHECKING:
    from coordinator.kit.wire_client import Answer

PIECE = random.Random(3).randbytes(64 * 1024)
LONG = 64 * 1024 * 1024
"""Far more than what two sockets hold."""
BOUND = 32 * 1024 * 1024
"""What two sockets hold and ours besides, with room to spare: a kernel may let a receive buffer grow to many MB."""


class Fountain:
    """An upstream that writes ``LONG`` bytes as fast as they are taken."""

    def __init__(self) -> None:
        self.written_bytes = 0

    async def __call__(self, talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: %d\r\n\r\n" % LONG)
        while self.written_bytes < LONG:
            talk.say(PIECE)
            await talk.writer.drain()
            self.written_bytes += len(PIECE)
        await talk.end()

    async def held(self) -> int:
        """Wait until no more is taken; returns how much that was."""
        async with asyncio.timeout(10):
            before = -1
            while before != self.written_bytes:
                before = self.written_bytes
                await asyncio.sleep(0.05)
        return before


async def flowing(origin: Origin, sink: Any, tap: Any = None) -> Answer:
    answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
    await answer.flow(sink, tap)
    return answer


@on_each_loop
async def test_what_one_read_gives_leaves_in_one_piece_and_is_tapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(monkeypatch)
    turns = [b"1\r\na\r\n2\r\nbc\r\n", b"1;x\r\nd\r\n", b"3\r\ne", b"fg\r\n1\r\nh\r\n0\r\n\r\n"]

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(CHUNKED)
        await begun.wait()
        for turn in turns:
            before = ear.heard_bytes
            talk.say(turn)
            await ear.until(before + len(turn))
        await talk.end()

    begun = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer, sink, tapped = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink(), list[bytes]()
        flow = asyncio.create_task(answer.flow(sink, tapped.append))
        await asyncio.sleep(0)
        begun.set()
        await flow
        assert sink.sent == [b"abc", b"d", b"e", b"fgh"]
        assert tapped == sink.sent
        assert sink.finished
        await origin.close()


@on_each_loop
async def test_the_end_is_told_in_the_turn_in_which_it_came() -> None:
    class Watched(Sink):
        def finish(self) -> None:
            super().finish()
            assert asyncio.current_task() is None or asyncio.current_task() is not flow

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 2\r\n\r\no")
        await begun.wait()
        talk.say(b"k")
        await talk.end()

    begun = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Watched()
        flow = asyncio.create_task(answer.flow(sink, None))
        await asyncio.sleep(0)
        begun.set()
        await flow
        assert (sink.sent, sink.finished) == ([b"o", b"k"], True)
        await origin.close()


@on_each_loop
async def test_what_came_before_anybody_read_is_given_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(monkeypatch)

    async def talk(talk: Talk) -> None:
        await talk.request()
        for piece in (CHUNKED + b"1\r\na\r\n", b"1\r\nb\r\n", b"1\r\nc\r\n0\r\n\r\n"):
            before = ear.heard_bytes
            talk.say(piece)
            await ear.until(before + len(piece))

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        await soon(lambda: answer.ended)
        sink, tapped = Sink(), list[bytes]()
        await answer.flow(sink, tapped.append)
        assert sink.sent == tapped == [b"abc"]
        assert sink.finished
        await origin.close()


@pytest.mark.parametrize("reader", ["nobody", "a full exchange", "an exchange that fills", "an iterator"])
@on_each_loop
async def test_who_does_not_read_holds_the_upstream(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fountain, ear = Fountain(), Ear(monkeypatch)
    async with listening(fountain) as upstream:
        origin = Origin(upstream.url)
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
        flow = None
        if reader == "an iterator":
            assert await anext(aiter(answer))
        elif reader != "nobody":
            sink.full = reader == "a full exchange"
            flow = asyncio.create_task(answer.flow(sink, None))
            await asyncio.sleep(0)
            if not sink.full:
                await sink.more.wait()
                sink.fill()
        assert await fountain.held() < BOUND
        assert ear.heard_bytes < 1024 * 1024
        answer.close()
        if flow is not None:
            with pytest.raises(AnswerCut):
                await flow
        await origin.close()


@on_each_loop
async def test_a_slow_reader_gets_everything() -> None:
    """Room is taken and given back at every piece."""
    fountain, sink, got_bytes = Fountain(), Sink(), 0
    async with listening(fountain) as upstream:
        origin = Origin(upstream.url)
        flow = asyncio.create_task(flowing(origin, sink))
        while not sink.finished:
            await sink.more.wait()
            sink.more.clear()
            sink.fill()
            data = sink.body
            sink.sent.clear()
            at = got_bytes % len(PIECE)
            assert data[: len(PIECE) - at] == PIECE[at : at + len(data)]
            got_bytes += len(data)
            await asyncio.sleep(0)
            sink.drain()
        await flow
        assert got_bytes == LONG
        await origin.close()


@on_each_loop
async def test_who_begins_late_gets_everything() -> None:
    """The upstream was held before anybody read."""
    fountain = Fountain()
    async with listening(fountain) as upstream:
        origin = Origin(upstream.url)
        answer, got_bytes = await origin.ask(origin.head(b"GET", b"/", ()), b""), 0

        def tap(data: bytes) -> None:
            nonlocal got_bytes
            got_bytes += len(data)
            sink.sent.clear()

        await fountain.held()
        sink = Sink()
        await asyncio.wait_for(answer.flow(sink, tap), PATIENCE_S)
        assert got_bytes == LONG
        assert sink.finished
        await origin.close()


@on_each_loop
async def test_a_connection_that_was_held_at_the_end_is_not_held_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Sink):
        def send(self, data: bytes) -> None:
            super().send(data)
            self.fill()

    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url)
        for _ in range(3):
            answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
            sink = Full()
            await answer.flow(sink, None)
            sink.drain()
            assert sink.body == b"ok"
        assert len(upstream.talks) == 1
        await origin.close()


@on_each_loop
async def test_a_drain_after_the_end_does_not_touch_the_next_call() -> None:
    fountain = Fountain()

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(PLAIN)
        await fountain(talk)

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        early = Sink()
        await flowing(origin, early)
        late = Sink()
        late.full = True
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        flow = asyncio.create_task(answer.flow(late, None))
        await asyncio.sleep(0)
        early.drain()
        assert await fountain.held() < BOUND
        flow.cancel()
        await asyncio.gather(flow, return_exceptions=True)
        await origin.close()


@on_each_loop
async def test_being_cancelled_closes_the_upstream_at_once() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(CHUNKED + b"1\r\na\r\n")
        await talk.end()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)

        async def once() -> Talk:
            sink = Sink()
            flow = asyncio.create_task(flowing(origin, sink))
            await sink.more.wait()
            flow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flow
            assert not sink.finished
            return upstream.talks[-1]

        await at_once(once)
        await origin.close()


@pytest.mark.parametrize("way", ["iterating", "read"])
@on_each_loop
async def test_whoever_is_cancelled_while_reading_closes_the_upstream(way: str) -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 9\r\n\r\nok")
        await talk.end()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        pieces = aiter(answer)
        if way == "iterating":
            assert await anext(pieces) == b"ok"
        reading = asyncio.ensure_future(anext(pieces) if way == "iterating" else answer.read(100))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
        await asyncio.gather(reading, return_exceptions=True)
        await origin.close()


@pytest.mark.parametrize("when", ["before", "before anything came", "while it waits", "send says so"])
@on_each_loop
async def test_a_client_that_is_gone_frees_the_upstream(when: str) -> None:
    class Leaving(Sink):
        def send(self, data: bytes) -> None:
            super().send(data)
            if when == "while it waits":
                self.gone = True
                turn.set()
            elif when == "send says so":
                raise BrokenPipeError

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 9\r\n\r\n" + b"ok" * (when != "before anything came"))
        await turn.wait()
        talk.say(b"ok")
        await talk.end()

    turn = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        sink = Leaving()
        sink.gone = when.startswith("before")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(flowing(origin, sink), PATIENCE_S)
        assert sink.sent == ([] if sink.gone and when.startswith("before") else [b"ok"])
        assert not sink.finished
        turn.set()
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
        await origin.close()


@on_each_loop
async def test_a_client_that_is_gone_when_all_is_there() -> None:
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url)
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
        await soon(lambda: answer.ended)
        sink.gone = True
        with pytest.raises(ConnectionResetError):
            await answer.flow(sink, None)
        assert not sink.finished
        await origin.close()


@on_each_loop
async def test_a_tap_can_stop_the_answer_before_its_bytes_go_out() -> None:
    """A budget that is used up, a stream that went wrong."""

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(CHUNKED + b"1\r\na\r\n")
        await turn.wait()
        talk.say(b"1\r\nb\r\n1\r\nc\r\n0\r\n\r\n")
        await talk.end()

    turn = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()

        def tap(data: bytes) -> None:
            turn.set()
            if b"b" in data:
                answer.close()

        with pytest.raises(AnswerCut, match="closed before its end"):
            await answer.flow(sink, tap)
        assert (sink.sent, sink.finished) == ([b"a"], False)
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
        assert origin._idle == []
        await origin.close()


@on_each_loop
async def test_a_tap_that_fails_at_first_closes_the_upstream() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 9\r\n\r\nok")
        await talk.end()

    def tap(_: bytes) -> None:
        raise LookupError

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        await soon(lambda: answer._pieces)
        with pytest.raises(LookupError):
            await answer.flow(Sink(), tap)
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
        await origin.close()


@on_each_loop
async def test_an_upstream_that_ends_while_the_client_has_no_room_loses_nothing() -> None:
    """What the kernel still holds is read when there is room again, and only then the end is seen."""
    body = PIECE * 16

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"\r\n" + body)
        await talk.writer.drain()
        talk.hang_up()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
        sink.full = True
        flow = asyncio.create_task(answer.flow(sink, None))
        await asyncio.sleep(0.05)
        sink.drain()
        await flow
        assert sink.body == body
        await origin.close()


@on_each_loop
async def test_reading_in_pieces_and_whole() -> None:
    body = PIECE * 40

    async def talk(talk: Talk) -> None:
        while await talk.request():
            talk.say(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        assert b"".join([piece async for piece in await origin.ask(origin.head(b"GET", b"/", ()), b"")]) == body
        assert await (await origin.ask(origin.head(b"GET", b"/", ()), b"")).read(len(body)) == body
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        with pytest.raises(AnswerCut, match="longer"):
            await answer.read(100_000)
        assert not answer.ended
        assert len(upstream.talks) == 1
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
        await origin.close()


@on_each_loop
async def test_the_first_bytes_can_be_looked_at_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 4\r\n\r\n")
        await asked.wait()
        talk.say(b"ok")
        await looked.wait()
        talk.say(b"ok")
        await talk.request()
        talk.say(OK + b"Content-Length: 0\r\n\r\n")
        await talk.request()
        talk.say(OK + b"Content-Length: 4\r\n\r\n")
        talk.hang_up()

    asked, looked = asyncio.Event(), asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
        assert await answer.peek(0.01) == b""
        asked.set()
        assert await answer.peek(PATIENCE_S) == b"ok"
        assert await answer.peek() == b"ok"
        looked.set()
        await answer.flow(sink, None)
        assert sink.body == b"okok"
        assert await (await origin.ask(origin.head(b"GET", b"/", ()), b"")).peek() == b""
        with pytest.raises(AnswerCut):
            await (await origin.ask(origin.head(b"GET", b"/", ()), b"")).peek()
        await origin.close()


@on_each_loop
async def test_many_streams_at_once_do_not_mix() -> None:
    async def talk(talk: Talk) -> None:
        while request := await talk.request():
            name = request.split(b" ")[1][1:]
            talk.say(CHUNKED)
            for _ in range(20):
                talk.say(b"%x\r\n%b\r\n" % (len(name), name))
                await asyncio.sleep(0)
            talk.say(b"0\r\n\r\n")

    async def call(origin: Origin, name: bytes) -> None:
        for _ in range(3):
            sink = Sink()
            answer = await origin.ask(origin.head(b"GET", b"/" + name, ()), b"")
            await answer.flow(sink, None)
            assert sink.body == name * 20

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        await asyncio.gather(*(call(origin, b"n%d" % number) for number in range(40)))
        assert len(upstream.talks) <= 40
        await origin.close()

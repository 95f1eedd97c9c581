"""Answers that somebody tampered with, in pieces, cut short, torn, and read in every way: no exception that nobody expects,
no hang, nothing left. ``WIRE_FUZZ`` says how many (default 3,000)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from coordinator.kit.wire import AnswerCut, NotReached, new_loop
from coordinator.kit.wire_client import Origin
from coordinator.kit.wire_upstream import UpstreamConnection
from tests.wire.test_client_differential import ANSWERS, mutated
from tests.wire.test_client_framing import WHOLE
from tests.wire.upstream import Sink, Talk, guarded, listening, soon

if TYPE_CHECKING:
    from coordinator.kit.wire_client import Answer

COUNT = int(os.environ.get("WIRE_FUZZ", "3000"))
AT_ONCE = 12
HANG_S = 40.0
"""Nothing takes a hundredth of it; a machine with other work may stop for seconds."""
NAMES = [name for name, raw in ANSWERS.items() if len(raw) < 2000]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What an upstream does with one request."""

    pieces: tuple[bytes, ...]
    end: str


def scripted(chance: random.Random) -> tuple[Script, str]:
    """A script, and the name of the answer if it is whole and nobody tampered with it."""
    name = chance.choice(NAMES)
    case = WHOLE.get(name)
    untouched = case is not None and (case.kept or case.hang_up) and chance.random() < 0.2
    raw = ANSWERS[name] if untouched else mutated(ANSWERS[name], chance)
    marks = sorted(chance.sample(range(len(raw) + 1), min(chance.choice((0, 0, 1, 3, 9)), len(raw))))
    pieces = tuple(raw[a:b] for a, b in zip([0, *marks], [*marks, len(raw)], strict=True))
    end = "stay" if untouched and case is not None and case.kept else "hang up"
    if not untouched and chance.random() < 0.3:
        end = "reset"
    return Script(pieces=pieces, end=end), name if untouched else ""


class Tampering:
    """Answers each request with the script that its target names."""

    def __init__(self) -> None:
        self.scripts: dict[bytes, Script] = {}
        self.served: set[bytes] = set()

    async def __call__(self, talk: Talk) -> None:
        with contextlib.closing(talk.writer):  # the client's end alone does not close it
            await self._answer(talk)

    async def _answer(self, talk: Talk) -> None:
        while request := await talk.request():
            target = request.split(b" ")[1]
            if target not in self.scripts:  # its caller was cancelled
                return
            script = self.scripts[target]
            self.served.add(target)
            for piece in script.pieces:
                talk.say(piece)
                await asyncio.sleep(0)
            if script.end != "stay":
                talk.hang_up() if script.end == "hang up" else talk.reset()
                return


async def consumed(answer: Answer, chance: random.Random) -> tuple[bytes, str]:
    """Read it in one of the ways there are."""
    match how := chance.choice(("flow", "flow", "flow slowly", "iterate", "read", "late", "leave")):
        case "flow":
            sink = Sink()
            await answer.flow(sink, lambda _: None)
            assert sink.finished
            return sink.body, how
        case "flow slowly":
            sink = Sink()
            flow = asyncio.create_task(answer.flow(sink, None))
            try:
                while not flow.done():
                    chance.choice((sink.fill, sink.drain))()
                    await asyncio.sleep(0)
                    sink.drain()
            finally:
                flow.cancel()
                await asyncio.gather(flow, return_exceptions=True)
            flow.result()
            return sink.body, how
        case "read":
            return await answer.read(1000), how
        case "leave":
            answer.close()
            return b"", how
    for _ in range(chance.randrange(20) if how == "late" else 0):
        await asyncio.sleep(0)
    return b"".join([piece async for piece in answer]), how


async def one_call(origin: Origin, number: int, upstream: Tampering, seed: int) -> str:
    """What became of it. An answer that nobody tampered with is given as it is; but what an upstream says behind one answer,
    and late, is taken for the next one by whoever asks on that connection, and the request that asked was never served."""
    chance = random.Random(seed)
    script, name = scripted(chance)
    target = b"/%d" % number
    upstream.scripts[target] = script
    got = how = ""
    body = b""
    try:
        async with asyncio.timeout(HANG_S):
            answer = await origin.ask(origin.head(b"GET", target, ()), b"")
            body, how = await consumed(answer, chance)
        got = "left" if how == "leave" else "whole"
        assert answer.ended or got == "left"
    except NotReached:
        got = "refused"
    except AnswerCut:
        got = "cut"
    except TimeoutError:
        raise AssertionError(f"hangs: {script} (seed {seed})") from None
    if name and got != "left" and target in upstream.served:
        assert (got, body) == ("whole", WHOLE[name].body), f"{name} was {got} (seed {seed})"
    return got


async def caller(origin: Origin, upstream: Tampering, talks: list[Talk], first: int, found: Counter[str]) -> None:
    """Every ``AT_ONCE``-th call, one after the other; now and then one is cancelled under way."""
    for number in range(first, COUNT, AT_ONCE):
        chance = random.Random(-number)
        call = asyncio.create_task(one_call(origin, number, upstream, number))
        if chance.random() < 0.1:
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            call.cancel()
        await asyncio.wait([call])
        found["cancelled" if call.cancelled() else call.result()] += 1
        upstream.scripts.pop(b"/%d" % number, None)
        if len(talks) > 1000:
            talks[:] = [talk for talk in talks if not talk.writer.is_closing()]


def test_answers_that_somebody_tampered_with() -> None:
    found: Counter[str] = Counter()

    async def work() -> None:
        tampering = Tampering()
        async with listening(tampering) as upstream:
            origin = Origin(upstream.url, kept=AT_ONCE, connect_s=2 * HANG_S)
            async with asyncio.TaskGroup() as group:
                for first in range(AT_ONCE):
                    group.create_task(caller(origin, tampering, upstream.talks, first, found))
            await soon(lambda: origin._open == set(origin._idle))
            await origin.close()

    guarded(new_loop, work(), most_s=60 + COUNT / 50)
    gc.collect()
    assert [item for item in gc.get_objects() if isinstance(item, UpstreamConnection)] == []
    assert found.total() == COUNT
    assert min(found[what] for what in ("cancelled", "cut", "left", "refused", "whole")) > COUNT / 100, found


def test_a_call_that_goes_wrong_can_be_had_again() -> None:
    """The seed of a failure names the answer: the same number gives the same script."""
    assert scripted(random.Random(5)) == scripted(random.Random(5))
    with pytest.raises(AssertionError):
        assert scripted(random.Random(5)) == scripted(random.Random(6))

"""The same answers to ours, to aiohttp's client and to h11: the same meaning, or a refusal of ours."""

from __future__ import annotations

import os
import random
import re
from typing import TYPE_CHECKING

import aiohttp
import h11

from coordinator.kit.wire import AnswerCut, NotReached, new_loop
from coordinator.kit.wire_client import Origin
from tests.wire.test_client_framing import CUT, REFUSED, WHOLE
from tests.wire.upstream import Talk, guarded, listening

if TYPE_CHECKING:
    from collections.abc import Iterable

Meaning = tuple[int, bytes, bool] | None
"""Status, body, whether it is whole; None for a refusal before the body."""

COUNT = int(os.environ.get("WIRE_FUZZ", "3000")) // 10
ANSWERS = {
    **{name: case.raw for name, case in WHOLE.items() if case.method == b"GET"},
    **REFUSED,
    **{name: raw for name, (raw, _) in CUT.items()},
}


async def by_ours(url: str) -> Meaning:
    origin = Origin(url)
    try:
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        pieces: list[bytes] = []
        try:
            async for piece in answer:
                pieces.append(piece)
        except AnswerCut:
            pass
        return answer.status, b"".join(pieces), answer.ended
    except NotReached:
        return None
    finally:
        await origin.close()


async def by_aiohttp(url: str) -> Meaning:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        try:
            response = await session.get(url, allow_redirects=False)
        except (aiohttp.ClientError, ValueError):
            return None
        pieces: list[bytes] = []
        try:
            while piece := await response.content.readany():
                pieces.append(piece)
        except (aiohttp.ClientError, ValueError):
            response.close()
            return response.status, b"".join(pieces), False
        return response.status, b"".join(pieces), True


def by_h11(raw: bytes) -> Meaning:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    connection.receive_data(b"")
    status, pieces = 0, []
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return status, b"".join(pieces), True
            elif not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                return None
    except h11.RemoteProtocolError:
        return (status, b"".join(pieces), False) if status else None


class Parrot:
    """Says ``raw`` to whoever asks, and hangs up."""

    raw = b""

    async def __call__(self, talk: Talk) -> None:
        await talk.head()
        talk.say(self.raw)
        talk.hang_up()


def agree(ours: Meaning, theirs: Meaning) -> bool:
    """Ours may refuse, before the body or in it; it may not understand something else, nor call whole what is not."""
    if ours is None:
        return True
    if theirs is None:
        return not ours[2]
    if not ours[2]:
        return ours[0] == theirs[0] and (theirs[1].startswith(ours[1]) or ours[1].startswith(theirs[1]))
    return ours == theirs


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """A few bytes put in, taken out, changed or said twice."""
    data = bytearray(raw)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at:at] = chance.choice(MORSELS)
            case 1:
                del data[at : at + chance.randrange(1, 4)]
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                data[at:at] = data[at : at + chance.randrange(1, 30)]
            case _:
                lines = bytes(data).split(b"\r\n")
                lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
                data[:] = b"\r\n".join(lines)
    return bytes(data)


def alike(ours: Meaning, aiohttps: Meaning, raw: bytes) -> bool:
    """aiohttp refuses an answer for what stands behind it, which is no part of it (ours is whole, and closes); h11 refuses an
    empty line between an interim answer and the one that follows, which llhttp skips without a word."""
    h11s = by_h11(raw) or by_h11(EMPTY_LINE.sub(rb"\r\n\r\n\1", raw))
    return agree(ours, h11s) and (agree(ours, aiohttps) or (aiohttps is None and h11s is not None))


EMPTY_LINE = re.compile(rb"\r\n\r\n[\r\n]+(HTTP/1\.)")
MORSELS = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0\r\n\r\n",
    b"-",
    b"+",
    b"0",
    b"f",
    b"\xff",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 ",
)


async def unlike(
    answers: Iterable[tuple[str, bytes]],
) -> tuple[list[tuple[str, bytes, Meaning, Meaning]], int]:
    """What the three do not understand in the same way, and how many answers were whole for ours."""
    parrot, found, whole = Parrot(), [], 0
    async with listening(parrot) as upstream:
        for name, raw in answers:
            parrot.raw = raw
            ours, aiohttps = await by_ours(upstream.url), await by_aiohttp(upstream.url)
            whole += ours is not None and ours[2]
            if not alike(ours, aiohttps, raw):
                found.append((name, raw[:200], ours, aiohttps))
    return found, whole


def test_known_answers_mean_the_same_to_all() -> None:
    async def work() -> None:
        found, whole = await unlike(ANSWERS.items())
        assert found == []
        assert whole == sum(name in WHOLE for name in ANSWERS)

    guarded(new_loop, work())


def test_mutated_answers_mean_the_same_to_all() -> None:
    chance = random.Random(20)
    names = [name for name, raw in ANSWERS.items() if len(raw) < 2000]
    chosen = [(name, mutated(ANSWERS[name], chance)) for name in chance.choices(names, k=COUNT)]

    async def work() -> None:
        found, whole = await unlike(chosen)
        assert found == []
        assert whole > COUNT / 20  # they are not all broken

    guarded(new_loop, work())

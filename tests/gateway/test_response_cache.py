"""Answers that are given again: to whom, how long, and how many."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.domain.usage import TokenUsage
from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.response_cache import ResponseCache, WholeAnswer
from coordinator.gateway.sameness import Sameness
from tests.gateway.callers import HEAD, START, STOP, TEXT, THINKING, delta, event
from tests.gateway.questions import ANN, BEN, OPENAI, HandClock, body, question, worktree

USAGE = TokenUsage(input_tokens=100, output_tokens=5)
STREAM = b"".join((START, TEXT, delta(f"in {worktree(ANN)}/x"), STOP, event("message_stop")))


def whole(data: bytes = STREAM) -> WholeAnswer:
    return WholeAnswer(body=data, headers=HEAD, usage=USAGE)


class Rig:
    def __init__(self, **more: Any) -> None:
        self.clock = HandClock()
        self.cache = ResponseCache(self.clock, **{"max_bytes": 64 * 2**20, "ttl_s": 300.0, **more})

    async def keep(self, number: int, data: bytes = b"x") -> None:
        await self.cache.keep(asked(number), whole(data), declared=True)

    async def has(self, number: int) -> bool:
        return await self.cache.find(asked(number)) is not None


def asked(number: int) -> Any:
    return question(ANN, str(number).encode(), dialect=OPENAI)


def cold(claim: tuple[str, int], **more: Any) -> Any:
    return question(claim, body(claim, **{"temperature": 0, **more}))


async def test_an_answer_is_given_again_to_another_agent_in_its_own_folders() -> None:
    rig = Rig()
    await rig.cache.keep(cold(ANN), whole(), declared=False)
    found = await rig.cache.find(cold(BEN))
    assert found is not None
    assert f"in {worktree(BEN)}/x".encode() in found.body
    assert b"ann-7" not in found.body
    assert b'"msg_1"' not in found.body
    assert found.usage is USAGE
    rig.cache.saved(0.5)
    counts = rig.cache.counts
    assert (counts.hits, counts.misses, counts.saved_usd) == (1, 0, 0.5)
    again = await rig.cache.find(cold(ANN))
    assert again is not None
    assert f"in {worktree(ANN)}/x".encode() in again.body
    assert b'"msg_1"' not in again.body


@pytest.mark.parametrize(
    "more",
    [
        {"owner": "other"},
        {"streams": False},
        {"sense": b"other"},
        {"mode": Sameness.LOOSE},
        {"data": body(BEN, "Say goodbye", temperature=0)},
        {"paths": AgentPaths({})},
    ],
)
async def test_what_is_not_the_same_is_not_found(more: dict[str, Any]) -> None:
    rig = Rig()
    await rig.cache.keep(cold(ANN), whole(), declared=True)
    assert await rig.cache.find(question(BEN, **{"data": body(BEN, temperature=0), **more})) is None
    assert rig.cache.counts.misses == 1


async def test_a_hash_alone_proves_nothing() -> None:
    rig = Rig()
    await rig.keep(1)
    normal = asked(1).normal
    key = (*asked(1).key, normal.digest)
    assert rig.cache.get(key, normal.form) is not None
    assert rig.cache.get(key, b"another form") is None


async def test_what_loose_mode_left_out_is_not_named_to_another() -> None:
    rig = Rig()

    def at_day(claim: tuple[str, int], day: str) -> Any:
        return question(claim, body(claim, temperature=0, system=f"CWD: x\nDate: {day}"), mode=Sameness.LOOSE)

    named = whole(b"".join((START, TEXT, delta("It is 2026-11-30."), STOP)))
    await rig.cache.keep(at_day(ANN, "2026-11-30"), named, declared=False)
    assert await rig.cache.find(at_day(BEN, "2026-12-01")) is None
    assert await rig.cache.find(at_day(BEN, "2026-11-30")) is not None


async def test_only_what_always_gets_the_same_is_kept() -> None:
    rig = Rig()
    for more, declared in (({"temperature": 0.1}, False), ({}, False), ({"messages": 5}, True)):
        await rig.cache.keep(question(ANN, body(ANN, **more)), whole(), declared=declared)
    assert len(rig.cache) == 0
    await rig.cache.keep(question(ANN, body(ANN, temperature=0.1)), whole(), declared=True)
    await rig.cache.keep(cold(ANN), whole(), declared=False)
    assert len(rig.cache) == 2


async def test_signed_reasoning_stays_with_its_folders() -> None:
    rig = Rig()
    await rig.cache.keep(cold(ANN), whole(START + THINKING + STOP), declared=False)
    assert await rig.cache.find(cold(BEN)) is None
    assert await rig.cache.find(cold(ANN)) is not None


async def test_the_very_same_bytes_are_given_as_they_are() -> None:
    rig = Rig()
    raw = {"data": body(ANN), "mode": Sameness.RAW}
    await rig.cache.keep(question(ANN, **raw), whole(), declared=True)
    found = await rig.cache.find(question(BEN, **raw))
    assert found is not None
    assert worktree(ANN).encode() in found.body
    other = {"data": body(ANN), "dialect": OPENAI}
    await rig.cache.keep(question(ANN, **other), whole(b"anything"), declared=True)
    found = await rig.cache.find(question(BEN, **other))
    assert found is not None
    assert found.body == b"anything"


async def test_an_answer_grows_old() -> None:
    rig = Rig(ttl_s=10)
    await rig.keep(1)
    rig.clock.time += 9.9
    assert await rig.has(1)
    rig.clock.time += 0.2
    assert not await rig.has(1)
    assert rig.cache.counts.expired == 1
    assert (len(rig.cache), rig.cache.held_bytes) == (0, 0)


async def test_the_least_recently_used_goes_first() -> None:
    rig = Rig(max_entries=3)
    for number in (1, 2, 3):
        await rig.keep(number)
    assert await rig.has(1)
    await rig.keep(4)
    assert [await rig.has(number) for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert rig.cache.counts.evicted == 1


async def test_bytes_have_a_bound() -> None:
    rig = Rig(max_bytes=100_000)
    for number in range(30):
        await rig.keep(number, b"y" * 20_000)
        assert rig.cache.held_bytes <= 100_000
    assert len(rig.cache) == 4
    assert rig.cache.counts.evicted == 26
    await rig.keep(99, b"y" * 100_000)
    assert len(rig.cache) == 4
    assert not await rig.has(99)
    await rig.keep(29, b"z")
    assert rig.cache.held_bytes < 3 * 22_000 + 2_000
    assert len(rig.cache) == 4


async def test_bounds_may_be_changed_at_any_time() -> None:
    rig = Rig(max_bytes=100_000)
    for number in range(4):
        await rig.keep(number, b"y" * 20_000)
    rig.cache.resize(max_bytes=50_000, ttl_s=10.0)
    assert [await rig.has(number) for number in range(4)] == [False, False, True, True]
    assert rig.cache.held_bytes <= 50_000
    await rig.keep(4)
    rig.clock.time += 11
    assert [await rig.has(number) for number in (3, 4)] == [True, False]
    rig.cache.resize(max_bytes=0, ttl_s=10.0)
    assert (len(rig.cache), rig.cache.held_bytes) == (0, 0)
    await rig.keep(5)
    assert len(rig.cache) == 0


async def test_an_answer_that_is_no_stream() -> None:
    rig = Rig()
    answer = {"id": "msg_1", "type": "message", "content": [{"type": "text", "text": worktree(ANN)}]}
    kept = WholeAnswer(body=json.dumps(answer).encode(), headers=((b"content-type", b"application/json"),), usage=USAGE)
    await rig.cache.keep(cold(ANN), kept, declared=False)
    found = await rig.cache.find(cold(BEN))
    assert found is not None
    assert json.loads(found.body)["content"][0]["text"] == worktree(BEN)

"""Answers to prompts that need not be asked for: one that is kept, or one that is on its way to somebody who asked the same.

Owns one invariant: a prompt is answered with another's answer only if both are equal byte for byte in all that a model sees
and spend the same owner's money; and nobody waits for another longer than ``wait_s``, nor for one who has failed. Kept are
answers at temperature 0 alone. A plain dict of futures: prompts are shared whole, where calls of agents share streams
(``deduplicator``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.meters import cache_meters
from coordinator.gateway.prompt_delivery import PromptAnswer
from coordinator.gateway.question import Question
from coordinator.gateway.response_cache import WholeAnswer
from coordinator.gateway.sameness import Sameness
from coordinator.gateway.translate_terms import as_map, as_text
from coordinator.policy.quality import Finish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from coordinator.domain.meter import Meter
    from coordinator.gateway.keys import Claim
    from coordinator.gateway.response_cache import ResponseCache

CACHED: Final = "cache"
IDENTICAL: Final = "identical"

_NOWHERE: Final = AgentPaths({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompt:
    """What makes two prompts the same. ``form`` is all that a model sees, ``owner`` whose money it is. ``settled``: asked at
    temperature 0, so that the answer may be kept."""

    claim: Claim
    form: bytes
    owner: str
    settled: bool


@dataclass(slots=True, kw_only=True)
class SharingCounts:
    """Since the start. ``alone``: waited for nothing, and asked themselves; ``again``: asked because another had failed."""

    again: int = 0
    alone: int = 0
    cached: int = 0
    identical: int = 0


class PromptSharing:
    """``store`` keeps answers (None: nobody does); ``joins``: whether prompts under way are shared. ``wait_s`` may be changed at
    any time."""

    def __init__(self, store: ResponseCache | None, *, joins: bool, wait_s: float) -> None:
        self._joins = joins
        self._store = store
        self._under_way: dict[tuple[str, bytes], asyncio.Future[PromptAnswer | None]] = {}
        self.counts = SharingCounts()
        self.wait_s = wait_s

    async def answer(
        self, prompt: SharedPrompt, ask: Callable[[], Awaitable[PromptAnswer]]
    ) -> tuple[PromptAnswer, str]:
        """An answer and how it was come by: ``CACHED``, ``IDENTICAL``, or asked for (empty). Raises what ``ask`` raises."""
        kept = await self._find(prompt)
        if kept is not None:
            self.counts.cached += 1
            return kept, CACHED
        key = prompt.owner, prompt.form
        waited = False
        while self._joins:
            flight = self._under_way.get(key)
            if flight is None:
                self.counts.again += waited
                return await self._lead(key, prompt, ask), ""
            done, _ = await asyncio.wait({flight}, timeout=self.wait_s)
            if not done:
                self.counts.alone += 1
                break
            answer, waited = flight.result(), True
            if answer is not None:
                self.counts.identical += 1
                return answer, IDENTICAL
        return await self._asked(prompt, ask), ""

    def saved(self, usd: float) -> None:
        """What a call would have cost whose answer was kept."""
        if self._store is not None:
            self._store.saved(usd)

    def meters(self) -> Iterable[Meter]:
        return cache_meters(self._store.counts, self._store.held_bytes) if self._store is not None else ()

    def turned(self, *, cache_bytes: int, cache_ttl_s: float, wait_s: float) -> None:
        """A knob was turned."""
        self.wait_s = wait_s
        if self._store is not None:
            self._store.resize(max_bytes=cache_bytes, ttl_s=cache_ttl_s)

    async def _lead(
        self, key: tuple[str, bytes], prompt: SharedPrompt, ask: Callable[[], Awaitable[PromptAnswer]]
    ) -> PromptAnswer:
        """Ask, for all who come meanwhile. However it ends, they hear of it."""
        flight: asyncio.Future[PromptAnswer | None] = asyncio.get_running_loop().create_future()
        self._under_way[key] = flight
        answer: PromptAnswer | None = None
        try:
            answer = await self._asked(prompt, ask)
        finally:
            del self._under_way[key]
            flight.set_result(answer)
        return answer

    async def _asked(self, prompt: SharedPrompt, ask: Callable[[], Awaitable[PromptAnswer]]) -> PromptAnswer:
        answer = await ask()
        if prompt.settled and self._store is not None and answer.text:
            said = {
                "cost_usd": answer.cost_usd,
                "finish": answer.finish.value,
                "model": answer.model,
                "text": answer.text,
                "upstream": answer.upstream,
            }
            whole = WholeAnswer(body=fast_json.encode(said), headers=(), usage=answer.usage)
            await self._store.keep(_question(prompt), whole, declared=True)
        return answer

    async def _find(self, prompt: SharedPrompt) -> PromptAnswer | None:
        if not prompt.settled or self._store is None:
            return None
        found = await self._store.find(_question(prompt))
        if found is None:
            return None
        said = as_map(fast_json.decode(found.body))
        cost = said.get("cost_usd")
        return PromptAnswer(
            cost_usd=cost if isinstance(cost, float) else 0.0,
            finish=Finish(as_text(said.get("finish"))),
            model=as_text(said.get("model")),
            text=as_text(said.get("text")),
            upstream=as_text(said.get("upstream")),
            usage=found.usage,
        )


def _question(prompt: SharedPrompt) -> Question:
    return Question(
        prompt.form,
        claim=prompt.claim,
        dialect=Dialect.OPENAI_CHAT,  # of those whose answers are given again as they are
        mode=Sameness.RAW,
        model="",
        most=0,
        owner=prompt.owner,
        paths=_NOWHERE,
        sense=b"prompt",
        session=b"",
        streams=False,
        turns=0,
    )

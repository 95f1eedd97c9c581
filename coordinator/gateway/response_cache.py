"""Answers that are given again: whole ones, to calls that always get the same.

Owns one invariant: an answer is kept only if it is a whole 200 to a call at temperature 0, or to one whose asker says that any
answer will do; and it is given only to a call with an equal form (compared byte by byte), the same owner of money, the same
sense and the same kind of answer on the wire. Least recently used first, it forgets what goes past either bound, and whatever
is older than its time. It is the door to ``cachebox``, and meant for the prompt lane; calls of agents do not pass here unless
somebody turned that on.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cachebox

from coordinator.gateway.dialect import Dialect
from coordinator.gateway.retold import NotRetellable, Retelling, Retold
from coordinator.gateway.sameness import Sameness

if TYPE_CHECKING:
    from coordinator.domain.usage import TokenUsage
    from coordinator.gateway.agent_paths import AgentPaths
    from coordinator.gateway.question import Question
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire import RawHeaders

_SALT_BYTES: Final = 16
_OVERHEAD_BYTES: Final = 1024
"""Of an entry, beside its request and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswer:
    """An answer with status 200, from its head to its last byte. ``usage``: what it took, and would take again."""

    body: bytes
    headers: RawHeaders
    usage: TokenUsage


@dataclass(slots=True, kw_only=True)
class CacheCounts:
    """Since the start. ``saved_usd``: what the calls would have cost that were answered from here."""

    evicted: int = 0
    expired: int = 0
    hits: int = 0
    misses: int = 0
    saved_usd: float = 0.0


class KeptAnswer:
    """An entry. ``form`` is what was asked, ``blanked`` what loose mode took out of it, ``paths`` the folders of who asked."""

    __slots__ = ("answer", "blanked", "form", "paths", "size_bytes", "until")

    def __init__(
        self, answer: WholeAnswer, form: bytes, blanked: frozenset[str], paths: AgentPaths, until: float
    ) -> None:
        self.answer = answer
        self.blanked = blanked
        self.form = form
        self.paths = paths
        heads = sum(len(name) + len(value) for name, value in answer.headers)
        self.size_bytes = len(form) + len(answer.body) + heads + _OVERHEAD_BYTES
        self.until = until


class ResponseCache:
    """Lives on one loop."""

    def __init__(self, clock: Clock, *, max_bytes: int, max_entries: int = 10_000, ttl_s: float) -> None:
        self._clock = clock
        self._kept: cachebox.LRUCache[tuple[object, ...], KeptAnswer] = cachebox.LRUCache(max_entries)
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self.counts = CacheCounts()
        self._ttl_s = ttl_s
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def find(self, question: Question) -> WholeAnswer | None:
        normal = question.normal
        kept = self.get((*question.key, normal.digest), normal.form) if normal is not None else None
        told = _told(kept, question) if kept is not None else None
        if told is None:
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        return told

    def get(self, key: tuple[object, ...], form: bytes) -> KeptAnswer | None:
        """What is kept under a question's key and its form's digest, if it was asked with the very form and is not too old."""
        kept: KeptAnswer | None = self._kept.get(key, None)
        if kept is None or kept.form != form:
            return None
        if kept.until > self._clock.monotonic():
            return kept
        self._remove(key)
        self.counts.expired += 1
        return None

    async def keep(self, question: Question, answer: WholeAnswer, *, declared: bool) -> None:
        normal = question.normal
        if normal is None or not (declared or normal.deterministic):
            return
        until = self._clock.monotonic() + self._ttl_s
        kept = KeptAnswer(answer, normal.form, normal.blanked, question.paths, until)
        if kept.size_bytes > self._max_bytes:
            return
        key = (*question.key, normal.digest)
        self._remove(key)
        if len(self._kept) >= self._max_entries:
            self._forget_oldest()
        while self.held_bytes + kept.size_bytes > self._max_bytes:
            self._forget_oldest()
        self._kept.insert(key, kept)
        self.held_bytes += kept.size_bytes

    def resize(self, *, max_bytes: int, ttl_s: float) -> None:
        """What is over the new bound is forgotten at once; ``ttl_s`` counts for what is kept from now on."""
        self._max_bytes, self._ttl_s = max_bytes, ttl_s
        while self.held_bytes > max_bytes:
            self._forget_oldest()

    def saved(self, usd: float) -> None:
        """What the call would have cost that ``find`` had an answer to, by that answer's usage. Once for each."""
        self.counts.saved_usd += usd

    def _forget_oldest(self) -> None:
        _, oldest = self._kept.popitem()
        self.held_bytes -= oldest.size_bytes
        self.counts.evicted += 1

    def _remove(self, key: tuple[object, ...]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.held_bytes -= kept.size_bytes


def _told(kept: KeptAnswer, question: Question) -> WholeAnswer | None:
    """The answer as this asker may have it: with ids and folders of its own. None: that cannot be done beyond doubt."""
    answer, normal = kept.answer, question.normal
    if question.dialect is not Dialect.ANTHROPIC_MESSAGES:
        return answer
    if question.mode is Sameness.RAW or normal is None:
        retelling: Retelling | None = Retelling.of_ids()  # whatever the request names, both name it
    else:
        retelling = Retelling.between(kept.paths, question.paths, kept.blanked - normal.blanked)
    if retelling is None:
        return None
    retold = Retold(retelling, secrets.token_bytes(_SALT_BYTES))
    try:
        retold.head(200, answer.headers)
        body = retold.feed(answer.body) + retold.end()
    except NotRetellable:
        return None
    return WholeAnswer(body=body, headers=answer.headers, usage=answer.usage)

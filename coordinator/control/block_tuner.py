"""BlockTuner: tries another fleet size in alternating blocks of hours, when the upstreams cannot keep up with the one there is.

Owns one invariant: one trial at a time; both values get blocks of the same length, chance decides which of a pair comes first,
and what is counted of a block begins only when the change has settled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from coordinator.control.objective import Score
from coordinator.domain.knob import ChangeAuthor, ChangeVerdict
from coordinator.policy.block_trial import BlockTrial

if TYPE_CHECKING:
    import random

    from coordinator.control.knob_board import KnobBoard
    from coordinator.domain.knob import KnobReading

KNOB: Final = "agents"
BLOCK_S: Final = 7200.0
"""With the time to settle; some 48 tasks at 24 an hour."""
_STEP: Final = 1.5
_WATCHED_S: Final = 3600.0
"""So long must calls have waited before anything is tried."""
_REST_S: Final = 7 * 86_400.0
_CROWDED: Final = 0.5
"""Share of calls that waited."""


@dataclass(slots=True, kw_only=True)
class _Running:
    began_s: float
    new: float
    new_first: bool
    number: int
    old: float
    scores: list[float] = field(default_factory=list)
    settle_s: float
    sum: Score = field(default_factory=Score)
    trial: BlockTrial = field(default_factory=BlockTrial)

    @property
    def at_new(self) -> bool:
        return (len(self.scores) % 2 == 0) is self.new_first


class BlockTuner:
    """``look`` with each minute's score."""

    def __init__(self, board: KnobBoard, objective: str, chance: random.Random, *, dry: bool) -> None:
        self._board = board
        self._chance = chance
        self._crowded = Score()
        self._dry = dry
        self._not_before_s = 0.0
        self._objective = objective
        self._running: _Running | None = None

    async def look(self, score: Score, at_s: float) -> None:
        if self._running is not None:
            await self._go_on(self._running, score, at_s)
            return
        self._crowded.add(score)
        if self._crowded.took_s < _WATCHED_S:
            return
        watched, self._crowded = self._crowded, Score()
        if at_s >= self._not_before_s and watched.calls and watched.waited >= _CROWDED * watched.calls:
            await self._begin(watched, at_s)

    async def _begin(self, watched: Score, at_s: float) -> None:
        reading = (await self._board.readings()).get(KNOB)
        if reading is None or reading.value <= 1:
            return
        new = reading.knob.nearest(reading.value / _STEP)
        why = f"{watched.waited / watched.calls:.0%} of the calls of an hour waited for an upstream"
        trial = f"blocks of {BLOCK_S / 3600:g} h, {BlockTrial().left} pairs at most"
        number = await self._board.turn(KNOB, new, ChangeAuthor.BLOCK, why, trial=trial, dry=self._dry)
        self._not_before_s = at_s + _REST_S
        if number is None or self._dry:
            return
        settle_s, first = reading.knob.settle_s, self._chance.random() < 0.5
        self._running = running = _Running(
            began_s=at_s, new=new, new_first=first, number=number, old=reading.value, settle_s=settle_s
        )
        await self._put(reading, running)

    async def _put(self, reading: KnobReading, running: _Running) -> None:
        value = running.new if running.at_new else running.old
        await self._board.alternate(reading.knob.name, value, f"trial {running.number}")

    async def _go_on(self, running: _Running, score: Score, at_s: float) -> None:
        if self._board.frozen or KNOB in self._board.pinned:
            await self._end(running, ChangeVerdict.ABORTED, "it may not be turned any more")
            return
        if at_s - running.began_s - score.took_s >= running.settle_s:
            running.sum.add(score)
        if at_s - running.began_s < BLOCK_S:
            return
        running.scores.append(running.sum.worth(self._objective))
        running.sum, running.began_s = Score(), at_s
        if len(running.scores) % 2 == 0:
            first, second = running.scores[-2:]
            old, new = (second, first) if running.new_first else (first, second)
            verdict = running.trial.take(old, new)
            if verdict is not None:
                await self._end(running, verdict, running.trial.said())
                return
            running.new_first = self._chance.random() < 0.5
        await self._put(await self._board.reading(KNOB), running)

    async def _end(self, running: _Running, verdict: ChangeVerdict, outcome: str) -> None:
        self._running = None
        if verdict is ChangeVerdict.KEPT:
            await self._board.alternate(KNOB, running.new, f"trial {running.number}")
        await self._board.settle(running.number, KNOB, verdict, outcome, back_to=running.old, author=ChangeAuthor.BLOCK)

    async def outside(self, knob: str) -> None:
        """Somebody turned ``knob``."""
        running, self._running = self._running, None
        if running is None:
            return
        if knob == KNOB:
            self._board.note_outcome(running.number, ChangeVerdict.ABORTED, "somebody else turned it")
            return
        await self._end(running, ChangeVerdict.ABORTED, f"somebody else turned {knob}")

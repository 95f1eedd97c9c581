"""LimitTuner: joins each upstream's probe to its knob ``calls@NAME``, and writes down what refusals did to its limit.

Owns one invariant: one test at a time by upstream; whoever else turns its knob ends the test, and keeps what was set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.domain.knob import ChangeAuthor, ChangeVerdict
from coordinator.policy.limit_probe import LimitProbe, ProbeTick

if TYPE_CHECKING:
    from coordinator.control.knob_board import KnobBoard
    from coordinator.domain.upstream_sample import UpstreamSample
    from coordinator.policy.limit_probe import ProbeMove


@dataclass(slots=True, kw_only=True)
class _Lane:
    """One upstream. ``bound``, ``calls`` and ``looks`` are since the last tick."""

    bound: bool = True
    calls: int = 0
    delivered_bytes: int
    limit: int
    looks: int = 0
    number: int = 0
    """Of the change on trial; 0: none is."""
    old: float = 0.0
    probe: LimitProbe = field(default_factory=LimitProbe)
    ticked_s: float


class LimitTuner:
    """``look`` about every second."""

    def __init__(self, board: KnobBoard, *, dry: bool) -> None:
        self._board = board
        self._dry = dry
        self._lanes: dict[str, _Lane] = {}

    async def look(self, samples: list[UpstreamSample], at_s: float) -> None:
        for seen in samples:
            lane = self._lanes.get(seen.name)
            if lane is None or seen.delivered_bytes < lane.delivered_bytes:  # a gateway began
                lane = _Lane(delivered_bytes=seen.delivered_bytes, limit=seen.limit, ticked_s=at_s)
                self._lanes[seen.name] = lane
                continue
            lane.looks += 1
            lane.calls += seen.in_flight
            lane.bound = lane.bound and seen.waiting > 0 and seen.limit >= seen.cap
            if at_s - lane.ticked_s >= seen.tick_s:
                await self._tick(lane, seen, at_s)

    async def _tick(self, lane: _Lane, seen: UpstreamSample, at_s: float) -> None:
        tick = ProbeTick(
            bound=lane.bound,
            delivered_per_s=(seen.delivered_bytes - lane.delivered_bytes) / (at_s - lane.ticked_s),
            in_flight=lane.calls / lane.looks,
            limit=None if seen.unlimited else seen.limit,
        )
        name = f"calls@{seen.name}"
        if seen.limit < lane.limit and seen.limit < seen.cap:
            why = "it refused one call more (429, calls at once)"
            self._board.note(name, float(min(lane.limit, seen.cap)), float(seen.limit), ChangeAuthor.TYPED, why)
        lane.limit, lane.delivered_bytes, lane.ticked_s = seen.limit, seen.delivered_bytes, at_s
        lane.bound, lane.calls, lane.looks = True, 0, 0
        move = lane.probe.step(tick)
        if move is not None:
            await self._do(name, lane, move)

    async def _do(self, name: str, lane: _Lane, move: ProbeMove) -> None:
        if move.calls is not None:
            lane.old = (await self._board.reading(name)).value
            trial = "judged by bytes/s delivered"
            number = await self._board.turn(name, move.calls, ChangeAuthor.PROBE, move.why, trial=trial, dry=self._dry)
            lane.number = 0 if number is None or self._dry else number
            if not lane.number:
                lane.probe.refused()
        elif lane.number:
            verdict = ChangeVerdict.KEPT if move.kept else ChangeVerdict.REVERTED
            await self._settle(name, lane, ChangeVerdict.ABORTED if move.futile else verdict, move.why)

    async def _settle(self, name: str, lane: _Lane, verdict: ChangeVerdict, why: str) -> None:
        number, lane.number = lane.number, 0
        await self._board.settle(number, name, verdict, why, back_to=lane.old, author=ChangeAuthor.PROBE)

    async def outside(self, knob: str) -> None:
        """Somebody turned ``knob``: tests that go on say nothing, and what is best is asked anew."""
        for upstream, lane in self._lanes.items():
            name = f"calls@{upstream}"
            if lane.number and name == knob:
                self._board.note_outcome(lane.number, ChangeVerdict.ABORTED, "somebody else turned it")
                lane.number = 0
            elif lane.number:
                await self._settle(name, lane, ChangeVerdict.ABORTED, f"somebody else turned {knob}")
            lane.probe.outside()

    def advise(self, upstream: str, calls: int, why: str) -> bool:
        """Somebody would like to know whether so many calls at once are better; False: no such upstream was seen yet."""
        lane = self._lanes.get(upstream)
        if lane is not None:
            lane.probe.advise(calls, why)
        return lane is not None

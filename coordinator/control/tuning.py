"""TuningController: turns knobs by what is seen, judges each turn, and takes back what did not help.

Owns one invariant: one change is on trial by objective (what an upstream delivers, how long calls wait, what an hour is worth),
and a person's change ends all trials. How each is judged is ``policy``'s: ``limit_probe``, ``servo``, ``block_trial``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.control.block_tuner import BlockTuner
from coordinator.control.limit_tuner import LimitTuner
from coordinator.control.objective import Objective, Score
from coordinator.control.snapshot_store import SnapshotStore
from coordinator.control.wait_tuner import WaitTuner
from coordinator.domain.event import KnobTurned
from coordinator.domain.knob import ChangeAuthor

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from coordinator.control.knob_board import KnobBoard
    from coordinator.domain.event import Published
    from coordinator.domain.settings import Settings
    from coordinator.domain.upstream_sample import UpstreamSample
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

TUNING_LOOK_S: Final = 1.0
_MINUTE_S: Final = 60.0


class TuningController:
    """``take`` is a tap of the bus, ``look`` is called every second. ``samples`` tell of each upstream."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        board: KnobBoard,
        settings: Settings,
        samples: Callable[[], Awaitable[Sequence[UpstreamSample]]],
        chance: random.Random,
        *,
        self_improve: bool,
    ) -> None:
        control = settings.control
        self.on = control.tuning in ("on", "dry-run") or (control.tuning == "auto" and self_improve)
        """Whether anything but a person turns knobs, or would."""
        dry = control.tuning == "dry-run"
        self._board = board
        self._clock = clock
        self._declared: list[str] = []
        self._minute_s = clock.monotonic()
        self._samples = samples
        self._source = "as the daemon began"
        self.objective = Objective(store, settings.router, clock.monotonic())
        self.snapshots = SnapshotStore(store, clock)
        self.limits = LimitTuner(board, dry=dry)
        self._blocks = BlockTuner(board, control.objective, chance, dry=dry)
        self._waits = WaitTuner(board, self.objective, control.max_wait_s, dry=dry)

    def take(self, published: Published) -> None:
        event = published.event
        self.objective.take(event, self._clock.monotonic())
        if isinstance(event, KnobTurned):
            self._source = f"{event.knob} by {event.author}"
            if event.author == ChangeAuthor.PERSON:
                self._declared.append(event.knob)

    async def look(self) -> None:
        declared, self._declared = self._declared, []
        for knob in declared:
            await self.limits.outside(knob)
            await self._blocks.outside(knob)
            self._waits.outside(knob)
        at_s = self._clock.monotonic()
        if self.on:
            await self.limits.look(list(await self._samples()), at_s)
            await self._waits.look(at_s)
        if at_s - self._minute_s >= _MINUTE_S:
            self._minute_s = at_s
            await self._keep(self.objective.take_score(at_s), at_s)

    async def _keep(self, score: Score, at_s: float) -> None:
        """Each minute."""
        if self.on:
            await self._blocks.look(score, at_s)
        if not self._board.on_trial:
            values = {name: one.value for name, one in (await self._board.readings()).items()}
            self.snapshots.take(values, self._source, score)

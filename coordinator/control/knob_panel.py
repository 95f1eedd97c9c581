"""Knobs that act on this loop: each is read and written where it acts, by whoever wires it.

Owns one invariant: a value outside of a knob's bounds is never written, and what is written is told on the bus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from coordinator.domain.errors import BadInput
from coordinator.domain.event import KnobTurned
from coordinator.domain.knob import KnobReading
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from coordinator.domain.knob import Knob
    from coordinator.kit.bus import Bus


class KnobPanel(Protocol):
    """Some of the daemon's knobs."""

    def begin_with(self, turned: Mapping[str, tuple[float, float | None]]) -> None:
        """Values from before, each with the default it had then: where that is another now, the settings are the newer word.
        Names of other panels are passed over."""

    async def knobs(self) -> Sequence[KnobReading]: ...

    async def turn(self, name: str, value: float, author: str, reason: str) -> None:
        """Raises ``BadInput``, and ``DaemonUnreachable`` while what it acts on does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveKnob:
    knob: Knob
    read: Callable[[], float]
    write: Callable[[float], None]


class LivePanel:
    """``knobs`` by their places."""

    def __init__(self, bus: Bus, knobs: Sequence[LiveKnob]) -> None:
        self._bus = bus
        self._knobs = {one.knob.name: one for one in knobs}
        self._usual = {name: one.read() for name, one in self._knobs.items()}

    def begin_with(self, turned: Mapping[str, tuple[float, float | None]]) -> None:
        for name, (value, usual) in turned.items():
            live = self._knobs.get(name)
            if live is not None and usual in (None, self._usual[name]) and not live.knob.fault(value):
                live.write(value)

    async def knobs(self) -> Sequence[KnobReading]:
        return [
            KnobReading(default=self._usual[name], knob=one.knob, value=one.read()) for name, one in self._knobs.items()
        ]

    async def turn(self, name: str, value: float, author: str, reason: str) -> None:
        live = self._knobs[name]
        if fault := live.knob.fault(value):
            raise BadInput([Problem(file=name, message=fault, expected="a value within its bounds")])
        before = live.read()
        live.write(value)
        self._bus.publish(KnobTurned(author=author, knob=name, new=value, old=before, reason=reason))

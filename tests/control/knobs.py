"""A board on a real ledger, with knobs that only hold their value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.control.knob_board import KnobBoard
from coordinator.control.knob_panel import LiveKnob, LivePanel
from coordinator.domain.knob import Knob, KnobKind
from coordinator.kit.bus import Bus

if TYPE_CHECKING:
    from coordinator.domain.event import Published
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store


def knob(name: str, kind: KnobKind = KnobKind.SERVO, low: float = 0, high: float = 100, step: float = 1) -> Knob:
    return Knob(about="a number", kind=kind, maximum=high, minimum=low, name=name, settle_s=30, step=step)


@dataclass
class Panelled:
    """One daemon's life: ``values`` are those of the settings at its start."""

    clock: Clock
    store: Store
    values: dict[str, float]
    kinds: dict[str, KnobKind] = field(default_factory=dict)
    told: list[Published] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus = Bus(self.clock)
        self.bus.tap(self.told.append)
        self.panel = LivePanel(self.bus, [self._live(name) for name in self.values])
        self.board = KnobBoard(self.store, self.clock, (self.panel,))
        self.board.begin()

    def _live(self, name: str) -> LiveKnob:
        def write(value: float) -> None:
            self.values[name] = value

        kind = self.kinds.get(name, KnobKind.SERVO)
        return LiveKnob(knob=knob(name, kind), read=lambda: self.values[name], write=write)

    def changes(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.store.query("knob_changes", limit=100)]

    def turned(self) -> list[tuple[str, str, float]]:
        return [
            (one.event.author, one.event.knob, one.event.new)  # type: ignore[attr-defined]
            for one in self.told
            if one.event.kind == "knob_turned"
        ]

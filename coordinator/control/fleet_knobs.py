"""The fleet's knobs: how many agents there are, how long they linger, and how many attempts are judged together.

Owns one invariant: bounds are those of the settings of the same names. Where each acts is told by the wiring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.control.knob_panel import LiveKnob
from coordinator.domain.knob import Knob, KnobKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _knob(
    name: str,
    about: str,
    kind: KnobKind,
    bounds: tuple[float, float],
    settle_s: float,
    unit: str,
    *,
    whole: bool = True,
) -> Knob:
    low, high = bounds
    return Knob(
        about=about, kind=kind, maximum=high, minimum=low, name=name, settle_s=settle_s, step=1, unit=unit, whole=whole
    )


FLEET_KNOBS: Final = (
    _knob("agents", "the most agent processes at once", KnobKind.BLOCK, (1, 100), 1800, "agents"),
    _knob("ahead_s", "work known to come within this is counted", KnobKind.FIXED, (0, 3600), 600, "s", whole=False),
    _knob("batch", "attempts that are judged together", KnobKind.BLOCK, (1, 100), 1800, "attempts"),
    _knob("linger_s", "an agent without work ends after this", KnobKind.FIXED, (0, 86_400), 600, "s", whole=False),
    _knob("spare", "agents kept beyond those with work", KnobKind.FIXED, (0, 100), 600, "agents"),
)


def fleet_knobs(places: Mapping[str, tuple[Callable[[], float], Callable[[float], None]]]) -> list[LiveKnob]:
    """``places`` say by name how each is read and written."""
    return [LiveKnob(knob=knob, read=places[knob.name][0], write=places[knob.name][1]) for knob in FLEET_KNOBS]

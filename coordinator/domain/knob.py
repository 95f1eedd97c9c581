"""What may be changed while everything runs: a named number with its bounds, and who may move it how.

Owns one invariant: a value outside of a knob's bounds, or between its steps, is never set. Where a knob acts is told by who
owns the thing; nothing here acts.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, fields
from typing import Any


class ChangeAuthor(enum.StrEnum):
    """Who turned a knob."""

    BLOCK = "block"
    PERSON = "person"
    PROBE = "probe"
    SERVO = "servo"
    TYPED = "typed"


class ChangeVerdict(enum.StrEnum):
    """What became of a change."""

    ABORTED = "aborted"
    """Something else was changed meanwhile: nothing can be said of it. The value is the old one, unless a person set it."""
    DRY = "dry run"
    """It would have been made."""
    KEPT = "kept"
    REVERTED = "reverted"
    TRIED = "on trial"


class KnobKind(enum.StrEnum):
    """What decides over a knob, and how a change of it can be judged."""

    BLOCK = "block"
    """Alternating blocks of minutes; only large effects can be seen."""
    FIXED = "fixed"
    """A person only."""
    PROBE = "probe"
    """Short tests on delivered work, kept or taken back by the test itself."""
    SERVO = "servo"
    """A controller: cause and effect are quick, monotone and continuous."""
    TYPED = "typed"
    """Errors that say by their type what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """``settle_s``: how long after a change its effect can be seen. ``whole``: values are integers."""

    about: str
    kind: KnobKind
    maximum: float
    minimum: float
    name: str
    settle_s: float
    step: float
    unit: str = ""
    whole: bool = False

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def fault(self, value: float) -> str:
        """Why the knob cannot be set to ``value``; empty: it can."""
        if not math.isfinite(value) or not self.minimum <= value <= self.maximum:
            return f"{self.name} goes from {self.minimum:g} to {self.maximum:g}{self.unit and ' ' + self.unit}"
        if self.whole and value != round(value):
            return f"{self.name} is a whole number"
        return ""

    def nearest(self, value: float) -> float:
        """The allowed value next to ``value``: within the bounds and on a step counted from the lower one."""
        if math.isnan(value):
            return self.minimum
        kept = min(max(value, self.minimum), self.maximum)
        stepped = self.minimum + round((kept - self.minimum) / self.step) * self.step
        return min(max(float(round(stepped)) if self.whole else stepped, self.minimum), self.maximum)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobReading:
    """A knob as it stands. ``default`` is what it begins as: the settings' word, or the product's."""

    default: float
    knob: Knob
    value: float

    def to_json(self) -> dict[str, Any]:
        return {**self.knob.to_json(), "default": self.default, "value": self.value}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobChange:
    """One turn of a knob, as it is remembered. ``why`` is the evidence before it, ``trial`` how it is judged (empty: it is not)
    and ``outcome`` what the judgement rests on."""

    at: str
    author: ChangeAuthor
    knob: str
    new: float
    number: int
    old: float
    outcome: str = ""
    settled_at: str = ""
    trial: str = ""
    verdict: ChangeVerdict
    why: str

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

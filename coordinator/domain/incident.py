"""What went wrong for a while, as values: alarms of single metrics, and the incident that they are together.

Owns one invariant: an incident is its alarms; it begins with the first, and has ended when all of them have.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class AlarmLevel(enum.StrEnum):
    CRITICAL = "critical"
    WARNING = "warning"


class AlarmStep(enum.StrEnum):
    BEGAN = "began"
    ENDED = "ended"
    WORSENED = "worsened"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A step in the life of one metric's alarm. ``scope`` is the upstream whose own metric it is (empty: of all together),
    ``role`` whose calls it is from (empty: of several), ``size`` says in words how far it went."""

    at_s: float
    level: AlarmLevel
    metric: str
    role: str = ""
    scope: str = ""
    size: str
    step: AlarmStep

    @property
    def name(self) -> str:
        return f"{self.metric}@{self.scope}" if self.scope else self.metric


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRecord:
    """One metric in an incident; ``ended_s`` is None while it goes on."""

    began_s: float
    ended_s: float | None = None
    level: AlarmLevel
    metric: str
    role: str = ""
    scope: str = ""
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Times are monotonic seconds of the daemon that saw it. ``change``: what had been changed shortly before; empty: nothing."""

    alarms: tuple[AlarmRecord, ...]
    began_s: float
    cause: str
    change: str = ""
    ended_s: float | None = None
    level: AlarmLevel
    number: int

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{one.metric}@{one.scope}" if one.scope else one.metric for one in self.alarms)

    @property
    def size(self) -> str:
        """Of what was noticed first."""
        return self.alarms[0].size

    def to_json(self) -> Mapping[str, Any]:
        return {**asdict(self), "metrics": list(self.metrics), "size": self.size}

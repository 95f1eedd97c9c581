"""What of ended attempts is given up, by age and by size, the oldest first.

Owns one invariant: what an active task uses, and the newest that an unsettled one left, is never chosen; when that alone is
more than may be kept, the rest goes and that stays. A choice is a value; ``fleet.retention`` removes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HOME = 0
"""The generation of what belongs to all attempts of a task: its home, with the conversations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """One folder. ``active``: an attempt that may still use it is under way; ``newest``: no later one is there;
    ``settled``: only a person would start its task again."""

    active: bool
    age_s: float
    bytes: int
    generation: int
    newest: bool
    settled: bool
    task: str

    @property
    def protected(self) -> bool:
        return self.active or (self.newest and not self.settled)


def choose(remains: Iterable[Remains], *, longest_age_s: float | None, most_bytes: int | None) -> tuple[Remains, ...]:
    """What to remove, in this order: all that is older than it may be, then the oldest until no more than ``most_bytes``
    are left. None: no limit."""
    everything = sorted(remains, key=lambda one: (-one.age_s, one.task, one.generation))
    left = sum(one.bytes for one in everything)
    chosen = []
    for one in everything:
        too_old = longest_age_s is not None and one.age_s > longest_age_s
        too_much = most_bytes is not None and left > most_bytes
        if (too_old or too_much) and not one.protected:
            chosen.append(one)
            left -= one.bytes
    return tuple(chosen)

"""Which of several changes stacked upon each other breaks the gate, in as few runs of it as possible.

Owns one invariant: the culprit is the change between two neighbouring stacks of which the lower passed and the upper
failed, both really judged (the empty stack is the target itself, which counts as passing). It runs nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """The stack of the first ``good`` changes passed, that of the first ``bad`` failed; ``good < bad``."""

    bad: int
    good: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.good < self.bad:
            raise ValueError(f"nothing to bisect between {self.good} and {self.bad}")

    @property
    def probe(self) -> int | None:
        """How many changes to judge together next; None when the culprit is known."""
        return (self.good + self.bad) // 2 if self.bad - self.good > 1 else None

    @property
    def culprit(self) -> int | None:
        """The index (from 0) of the change that breaks the stack; None while it is not known."""
        return self.good if self.bad - self.good == 1 else None

    def told(self, count: int, *, passed: bool) -> Bisection:
        """The bisection after the stack of the first ``count`` changes was judged."""
        if not self.good < count < self.bad:
            raise ValueError(f"{count} was not asked for: between {self.good} and {self.bad}")
        return replace(self, good=count) if passed else replace(self, bad=count)

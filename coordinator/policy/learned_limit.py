"""What one refusal after the other teaches about an upstream: how many calls it holds, and how many a second it takes.

Owns one invariant: a limit is lowered by nothing but a concurrency refusal and never below one, a pace by nothing but a rate
refusal; both try upwards again by themselves. When to stop altogether is ``policy.upstream_limit``'s, which keeps one of
each. Time is counted in ticks, and comes in as an argument.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

UNLIMITED: Final = 1 << 30

FIRST_TRIAL_TICKS: Final = 60
LONGEST_TRIAL_TICKS: Final = 720
"""One call more is tried so long after a refusal, twice as long after each trial that was refused."""
NEXT_TRIAL_TICKS: Final = 4
"""After a trial that held: when there is more room again, there is usually more than one place."""
HOLDS_TICKS: Final = 2
"""A trial that was made use of this long without a refusal holds."""

CUT: Final = 0.85
CUT_TICKS: Final = 2
GROWTH: Final = 1.01
SEEN_TICKS: Final = 6
"""What was accepted is looked at over this many ticks: half a minute, longer than a call takes, shorter than a mood."""
SLOWEST_PER_S: Final = 1 / 60
FORGOTTEN: Final = 8.0
"""A pace that has grown by this factor since its last cut (17 minutes of 5-s ticks) is no more than a memory."""

_SHORTEST_TICKS: Final = 0.2
"""A rate is taken over this time at least."""


class LearnedLimit:
    """How many ``calls`` at once. A refusal sets it to what is held, with no cut beyond that; later one more is tried, ever
    more rarely while that is refused. It never passes ``most``."""

    __slots__ = ("_full_ticks", "_left_ticks", "_trial", "_wait_ticks", "calls", "most")

    def __init__(self, most: int) -> None:
        self.calls = most
        self._full_ticks = 0
        self._left_ticks = 0
        self.most = most
        self._trial = False
        self._wait_ticks = FIRST_TRIAL_TICKS

    def cap(self, most: int) -> None:
        """It is not to pass ``most`` from now on. What refusals taught stays known: only a limit that was at its cap rises."""
        if self.calls >= self.most:
            self.calls = most
        self.most = most
        self.calls = min(self.calls, most)

    def refused(self, held: int) -> None:
        """``held`` are under way beside the refused one."""
        if self._trial:
            self._wait_ticks *= 2
        self._wait_ticks = min(max(self._wait_ticks, FIRST_TRIAL_TICKS), LONGEST_TRIAL_TICKS)
        self._left_ticks = self._wait_ticks
        self._trial = False
        self.calls = min(self.calls, max(held, 1))

    def tick(self, peak: int) -> None:
        """``peak`` calls were under way at once since the last tick: only a limit that is met can be tried."""
        if self._trial:
            self._full_ticks = self._full_ticks + 1 if peak >= self.calls else 0
            if self._full_ticks >= HOLDS_TICKS:
                self._trial = False
                self._left_ticks = self._wait_ticks = NEXT_TRIAL_TICKS
        elif self._left_ticks > 0:
            self._left_ticks -= 1
        elif self.calls < min(self.most, peak + 1):
            self.calls += 1
            self._full_ticks = 0
            self._trial = True


class LearnedPace:
    """How many starts ``per_s`` (inf: not paced). A refusal cuts it below what was accepted; then it grows until the next
    one. It never passes ``fastest_per_s``."""

    __slots__ = (
        "_busy_since",
        "_counts",
        "_cut_per_s",
        "_cut_tick",
        "_fastest_per_s",
        "_now_count",
        "_tick_at",
        "_tick_s",
        "_ticks",
        "per_s",
    )

    def __init__(self, fastest_per_s: float, tick_s: float) -> None:
        self.per_s = fastest_per_s
        self._busy_since = -math.inf
        self._counts: deque[int] = deque([0], maxlen=SEEN_TICKS)
        self._cut_per_s = 0.0
        self._cut_tick = -CUT_TICKS
        self._fastest_per_s = fastest_per_s
        self._now_count = 0
        self._tick_at = -math.inf
        self._tick_s = tick_s
        self._ticks = 0

    def began(self, now: float) -> None:
        """A start counts as accepted until it is refused: answers take seconds, refusals do not."""
        if not self._now_count and not self._counts[-1]:
            self._busy_since = now
        self._now_count += 1

    def refused(self, now: float, *, cut: bool) -> None:
        """Cut once in ``CUT_TICKS``: what was sent before a cut says nothing of the pace after it. Not ``cut``: it was sent
        before a window or probed one, and says nothing of it either."""
        self._now_count -= 1
        if not cut or self._ticks - self._cut_tick < CUT_TICKS:
            return
        accepted = sum(self._counts) + self._now_count
        if accepted <= 0:  # nothing to go by
            return
        since = max(self._busy_since, self._tick_at - len(self._counts) * self._tick_s)
        rate = min(accepted / max(now - since, _SHORTEST_TICKS * self._tick_s), self.per_s)
        self._cut_tick = self._ticks
        self._cut_per_s = self.per_s = max(CUT * rate, min(SLOWEST_PER_S, self._fastest_per_s))

    def tick(self, now: float) -> None:
        self._ticks += 1
        self._tick_at = now
        self._counts.append(self._now_count)
        self._now_count = 0
        if self.per_s < self._fastest_per_s:
            self.per_s = min(self.per_s * GROWTH, self._fastest_per_s)
            if self.per_s > FORGOTTEN * self._cut_per_s:
                self.per_s = self._fastest_per_s

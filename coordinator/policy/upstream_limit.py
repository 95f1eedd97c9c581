"""When a call may go to an upstream: one view of what it takes, shared by the whole fleet.

Owns one invariant: one agent's refusal is everybody's. While a window is closed at most one call probes it, and after it
the fleet starts ever faster but never at once. A concurrency 429 sets the limit, a rate 429 the pace, a 5xx neither. Time
comes in as an argument (monotonic seconds); who waits, and in which order, is the stage's business, and whether the
upstream is well the breaker's.
"""

from __future__ import annotations

import enum
import math
import re
from typing import TYPE_CHECKING, Final

from coordinator.policy.learned_limit import UNLIMITED, LearnedLimit, LearnedPace
from coordinator.policy.limit_headers import is_quota_of_a_day, said_pause_s

if TYPE_CHECKING:
    from collections.abc import Mapping

GO: Final = 0.0
FULL: Final = math.inf
"""No time makes it better: a call must end, or somebody must resume it."""

EARLY: Final = 0.3
"""Share of a window after which its one probe may go: pauses that providers name are for the worst case."""
SHORTEST_PROBED_S: Final = 3.0
"""Shorter windows have no probe: their end comes before its answer."""
SHORTEST_WINDOW_S: Final = 0.1
LONGEST_WINDOW_S: Final = 300.0
"""A bucket that is refilled by the minute needs no longer pause. Who asks for more has no bucket but a usage limit."""
BLIND_WINDOW_S: Final = 1.0
LONGEST_BLIND_S: Final = 60.0
"""A window of which nobody says how long it is begins with the one and doubles up to the other, while nothing is accepted."""
BLIND_LIMIT_S: Final = 60.0
LONGEST_BLIND_LIMIT_S: Final = 600.0
"""The same for usage limits whose reset nobody names."""
LONGEST_LIMIT_S: Final = 6 * 3600.0
"""A usage limit is believed for this long, then asked about again: resets are known to be wrong, and an ask costs nothing."""

BLINK_S: Final = 1.0
"""In a window shorter than this nobody gathers who could storm out of it."""
RAMP_PER_S: Final = 2.0
RAMP_S: Final = 6.0
"""After a window starts begin at the one a second and double every second, for the other (then they are 128 a second)."""


class RefusalKind(enum.StrEnum):
    """What a 429 is about, and so what follows from it."""

    CONCURRENCY = "concurrency"
    RATE = "rate"
    USAGE = "usage"


# Anthropic: "Number of concurrent connections has exceeded your rate limit. …"; its other 429 are rate_limit_error just the
# same (cline/cline#4351). LiteLLM's proxy: "Max parallel request limit reached", header rate_limit_type (litellm#8392).
# vLLM's open proposal of a bounded queue would answer 429 "queue full" (vllm#49330); what it ships answers 503 (vllm#49445,
# #58192), which is no 429 and sets no limit. llama-server has an unbounded queue and refuses nobody (llama.cpp#5018).
_AT_ONCE: Final = re.compile(
    r"concurren|simultaneous|parallel[_ -]?request|too many (open |active )?connections|queue.{0,20}\bfull|full.{0,10}queue",
    re.IGNORECASE,
)
# OpenAI: insufficient_quota, "You exceeded your current quota, please check your plan and billing details", and no
# retry-after (langchainjs#1929); codex: usage_limit_reached; Anthropic: "workspace spend limit", "credit balance is too low";
# Google: "prepayment credits are depleted" (JeffOtano/roni#125).
_USED_UP: Final = re.compile(
    r"usage[_ -]?limit|\bquota\b|_quota\b|spend(ing)? (limit|cap)|credit balance|insufficient (funds|credit)"
    r"|credits are depleted",
    re.IGNORECASE,
)
# Google says "exceeded your current quota" of its limits by the minute as well, and names these or a pause; "Resource has been
# exhausted (e.g. check quota)" is what it says for a moment (gemini-cli#19976, OmniRoute#4810).
_SOON: Final = re.compile(r'"quotaId" ?: ?"[^"]{0,200}PerMinute|\bresource has been exhausted\b', re.IGNORECASE)
_REJECTED: Final = frozenset({"rate_limited", "rejected"})
_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")


def kind_of_429(headers: Mapping[str, str], message: str) -> RefusalKind:
    """What a 429 with these headers (names in small letters) and this message, or body, is about.

    The windows of 5 hours and 7 days of a subscription at Anthropic say ``anthropic-ratelimit-unified-status: rejected``,
    often with a ``retry-after`` of hours (CLIProxyAPI#3148, litellm#37767). Limits by the minute leave 0 in a header
    ``anthropic-ratelimit-*-remaining`` or ``x-ratelimit-remaining-*``, or name a pause of seconds. Google tells all of it in the
    body: which limit, and a pause that is not to be believed where the limit is the day's.
    """
    if _AT_ONCE.search(message) or "parallel" in headers.get("rate_limit_type", ""):
        return RefusalKind.CONCURRENCY
    said = headers.get("retry-after", "")
    pause_s = float(said) if _SECONDS.fullmatch(said) else said_pause_s(message)
    if headers.get("anthropic-ratelimit-unified-status", "") in _REJECTED or pause_s > LONGEST_WINDOW_S:
        return RefusalKind.USAGE
    if is_quota_of_a_day(message):
        return RefusalKind.USAGE
    by_the_minute = pause_s > 0 or _SOON.search(message) or any(map(_is_bare, headers.items()))
    if _USED_UP.search(message) and not by_the_minute:
        return RefusalKind.USAGE
    return RefusalKind.RATE


def _is_bare(header: tuple[str, str]) -> bool:
    name, value = header
    return value == "0" and "ratelimit" in name and "remaining" in name


class HeldBy(enum.Enum):
    """What holds a call back."""

    CLOSED = enum.auto()
    LIMIT = enum.auto()
    NOTHING = enum.auto()
    PACE = enum.auto()
    PAUSED = enum.auto()


class UpstreamLimit:
    """``in_flight`` calls are under way; none is started before ``closed_until`` (0: open). ``held_by`` is what the last
    ``may_start`` met.

    ``max_concurrency`` and ``requests_per_s`` are the settings' (0: not limited) and never exceeded. ``tick`` is to be called
    every ``tick_s``: 5 s, or 1 s for a quick server of one's own. ``began`` gives a call its turn, which its outcome hands
    back: so what was sent before a window closed does not open it.
    """

    __slots__ = (
        "_early_at",
        "_futile",
        "_limit",
        "_next_at",
        "_opened_at",
        "_pace",
        "_paid_until",
        "_paused",
        "_peak",
        "_ramping",
        "_reason",
        "_shut",
        "_shut_at",
        "_spaced",
        "_tick_s",
        "_turn",
        "closed_until",
        "held_by",
        "in_flight",
    )

    def __init__(self, *, max_concurrency: int = 0, requests_per_s: float = 0.0, tick_s: float = 5.0) -> None:
        self.closed_until = 0.0
        self.held_by = HeldBy.NOTHING
        self.in_flight = 0
        self._pace = LearnedPace(requests_per_s or math.inf, tick_s)
        self._paused = ""
        self._peak = 0
        self._limit = LearnedLimit(max_concurrency or UNLIMITED)
        self._tick_s = tick_s
        # the window: shut until somebody wants to start after its end, or its probe is accepted
        self._early_at = math.inf
        self._futile = 0
        self._reason = ""
        self._shut = False
        self._shut_at = -math.inf
        self._turn = 0
        # starts are spaced by virtual scheduling (GCRA, ITU-T I.371): those so far are paid for until ``_paid_until``
        self._next_at = -math.inf
        self._opened_at = math.inf
        self._paid_until = -math.inf
        self._ramping = False
        self._spaced = requests_per_s > 0

    @property
    def limit(self) -> int:
        """Calls at once; ``UNLIMITED`` while nothing is known."""
        return self._limit.calls

    @property
    def cap(self) -> int:
        """The most calls at once that it is allowed to hold; what it does hold may be less."""
        return self._limit.most

    def set_cap(self, calls: int) -> None:
        self._limit.cap(calls)

    @property
    def pace_per_s(self) -> float:
        """Starts a second; inf: they are not paced."""
        return self._pace.per_s

    def may_start(self, now: float) -> float:
        """``GO``; or for how many seconds not to ask again; or ``FULL``: not before a call ends or somebody resumes it.

        Whoever is told to go calls ``began`` before anybody else asks. ``ended``, ``tick`` and ``resume`` may have made it
        better before the time is over.
        """
        if self._paused:
            self.held_by = HeldBy.PAUSED
            return FULL
        if self.in_flight >= self._limit.calls:
            self.held_by = HeldBy.LIMIT
            return FULL
        if self._shut:
            if now < self.closed_until:
                if now >= self._early_at:
                    self.held_by = HeldBy.NOTHING
                    return GO
                self.held_by = HeldBy.CLOSED
                return min(self._early_at, self.closed_until) - now
            self._open(now)
        if now < self._next_at:
            self.held_by = HeldBy.PACE
            return self._next_at - now
        self.held_by = HeldBy.NOTHING
        return GO

    def began(self, now: float) -> int:
        """A call is sent; its turn."""
        self.in_flight += 1
        if self.in_flight > self._peak:
            self._peak = self.in_flight
        if self._shut:
            if now < self.closed_until:
                self._early_at = math.inf
                self._pace.began(now)
                return self._turn
            self._open(now)
        self._pace.began(now)
        if self._spaced:
            self._space(now)
        return self._turn

    def ended(self) -> None:
        """A call is over, however. Once for each that began; what it came to is told before."""
        self.in_flight -= 1

    def accepted(self, now: float, turn: int) -> bool:
        """Its answer began, with a status that is no refusal and no failure of the server's. True: a window opened before its
        time, and who waits may ask again."""
        if turn != self._turn:
            return False
        self._futile = 0
        if not self._shut:
            return False
        self._open(now)
        return True

    def concurrency_refused(self, now: float, in_flight: int, retry_after_s: float = 0.0) -> None:
        """``in_flight`` calls are held beside the refused one. When there are none, others use it up, and a pause is all that
        helps; otherwise the next end of a call makes room, whatever pause is asked for."""
        self._limit.refused(in_flight)
        if in_flight < 1:
            self._close(now, self._window(retry_after_s), "it holds no more calls, and none of them is ours")

    def rate_refused(self, now: float, retry_after_s: float = 0.0) -> None:
        """Too many in too short a time. A pause longer than ``LONGEST_WINDOW_S`` is a usage limit's."""
        if retry_after_s > LONGEST_WINDOW_S:
            self.usage_refused(now, retry_after_s)
            return
        self._pace.refused(now, cut=not self._shut or now >= self.closed_until)
        self._close(now, self._window(retry_after_s), "too many calls in a short time")

    def usage_refused(self, now: float, reset_s: float = 0.0) -> None:
        """What may be used is used up, for ``reset_s`` (0: nobody says). There is no early probe: this is no guess."""
        blind_s = min(BLIND_LIMIT_S * 2.0 ** min(self._futile, 10), LONGEST_BLIND_LIMIT_S)
        wait_s = min(reset_s, LONGEST_LIMIT_S) if reset_s > 0 else blind_s
        self._close(now, wait_s, "a usage limit is reached", early=False)

    def server_failed(self, now: float, retry_after_s: float = 0.0) -> None:
        """A 5xx, 529 included: neither limit nor pace change (rule 3). A pause that it asks for is kept."""
        if retry_after_s > 0:
            self._close(now, self._window(retry_after_s), "it is overloaded")

    def told(self, now: float, remaining: float, reset_s: float) -> None:
        """What the headers of an answer say is left of a limit, and in how many seconds it will be whole again. With nothing
        left, the next call would be refused."""
        if remaining <= 0 and reset_s > 0:
            self._close(now, min(reset_s, LONGEST_WINDOW_S), "its limit is used up for the moment")

    def tick(self, now: float) -> None:
        self._limit.tick(self._peak)
        self._peak = self.in_flight
        self._pace.tick(now)
        self._spaced = self._ramping or self._pace.per_s < math.inf

    def pause(self, reason: str) -> None:
        """An operator's word: nothing is started until ``resume``."""
        self._paused = reason or "by an operator"

    def resume(self, now: float) -> None:
        """Starts begin again, slowly at first, whatever closed it: who says this knows more."""
        self._paused = ""
        self._shut_at = -math.inf
        self._open(now)

    def why(self, now: float) -> str:
        """What holds calls back, for people; empty: nothing does."""
        if self._paused:
            return f"paused: {self._paused}"
        if self._shut and now < self.closed_until:
            return f"closed for another {self.closed_until - now:.0f} s: {self._reason}"
        if self.in_flight >= self._limit.calls:
            return f"{self.in_flight} calls are under way, and it takes {self._limit.calls}"
        if now < self._next_at:
            if self._ramping:
                return "starting up again after a pause"
            return f"paced to {self._pace.per_s:.3g} calls a second"
        return ""

    def _window(self, retry_after_s: float) -> float:
        """As long as it is told; but windows after which nothing was accepted grow, and so do those nobody gives a length."""
        blind_s = min(BLIND_WINDOW_S * 2.0 ** min(self._futile, 10), LONGEST_BLIND_S)
        wanted_s = retry_after_s if self._futile < 2 and retry_after_s > 0 else max(retry_after_s, blind_s)
        return min(max(wanted_s, SHORTEST_WINDOW_S), LONGEST_WINDOW_S)

    def _close(self, now: float, wait_s: float, reason: str, *, early: bool = True) -> None:
        """A new window, with a probe of its own; or the one there is gets longer, for what was sent before or probed it."""
        until = now + wait_s
        if self._shut and now < self.closed_until:
            if until > self.closed_until:
                self.closed_until, self._reason = until, reason
            if not early:
                self._early_at = math.inf
            return
        self.closed_until, self._reason = until, reason
        self._early_at = now + EARLY * wait_s if early and wait_s >= SHORTEST_PROBED_S else math.inf
        self._futile += 1
        self._shut = True
        self._shut_at = now
        self._turn += 1

    def _open(self, now: float) -> None:
        """The fleet ramps up from its first start on; after a blink, a pace is all it needs."""
        self._ramping = self._pace.per_s == math.inf or now - self._shut_at >= BLINK_S
        self._next_at = -math.inf
        self._opened_at = math.inf
        self._paid_until = now if self._ramping else now + self._tick_s
        self._shut = False
        self._spaced = True
        self.closed_until = 0.0

    def _space(self, now: float) -> None:
        """A call starts: when may the next? Idle time is saved up for one tick, but not over a window or a cut."""
        per_s, saved_s = self._pace.per_s, self._tick_s
        if self._ramping:
            self._opened_at = min(self._opened_at, now)
            since = now - self._opened_at
            if since < RAMP_S:
                per_s, saved_s = min(per_s, RAMP_PER_S * 2.0**since), 0.0
            else:
                self._ramping = False
                self._paid_until = now + saved_s
        self._paid_until = max(self._paid_until, now) + 1 / per_s
        self._next_at = self._paid_until - saved_s

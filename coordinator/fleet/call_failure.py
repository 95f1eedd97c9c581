"""What it amounts to that a model call failed for good: a named reason, a sentence, and when it is worth trying again.

Owns one invariant: what is wrong with the account, the provider or the conversation is never taken for the task's fault. The
words in it are those that codex, opencode, gemini and aider were seen to print. It is computed from values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Outcome, Reason
from coordinator.fleet.driver import Said

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST: Final = 600
"""Characters of a sentence about a failure."""
OURS: Final = "coordinator: "
"""How our gateway begins what it says by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailure:
    """``status`` is the HTTP status (0: none was told), ``kind`` the program's own word for it, ``again_s`` a pause that the
    provider asked for."""

    again_s: float = 0.0
    kind: str = ""
    message: str
    status: int = 0


def failure_in(message: str, *, status: int = 0, kind: str = "", again_s: float = 0.0) -> CallFailure:
    """With the status that the message itself names, when nothing else tells it."""
    named = _STATUS.search(message) if not status else None
    return CallFailure(again_s=again_s, kind=kind, message=message, status=int(named[1]) if named else status)


_STATUS: Final = re.compile(r"(?:status(?: code)?:? |error code: |\bHTTP )([45]\d\d)\b", re.IGNORECASE)

_CONTEXT: Final = re.compile(
    r"context[ _]?(window|length|overflow|limit)|ran out of room|prompt is too long|input token count|maximum context"
    r"|exceed_context_size|token limit|context_?overflow",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(
    r"rate[ _-]?limit|too many requests|quota|usage limit|credit balance|billing|resource[ _]exhausted|"
    r"insufficient (funds|credit)",
    re.IGNORECASE,
)
_SPENT: Final = re.compile(
    r"billing_error|insufficient_quota|BudgetExceeded|nothing is left of the budget", re.IGNORECASE
)
"""Of what our gateway says in the middle of a stream, where no status is told."""
_LOGIN: Final = re.compile(
    r"missing environment variable|(api key|credential)s?.{0,20}(missing|not found|not valid|not set|invalid|required)|"
    r"(invalid|incorrect|no|missing|specify the|set an?) (\w+_)?api[ _]?key|not logged in|unauthorized|unauthenticated|"
    r"authentication ?(error|fails|failed|required)|AuthenticationError|auth method|"
    r"environment variables?: ?(none|not set)|(_api_key|_API_KEY)\b.{0,60}(must|environment variable|not set)",
    re.IGNORECASE,
)
_MODEL: Final = re.compile(r"model.{0,80}(not found|does not exist|not supported)|no such model", re.IGNORECASE)
_AWAY: Final = re.compile(
    r"waiting for network|connection (error|failed|refused|reset)|ECONNREFUSED|ECONNRESET|ENOTFOUND|fetch failed|"
    r"unable to connect|stream disconnected|high demand|overloaded|timed? ?out|service ?unavailable|internal ?server ?error|"
    r"bad gateway|APIConnectionError|lookup address|socket (error|hang up|hung up)",
    re.IGNORECASE,
)
_ASKING: Final = frozenset({401, 402, 403, 429})
"""Statuses that are about who asks and how often, whatever the words."""
_FOR_NOW: Final = frozenset({408, 409, 425, 502, 503, 504, 529})


def said_of(failure: CallFailure, *, gateway: bool, remedy: str, now: float) -> Said:
    """``remedy`` names what a login is made of where the coordinator is started."""
    told = for_people(failure.message) or failure.kind or f"HTTP status {failure.status}"
    failed = Said(outcome=Outcome.FAILED, summary=told)
    words = f"{failure.kind} {failure.message}"
    ours, status = OURS in failure.message, failure.status
    if status == 403 and ours:  # its key is revoked: the attempt was over before
        return replace(failed, reason=Reason.UNAVAILABLE)
    if ours and (status == 402 or (not status and _SPENT.search(words))):
        return replace(failed, reason=Reason.OVER_BUDGET)
    if status not in _ASKING and (_CONTEXT.search(words) or status == 413):
        return replace(failed, reason=Reason.CONTEXT_OVERFLOW)
    if status in (402, 429) or (status not in _ASKING and _LIMIT.search(words)):
        return replace(failed, reason=Reason.RATE_LIMITED, retry_at=reset_at(failure, now))
    if status in _ASKING or (status < 500 and _LOGIN.search(words)):
        return login_missing(told, gateway=gateway, remedy=remedy)
    if status in _FOR_NOW or status >= 500 or (not status and not _MODEL.search(words) and _AWAY.search(words)):
        return replace(failed, reason=Reason.UNAVAILABLE)
    return replace(failed, reason=f"api {status}" if status else "model" if _MODEL.search(words) else "error")


def login_missing(told: str, *, gateway: bool, remedy: str) -> Said:
    """With what would help; the program's own advice is for somebody at a keyboard."""
    where = f"set {remedy} where the coordinator is started, and restart it"
    through = " (calls go through its gateway)" if gateway else ""
    summary = told if OURS in told else f"{told[: LONGEST - 200]}; {where}{through}"
    return Said(outcome=Outcome.FAILED, reason=Reason.LOGIN_MISSING, summary=summary[:LONGEST])


def is_known(words: str) -> bool:
    """Whether a complaint on its own tells that a call failed, not the work."""
    return any(kind.search(words) for kind in (_CONTEXT, _LIMIT, _LOGIN, _AWAY)) or bool(_STATUS.search(words))


def is_unwelcome(failure: CallFailure) -> bool:
    """Refused for who is asking: no repetition mends it."""
    return failure.status in (401, 403) or (not failure.status and bool(_LOGIN.search(failure.message)))


def for_people(said: str) -> str:
    """Its words as they are, but nothing that a terminal would obey."""
    return "".join(sign for sign in said[: 2 * LONGEST] if sign.isprintable() or sign == "\n").strip()[:LONGEST]


# -- when -----------------------------------------------------------------------------------------------------------

_SPAN: Final = re.compile(
    r"(?:again|retry|resets?|wait)(?: (?:again|after|in|for|your quota|will reset))*:? "
    r"((?:\d{1,7}(?:\.\d{1,6})? ?(?:ms|milliseconds?|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)(?![a-z])"
    r"[ ,]*(?:and )?)+)",
    re.IGNORECASE,
)
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(ms|mil|s|m|h|d)", re.IGNORECASE)
_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "mil": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCH: Final = re.compile(r"\b([1-9]\d{9})\b")
_CLOCK: Final = re.compile(
    r"again at (?:(?P<month>[A-Z][a-z]{2}) (?P<day>\d{1,2})(?:st|nd|rd|th)?,? (?P<year>\d{4}) )?"
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2}) (?P<half>[AP])M"
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LONGEST_LIMIT_S: Final = 32 * 86400.0
"""The longest limit is a month's; a larger number is another kind of number."""


def reset_at(failure: CallFailure, now: float) -> float:
    """The epoch second at which what ran out is there again, as far as it was told; 0: it was not."""
    if not now:
        return 0.0
    span_s = failure.again_s
    span = _SPAN.search(failure.message)
    if not span_s and span is not None:
        span_s = sum(float(piece[1]) * _UNITS[piece[2].lower()] for piece in _PIECE.finditer(span[1]))
    if span_s:
        return now + min(span_s, _LONGEST_LIMIT_S)
    named = _EPOCH.search(failure.message)
    told = float(named[1]) if named is not None else _by_clock(failure.message, now)
    return told if now < told < now + _LONGEST_LIMIT_S else 0.0


def _by_clock(message: str, now: float) -> float:
    """The time on a clock of this machine's zone, as codex names it; without a date it is the next one."""
    match = _CLOCK.search(message)
    if match is None:
        return 0.0
    here = datetime.fromtimestamp(now, tz=UTC).astimezone().replace(second=0, microsecond=0)
    hour = int(match["hour"]) % 12 + (12 if match["half"] == "P" else 0)
    try:
        then = here.replace(hour=hour, minute=int(match["minute"]))
        if match["month"]:
            month = _MONTHS.index(match["month"]) + 1
            then = then.replace(year=int(match["year"]), month=month, day=int(match["day"]))
        elif then <= here:
            then += timedelta(days=1)
        return then.timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0

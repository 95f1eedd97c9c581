"""What an upstream says of its limits: for how long to pause, and which of them is used up though the answer was good.

Owns one invariant: whatever stands in a header or a message, what comes out is a pause of zero seconds or more that somebody
named, and 0 where nobody did. Names of headers are in small letters; the time of day comes in as epoch seconds. What follows
from it is ``upstream_limit``'s.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_S: Final = 32 * 86_400.0
"""The longest limit is a month's; a larger number is another kind of number."""
_EPOCH_S: Final = 1_000_000_000.0
"""A larger number of seconds is a date."""
_EPOCH_MS: Final = 100_000_000_000.0

_NUMBER: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?")
_PIECE: Final = re.compile(
    r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(milliseconds?|ms|minutes?|mins?|seconds?|secs?|hours?|[dhms])"
)
_SPAN: Final = re.compile(rf"(?:{_PIECE.pattern},? ?)+", re.IGNORECASE)
_SAID: Final = re.compile(rf"\b(?:re)?try (?:again )?(?:in|after) ({_SPAN.pattern})(?![a-z])", re.IGNORECASE)
# google.rpc.RetryInfo is all that Google says of a pause, in no header: "26s", "45.837906927s" (dcdpr/jp#1061, RooCodeInc#3883).
_RETRY_INFO: Final = re.compile(r'"retryDelay" ?: ?"([0-9]{1,9}(?:\.[0-9]{1,9})?s)"')
# Google's own CLI gives up on these, whatever pause stands beside them: "36s" of a day's quota (googleQuotaErrors.ts).
_OF_A_DAY: Final = re.compile(r'"(?:quotaId|quota_limit)" ?: ?"[^"]{0,200}(?:PerDay|Daily)')
_UNITS: Final[Mapping[str, float]] = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def pause_s(headers: Mapping[str, str], message: str, epoch_s: float) -> float:
    """The pause that a refusal names, the most binding word first; 0: it names none.

    ``anthropic-ratelimit-unified-reset`` (epoch) where the windows of a subscription are used up; ``retry-after-ms`` (OpenAI,
    Azure); ``retry-after`` (seconds or a date); "try again in 120ms" (OpenAI's and Google's messages); Google's ``RetryInfo``;
    the reset of whatever limit has 0 left (Anthropic: RFC 3339, OpenAI: "6m0s"). ``message`` may be a whole body.
    """
    if headers.get("anthropic-ratelimit-unified-status", "") in ("rate_limited", "rejected"):
        unified = _time_s(headers.get("anthropic-ratelimit-unified-reset", ""), epoch_s)
        if unified > 0:
            return unified
    told = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(told):
        return _kept(float(told) / 1000.0)
    told = headers.get("retry-after", "").strip()
    if told:
        after = _kept(float(told)) if _NUMBER.fullmatch(told) else _date_s(told, epoch_s)
        if after > 0:
            return after
    return said_pause_s(message) or used_up_s(headers, epoch_s)


def said_pause_s(message: str) -> float:
    """The pause that a message names by itself; of a day's quota nobody knows when it is whole again."""
    if is_quota_of_a_day(message):
        return 0.0
    said = _SAID.search(message) or _RETRY_INFO.search(message)
    return _span_s(said[1]) if said is not None else 0.0


def is_quota_of_a_day(message: str) -> bool:
    """Whether it tells of a limit by the day, in Google's names of limits."""
    return _OF_A_DAY.search(message) is not None


def used_up_s(headers: Mapping[str, str], epoch_s: float) -> float:
    """In how many seconds the limits of which 0 is left are whole again, by the headers of any answer; 0: none is used up."""
    longest = 0.0
    for name, value in headers.items():
        if value == "0" and "ratelimit-" in name and "remaining" in name:
            longest = max(longest, _time_s(headers.get(name.replace("remaining", "reset"), ""), epoch_s))
    return longest


def _time_s(text: str, epoch_s: float) -> float:
    """Seconds from now: of a span, a number of seconds, an epoch (seconds or milliseconds) or a date."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= _EPOCH_MS:
            number /= 1000.0
        return _kept(number - epoch_s if number >= _EPOCH_S else number)
    return _span_s(text) if _SPAN.fullmatch(text) else _date_s(text, epoch_s)


def _span_s(text: str) -> float:
    pieces = _PIECE.findall(text.lower())
    return _kept(
        sum(float(number) * _UNITS["ms" if unit.startswith(("ms", "mil")) else unit[0]] for number, unit in pieces)
    )


def _date_s(text: str, epoch_s: float) -> float:
    """Of RFC 3339, as Anthropic writes it, or the date of HTTP."""
    try:
        date = datetime.fromisoformat(text) if text[:4].isdigit() else parsedate_to_datetime(text)
        return _kept((date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() - epoch_s)
    except (ValueError, OverflowError):
        return 0.0


def _kept(seconds: float) -> float:
    return seconds if 0.0 < seconds <= _LONGEST_S else 0.0

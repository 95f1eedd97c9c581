"""Whether a text is a schedule of five fields: minute, hour, day of month, month, day of week.

Owns one invariant: what passes here has a next time to fire. Working out that time is ``kit.schedule``'s.
"""

from __future__ import annotations

import re
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTH: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FIELDS: Final[tuple[tuple[str, int, int, tuple[str, ...]], ...]] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_PART: Final = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", re.ASCII)


def cron_fault(schedule: str) -> str:
    """Why ``schedule`` cannot be used; empty when it can. 0 and 7 are both Sunday, as cron has it."""
    fields = schedule.split()
    if len(fields) != len(_FIELDS):
        return f"has {len(fields)} fields"
    values: list[frozenset[int]] = []
    for text, (name, low, high, names) in zip(fields, _FIELDS, strict=True):
        chosen = _values(text.lower(), low, high, names)
        if not chosen:
            return f"{text[:30]!r} is no {name}"
        values.append(chosen)
    days, months = values[2], values[3]
    if fields[4] == "*" and all(min(days) > _LONGEST_MONTH[month - 1] for month in months):
        return "names a day that no such month has"
    return ""


def _values(text: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    """What one field stands for; empty when it cannot be understood."""
    chosen: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            return frozenset()
        first = low if match[1] is None else _value(match[1], low, names)
        last = high if match[1] is None else _value(match[2] or match[1], low, names)
        step = int(match[3] or 1)
        if match[3] and match[1] and not match[2]:
            last = high  # cron reads 5/15 as 5-59/15
        if first is None or last is None or not low <= first <= last <= high or not 1 <= step <= high:
            return frozenset()
        chosen.update(range(first, last + 1, step))
    return frozenset(chosen)


def _value(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text in names:
        return names.index(text) + low
    return int(text) if text.isdigit() and len(text) <= 4 else None

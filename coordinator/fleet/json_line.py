"""Reads lines of JSON that a program prints, and takes of each value what it should be.

Owns one invariant: whatever a line holds, nothing here fails, and what comes out is bounded and fit for one line of a screen
where it is meant for people.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

_LONGEST: Final = 160


def object_of(line: bytes) -> dict[str, Any] | None:
    """None: the line is no JSON object."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def tables(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """JSON can name halves of characters, which no file can hold."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15 or math.isnan(value):
        return 0.0
    return float(value)


def screen_line(said: str, longest: int = _LONGEST) -> str:
    """Without signs that a terminal would obey, and without line ends."""
    words = "".join(sign if sign.isprintable() else " " for sign in said[: 4 * longest]).split()
    return " ".join(words)[:longest]


def subject(given: dict[str, Any]) -> str:
    """What a call of a tool is about, as far as its input says it in one of the usual words."""
    names = (
        "command",
        "cmd",
        "file_path",
        "filePath",
        "absolute_path",
        "notebook_path",
        "path",
        "pattern",
        "description",
        "url",
        "query",
    )
    return next((text(given[name])[:_LONGEST] for name in names if isinstance(given.get(name), str)), "")


def digest(*parts: object) -> bytes:
    """Equal for equal values; empty for what cannot be compared."""
    try:
        content = json.dumps(parts, sort_keys=True)
    except (RecursionError, TypeError, ValueError):
        return b""
    return hashlib.blake2b(content.encode(), digest_size=16).digest()

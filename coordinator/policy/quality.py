"""How good an answer looks, from the outside alone: what a machine can tell of it for a hundred microseconds.

Owns one invariant: the estimate lies in 0 to 1, and a sign of a broken answer never raises it. It knows nothing of whether
the answer is right; it tells answers that ended as they should from those that broke off, loop or refuse, so that routers and
watchers have something to compare. A value in, a value out.
"""

from __future__ import annotations

import enum
import re
import zlib
from typing import Final

REFUSED: Final = 0.3
"""What is left of an answer that says it will not answer."""
CUT: Final = 0.6
"""What is left of an answer that came to its maximum of tokens before its end."""
UNSAID: Final = 0.9
"""What is left where nobody told how it ended."""
LOOPED: Final = 0.1
"""What is left of an answer that says the same thing over and over."""

_LOOK_CHARS: Final = 8192
"""Of the end of an answer, which is where loops are."""
_LEAST_BYTES: Final = 400
"""Shorter texts compress by how short they are, not by what they say."""
_PLAIN: Final = 0.12
_STUCK: Final = 0.04
"""Share of itself that a text compresses to (zlib, level 1): prose and code stay above 0.25, logs and tables above 0.18; one line
said ten times over comes to about ``_PLAIN``, fifty times to ``_STUCK``. Between the two the score falls in a straight line."""

_OPENING_CHARS: Final = 240
_REFUSAL: Final = re.compile(
    r"\b(?:I(?:'|’| a)m (?:sorry|afraid)[,.]? (?:but )?I ?(?:can(?:no|'|’)t|won(?:'|’)t|(?:'|’|am )(?:m )?(?:unable|not able))"
    r"|I ?(?:can(?:no|'|’)t|won(?:'|’)t|must decline to|(?:(?:'|’| ?a)m )(?:unable|not able) to) "
    r"(?:help|assist|comply|do that|provide|fulfil|answer|discuss|share)"
    r"|as an AI (?:language )?model\b)",
    re.IGNORECASE,
)
"""What refusals of the usual models begin with, in English. Where a protocol tells of a refusal, that counts instead."""


class Finish(enum.StrEnum):
    """How an answer ended, in no protocol's own words."""

    END = "end"
    LENGTH = "length"
    """At its maximum of tokens."""
    REFUSED = "refused"
    """The provider says that it, or its filter, did not want to."""
    UNKNOWN = "unknown"


def quality(text: str, *, finish: Finish, output_tokens: int, max_tokens: int) -> float:
    """0 (nothing, or nothing but noise) to 1 (no sign of anything wrong). ``max_tokens`` 0: there was no maximum.

    A product of what is left by each sign: how it ended (``CUT`` also when all of ``max_tokens`` was used and nobody told),
    whether it opens like a refusal, and how much of it is repetition, told by how far its end compresses.
    """
    if not text.strip():
        return 0.0
    score = 1.0
    if finish is Finish.LENGTH or (finish is Finish.UNKNOWN and 0 < max_tokens <= output_tokens):
        score *= CUT
    elif finish is Finish.UNKNOWN:
        score *= UNSAID
    if finish is Finish.REFUSED or _REFUSAL.search(text[:_OPENING_CHARS].lstrip()) is not None:
        score *= REFUSED
    return round(score * _freshness(text), 3)


def _freshness(text: str) -> float:
    """``LOOPED`` to 1."""
    data = text[-_LOOK_CHARS:].encode("utf-8", "surrogatepass")
    if len(data) < _LEAST_BYTES:
        return 1.0
    share = len(zlib.compress(data, 1)) / len(data)
    return min(1.0, max(LOOPED, LOOPED + (share - _STUCK) / (_PLAIN - _STUCK) * (1.0 - LOOPED)))

"""How hard a prompt looks, from its text alone, and which kind of model that asks for.

A score of 0 to 1 by five signs, with the weights and thresholds of the Rust seed; cheap enough for every prompt, and no more
than a first guess: what really came of it is the learned router's to weigh. Relayed calls name their model and are not
scored. A value in, a value out.
"""

from __future__ import annotations

import enum
import re
from typing import Final

LONG_WORDS: Final = 500
LONG: Final = 0.3
CODE: Final = 0.2
STEPS: Final = 0.2
VAGUE: Final = 0.15
EXPERT: Final = 0.15

LOCAL_BELOW: Final = 0.4
CLOUD_ABOVE: Final = 0.7

_FENCE: Final = re.compile(r"^\s*(```|~~~)", re.MULTILINE)
_NUMBERED: Final = re.compile(r"^\s*\d{1,2}[.)]\s+\S", re.MULTILINE)
_VAGUE: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bit depends\b|\bdepending on\b",
        r"\b(maybe|perhaps|possibly|probably)\b",
        r"\b(somehow|something|anything|whatever)\b",
        r"\b(best|better|optimal|ideal) (way|approach|option|practice)\b",
        r"\b(trade-?offs?|pros and cons|versus|vs\.?)\b",
        r"\b(why|how come)\b",
        r"\b(should|could|would) (i|we|it|you)\b",
    )
)
_EXPERT: Final = re.compile(
    r"\b(algorithm|architecture|asynchronous|atomic\w*|benchmark|compiler|complexity|concurren\w+|consensus|cryptograph\w+|"
    r"deadlock|distributed|invariant|kernel|latency|memory leak|migration|parser|protocol|race condition|refactor\w*|"
    r"security|transaction)s?\b",
    re.IGNORECASE,
)


class Tier(enum.StrEnum):
    """What kind of model a prompt is for. ``EITHER``: local first, cloud when that fails."""

    CLOUD = "cloud"
    EITHER = "either"
    LOCAL = "local"


def complexity(prompt: str) -> float:
    """0 (easy) to 1."""
    score = 0.0
    if len(prompt.split(maxsplit=LONG_WORDS)) > LONG_WORDS:
        score += LONG
    if _FENCE.search(prompt):
        score += CODE
    if len(_NUMBERED.findall(prompt)) >= 2:
        score += STEPS
    if sum(1 for pattern in _VAGUE if pattern.search(prompt)) >= 2:
        score += VAGUE
    if len({found.lower() for found in _EXPERT.findall(prompt)}) >= 2:
        score += EXPERT
    return min(1.0, round(score, 2))


def tier_of(score: float, *, local_below: float = LOCAL_BELOW, cloud_above: float = CLOUD_ABOVE) -> Tier:
    if score < local_below:
        return Tier.LOCAL
    return Tier.CLOUD if score > cloud_above else Tier.EITHER

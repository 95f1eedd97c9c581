"""How grave advisories are, by OSV's record of each: ``pip-audit`` leaves that out of its report.

Owns one invariant: a score that was told once is remembered, and one that nobody told is none; whoever has no way to the service
only knows less. It is asked about advisories that were found, a few at a time, and never about the project.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import UNREADABLE
from coordinator.checks.cvss_score import base_score
from coordinator.kit import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

_SERVICE: Final = "https://api.osv.dev/v1"
_KEPT: Final = "scores.json"
_LIMIT_S: Final = 10.0
"""For all questions of one scan; the next scan asks the rest."""
_ANSWER_BYTES: Final = 1024 * 1024
_WORDS: Final[Mapping[str, float]] = {"CRITICAL": 9.0, "HIGH": 7.0, "MODERATE": 4.0, "MEDIUM": 4.0, "LOW": 0.1}
"""GitHub's word for an advisory without a vector, as the lowest score that CVSS calls so."""


def service_of(arguments: Sequence[str]) -> str:
    """Of ``pip-audit``'s own arguments: the OSV service that it asks, or the public one."""
    for at, word in enumerate(arguments):
        url = word.removeprefix("--osv-url=") if word.startswith("--osv-url=") else ""
        if word == "--osv-url" and at + 1 < len(arguments):
            url = arguments[at + 1]
        if url:
            return url.removesuffix("/query")
    return _SERVICE


def scores_of(
    advisories: Iterable[Sequence[str]], service: str, cache: Path, clock: Callable[[], float] = time.monotonic
) -> dict[str, float]:
    """By the first name of each advisory, given with all its names: the highest score that the service tells."""
    known = {name: score for name, score in (lock.read_object(cache / _KEPT) or {}).items() if isinstance(score, float)}
    fresh, until = dict[str, float](), clock() + _LIMIT_S
    for names in advisories:
        if names[0] in known or names[0] in fresh or clock() > until:
            continue
        try:
            told = [_asked(service, name, until - clock()) for name in _by_worth(names)]
        except (urllib.error.URLError, TimeoutError, OSError):
            break  # the others would wait for nothing either
        score = max((one for one in told if one is not None), default=None)
        if score is not None:
            fresh[names[0]] = score
    if fresh:
        lock.write_atomic(cache / _KEPT, json.dumps(known | fresh).encode())
    return known | fresh


def _by_worth(names: Sequence[str]) -> Sequence[str]:
    """GitHub's record has a vector and a word; the others are copies of it, or of none."""
    return [name for name in names if name.startswith("GHSA-")][:1] or names[:1]


def _asked(service: str, name: str, limit_s: float) -> float | None:
    url = f"{service}/vulns/{urllib.parse.quote(name, safe='')}"
    if not url.startswith(("https://", "http://")):
        return None
    try:
        with urllib.request.urlopen(url, timeout=max(limit_s, 0.1)) as answer:
            return score_in(json.loads(answer.read(_ANSWER_BYTES)))
    except urllib.error.HTTPError:
        return None  # a service that does not know this one
    except UNREADABLE as error:
        if isinstance(error, OSError):
            raise
        return None


def score_in(record: Any) -> float | None:
    """Of one record of OSV's: its newest vector, else the word that its database has for it."""
    scores = [base_score(one["score"]) for one in record.get("severity") or () if isinstance(one.get("score"), str)]
    best = max((score for score in scores if score is not None), default=None)
    word = (record.get("database_specific") or {}).get("severity")
    return best if best is not None else _WORDS.get(word) if isinstance(word, str) else None

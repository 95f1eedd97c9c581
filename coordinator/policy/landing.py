"""What is written about a piece of work: its commit on the target, and what the next attempt is told of a refusal.

Owns one invariant: the trailers of a landed commit name exactly the task and attempt it came from, whatever an agent wrote
in its own messages; recovery believes these trailers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coordinator.domain.candidate import Candidate
    from coordinator.domain.check import Verdict

_MESSAGE_LIMIT: Final = 20_000
_NAMES_SHOWN: Final = 30
_OURS: Final = re.compile(r"^\s*Coordinator-\S*\s*[:=].*$", re.IGNORECASE | re.MULTILINE)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TRAILER_LIMIT: Final = 160


def commit_message(candidate: Candidate, *, untested: str = "") -> str:
    """The agent's own words, else the task's headline, and the trailers in a paragraph of their own.

    ``untested`` says which of the project's tests could not be run on it, and why.
    """
    text = candidate.message[:_MESSAGE_LIMIT].replace("\r\n", "\n")
    text = _OURS.sub("", _CONTROL.sub("", text)).strip()
    subject = text or _CONTROL.sub("", _OURS.sub("", candidate.task.headline)).strip() or candidate.task.id
    trailers = (
        f"Coordinator-Task: {candidate.task.id}\nCoordinator-Attempt: {candidate.task.id}/{candidate.generation}\n"
    )
    if untested:
        why = " ".join("".join(c if c.isprintable() else " " for c in untested).split())
        cut = why if len(why) <= _TRAILER_LIMIT else f"{why[: _TRAILER_LIMIT - 1]}…"
        trailers += f"Coordinator-Untested: {cut}\n"
    return f"{subject}\n\n{trailers}"


def feedback_of(verdict: Verdict) -> str:
    """What the gate said, for the next brief: the reason, the names, the last output."""
    parts = [f"Your last attempt did not pass the gate: {verdict.reason}."]
    for title, names in (
        ("New failures", verdict.new_failures),
        ("Tests that no longer run (removed, renamed or skipped)", verdict.lost_tests),
    ):
        if names:
            more = [f"- and {len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
            parts.append("\n".join([f"{title}:", *(f"- {name}" for name in names[:_NAMES_SHOWN]), *more]))
    if verdict.excerpt.strip():
        parts.append(f"Last output:\n\n{_indented(verdict.excerpt)}")
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    """As a Markdown code block that no output can break out of."""
    return "\n".join(f"    {_CONTROL.sub('', line)}" for line in text.rstrip().splitlines())

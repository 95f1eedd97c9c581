"""Dismissals that the settings hold: what a project has looked at and lives with, for now or for good.

Owns one invariant: what the settings dismissed is open again once they no longer say so or their day is over; what a person
dismissed by hand is never touched by them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.domain.finding import SEEN, FindingState
from coordinator.policy.change import path_matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from coordinator.domain.finding import Finding
    from coordinator.domain.settings import DismissedSettings
    from coordinator.policy.lifecycle import KnownFinding

BY_SETTINGS: Final = " (by the settings, [[discovery.dismissed]])"


def stand(known: Iterable[KnownFinding], dismissed: Sequence[DismissedSettings], today: str) -> Iterator[KnownFinding]:
    """What changes of ``known``; ``today`` is a date in ISO format."""
    in_force = [one for one in dismissed if not one.until or today <= one.until]
    for one in known:
        word = next((word for word in in_force if _fits(one.finding, word)), None)
        if one.state in SEEN and word is not None:
            yield replace(one, reason=word.reason + BY_SETTINGS, state=FindingState.DISMISSED, task="")
        elif one.state is FindingState.DISMISSED and one.reason.endswith(BY_SETTINGS) and word is None:
            yield replace(one, reason="", state=one.waiting)


def _fits(finding: Finding, word: DismissedSettings) -> bool:
    names = (finding.rule, *finding.advisories)
    return (
        (not word.tool or word.tool == finding.tool)
        and word.rule in names
        and (not word.path or path_matches(finding.place.path, word.path))
    )

"""Dismissals that the settings hold."""

from __future__ import annotations

import pytest

from coordinator.domain.finding import Finding, FindingState
from coordinator.domain.settings import DismissedSettings
from coordinator.policy.lifecycle import KnownFinding, dismiss
from coordinator.policy.standing import BY_SETTINGS, stand
from tests.policy.findings import finding

TODAY = "2026-12-01"
ONE = finding("tests/a.py", "B006", advisories=("PYSEC-1", "CVE-1"))


def known(one: Finding = ONE, state: FindingState = FindingState.QUEUED) -> list[KnownFinding]:
    return [KnownFinding(finding=one, state=state, task="t-1", returns=0)]


@pytest.mark.parametrize(
    ("word", "fits"),
    [
        ({"rule": "B006"}, True),
        ({"rule": "CVE-1"}, True),
        ({"rule": "B008"}, False),
        ({"rule": "B006", "tool": "ruff", "path": "tests/**"}, True),
        ({"rule": "B006", "tool": "mypy"}, False),
        ({"rule": "B006", "path": "src/*"}, False),
        ({"rule": "B006", "until": TODAY}, True),
        ({"rule": "B006", "until": "2026-11-30"}, False),
    ],
)
def test_what_the_settings_name_is_dismissed_for_as_long_as_they_say(word: dict[str, str], fits: bool) -> None:
    changed = list(stand(known(), [DismissedSettings(reason="known", **word)], TODAY))
    told = [(one.state, one.reason, one.task) for one in changed]
    assert told == ([(FindingState.DISMISSED, "known" + BY_SETTINGS, "")] if fits else [])


def test_it_is_open_again_when_they_no_longer_say_so() -> None:
    settings = [DismissedSettings(reason="known", rule="B006", until=TODAY)]
    (dismissed,) = stand(known(), settings, TODAY)
    assert list(stand([dismissed], settings, TODAY)) == []
    for word, day in (([], TODAY), (settings, "2026-12-02")):
        assert [(one.state, one.reason) for one in stand([dismissed], word, day)] == [(FindingState.OPEN, "")]


def test_a_persons_own_word_is_not_theirs() -> None:
    (mine,) = dismiss(known(), "it is meant so")
    assert list(stand([mine], [], TODAY)) == []
    assert list(stand(known(state=FindingState.FIXED), [DismissedSettings(reason="known", rule="B006")], TODAY)) == []

"""A finding that is told in other words is the one that was known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.finding import Finding, FindingState, Fix, Place, identified
from coordinator.policy.kinship import kindred
from coordinator.policy.lifecycle import KnownFinding, dismiss
from tests.policy.findings import World, finding, scanned

if TYPE_CHECKING:
    import random


def told(message: str, evidence: str, line: int, rule: str = "B006", path: str = "pkg/a.py") -> Finding:
    return finding(
        path, rule, line, message=message, evidence=evidence, fingerprint="", places=(Place(path=path, line=line),)
    )


def known(*findings: Finding, dismissed: bool = True) -> tuple[World, list[Finding]]:
    world, made = World(), list(identified(findings))
    world.look(scanned(*made))
    if dismissed:
        world.known |= {one.finding.fingerprint: one for one in dismiss(list(world.known.values()), "it is meant so")}
    return world, made


MEANT = told("Do not use mutable defaults", "def f(x=[]):", 10)


@pytest.mark.parametrize(
    "now",
    [
        told("Mutable default argument", "def f(x=[]):", 10),
        told("Mutable default argument", "def f(x=[]):", 31),
        told("Do not use mutable defaults", "def f(x: list = []):", 10),
    ],
    ids=["reworded", "reworded and shifted", "edited"],
)
def test_a_dismissal_survives(now: Finding) -> None:
    world, _ = known(MEANT)
    fold = world.look(scanned(*identified([now])))
    assert (fold.opened, fold.closed, fold.reopened) == (0, 0, 0)
    assert [(one.state, one.reason) for one in world.known.values()] == [(FindingState.DISMISSED, "it is meant so")]
    assert [one.finding.message for one in world.known.values()] == [now.message]


@pytest.mark.parametrize(
    "now",
    [
        told("Do not use mutable defaults", "def g(y=[]):", 40),
        told("Do not use mutable defaults", "def f(x=[]):", 10, path="pkg/b.py"),
        told("Do not use mutable defaults", "def f(x=[]):", 10, rule="B008"),
    ],
    ids=["elsewhere in the file", "another file", "another rule"],
)
def test_what_is_really_new_is_not_swallowed(now: Finding) -> None:
    world, _ = known(MEANT)
    fold = world.look(scanned(*identified([now])))
    assert (fold.opened, fold.closed) == (1, 0)


def test_what_went_long_ago_swallows_nothing() -> None:
    world, _ = known(MEANT)
    world.look(scanned())
    fold = world.look(scanned(*identified([told("Do not use mutable defaults", "def h(z=[]):", 10)])))
    assert fold.opened == 1
    again = world.look(scanned(*identified([MEANT])))
    assert (again.opened, again.reopened) == (0, 0), "the very same is still dismissed"


def advisory(*names: str, package: str = "flask") -> Finding:
    return finding(
        "requirements.txt",
        names[0],
        1,
        about=f"{package}|{names[0]}",
        advisories=names,
        fingerprint="",
        fix=Fix.VERSION,
        message=f"{package} 1.0 has a known vulnerability, {names[0]}",
        package=package,
        tool="ruff",
    )


def test_an_advisory_that_gets_other_names_stays_what_it_is() -> None:
    world, _ = known(advisory("GHSA-1"))
    for names in (("CVE-1", "GHSA-1"), ("PYSEC-1", "CVE-1", "GHSA-1"), ("PYSEC-1", "CVE-1")):
        fold = world.look(scanned(*identified([advisory(*names)])))
        assert (fold.opened, fold.closed) == (0, 0), names
    assert [one.state for one in world.known.values()] == [FindingState.DISMISSED]
    assert world.look(scanned(*identified([advisory("CVE-1", package="werkzeug")]))).opened == 1


def test_its_task_goes_along() -> None:
    world, (one,) = known(MEANT, dismissed=False)
    world.known = {one.fingerprint: KnownFinding(finding=one, first_seen="then", state=FindingState.QUEUED, task="t-1")}
    world.look(scanned(*identified([told("Mutable default argument", "def f(x=[]):", 10)])))
    assert [(row.state, row.task, row.first_seen) for row in world.known.values()] == [
        (FindingState.QUEUED, "t-1", "then")
    ]


some = st.builds(
    told,
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["x", "y", ""]),
    st.integers(1, 4),
    st.sampled_from(["B006", "B008"]),
    st.sampled_from(["pkg/a.py", "pkg/b.py"]),
)


@given(st.lists(some, max_size=8), st.lists(some, max_size=8), st.randoms(use_true_random=False))
def test_pairs_are_one_to_one_and_whatever_the_order(
    gone: list[Finding], new: list[Finding], chance: random.Random
) -> None:
    old, fresh = list(identified(gone)), list(identified(new))
    pairs = kindred(old, fresh)
    assert len(set(pairs.values())) == len(pairs)
    was, now = {one.fingerprint: one for one in old}, {one.fingerprint: one for one in fresh}
    for to, of in pairs.items():
        assert (was[of].rule, was[of].place.path) == (now[to].rule, now[to].place.path)
        assert was[of].evidence == now[to].evidence or was[of].place.line == now[to].place.line
    chance.shuffle(old)
    chance.shuffle(fresh)
    assert kindred(old, fresh) == pairs
    assert kindred([replace(one, tool="other") for one in old], fresh) == {}

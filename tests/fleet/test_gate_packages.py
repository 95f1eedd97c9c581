"""A change of requirements is tested with what it asks for, or it is said that it is not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.check import Verdict, VerdictKind
from coordinator.domain.settings import GateSettings, Settings
from coordinator.domain.task import Task
from coordinator.fleet.gate import Gate
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.git import Git
from coordinator.kit.store import Store
from tests.checks.wheels import make_environment, make_wheel
from tests.conftest import git
from tests.fleet.candidates import work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coordinator.sdk.layout import Layout

USES = "from bridge import cross\n\n\ndef test_cross():\n    assert cross() == 1\n"
SOUND, BROKEN = "def walk():\n    return 1\n", "def stride():\n    return 1\n"


class Shop:
    """A project with two pins, ``bridge``, which needs something of ``tower``, and ``tower``, both installed as pinned."""

    def __init__(self, repository: Path, layout: Layout, store: Store, wheels: Path) -> None:
        self.repository, self.layout, self.store, self.wheels = repository, layout, store, wheels
        tower = make_wheel(wheels, "tower", "1.0", SOUND)
        make_wheel(wheels, "tower", "2.0", BROKEN)
        make_wheel(wheels, "tower", "1.1", SOUND)
        bridge = make_wheel(
            wheels, "bridge", "1.0", "from tower import walk\n\n\ndef cross():\n    return walk()\n", "tower<3"
        )
        make_wheel(wheels, "tower", "3.0", SOUND)
        pins = "bridge==1.0\ntower==1.0\n"
        files = {"requirements.txt": pins, "tests/test_cross.py": USES, "tests/test_price.py": None}
        self.head = work(repository, git(repository, "rev-parse", "HEAD"), files)
        self.python = make_environment(layout.repository.parent / "environment", tower, bridge)

    async def move(self, version: str, head: str = "", **gate: Any) -> Verdict:
        usual = GateSettings(
            env=("PIP_FIND_LINKS", "PIP_NO_INDEX", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"),
            memory_bytes=0,
            python=str(self.python),
            timeout_s=60.0,
        )
        settings, clock = Settings(gate=replace(usual, **gate)), SystemClock()
        repository = self.repository
        one = Gate(Git(repository, repository / ".git"), settings, self.layout, self.store, clock, Bus(clock))
        merged = work(repository, head or self.head, {"requirements.txt": f"bridge==1.0\ntower=={version}\n"})
        return await one.judge(head or self.head, merged, [Task(id="move", prompt="p", role="upgrade")])


@pytest.fixture
def shop(repository: Path, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    store = Store.open(layout.ledger)
    yield Shop(repository, layout, store, tmp_path / "wheels")
    store.close()


async def test_the_tests_meet_the_version_that_a_pin_moved_to(shop: Shop) -> None:
    good = await shop.move("1.1")
    assert (good.kind, good.untested) == (VerdictKind.PASSED, ""), good
    bad = await shop.move("2.0")
    assert bad.kind is VerdictKind.FAILED
    assert "cannot import name 'walk' from 'tower'" in bad.excerpt
    assert not list((shop.layout.state / "gate").iterdir())


async def test_what_cannot_be_installed_together_does_not_land(shop: Shop) -> None:
    verdict = await shop.move("3.0")
    assert verdict.kind is VerdictKind.FAILED
    assert "what is asked for now cannot be installed together" in verdict.reason
    assert "conflicting dependencies" in verdict.reason + verdict.excerpt


async def test_where_nothing_can_be_installed_it_waits(shop: Shop) -> None:
    shutil.rmtree(shop.wheels)
    verdict = await shop.move("1.1")
    assert (verdict.kind, verdict.broken_tasks) == (VerdictKind.BROKEN, ("move",))
    assert "what was moved could not be tested" in verdict.reason
    assert 'untested = "land"' in verdict.reason
    landed = await shop.move("1.1", untested="land")
    assert landed.kind is VerdictKind.PASSED
    assert "could not be tested" in landed.untested


async def test_without_any_test_it_waits(shop: Shop) -> None:
    bare = work(shop.repository, shop.head, {"tests/test_cross.py": None})
    verdict = await shop.move("1.1", bare)
    assert (verdict.kind, verdict.broken_tasks) == (VerdictKind.BROKEN, ("move",))
    assert "the project has none that could show" in verdict.reason
    landed = await shop.move("1.1", bare, untested="land")
    assert (landed.kind, "none that could show" in landed.untested) == (VerdictKind.PASSED, True)
    assert (await shop.move("3.0", bare, untested="land")).kind is VerdictKind.FAILED

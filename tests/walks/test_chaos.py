"""A minute of ``scripts/chaos``, and proof that its checks would see what they look for."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scripts import chaos_checks, chaos_harm
from scripts.chaos_fleet import PROVIDER_KEY, ChaosFleet
from tests.house.source import TOP
from tests.standin.upstream import PromptedUpstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECONDS = 60.0
_SETTLE_S = 180.0
_SEED = 3

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosFleet]:
    """A fleet after a minute of torment, come to rest."""
    place = tmp_path_factory.mktemp("chaos") / "disk"
    place.mkdir()
    without_disk = chaos_harm.mount_disk(place)
    try:
        with PromptedUpstream() as upstream:
            fleet = ChaosFleet(place, random.Random(_SEED), upstream, agents=6)
            try:
                fleet.harmed = chaos_harm.torment(fleet, random.Random(_SEED), _SECONDS, disk=not without_disk)
                fleet.code = fleet.settle(_SETTLE_S)
                yield fleet
            finally:
                fleet.kill_daemon()
    finally:
        chaos_harm.remove_disk(place)


def test_the_invariants_hold(fleet: ChaosFleet) -> None:
    assert fleet.code in (0, 1), "it did not come to rest"
    assert fleet.harmed["daemon killed"] > 0
    assert fleet.harmed["agent killed"] > 0
    looked = list(chaos_checks.look(fleet))
    assert {name: wrong for name, wrong, _ in looked if wrong} == {}, f"seed {_SEED}, {fleet.log}"
    assert [name for name, _, what in looked if what.startswith("0 ")] == [], "a check that had nothing to look at"
    assert len(fleet.dropped) > 12


def _wrong(fleet: ChaosFleet, name: str) -> list[str]:
    return list(chaos_checks.CHECKS[next(each for each in chaos_checks.CHECKS if each.startswith(name))](fleet))


def test_each_check_sees_what_it_is_for(fleet: ChaosFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong thing for each, made by hand, after the run was found good."""
    monkeypatch.setattr(chaos_checks, "_GONE_S", 0.1)
    ((task, generation),) = fleet.rows("SELECT task, generation FROM attempts WHERE ending = 'landed' LIMIT 1")
    home, folder = fleet.layout.home(task), fleet.layout.attempt(task, generation)

    (home / "two-at-once").write_text("here\n")
    assert "two agents" in _wrong(fleet, "I1")[0]
    fleet.dropped["ghost"] = "work"
    assert _wrong(fleet, "I2") == ["ghost is lost"]
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "COORDINATOR_ATTEMPT": str(folder)}) as left:
        assert f"pid {left.pid} still runs" in _wrong(fleet, "I3")[0]
        left.kill()
    assert any(
        _is_missed(fleet, *one) for one in fleet.rows("SELECT task, generation FROM attempts WHERE ending = 'landed'")
    )
    (folder / "agent.log").write_text(PROVIDER_KEY)
    assert "agent.log" in _wrong(fleet, "I8")[0]
    (fleet.top / "calc.py").write_text("def double(number):\n    return number\n")
    assert "touched" in _wrong(fleet, "and")[0]
    fleet.git("add", "calc.py")
    tree = fleet.git("write-tree")
    fleet.git(
        "update-ref", chaos_checks.TARGET_REF, fleet.git("commit-tree", tree, "-p", chaos_checks.TARGET, "-m", "x")
    )
    assert "its tests fail" in _wrong(fleet, "I5")[0]
    with sqlite3.connect(fleet.layout.ledger) as ledger:
        ledger.execute("UPDATE attempts SET cost_usd = 9 WHERE task = ?", (task,))
    ledger.close()
    assert "9.0000 USD" in _wrong(fleet, "I6")[0]
    fleet.log.write_text("Traceback (most recent call last):\n")
    assert "traceback" in _wrong(fleet, "I7")[-1]


def _is_missed(fleet: ChaosFleet, task: str, generation: int) -> bool:
    """Whether what an attempt wrote is missed once its refs are gone; one that was killed early has written nothing."""
    refs = fleet.git(
        "for-each-ref", "--format=%(refname)", f"refs/coordinator/rescue/{task}/{generation}*"
    ).splitlines()
    for ref in refs:
        fleet.git("update-ref", "-d", ref)
    return any(f"{task}/{generation}" in sentence for sentence in _wrong(fleet, "I4"))


def test_the_script_prints_its_seed_and_what_it_found(tmp_path: Path) -> None:
    env = {**os.environ, "COORDINATOR_BENCH_PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    argv = [sys.executable, TOP / "scripts" / "chaos", "--seconds", "2", "--seed", "7", "--agents", "2"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--seed 7" in done.stdout
    assert all(f"✓ {name}" in done.stdout for name in chaos_checks.CHECKS)
    assert "seed 7: held" in done.stdout
    assert list(tmp_path.iterdir()) == []

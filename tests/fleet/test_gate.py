from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import sys
import venv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.checks import detect
from coordinator.checks.detect import GatePlan
from coordinator.checks.pytest import PytestCheck
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus, Verdict, VerdictKind
from coordinator.domain.event import GateJudged
from coordinator.domain.settings import GateSettings, Settings
from coordinator.domain.task import Task
from coordinator.fleet import baselines
from coordinator.fleet.gate import Gate
from coordinator.fleet.workspace import remove_tree
from coordinator.kit import process
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.git import Git
from coordinator.kit.store import Store
from tests.conftest import git
from tests.fleet.candidates import work
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coordinator.domain.event import Published
    from coordinator.sdk.layout import Layout

DEFAULTS: dict[str, Any] = {"env": ("PYTEST_DISABLE_PLUGIN_AUTOLOAD",), "memory_bytes": 0, "timeout_s": 60.0}
PRICE = "def gross(net: float, tax: float = 0.19) -> float:\n    return {}\n"


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    opened = Store.open(layout.ledger)
    yield opened
    opened.close()


@pytest.fixture
def events() -> list[Published]:
    return []


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's pytest needs none of the plug-ins that this suite has installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def make(repository: Path, layout: Layout, store: Store, events: list[Published]) -> Callable[..., Gate]:
    def make(**gate: object) -> Gate:
        settings = Settings(gate=replace(GateSettings(**DEFAULTS), **gate))  # type: ignore[arg-type]
        clock = SystemClock()
        bus = Bus(clock)
        bus.tap(events.append)
        return Gate(Git(repository, repository / ".git"), settings, layout, store, clock, bus)

    return make


@pytest.fixture
def head(repository: Path) -> str:
    return git(repository, "rev-parse", "HEAD")


def task(*accept: str, id: str = "one", role: str = "") -> Task:  # noqa: A002
    return Task(id=id, prompt="p", accept=accept, role=role)


async def judge(gate: Gate, repository: Path, head: str, files: dict[str, str | None], *accept: str) -> Verdict:
    return await gate.judge(head, work(repository, head, files), [task(*accept)])


async def test_the_projects_tests_decide(
    make: Callable[..., Gate], repository: Path, head: str, layout: Layout
) -> None:
    gate = make(python=sys.executable)
    good = await judge(gate, repository, head, {"shop/price.py": PRICE.format("round(net + net * tax, 2)")})
    assert good.kind is VerdictKind.PASSED, good
    bad = await judge(gate, repository, head, {"shop/price.py": PRICE.format("net")})
    assert bad.kind is VerdictKind.FAILED
    assert bad.new_failures == ("tests/test_price.py::test_gross",)
    assert "assert" in bad.excerpt
    assert not list((layout.state / "gate").iterdir())


async def test_what_a_change_may_not_do(make: Callable[..., Gate], repository: Path, head: str) -> None:
    gate = make(python=sys.executable)
    skipped = (
        "import pytest\nfrom shop.price import gross\n\n\n@pytest.mark.skip\ndef test_gross():\n    assert gross(1)\n"
    )
    verdict = await judge(gate, repository, head, {"tests/test_price.py": skipped})
    assert verdict.kind is VerdictKind.FAILED
    assert set(verdict.lost_tests) == {"tests/test_price.py::test_gross", "tests/test_price.py::test_no_tax"}
    verdict = await judge(gate, repository, head, {"conftest.py": "import nowhere\n"})
    assert verdict.kind is VerdictKind.FAILED
    assert "pytest" in verdict.new_failures
    verdict = await judge(gate, repository, head, {"shop/new.py": "import os\n"})
    assert verdict.new_failures == ("shop/new.py: F401 `os` imported but unused",)


async def test_a_moved_test_is_not_a_lost_one(make: Callable[..., Gate], repository: Path, head: str) -> None:
    text = (repository / "tests" / "test_price.py").read_text()
    files = {"tests/test_price.py": None, "tests/unit/test_gross.py": text}
    verdict = await judge(make(python=sys.executable), repository, head, files)
    assert verdict.kind is VerdictKind.PASSED, verdict


async def test_accept_commands_run_on_the_merged_tree(make: Callable[..., Gate], repository: Path, head: str) -> None:
    gate = make(commands=("true",))
    files: dict[str, str | None] = {"new.txt": "x\n"}
    assert (await judge(gate, repository, head, files, "test -f new.txt")).kind is VerdictKind.PASSED
    failed = await judge(gate, repository, head, files, "test -f new.txt", "echo nope; test -f other.txt")
    assert failed.kind is VerdictKind.FAILED
    assert failed.new_failures == ("echo nope; test -f other.txt",)
    assert failed.excerpt == "nope\n"
    broken = await judge(gate, repository, head, files, "no-such-tool")
    assert (broken.kind, broken.broken_tasks) == (VerdictKind.BROKEN, ("one",))
    missing = await judge(gate, repository, head, files, "./promised-script")
    assert missing.kind is VerdictKind.FAILED


async def test_it_can_be_asked_what_it_is_at(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    gate, go = make(commands=("true",)), tmp_path / "go"
    command = f"until [ -e {go} ]; do sleep 0.05; done"
    judging = asyncio.create_task(judge(gate, repository, head, {"new.txt": "x\n"}, command))
    try:
        await asyncio.to_thread(wait_until, lambda: gate.running and gate.running[0] == command)
    finally:
        go.touch()
    assert (await judging).kind is VerdictKind.PASSED
    assert gate.running is None


async def test_an_endless_accept_command_is_the_tasks_doing_only_if_the_target_is_quick(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    gate = make(commands=("true",), timeout_s=0.5)
    files: dict[str, str | None] = {"slow": "x\n"}
    assert (await judge(gate, repository, head, files, "test ! -f slow || sleep 60")).kind is VerdictKind.FAILED
    assert (await judge(gate, repository, head, files, "sleep 60")).kind is VerdictKind.BROKEN


async def test_a_command_that_cannot_run_is_broken_and_nobody_is_charged(
    make: Callable[..., Gate], repository: Path, head: str, events: list[Published]
) -> None:
    verdict = await judge(make(commands=("no-such-tool --check",)), repository, head, {"a": "b\n"})
    assert verdict.kind is VerdictKind.BROKEN
    assert verdict.broken_check == "no-such-tool --check"
    assert verdict.broken_tasks == ()
    assert "not found" in verdict.reason
    (published,) = events
    assert isinstance(published.event, GateJudged)
    assert published.event.verdict == "broken"
    assert published.event.tasks == ("one",)


async def test_trouble_of_our_own_is_broken_not_raised(
    make: Callable[..., Gate], repository: Path, head: str, layout: Layout
) -> None:
    (layout.state / "gate").write_text("in the way")
    verdict = await judge(make(commands=("true",)), repository, head, {"a": "b\n"})
    assert (verdict.kind, verdict.broken_check) == (VerdictKind.BROKEN, "gate")
    (layout.state / "gate").unlink()
    verdict = await make(commands=("true",)).judge(head, "0" * 40, [task()])
    assert verdict.kind is VerdictKind.BROKEN


async def test_the_target_is_looked_at_once_and_what_passed_is_the_next_target(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    gate = make(commands=(f"echo run >> {runs}",))
    first = work(repository, head, {"a": "1\n"})
    assert (await gate.judge(head, first, [task()])).kind is VerdictKind.PASSED
    assert runs.read_text().count("run") == 2
    assert (await gate.judge(first, work(repository, first, {"b": "1\n"}), [task()])).kind is VerdictKind.PASSED
    assert runs.read_text().count("run") == 3
    again = make(commands=(f"echo run >> {runs}",))  # a restarted daemon remembers
    assert (await again.judge(first, work(repository, first, {"c": "1\n"}), [task()])).kind is VerdictKind.PASSED
    assert runs.read_text().count("run") == 4


async def test_a_failure_that_does_not_come_back_is_a_note(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    flaky = f"test ! -f new.txt || test -f {once} || {{ touch {once}; exit 1; }}"
    verdict = await judge(make(commands=(flaky,)), repository, head, {"new.txt": "x\n"})
    assert verdict.kind is VerdictKind.PASSED
    assert "flaky" in verdict.notes[0]


async def test_an_unchanged_target_that_fails_now_excuses_nothing_until_it_is_sure(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something outside of the code broke: for a moment (a full disk), or for good (a date, a package)."""
    weather = tmp_path / "fine-weather"
    weather.touch()
    gate = make(commands=(f"test -f {weather} && test ! -f bad",))
    assert (await judge(gate, repository, head, {"a": "1\n"})).kind is VerdictKind.PASSED
    weather.unlink()
    verdict = await judge(gate, repository, head, {"bad": "1\n"})
    assert verdict.kind is VerdictKind.BROKEN
    assert "passed before and fails now" in verdict.reason
    weather.touch()
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED, (
        "the bad moment is forgotten"
    )
    weather.unlink()
    assert (await judge(gate, repository, head, {"a": "2\n"})).kind is VerdictKind.BROKEN
    monkeypatch.setattr(baselines, "SURE_S", 0.0)
    verdict = await judge(gate, repository, head, {"a": "2\n"})
    assert verdict.kind is VerdictKind.PASSED
    assert "on the target as well" in verdict.notes[0]


def by_turns(tmp_path: Path, *turns: str, then: str) -> str:
    """A command that does something else each time: ``turns`` one after the other, from then on ``then``."""
    count = tmp_path / "turns"
    cases = "".join(f"{number}) {turn};; " for number, turn in enumerate(turns, 1))
    return f"n=$(cat {count} 2>/dev/null); n=$((n + 1)); echo $n > {count}; case $n in {cases}*) {then};; esac"


@pytest.mark.parametrize("second", ["kill -9 $$", "no-such-tool"])
async def test_what_failed_once_on_the_target_and_then_could_not_run_excuses_nothing(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path, second: str
) -> None:
    command = by_turns(tmp_path, "exit 1", second, then="test ! -f bad")
    gate = make(commands=(command,))
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.BROKEN
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED


async def test_a_change_that_failed_once_and_then_could_not_be_looked_at_is_not_charged(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    command = by_turns(tmp_path, "true", "exit 1", "kill -9 $$", then="true")
    gate = make(commands=(command,))
    assert (await judge(gate, repository, head, {"a": "1\n"})).kind is VerdictKind.BROKEN
    assert (await judge(gate, repository, head, {"a": "1\n"})).kind is VerdictKind.PASSED


async def test_something_that_was_killed_in_a_command_excuses_nothing_and_is_charged_when_only_a_change_does_it(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    """A command that ends with 137 says that something in it was killed, for want of memory or for taking too long."""
    killed = "sh -c 'kill -9 $$'; exit $?"
    gate = make(commands=(by_turns(tmp_path, killed, then=f"test ! -f bad || {{ {killed}; }}"),))
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.BROKEN
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED


RANDOM_IDS = """import uuid, pytest
from shop.price import gross


@pytest.mark.parametrize('net', [100], ids=[uuid.uuid4().hex])
def test_gross(net):
    assert gross(net) == 119
"""


async def test_a_test_whose_parameters_have_random_ids_is_no_flaky_one(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    base = work(repository, head, {"tests/test_price.py": RANDOM_IDS})
    gate = make(python=sys.executable)
    bad: dict[str, str | None] = {"shop/price.py": PRICE.format("net")}
    assert (await judge(gate, repository, base, bad)).kind is VerdictKind.FAILED
    assert (await judge(gate, repository, base, {"a.txt": "1\n"})).kind is VerdictKind.PASSED
    assert (await judge(gate, repository, base, bad)).kind is VerdictKind.FAILED, "nor does it hold up the line"
    red = work(repository, base, bad)
    assert (await judge(gate, repository, red, {"a.txt": "1\n"})).kind is VerdictKind.PASSED, "nor is it charged"


async def test_a_first_look_at_a_bad_moment_excuses_nothing(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    weather = tmp_path / "fine-weather"
    command = f"test -f {weather} && test ! -f bad"
    verdict = await judge(make(commands=(command,)), repository, head, {"bad": "1\n"})
    assert (verdict.kind, verdict.broken_tasks) == (VerdictKind.BROKEN, ())
    assert "looked at again every 30 s ([gate] retry_s)" in verdict.reason
    weather.touch()
    assert (await judge(make(commands=(command,)), repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED


async def test_what_the_target_failed_at_on_a_bad_day_excuses_nothing_when_it_is_over(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad day lasted longer than a minute, so that it was believed, and something landed meanwhile."""
    monkeypatch.setattr(baselines, "SURE_S", 0.0)
    weather, runs = tmp_path / "fine-weather", tmp_path / "runs"
    gate = make(commands=(f"echo run >> {runs}; test -f {weather} && test ! -f bad",))
    first = work(repository, head, {"a": "1\n"})
    assert (await gate.judge(head, first, [task()])).kind is VerdictKind.PASSED
    runs.unlink()
    assert (await judge(gate, repository, first, {"b": "1\n"})).kind is VerdictKind.PASSED
    assert runs.read_text().count("run") == 2, "of what is known once more is enough"
    weather.touch()
    assert (await judge(gate, repository, first, {"bad": "1\n"})).kind is VerdictKind.FAILED
    flaky = by_turns(tmp_path, *["exit 1"] * 4, then="true")
    gate = make(commands=(flaky,))
    assert (await judge(gate, repository, head, {"a": "1\n"})).kind is VerdictKind.PASSED
    verdict = await judge(gate, repository, head, {"b": "1\n"})
    assert verdict.kind is VerdictKind.PASSED, "a change is charged with what it fails at twice, here too"
    assert "flaky" in verdict.notes[0]


async def test_two_bad_moments_with_a_good_one_between_them_are_no_bad_day(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weather = tmp_path / "fine-weather"
    weather.touch()
    gate = make(commands=(f"test -f {weather} && test ! -f bad", "test ! -f ugly"))
    clock = SystemClock()
    monkeypatch.setattr(gate._baselines, "_clock", clock)
    for at, fine, change, kind in (
        (0.0, True, "a", VerdictKind.PASSED),
        (0.0, False, "ugly", VerdictKind.BROKEN),
        (30.0, True, "ugly", VerdictKind.FAILED),
        (7200.0, False, "bad", VerdictKind.BROKEN),
    ):
        monkeypatch.setattr(clock, "monotonic", lambda at=at: at)
        if fine:
            weather.touch()
        else:
            weather.unlink(missing_ok=True)
        assert (await judge(gate, repository, head, {change: "1\n"})).kind is kind


@pytest.mark.parametrize("known", [False, True])
async def test_tests_that_could_not_run_for_a_while_run_again(
    make: Callable[..., Gate],
    repository: Path,
    head: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """What they need was away for longer than a minute: the line stands meanwhile, and moves when it is back."""
    monkeypatch.setattr(baselines, "SURE_S", 0.0)
    service = tmp_path / "service"
    service.touch()
    needs = f"open({str(service)!r}).close()\n\n\ndef test_a():\n    pass\n"
    base = work(repository, head, {"tests/test_price.py": needs})
    change = work(repository, base, {"a.txt": "1\n"})
    gate = make(python=sys.executable)
    if known:
        assert (await gate.judge(base, change, [task()])).kind is VerdictKind.PASSED
    service.unlink()
    for _ in range(2):
        assert (await judge(gate, repository, base, {"b.txt": "1\n"})).kind is VerdictKind.BROKEN
    service.touch()
    assert (await judge(gate, repository, base, {"b.txt": "1\n"})).kind is VerdictKind.PASSED


async def test_a_tool_that_changes_meanwhile_charges_nobody_with_what_the_target_has(
    make: Callable[..., Gate], repository: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = work(repository, head, {"shop/old.py": "import os\n"})
    gate = make(python=sys.executable)
    assert (await judge(gate, repository, base, {"a.txt": "1\n"})).kind is VerdictKind.PASSED
    identity = detect.file_identity
    monkeypatch.setattr(detect, "file_identity", lambda path: f"{identity(path)} upgraded")
    assert (await judge(gate, repository, base, {"b.txt": "1\n"})).kind is VerdictKind.PASSED


async def test_an_offer_that_cannot_look_at_the_target_any_more_does_not_lose_what_it_saw_of_the_change(
    make: Callable[..., Gate], repository: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, run = make(), PytestCheck.run
    assert (await judge(gate, repository, head, {"a.txt": "1\n"})).kind is VerdictKind.PASSED

    async def killed(self: PytestCheck, tree: Path, scratch: Path) -> CheckOutcome:
        outcome = await run(self, tree, scratch)
        where = "target-" if both is False else "-"
        if where not in tree.name:
            return outcome
        return replace(outcome, status=CheckStatus.BROKEN, broken_by=BrokenBy.ENVIRONMENT, reason="killed")

    monkeypatch.setattr(PytestCheck, "run", killed)
    bad = work(repository, head, {"shop/price.py": PRICE.format("net")})
    both = False
    verdict = await gate.judge(head, bad, [task(role="autofix")])
    assert (verdict.kind, verdict.broken_check) == (VerdictKind.BROKEN, "pytest")
    both = True
    verdict = await gate.judge(head, bad, [task(role="autofix")])
    assert (verdict.kind, verdict.untested) == (VerdictKind.PASSED, "pytest (killed)")


async def test_what_fails_once_on_the_target_excuses_nothing(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path
) -> None:
    once = tmp_path / "once"
    command = f"test ! -f bad && {{ test -f {once} || {{ touch {once}; exit 1; }}; }}"
    assert (await judge(make(commands=(command,)), repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED


async def test_what_fails_while_the_disk_is_full_is_nobodys_fault(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    gate = make(commands=("test ! -f bad",))
    gate._least_free_bytes = 1 << 60
    for accept in ((), ("false",)):
        verdict = await judge(gate, repository, head, {"bad": "1\n"}, *accept)
        assert verdict.kind is VerdictKind.BROKEN
        assert "min_free_bytes" in verdict.reason
    assert (await judge(gate, repository, head, {"good": "1\n"}, "true")).kind is VerdictKind.PASSED


async def test_a_disk_without_inodes_is_full_as_well(
    make: Callable[..., Gate], repository: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "free_inodes", lambda _: 12)
    verdict = await judge(make(commands=("test ! -f bad",)), repository, head, {"bad": "1\n"})
    assert verdict.kind is VerdictKind.BROKEN
    assert "only 12 inodes are free" in verdict.reason


async def test_the_disk_of_temporary_files_counts_and_may_be_small(
    make: Callable[..., Gate], repository: Path, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, size = tmp_path / "temporary", 1_000_000
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    free = {"bytes": size // 20}
    real, statvfs = process.free_disk, os.statvfs
    monkeypatch.setattr(process, "free_disk", lambda path: free["bytes"] if path == temporary else real(path))

    def small(path: Path) -> SimpleNamespace | os.statvfs_result:
        return SimpleNamespace(f_blocks=size, f_frsize=1, f_files=0) if path == temporary else statvfs(path)

    monkeypatch.setattr(os, "statvfs", small)
    monkeypatch.setattr(process, "free_inodes", lambda _: None)
    gate = make(commands=("test ! -f bad",))
    verdict = await judge(gate, repository, head, {"bad": "1\n"})
    assert verdict.kind is VerdictKind.BROKEN
    assert str(temporary) in verdict.reason
    free["bytes"] = size // 5
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED
    free["bytes"] = 0
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    assert (await judge(gate, repository, head, {"bad": "1\n"})).kind is VerdictKind.FAILED


async def test_our_own_offers_are_not_set_aside_because_the_disk_is_full(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    """On the target, or where the change brings in the first tests: what a full disk hides may be what it breaks."""
    found = work(repository, head, {"shop/old.py": "import os\n"})
    first = work(repository, head, {"tests/test_price.py": None})
    for base, change in (
        (found, {"shop/new.py": "import os\n"}),
        (first, {"test_new.py": "def test_a():\n    assert 0\n"}),
    ):
        gate = make()
        gate._least_free_bytes = 1 << 60
        verdict = await gate.judge(base, work(repository, base, dict(change)), [task(role="autofix")])
        assert (verdict.kind, verdict.broken_tasks) == (VerdictKind.BROKEN, ())
        assert "min_free_bytes" in verdict.reason
        assert verdict.untested == ""


async def test_a_ledger_that_is_full_breaks_the_gate_and_no_more(
    make: Callable[..., Gate], repository: Path, head: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    gate = make(commands=("true",))
    with monkeypatch.context() as patch:
        patch.setattr(store, "execute", full)
        verdict = await judge(gate, repository, head, {"a": "1\n"})
    assert (verdict.kind, verdict.broken_check) == (VerdictKind.BROKEN, "gate")
    assert "disk is full" in verdict.reason
    assert (await judge(gate, repository, head, {"a": "1\n"})).kind is VerdictKind.PASSED


async def test_what_checks_leave_in_a_tree_is_not_judged(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    """An accept command that makes the file the project's check looks for must not make that check pass."""
    verdict = await judge(
        make(commands=("test ! -f a || test -f litter",)), repository, head, {"a": "1\n"}, "touch litter"
    )
    assert verdict.kind is VerdictKind.FAILED


async def test_our_own_offers_are_set_aside_when_they_cannot_look(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    """Without an environment of the project's, its tests are run with our Python; what that cannot do stops no line."""
    base = work(repository, head, {"conftest.py": "import not_installed_here\n"})
    gate = make()
    assert [check.name for check in (await gate.plan(base)).checks] == ["ruff", "pytest"]
    verdict = await gate.judge(base, work(repository, base, {"shop/more.py": "X = 1\n"}), [task(role="autofix")])
    assert verdict.kind is VerdictKind.PASSED
    assert "No module named 'not_installed_here'" in verdict.untested
    plan = await gate.plan(base)
    assert [check.name for check in plan.checks] == ["ruff"]
    assert [missing.check for missing in plan.unavailable] == ["pytest"]
    required = await make(python=sys.executable).judge(base, work(repository, base, {"b.txt": "x"}), [task()])
    assert (required.kind, required.broken_check) == (VerdictKind.BROKEN, "pytest")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import not_installed_here\n\n\ndef test_a():\n    pass\n", "No module named 'not_installed_here'"),
        ("import pytest\n\n\n@pytest.mark.skip\ndef test_a():\n    pass\n", "all of them were skipped"),
    ],
)
async def test_a_target_of_which_no_test_ran_is_no_target_to_compare_with(
    make: Callable[..., Gate], repository: Path, head: str, text: str, why: str
) -> None:
    """The tests of both trees fail in the same way before any of them has run: that proves nothing."""
    base = work(repository, head, {"tests/test_price.py": text})
    bad = work(repository, base, {"shop/price.py": PRICE.format("net")})
    required = await make(python=sys.executable).judge(base, bad, [task(role="autofix")])
    assert (required.kind, required.broken_check, required.broken_tasks) == (VerdictKind.BROKEN, "pytest", ())
    assert why in required.reason
    offered = await make().judge(base, bad, [task(role="autofix")])
    assert offered.kind is VerdictKind.PASSED
    assert why in offered.untested
    both = [task(id="a", role="autofix"), task(id="b", role="command")]
    stopped = await make().judge(base, bad, both)
    assert (stopped.kind, stopped.broken_tasks) == (VerdictKind.BROKEN, ("b",))
    assert why in stopped.reason
    assert '[gate] untested = "land"' in stopped.reason
    assert (await make(untested="land").judge(base, bad, both)).kind is VerdictKind.PASSED


async def test_what_is_wrong_is_refused_also_when_the_tests_cannot_run(
    make: Callable[..., Gate], repository: Path, head: str
) -> None:
    base = work(repository, head, {"conftest.py": "import not_installed_here\n"})
    gate = make()
    verdict = await judge(gate, repository, base, {"shop/new.py": "import os\n"})
    assert verdict.kind is VerdictKind.FAILED
    assert (await judge(gate, repository, base, {"a.txt": "x\n"}, "false")).kind is VerdictKind.FAILED


async def test_what_was_missing_is_looked_for_again(
    make: Callable[..., Gate], repository: Path, head: str, layout: Layout
) -> None:
    """A parked task lands when its owner makes an environment, without a restart and with the same target."""
    python = environment(repository)
    gate = make()
    change = work(repository, head, {"shop/more.py": "X = 1\n"})
    stopped = await gate.judge(head, change, [task()])
    assert (stopped.kind, stopped.broken_tasks) == (VerdictKind.BROKEN, ("one",))
    assert "pytest is not installed" in stopped.reason
    install_pytest(python)
    verdict = await gate.judge(head, change, [task()])
    assert (verdict.kind, verdict.untested) == (VerdictKind.PASSED, "")
    assert (await judge(gate, repository, head, {"shop/price.py": PRICE.format("net")})).kind is VerdictKind.FAILED


async def test_no_tests_at_all_is_not_untested(make: Callable[..., Gate], repository: Path, head: str) -> None:
    base = work(repository, head, {"tests/test_price.py": "VALUE = 1\n"})  # looks like tests and holds none
    for python in ("", sys.executable):
        gate = make(python=python)
        verdict = await gate.judge(base, work(repository, base, {"a.txt": "x\n"}), [task()])
        assert (verdict.kind, verdict.untested) == (VerdictKind.PASSED, "")
        first = work(repository, base, {"tests/test_price.py": "def test_a():\n    assert 0\n"})
        assert (await gate.judge(base, first, [task()])).kind is VerdictKind.FAILED


async def test_first_tests_that_all_skip_are_refused(make: Callable[..., Gate], repository: Path, head: str) -> None:
    """They would leave a target of which nothing can be said, and a line that stands for everybody."""
    base = work(repository, head, {"tests/test_price.py": None})
    skips = "import pytest\n\n\n@pytest.mark.skip\ndef test_a():\n    pass\n"
    verdict = await judge(make(python=sys.executable), repository, base, {"test_new.py": skips})
    assert verdict.kind is VerdictKind.FAILED


# -- the merged tree is what is tested, wherever the environment leads ---------------------------------------------------

PYTHON_FOLDER = {
    "shop/__init__.py": None,
    "shop/price.py": None,
    "python/shop/__init__.py": "",
    "python/shop/price.py": PRICE.format("round(net * (1 + tax), 2)"),
}
"""The package in a folder that no rule of thumb knows."""

FINDER = """
import sys
from importlib.util import spec_from_file_location
MAPPING: dict[str, str] = {{'shop': '{package}'}}
class Finder:
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname in MAPPING:
            return spec_from_file_location(fullname, MAPPING[fullname] + '/__init__.py')
def install():
    sys.meta_path.{where}Finder)
"""


def environment(checkout: Path) -> Path:
    """A real virtual environment in the checkout, without anything in it."""
    venv.create(checkout / ".venv", with_pip=False)
    return checkout / ".venv" / "bin" / "python"


def install_pytest(python: Path) -> Path:
    """Ours, by links: nothing is fetched. Returns the environment's folder of packages."""
    (site,) = (python.parent.parent / "lib").glob("python3*/site-packages")
    ours = Path(pytest.__file__).parent.parent
    for name in ("_pytest", "iniconfig", "packaging", "pluggy", "py.py", "pygments", "pytest"):
        (site / name).symlink_to(ours / name)
    return site


@pytest.fixture
def editable(repository: Path, head: str) -> tuple[Path, str]:
    """A project whose package lies in ``python/`` and whose checkout has an environment: its packages, and its tip."""
    base = work(repository, head, PYTHON_FOLDER)
    git(repository, "reset", "--quiet", "--hard", base)
    return install_pytest(environment(repository)), base


def by_path(site: Path, checkout: Path) -> None:
    (site / "__editable__.shop-1.pth").write_text(f"{checkout / 'python'}\n")


def by_finder(site: Path, checkout: Path, where: str = "append(") -> None:
    (site / "__editable___shop_finder.py").write_text(FINDER.format(package=checkout / "python/shop", where=where))
    (site / "__editable__.shop-1.pth").write_text(
        "import __editable___shop_finder; __editable___shop_finder.install()\n"
    )


def by_first_finder(site: Path, checkout: Path) -> None:
    by_finder(site, checkout, "insert(0, ")


def by_copy(site: Path, checkout: Path) -> None:
    shutil.copytree(checkout / "python" / "shop", site / "shop")
    information = site / "shop-1.dist-info"
    information.mkdir()
    (information / "RECORD").write_text("shop/__init__.py,,\nshop/price.py,,\n")
    (information / "direct_url.json").write_text(json.dumps({"url": (checkout / "python").as_uri(), "dir_info": {}}))


@pytest.mark.parametrize("install", [by_path, by_finder])
async def test_an_editable_install_does_not_hide_a_breaking_change(
    make: Callable[..., Gate],
    repository: Path,
    editable: tuple[Path, str],
    install: Callable[[Path, Path], None],
) -> None:
    site, base = editable
    install(site, repository)
    for gate in (make(), make(commands=("python -m pytest -q -p no:cacheprovider",))):
        bad = await judge(gate, repository, base, {"python/shop/price.py": PRICE.format("net")})
        assert bad.kind is VerdictKind.FAILED, bad
        good = await judge(gate, repository, base, {"python/shop/price.py": PRICE.format("round(net + net * tax, 2)")})
        assert good.kind is VerdictKind.PASSED, good


@pytest.mark.parametrize("install", [by_copy, by_first_finder])
async def test_what_is_not_the_merged_tree_is_noticed_when_it_is_imported(
    make: Callable[..., Gate],
    repository: Path,
    editable: tuple[Path, str],
    install: Callable[[Path, Path], None],
) -> None:
    """A finder that goes before every path, or a copy: the run says nothing about the tree, and says so."""
    site, base = editable
    install(site, repository)
    verdict = await judge(make(), repository, base, {"python/shop/price.py": PRICE.format("net")})
    assert (verdict.kind, verdict.broken_check) == (VerdictKind.BROKEN, "pytest")
    assert "tests import shop from" in verdict.reason
    assert "not from the merged tree" in verdict.reason


async def test_first_tests_of_a_project_are_run(make: Callable[..., Gate], repository: Path, head: str) -> None:
    base = work(repository, head, {"tests/test_price.py": None})
    gate = make(python=sys.executable)
    verdict = await gate.judge(base, work(repository, base, {"test_new.py": "def test_a():\n    assert 0\n"}), [task()])
    assert verdict.new_failures == ("test_new.py::test_a",)
    verdict = await gate.judge(base, work(repository, base, {"test_new.py": "def test_a():\n    pass\n"}), [task()])
    assert verdict.kind is VerdictKind.PASSED


async def test_the_plan_comes_from_the_target(make: Callable[..., Gate], repository: Path, head: str) -> None:
    plan = await make(python=sys.executable).plan("main")
    assert isinstance(plan, GatePlan)
    assert [check.name for check in plan.checks] == ["ruff", "pytest"]


async def test_leftovers_are_swept(make: Callable[..., Gate], layout: Layout) -> None:
    locked = layout.state / "gate" / "judge-dead" / "locked"
    locked.mkdir(parents=True)
    (locked / "file").touch()
    locked.chmod(0o000)
    await make().sweep()
    assert not (layout.state / "gate").exists()
    remove_tree(layout.state / "gate")

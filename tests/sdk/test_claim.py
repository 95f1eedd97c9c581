"""Claiming, being alive, handing in, letting go: with real locks and files, and with everything that goes wrong there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Outcome, Result
from coordinator.domain.errors import BadRepository, ClaimHeld, PermanentError, StaleGeneration, UnknownTask
from coordinator.kit import lock
from coordinator.sdk import Agent, Claim
from tests.conftest import git
from tests.sdk.offers import offer, somebody
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout


@pytest.fixture
def agent(layout: Layout) -> Agent:
    return Agent(state=layout.state, name="ada")


def take(agent: Agent) -> Claim:
    claim = agent.claim_next()
    assert claim is not None
    return claim


def result_of(layout: Layout, task: str, generation: int = 1) -> Result:
    return Result.from_json(json.loads((layout.attempt(task, generation) / "result.json").read_text()))


def test_a_claim_from_offer_to_release(layout: Layout, agent: Agent) -> None:
    entry = offer(layout, "one")
    claim = take(agent)
    record = lock.read_record(layout.claim_record("one"))
    assert record == claim.record
    assert (record.agent, record.generation, record.state, record.pid) == ("ada", 1, "held", os.getpid())
    assert lock.is_held(layout.claim_lock("one"))
    assert not entry.exists()
    assert claim.brief().startswith("# one")
    with claim:
        claim.result(Outcome.DONE, summary="said hello", exit_code=0, cost_usd=0.25)
    assert not lock.is_held(layout.claim_lock("one"))
    assert lock.read_record(layout.claim_record("one")) == replace(record, state="released")
    result = result_of(layout, "one")
    assert (result.outcome, result.summary, result.exit_code, result.cost_usd) == ("done", "said hello", 0, 0.25)
    assert agent.claim_next() is None


def test_most_urgent_first_then_oldest(layout: Layout, agent: Agent) -> None:
    offer(layout, "later", priority=10)
    offer(layout, "b-urgent", 2, priority=2)
    offer(layout, "a-urgent", 3, priority=2)
    order = []
    while (claim := agent.claim_next()) is not None:
        order.append(claim.order.task)
        claim.release()
    assert order == ["b-urgent", "a-urgent", "later"]


def test_roles_limit_what_is_taken_but_not_what_is_asked_for(layout: Layout) -> None:
    offer(layout, "one", role="autofix")
    mine = Agent(state=layout.state, roles=["writer"])
    assert mine.claim_next() is None
    mine.claim("one").release()


def test_the_loser_learns_who_holds_it(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    with take(agent):
        with pytest.raises(ClaimHeld, match=rf"ada \(pid {os.getpid()} on .*generation 1"):
            Agent(state=layout.state, name="bob").claim("one")
        offer(layout, "one", 2)  # whatever is offered meanwhile
        assert Agent(state=layout.state, name="bob").claim_next() is None


def test_what_is_not_offered_cannot_be_claimed(layout: Layout, agent: Agent) -> None:
    with pytest.raises(UnknownTask, match="not offered"):
        agent.claim("one")
    with pytest.raises(UnknownTask, match="no task id"):
        agent.claim("../../etc")
    offer(layout, "one")
    order = layout.attempt("one", 1) / "order.json"
    whole = json.loads(order.read_text())
    for text in ("{", "[]", "{}", json.dumps(whole | {"generation": 2}), json.dumps(whole | {"task": "two"})):
        order.write_text(text)
        assert agent.claim_next() is None
    with pytest.raises(UnknownTask, match="cannot be read"):
        agent.claim("one")
    assert not list(layout.claims.glob("*.json"))


@pytest.mark.parametrize("meanwhile", ["withdrawn", "offered anew"])
def test_an_offer_is_read_again_under_the_lock(
    layout: Layout, agent: Agent, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Between our look and our lock the daemon took it back, or put another generation in its place."""
    entry = offer(layout, "one")
    real = lock.acquire

    def slow(path: Path) -> lock.HeldLock | None:
        if meanwhile == "withdrawn":
            entry.unlink()
        else:
            entry.write_text(json.dumps({"generation": 2, "role": "r", "task": "one"}))
        return real(path)

    monkeypatch.setattr(lock, "acquire", slow)
    assert agent.claim_next() is None
    assert lock.read_record(layout.claim_record("one")) is None
    assert not lock.is_held(layout.claim_lock("one"))


def test_a_used_up_offer_is_not_worked_again(layout: Layout, agent: Agent) -> None:
    """SEED C4: its owner was killed between record and unlink, or the file came back from a backup."""
    for generation, name in ((1, "older"), (2, "same")):
        entry = offer(layout, name, generation)
        lock.write_record(layout.claim_record(name), somebody(name, 2, state="released"))
        assert agent.claim_next() is None
        assert not entry.exists()
    assert lock.read_record(layout.claim_record("older")) == somebody("older", 2, state="released")


def test_an_unreadable_record_does_not_block_a_newer_offer(layout: Layout, agent: Agent) -> None:
    offer(layout, "one", 7)
    layout.claim_record("one").write_text("")  # SEED C3: empty is not "stale, steal it"; the lock says free
    with take(agent) as claim:
        assert claim.record.generation == 7


def test_an_empty_record_under_a_held_lock_is_no_invitation(layout: Layout, agent: Agent) -> None:
    """SEED C3: a rival reads between our lock and our record."""
    offer(layout, "one")
    held = lock.acquire(layout.claim_lock("one"))
    assert held is not None
    layout.claim_record("one").write_text("")
    assert agent.claim_next() is None
    with pytest.raises(ClaimHeld, match="no record"):
        agent.claim("one")
    held.release()
    take(agent).release()


def test_age_takes_nothing_from_a_living_holder(layout: Layout, agent: Agent) -> None:
    """SEED C1, C16: everything about the claim is decades old by the clock; the lock is still held."""
    offer(layout, "one")
    with take(agent):
        offer(layout, "one", 2)
        for path in (layout.claim_record("one"), layout.claim_lock("one"), layout.attempt("one", 1) / "heartbeat"):
            os.utime(path, (1, 1))
        assert Agent(state=layout.state, name="bob").claim_next() is None


def test_odd_things_among_the_offers_hold_nothing_up(
    layout: Layout, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    (layout.ready / ".000001-0000000001-tmp.tmp").write_text("{}")
    (layout.ready / "README").write_text("hello")
    (layout.ready / "1-1-..").write_text('{"generation": 1, "role": "r"}')
    (layout.ready / "1-1-garbage").write_text("{")
    (layout.ready / "1-1-other").write_text('{"generation": 1, "role": "r", "task": "another"}')
    (layout.ready / "1-1-zero").write_text('{"generation": 0, "role": "r"}')
    (layout.ready / "1-1-folder").mkdir()
    (layout.ready / "1-1-link").symlink_to(offer(layout, "good", priority=9))
    offer(layout, "linked-lock")
    layout.claim_lock("linked-lock").symlink_to(layout.ready / "README")
    with caplog.at_level(logging.WARNING), take(agent) as claim:
        assert claim.order.task == "good"
    assert "linked-lock" in caplog.text
    assert (layout.ready / "README").read_text() == "hello"
    with pytest.raises(OSError, match="symbolic"):
        agent.claim_next()


def test_the_heartbeat_moves_and_says_what_is_done(layout: Layout, agent: Agent) -> None:
    offer(layout, "one", heartbeat_s=0.01)
    path = layout.attempt("one", 1) / "heartbeat"
    with take(agent) as claim:
        claim.progress("x" * 5000 + "\n", state="running")
        claim.progress('reading "brief.md"')
        line = path.read_text()
        assert json.loads(line) == {"note": 'reading "brief.md"', "pid": os.getpid(), "state": "running"}
        assert line.count("\n") == 1
        seen = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns != seen, what="the next beat")
        os.utime(path, (1, 1))
        claim.heartbeat()
        assert path.stat().st_mtime_ns > 1_000_000_000
    wait_until(lambda: not [t for t in sys._current_frames() if t == claim._thread.ident], what="the thread's end")


def test_a_superseded_claim_is_refused_everywhere_and_told_the_new_owner(layout: Layout, agent: Agent) -> None:
    """SEED C5. A lock that fails (somebody emptied ``claims/``) must not let an old generation speak."""
    offer(layout, "one", heartbeat_s=0.01)
    claim = take(agent)
    newer = somebody("one", 2)
    lock.write_record(layout.claim_record("one"), newer)
    wait_until(claim.lost.is_set, what="the heartbeat's own discovery")
    calls = {
        "heartbeat": claim.heartbeat,
        "progress": lambda: claim.progress("still here"),
        "result": lambda: claim.result(Outcome.DONE),
        "worktree": claim.prepare_worktree,
    }
    for name, call in calls.items():
        with pytest.raises(
            StaleGeneration, match=r"generation 1 is over.*rival \(pid 4711 on elsewhere\), generation 2"
        ):
            call()
        assert name
    claim.release()
    assert lock.read_record(layout.claim_record("one")) == newer
    assert not (layout.attempt("one", 1) / "result.json").exists()
    assert not layout.worktree("one", 1).exists()


def test_leaving_a_superseded_claim_says_so(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    with pytest.raises(StaleGeneration), take(agent):
        lock.write_record(layout.claim_record("one"), somebody("one", 2))
    assert not lock.is_held(layout.claim_lock("one"))
    assert not (layout.attempt("one", 1) / "result.json").exists()


def test_another_process_of_the_same_generation_is_a_newer_owner_too(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    claim = take(agent)
    lock.write_record(layout.claim_record("one"), somebody("one", 1))
    with pytest.raises(StaleGeneration, match="rival"):
        claim.result(Outcome.DONE)
    claim.release()


def test_a_record_that_vanished_names_nobody(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    with take(agent) as claim:
        layout.claim_record("one").unlink()
        claim.result(Outcome.DONE)


@pytest.mark.parametrize(
    ("error", "outcome", "reason", "summary"),
    [
        (None, "failed", "no_result", "no result"),
        (ValueError("no such door"), "failed", "exception", "ValueError: no such door"),
        (KeyboardInterrupt(), "stopped", "interrupted", "stopped by KeyboardInterrupt"),
    ],
    ids=["nothing", "exception", "interrupt"],
)
def test_leaving_without_a_result_writes_one(
    layout: Layout, agent: Agent, error: BaseException | None, outcome: str, reason: str, summary: str
) -> None:
    offer(layout, "one")
    caught = None
    try:
        with take(agent):
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        caught = raised
    assert caught is error
    result = result_of(layout, "one")
    assert (result.outcome, result.reason, result.summary) == (outcome, reason, summary)
    assert not lock.is_held(layout.claim_lock("one"))


def test_an_exception_after_the_result_does_not_change_it(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    claim = take(agent)
    claim.result(Outcome.DONE)
    claim.__exit__(ValueError, ValueError("late"), None)
    assert result_of(layout, "one").outcome == "done"


def test_a_result_is_written_once_and_nothing_after_release(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    claim = take(agent)
    with pytest.raises(ValueError, match="splendid"):
        claim.result("splendid")
    claim.result("failed")
    with pytest.raises(PermanentError, match="once"):
        claim.result("done")
    claim.release()
    claim.release()
    for call in (claim.heartbeat, lambda: claim.progress("x"), lambda: claim.result("done"), lambda: claim.lock_fd):
        with pytest.raises(PermanentError, match="released"):
            call()


def test_the_working_tree_is_a_private_clone(
    layout: Layout, agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = tmp_path / "hook-ran"
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (hooks / "post-checkout").chmod(0o755)
    (layout.repository / ".git" / "hooks").mkdir(exist_ok=True)
    (layout.repository / ".git" / "hooks" / "post-checkout").symlink_to(hooks / "post-checkout")
    config = tmp_path / "gitconfig"
    config.write_text(f"[core]\n\thooksPath = {hooks}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(layout.repository / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(config.read_text())
    offer(layout, "one")
    with take(agent) as claim:
        tree = claim.prepare_worktree()
        assert json.loads((layout.attempt("one", 1) / "heartbeat").read_text())["state"] == "running"
    monkeypatch.undo()
    assert tree == layout.worktree("one", 1)
    assert git(tree, "rev-parse", "HEAD") == git(layout.repository, "rev-parse", "HEAD")
    assert git(tree, "branch", "--show-current") == "coordinator/one/1"
    assert git(tree, "remote") == ""
    assert git(tree, "status", "--porcelain") == ""
    assert (tree / "shop" / "price.py").exists()
    assert not ran.exists()


def test_a_clone_that_fails_ends_the_attempt_with_gits_own_words(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    order = layout.attempt("one", 1) / "order.json"
    order.write_text(json.dumps(json.loads(order.read_text()) | {"base": "0" * 40}))
    with pytest.raises(PermanentError, match=r"checkout.*exit code 128"), take(agent) as claim:
        claim.prepare_worktree()
    assert "exit code 128" in result_of(layout, "one").summary


def test_full_disk_loses_no_claim_silently(layout: Layout) -> None:
    """SEED C6. While nothing can be written no claim is made; when the result cannot be written, that is an error."""
    code = """
import resource, sys
from pathlib import Path
from coordinator.sdk import Agent
agent = Agent(state=Path(sys.argv[1]))
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(8)
try:
    agent.claim_next()
    sys.exit("claimed on a full disk")
except OSError:
    limit(-1)
with agent.claim_next() as claim:
    limit(8)
    try:
        claim.result("done")
        sys.exit("wrote on a full disk")
    except OSError:
        pass
"""
    entry = offer(layout, "one")
    answer = subprocess.run(
        [sys.executable, "-c", code, str(layout.state)], check=False, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "File too large" in answer.stderr
    assert not entry.exists()
    assert not lock.is_held(layout.claim_lock("one"))
    assert not (layout.attempt("one", 1) / "result.json").exists()


def test_where_the_state_folder_is_found(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRepository, match="COORDINATOR_STATE"):
        Agent()
    monkeypatch.chdir(layout.repository / "shop")
    assert Agent().layout == layout
    assert Agent(repository=layout.repository).layout == layout
    monkeypatch.setenv("COORDINATOR_STATE", str(tmp_path / "elsewhere"))
    assert Agent().layout.state == tmp_path / "elsewhere"
    assert Agent(repository=layout.repository).layout == layout
    assert Agent(state=layout.state).layout == layout


def test_the_sdk_is_quick_to_import_and_stands_on_little() -> None:
    code = """
import sys, time
began = time.process_time()
import coordinator.sdk
took = time.process_time() - began
print(took, *sorted(name for name in sys.modules if name.startswith("coordinator.")))
print(*(name for name in ("asyncio", "subprocess", "filelock", "psutil", "sqlite3", "git", "rich") if name in sys.modules))
"""
    fastest = 1.0
    for _ in range(3):
        answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        first, second = answer.stdout.split("\n")[:2]
        fastest = min(fastest, float(first.split()[0]))
    assert fastest < 0.06
    assert second.split() in ([], ["subprocess"])
    allowed = ("coordinator.domain", "coordinator.kit.lock", "coordinator.sdk")
    assert [name for name in first.split()[1:] if not name.startswith(allowed) and name != "coordinator.kit"] == []


def test_a_huge_or_odd_summary_still_makes_a_result_that_is_read(layout: Layout, agent: Agent) -> None:
    offer(layout, "one")
    with take(agent) as claim:
        claim.progress("\udcff\x00" * 500)
        claim.result(Outcome.FAILED, reason="r" * 5000, summary="\udcff\n" + "é" * 5_000_000)
    read = lock.read_object(layout.attempt("one", 1) / "result.json")
    assert read is not None
    assert read["summary"].startswith("\udcff\né")
    assert lock.read_object(layout.attempt("one", 1) / "heartbeat") is not None

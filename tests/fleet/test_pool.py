from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import ClaimRecord
from coordinator.domain.event import AgentExited, AgentStarted, Noticed
from coordinator.fleet.muster import read_muster
from coordinator.fleet.pool import AgentPool
from coordinator.kit import lock, process_table
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.lock import process_start
from tests.fleet.orders import ENV, offer, start_agent
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from coordinator.domain.event import Event, Published
    from coordinator.sdk.layout import Layout

MARK = 'echo $$ > "$COORDINATOR_ATTEMPT/up"; '
LONG = MARK + "exec sleep 60"
STUBBORN = MARK + "trap '' TERM; while :; do sleep 0.05; done"
UNTIL_TOLD = MARK + 'while ! [ -e "$COORDINATOR_ATTEMPT/go" ]; do sleep 0.02; done'


class Watched:
    """A pool at work and what it told the bus."""

    def __init__(self, layout: Layout, python: str = sys.executable, ramp_s: float = 0.0) -> None:
        bus = Bus(SystemClock())
        self.events: list[Event] = []
        self.began: list[float] = []
        bus.tap(self._take)
        self.pool = AgentPool(layout, bus, SystemClock(), idle_exit_s=20.0, python=python, ramp_s=ramp_s)
        self.stopping = asyncio.Event()
        self.task = asyncio.create_task(self.pool.run(self.stopping))

    def _take(self, published: Published) -> None:
        self.events.append(published.event)
        if isinstance(published.event, AgentStarted):
            self.began.append(time.monotonic())

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def leave(self) -> None:
        self.stopping.set()
        await self.task


@pytest.fixture(autouse=True)
def _nobody_left(layout: Layout) -> Iterator[None]:
    """Whatever a test did, its agents and their commands end with it."""
    yield
    for entry in read_muster(layout).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(entry.pid, signal.SIGKILL)
    for path in layout.attempts.glob("*/*/up"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
async def watched(layout: Layout) -> AsyncIterator[Watched]:
    made = Watched(layout)
    yield made
    await made.pool.stop_now(1.0)
    await made.leave()


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition, 20)


def gone(pid: int) -> bool:
    return process_start(pid) is None


def record_of(layout: Layout, process: subprocess.Popen[bytes] | int, task: str, agent: str = "third") -> ClaimRecord:
    """As a third-party agent with this pid would have written it."""
    pid = process if isinstance(process, int) else process.pid
    host, boot, _, _ = lock.own_identity()
    record = ClaimRecord(
        agent=agent, boot=boot, generation=1, host=host, pid=pid, started=process_start(pid) or "", task=task
    )
    lock.write_record(layout.claim_record(task), record)
    return record


def third_party(layout: Layout, task: str, script: str) -> subprocess.Popen[bytes]:
    """An agent of another make: holds the lock, has no line on our roll."""
    held = lock.acquire(layout.claim_lock(task))
    assert held
    agent = subprocess.Popen(["sh", "-c", script], pass_fds=(held.fd,), env=ENV, start_new_session=True)
    os.close(held.fd)
    return agent


async def test_as_many_as_wanted_claim_and_drain(layout: Layout, watched: Watched) -> None:
    tasks = [offer(layout, name, UNTIL_TOLD) for name in ("a", "b")]
    watched.pool.want(2)
    await asyncio.gather(*(asyncio.to_thread(task.wait_for, "up") for task in tasks))
    await until(lambda: {view.task for view in watched.pool.agents()} == {"a", "b"})
    view = watched.pool.agents()[0]
    assert (view.name, view.generation, view.adopted) == ("agent-1", 1, False)
    assert 0 <= view.since_s < 30
    assert all(os.getsid(view.pid) == view.pid for view in watched.pool.agents())
    draining = asyncio.create_task(watched.pool.drain())
    await until(lambda: all(entry.draining for entry in read_muster(layout).values()))
    again = asyncio.create_task(watched.pool.drain())  # a second SIGTERM would cut the work off
    await asyncio.sleep(0)
    for task in tasks:
        (task.folder / "go").touch()
    await asyncio.gather(draining, again)
    assert [task.ended().outcome for task in tasks] == ["done", "done"]
    assert watched.pool.agents() == ()
    assert [event.exit_code for event in watched.events if isinstance(event, AgentExited)] == [0, 0]


async def test_an_agent_that_dies_is_seen_and_replaced(layout: Layout, watched: Watched) -> None:
    watched.pool.want(1)
    await until(lambda: read_muster(layout))
    first = watched.pool.agents()[0]
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: watched.of(AgentExited))
    assert watched.of(AgentExited) == [AgentExited(agent="agent-1", pid=first.pid, exit_code=-9)]
    seen = time.monotonic()
    await until(lambda: len(watched.began) >= 2)
    assert watched.began[1] - seen < 0.4  # one that was at work and is killed young slows nobody down
    assert watched.of(Noticed) == []
    await until(lambda: read_muster(layout) and read_muster(layout)["agent-1"].pid != first.pid)


async def test_a_fleet_is_never_started_all_at_once(layout: Layout, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    watched = Watched(layout, python=str(sleeper), ramp_s=0.3)
    watched.pool.want(5)
    try:
        await until(lambda: len(watched.began) >= 5)
        first = watched.began[0]
        gaps = [moment - first for moment in watched.began]
        assert gaps[1] < 0.25
        assert all(gap >= 0.29 * number for number, gap in enumerate(gaps[2:], start=1))
        assert gaps[4] < 3.0
    finally:
        await watched.pool.stop_now(0.0)
        await watched.leave()


def _sleepers(count: int) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(count)]


async def test_a_fleet_of_fifty_is_adopted_in_no_time(layout: Layout) -> None:
    agents = _sleepers(50)
    try:
        host, boot, _, _ = lock.own_identity()
        for number, agent in enumerate(agents):
            name = f"agent-{number + 1}"
            wait_until(partial(process_start, agent.pid))
            line = {"agent": name, "boot": boot, "host": host, "pid": agent.pid, "started": process_start(agent.pid)}
            (layout.agents / f"{name}.json").write_text(json.dumps(line))
        heir = Watched(layout, python="/no/such/python")
        began = time.monotonic()
        assert heir.pool.adopt() == 50
        assert time.monotonic() - began < 2.0
        heir.pool.want(50)
        agents[7].kill()
        agents[7].wait()
        await until(lambda: heir.of(AgentExited))
        assert len(heir.pool.agents()) == 49
        await heir.leave()
        assert all(agent.poll() is None for agent in agents if agent is not agents[7])
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


async def test_agents_that_cannot_live_are_no_hot_loop(layout: Layout) -> None:
    watched = Watched(layout, python="/bin/false")
    watched.pool.want(3)
    await until(lambda: len(watched.of(AgentExited)) >= 3)
    await asyncio.to_thread(wait_until, lambda: len(watched.of(AgentStarted)) >= 4, 10)
    assert len(watched.of(AgentStarted)) <= 6
    notices = [event.message for event in watched.events if isinstance(event, Noticed)]
    assert len(notices) == 1
    assert "ended with code 1" in notices[0]
    await watched.leave()
    missing = Watched(layout, python="/no/such/python")
    missing.pool.want(1)
    await until(lambda: missing.of(Noticed))
    assert missing.of(AgentStarted) == []
    await missing.leave()


async def test_agents_outlive_the_daemon_and_are_adopted(layout: Layout, watched: Watched) -> None:
    task = offer(layout, "a", UNTIL_TOLD)
    watched.pool.want(1)
    await asyncio.to_thread(task.wait_for, "up")
    await watched.leave()
    stale = {"agent": "ghost", "boot": "b", "host": lock.own_identity()[0], "pid": 99999, "started": "1"}
    (layout.agents / "ghost.json").write_text(json.dumps(stale))
    (layout.agents / "garbage.json").write_text("{")
    heir = Watched(layout)
    assert heir.pool.adopt() == 1
    heir.pool.want(1)
    await asyncio.sleep(0.05)  # a turn in which none must be started
    view = heir.pool.agents()[0]
    assert (view.task, view.adopted, view.pid) == ("a", True, task.record.pid)
    assert heir.of(AgentStarted) == [AgentStarted(agent="agent-1", pid=view.pid, adopted=True)]
    assert not (layout.agents / "ghost.json").exists()
    draining = asyncio.create_task(heir.pool.drain())
    (task.folder / "go").touch()
    await draining
    assert task.ended().outcome == "done"
    assert heir.of(AgentExited) == [AgentExited(agent="agent-1", pid=view.pid, exit_code=None)]
    await heir.leave()


async def test_a_heir_that_drains_a_draining_agent_lets_it_finish(layout: Layout, watched: Watched) -> None:
    task = offer(layout, "a", UNTIL_TOLD)
    watched.pool.want(1)
    await asyncio.to_thread(task.wait_for, "up")
    draining = asyncio.create_task(watched.pool.drain())
    await until(lambda: read_muster(layout)["agent-1"].draining)
    draining.cancel()
    await watched.leave()
    heir = Watched(layout)
    heir.pool.adopt()
    second = asyncio.create_task(heir.pool.drain())
    await asyncio.sleep(0.05)
    (task.folder / "go").touch()
    await second
    assert task.ended().outcome == "done"
    await heir.leave()


async def test_stop_now_ends_commands_and_agents(layout: Layout, watched: Watched) -> None:
    tasks = [offer(layout, "a", LONG), offer(layout, "b", STUBBORN, grace_s=0.2)]
    watched.pool.want(2)
    await asyncio.gather(*(asyncio.to_thread(task.wait_for, "up") for task in tasks))
    await watched.pool.stop_now()
    assert [task.ended().outcome for task in tasks] == ["stopped", "stopped"]
    assert all(gone(int(task.wait_for("up"))) for task in tasks)
    assert watched.pool.agents() == ()


async def test_stop_now_kills_what_does_not_answer(layout: Layout, watched: Watched) -> None:
    task = offer(layout, "a", STUBBORN)
    watched.pool.want(1)
    pid = int(await asyncio.to_thread(task.wait_for, "up"))
    os.kill(task.record.pid, signal.SIGSTOP)
    await watched.pool.stop_now(0.2)
    assert gone(pid)
    assert watched.pool.agents() == ()
    assert not task.held()


async def test_a_holder_of_ours_is_stopped_and_the_agent_lives_on(layout: Layout, watched: Watched) -> None:
    task = offer(layout, "a", STUBBORN, grace_s=0.1)
    watched.pool.want(1)
    pid = int(await asyncio.to_thread(task.wait_for, "up"))
    await watched.pool.stop_holder(task.record, 1.0, "cancelled by Ada")
    assert not task.held()
    assert gone(pid)
    assert (task.ended().outcome, task.ended().summary) == ("stopped", "cancelled by Ada")
    following = offer(layout, "b", "true")
    assert (await asyncio.to_thread(following.ended)).outcome == "done"
    assert following.record.pid == task.record.pid


async def test_a_frozen_holder_of_ours_is_killed(
    layout: Layout, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.fleet.pool._STOP_PATIENCE_S", 0.1)
    task = offer(layout, "a", STUBBORN)
    watched.pool.want(1)
    pid = int(await asyncio.to_thread(task.wait_for, "up"))
    os.kill(task.record.pid, signal.SIGSTOP)
    await watched.pool.stop_holder(task.record, 0.1)
    assert not task.held()
    assert gone(pid)
    assert gone(task.record.pid)


async def test_what_a_killed_agent_left_is_found_by_mark_or_by_lock(layout: Layout, watched: Watched) -> None:
    """Its warden does not act, so its command lives on and holds the claim; a child of the second one has left session and
    environment too."""
    wild = 'trap "" TERM; echo $$ > "$0"; while :; do sleep 0.05; done'
    hidden = f'up="$COORDINATOR_ATTEMPT/up"; env -i PATH="$PATH" setsid sh -c \'{wild}\' "$up" & exec sleep 60'
    for name, script in (("a", STUBBORN), ("b", hidden)):
        task = offer(layout, name, script)
        agent = await asyncio.to_thread(start_agent, layout, "--once", name=name)
        pid = int(await asyncio.to_thread(task.wait_for, "up"))
        [warden] = [each for each, seen in process_table.rows().items() if seen.parent == agent.pid]
        os.kill(warden, signal.SIGSTOP)
        agent.kill()
        agent.wait()
        assert task.held()
        await watched.pool.stop_holder(task.record, 0.1)
        assert not task.held(), name
        assert gone(pid)


async def test_an_agent_of_another_make_gets_a_term_and_then_a_kill(layout: Layout, watched: Watched) -> None:
    polite = third_party(layout, "a", "trap 'exit 7' TERM; while :; do sleep 0.02; done")
    rude = third_party(layout, "b", "trap '' TERM; while :; do sleep 0.02; done")
    try:
        records = [record_of(layout, polite, "a"), record_of(layout, rude, "b")]
        wait_until(
            lambda: (
                b"sleep"
                in subprocess.run(
                    ["ps", "-o", "args", "--ppid", str(rude.pid)], capture_output=True, check=False
                ).stdout
            )
        )
        await asyncio.gather(*(watched.pool.stop_holder(record, 0.3) for record in records))
        assert not lock.is_held(layout.claim_lock("a"))
        assert not lock.is_held(layout.claim_lock("b"))
        assert (polite.wait(5), rude.wait(5)) == (7, -9)
    finally:
        polite.kill()
        rude.kill()
        polite.wait()
        rude.wait()


async def test_an_agent_that_has_moved_on_is_left_alone(
    layout: Layout, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is free, or a later generation's; or its heir holds the lock while the agent is at other work."""
    monkeypatch.setattr("coordinator.fleet.pool._STOP_PATIENCE_S", 0.1)
    busy = start_agent(layout, "--idle-exit", "30", name="busy")
    heir = third_party(layout, "heir", "exec sleep 60")
    taken = third_party(layout, "taken", "exec sleep 60")
    try:
        await until(lambda: read_muster(layout))
        await watched.pool.stop_holder(record_of(layout, busy, "free"), 0.1)
        old = record_of(layout, busy, "taken")
        lock.write_record(layout.claim_record("taken"), replace(old, generation=2))
        await watched.pool.stop_holder(old, 0.1)
        let_go = replace(record_of(layout, busy, "heir"), state="released")
        lock.write_record(layout.claim_record("heir"), let_go)
        layout.attempt("heir", 1).mkdir(parents=True)
        await watched.pool.stop_holder(replace(let_go, state="held"), 0.1)
        assert heir.wait(5) == -signal.SIGKILL
        assert busy.poll() is None
        assert taken.poll() is None
        os.kill(busy.pid, signal.SIGTERM)  # and it is not left frozen
        assert busy.wait(20) == 0
    finally:
        for each in (busy, heir, taken):
            each.kill()
            each.wait()


async def test_a_stranger_with_the_pid_on_record_is_not_signalled(layout: Layout, watched: Watched) -> None:
    stranger = third_party(layout, "other", "exec sleep 60")
    holder = third_party(layout, "a", "exec sleep 60")
    try:
        record = replace(record_of(layout, stranger, "a"), started="12345")
        lock.write_record(layout.claim_record("a"), record)
        await watched.pool.stop_holder(record, 0.1)
        assert stranger.poll() is None
        assert holder.wait(5) == -signal.SIGKILL
    finally:
        for each in (stranger, holder):
            each.kill()
            each.wait()

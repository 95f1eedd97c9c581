"""A daemon and an agent process that live for months: what they start leaves them no descriptor, no thread and no zombie."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.checks.tool import run_tool
from coordinator.fleet.muster import read_muster
from coordinator.fleet.pool import AgentPool
from coordinator.kit import process
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.process import Limits
from tests.fleet.orders import offer, start_agent
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.sdk.layout import Layout

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cannot run here: needs /proc")

ENV = {"PATH": os.environ["PATH"]}
SCRIPTS = ("exit 0", "exit 3", "sleep 9 & exit 0", "kill -9 $$", "setsid sleep 9 & exit 0")
"""Ways to end, in equal parts."""
ROUNDS = 34
"""In each, one under a warden as the daemon's checks are, one without as hooks are, and one that cannot be started."""


def belongings(pid: int) -> tuple[int, int, int]:
    """How many descriptors, threads and children a process has; zombies are children."""
    place = Path(f"/proc/{pid}")
    threads = list((place / "task").iterdir())
    children = [child for thread in threads for child in (thread / "children").read_text().split()]
    return len(os.listdir(place / "fd")), len(threads), len(children)


def no_more(pid: int, before: tuple[int, int, int]) -> bool:
    return all(now <= then for now, then in zip(belongings(pid), before, strict=True))


@pytest.fixture
def own() -> Iterator[None]:
    """What this process has before and after is the same."""
    gc.collect()  # what other tests left open is not ours
    before = belongings(os.getpid())
    yield
    wait_until(lambda: gc.collect() >= 0 and no_more(os.getpid(), before), what=f"{before} again")


@pytest.mark.usefixtures("own")
def test_a_hundred_short_commands(tmp_path: Path) -> None:
    limits = Limits(timeout_s=20.0, grace_s=0.2, memory_bytes=1 << 30, output_bytes=1 << 20)

    async def several() -> None:
        await one(0)
        before = belongings(os.getpid())
        for start in range(1, ROUNDS, 4):
            await asyncio.gather(*(one(number) for number in range(start, start + 4)))
        fds, threads, children = belongings(os.getpid())
        assert (fds, children) == (before[0], before[2])
        assert threads <= before[1] + 32  # those of the loop's executor, which are kept

    async def one(number: int) -> None:
        argv, log = ["sh", "-c", SCRIPTS[number % len(SCRIPTS)]], tmp_path / f"{number % 4}.log"
        await run_tool(argv, cwd=tmp_path, env=ENV, limits=limits, log=log)
        await process.run(argv, cwd=tmp_path, env=ENV, limits=limits, output=log)
        await process.run(
            ["no-such-program"], cwd=tmp_path, env=ENV, limits=limits, output=log, contained=bool(number % 2)
        )

    asyncio.run(several())


@pytest.mark.usefixtures("own")
def test_agents_that_come_and_go(layout: Layout) -> None:
    async def churn() -> None:
        pool = AgentPool(layout, Bus(SystemClock()), SystemClock(), idle_exit_s=20.0)
        stopping = asyncio.Event()
        running = asyncio.create_task(pool.run(stopping))
        pool.want(2)
        seen: set[int] = set()
        for _ in range(3):
            await asyncio.to_thread(wait_until, lambda: len(enrolled() - seen) == 2)
            for pid in enrolled() - seen:
                seen.add(pid)
                os.kill(pid, signal.SIGKILL)
        await pool.stop_now(5.0)
        stopping.set()
        await running
        assert pool.agents() == ()

    def enrolled() -> set[int]:
        return {entry.pid for entry in read_muster(layout).values()}

    asyncio.run(churn())


def test_many_attempts_of_one_agent_process(layout: Layout) -> None:
    agent = start_agent(layout, "--idle-exit", "30")
    try:
        before = None
        for number in range(8):
            script = SCRIPTS[number % len(SCRIPTS)]
            offer(layout, f"t{number}", script, grace_s=0.1).ended()
            if number == 2:  # by now all it ever imports is there
                wait_until(lambda: read_muster(layout)["agent-1"].task is None)
                before = belongings(agent.pid)
        wait_until(lambda: read_muster(layout)["agent-1"].task is None)
        assert before is not None
        wait_until(lambda: no_more(agent.pid, before), 5, what=f"{before}, not {belongings(agent.pid)}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            agent.send_signal(signal.SIGINT)
        agent.wait(20)

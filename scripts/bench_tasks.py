"""scripts/bench tasks: the claim, the spool, dispatch, worktrees, start and idleness."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from scripts.bench_rig import await_, daemon, drop_tasks, git, repository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.bench_rig import Row


def claims(folder: Path, short: bool) -> Iterator[Row]:
    from coordinator.fleet.race import race

    sizes = ((1, 20), (4, 20)) if short else ((1, 500), (24, 500), (200, 500))
    for processes, tasks in sizes:
        report = race(processes, tasks, folder / f"race-{processes}")
        name = f"{processes} processes, {tasks} tasks"
        yield f"claims/s, {name}", f"{report.claims_per_s:,.0f}", ""
        yield f"claimed twice or not at all, {name}", str(report.doubles + report.tasks - report.claimed), "0"


def spool(folder: Path, short: bool) -> Iterator[Row]:
    from coordinator.domain.settings import FleetSettings
    from coordinator.fleet.spool import Spool
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import SystemClock

    count = 200 if short else 10_000
    top = repository(folder / "spool")
    drop_tasks(top, count)
    clock = SystemClock()
    read = Spool(top / "tasks", top, FleetSettings(), Bus(clock), clock, lambda _: None).read

    async def times() -> tuple[float, float, int]:
        began = time.perf_counter()
        tasks = len((await read()).tasks)
        first = time.perf_counter() - began
        again = []
        for _ in range(5):
            began = time.perf_counter()
            await read()
            again.append(time.perf_counter() - began)
        return first, min(again), tasks

    first, again, tasks = asyncio.run(times())
    yield f"tasks read from {count:,} files", f"{tasks:,}", f"{count:,}"
    yield f"parse {count:,} files", f"{first:.2f} s", "≤ 2 s"
    yield f"re-scan {count:,} unchanged files", f"{again * 1000:.0f} ms", "≤ 100 ms"


def dispatch(folder: Path, short: bool) -> Iterator[Row]:
    count = 200 if short else 10_000
    top = repository(folder / "dispatch")
    drop_tasks(top, count)
    ready, claimed = top / ".coordinator" / "ready", top / ".coordinator" / "claims"
    with daemon(top, "--agents", "1") as (process, began):
        await_(lambda: any(claimed.glob("*.json")) or any(ready.glob("[0-9]*")), process)
        yield f"start to first dispatch, {count:,} tasks", f"{time.perf_counter() - began:.2f} s", "≤ 3 s"
        await_(lambda: any(claimed.glob("*.json")), process)
        yield f"start to first claim, {count:,} tasks", f"{time.perf_counter() - began:.2f} s", ""
        memory = psutil.Process(process.pid).memory_info().rss
        yield f"resident memory of the daemon, {count:,} tasks", f"{memory / 2**20:.0f} MB", "≤ 200 MB"


def worktrees(folder: Path, short: bool) -> Iterator[Row]:
    from coordinator.domain.attempt import Order
    from coordinator.sdk.layout import Layout, branch_name
    from coordinator.sdk.worktree import prepare

    count = 5 if short else 50
    top = repository(folder / "worktrees")
    layout = Layout(top, top / ".coordinator")
    base = git(top, "rev-parse", "HEAD")
    orders = [
        Order(
            attempt=str(layout.attempt(task, 1)),
            base=base,
            branch=branch_name(task, 1),
            brief="",
            generation=1,
            repository=str(top),
            task=task,
            worktree=str(layout.worktree(task, 1)),
        )
        for task in (f"tree-{number}" for number in range(count))
    ]
    lock_fd = os.open(os.devnull, os.O_RDONLY)

    def make(order: Order) -> tuple[float, float]:
        began = time.perf_counter()
        prepare(order, lock_fd)
        return began, time.perf_counter()

    began, ended = make(orders[0])
    alone = ended - began
    with ThreadPoolExecutor(count) as pool:
        spans = list(pool.map(make, orders[1:]))
    os.close(lock_fd)
    good = sum((Path(order.worktree) / "README.md").is_file() for order in orders)
    at_once = max(sum(other[0] <= span[0] < other[1] for other in spans) for span in spans)
    whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
    yield f"working trees made, of {count}", str(good), str(count)
    yield "  one alone", f"{alone * 1000:.0f} ms", ""
    yield f"  {count - 1} at once", f"{whole:.2f} s", ""
    yield "  most in the making at one moment", str(at_once), "> 1: not serialised"


def start(folder: Path, short: bool) -> Iterator[Row]:
    top = repository(folder / "start")
    took = []
    for _ in range(1 if short else 5):
        with daemon(top, "--json") as (process, began):
            assert process.stdout is not None
            for line in process.stdout:
                if "daemon_ready" in line:
                    took.append(time.perf_counter() - began)
                    break
    yield "start to ready, best of all runs", f"{min(took):.2f} s" if took else "never", "≤ 0.7 s"


def idle(folder: Path, short: bool) -> Iterator[Row]:
    top = repository(folder / "idle")
    seconds = 1.0 if short else 20.0
    with daemon(top) as (process, _):
        await_((top / ".coordinator" / "api.json").exists, process)
        time.sleep(0.2 if short else 3.0)  # what starting costs is another figure
        watched = psutil.Process(process.pid)
        before = watched.cpu_times()
        time.sleep(seconds)
        after = watched.cpu_times()
    used = after.user + after.system - before.user - before.system
    yield f"CPU of an idle daemon over {seconds:.0f} s", f"{100 * used / seconds:.1f} %", "< 1 %"


PARTS = {
    "claims": claims,
    "spool": spool,
    "dispatch": dispatch,
    "worktrees": worktrees,
    "start": start,
    "idle": idle,
}

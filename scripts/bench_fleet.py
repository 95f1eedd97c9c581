"""scripts/bench fleet: how soon a death is noticed and mended, a fleet adopted, and what the daemon costs over time."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from statistics import linear_regression
from typing import IO, TYPE_CHECKING, Any

import psutil

from scripts.bench_rig import await_, daemon, drop_tasks, repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scripts.bench_rig import Row

BACKOFF_S = 0.2
QUIET = "[fleet]\nramp_s = 0\nbackoff_s = {backoff}\nagents = {agents}\ncrash_loop = 100\n"


@dataclass
class Heard:
    """The daemon's events with the moment each was read."""

    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def follow(self, stream: IO[str]) -> None:
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            said = json.loads(line)
            self.events.append((time.perf_counter(), said))

    def first(self, after: float, wanted: Callable[[dict[str, Any]], bool]) -> float | None:
        """Seconds from ``after`` to the first event that is wanted."""
        return next((at - after for at, event in tuple(self.events) if at >= after and wanted(event)), None)


def fleet_of(folder: Path, agents: int, command: list[str]) -> Path:
    """A repository with a task for each agent, whose command is ``command``."""
    top = repository(folder)
    (top / "agents" / "command.toml").write_text(
        f"command = {json.dumps(command)}\nmemory_bytes = 0\n", encoding="utf-8"
    )
    with (top / "coordinator.toml").open("a", encoding="utf-8") as settings:
        settings.write(QUIET.format(agents=agents, backoff=BACKOFF_S))
    drop_tasks(top, agents)
    return top


def at_work(top: Path) -> list[Path]:
    """Heartbeats of attempts whose command runs."""
    return [path for path in (top / ".coordinator" / "attempts").glob("*/*/heartbeat") if _phase(path) == "running"]


def _phase(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("state", ""))
    except (OSError, ValueError):
        return ""


def death(folder: Path, short: bool) -> Iterator[Row]:
    """kill -9 of agent processes, one after the other, while their commands run. (Five in a row would pause the role.)"""
    agents = 3 if short else 8
    top = fleet_of(folder / "death", agents, ["sleep", "1000"])
    noticed, again = [], []
    with daemon(top, "--json") as (process, _):
        heard = Heard()
        assert process.stdout is not None
        heard.follow(process.stdout)
        await_(lambda: len(at_work(top)) == agents, process)
        for path in at_work(top)[: 2 if short else 4]:
            task, generation = path.parts[-3], int(path.parts[-2])
            pid = json.loads(path.read_text(encoding="utf-8"))["pid"]
            killed = time.perf_counter()
            os.kill(pid, signal.SIGKILL)

            def ended(event: dict[str, Any], task: str = task, generation: int = generation) -> bool:
                return event.get("kind") == "attempt_ended" and (event["task"], event["generation"]) == (
                    task,
                    generation,
                )

            def claimed(event: dict[str, Any], task: str = task, generation: int = generation) -> bool:
                taken = event.get("kind") == "task_changed" and event["new"] == "claimed"
                return taken and event["task"] == task and event["generation"] > generation

            await_(lambda: heard.first(killed, claimed) is not None, process)  # noqa: B023 - called at once
            noticed.append(heard.first(killed, ended) or 0.0)
            again.append(heard.first(killed, claimed) or 0.0)
    yield f"death of an agent to notice, worst of {len(noticed)}", f"{max(noticed):.2f} s", "≤ 2 s"
    yield f"death to its task claimed again, back-off {BACKOFF_S} s", f"{max(again):.2f} s", "≤ 5 s + back-off"


def restart(folder: Path, short: bool) -> Iterator[Row]:
    """kill -9 of the daemon; the next one finds its agents."""
    agents = 4 if short else 50
    top = fleet_of(folder / "restart", agents, ["sleep", "1000"])
    with daemon(top) as (process, _):
        await_(lambda: len(at_work(top)) == agents, process, 300.0)
        process.kill()
        process.wait()
    with daemon(top, "--json") as (process, began):
        heard = Heard()
        assert process.stdout is not None
        heard.follow(process.stdout)
        await_(lambda: heard.first(began, lambda event: event.get("kind") == "daemon_ready") is not None, process)
        took = heard.first(began, lambda event: event.get("kind") == "daemon_ready") or 0.0
        adopted = next(event["adopted"] for _, event in heard.events if event.get("kind") == "daemon_ready")
    yield f"daemon killed; its successor has adopted {adopted} of {agents}", f"{took:.2f} s", "≤ 10 s"


def cost(folder: Path, short: bool) -> Iterator[Row]:
    """What the daemon takes while its agents wait for their models."""
    agents, seconds = (4, 1.0) if short else (24, 30.0)
    top = fleet_of(folder / "cost", agents, ["sleep", "1000"])
    with daemon(top) as (process, _):
        await_(lambda: len(at_work(top)) == agents, process, 300.0)
        time.sleep(0.5 if short else 3.0)  # what starting costs is another figure
        watched = psutil.Process(process.pid)
        before = watched.cpu_times()
        time.sleep(seconds)
        after = watched.cpu_times()
        memory = watched.memory_info().rss / 2**20
    used = after.user + after.system - before.user - before.system
    yield f"memory of the daemon with {agents} agents", f"{memory:.0f} MB", "≤ 120 MB"
    yield f"CPU of the daemon with {agents} silent agents", f"{100 * used / seconds:.1f} %", ""


def soak(folder: Path, short: bool) -> Iterator[Row]:
    """The same tasks every minute: attempts that land, fail and crash. COORDINATOR_SOAK_S says for how long (600)."""
    seconds = 6.0 if short else float(os.environ.get("COORDINATOR_SOAK_S", "600"))
    agents, warm_up = (2, 2.0) if short else (8, min(180.0, seconds / 3))
    command = ["sh", "-c", 'case $(($$ % 3)) in 0) exit 1;; 1) kill -9 $$;; *) date > "made-$$";; esac']
    top = fleet_of(folder / "soak", agents, command)
    for number in range(8 if short else 40):
        text = f'[[tasks]]\nid = "again-{number}"\nprompt = "Do it."\nmax_attempts = 5\nschedule = "* * * * *"\n'
        (top / "tasks" / f"again-{number}.toml").write_text(text, encoding="utf-8")
    points: list[tuple[float, float]] = []
    with daemon(top) as (process, began):
        watched, first = psutil.Process(process.pid), None
        while (now := time.perf_counter() - began) < seconds:
            time.sleep(0.5)
            if now >= warm_up:
                points.append((now / 3600, watched.memory_info().rss / 2**20))
                first = first or _held(watched)
        last = _least(watched, first or (0, 0))
        zombies = sum(child.status() == psutil.STATUS_ZOMBIE for child in watched.children())
        ended = _ended(top)
    slope = linear_regression(*zip(*points, strict=True)).slope if len(points) > 2 else 0.0
    fds, threads = (now - then for now, then in zip(last, first or last, strict=True))
    yield f"attempts in a soak of {seconds:.0f} s", f"{ended}", ""
    yield "descriptors and threads more than at its beginning", f"{max(fds, 0)} and {max(threads, 0)}", "0 and 0"
    yield "zombies at its end", f"{zombies}", "0"
    yield "memory per hour, linear fit", f"{slope:+.1f} MB", "< 1 MB"


def _held(watched: psutil.Process) -> tuple[int, int]:
    return watched.num_fds(), watched.num_threads()


def _least(watched: psutil.Process, than: tuple[int, int]) -> tuple[int, int]:
    """What it holds on to: the least of several looks, for work in flight holds some as well."""
    found = _held(watched)
    for _ in range(50):
        if all(now <= then for now, then in zip(found, than, strict=True)):
            break
        time.sleep(0.1)
        found = tuple(map(min, found, _held(watched)))  # type: ignore[assignment]
    return found


def _ended(top: Path) -> int:
    import sqlite3

    with sqlite3.connect(f"file:{top / '.coordinator' / 'ledger.db'}?mode=ro", uri=True) as ledger:
        return int(ledger.execute("SELECT count(*) FROM attempts WHERE ended_at IS NOT NULL").fetchone()[0])


PARTS = {"death": death, "restart": restart, "cost": cost, "soak": soak}

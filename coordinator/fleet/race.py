"""The public self-test of claiming: many real processes want the same tasks at the same moment.

Owns one invariant: what it reports was recorded by the processes themselves, each into a file of its own, and compared
with the claim records. It uses the very sdk that agents use; it measures no work, only who gets what.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Order, Outcome
from coordinator.domain.errors import StaleGeneration, ToolFailed
from coordinator.kit import lock
from coordinator.sdk.agent import Agent
from coordinator.sdk.layout import Layout, branch_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GENERATION: Final = 1
_STARTING_AT_ONCE: Final = 8
"""Interpreters starting side by side; more only get in each other's way. They all claim together all the same."""
_START_LIMIT_S: Final = 60.0
_RACE_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceReport:
    """``doubles`` counts tasks won more than once, and wins that the claim record contradicts; it must be 0.

    ``fewest`` and ``most`` are wins per process; ``took_s`` runs from the common start to the last win.
    """

    claimed: int
    doubles: int
    fewest: int
    most: int
    processes: int
    took_s: float
    tasks: int
    winners: int

    @property
    def claims_per_s(self) -> float:
        return self.claimed / self.took_s if self.took_s else 0.0

    @property
    def passed(self) -> bool:
        """Every task was won, and by exactly one process."""
        return self.doubles == 0 and self.claimed == self.tasks


def race(processes: int, tasks: int, folder: Path) -> RaceReport:
    """Run the race in ``folder``, which must be empty or new. Blocks; raises ``ToolFailed`` when a process breaks."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = Layout(repository=folder, state=folder / ".coordinator")
    _offer(layout, tasks)
    with contextlib.ExitStack() as stack:
        ready_in, ready_out = _pipe(stack)
        go_in, go_out = _pipe(stack)
        runners = stack.enter_context(_started(layout, processes, ready_in, (ready_out, go_in)))
        began = time.monotonic()
        os.close(go_out)  # end of file reaches all of them at once
        _wait(runners, folder)
    return _count(layout, processes, tasks, began)


def _offer(layout: Layout, tasks: int) -> None:
    for part in (layout.ready, layout.claims):
        part.mkdir(parents=True)
    for number in range(tasks):
        task = f"race-{number:05d}"
        attempt = layout.attempt(task, _GENERATION)
        attempt.mkdir(parents=True)
        order = Order(
            attempt=str(attempt),
            base="",
            branch=branch_name(task, _GENERATION),
            brief=str(attempt / "brief.md"),
            generation=_GENERATION,
            repository=str(layout.repository),
            task=task,
            worktree=str(layout.worktree(task, _GENERATION)),
        )
        (attempt / "order.json").write_text(json.dumps(order.to_json()))
        entry = {"generation": _GENERATION, "role": "", "task": task}
        layout.ready_entry(1, number, task).write_text(json.dumps(entry))


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(_close_quietly, end)
    return ends


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def _started(
    layout: Layout, processes: int, ready_in: int, inherited: tuple[int, int]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """All processes, started and waiting for the signal; none is left when this ends."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    runners: list[subprocess.Popen[bytes]] = []
    waiting = 0
    try:
        for number in range(processes):
            command = (sys.executable, "-m", "coordinator.fleet.race", str(layout.state), str(number))
            with (layout.repository / f"errors-{number}").open("wb") as errors:
                runners.append(
                    subprocess.Popen(
                        [*command, *map(str, inherited)],
                        cwd=layout.repository,
                        env={**os.environ, "PYTHONPATH": path},
                        pass_fds=inherited,
                        stdin=subprocess.DEVNULL,
                        stdout=errors,
                        stderr=errors,
                    )
                )
            if len(runners) - waiting >= _STARTING_AT_ONCE:
                waiting += _hear(ready_in, runners, layout.repository)
        while waiting < processes:
            waiting += _hear(ready_in, runners, layout.repository)
        yield runners
    finally:
        for runner in runners:
            if runner.poll() is None:
                runner.kill()
                runner.wait()


def _hear(ready_in: int, runners: Sequence[subprocess.Popen[bytes]], folder: Path) -> int:
    """How many more have said that they are ready; at least one."""
    deadline = time.monotonic() + _START_LIMIT_S
    with selectors.DefaultSelector() as selector:
        selector.register(ready_in, selectors.EVENT_READ)
        while not selector.select(timeout=0.5):
            _check(runners, folder)
            if time.monotonic() > deadline:
                raise ToolFailed(f"a process of the race did not start within {_START_LIMIT_S:g} s")
    return len(os.read(ready_in, 4096))


def _wait(runners: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + _RACE_LIMIT_S
    for runner in runners:
        try:
            runner.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise ToolFailed(f"the race was not over after {_RACE_LIMIT_S:g} s") from error
    _check(runners, folder)


def _check(runners: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    for number, runner in enumerate(runners):
        if runner.poll():
            said = (folder / f"errors-{number}").read_text(errors="replace").strip()[-1000:]
            raise ToolFailed(f"process {number} of the race ended with exit code {runner.returncode}: {said}")


def _count(layout: Layout, processes: int, tasks: int, began: float) -> RaceReport:
    wins: list[tuple[str, str]] = []
    last = began
    for number in range(processes):
        for line in (layout.repository / f"wins-{number}").read_text().splitlines():
            task, at = line.split()
            wins.append((task, _runner_name(number)))
            last = max(last, float(at))
    per_task = Counter(task for task, _ in wins)
    per_runner = Counter(name for _, name in wins)
    extra = sum(count - 1 for count in per_task.values())
    contradicted = sum(1 for task, name in wins if per_task[task] == 1 and not _on_record(layout, task, name))
    counts = [per_runner[_runner_name(number)] for number in range(processes)]
    return RaceReport(
        claimed=len(per_task),
        doubles=extra + contradicted,
        fewest=min(counts, default=0),
        most=max(counts, default=0),
        processes=processes,
        took_s=last - began,
        tasks=tasks,
        winners=len(per_runner),
    )


def _on_record(layout: Layout, task: str, name: str) -> bool:
    record = lock.read_record(layout.claim_record(task))
    return record is not None and (record.agent, record.generation) == (name, _GENERATION)


def _runner_name(number: int) -> str:
    return f"racer-{number}"


def _run(state: Path, number: int, ready_out: int, go_in: int) -> None:
    """One process of the race: wait for the signal, then claim until nothing is offered any more."""
    agent = Agent(state=state, name=_runner_name(number))
    warm = lock.acquire(state.parent / f"warm-{number}")  # loads all code now: the race is about claims, not imports
    if warm is not None:
        warm.release()
    with (state.parent / f"wins-{number}").open("w", buffering=1) as wins:
        os.write(ready_out, b".")
        os.read(go_in, 1)
        while True:
            claim = agent.claim_next()
            if claim is not None:
                with contextlib.suppress(StaleGeneration), claim:  # a double, if it ever happens, is counted afterwards
                    wins.write(f"{claim.order.task} {time.monotonic()!r}\n")
                    claim.result(Outcome.DONE)
            elif not any(agent.layout.ready.iterdir()):
                return


if __name__ == "__main__":
    _run(Path(sys.argv[1]), *map(int, sys.argv[2:5]))

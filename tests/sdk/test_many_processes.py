"""Several processes at the same tasks, some of them killed: at most one owner of a generation, at most one at a time."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from coordinator.kit import lock
from coordinator.sdk import Agent
from tests.sdk.offers import offer
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout

WORKER = """
import os, sys, time
from pathlib import Path
from coordinator.kit import lock
from coordinator.sdk import Agent
state, notes = Path(sys.argv[1]), Path(sys.argv[2])
agent = Agent(state=state, name=f"worker-{os.getpid()}")
diary = (notes / f"diary-{os.getpid()}").open("w", buffering=1)
while not (notes / "stop").exists():
    claim = agent.claim_next()
    if claim is None:
        time.sleep(0.002)
        continue
    with claim:
        task, generation = claim.order.task, claim.order.generation
        for other in notes.glob(f"busy-{task}-*"):
            pid = int(other.name.rpartition("-")[2])
            alive = pid != os.getpid() and lock.process_start(pid) is not None and other.exists()
            diary.write(f"overlap {task} {pid}\\n" if alive else "")
        busy = notes / f"busy-{task}-{os.getpid()}"
        busy.touch()
        diary.write(f"won {task} {generation}\\n")
        time.sleep(0.003)
        busy.unlink()
        claim.result("done")
"""


def worker(layout: Layout, notes: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(layout.state), str(notes)])


def test_no_generation_has_two_owners_while_workers_are_killed(layout: Layout, tmp_path: Path) -> None:
    """The test plays the daemon: it offers the next generation as soon as it finds the lock of the last one free."""
    chance = random.Random(1)
    notes = tmp_path / "notes"
    notes.mkdir()
    tasks = {"one": 1, "two": 1, "three": 1}
    for task in tasks:
        offer(layout, task)
    workers = [worker(layout, notes) for _ in range(4)]
    killed = 0
    deadline = time.monotonic() + 30
    try:
        while sum(tasks.values()) < 90:
            assert time.monotonic() < deadline, f"stuck at {tasks}"
            for task, generation in tasks.items():
                record = lock.read_record(layout.claim_record(task))
                if record is None or record.generation < generation:
                    time.sleep(0.001)  # offered, not yet taken
                elif not lock.is_held(layout.claim_lock(task)):
                    tasks[task] += 1
                    offer(layout, task, tasks[task])
                elif chance.random() < 0.02 and killed < 6:
                    victim = next((one for one in workers if one.pid == record.pid), None)
                    if victim is not None:
                        killed += 1
                        victim.kill()
                        victim.wait()
                        workers.remove(victim)
                        workers.append(worker(layout, notes))
    finally:
        (notes / "stop").touch()
        for one in workers:
            one.wait(20)
    lines = [line for diary in notes.glob("diary-*") for line in diary.read_text().splitlines()]
    wins = [line for line in lines if line.startswith("won")]
    assert [line for line in lines if line.startswith("overlap")] == []
    assert len(wins) == len(set(wins)), "a generation was won twice"
    assert len(wins) > 60
    assert killed, "the test killed somebody"
    assert all(one.returncode == 0 for one in workers)


DIE = """
import os, sys
from pathlib import Path
from coordinator.kit import lock
from coordinator.sdk import Agent, claim, agent
def die(*_, **__): os.kill(os.getpid(), 9)
def then_die(function):
    def both(*args, **kwargs):
        function(*args, **kwargs)
        die()
    return both
match sys.argv[2]:
    case "locked": agent._read_order = die
    case "beating": agent.Heartbeat = then_die(claim.Heartbeat)
    case "recording": os.replace = die
    case "recorded": lock.write_record = then_die(lock.write_record)
    case "claimed": agent.Claim = die
    case "handed in": claim.Claim.release = die
with Agent(state=Path(sys.argv[1])).claim_next() as won:
    won.result("done")
"""


@pytest.mark.parametrize(
    ("moment", "free_for_others"),
    [
        ("locked", True),
        ("beating", True),
        ("recording", True),
        ("recorded", False),
        ("claimed", False),
        ("handed in", False),
    ],
)
def test_killed_at_any_line(layout: Layout, moment: str, free_for_others: bool) -> None:
    """Before the record is there the offer stands; afterwards it is used up, and only a new generation can be claimed."""
    offer(layout, "one")
    process = subprocess.run([sys.executable, "-c", DIE, str(layout.state), moment], check=False)
    assert process.returncode == -9
    assert not lock.is_held(layout.claim_lock("one"))
    record = lock.read_record(layout.claim_record("one"))
    assert (record is None) == free_for_others
    rival = Agent(state=layout.state, name="rival")
    claim = rival.claim_next()
    assert (claim is not None) == free_for_others
    if claim is not None:
        claim.release()
    assert not list(layout.ready.iterdir())
    assert (layout.attempt("one", 1) / "result.json").exists() == (moment == "handed in")
    offer(layout, "one", 2)
    rival.claim("one").release()


def test_a_command_that_inherited_the_claim_keeps_it_when_its_runner_is_killed(layout: Layout) -> None:
    offer(layout, "one")
    code = (
        "import os, subprocess, sys; from pathlib import Path; from coordinator.sdk import Agent\n"
        "claim = Agent(state=Path(sys.argv[1])).claim_next()\n"
        "child = subprocess.Popen(['sleep', '60'], pass_fds=(claim.lock_fd,), stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(layout.state)], check=False, stdout=subprocess.PIPE, text=True
    )
    child = int(answer.stdout)
    offer(layout, "one", 2)
    rival = Agent(state=layout.state)
    assert rival.claim_next() is None
    os.kill(child, 9)
    wait_until(lambda: not lock.is_held(layout.claim_lock("one")), what="the command's end")
    rival.claim("one").release()

"""What ``scripts/chaos`` does to a fleet: kills, freezes, a full disk, and a person who works in the same repository."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from scripts.chaos_fleet import ChaosFleet

DISK_BYTES = 512 * 1024 * 1024


def kill_agent(fleet: ChaosFleet, rng: random.Random) -> bool:
    """An agent process of ours; what it runs is an orphan then."""
    return _kill(fleet.runners(), rng)


def kill_command(fleet: ChaosFleet, rng: random.Random) -> bool:
    """Something that an attempt has started."""
    return _kill(fleet.living(), rng)


def kill_daemon(fleet: ChaosFleet, rng: random.Random) -> bool:
    """The daemon, and for a moment there is none."""
    if not fleet.daemon_pid():
        return False
    fleet.kill_daemon()
    time.sleep(rng.uniform(0.0, 2.0))
    return True


def freeze_daemon(fleet: ChaosFleet, rng: random.Random) -> bool:
    """The daemon stands still, as on a machine that sleeps."""
    return _freeze([pid] if (pid := fleet.daemon_pid()) else [], rng)


def freeze_agent(fleet: ChaosFleet, rng: random.Random) -> bool:
    return _freeze(fleet.runners(), rng)


def commit(fleet: ChaosFleet, rng: random.Random) -> bool:
    """The user commits to a branch of theirs."""
    (fleet.top / "notes.txt").write_text(f"{rng.random()}\n")
    fleet.git("add", "notes.txt")
    fleet.git("commit", "-q", "-m", f"note {fleet.committed}")
    fleet.committed += 1
    return True


def tidy(fleet: ChaosFleet, rng: random.Random) -> bool:
    """The user tidies the repository up, or switches to and fro."""
    match rng.randrange(3):
        case 0:
            fleet.git("gc", "-q", "--auto")
        case 1:
            fleet.git("branch", "-f", f"idea-{rng.randrange(3)}")
        case _:
            fleet.git("checkout", "-q", "-B", "aside")
            fleet.git("checkout", "-q", "main")
    return True


def fill_disk(fleet: ChaosFleet, rng: random.Random) -> bool:
    """Not a byte more fits for a moment."""
    filler = fleet.top.parent / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)
        time.sleep(rng.uniform(0.5, 2.5))
    finally:
        filler.unlink(missing_ok=True)
    return True


def _kill(pids: list[int], rng: random.Random) -> bool:
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(pids), signal.SIGKILL)
    return True


def _freeze(pids: list[int], rng: random.Random) -> bool:
    if not pids:
        return False
    pid = rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(rng.uniform(0.2, 2.0))
        finally:
            os.kill(pid, signal.SIGCONT)
    return True


HARMS: dict[str, tuple[int, Callable[[ChaosFleet, random.Random], bool]]] = {
    "agent killed": (6, kill_agent),
    "command killed": (4, kill_command),
    "commit of the user's": (4, commit),
    "daemon frozen": (1, freeze_daemon),
    "agent frozen": (1, freeze_agent),
    "daemon killed": (4, kill_daemon),
    "disk filled": (1, fill_disk),
    "repository tidied up": (2, tidy),
}
"""By name: how likely it is, and what it is."""


def torment(fleet: ChaosFleet, rng: random.Random, seconds: float, *, disk: bool) -> Counter[str]:
    """For so long; how often what was done."""
    harms = {name: harm for name, harm in HARMS.items() if disk or name != "disk filled"}
    names, weights = list(harms), [weight for weight, _ in harms.values()]
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fleet.mind_the_daemon()
        while fleet.unsettled() < 2 * fleet.agents and time.monotonic() < end:
            fleet.drop()
        time.sleep(rng.uniform(0.1, 0.8))
        name = rng.choices(names, weights)[0]
        done[name] += harms[name][1](fleet, rng)
    return done


def mount_disk(place: Path, size_bytes: int = DISK_BYTES) -> str:
    """A small disk of its own at ``place``; else why there is none."""
    if os.getuid() != 0:
        return "only root can mount a small disk"
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "chaos", str(place)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or "mount failed" if done.returncode else ""


def remove_disk(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
    shutil.rmtree(place, ignore_errors=True)

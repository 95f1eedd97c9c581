"""Whatever else the daemon does, no stream stands still for it: the gateway has a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.checks.ruff_lint import RuffLint
from coordinator.checks.shell import ShellCheck
from coordinator.checks.tool import Surroundings
from coordinator.domain.check import CheckStatus
from coordinator.domain.finding import ScanStatus
from coordinator.domain.settings import FleetSettings, GateSettings
from coordinator.fleet.spool import Spool
from coordinator.kit.clock import SystemClock
from coordinator.kit.git import Git
from coordinator.kit.store import Store
from tests.checks.rig import order_for
from tests.conftest import git as run_git
from tests.gateway.rig import House

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMER = Path(__file__).with_name("streamer.py")
STALL_MS = 20.0
SECONDS = 2.0
FILES = 10_000
MODULES = 200
TRIES = 8
"""A busy machine holds everybody up now and then; what the daemon's own work does to a stream, it does each time."""


@contextmanager
def streamer() -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, str(STREAMER), str(SECONDS)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(5)


async def worst_lag(house: House, process: subprocess.Popen[str], *, busy: object = None) -> float:
    """Of one stream, in milliseconds, while the main loop does ``busy`` over and over."""
    base, key = house.gateway.credentials("fix-it", 1)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{house.port} {base.removeprefix(house.gateway.url)}/v1/messages {key}\n")
    process.stdin.flush()
    answer: list[str] = []
    stdout = process.stdout
    reading = threading.Thread(target=lambda: answer.append(stdout.readline()))
    reading.start()
    while reading.is_alive():
        await (busy() if callable(busy) else asyncio.sleep(0.01))  # type: ignore[misc]
    lags = json.loads(answer[0])
    assert len(lags) > 20
    return max(lags[5:])


async def test_the_daemons_own_work_stalls_no_stream(tmp_path: Path, repository: Path) -> None:
    """It reads ten thousand task files, commits to SQLite, parses a report, and runs git, a check and a scan on a working tree."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for number in range(FILES):
        (tasks / f"{number}.toml").write_text(f'[[tasks]]\nid = "t{number}"\nprompt = "{"do it " * 40}"\n')
    store = Store.open(tmp_path / "ledger.db")
    findings = [
        json.dumps({"code": "F401", "message": "m" * 80, "location": {"row": n, "column": 1}}) for n in range(5000)
    ]
    clone = tmp_path / "clone"  # as an attempt has one
    run_git(repository, "clone", "--quiet", "--shared", str(repository), str(clone))
    for number in range(MODULES):
        (clone / f"module{number}.py").write_text("import os\n" + f"def f{number}() -> None:\n    pass\n" * 20)
    git, scratch = Git(repository, repository / ".git"), tmp_path / "check"
    scratch.mkdir()
    head = await git.resolve("main")
    assert head is not None
    check = ShellCheck("cat module*.py | sort | uniq -c", surroundings=Surroundings(gate=GateSettings()), identity="")
    order = order_for(RuffLint(), clone, tmp_path / "scan")
    done: list[tuple[object, ...]] = []
    rows = [{"key": f"k{number}", "value": "v" * 200} for number in range(500)]

    with streamer() as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        async with House(tmp_path / "state", f"http://127.0.0.1:{port}") as house:

            async def work() -> None:
                spool = Spool(tasks, tmp_path, FleetSettings(), house.bus, SystemClock(), lambda _: None, known=tuple)
                under_way = asyncio.gather(
                    spool.read(),
                    git.snapshot(clone, head, author=("Ada", "ada@example.org"), message="Work"),
                    check.run(clone, scratch),
                    RuffLint().scan(order),
                )
                store.execute_many("fact_put", rows)
                for line in findings:  # as ruff's report is read
                    json.loads(line)
                state, kept, checked, scanned = await under_way
                done.append((len(state.tasks), kept.changed, checked.status, scanned.status, len(scanned.findings)))

            stalls: list[float] = []
            for _ in range(TRIES):
                idle = await worst_lag(house, process)
                stalls.append(await worst_lag(house, process, busy=work) - idle)
                if stalls[-1] <= STALL_MS:
                    break
            assert min(stalls) <= STALL_MS
            assert set(done) == {(FILES, True, CheckStatus.PASSED, ScanStatus.SCANNED, 20 * MODULES)}, (
                "it was real work"
            )
    store.close()

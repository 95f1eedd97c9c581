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

from coordinator.domain.settings import FleetSettings
from coordinator.fleet.spool import Spool
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from tests.gateway.rig import House

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMER = Path(__file__).with_name("streamer.py")
STALL_MS = 20.0
SECONDS = 2.0
FILES = 3000
TRIES = 4
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


async def test_the_daemons_own_work_stalls_no_stream(tmp_path: Path) -> None:
    """It reads thousands of task files, commits to SQLite, parses and starts processes, all on its own loop."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for number in range(FILES):
        (tasks / f"{number}.toml").write_text(f'[[tasks]]\nid = "t{number}"\nprompt = "{"do it " * 40}"\n')
    store = Store.open(tmp_path / "ledger.db")
    findings = [
        json.dumps({"code": "F401", "message": "m" * 80, "location": {"row": n, "column": 1}}) for n in range(5000)
    ]
    rows = [{"key": f"k{number}", "value": "v" * 200} for number in range(500)]

    with streamer() as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        async with House(tmp_path / "state", f"http://127.0.0.1:{port}") as house:

            async def work() -> None:
                spool = Spool(tasks, tmp_path, FleetSettings(), house.bus, SystemClock(), lambda _: None, known=tuple)
                await spool.read()
                store.execute_many("fact_put", rows)
                for line in findings:  # as ruff's report is read
                    json.loads(line)
                subprocess.run([sys.executable, "-S", "-c", ""], check=True)  # noqa: ASYNC221 - blocking is the point

            stalls = []
            for _ in range(TRIES):
                idle = await worst_lag(house, process)
                stalls.append(await worst_lag(house, process, busy=work) - idle)
                if stalls[-1] <= STALL_MS:
                    break
            assert min(stalls) <= STALL_MS
    store.close()

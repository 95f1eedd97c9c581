"""The daemon as a service: what the service manager hears, a reload that keeps agents at work, a stop that leaves them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.lock import process_start
from coordinator.kit.systemd import Systemd
from coordinator.surface.systemd import SystemdReport
from tests.waiting import wait_until
from tests.walks.house import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.walks.house import House


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "600000"}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self.heard += self._socket.recv(65536).decode().splitlines()
            except OSError:
                return

    def count(self, line: str) -> int:
        return sum(one.startswith(line) for one in self.heard)

    def wait_for(self, line: str, times: int = 1) -> None:
        wait_until(lambda: self.count(line) >= times, 20, what=f"{times} × {line}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    made = Manager(tmp_path_factory.mktemp("n") / "s")
    yield made
    made.close()


@pytest.fixture
def service(house: House, manager: Manager) -> Iterator[subprocess.Popen[str]]:
    with _start(house, manager) as process:
        manager.wait_for("READY=1")
        yield process
        process.kill()
    for path in (house.top / "tasks").glob("*.toml"):
        path.unlink()
    house.command("run", "--until-idle")


def _start(house: House, manager: Manager, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), "run", *options]
    environment = {**ENVIRONMENT, **manager.environment}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _at_work(house: House, task: str) -> tuple[Path, int]:
    """A task whose agent waits for a file; that file, and the process."""
    go, pid_file = house.top.parent / f"{task}.go", house.top.parent / f"{task}.pid"
    house.task(task, f"echo $$ > {pid_file}; while [ ! -e {go} ]; do sleep 0.02; done; echo done > {task}.txt")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), 20, what=f"{task} at work")
    return go, int(pid_file.read_text())


def test_it_says_ready_lives_and_says_that_it_stops(
    house: House, manager: Manager, service: subprocess.Popen[str]
) -> None:
    manager.wait_for("WATCHDOG=1", 3)
    _at_work(house, "one")[0].touch()
    wait_until(lambda: house.states().get("one") == "completed", 20)
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=30)
    manager.wait_for("STOPPING=1")
    assert service.returncode == 0
    assert manager.count("STATUS=")


@pytest.mark.parametrize(("turned_s", "heard"), [(1.0, True), (1000.0, False)])
async def test_the_watchdog_hears_only_of_a_daemon_whose_work_loop_turns(
    manager: Manager, turned_s: float, heard: bool
) -> None:
    bus = Bus(SystemClock())
    snapshot = SimpleNamespace(agents=(), counts={"ready": 2}, gate_broken="", refusal="no memory")
    live: Any = SimpleNamespace(bus=bus, clock=SystemClock(), snapshot=lambda: snapshot, turned_s=lambda: turned_s)
    told = Systemd.from_environment(manager.environment)
    assert told is not None
    report, stopping = SystemdReport(live, told), asyncio.Event()
    running = asyncio.create_task(report.run(stopping))
    status = "STATUS=0 of 0 agents at work; tasks: 2 ready; nothing is started: no memory"
    await asyncio.to_thread(manager.wait_for, status)  # it is told after the beat of the same round
    assert manager.count("WATCHDOG=1") == heard
    stopping.set()
    await running


def test_nobody_is_told_when_nobody_asked() -> None:
    assert Systemd.from_environment({}) is None
    other = Systemd.from_environment({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"})
    assert other is not None
    assert other.watchdog_s is None
    assert other.tell(READY="1") is False


def test_a_reload_takes_new_settings_and_keeps_agents_at_work(
    house: House, manager: Manager, service: subprocess.Popen[str]
) -> None:
    go, pid = _at_work(house, "slow")
    settings = house.top / "coordinator.toml"
    good = settings.read_text()
    settings.write_text(good.replace("agents = 3", "agents = 3000"))
    service.send_signal(signal.SIGHUP)
    manager.wait_for("STATUS=not reloaded: coordinator.toml:2: fleet.agents")
    assert process_start(pid) is not None
    settings.write_text(f'{good}\n[gateway]\nhost = "203.0.113.254"\n')
    service.send_signal(signal.SIGHUP)
    manager.wait_for("STATUS=not reloaded: [gateway] host: '203.0.113.254' is no address of this machine")
    settings.write_text(good.replace("backoff_s = 0.1", "backoff_s = 0.2") + '\n[land]\ntarget = "elsewhere"\n')
    service.send_signal(signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    manager.wait_for("READY=1", 4)  # at first, after each refusal, after the reload
    assert process_start(pid) is not None
    go.touch()
    wait_until(lambda: house.states().get("slow") == "completed", 20)
    assert house.show("slow.txt", "elsewhere") == "done"
    assert house.rows("SELECT generation FROM tasks") == [(1,)]


def test_a_stop_can_leave_the_agents_and_the_next_daemon_finds_them(house: House, manager: Manager) -> None:
    with _start(house, manager, "--leave-agents") as first:
        manager.wait_for("READY=1")
        go, pid = _at_work(house, "slow")
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=20)
    assert "left at work" in out
    assert process_start(pid) is not None
    go.touch()
    assert house.command("run", "--until-idle").returncode == 0
    assert house.landed() == ["slow"]
    assert house.rows("SELECT generation FROM tasks") == [(1,)]


def test_a_stop_that_takes_too_long_stops_the_agents_too(house: House, manager: Manager) -> None:
    with _start(house, manager, "--stop-within", "0.5") as daemon:
        manager.wait_for("READY=1")
        _, pid = _at_work(house, "endless")
        daemon.send_signal(signal.SIGTERM)
        daemon.communicate(timeout=30)
    assert process_start(pid) is None
    assert house.rows("SELECT ending FROM attempts") in ([("stopped",)], [("",)])
    house.task("endless", "echo done > endless.txt")
    assert house.command("run", "--until-idle").returncode == 0


def test_it_is_printed_or_installed_and_no_stranger_is_overwritten(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "HOME", str(tmp_path))
    printed = house.command("systemd", "--self-improve", "--agents", "3").stdout
    assert printed.startswith("[Unit]\n")
    assert "run --stop-within 270 --self-improve --agents 3\n" in printed
    assert not (tmp_path / ".config").exists()
    done = json.loads(house.command("systemd", "--install", "--json").stdout)
    unit = tmp_path / ".config/systemd/user" / done["name"]
    assert unit.read_text() == done["unit"]
    assert house.command("systemd", "--install").returncode == 0
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    refused = house.command("systemd", "--install")
    assert (refused.returncode, unit.read_text()) == (2, "[Service]\nExecStart=/bin/true\n")
    assert "not ours" in refused.stdout + refused.stderr


def test_a_system_unit_names_whom_it_runs_as(house: House) -> None:
    assert "\nUser=daemon\n" in house.command("systemd", "--system", "--user", "daemon").stdout

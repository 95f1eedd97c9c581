"""Nothing of an attempt survives its end, however it ends and whatever its processes do to hide; and nothing of a check of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.fleet.muster import STOP_FILE
from coordinator.kit import lock, process_table
from tests.fleet.orders import ENV, offer, start_agent
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.sdk.layout import Layout
    from tests.fleet.orders import Offer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cannot run here: only Linux lets us adopt orphans")

WITHIN_S = 5.0

ZOO = r"""
import os, signal, socket, sys, time

up, port_file = sys.argv[1:3]
until = time.monotonic() + 60

def born(name):
    with open(up, "a") as file:
        file.write(name + "\n")

def rest():
    while time.monotonic() < until:
        time.sleep(0.2)
    os._exit(0)

def session():
    os.setsid(); born("session"); rest()

def double_fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    born("double_fork"); rest()

def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    born("deaf"); rest()

def bare():
    "no session, no parent, no environment, no descriptor of ours: a daemon by the book"
    os.setsid()
    if os.fork():
        os._exit(0)
    script = "import os, sys, time; open(sys.argv[1], 'a').write('bare\\n'); os.closerange(0, 256); time.sleep(60)"
    os.closerange(0, 256)
    os.execve(sys.executable, [sys.executable, "-S", "-c", script, up], {})

def server():
    os.setsid()
    listening = socket.create_server(("127.0.0.1", 0))
    with open(port_file, "w") as file:
        file.write(f"{listening.getsockname()[1]}\n")
    born("server"); rest()

def stopped():
    born("stopped"); os.kill(os.getpid(), signal.SIGSTOP)

def racer():
    born("racer")
    while time.monotonic() < until:
        if os.fork():
            os._exit(0)
        os.setsid()

for kind in (session, double_fork, deaf, bare, server, stopped, racer):
    if not os.fork():
        kind()
"""
KINDS = {"session", "double_fork", "deaf", "bare", "server", "stopped", "racer"}


@pytest.fixture
def zoo(layout: Layout) -> Iterator[Offer]:
    """A task whose command starts one of each kind and goes on when it is told to. Whatever a failed test leaves dies."""
    program = layout.state / "zoo"
    program.write_text(ZOO)
    script = (
        f'"{sys.executable}" -S "{program}" "$COORDINATOR_ATTEMPT/up" "$COORDINATOR_ATTEMPT/port"; echo $PPID > '
        '"$COORDINATOR_ATTEMPT/warden"; while ! [ -e "$COORDINATOR_ATTEMPT/go" ]; do sleep 0.02; done'
    )
    task = offer(layout, "one", script, grace_s=0.3, timeout_s=60.0)
    yield task
    for pid in _in(task.tree):
        os.kill(pid, signal.SIGKILL)


def _in(folder: Path) -> list[int]:
    """The processes that work in a folder, as all of the zoo do."""
    return [pid for pid, row in process_table.rows().items() if not row.zombie and _works_in(pid, folder)]


def _works_in(pid: int, folder: Path) -> bool:
    try:
        place = os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False
    return Path(place.removesuffix(" (deleted)")) == folder


def _at_work(task: Offer) -> None:
    up = task.folder / "up"
    wait_until(lambda: up.exists() and set(up.read_text().split()) == KINDS, 20, what="one of each kind")
    task.wait_for("warden")
    assert len(_in(task.tree)) >= len(KINDS)
    socket.create_connection(("127.0.0.1", int(task.wait_for("port")))).close()


def _nothing_left(task: Offer, began: float) -> None:
    """The instant in which the claim is free, all are dead; and that comes soon."""
    wait_until(lambda: not task.held(), 20)
    assert _in(task.tree) == []
    assert time.monotonic() - began < WITHIN_S
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(task.wait_for("port"))))


def test_the_command_ends_by_itself(layout: Layout, zoo: Offer) -> None:
    agent = start_agent(layout)
    _at_work(zoo)
    began = time.monotonic()
    (zoo.folder / "go").touch()
    _nothing_left(zoo, began)
    assert zoo.ended().outcome == "done"
    assert agent.wait(20) == 0


def test_the_attempt_is_stopped(layout: Layout, zoo: Offer) -> None:
    agent = start_agent(layout)
    _at_work(zoo)
    began = time.monotonic()
    lock.write_atomic(zoo.folder / STOP_FILE, b"cancelled\n")
    _nothing_left(zoo, began)
    assert zoo.ended().outcome == "stopped"
    assert agent.wait(20) == 0


def test_the_agent_process_is_killed(layout: Layout, zoo: Offer) -> None:
    agent = start_agent(layout)
    _at_work(zoo)
    began = time.monotonic()
    agent.kill()
    agent.wait()
    _nothing_left(zoo, began)
    assert zoo.result is None


def test_the_warden_is_killed_and_then_the_attempt_ends(layout: Layout, zoo: Offer) -> None:
    """Whoever loses the warden falls to the agent process, which adopts orphans as well."""
    agent = start_agent(layout)
    _at_work(zoo)
    began = time.monotonic()
    os.kill(int(zoo.wait_for("warden")), signal.SIGKILL)
    _nothing_left(zoo, began)
    assert agent.wait(20) == 0
    assert zoo.ended().outcome == "failed"


@pytest.mark.parametrize("killed", [False, True])
def test_a_check_of_ours(tmp_path: Path, killed: bool) -> None:
    """The daemon's own checks, when they are over and when the daemon is killed in the middle."""
    zoo, tree, up, port = (tmp_path / name for name in ("zoo", "tree", "up", "port"))
    zoo.write_text(ZOO)
    tree.mkdir()
    argv = ["sh", "-c", f'"{sys.executable}" -S "{zoo}" "{up}" "{port}"; while ! [ -e ../go ]; do sleep 0.02; done']
    daemon = (
        "import asyncio; from pathlib import Path\n"
        "from coordinator.checks.tool import run_tool; from coordinator.kit.process import Limits\n"
        f"done = asyncio.run(run_tool({argv!r}, cwd=Path('tree'), env={{'PATH': {os.environ['PATH']!r}}},"
        " limits=Limits(timeout_s=60, grace_s=0.3), log=Path('log')))\n"
        "print(done.code)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", daemon], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: up.exists() and set(up.read_text().split()) == KINDS, 20, what="one of each kind")
        if killed:
            running.kill()
        else:
            (tmp_path / "go").touch()
        said, _ = running.communicate(timeout=20)
        assert said == (b"" if killed else b"0\n")
        wait_until(lambda: not _in(tree), WITHIN_S if killed else 0.0)
    finally:
        for pid in _in(tree):
            os.kill(pid, signal.SIGKILL)

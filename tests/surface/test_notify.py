from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.event import Event, GateBroke, Noticed, TaskLanded
from coordinator.domain.settings import NotifyHook
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.surface.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BROKEN = GateBroke(command="pytest", reason="not found")
LANDED = TaskLanded(task="t", commit="c" * 40, files=("a.py",), generation=1, target="b")


class Ears:
    """A web server that keeps what it is told and answers with the statuses given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.heard: list[dict[str, Any]] = []
        self.asked = 0
        self.statuses = list(statuses)
        self.hang = threading.Event()
        self.hang.set()

    @contextmanager
    def listening(self) -> Iterator[str]:
        ears = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ears.asked += 1
                ears.hang.wait(10)
                status = ears.statuses.pop(0) if ears.statuses else 200
                if status == 200:
                    ears.heard.append(json.loads(body))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook?token=secret"
        finally:
            self.hang.set()
            server.shutdown()
            server.server_close()


async def told(root: Path, hooks: list[NotifyHook], *events: Event) -> float:
    """Seconds until everything was said, or given up."""
    bus, stopping = Bus(SystemClock()), asyncio.Event()
    notifier = Notifier(bus, hooks, root, root / "notify.log", pause_s=0.01)
    run = asyncio.create_task(notifier.run(stopping))
    for event in events:
        bus.publish(event)
    await asyncio.sleep(0)
    started = asyncio.get_running_loop().time()
    stopping.set()
    await run
    return asyncio.get_running_loop().time() - started


async def test_a_url_is_posted_what_happened_and_only_that(tmp_path: Path) -> None:
    ears = Ears()
    with ears.listening() as url:
        await told(tmp_path, [NotifyHook(url=url)], LANDED, BROKEN, Noticed(subject="target", message="m"))
    [message] = ears.heard
    assert message["occasion"] == "gate_broken"
    assert message["event"]["kind"] == "gate_broke"
    assert message["repository"] == str(tmp_path)
    assert "not found" in message["text"]
    assert message["text"].startswith(tmp_path.name)


async def test_a_url_may_stand_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ears = Ears()
    with ears.listening() as url:
        monkeypatch.setenv("HOOK_URL", url)
        await told(tmp_path, [NotifyHook(url_env="HOOK_URL")], BROKEN)
    assert len(ears.heard) == 1


async def test_who_does_not_take_it_is_told_again_and_then_it_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ears = Ears(500, 503)
    with ears.listening() as url:
        await told(tmp_path, [NotifyHook(url=url, retries=2)], BROKEN)
        assert (ears.asked, len(ears.heard)) == (3, 1)
        assert not caplog.records
        ears.statuses = [500] * 9
        await told(tmp_path, [NotifyHook(url=url, retries=2)], BROKEN)
    assert ears.asked == 6
    assert "500" in caplog.text
    assert "gate_broken" in caplog.text
    assert "secret" not in caplog.text


async def test_a_redirect_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ears = Ears(302)
    with ears.listening() as url:
        await told(tmp_path, [NotifyHook(url=url, retries=0)], BROKEN)
    assert ears.asked == 1
    assert "302" in caplog.text


async def test_nobody_there_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await told(tmp_path, [NotifyHook(url="http://127.0.0.1:9/", retries=1)], BROKEN)
    assert "was not told of gate_broken" in caplog.text


async def test_a_command_gets_it_on_its_standard_input(tmp_path: Path) -> None:
    script = "import os, sys; open('said', 'w').write(os.environ['COORDINATOR_OCCASION'] + sys.stdin.read())"
    await told(tmp_path, [NotifyHook(command=(sys.executable, "-c", script), on=("task_landed",))], LANDED)
    said = (tmp_path / "said").read_text()
    assert said.startswith("task_landed{")
    assert json.loads(said.removeprefix("task_landed"))["event"]["task"] == "t"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("false",), "ended with 1"),
        (("no-such-program-here",), "no-such-program-here"),
        (("sleep", "30"), "longer than"),
    ],
)
async def test_a_command_that_fails_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, command: tuple[str, ...], words: str
) -> None:
    await told(tmp_path, [NotifyHook(command=command, retries=0, timeout_s=0.3)], BROKEN)
    assert words in caplog.text


async def test_a_slow_hook_holds_up_no_other_and_not_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.surface.notify._LAST_WORDS_S", 0.5)
    slow, quick = Ears(), Ears()
    slow.hang.clear()
    with slow.listening() as first, quick.listening() as second:
        took_s = await told(tmp_path, [NotifyHook(url=first), NotifyHook(url=second)], BROKEN, BROKEN)
        assert len(quick.heard) == 2
        assert not slow.heard
        assert took_s < 5.0
        slow.hang.set()


async def test_a_full_queue_loses_its_oldest_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coordinator.surface.notify._ROOM", 2)
    ears = Ears()
    events = [GateBroke(command="pytest", reason=f"reason-{turn}") for turn in range(4)]
    with ears.listening() as url:
        await told(tmp_path, [NotifyHook(url=url)], *events)
    assert [message["event"]["reason"] for message in ears.heard][-2:] == ["reason-2", "reason-3"]
    assert "was dropped" in caplog.text

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import pytest

from coordinator.api.desk import LiveAgent, LiveSnapshot
from coordinator.api.phrase import phrase
from coordinator.api.view import duration, width_of
from coordinator.domain.event import TaskChanged, TaskLanded
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.surface.live import LiveView

LONG = "Remove the unused imports from every module below the package " * 3

BUSY = LiveSnapshot(
    agents=(
        LiveAgent(
            name="agent-1",
            doing="running",
            generation=1,
            note="ruff: \x1b[2Jfixing 4 files",
            pid=1,
            since_s=75,
            task="a",
            title=LONG,
        ),
        LiveAgent(name="agent-on-another-host", generation=2, note=LONG, pid=2, since_s=4000, task="b" * 100),
        LiveAgent(name="agent-3", pid=3, since_s=0),
    ),
    counts={
        "pending": 12_000,
        "ready": 3,
        "running": 2,
        "validating": 1,
        "landing": 1,
        "failed": 2,
        "blocked": 4,
        "held": 9,
    },
    draining=True,
    elapsed_s=3725,
    gate_broken="pytest: " + LONG,
    refusal="low disk",
    target="coordinator/main",
    waiting=1,
)
IDLE = LiveSnapshot(agents=(), counts={}, draining=False, elapsed_s=0, target="t", judging=True)


class _Live:
    def __init__(self) -> None:
        self.bus = Bus(SystemClock())
        self.seen = BUSY

    def snapshot(self) -> LiveSnapshot:
        return self.seen


def _rows(lines: list) -> list[str]:
    return ["".join(span.text for span in line) for line in lines]


@pytest.mark.parametrize("width", [50, 60, 80, 100])
@pytest.mark.parametrize("seen", [BUSY, IDLE], ids=["busy", "idle"])
def test_the_picture_fits_and_is_harmless(seen: LiveSnapshot, width: int) -> None:
    view = LiveView(_Live(), io.StringIO(), columns=lambda: width)
    rows = _rows(view.picture(seen))
    assert all(width_of(row) < width for row in rows), rows
    assert "\x1b" not in "".join(rows)
    assert len(rows) <= 24


def test_the_picture_says_who_does_what_and_how_to_stop() -> None:
    view = LiveView(_Live(), io.StringIO(), columns=lambda: 80)
    text = "\n".join(_rows(view.picture(BUSY)))
    for said in (
        "1:02:05",
        "12003 waiting",
        "agent-1",
        "running",
        "1:15",
        "Remove the unused",
        "fixing 4 files",
        "gate broken",
    ):
        assert said in text
    assert "Ctrl-C again stops now" in text
    idle = "\n".join(_rows(view.picture(IDLE)))
    assert "no agent at work" in idle
    assert "Ctrl-C: finish" in idle


def test_the_gate_says_what_it_is_at_and_for_how_long() -> None:
    view = LiveView(_Live(), io.StringIO(), columns=lambda: 80)
    text = "\n".join(_rows(view.picture(replace(IDLE, checking="pytest", checking_s=125.0))))
    assert f"gate: pytest for {duration(125.0)}" in text
    assert "gate: judging the merged tree" in "\n".join(_rows(view.picture(IDLE)))


def test_news_is_wrapped_beside_its_word() -> None:
    view = LiveView(_Live(), io.StringIO(), columns=lambda: 60)
    news = phrase(TaskChanged(task="t", old="running", new="failed", reason=LONG, generation=1))
    rows = _rows(view.news("12:00:00", news))
    assert all(width_of(row) < 60 for row in rows)
    assert rows[0].startswith("12:00:00 failed")
    assert rows[1].startswith(" " * 19)


async def test_it_draws_on_a_terminal_and_leaves_only_the_news(monkeypatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    live, stopping, screen = _Live(), asyncio.Event(), Tty()
    view = LiveView(live, screen, columns=lambda: 80)
    live.bus.publish(TaskLanded(task="t", commit="c" * 40, files=("a.py",), generation=1, target="b", title="T"))
    running = asyncio.create_task(view.run(stopping))
    async with asyncio.timeout(5):
        for _ in iter(lambda: "1 landed" in screen.getvalue(), True):
            await asyncio.sleep(0.01)
    stopping.set()
    await asyncio.wait_for(running, 5)
    assert "t: T, a.py, cccccccccc" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in screen.getvalue()[-40:]

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys

import pytest

from coordinator.domain.errors import BadInput
from coordinator.domain.event import AgentStarted, AttemptEnded, GateBroke, Noticed, TaskLanded
from coordinator.domain.settings import LogSettings
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.surface.log import EventLog, JsonFormat, TextFormat, log_settings

EVENTS = [
    AgentStarted(agent="agent-1", pid=7),
    Noticed(subject="disk", message="low\x1b[2J"),
    TaskLanded(task="t", commit="c" * 40, files=("a.py",), generation=1, target="b"),
    AttemptEnded(task="t", ending="landed", generation=1, reason="r"),
    GateBroke(command="pytest", reason="not found"),
]


async def _written(settings: LogSettings, *, every: bool = False, stream: io.StringIO | None = None) -> list[str]:
    bus, stopping = Bus(SystemClock()), asyncio.Event()
    stream = stream or io.StringIO()
    service = EventLog(bus, stream, settings, every=every)
    for event in EVENTS:
        bus.publish(event)
    stopping.set()
    await asyncio.wait_for(service.run(stopping), 5)
    return stream.getvalue().splitlines()


async def test_text_has_one_harmless_line_for_each_interesting_event() -> None:
    lines = await _written(LogSettings())
    assert [line.split()[1] for line in lines] == ["disk", "landed", "gate"]
    assert "\x1b" not in "".join(lines)
    assert [line.split()[1] for line in await _written(LogSettings(level="error"))] == ["gate"]
    assert len(await _written(LogSettings(level="debug"))) == 5


async def test_json_has_one_object_a_line_with_action_and_message() -> None:
    rows = [json.loads(line) for line in await _written(LogSettings(format="json"))]
    assert [row["action"] for row in rows] == ["noticed", "task_landed", "gate_broke"]
    assert [row["level"] for row in rows] == ["warning", "info", "error"]
    assert rows[1]["task"] == "t"


async def test_every_event_is_there_for_json_readers_in_order() -> None:
    rows = [json.loads(line) for line in await _written(LogSettings(), every=True)]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0] == {
        "kind": "agent_started",
        "seq": 1,
        "at": rows[0]["at"],
        "adopted": False,
        "agent": "agent-1",
        "pid": 7,
    }


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


async def test_a_reader_that_left_stops_nothing() -> None:
    assert await _written(LogSettings(), stream=_Gone()) == []


def test_the_environment_wins_and_its_faults_are_named_together() -> None:
    assert log_settings(LogSettings(), {"LOG_FORMAT": "JSON", "LOG_LEVEL": ""}) == LogSettings(format="json")
    with pytest.raises(BadInput) as caught:
        log_settings(LogSettings(), {"LOG_FORMAT": "xml", "LOG_LEVEL": "loud"})
    assert [problem.key for problem in caught.value.problems] == ["LOG_FORMAT", "LOG_LEVEL"]


def _record(**extra: object) -> logging.LogRecord:
    try:
        raise ValueError("no")
    except ValueError:
        fault = sys.exc_info()
    record = logging.LogRecord("coordinator.x", logging.ERROR, "f", 1, "it %s", ("failed",), fault)
    vars(record).update(extra)
    return record


def test_records_keep_what_the_caller_added() -> None:
    data = json.loads(JsonFormat().format(_record(action="x_failed", task="t")))
    assert (data["action"], data["message"], data["task"], data["level"]) == ("x_failed", "it failed", "t", "error")
    assert "ValueError: no" in data["trace"]
    text = TextFormat().format(_record(action="x_failed", task="t\x1b[2J"))
    assert "error: it failed task=t [2J\n" in text
    assert "ValueError: no" in text

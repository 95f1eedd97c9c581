from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.api.summary import RunSummary, show_summary
from coordinator.api.view import width_of
from coordinator.domain import event as happened
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Mapping

LONG = "1 new failure in tests/test_everything.py::test_that_has_a_long_name, which passed on the target before"


def _folded(status: str = "scanned", **numbers: int) -> happened.FindingsFolded:
    values = {"opened": 0, "closed": 0, "queued": 0, "total": 0, **numbers}
    return happened.FindingsFolded(tool="ruff", status=status, reason="", took_s=0.1, **values)


def _ended(task: str, ending: str, generation: int = 1) -> happened.AttemptEnded:
    return happened.AttemptEnded(task=task, ending=ending, generation=generation, reason=LONG)


def _run(*events: happened.Event, counts: Mapping[str, int] | None = None) -> tuple[dict, str]:
    bus, summary = Bus(SystemClock()), RunSummary()
    bus.tap(summary.take)
    for event in events:
        bus.publish(event)
    data = summary.data(counts or {}, "/r")
    for width in (60, 80):
        rows = ["".join(span.text for span in line) for line in show_summary(data, width)]
        assert all(width_of(row) <= width for row in rows), rows
    return data, "\n".join(rows)


def test_a_look_at_a_part_adds_and_a_tool_that_is_no_longer_called_for_is_done_with() -> None:
    data, _ = _run(
        _folded(total=4, opened=4),
        _folded("partial", total=2, opened=1),
        happened.DaemonStopped(reason="idle"),
    )
    assert [(one["found"], one["fixed"], one["left"]) for one in data["findings"]] == [(5, 0, 5)]
    data, text = _run(_folded(total=4, opened=4), _folded("uncalled", closed=4), happened.DaemonStopped(reason="idle"))
    assert [(one["found"], one["fixed"], one["left"]) for one in data["findings"]] == [(4, 4, 0)]
    assert "findings list" not in text
    _, text = _run(_folded(total=0), happened.DaemonStopped(reason="idle"))
    assert "nothing by ruff" in text


def test_everything_is_counted_from_events() -> None:
    data, text = _run(
        happened.DaemonReady(adopted=0, api="", pid=1, target="coordinator/main", tasks=3, took_s=0.1),
        _folded(total=10, opened=10, queued=3),
        _ended("a", "gate_failed"),
        _ended("a", "landed", 2),
        happened.TaskLanded(task="a", commit="c" * 40, files=("x.py",), generation=2, target="coordinator/main"),
        _folded(total=8, opened=1, closed=3),
        _ended("b", "conflict"),
        _ended("b", "crashed", 2),
        happened.TaskChanged(task="b", old="running", new="failed", reason=LONG, generation=2),
        happened.DaemonStopped(reason="idle"),
        counts={"completed": 1, "failed": 1, "blocked": 2},
    )
    assert data["findings"] == [{"tool": "ruff", "found": 11, "fixed": 3, "left": 8, "status": "scanned", "reason": ""}]
    assert [row["task"] for row in data["landed"]] == ["a"]
    assert [(row["task"], row["ending"]) for row in data["refused"]] == [("a", "gate_failed"), ("b", "conflict")]
    assert [row["task"] for row in data["failed"]] == ["b"]
    assert data["attempts_not_landed"] == {"conflict": 1, "crashed": 1, "gate_failed": 1}
    for said in ("nothing is left to do", "2 attempts of 2 tasks", "git log -p HEAD..coordinator/main", "2 blocked"):
        assert said in text
    assert "coordinator explain b" in text
    assert "coordinator findings list" in text


def test_a_tool_that_never_looked_is_not_clean() -> None:
    _, text = _run(_folded("unavailable"), happened.DaemonStopped(reason="idle"))
    assert "ruff did not scan (unavailable)" in text
    assert "nothing" in text


def test_a_task_that_failed_and_landed_after_a_retry_is_not_failed() -> None:
    data, _ = _run(
        happened.TaskChanged(task="b", old="running", new="failed", reason=LONG, generation=2),
        happened.TaskChanged(task="b", old="failed", new="pending", reason="retried", generation=2),
    )
    assert data["failed"] == []


def test_a_gate_that_stayed_broken_is_said_and_one_that_mended_is_not() -> None:
    broke = happened.GateBroke(command="pytest", reason="not found")
    assert "The gate is broken, nothing lands: pytest: not found" in _run(broke)[1]
    assert "broken" not in _run(broke, happened.GateMended(stopped_s=3))[1]


def _landed(task: str, **more: str) -> happened.TaskLanded:
    return happened.TaskLanded(task=task, commit="c" * 40, files=("x.py",), generation=1, target="t", **more)


def test_what_landed_untested_is_one_warning_with_a_remedy() -> None:
    why = "pytest (pytest is not installed for /somewhere/.venv/bin/python)"
    judged = happened.GateJudged(tasks=("a", "b"), took_s=1, verdict="passed", untested=why)
    data, text = _run(judged, _landed("a"), _landed("b"), _landed("c", untested=why), _landed("d"))
    assert [bool(row["untested"]) for row in data["landed"]] == [True, True, True, False]
    assert text.count("untested") == 1
    assert "3 of them untested: pytest" in text
    assert "make a .venv" in " ".join(text.split())
    _, text = _run(
        _landed("d", untested="npm test (its node_modules are elsewhere)"), happened.DaemonStopped(reason="")
    )
    assert "npm ci && npm test" in " ".join(text.split())
    assert ".venv" not in text
    again = happened.GateJudged(tasks=("a",), took_s=1, verdict="passed")
    assert "untested" not in _run(judged, again, _landed("a"))[1]


def test_who_waits_beside_the_line_is_told_and_the_gate_is_not_called_broken() -> None:
    broke = happened.GateBroke(command="pytest", reason="the project's tests cannot be run", tasks=("a", "b"))
    data, text = _run(broke)
    assert [row["task"] for row in data["gate_parked"]] == ["a", "b"]
    assert data["gate_broken"] == ""
    assert "2 tasks done, but not landed: the project's tests cannot be run" in " ".join(text.split())
    moved = [
        happened.TaskChanged(task=task, old="validating", new=new, reason="r", generation=1)
        for task, new in (("a", "completed"), ("b", "cancelled"))
    ]
    assert _run(broke, *moved)[0]["gate_parked"] == []

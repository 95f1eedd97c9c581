from __future__ import annotations

import pytest

from coordinator.domain import event as happened
from coordinator.domain.attempt import Ending
from coordinator.domain.settings import OCCASIONS, NotifyHook
from coordinator.domain.task import TaskState
from coordinator.policy.notify import occasion

CASES = {
    "agent_stopped": happened.AttemptEnded(task="t", ending=Ending.STALLED, generation=1, reason=""),
    "budget": happened.AttemptEnded(task="t", ending=Ending.OVER_BUDGET, generation=1, reason=""),
    "daemon_ready": happened.DaemonReady(adopted=0, api="", pid=1, target="t", tasks=0, took_s=0.1),
    "daemon_stopped": happened.DaemonStopped(reason="r"),
    "fleet_idle": happened.FleetIdle(completed=1, failed=0, held=0),
    "gate_broken": happened.GateBroke(command="c", reason="r"),
    "gate_mended": happened.GateMended(stopped_s=1.0),
    "incident": happened.IncidentSeen(cause="c", level="warning", metrics=("fault",), number=1, size="s"),
    "incident_ended": happened.IncidentEnded(cause="c", lasted_s=60.0, number=1),
    "role_mended": happened.RoleMended(role="r"),
    "role_paused": happened.RolePaused(role="r", reason="m"),
    "task_failed": happened.TaskChanged(task="t", generation=1, old=TaskState.RUNNING, new=TaskState.FAILED, reason=""),
    "task_held": happened.TaskChanged(task="t", generation=1, old=TaskState.RUNNING, new=TaskState.HELD, reason=""),
    "task_landed": happened.TaskLanded(task="t", commit="c", files=(), generation=1, target="b"),
}


def test_each_occasion_has_an_event_that_is_one() -> None:
    assert set(CASES) == set(OCCASIONS)
    assert set(NotifyHook().on) <= set(OCCASIONS)


@pytest.mark.parametrize(("name", "event"), CASES.items())
def test_the_event_is_the_occasion(name: str, event: happened.Event) -> None:
    assert occasion(event) == name


@pytest.mark.parametrize(
    "event",
    [
        happened.AttemptEnded(task="t", ending=Ending.LANDED, generation=1, reason=""),
        happened.Noticed(subject="target", message="m"),
        happened.TaskChanged(task="t", generation=1, old=TaskState.READY, new=TaskState.RUNNING, reason=""),
    ],
)
def test_daily_business_calls_nobody(event: happened.Event) -> None:
    assert occasion(event) == ""

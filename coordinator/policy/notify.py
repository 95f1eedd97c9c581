"""Which events are an occasion to call a person.

An occasion is a name that stays the same when events change; ``domain.settings.OCCASIONS`` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.domain import event as happened
from coordinator.domain.attempt import Ending
from coordinator.domain.task import TaskState

if TYPE_CHECKING:
    from coordinator.domain.event import Event

_STOPPED: Final = frozenset({Ending.LOOPING, Ending.OVER_MEMORY, Ending.OVER_TIME, Ending.STALLED})


def occasion(event: Event) -> str:
    """The name of the occasion, empty when the event is none."""
    match event:
        case happened.AttemptEnded(ending=Ending.OVER_BUDGET):
            return "budget"
        case happened.AttemptEnded(ending=ending) if ending in _STOPPED:
            return "agent_stopped"
        case happened.DaemonReady():
            return "daemon_ready"
        case happened.DaemonStopped():
            return "daemon_stopped"
        case happened.FleetIdle():
            return "fleet_idle"
        case happened.GateBroke():
            return "gate_broken"
        case happened.GateMended():
            return "gate_mended"
        case happened.IncidentEnded():
            return "incident_ended"
        case happened.IncidentSeen():
            return "incident"
        case happened.RoleMended():
            return "role_mended"
        case happened.RolePaused():
            return "role_paused"
        case happened.TaskChanged(new=TaskState.FAILED):
            return "task_failed"
        case happened.TaskChanged(new=TaskState.HELD):
            return "task_held"
        case happened.TaskLanded():
            return "task_landed"
    return ""

"""How calls that do not end well are called, and what their callers hear of it.

Owns one invariant: both lanes tell the same end by the same name and in the same words. Who ends a call, and how the words
reach its caller, is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway.calls import CallEnding
from coordinator.gateway.dialect import Denial, Denied

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.gateway.calls import Call
    from coordinator.gateway.keys import Claim

NOTHING_LEFT: Final = "nothing is left of the budget for the rest of this answer"

_ENDINGS: Final[Mapping[Denial, CallEnding]] = {
    Denial.LIMITED: CallEnding.LIMITED,
    Denial.OVERLOADED: CallEnding.SHED,
    Denial.OVER_BUDGET: CallEnding.BUDGET,
    Denial.STOPPING: CallEnding.STOPPED,
    Denial.TOO_LATE: CallEnding.LATE,
    Denial.UNREACHED: CallEnding.UNREACHED,
}


class CallerStalled(ConnectionError):
    """A caller of a shared answer read so slowly that it was given up."""


def ending_of(denied: Denied) -> CallEnding:
    """Of a call that was refused so."""
    return _ENDINGS.get(denied.denial, CallEnding.REFUSED)


def why_cut(call: Call) -> Denied:
    """What is to be said of a call that was cut (``cut_for``)."""
    match call.cut_for:
        case CallEnding.REVOKED:
            return Denied(Denial.NOT_ALLOWED, revoked(call.claim))
        case CallEnding.BUDGET:
            return Denied(Denial.OVER_BUDGET, NOTHING_LEFT)
        case _:
            return Denied(Denial.STOPPING, "the gateway restarts; try again", retry_after_s=1.0)


def revoked(claim: Claim) -> str:
    """Why a key is good for nothing any more."""
    task, generation = claim
    return f"the key of attempt {generation} at {task} was revoked: the attempt was stopped or is over"

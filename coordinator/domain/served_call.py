"""What a model call that is over says about its upstream, its caller and us, read from its event.

Owns one invariant: each failed call has one kind of error, and a call that says nothing about its upstream (its caller hung up,
its key was revoked, it shared an answer) is neither a success nor a failure of it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.event import RequestServed


class CallError(enum.StrEnum):
    """The types of errors, by what helps against them."""

    BROKEN = "broken"
    """The upstream broke off in the middle of its answer."""
    CLIENT = "client"
    """What was asked cannot be answered: not the upstream's fault."""
    DENIED = "denied"
    LATE = "late"
    LIMITED = "limited"
    """A limit of the upstream or of ours stood in its way."""
    OVERLOADED = "overloaded"
    OWN = "own"
    SERVER = "server"
    SHED = "shed"
    UNREACHED = "unreached"


UPSTREAM_FAULTS: Final = frozenset(
    {CallError.BROKEN, CallError.DENIED, CallError.LATE, CallError.OVERLOADED, CallError.SERVER, CallError.UNREACHED}
)

_BY_ENDING: Final[Mapping[str, CallError]] = {
    "broken": CallError.BROKEN,
    "failed": CallError.OWN,
    "late": CallError.LATE,
    "limited": CallError.LIMITED,
    "refused": CallError.CLIENT,
    "shed": CallError.SHED,
    "unreached": CallError.UNREACHED,
}
_BY_STATUS: Final[Mapping[int, CallError]] = {
    401: CallError.DENIED,
    403: CallError.DENIED,
    408: CallError.LATE,
    429: CallError.LIMITED,
    503: CallError.OVERLOADED,
    504: CallError.LATE,
    529: CallError.OVERLOADED,
}
_SILENT: Final = frozenset({"budget", "left", "revoked", "stopped"})
"""Endings that say nothing of the upstream."""


def error_of(call: RequestServed) -> CallError | None:
    """None: it is no error of anybody's."""
    if call.ending != "served":
        return _BY_ENDING.get(call.ending)
    if call.status < 400:
        return None
    found = _BY_STATUS.get(call.status)
    return found or (CallError.SERVER if call.status >= 500 else CallError.CLIENT)


def tells_of_upstream(call: RequestServed) -> bool:
    """Whether an upstream answered it, or failed to."""
    return bool(call.upstream) and not call.collapsed and call.ending not in _SILENT

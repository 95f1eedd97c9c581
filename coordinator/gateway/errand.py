"""One call's part at an upstream. It begins for one caller, and may go on for others who listen to the same answer.

Owns one invariant: what ends the upstream's part ends it whoever listens, and says why; how a caller leaves is ``calls``'. It
knows neither what is asked nor how an answer reaches anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.gateway.calls import CallEnding

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from coordinator.gateway.calls import Call
    from coordinator.gateway.station import Station


class Errand:
    """``begun``: a byte of an answer's body was passed on. ``task`` carries it. Times are monotonic seconds."""

    def __init__(self, call: Call) -> None:
        self.asked_at = 0.0
        """When this try went up; 0: none is up."""
        self.begun = False
        self.call = call
        self.cut_for: CallEnding | None = None
        self.moved_at = 0.0
        self.moved_bytes = 0
        self.station: Station | None = None
        self.task: asyncio.Task[Any] | None = None

    @property
    def heard_bytes(self) -> int:
        """Of this try's answer; 0: nothing has come."""
        return 0

    @property
    def held(self) -> bool:
        """The upstream waits for those who listen."""
        return False

    def end(self, ending: CallEnding) -> None:
        """End the upstream's part, for all."""
        if self.cut_for is None and self.task is not None:
            self.cut_for = ending
            self.task.cancel()

    def check(self, now: float) -> None:
        """Called from time to time: it ends when nothing has come for too long. Who is slow to read is not the upstream's
        fault."""
        if self.station is None or not self.asked_at:
            return
        limits, heard = self.station.upstream.settings, self.heard_bytes
        if not heard:
            self.moved_bytes = 0
            late = now - self.asked_at > limits.first_byte_s
        elif heard != self.moved_bytes or self.held:
            self.moved_at, self.moved_bytes = now, heard
            late = False
        else:
            late = now - self.moved_at > limits.silence_s
        if late:
            self.end(CallEnding.LATE)

"""Every error of the product, in two families by what the caller should do next.

::

    CoordinatorError
    ├── TemporaryError            try again after ``after_s``
    │   ├── ClaimHeld             somebody works on the task; names the holder
    │   ├── DaemonBusy            another daemon holds this directory; names the holder
    │   ├── DaemonUnreachable     no daemon answers on the local API
    │   ├── GateBroken            the gate could not judge; nothing is charged to the task
    │   ├── MachineShort          the machine is short of room, files, processes or memory
    │   └── Shed                  a door let the caller not in; names the door and why
    └── PermanentError            asking again changes nothing
        ├── BadInput              a list of problems, each with file, line, key and expectation
        ├── BadRepository         not a git repository that we can work on
        ├── DamagedLedger         the ledger's file cannot be read; says how to go on without it
        ├── ForbiddenTransition   the table of task states has no such arrow
        ├── StaleGeneration       a newer owner exists; names it
        ├── ToolFailed            an outside tool or git exited in a way that has no other name
        └── UnknownTask           no task of that id

``status`` is the HTTP status of the local API, ``exit_code`` that of the command line.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.domain.problem import Problem


class CoordinatorError(Exception):
    """Base of all errors that we raise on purpose; its text is fit for a user's screen."""

    exit_code = 1
    status = 500


class TemporaryError(CoordinatorError):
    """Try again after ``after_s`` seconds."""

    status = 503

    def __init__(self, message: str, *, after_s: float = 1.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class PermanentError(CoordinatorError):
    """Asking again changes nothing."""

    status = 400


class BadInput(PermanentError):
    """What a person wrote cannot be used; carries every problem found, not only the first."""

    exit_code = 2
    status = 422

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class BadRepository(PermanentError):
    """The directory is not a git repository that the coordinator can work on."""

    exit_code = 2


class ClaimHeld(TemporaryError):
    """Another process holds the claim; the message names task, generation, agent, host and pid."""

    status = 409


class DamagedLedger(PermanentError):
    """The file of the ledger is no ledger (any more)."""

    exit_code = 2


class DaemonBusy(TemporaryError):
    """Another daemon holds this directory; the message names its pid and start."""

    exit_code = 3
    status = 409


class DaemonUnreachable(TemporaryError):
    """A command needs the daemon and none answers."""

    exit_code = 4


class ForbiddenTransition(PermanentError):
    """A task was asked to move along an arrow that the state table does not have."""

    status = 409


class GateBroken(TemporaryError):
    """A check could not run (missing tool, time-out, nothing collected); the line stood when the run ended."""

    exit_code = 5


class MachineShort(TemporaryError):
    """The machine is short of something that the daemon needs, or a disk fails; it may be better by itself (EX_TEMPFAIL)."""

    exit_code = 75


class ShedReason(enum.StrEnum):
    """Why a door let a caller not in."""

    CLOSED = "closed"
    FULL = "full"
    """As many wait as may."""
    LATE = "late"
    """The caller's deadline passed, before it came or while it waited."""


class Shed(TemporaryError):
    """A door let the caller not in: ``why`` at which ``stage``; ``after_s`` estimates when there will be room."""

    def __init__(self, stage: str, why: ShedReason, *, after_s: float) -> None:
        super().__init__(f"not let in at {stage}: {why}", after_s=after_s)
        self.stage = stage
        self.why = why


class StaleGeneration(PermanentError):
    """The caller's claim was superseded; the message names the newer generation and its owner."""

    status = 410


class ToolFailed(PermanentError):
    """An outside program failed; the message has its command, exit code and last output."""

    status = 502


class UnknownTask(PermanentError):
    """No task of that id is known."""

    exit_code = 2
    status = 404


def is_the_machines(error: BaseException) -> bool:
    """Whether it is the system's or the database's own fault (a full disk, say): its words tell all, and no traceback does."""
    return isinstance(error, OSError) or type(error).__module__ == "sqlite3"

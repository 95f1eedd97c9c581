"""What a check of the gate is and what it said about one tree.

Owns one invariant: an outcome is ``BROKEN`` whenever the check could not really look (not found, not executable, timed
out, nothing collected, output unreadable); such an outcome never counts as passed or failed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class BrokenBy(enum.StrEnum):
    """Why a check could not look: ``ENVIRONMENT`` (tool missing, not started, killed from outside), ``MOMENT`` (it failed, but
    the machine is in a state in which anything may), ``TIME`` (over its limit), ``TREE`` (the tool ran, but could make
    nothing of this tree: nothing collected, crash, endless output).
    """

    ENVIRONMENT = "environment"
    MOMENT = "moment"
    TIME = "time"
    TREE = "tree"


class CheckStatus(enum.StrEnum):
    BROKEN = "broken"
    FAILED = "failed"
    PASSED = "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """``failures`` are stable names of what failed (test ids, finding fingerprints), empty when the tool names none.

    ``seen`` are the names of everything that was looked at (test ids), empty when the tool does not tell. ``excerpt``
    is the last output, at most 4 kB, for the brief of the next attempt. ``broken_by`` is set exactly when the status is
    ``BROKEN``. A test that was skipped is not in ``seen``. ``none_ran`` says why nothing did although tests are there
    (none could be imported, all were skipped): of a target, that is no outcome to compare with (``ran``).
    """

    broken_by: BrokenBy | None = None
    check: str
    excerpt: str = ""
    failures: frozenset[str] = frozenset()
    none_ran: str = ""
    reason: str = ""
    seen: frozenset[str] = frozenset()
    status: CheckStatus
    took_s: float = 0.0

    @property
    def ran(self) -> CheckOutcome:
        """The outcome as that of a check that could not look, when no test ran."""
        if not self.none_ran:
            return self
        reason = f"no test ran: {self.none_ran}"
        return replace(self, broken_by=BrokenBy.TREE, none_ran="", reason=reason, status=CheckStatus.BROKEN)


def passed(check: str) -> CheckOutcome:
    return CheckOutcome(check=check, status=CheckStatus.PASSED)


class VerdictKind(enum.StrEnum):
    BROKEN = "broken"
    FAILED = "failed"
    PASSED = "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's word on one merged tree. ``reason`` is one sentence; ``new_failures`` and ``lost_tests`` are named.

    ``notes`` say what a person should know although it passed (already failing on the target, flaky, not available).
    ``lost_tests`` ran on the target and do not run on the merged tree. ``broken_tasks`` are those that alone cannot be
    judged (an ``accept`` command could not run, or their role may not land untested); other tasks may go on.
    ``untested`` says which of the project's tests could not be run and why; empty: they ran, or there are none.
    """

    broken_check: str = ""
    broken_tasks: tuple[str, ...] = ()
    excerpt: str = ""
    kind: VerdictKind
    lost_tests: tuple[str, ...] = ()
    new_failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""
    took_s: float = 0.0
    untested: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """A check that the project calls for and that cannot be run here; ``remedy`` says what to do.

    ``tests`` is whether tests of the project are what is not run.
    """

    check: str
    reason: str
    remedy: str
    tests: bool = True

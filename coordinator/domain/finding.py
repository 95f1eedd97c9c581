"""What a tool found in a tree, and whether the tool could look at all.

Owns one invariant: absence of findings is only ever read from a report whose status is ``SCANNED``. A tool that is
missing or broke closes nothing. Grouping findings into tasks is ``policy.grouping``'s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.domain.check import BrokenBy


class Fix(enum.StrEnum):
    """How far the tool itself can mend what it found."""

    NONE = "none"
    SAFE = "safe"
    UNSAFE = "unsafe"
    VERSION = "version"


class FindingState(enum.StrEnum):
    """``open → queued → fixed``; ``fixed → reopened`` when a later scan sees it again; ``dismissed`` by a person."""

    DISMISSED = "dismissed"
    FIXED = "fixed"
    OPEN = "open"
    QUEUED = "queued"
    REOPENED = "reopened"


class ScanStatus(enum.StrEnum):
    """Whether a report may close findings (only ``SCANNED`` may)."""

    BROKEN = "broken"
    SCANNED = "scanned"
    UNAVAILABLE = "unavailable"


class Severity(enum.IntEnum):
    """Lower is worse, so that it sorts like a task's priority."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4
    INFO = 5


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """``path`` is relative to the tree with ``/`` separators; ``line`` is 1-based, 0 when the whole file is meant."""

    path: str
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a tool reported. ``fingerprint`` survives moved lines, re-ordered output and another checkout path.

    ``evidence`` is the source line (stripped) that the tool pointed at, ``suggestion`` the tool's own fix in words.
    """

    category: str
    evidence: str = ""
    fingerprint: str
    fix: Fix = Fix.NONE
    message: str
    place: Place
    rule: str
    severity: Severity = Severity.LOW
    suggestion: str = ""
    tool: str
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What one run of one tool over one tree said. ``reason`` explains every status but ``SCANNED``.

    ``broken_by`` is set when the run did not come to its end; a tool that came to it and has nothing to say fails at the tree.
    ``unread`` are paths the tool could not look into (a syntax error stops every other rule of a file): absence of
    findings there proves nothing, so nothing in them may be closed.
    """

    broken_by: BrokenBy | None = None
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    status: ScanStatus
    tool: str
    took_s: float = 0.0
    unread: tuple[str, ...] = ()
    version: str = ""

"""What a tool found in a tree, and whether the tool could look at all.

Owns two invariants. Absence of findings is only ever read from a report whose status is in ``CLOSING``: a tool that is
missing, broke or saw only a part closes nothing. And a finding's fingerprint is made here alone, from what it is about and
the file it is in; neither a line number, nor the order of the output, nor the folder of the tree has a part in it, and
``renamed`` carries it along with a file. Grouping findings into tasks is ``policy.grouping``'s.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.domain.check import BrokenBy


class Fix(enum.StrEnum):
    """How far the tool itself can mend what it found: not at all, by an edit that keeps the meaning (``SAFE``), by one that
    may change it (``UNSAFE``), or by moving ``package`` to ``fix_version`` (``VERSION``)."""

    NONE = "none"
    SAFE = "safe"
    UNSAFE = "unsafe"
    VERSION = "version"


class FindingState(enum.StrEnum):
    """``open → queued → in work → fixed``; ``fixed → reopened`` when a later scan sees it again; ``dismissed`` by a person.

    ``QUEUED`` has a task that waits, ``IN_WORK`` one that an agent or the gate has; what a task comes to nothing with is
    ``open`` again. Only a scan makes ``fixed``.
    """

    DISMISSED = "dismissed"
    FIXED = "fixed"
    IN_WORK = "in work"
    OPEN = "open"
    QUEUED = "queued"
    REOPENED = "reopened"


SEEN: Final = frozenset({FindingState.IN_WORK, FindingState.OPEN, FindingState.QUEUED, FindingState.REOPENED})
"""States of what the last scan that could look still saw, and nobody dismissed."""

HOUSED: Final = frozenset({FindingState.IN_WORK, FindingState.QUEUED})
"""States of what a task is to mend."""


class ScanStatus(enum.StrEnum):
    """What a report is worth.

    ``SCANNED``: the tool saw everything but what ``unread`` names. ``PARTIAL``: it works and saw a part, so what it reports
    is there and what it does not report may be there too. ``UNCALLED``: the tree does not call for the tool, so that nothing
    of it is left to be done. ``UNAVAILABLE``: not installed, or not able to work here. ``BROKEN``: it crashed, took too long
    or said what nobody can read.
    """

    BROKEN = "broken"
    PARTIAL = "partial"
    SCANNED = "scanned"
    UNAVAILABLE = "unavailable"
    UNCALLED = "uncalled"


CLOSING: Final = frozenset({ScanStatus.SCANNED, ScanStatus.UNCALLED})
"""Only these close findings."""

REPORTING: Final = CLOSING | {ScanStatus.PARTIAL}
"""The tool did its work; with any other status it is "not scanned"."""


class Severity(enum.IntEnum):
    """Lower is worse, so that it sorts like a task's priority."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4
    INFO = 5


def severity_of_cvss(score: float) -> Severity:
    """The words that CVSS v3.1 and v4.0 (section 5 and 6) have for a score of 0 to 10."""
    bounds = ((9.0, Severity.CRITICAL), (7.0, Severity.HIGH), (4.0, Severity.MEDIUM), (0.1, Severity.LOW))
    return next((severity for low, severity in bounds if score >= low), Severity.INFO)


_MOST_LINES: Final = 2**31
_TEXTS: Final = (
    *("about", "category", "evidence", "fix_version", "installed", "message", "package", "rule", "suggestion", "tool"),
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """``path`` is relative to the tree with ``/`` separators; ``line`` and ``column`` are 1-based, 0 when not known."""

    path: str
    line: int = 0
    column: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.line < _MOST_LINES and 0 <= self.column < _MOST_LINES):
            raise ValueError(f"{self.path!r:.200} has no line {self.line!r:.20}, column {self.column!r:.20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a tool reported. An adapter leaves ``fingerprint`` empty and calls ``identified`` on all that it found.

    ``places`` has at least one; the first is where it is mended, the others belong to it. ``evidence`` is the source line
    (stripped) that the tool pointed at, ``suggestion`` the tool's own fix in words, ``links`` pages about it, the best first.

    ``about`` identifies it where the tool has a name for the thing itself (an advisory and its package, a test's id without
    its file); without one, message and evidence do. ``package`` is the outside package that it is about, at version
    ``installed``; ``fix_version`` the lowest that mends it; ``advisories`` its ids, the one to cite first. ``cvss`` is a base
    score of 0 to 10. ``scope`` is the folder of what it belongs to where the tool knows (a crate, an npm package), None for the
    folder of its file; findings of one rule in one scope become one task.
    """

    about: str = ""
    advisories: tuple[str, ...] = ()
    category: str
    cvss: float | None = None
    evidence: str = ""
    fingerprint: str = ""
    fix: Fix = Fix.NONE
    fix_version: str = ""
    installed: str = ""
    kind: str = ""
    links: tuple[str, ...] = ()
    message: str
    ordinal: int = 0
    package: str = ""
    places: tuple[Place, ...]
    rule: str
    scope: str | None = None
    severity: Severity = Severity.LOW
    suggestion: str = ""
    tool: str

    def __post_init__(self) -> None:
        if not self.places:
            raise ValueError(f"{self.tool} {self.rule}: a finding without a place")

    @property
    def place(self) -> Place:
        return self.places[0]

    def renamed(self, path: str) -> Self:
        """The same finding after its file was renamed to ``path``: what a scan of the new tree would report."""
        old = self.place.path
        places = tuple(replace(place, path=path) if place.path == old else place for place in self.places)
        return replace(self, places=places, fingerprint=_fingerprint(path, self.kind, self.ordinal))


def identified(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """All findings of one scan with their fingerprints, in order of place, without those told twice.

    Equal ones in a file (the same line written twice) are told apart by their order in it. ``kind`` is what a finding is
    apart from its file, ``ordinal`` its number among those of its kind in the file. Two of one kind without a line are two.
    """
    ordinals: Counter[tuple[str, str]] = Counter()
    told: set[tuple[Place, str]] = set()
    identities = []
    for kind, finding in sorted(((_kind(one), one) for one in map(_storable, found)), key=_order):
        if finding.place.line and (finding.place, kind) in told:
            continue
        told.add((finding.place, kind))
        path = finding.place.path
        ordinals[path, kind] += 1
        ordinal = ordinals[path, kind]
        identities.append(replace(finding, fingerprint=_fingerprint(path, kind, ordinal), kind=kind, ordinal=ordinal))
    return tuple(identities)


def steady(message: str) -> str:
    """A message without its numbers: some name a line or a measure that changes without the finding being another one."""
    return re.sub(r"\d+", "#", message)


def _storable(finding: Finding) -> Finding:
    """With texts that every store and file takes: half a surrogate pair, which JSON lets through, becomes an escape."""
    texts = {name: getattr(finding, name) for name in _TEXTS}
    odd: dict[str, Any] = {name: _escaped(text) for name, text in texts.items() if not _encodes(text)}
    if not all(_encodes(place.path) for place in finding.places):
        odd["places"] = tuple(replace(place, path=_escaped(place.path)) for place in finding.places)
    for name in ("advisories", "links"):
        if not all(map(_encodes, getattr(finding, name))):
            odd[name] = tuple(map(_escaped, getattr(finding, name)))
    return replace(finding, **odd) if odd else finding


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _kind(finding: Finding) -> str:
    """Numbers of the evidence count: ``x = 1`` and ``x = 2`` are two findings."""
    what = finding.about or f"{steady(finding.message)}|{' '.join(finding.evidence.split())}"
    return hashlib.sha256(f"{finding.tool}|{finding.rule}|{what}".encode()).hexdigest()[:32]


def _order(pair: tuple[str, Finding]) -> tuple[Place, str, str, str]:
    kind, finding = pair
    return finding.place, kind, finding.message, finding.evidence


def _fingerprint(path: str, kind: str, ordinal: int) -> str:
    return hashlib.sha256(f"{path}|{kind}|{ordinal}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What one run of one tool over one tree said. ``reason`` explains every status but ``SCANNED``.

    ``broken_by`` is set when the run did not come to its end; a tool that came to it and has nothing to say fails at the tree.
    ``unread`` are paths the tool could not look into (a syntax error stops every other rule of a file), with a ``/`` at the end
    a whole folder (a crate that does not build): absence of findings there proves nothing, so nothing in them may be closed.
    ``options`` are those that the tool was asked with and that a group's own look needs too, ``{rule}`` in a rule's place.
    """

    broken_by: BrokenBy | None = None
    findings: tuple[Finding, ...] = ()
    options: tuple[str, ...] = ()
    reason: str = ""
    status: ScanStatus
    tool: str
    took_s: float = 0.0
    unread: tuple[str, ...] = ()
    version: str = ""

    def hides(self, path: str) -> bool:
        """Whether the tool could not have seen a finding in ``path``."""
        return any(path == name or (name.endswith("/") and path.startswith(name)) for name in self.unread)

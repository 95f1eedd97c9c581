"""What the findings of one task have in common, and the task that is made of them.

Owns one invariant: one task mends one thing (a rule, or a package that has to be moved to another version) in one scope (a
package folder, a crate) by one kind of hand. Which groups become tasks is ``policy.placement``'s decision.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.domain.finding import Fix, Severity

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from coordinator.domain.finding import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """What the findings of one task have in common. ``subject`` is a rule, or the package whose version is to change: one
    upgrade mends all its advisories. ``scope`` is a folder of the tree, empty for its top. ``mechanical``: the tool's own fix
    will do; otherwise it takes a model.
    """

    mechanical: bool = True
    scope: str
    subject: str
    tool: str

    @classmethod
    def of(cls, finding: Finding, fixes: Mapping[str, Collection[Fix]]) -> GroupKey:
        folder = finding.place.path.rpartition("/")[0]
        return cls(
            mechanical=finding.fix in fixes.get(finding.tool, ()),
            scope=folder if finding.scope is None else finding.scope,
            subject=finding.package or finding.rule,
            tool=finding.tool,
        )

    def task_id(self, number: int) -> str:
        """``ruff-f401-src-pkg-1a2b3c``; from the second one on with ``-2``: another part of the group, or a relapse."""
        text = f"{self.tool}\0{self.subject}\0{self.scope}" + ("" if self.mechanical else "\0model")
        mark = hashlib.sha256(text.encode()).hexdigest()[:6]
        words = (id_prefix(self.tool), _slug(self.subject, 24) or "any", _slug(self.scope, 40) or "top", mark)
        return "-".join(words) + (f"-{number}" if number > 1 else "")

    def at(self, path: str) -> _Home:
        return self.tool, self.subject, self.mechanical, path


_Home = tuple[str, str, bool, str]
"""Tool, subject, kind of hand and file: what one task has for itself."""


def id_prefix(tool: str) -> str:
    """How the ids of a tool's tasks begin, without the dash; another tool's may begin so too."""
    return _slug(tool, 24)


def _slug(text: str, length: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[-length:].strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoTask:
    """A task file of ours as it lies in the spool; ``essence`` identifies what it was written for.

    ``priority`` is set when a person has written another one into it than we did.
    """

    essence: str
    files: tuple[str, ...]
    id: str
    key: GroupKey
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """A task to be written. ``whole``: its hand can mend every finding that these rules have in these files.

    ``returned`` are fingerprints of those that were fixed once and are back. ``pinned`` is a person's own priority. ``spared``
    are findings of these rules in these files that are to stay: a person said that they are none, or no task mends them.
    """

    findings: tuple[Finding, ...]
    id: str
    key: GroupKey
    pinned: int | None = None
    priority: int
    returned: frozenset[str] = frozenset()
    role: str
    spared: tuple[Finding, ...] = ()
    whole: bool

    @property
    def files(self) -> tuple[str, ...]:
        """Where the findings are mended."""
        return tuple(sorted({finding.place.path for finding in self.findings}))

    @property
    def touches(self) -> tuple[str, ...]:
        """``files`` and whatever else the findings are about."""
        return tuple(sorted({place.path for finding in self.findings for place in finding.places}))

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(sorted({finding.rule for finding in self.findings}))

    def essence(self, salt: str) -> str:
        """Changes when the task would be another one; not when lines only moved. ``salt``: how it is rendered."""
        marks = sorted(finding.fingerprint for finding in self.findings)
        what = [salt, self.id, self.priority, self.role, self.whole, marks]
        what += [sorted(finding.kind for finding in self.spared)] if self.spared else []
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """``priority`` is that of medium severity. ``max_open`` bounds tasks that are not settled, ``max_per_tool`` those of each
    tool (``per_tool`` of some), ``max_files`` the files of each task.

    ``safe_role`` is given what a tool calls safe; ``upgrade_role`` what takes another version, which nobody calls safe before
    the tests have run; ``model_role`` what no tool can mend, down to ``model_severity``; without one it is left alone.
    """

    max_files: int = 40
    max_open: int = 20
    max_per_tool: int = 20
    model_role: str = ""
    model_severity: Severity = Severity.INFO
    per_tool: Mapping[str, int] = field(default_factory=dict)
    priority: int = 50
    safe_role: str = "autofix"
    upgrade_role: str = "upgrade"

    def role_of(self, key: GroupKey, findings: Iterable[Finding]) -> str:
        """Who takes a group."""
        if not key.mechanical:
            return self.model_role
        return self.safe_role if all(finding.fix is Fix.SAFE for finding in findings) else self.upgrade_role

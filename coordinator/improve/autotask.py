"""A group of findings as a task file, and such a file read back.

Owns one invariant: what ``read`` makes of what ``render`` wrote is the group again, so the files themselves remember which
task has which source file, even when the ledger is lost. Which groups there are is ``policy.grouping``'s decision.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.checks.adapter import accept_by_look
from coordinator.domain.finding import Severity
from coordinator.kit import files
from coordinator.policy.grouping import AutoTask, GroupKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.checks.adapter import ToolAdapter
    from coordinator.domain.finding import Finding
    from coordinator.policy.grouping import TaskGroup

MARK: Final = "# Written by coordinator discovery"
"""How every file of ours begins; nothing else in the folder is touched."""

_COMMENT: Final = """\
Written by coordinator discovery; it rewrites this file when the findings change and removes it when they are gone.
`coordinator tasks cancel {id}` keeps these findings from being worked on; deleting the file does not. A priority that you
write here stays."""

_FENCE: Final = "coordinator-group"
_BLOCK: Final = re.compile(rf"^```{_FENCE}\n(.*)\n```$", re.MULTILINE)
_FORMAT: Final = 3
"""Raised when the rendering changes, so that waiting tasks are written anew."""

_SHOWN: Final = 30
"""Findings listed in a prompt; more are counted."""

_LINKS: Final = 5
_PLACES: Final = 4
_WORTH_NAMING: Final = Severity.HIGH

_GLOB: Final = re.compile(r"([*?\[])")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolProfile:
    """How a tool was asked: its ``options`` (``{rule}`` in a rule's place), for the very same look at the merged tree."""

    adapter: ToolAdapter
    options: tuple[str, ...] = ()

    @property
    def salt(self) -> str:
        return json.dumps([_FORMAT, self.adapter.name, self.options])

    def options_for(self, group: TaskGroup) -> list[str]:
        return [option.replace("{rule}", ",".join(group.rules)) for option in self.options]


def render(group: TaskGroup, profile: ToolProfile) -> str:
    """The task file's text. Nothing in it depends on anything but the arguments."""
    values: dict[str, Any] = {
        "id": group.id,
        "title": _title(group),
        "role": group.role,
        "priority": group.priority if group.pinned is None else group.pinned,
        "labels": ["discovery", group.key.tool, _one_line(group.key.subject)],
        "paths": [_GLOB.sub(r"[\1]", path) for path in group.touches],
        "accept": [
            accept_by_look(group) if group.spared else profile.adapter.accept(group, profile.options_for(group))
        ],
        **({"max_attempts": 2} if group.key.mechanical else {}),  # it would do the same a third time
        "prompt": _prompt(group, profile),
    }
    return files.task_text(values, comment=_COMMENT.format(id=group.id))


def read(text: str, task_id: str) -> AutoTask | None:
    """The group of a file of ours; None when it is damaged or not the file of ``task_id``."""
    try:
        (table,) = tomllib.loads(text)["tasks"]
        match = _BLOCK.search(table["prompt"])
        data = json.loads(match.group(1)) if match else {}
        paths, priority = tuple(data["files"]), table.get("priority")
        key = GroupKey(
            mechanical=data.get("mechanical") is not False,
            scope=data.get("scope", paths[0].rpartition("/")[0]),
            subject=data.get("subject", data["rules"][0]),
            tool=data["tool"],
        )
        pinned = priority if isinstance(priority, int) and priority != data.get("priority", priority) else None
        task = AutoTask(essence=data["essence"], files=paths, id=table["id"], key=key, priority=pinned)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None
    texts = (task.essence, task.id, key.scope, key.subject, key.tool, *paths)
    sound = task.id == task_id and bool(data["rules"]) and bool(paths) and all(isinstance(text, str) for text in texts)
    return task if sound else None


def _title(group: TaskGroup) -> str:
    number = len(group.findings)
    count = f"{number} finding" + ("s" if number > 1 else "")
    place = group.files[0] if len(group.files) == 1 else group.key.scope or "the top folder"
    again = "again " if group.returned else ""
    if any(finding.package for finding in group.findings):
        versions = _versions(group).get(group.key.subject, [])
        target = versions[0] if group.key.mechanical and len(versions) == 1 else "a sound version"
        return f"Move {group.key.subject} {again}to {_one_line(target)} in {place} ({count})"
    return f"Fix {group.key.subject} {again}in {place} ({count})"


def _prompt(group: TaskGroup, profile: ToolProfile) -> str:
    """The block comes first: what follows quotes source code, which may contain anything."""
    block = {
        "essence": group.essence(profile.salt),
        "files": group.files,
        "mechanical": group.key.mechanical,
        "options": profile.options_for(group),
        "priority": group.priority,
        "rules": group.rules,
        "scope": group.key.scope,
        "subject": group.key.subject,
        "tool": group.key.tool,
        "versions": _versions(group),
    }
    lines = [*_order_lines(group), "", f"```{_FENCE}", json.dumps(block), "```", ""]
    lines += ["What was found (the files may have changed since):", ""]
    for finding in group.findings[:_SHOWN]:
        lines += _finding_lines(finding, returned=finding.fingerprint in group.returned)
    if len(group.findings) > _SHOWN:
        lines.append(f"- and {len(group.findings) - _SHOWN} more")
    lines += ["", "To be left as they are:", ""] if group.spared else []
    for finding in group.spared:
        lines += _finding_lines(finding, returned=False)
    links = list(dict.fromkeys(link for finding in group.findings for link in finding.links))[:_LINKS]
    lines += ["", f"The rule: {_one_line(links[0])}"] if len(links) == 1 else []
    lines += ["", "To read:", *(f"- {_one_line(link)}" for link in links)] if len(links) > 1 else []
    return "\n".join(lines) + "\n"


def _order_lines(group: TaskGroup) -> Iterator[str]:
    """What is to be done, in the words of whoever is to do it."""
    tool, subject = group.key.tool, _one_line(group.key.subject)
    package = next((finding.package for finding in group.findings if finding.package), "")
    if group.key.mechanical and package:
        yield f"{tool} reports {package} and names a version without these findings. Move to it and change nothing else."
    elif group.key.mechanical:
        yield f"{tool} reports {subject} in these files and calls its own fix safe. Apply that fix and nothing else."
    elif package:
        yield f"{tool} reports {package}. Mend that: by another version, by another package, or by doing without it."
    else:
        yield f"{tool} reports {subject} in these files. Mend the cause of each finding and change nothing else."
    if not group.key.mechanical:
        yield "Do not silence the tool (no ignore comment, no change of its settings), and keep what the code does for others."
    if group.returned:
        yield "This was fixed before and is back: see what undid it, so that it does not come a third time."


def _finding_lines(finding: Finding, *, returned: bool) -> Iterator[str]:
    place = f"{finding.place.path}:{finding.place.line}" if finding.place.line else finding.place.path
    about = [finding.severity.name.lower()] if finding.severity <= _WORTH_NAMING else []
    about += [f"CVSS {finding.cvss:g}"] if finding.cvss is not None else []
    about += ["is back"] if returned else []
    yield f"- {place}: {_one_line(finding.message)}" + (f" ({', '.join(about)})" if about else "")
    if finding.evidence:
        yield f"  `{_one_line(finding.evidence)}`"
    for other in finding.places[1:_PLACES]:
        yield f"  see also {other.path}:{other.line}" if other.line else f"  see also {other.path}"
    if finding.package and finding.installed:
        yield f"  {_one_line(finding.package)} is at {_one_line(finding.installed)}"
    if finding.fix_version:
        yield f"  mended in {_one_line(finding.fix_version)}"
    if finding.advisories:
        yield f"  {_one_line(', '.join(finding.advisories))}"
    if finding.suggestion:
        yield f"  {finding.tool} suggests: {_one_line(finding.suggestion)}"


def _versions(group: TaskGroup) -> dict[str, list[str]]:
    wanted: dict[str, set[str]] = {}
    for finding in group.findings:
        if finding.package and finding.fix_version:
            wanted.setdefault(finding.package, set()).add(finding.fix_version)
    return {package: sorted(versions) for package, versions in sorted(wanted.items())}


def _one_line(text: str) -> str:
    """Printable text on one line, at most 200 characters."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(clean.split())[:200]

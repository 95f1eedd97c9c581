"""A group of findings as a task file, and such a file read back.

Owns one invariant: what ``read`` makes of what ``render`` wrote is the group again, so the files themselves remember which
task has which source file, even when the ledger is lost. Which groups there are is ``policy.grouping``'s decision.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.kit import files
from coordinator.policy.grouping import AutoTask

if TYPE_CHECKING:
    from coordinator.policy.grouping import TaskGroup

MARK: Final = "# Written by coordinator discovery"
"""How every file of ours begins; nothing else in the folder is touched."""

ROLE: Final = "autofix"
"""The role that applies a tool's own safe fixes."""

_COMMENT: Final = """\
Written by coordinator discovery; it rewrites this file when the findings change and removes it when they are gone.
`coordinator tasks cancel {id}` keeps these findings from being worked on; deleting the file does not."""

_FENCE: Final = "coordinator-group"
_BLOCK: Final = re.compile(rf"^```{_FENCE}\n(.*)\n```$", re.MULTILINE)
_FORMAT: Final = 1
"""Raised when the rendering changes, so that waiting tasks are written anew."""

_SHOWN: Final = 30
"""Findings listed in a prompt; more are counted."""

_GLOB: Final = re.compile(r"([*?\[])")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolProfile:
    """How a tool was run: its ``options`` (``{rule}`` in a rule's place), for the very same look at the merged tree."""

    options: tuple[str, ...]
    select: tuple[str, ...]
    target_version: str | None
    tool: str

    @property
    def salt(self) -> str:
        return json.dumps([_FORMAT, self.options, self.select, self.target_version])

    def options_for(self, rule: str) -> list[str]:
        return [option.replace("{rule}", rule) for option in self.options]


def render(group: TaskGroup, profile: ToolProfile) -> str:
    """The task file's text. Nothing in it depends on anything but the arguments."""
    values: dict[str, Any] = {
        "id": group.id,
        "title": _title(group),
        "role": ROLE,
        "priority": group.priority,
        "labels": ["discovery", profile.tool, group.key.rule],
        "paths": [_GLOB.sub(r"[\1]", path) for path in group.files],
        "accept": [accept_line(group, profile)],
        "prompt": _prompt(group, profile),
    }
    return files.task_text(values, comment=_COMMENT.format(id=group.id))


def accept_line(group: TaskGroup, profile: ToolProfile) -> str:
    """A shell line that exits 0 when nothing of the group is left; it writes nothing.

    ``ruff`` is found on the gate's PATH, which ends in our own installation's folder. Where the rule also has findings
    that ruff cannot mend safely, the line asks whether a safe fix is left instead of whether the rule is clean.
    """
    look = ["--no-fix", "--output-format", "concise"] if group.whole else ["--diff", "--no-unsafe-fixes"]
    words = [profile.tool, "check", "--no-cache", *look, *profile.options_for(group.key.rule), "--", *group.files]
    return shlex.join(words)


def read(text: str, task_id: str) -> AutoTask | None:
    """The group of a file of ours; None when it is damaged or not the file of ``task_id``."""
    try:
        (table,) = tomllib.loads(text)["tasks"]
        match = _BLOCK.search(table["prompt"])
        data = json.loads(match.group(1)) if match else {}
        task = AutoTask(
            essence=data["essence"],
            files=tuple(data["files"]),
            id=table["id"],
            rule=data["rules"][0],
            tool=data["tool"],
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    texts = (task.essence, task.id, task.rule, task.tool, *task.files)
    sound = task.id == task_id and bool(task.files) and all(isinstance(text, str) for text in texts)
    return task if sound else None


def _title(group: TaskGroup) -> str:
    count = len(group.findings)
    place = group.files[0] if len(group.files) == 1 else group.key.folder or "the top folder"
    return f"Fix {group.key.rule} in {place} ({count} finding{'s' if count > 1 else ''})"


def _prompt(group: TaskGroup, profile: ToolProfile) -> str:
    """The block comes first: what follows quotes source code, which may contain anything."""
    block = {
        "essence": group.essence(profile.salt),
        "files": group.files,
        "options": profile.options_for(group.key.rule),
        "rules": [group.key.rule],
        "select": profile.select,
        "target_version": profile.target_version,
        "tool": profile.tool,
    }
    lines = [
        f"{profile.tool} reports {group.key.rule} in these files and calls its own fix safe. Apply that fix and nothing else.",
        "",
        f"```{_FENCE}",
        json.dumps(block),
        "```",
        "",
        "What was found (the files may have changed since):",
        "",
    ]
    for finding in group.findings[:_SHOWN]:
        place = f"{finding.place.path}:{finding.place.line}" if finding.place.line else finding.place.path
        lines.append(f"- {place}: {_one_line(finding.message)}")
        lines += [f"  `{_one_line(finding.evidence)}`"] if finding.evidence else []
    if len(group.findings) > _SHOWN:
        lines.append(f"- and {len(group.findings) - _SHOWN} more")
    url = next((finding.url for finding in group.findings if finding.url), "")
    lines += ["", f"The rule: {_one_line(url)}"] if url else []
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """Printable text on one line, at most 200 characters."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(clean.split())[:200]

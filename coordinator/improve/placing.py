"""Writes and removes the task files of discovery as ``policy.placement`` wants them.

Owns one invariant: files first, rows after them, so that what a crash leaves half done the files tell the next placement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.checks.adapters import ADAPTERS
from coordinator.domain.finding import Severity
from coordinator.improve import autotask
from coordinator.improve.autofolder import AutoFolder
from coordinator.improve.autotask import ToolProfile
from coordinator.policy.grouping import GroupLimits
from coordinator.policy.placement import AT_WORK, Spooled, place
from coordinator.policy.standing import stand

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.settings import DiscoverySettings
    from coordinator.improve.register import FindingRegister


class TaskPlacer:
    """Callable from one thread at a time; raises ``OSError`` when files cannot be written or removed."""

    def __init__(self, spool: Path, register: FindingRegister, settings: DiscoverySettings) -> None:
        self._folder = AutoFolder(spool)
        self._register = register
        self._settings = settings

    def carry_out(self, at: str) -> tuple[dict[str, str], dict[str, str]]:
        """The tasks that were written for the first time and those that were removed, each with its tool."""
        facts = self._register.scans()
        profiles = {
            name: ToolProfile(adapter=adapter, options=facts[name].options)
            for name, adapter in ADAPTERS.items()
            if name in facts and facts[name].looked_at
        }
        there = self._folder.read()
        spooled = Spooled(
            fixes={name: adapter.fixes for name, adapter in ADAPTERS.items()},
            ours=there.ours,
            salts={name: profile.salt for name, profile in profiles.items()},
            scanned=frozenset(profiles),
            states=self._register.task_states(ADAPTERS),
            taken=there.taken,
        )
        known = self._register.known()
        judged = list(stand(known.values(), self._settings.dismissed, at[:10]))
        self._register.keep(judged, at=at)
        known |= {one.finding.fingerprint: one for one in judged}
        placement = place(tuple(known.values()), spooled, self._limits())
        groups = {group.id: group for group in placement.write}
        texts = {task_id: autotask.render(group, profiles[group.key.tool]) for task_id, group in groups.items()}
        refused = {task_id for task_id, text in texts.items() if not self._folder.write(task_id, text)}
        damaged = {task_id for task_id in there.damaged - set(texts) if spooled.states.get(task_id) not in AT_WORK}
        removed = [task_id for task_id in sorted({*placement.remove, *damaged}) if self._folder.remove(task_id)]
        self._register.keep([one for one in placement.changed if one.task not in refused], at=at)
        new = {task_id: groups[task_id].key.tool for task_id in texts if task_id not in refused | set(there.ours)}
        gone = {task_id: there.ours[task_id].key.tool for task_id in removed if task_id in there.ours}
        return new, gone

    def _limits(self) -> GroupLimits:
        settings = self._settings
        return GroupLimits(
            max_open=settings.max_open,
            max_per_tool=settings.max_open_per_tool,
            model_role=settings.role,
            model_severity=Severity[settings.model_severity.upper()],
            per_tool={one.name: one.max_open for one in settings.tool if one.max_open is not None},
            priority=settings.priority,
        )

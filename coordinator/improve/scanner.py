"""Lets discovery tools look at a clean tree of the target, each at most once for the same question.

Owns one invariant: a tool is left out only when nothing that its answer depends on has changed since it last did its work:
no file that it reads, not the program, not its settings, and not the time where time matters. What reports mean for findings is
``policy.lifecycle``'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import TreeFiles, broken, glob_matcher
from coordinator.checks.asking import ask, locate_for
from coordinator.checks.detect import surroundings_of
from coordinator.checks.tool import file_identity
from coordinator.domain.errors import ToolFailed
from coordinator.domain.finding import REPORTING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

    from coordinator.checks.adapter import ToolAdapter
    from coordinator.checks.locate import Located
    from coordinator.checks.tool import Surroundings
    from coordinator.domain.finding import ScanReport
    from coordinator.domain.settings import Settings
    from coordinator.improve.register import ScanFact
    from coordinator.kit.git import Git
    from coordinator.sdk.layout import Layout

SIGN_OF_LIFE_S: Final = 5.0
"""After so long a look is said to be under way."""

_FORMAT: Final = 1
"""Raised when a finding of the same tree would now be told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One tool's part in a scan. ``report`` is None when it was left out; ``inputs`` is what its answer depends on, as a hash;
    ``renames`` are the files that were renamed since it last did its work, by their old path.
    """

    adapter: ToolAdapter
    inputs: str = ""
    remedy: str = ""
    renames: Mapping[str, str]
    report: ScanReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanQuestion:
    """What is asked of a scan: ``facts`` are the tools' last ones, ``named`` those asked for by name (they are looked at again
    where time matters), ``fresh`` those that may not be left out.
    """

    adapters: Sequence[ToolAdapter]
    facts: Mapping[str, ScanFact]
    fresh: Collection[str] = ()
    named: Collection[str] = ()
    now: datetime


class Scanner:
    """One scan at a time; ``looks``, closed, leaves nothing behind but each tool's cache. ``tell_slow`` is called with a tool
    that takes its time, and how long (s) it took so far."""

    def __init__(
        self, git: Git, settings: Settings, layout: Layout, tell_slow: Callable[[str, float], None], *, target: str
    ) -> None:
        self._git = git
        self._settings = settings
        self._checkout = layout.repository
        self._scratch = layout.state / "scan"
        self._caches = layout.state / "scan-cache"
        self._target = target
        self._tell_slow = tell_slow

    async def looks(self, question: ScanQuestion) -> AsyncGenerator[tuple[str, Look]]:
        """The commit that is looked at (empty: there is none) with each tool's part, in order, as soon as it has answered."""
        commit, reason = "", f"there is no commit to scan: neither branch {self._target} nor HEAD has one"
        left = list(question.adapters)
        try:
            tip = await self._git.resolve(f"refs/heads/{self._target}") or await self._git.resolve("HEAD")
            if tip is not None:
                commit = tip
                files = await self._git.listing(commit)
                around = await asyncio.to_thread(surroundings_of, self._checkout, self._settings.gate)
                while left:
                    look = await self._look(left[0], commit, files, around, question)
                    left.pop(0)
                    yield commit, look
        except (ToolFailed, OSError) as error:
            reason = f"no clean tree of {self._target} could be made: {error}"
        finally:
            await asyncio.to_thread(self._clear_scratch, make=False)
        for one in left:
            yield commit, Look(adapter=one, renames={}, report=broken(one.name, reason))

    async def _look(
        self,
        adapter: ToolAdapter,
        commit: str,
        files: Mapping[str, str],
        around: Surroundings,
        question: ScanQuestion,
    ) -> Look:
        settings, tree = self._settings.discovery, self._scratch / "tree"
        located = await asyncio.to_thread(locate_for, adapter, settings, self._checkout, around)
        inputs = await asyncio.to_thread(self._inputs, adapter, located, files, around)
        fact = question.facts.get(adapter.name)
        if fact is not None and _same(adapter, fact, inputs, question):
            return Look(adapter=adapter, inputs=inputs, renames={}, report=None)
        if not tree.exists():
            await asyncio.to_thread(self._clear_scratch, make=True)
            await self._git.export_tree(commit, tree)
        slow = asyncio.get_running_loop().call_later(SIGN_OF_LIFE_S, self._tell_slow, adapter.name, SIGN_OF_LIFE_S)
        try:
            report = await ask(
                adapter,
                TreeFiles(names=files, root=tree),
                located,
                settings,
                around,
                cache=self._caches / adapter.name,
                named=adapter.name in settings.named_tools,
                scratch=self._scratch / adapter.name,
            )
        finally:
            slow.cancel()
        renames = await self._renames(fact, commit) if report.status in REPORTING else {}
        return Look(adapter=adapter, inputs=inputs, remedy=located.remedy, renames=renames, report=report)

    async def _renames(self, fact: ScanFact | None, commit: str) -> dict[str, str]:
        """Git's word on which files were renamed; none when the commit of the last look is gone."""
        if fact is None or not fact.commit or fact.commit == commit or not await self._git.resolve(fact.commit):
            return {}
        changes = await self._git.changes(fact.commit, commit)
        return {change.old_path: change.path for change in changes if change.old_path}

    def _inputs(
        self, adapter: ToolAdapter, located: Located, files: Mapping[str, str], surroundings: Surroundings
    ) -> str:
        matches, settings = glob_matcher(adapter.reads), self._settings.discovery
        read = sorted((name, blob) for name, blob in files.items() if matches(name))
        about = {
            "environment": surroundings.identity,
            "files": read,
            "format": _FORMAT,
            "named": adapter.name in settings.named_tools,
            "program": file_identity(located.program) if located.program else located.reason,
            "select": settings.select,
            "settings": asdict(settings.of_tool(adapter.name)),
        }
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _clear_scratch(self, *, make: bool) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        if make:
            self._scratch.mkdir(parents=True, exist_ok=True)


def _same(adapter: ToolAdapter, fact: ScanFact, inputs: str, question: ScanQuestion) -> bool:
    """Whether the tool would only say again what it said."""
    if adapter.name in question.fresh or fact.status not in REPORTING or fact.inputs != inputs or not fact.looked_at:
        return False
    if adapter.stale_after_s is None:
        return True
    age_s = (question.now - datetime.fromisoformat(fact.looked_at)).total_seconds()
    return adapter.name not in question.named and 0 <= age_s < adapter.stale_after_s

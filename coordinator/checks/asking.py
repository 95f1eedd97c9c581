"""Asks one discovery tool about one tree, from whether the tree calls for it to its report.

Owns one invariant: whatever is in the way of an answer is itself a report, with its reason. Whether it is worth asking at all,
and what becomes of the answer, is the caller's.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.checks.adapter import ScanOrder, broken
from coordinator.checks.locate import locate
from coordinator.domain.finding import ScanReport, ScanStatus

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.checks.adapter import ToolAdapter, TreeFiles
    from coordinator.checks.locate import Located
    from coordinator.checks.tool import Surroundings
    from coordinator.domain.settings import DiscoverySettings


def locate_for(adapter: ToolAdapter, settings: DiscoverySettings, checkout: Path, around: Surroundings) -> Located:
    """Where the tool is for a project whose environment comes ``first`` in its surroundings."""
    return locate(adapter, settings.of_tool(adapter.name), checkout, python=next(iter(around.first), None))


async def ask(
    adapter: ToolAdapter,
    files: TreeFiles,
    located: Located,
    settings: DiscoverySettings,
    around: Surroundings,
    *,
    cache: Path,
    named: bool,
    scratch: Path,
) -> ScanReport:
    """``named``: somebody named the tool, so it need not be guessed whether the project wants it. ``scratch`` is made."""
    uncalled = await asyncio.to_thread(adapter.uncalled, files, named=named)
    if uncalled:
        return ScanReport(tool=adapter.name, status=ScanStatus.UNCALLED, reason=uncalled)
    if located.program is None:
        return ScanReport(tool=adapter.name, status=ScanStatus.UNAVAILABLE, reason=located.reason)
    try:
        await asyncio.to_thread(_make, scratch, cache)
        report = await adapter.scan(
            ScanOrder(
                cache=cache,
                program=located.program,
                scratch=scratch,
                select=settings.select,
                settings=settings.of_tool(adapter.name),
                surroundings=around,
                tree=files.root,
            )
        )
    except OSError as error:
        return broken(adapter.name, f"the machine did not let it look: {error}")
    return replace(report, reason=report.reason.replace(f"{files.root}/", ""))  # a person may know no such folder


def _make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)

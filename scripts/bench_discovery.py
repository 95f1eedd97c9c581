"""scripts/bench discovery: a scan of a large tree, cold and unchanged, and the folding and grouping of many findings."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from scripts.bench_rig import git, repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coordinator.domain.finding import ScanReport
    from coordinator.improve.discovery import Discovery
    from scripts.bench_rig import Row

FAULTY = '"""Module {number}."""\n\nimport os\nimport sys\n\n\ndef work(item):\n    return [item, {number}, sys.path]\n'


def scans(folder: Path, short: bool) -> Iterator[Row]:
    """Our own time is what is left of a scan when the tools' own run is taken out."""
    count = 60 if short else 3000
    top = repository(folder / "scans")
    for number in range(count):
        path = top / f"pkg{number // 50}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAULTY.format(number=number))
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "-m", "Many modules")

    async def times() -> dict[str, tuple[float, float, int]]:
        discovery, taken = _discovery(top), {}
        for name in ("cold", "unchanged", "one file changed"):
            if name == "one file changed":
                (top / "pkg0" / "module0.py").write_text(FAULTY.format(number=0) + "import re\n")
                git(top, "commit", "--quiet", "--all", "-m", "One more")
            began = time.perf_counter()
            (report,) = await discovery.scan(("ruff",), write=True)
            whole = time.perf_counter() - began
            taken[name] = whole, 0.0 if report.unchanged else report.took_s, report.total
        return taken

    for name, (whole, tool_s, total) in asyncio.run(times()).items():
        yield f"findings in {count:,} files, {name}", f"{total:,}", ""
        yield f"  scan and placing, all in all, {name}", f"{whole:.2f} s", ""
        aim = "≤ 0.3 s" if name == "unchanged" and not short else ""
        yield f"  of it our own time, {name}", f"{whole - tool_s:.2f} s", aim


def _discovery(top: Path) -> Discovery:
    from coordinator.domain.settings import DiscoverySettings, Settings
    from coordinator.improve.discovery import Discovery as Made
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import SystemClock
    from coordinator.kit.git import Git
    from coordinator.kit.store import Store
    from coordinator.sdk.layout import Layout

    layout, clock = Layout(top, top / ".coordinator"), SystemClock()
    layout.state.mkdir(exist_ok=True)
    (layout.state / ".gitignore").write_text("*\n")
    store, bus = Store.open(layout.ledger), Bus(clock)
    settings = Settings(discovery=DiscoverySettings(tools=("ruff",)))
    return Made(
        Git(top, top / ".git"), settings, layout, store, bus, clock, target=git(top, "branch", "--show-current")
    )


def folding(folder: Path, short: bool) -> Iterator[Row]:
    """Through the ledger, as a scan does it: read what is known, compare, write, group, write task files."""
    from datetime import UTC, datetime

    from coordinator.checks.adapters import ADAPTERS
    from coordinator.domain.settings import DiscoverySettings
    from coordinator.improve.folding import fold_look
    from coordinator.improve.placing import TaskPlacer
    from coordinator.improve.register import FindingRegister
    from coordinator.improve.scanner import Look
    from coordinator.kit.store import Store

    count, at = 200 if short else 5000, datetime.now(UTC)
    began = time.perf_counter()
    report = _report(count)
    yield f"identify {count:,} findings", f"{time.perf_counter() - began:.2f} s", ""
    register = FindingRegister(Store.open(folder / "ledger.db"))
    placer = TaskPlacer(folder, register, DiscoverySettings())
    look = Look(adapter=ADAPTERS["ruff"], renames={}, report=report)
    for name in ("for the first time", "again"):
        began = time.perf_counter()
        folded = fold_look(register, look, at=at, commit="c", completed=())
        fold_s = time.perf_counter() - began
        written, _ = placer.carry_out(at.isoformat())
        group_s = time.perf_counter() - began - fold_s
        aim = "" if short else "≤ 1 s"
        yield f"fold {count:,} findings and place their tasks, {name}", f"{fold_s + group_s:.2f} s", aim
        yield "  folded, grouped and written", f"{fold_s:.2f} s, {group_s:.2f} s", ""
        yield "  new, tasks written", f"{folded.opened:,}, {len(written)}", ""


def _report(count: int) -> ScanReport:
    from coordinator.domain.finding import Finding, Fix, Place, ScanReport, ScanStatus, identified

    found = (
        Finding(
            category="dead code",
            evidence=f"import module{number % 97}",
            fix=Fix.SAFE,
            links=("https://docs.astral.sh/ruff/rules/unused-import",),
            message=f"`module{number % 97}` imported but unused",
            places=(Place(path=f"pkg{number % 50}/file{number % 1000}.py", line=number % 400 + 1, column=1),),
            rule=f"F{400 + number % 40}",
            tool="ruff",
        )
        for number in range(count)
    )
    return ScanReport(tool="ruff", status=ScanStatus.SCANNED, findings=identified(found))


PARTS = {"scans": scans, "folding": folding}

"""A tree and an order to scan it, for the tests of discovery tools: real programs, real files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.checks.adapter import ScanOrder, walk_files
from coordinator.checks.locate import locate
from coordinator.checks.tool import Surroundings
from coordinator.domain.settings import GateSettings, ToolSettings

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.checks.adapter import ToolAdapter, TreeFiles
    from coordinator.domain.finding import ScanReport


def write_tree(root: Path, **files: str) -> Path:
    """``write_tree(root, shop__stock="…")`` writes ``shop/stock.py``; names with a dot stand as they are."""
    for name, text in files.items():
        path = root / (name if "." in name else f"{name.replace('__', '/')}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def order_for(
    adapter: ToolAdapter, tree: Path, scratch: Path, *, program: Path | None = None, **settings: object
) -> ScanOrder:
    chosen = ToolSettings(name=adapter.name, **settings)  # type: ignore[arg-type]
    scratch.mkdir(parents=True, exist_ok=True)
    cache = scratch.parent / "cache"
    cache.mkdir(exist_ok=True)
    found = program or locate(adapter, chosen, tree).program
    assert found is not None, f"{adapter.program} is not here"
    return ScanOrder(
        cache=cache,
        program=found,
        scratch=scratch,
        settings=chosen,
        surroundings=Surroundings(gate=GateSettings()),
        tree=tree,
    )


def files_of(tree: Path) -> TreeFiles:
    return walk_files(tree)


def told(report: ScanReport) -> list[tuple[str, str, int]]:
    """Rule, file and line of every finding, in order."""
    return [(one.rule, one.place.path, one.place.line) for one in report.findings]

"""The product's source as the house tests read it: parsed once, never imported."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    module: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(TOP).as_posix()


@functools.cache
def product() -> tuple[SourceFile, ...]:
    """Every module of ``coordinator``, by path."""
    return tuple(_read(path) for path in sorted((TOP / "coordinator").rglob("*.py")))


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of everything imported anywhere in ``tree``, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def _read(path: Path) -> SourceFile:
    text = path.read_text(encoding="utf-8")
    parts = path.relative_to(TOP).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return SourceFile(module=module, path=path, text=text, tree=ast.parse(text, filename=str(path)))

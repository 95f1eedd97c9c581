"""Moves pinned Python requirements to a version that ``pip-audit`` calls sound.

Owns one invariant: the version in an exact pin is all that changes, only upwards, and only in files that people write: what a
lock file, a compiler of requirements or hashes hold in place is left to whoever makes them. It asks no network.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.checks.adapter import FixResult, TreeFiles, marked_encoding
from coordinator.checks.python_pins import canonical_package, is_later, is_version, latest_of, read_demands
from coordinator.checks.ruff_fix import is_within, place_of
from coordinator.domain.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from coordinator.checks.adapter import FixTask
    from coordinator.checks.python_pins import Demand

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def apply(task: FixTask) -> FixResult:
    """Edit ``task.files``; raises ``ToolFailed`` for a package or a version that is none."""
    targets = {canonical_package(name): _target(name, versions) for name, versions in task.versions.items()}
    files = [path for path in task.files if is_within(task.tree, path)]
    left = _movable(task.tree, files, targets)
    done, changed = [], []
    for path in files:
        pins = [one for one in left if one.path == path]
        moved = [one for one in pins if _edit(task.tree / path, one, targets[one.package])]
        changed += [path] if moved else []
        done += [f"{path}: {one.package} {one.version} → {targets[one.package]}" for one in moved]
    if not changed:
        return FixResult(
            nothing="nothing to move: no exact pin in the task's files is below the version that was named"
        )
    return FixResult(
        done=tuple(done),
        files=tuple(changed),
        headline=_headline(left, targets, changed),
        told=f"moved {len(done)} pins",
    )


def _target(name: str, versions: Sequence[str]) -> str:
    if not _NAME.fullmatch(name) or not versions or not all(map(is_version, versions)):
        raise ToolFailed(f"the brief names no version to move to: {name!r:.100} {versions!r:.200}")
    return latest_of(versions)


def _movable(tree: Path, files: Sequence[str], targets: Mapping[str, str]) -> list[Demand]:
    """A lock file beside a file rules its pins whether the task names it or not, so all that lies beside is read too."""
    folders = {(tree / path).parent for path in files}
    beside = [one for folder in folders for one in folder.iterdir() if is_within(tree, str(one.relative_to(tree)))]
    names = {one.relative_to(tree).as_posix() for one in beside} | set(files)
    return [
        one
        for one in read_demands(TreeFiles(names=names, root=tree)).pins
        if one.path in files and not one.made and one.package in targets and is_later(targets[one.package], one.version)
    ]


def _edit(file: Path, pin: Demand, version: str) -> bool:
    """Replace the version where the pin stands; everything else, line ends included, stays."""
    raw = file.read_bytes()
    encoding = marked_encoding(raw)
    try:
        lines = raw.decode(encoding, errors="surrogateescape").splitlines(keepends=True)
    except UnicodeDecodeError:  # UTF-16 that is cut off somewhere
        return False
    name = re.sub(r"-+", "[-_.]+", pin.package)
    before = rf"(?<![\w.-])({name}\s*(?:\[[^\]]*\])?\s*\(?\s*={{2,3}}\s*)"
    pattern = re.compile(rf"{before}{re.escape(pin.version)}(?![\w.!+*-])", re.IGNORECASE)
    for number in range(pin.line - 1, len(lines)) if pin.line else ():
        edited, count = pattern.subn(rf"\g<1>{version}", lines[number], count=1)
        if count:
            lines[number] = edited
            file.write_bytes("".join(lines).encode(encoding, errors="surrogateescape"))
            return True
        if not lines[number].rstrip("\r\n").endswith("\\"):
            break
    return False


def _headline(moved: Sequence[Demand], targets: Mapping[str, str], changed: Sequence[str]) -> str:
    steps = sorted({f"{one.package} {one.version} → {targets[one.package]}" for one in moved})
    what = ", ".join(steps) if len(steps) <= 3 else f"{len({one.package for one in moved})} packages"
    return f"pip-audit: {what} in {place_of(changed)}"

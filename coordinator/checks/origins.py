"""Proof of what was tested: each run of pytest notes which file every module came from, and this reads the notes.

Owns one invariant: a run in which a module came from the user's checkout, or from a copy installed from it, is never taken
for a test of the tree. Finding the paths beforehand is ``checks.inroads``'s.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.checks import origin_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.checks.inroads import Inroads

PLUGIN: Final = "coordinator_origin_notes"
"""The name under which the project's own interpreter loads it; no project has a module of that name."""

_HOW: Final = "let [gate] commands say how to test the folder they are run in"
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


def prepare(scratch: Path) -> Path:
    """Put the plug-in where the project's interpreter can import it; returns the folder for its path."""
    folder = scratch / "origins"
    folder.mkdir()
    source = Path(origin_notes.__file__).read_text(encoding="utf-8")
    (folder / f"{PLUGIN}.py").write_text(source, encoding="utf-8")
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Borders:
    """What is the tree's (``tree``, ``scratch``) and what is the user's (``checkout``, where ``inroads`` lead)."""

    checkout: Path
    inroads: Inroads
    scratch: Path
    tree: Path

    def complaint(self, folder: Path) -> str:
        """Why the run whose notes are in ``folder`` says nothing about the tree; empty: it does."""
        notes = list(_notes(folder))
        if not notes:
            return "pytest left no note of what it imported, so nobody knows what it tested"
        found: dict[str, str] = {}
        for note in notes:
            installed = [Path(os.path.realpath(place)) for place in note.folders]
            for name, file in note.modules:
                place = Path(os.path.realpath(file))
                if str(place) in self.inroads.copies:
                    found[name] = f"a copy ({place}), not from the merged tree; pip install -e the project, or {_HOW}"
                elif self._is_users(place, installed):
                    found[name] = f"the checkout ({place}), not from the merged tree; {_HOW}"
        if not found:
            return ""
        name = min(found, key=lambda name: (name.count("."), name))
        return f"tests import {name} from {found[name]}"

    def _is_users(self, place: Path, installed: list[Path]) -> bool:
        if not place.is_relative_to(os.path.realpath(self.checkout)) or _INSTALLED & set(place.parts):
            return False
        ours = (Path(os.path.realpath(self.tree)), Path(os.path.realpath(self.scratch)))
        return not any(place.is_relative_to(folder) for folder in (*ours, *installed))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    folders: tuple[str, ...]
    modules: tuple[tuple[str, str], ...]


def _notes(folder: Path) -> Iterator[_Note]:
    """One for each process of the run (plug-ins such as xdist start several); what cannot be read is left out."""
    for file in sorted(folder.glob("notes-*.json")):
        try:
            note = json.loads(file.read_bytes())
            yield _Note(folders=tuple(note["folders"]), modules=tuple((name, file) for name, file in note["modules"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue

"""The role cards in force: the built-in ones, and the repository's in place of those of the same name.

Owns one invariant: a card with a fault is never replaced by a more generous one; its role has no card until somebody
mends it. What a card may say is ``domain.config``'s.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.config import card_from
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.kit import files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.card import RoleCard

_LONGEST_BRIEF_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """``cards`` by role, ready to use; ``faulty`` roles have a card that cannot be used (role → cause)."""

    cards: Mapping[str, RoleCard]
    faulty: Mapping[str, str] = field(default_factory=dict)
    folder: str = "agents"
    problems: tuple[Problem, ...] = ()

    def obstacle(self, role: str) -> str:
        """Why nobody can work in ``role``, with the remedy; empty when somebody can."""
        if role in self.faulty:
            return f"the card of role {role} has a fault: {self.faulty[role]}"
        card = self.cards.get(role)
        if card is None:
            return (
                f"role {role} has no card; write {self.folder}/{role}.toml (there are: {', '.join(sorted(self.cards))})"
            )
        if not card.command and not card.external:
            return f"role {role} has no command; write {self.folder}/{role}.toml with the command to run"
        program = card.command[0] if card.command else ""
        if program and not set(program) & set("/{") and shutil.which(program) is None:
            return f"role {role} cannot start: {program} is not on PATH; install it, or mend {self.folder}/{role}.toml"
        return ""


def builtin_folder() -> Path:
    """Where the cards that come with the product are: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "cards"
    return inside if inside.is_dir() else package.parent / "agents"


def load(folder: Path) -> Cards:
    """Read all cards. ``folder`` is the repository's (``agents``); it may be missing. Never raises for what is in it."""
    cards, faulty, problems = _read_folder(builtin_folder(), "built-in")
    own, own_faulty, own_problems = _read_folder(folder, folder.name)
    for role in own_faulty:
        cards.pop(role, None)
    problems += own_problems
    return Cards(
        cards={**cards, **own}, faulty={**faulty, **own_faulty}, folder=folder.name, problems=tuple(sorted(problems))
    )


def _read_folder(folder: Path, name: str) -> tuple[dict[str, RoleCard], dict[str, str], list[Problem]]:
    cards: dict[str, RoleCard] = {}
    faulty: dict[str, str] = {}
    problems: list[Problem] = []
    scan = files.scan_toml(folder)
    for file in sorted({*scan.files, *scan.odd}):
        if "/" in file or not file.endswith(".toml"):
            continue
        role = file.removesuffix(".toml")
        try:
            cards[role] = _read_card(folder / file, f"{name}/{files.shown(file)}", role)
        except BadInput as error:
            faulty[role] = str(error.problems[0])
            problems += error.problems
    for unreadable, reason in scan.unreadable.items():
        problems.append(Problem(file=f"{name}/{unreadable}".rstrip("/"), message=f"cannot be listed: {reason}"))
    return cards, faulty, problems


def _read_card(path: Path, shown: str, role: str) -> RoleCard:
    text = files.read_text(path)
    if not isinstance(text, str):
        raise BadInput([Problem(file=shown, line=text.line, message=text.reason, expected=text.expected)])
    card = card_from(text, shown, role)
    brief = files.read_text(path.with_name(f"{role}.md"), largest_bytes=_LONGEST_BRIEF_BYTES)
    if isinstance(brief, str):
        return replace(card, standing_brief=brief)
    if brief.gone:
        return card
    problem = Problem(
        file=shown.removesuffix(".toml") + ".md", line=brief.line, message=brief.reason, expected=brief.expected
    )
    raise BadInput([problem])

"""Whether the machine can carry one more attempt: disk, inodes, memory.

Owns one invariant: a refusal names its cause and ends by itself when the cause is gone. It measures; the steward obeys.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from coordinator.kit import process

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.card import RoleCard
    from coordinator.domain.settings import FleetSettings

_MIB: Final = 1024 * 1024
_MIN_FREE_INODES: Final = 5_000
"""A working tree of a small project needs some hundred; running out of them looks like a full disk and is harder to see."""

GROWING_S: Final = 30.0
"""For so long after its start an agent is expected to take what it will take; then what it has is what is measured."""

_AGENT_BYTES: Final = 300 * _MIB
"""What a coding agent with a model has in memory soon after its start, its runner included."""
_PLAIN_BYTES: Final = 100 * _MIB
"""The same of a command without a model of its own: an interpreter, git, a linter."""


class Admission:
    """Looks at the disk that holds worktrees and ledger, and at the memory that agents would share."""

    def __init__(self, folder: Path, settings: FleetSettings) -> None:
        self._folder = folder
        self._settings = settings

    def refusal(self, promised_bytes: int = 0) -> str:
        """One sentence, or empty when nothing speaks against a start.

        ``promised_bytes`` is what agents that have just been started will take and have not taken yet.
        """
        short = self.short_of_disk()
        if short:
            return short
        least = self._settings.min_free_memory_bytes
        free = process.free_memory() if least else 0
        if free < least + (promised_bytes if least else 0):
            promised = (
                f", {promised_bytes // _MIB} MiB more are for agents that have just started" if promised_bytes else ""
            )
            kept = f"{least // _MIB} MiB are kept (fleet.min_free_memory_bytes){promised}"
            return f"only {free // _MIB} MiB of memory are free, {kept}"
        return ""

    def short_of_disk(self) -> str:
        """What of the disk is short; empty when nothing is."""
        return short_of_disk(self._folder, self._settings.min_free_bytes)


def short_of_disk(folder: Path, least_bytes: int, *, share: float = 1.0) -> str:
    """What is short on the disk of ``folder``, bytes or inodes; empty when nothing is, and when 0 ``least_bytes`` are wanted.

    Of a small disk, ``share`` of what it has in all is enough.
    """
    disk = os.statvfs(folder)
    least = min(least_bytes, int(share * disk.f_blocks * disk.f_frsize))
    free = process.free_disk(folder)
    if free < least:
        return f"only {free // _MIB} MiB of disk are free, {least // _MIB} MiB are kept (fleet.min_free_bytes)"
    inodes, least = process.free_inodes(folder), min(_MIN_FREE_INODES, int(share * disk.f_files))
    if least_bytes and inodes is not None and inodes < least:
        return f"only {inodes} inodes are free on the disk, {least} are kept"
    return ""


def start_bytes(card: RoleCard | None) -> int:
    """What an agent of the role will soon have in memory. A card's ``memory_bytes`` is the worst case, not the usual one: it
    only lowers this."""
    usual = _PLAIN_BYTES if card is None or card.driver == "plain" else _AGENT_BYTES
    return min(usual, card.memory_bytes) if card is not None and card.memory_bytes else usual

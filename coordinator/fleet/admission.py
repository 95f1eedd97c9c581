"""Whether the machine can carry one more attempt: disk, inodes, memory.

Owns one invariant: a refusal names its cause and ends by itself when the cause is gone. It measures; the steward obeys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.kit import process

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.settings import FleetSettings

_MIB: Final = 1024 * 1024
_MIN_FREE_INODES: Final = 5_000
"""A working tree of a small project needs some hundred; running out of them looks like a full disk and is harder to see."""


class Admission:
    """Looks at the disk that holds worktrees and ledger, and at the memory that agents would share."""

    def __init__(self, folder: Path, settings: FleetSettings) -> None:
        self._folder = folder
        self._settings = settings

    def refusal(self) -> str:
        """One sentence, or empty when nothing speaks against a start."""
        least = self._settings.min_free_bytes
        free = process.free_disk(self._folder)
        if free < least:
            return f"only {free // _MIB} MiB of disk are free, {least // _MIB} MiB are kept (fleet.min_free_bytes)"
        inodes = process.free_inodes(self._folder)
        if least and inodes is not None and inodes < _MIN_FREE_INODES:
            return f"only {inodes} inodes are free on the disk, {_MIN_FREE_INODES} are kept"
        least = self._settings.min_free_memory_bytes
        free = process.free_memory()
        if free < least:
            return f"only {free // _MIB} MiB of memory are free, {least // _MIB} MiB are kept (fleet.min_free_memory_bytes)"
        return ""

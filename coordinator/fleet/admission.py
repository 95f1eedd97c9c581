"""Whether the machine can carry one more attempt.

Owns one invariant: a refusal names its cause and ends by itself when the cause is gone. It measures; the steward obeys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.kit import process

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.domain.settings import FleetSettings

_MIB = 1024 * 1024


class Admission:
    """Looks at the disk that holds worktrees and ledger."""

    def __init__(self, folder: Path, settings: FleetSettings) -> None:
        self._folder = folder
        self._settings = settings

    def refusal(self) -> str:
        """One sentence, or empty when nothing speaks against a start."""
        least = self._settings.min_free_bytes
        free = process.free_disk(self._folder)
        if free < least:
            return f"only {free // _MIB} MiB of disk are free, {least // _MIB} MiB are kept (fleet.min_free_bytes)"
        return ""

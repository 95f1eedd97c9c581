"""What the fleet asks of whatever stands between agents and models.

Owns one invariant: the fleet works the same without one; then there are no credentials and nobody tells of calls.
"""

from __future__ import annotations

from typing import Protocol


class ModelAccess(Protocol):
    """The gateway, as the fleet sees it. An attempt is a task and its generation."""

    def credentials(self, task: str, generation: int) -> tuple[str, str]:
        """Base URL and key for an attempt; both empty when there are none."""
        ...

    def calls(self, task: str, generation: int) -> tuple[int, float] | None:
        """Model calls of an attempt in flight and the age of the oldest in seconds; None: not known."""
        ...

    def revoke(self, task: str, generation: int) -> None:
        """From now on the attempt reaches no model. Before it is stopped, so that a dying agent spends nothing."""
        ...

    def conclude(self, task: str, generation: int) -> float:
        """The attempt is over. Returns in how many seconds a provider that had no more for it will have more; 0: unknown."""
        ...


class DirectAccess:
    """No gateway: agents reach models by themselves, with what they were given elsewhere."""

    def credentials(self, _task: str, _generation: int) -> tuple[str, str]:
        return "", ""

    def calls(self, _task: str, _generation: int) -> tuple[int, float] | None:
        return None

    def revoke(self, _task: str, _generation: int) -> None:
        """There is no key."""

    def conclude(self, _task: str, _generation: int) -> float:
        return 0.0

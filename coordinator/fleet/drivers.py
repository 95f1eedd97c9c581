"""The table of drivers: which kinds of agent programs we know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.fleet.driver import PlainDriver
from coordinator.fleet.driver_aider import AiderDriver
from coordinator.fleet.driver_claude import ClaudeDriver
from coordinator.fleet.driver_codex import CodexDriver
from coordinator.fleet.driver_gemini import GeminiDriver
from coordinator.fleet.driver_opencode import OpencodeDriver

if TYPE_CHECKING:
    from coordinator.fleet.driver import Driver


def of(name: str) -> Driver:
    """Raise ``ValueError`` for a kind that is not known (an order of a newer daemon)."""
    match name:
        case "plain" | "":
            return PlainDriver()
        case "claude":
            return ClaudeDriver()
        case "codex":
            return CodexDriver()
        case "opencode":
            return OpencodeDriver()
        case "gemini":
            return GeminiDriver()
        case "aider":
            return AiderDriver()
        case _:
            raise ValueError(f"no driver is called {name!r} here")

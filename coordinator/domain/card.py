"""A role card: how agents of one role are started and what they may do.

``agents/<role>.toml`` plus, optionally, a standing brief ``agents/<role>.md``. A repository's card replaces the built-in
one of the same name. ``domain.config`` validates; reading the files is ``fleet.cards``' work.
"""

from __future__ import annotations

from dataclasses import dataclass

DRIVERS = ("aider", "claude", "codex", "gemini", "opencode", "plain")
"""Kinds of agent programs we know how to start and to understand; ``plain`` is any command (``fleet.driver``)."""

PERMISSION_MODES = ("acceptEdits", "bypassPermissions", "default", "dontAsk")
"""What ``claude`` may do without asking; there is nobody to ask, so what would be asked is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCard:
    """``command`` is an argv; ``{python}`` in it becomes the coordinator's own interpreter. The brief is its stdin.

    With a ``driver`` other than ``plain``, ``command`` names the program (and arguments of yours); the driver adds the
    rest: output format, session, limits, ``permission_mode``, ``tools`` (the ones allowed without asking).
    ``concurrency`` caps how many of this role run at once (0: only the fleet's size does). ``timeout_s`` is wall
    time, ``memory_bytes`` what all processes of an attempt together may have in memory (0: no limit), ``budget_usd`` and
    ``max_turns`` (model calls) are per attempt (0: none). ``stall_s`` replaces ``[fleet] stall_s`` (0: it does not).
    ``env`` names variables let through from the daemon's environment, ``variables`` sets some. ``paths`` limits what any
    task of this role may touch. ``standing_brief`` is Markdown put before each task's own text. ``external`` roles have
    no command: their agents claim by themselves through the protocol. ``models`` are those that the router chooses among for each
    attempt, an id or ``ID via UPSTREAM`` (empty: ``model``). ``network`` says whether the role needs one; there
    is no sandbox that could take it away. ``retrieve``: the gateway adds passages of the repository's documents to what it asks.
    """

    role: str
    budget_usd: float = 0.0
    command: tuple[str, ...] = ()
    concurrency: int = 0
    description: str = ""
    driver: str = "plain"
    env: tuple[str, ...] = ()
    external: bool = False
    file: str = ""
    max_turns: int = 0
    memory_bytes: int = 0
    model: str = ""
    models: tuple[str, ...] = ()
    network: bool = True
    paths: tuple[str, ...] = ()
    permission_mode: str = ""
    retrieve: bool = False
    stall_s: float = 0.0
    standing_brief: str = ""
    timeout_s: float = 600.0
    tools: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

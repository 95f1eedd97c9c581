"""A role card: how agents of one role are started and what they may do.

``agents/<role>.toml`` plus, optionally, a standing brief ``agents/<role>.md``. A repository's card replaces the built-in
one of the same name. ``domain.config`` validates; reading the files is ``fleet.cards``' work.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCard:
    """``command`` is an argv; ``{python}`` in it becomes the coordinator's own interpreter. The brief is its stdin.

    ``concurrency`` caps how many of this role run at once (0: only the fleet's size does). ``timeout_s`` is wall
    time, ``memory_bytes`` the address-space limit per process (0: none), ``budget_usd`` per attempt (0: none).
    ``env`` names variables let through from the daemon's environment. ``paths`` limits what any task of this role may
    touch. ``standing_brief`` is Markdown put before each task's own text. ``external`` roles have no command: their
    agents claim by themselves through the protocol.
    """

    role: str
    budget_usd: float = 0.0
    command: tuple[str, ...] = ()
    concurrency: int = 0
    description: str = ""
    env: tuple[str, ...] = ()
    external: bool = False
    file: str = ""
    memory_bytes: int = 0
    model: str = ""
    network: bool = True
    paths: tuple[str, ...] = ()
    standing_brief: str = ""
    timeout_s: float = 600.0

"""One try at a task by one agent process: the order it was given, the claim it holds, how it ended.

Owns one invariant: an order names exactly one generation, and a claim is good only while no newer generation is on
record. The files that carry these values are specified in ``agents/PROTOCOL.md``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from coordinator.domain.record import Record


class Ending(enum.StrEnum):
    """How an attempt ended, as recorded in the ledger; each has its own consequence in ``policy.retry``."""

    CANCELLED = "cancelled"
    CONFLICT = "conflict"
    CONTEXT_OVERFLOW = "context_overflow"
    CRASHED = "crashed"
    DELETED_TESTS = "deleted_tests"
    DENIED = "denied"
    EMPTY = "empty"
    FAILED = "failed"
    GATE_FAILED = "gate_failed"
    LANDED = "landed"
    LOGIN_MISSING = "login_missing"
    LOOPING = "looping"
    OUTSIDE_PATHS = "outside_paths"
    OVER_BUDGET = "over_budget"
    OVER_MEMORY = "over_memory"
    OVER_TIME = "over_time"
    OVER_TURNS = "over_turns"
    RATE_LIMITED = "rate_limited"
    STALE = "stale"
    STALLED = "stalled"
    STOPPED = "stopped"
    UNAVAILABLE = "unavailable"
    UNSTARTED = "unstarted"


class Outcome(enum.StrEnum):
    """What the agent itself says in its ``result.json``. The gate, not this word, decides what lands."""

    DONE = "done"
    FAILED = "failed"
    OVER_TIME = "over_time"
    STOPPED = "stopped"
    UNSTARTED = "unstarted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord(Record):
    """Content of ``claims/<id>.json``: who took the task last. Whether it is *held* only the lock beside it tells.

    ``started`` is the holder's process start (opaque, compared for equality), ``boot`` the host's boot id: together
    with ``pid`` and ``host`` they name one process of all times. ``state`` is ``held`` or ``released`` (a polite
    signal that wakes the daemon, never a proof).
    """

    agent: str
    boot: str
    generation: int
    host: str
    pid: int
    started: str
    state: str = "held"
    task: str

    @property
    def holder(self) -> str:
        """One phrase that names the holder, for messages."""
        return f"{self.agent} (pid {self.pid} on {self.host}), generation {self.generation}"


class Reason(enum.StrEnum):
    """The words of ``Result.reason`` that mean something to the daemon; any other word is only shown.

    Each has an ``Ending`` of the same name.
    """

    CONTEXT_OVERFLOW = "context_overflow"
    DENIED = "denied"
    LOGIN_MISSING = "login_missing"
    OVER_BUDGET = "over_budget"
    OVER_MEMORY = "over_memory"
    OVER_TURNS = "over_turns"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Record):
    """Content of ``attempts/<id>/<generation>/order.json``: everything an agent needs, all paths absolute.

    ``repository`` is what to clone from, ``base`` the commit to start at (held by a ref meanwhile), ``branch`` the
    name to work on. ``command`` is the role card's argv with the brief on stdin; empty for agents that bring their
    own. ``env`` are values to set, ``env_names`` names to let through from the runner's environment.
    Times are seconds; limits of 0 are none: ``memory_bytes`` (what all processes of the attempt have in memory),
    ``budget_usd``, ``max_turns``.

    ``finish_s`` is how long a command may run on after it has said its last word.
    ``driver`` names how the command is started and understood (``fleet.driver``); ``home`` is a folder of the task's own
    that outlives the attempt, ``session`` a fresh UUID, ``resume`` the session of an earlier attempt to go on with.
    ``gateway`` is the base URL and ``key`` the credential of model calls while our gateway runs (else both are empty).
    """

    attempt: str
    base: str
    branch: str
    brief: str
    budget_usd: float = 0.0
    command: tuple[str, ...] = ()
    driver: str = "plain"
    env: tuple[tuple[str, str], ...] = ()
    env_names: tuple[str, ...] = ()
    finish_s: float = 30.0
    gateway: str = ""
    generation: int
    grace_s: float = 10.0
    heartbeat_s: float = 5.0
    home: str = ""
    key: str = ""
    max_turns: int = 0
    memory_bytes: int = 0
    model: str = ""
    paths: tuple[str, ...] = ()
    permission_mode: str = ""
    priority: int = 1
    repository: str
    resume: str = ""
    role: str = ""
    session: str = ""
    task: str
    timeout_s: float = 600.0
    title: str = ""
    tools: tuple[str, ...] = ()
    worktree: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Record):
    """Content of ``result.json``, written once by the agent side before it lets the claim go.

    ``summary`` is for people (at most a few lines); ``exit_code`` that of the command, None when there was none;
    ``reason`` a short machine-readable word when ``outcome`` is not ``done`` (``Reason`` lists those that mean something).
    ``retry_at`` is the epoch second at which what ran out is there again (0: not known), ``session`` what a later attempt
    may resume, ``turns`` the model calls that were made.
    """

    cost_usd: float = 0.0
    duration_s: float = 0.0
    exit_code: int | None = None
    generation: int
    outcome: str
    reason: str = ""
    retry_at: float = 0.0
    session: str = ""
    summary: str = ""
    task: str
    turns: int = 0

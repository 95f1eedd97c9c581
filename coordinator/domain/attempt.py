"""One try at a task by one agent process: the order it was given, the claim it holds, how it ended.

Owns one invariant: an order names exactly one generation, and a claim is good only while no newer generation is on
record. The files that carry these values are specified in ``agents/PROTOCOL.md``.
"""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Ending(enum.StrEnum):
    """How an attempt ended, as recorded in the ledger; each has its own consequence in ``policy.retry``."""

    CANCELLED = "cancelled"
    CONFLICT = "conflict"
    CRASHED = "crashed"
    DELETED_TESTS = "deleted_tests"
    EMPTY = "empty"
    FAILED = "failed"
    GATE_FAILED = "gate_failed"
    LANDED = "landed"
    OUTSIDE_PATHS = "outside_paths"
    OVER_TIME = "over_time"
    STALE = "stale"
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


class _Record:
    """To and from the flat JSON objects of the protocol; unknown keys are ignored so that agents may add their own."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raise ``TypeError`` when a required key is missing or a value is not what the field holds.

        Agents write these files: a text that cannot be encoded, a number that is not one or has no end, would fail much
        later and somewhere else.
        """
        kinds = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
        return cls(
            **{name: _checked(name, kinds[name], _frozen(value)) for name, value in data.items() if name in kinds}
        )


_LARGEST = 2**63 - 1


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind.endswith(" | None") and value is None:
        return value
    match kind.removesuffix(" | None"):
        case "str":
            fine = _is_text(value)
        case "int":
            fine = type(value) is int and -_LARGEST <= value <= _LARGEST
        case "float":
            fine = type(value) in (int, float) and math.isfinite(value) and abs(value) <= _LARGEST
        case "tuple[str, ...]":
            fine = isinstance(value, tuple) and all(map(_is_text, value))
        case _:  # tuple[tuple[str, str], ...]
            fine = isinstance(value, tuple) and all(
                isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_text, pair)) for pair in value
            )
    if not fine:
        raise TypeError(f"{name} is no {kind}")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord(_Record):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(_Record):
    """Content of ``attempts/<id>/<generation>/order.json``: everything an agent needs, all paths absolute.

    ``repository`` is what to clone from, ``base`` the commit to start at (held by a ref meanwhile), ``branch`` the
    name to work on. ``command`` is the role card's argv with the brief on stdin; empty for agents that bring their
    own. ``env`` are values to set, ``env_names`` names to let through from the runner's environment.
    Times are seconds, memory is bytes (0: no limit).
    """

    attempt: str
    base: str
    branch: str
    brief: str
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    env_names: tuple[str, ...] = ()
    generation: int
    grace_s: float = 10.0
    heartbeat_s: float = 5.0
    memory_bytes: int = 0
    model: str = ""
    paths: tuple[str, ...] = ()
    priority: int = 1
    repository: str
    role: str = ""
    task: str
    timeout_s: float = 600.0
    title: str = ""
    worktree: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(_Record):
    """Content of ``result.json``, written once by the agent side before it lets the claim go.

    ``summary`` is for people (at most a few lines); ``exit_code`` that of the command, None when there was none;
    ``reason`` a short machine-readable word when ``outcome`` is not ``done``.
    """

    cost_usd: float = 0.0
    duration_s: float = 0.0
    exit_code: int | None = None
    generation: int
    outcome: str
    reason: str = ""
    summary: str = ""
    task: str

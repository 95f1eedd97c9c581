"""The desk: everything a verb may reach for, the same whether a daemon runs or not.

Owns one invariant: a verb reads through a read-only store and changes a task only through ``operate``, which is the
running daemon or, without one, its ledger under the daemon's lock. It decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.api.activity import shown_of
from coordinator.fleet import sighting

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from coordinator.control.feedback import FeedbackCollector
    from coordinator.control.knob_board import KnobBoard
    from coordinator.control.telemetry_bus import TelemetryBus
    from coordinator.control.tuning import TuningController
    from coordinator.domain.settings import Settings
    from coordinator.gateway.gateway import Gateway
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store
    from coordinator.policy.health import HealthDiagnosis
    from coordinator.sdk.layout import Layout


class AgentSeen(Protocol):
    """What ``fleet.pool.AgentPool.agents()`` says of one agent process."""

    @property
    def adopted(self) -> bool: ...
    @property
    def generation(self) -> int | None: ...
    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def since_s(self) -> float: ...
    @property
    def task(self) -> str | None: ...


class FoldSeen(Protocol):
    """What ``improve.discovery.Discovery.scan()`` says of one tool."""

    @property
    def closed(self) -> int: ...
    @property
    def opened(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def remedy(self) -> str: ...
    @property
    def reopened(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def took_s(self) -> float: ...
    @property
    def tool(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def unchanged(self) -> bool: ...


class Operations(Protocol):
    """What a person may do to tasks and findings; the same with a daemon and without."""

    async def cancel(self, task_id: str, reason: str) -> None: ...
    async def hold(self, task_id: str, reason: str) -> None: ...
    async def release(self, task_id: str) -> None: ...
    async def retry(self, task_id: str) -> None: ...
    async def scan(self, tools: Sequence[str], *, fresh: bool = False) -> Sequence[FoldSeen]:
        """Scan with ``tools`` (empty: the configured ones), ``fresh``: also with those that could only say the same again."""

    async def dismiss(self, fingerprints: Sequence[str], reason: str) -> int:
        """No task is made of these any more; returns how many changed."""

    async def reopen(self, fingerprints: Sequence[str]) -> int:
        """Undo a dismissal, or whatever else kept these from being worked on; returns how many changed."""

    def findings(self) -> list[sqlite3.Row]:
        """What is known of findings now, also of those that this very scan brought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAgent:
    """One agent process and what it does. ``since_s`` counts from the claim, or from its start while it is idle;
    ``doing`` is ``preparing``, ``running``, ``finishing`` or empty, ``note`` the agent's own words. ``activity`` says what it
    does in a few words, ``health`` (a ``HealthState`` or empty) and ``health_reason`` what the daemon makes of it.
    """

    name: str
    activity: str = ""
    adopted: bool = False
    cost_usd: float = 0.0
    doing: str = ""
    generation: int | None = None
    health: str = ""
    health_reason: str = ""
    memory_bytes: int = 0
    note: str = ""
    pid: int
    since_s: float
    task: str | None = None
    title: str = ""
    turns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSnapshot:
    """One look at a running daemon. ``counts`` has the number of tasks by state, ``gate_broken`` and ``refusal`` are
    reasons or empty, ``judging`` tells whether the lander is at work, ``waiting`` how many wait for it, ``checking`` which
    check runs and ``checking_s`` for how long.
    """

    agents: tuple[LiveAgent, ...]
    checking: str = ""
    checking_s: float = 0.0
    counts: Mapping[str, int]
    draining: bool
    elapsed_s: float
    gate_broken: str = ""
    judging: bool = False
    refusal: str = ""
    target: str
    waiting: int = 0


class LiveDaemon(Operations, Protocol):
    """A running daemon, as verbs and screens see it."""

    @property
    def bus(self) -> Bus: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def feedback(self) -> FeedbackCollector: ...
    @property
    def gateway(self) -> Gateway: ...
    @property
    def knobs(self) -> KnobBoard: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def store(self) -> Store: ...
    @property
    def telemetry(self) -> TelemetryBus: ...
    @property
    def tuning(self) -> TuningController: ...
    def agents(self) -> tuple[LiveAgent, ...]: ...
    def snapshot(self) -> LiveSnapshot: ...
    def turned_s(self) -> float:
        """Seconds since the loop that does the work last went round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """``store`` is None while nothing was ever recorded here. ``version`` is the product's."""

    clock: Clock
    layout: Layout
    live: LiveDaemon | None = None
    operate: Callable[[], AbstractAsyncContextManager[Operations]]
    settings: Settings
    store: Store | None
    version: str

    @property
    def root(self) -> Path:
        return self.layout.repository

    def rows(self, query: str, /, **parameters: Any) -> list[sqlite3.Row]:
        """Rows of a named query; none while there is no ledger yet."""
        return [] if self.store is None else self.store.query(query, **parameters)


def live_agents(
    layout: Layout,
    seen: Iterable[AgentSeen],
    title_of: Callable[[str], str],
    diagnosis_of: Callable[[str, int], HealthDiagnosis | None] = lambda _task, _generation: None,
) -> tuple[LiveAgent, ...]:
    """Join the pool's view of its processes with what their heartbeats say and what the vigil makes of it."""
    found = []
    for agent in seen:
        more: dict[str, Any] = {}
        if agent.task and agent.generation is not None:
            glance = sighting.look(layout, agent.task, agent.generation)
            diagnosis = diagnosis_of(agent.task, agent.generation)
            more = {
                "doing": glance.doing,
                "note": glance.note,
                "title": title_of(agent.task),
                **shown_of(glance.vitals),
            }
            if diagnosis is not None:
                more |= {"health": diagnosis.state.value, "health_reason": diagnosis.reason}
        found.append(
            LiveAgent(
                name=agent.name,
                adopted=agent.adopted,
                generation=agent.generation,
                pid=agent.pid,
                since_s=agent.since_s,
                task=agent.task,
                **more,
            )
        )
    return tuple(found)

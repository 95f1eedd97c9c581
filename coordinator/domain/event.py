"""Everything that can have happened, one frozen class each, in the past tense.

The table below is the only one: logs, the journal, ``events -f`` and the live view are subscribers of it. Events carry
no time; the bus stamps each with a sequence number and the wall clock when it is published.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events. ``kind`` is the class name in snake_case and names the event in JSON.

    Not ``lasting``: it comes so often that the journal leaves it out; listeners get it like any other.
    """

    lasting: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An event with its place in the stream: ``seq`` counts from 1 per daemon run, ``at`` is aware UTC."""

    seq: int
    at: datetime
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentExited(Event):
    """An agent process of ours ended; ``exit_code`` is negative for a signal, None when it was adopted."""

    agent: str
    exit_code: int | None
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHealthChanged(Event):
    """An attempt that is under way got into trouble, into other trouble or out of it. ``new`` is what it is like now, ``old``
    the trouble before (empty: none), both values of ``HealthState``; ``reason`` is one sentence."""

    agent: str
    generation: int
    new: str
    old: str
    reason: str
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStarted(Event):
    """An agent process was started, or (``adopted``) found alive after a restart."""

    adopted: bool = False
    agent: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(Event):
    """An attempt is over; ``ending`` is a value of ``Ending``, ``reason`` one sentence for a person. ``duration_s`` is how long
    its agent worked, ``took_s`` all from its claim to this moment, gate and landing included."""

    agent: str = ""
    duration_s: float = 0.0
    ending: str
    generation: int
    reason: str
    role: str = ""
    task: str
    took_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStepped(Event):
    """Time did not go as expected. ``how``: ``ran_ahead`` (wall time did: the machine slept, or its clock was set),
    ``late_turn`` (daemon or machine were frozen), ``set_back`` (wall time was; nothing follows from it). The first two extend
    every deadline of attempts under way once, by ``gap_s``."""

    gap_s: float
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsCounted(Event):
    """What an attempt that is over called through the gateway, as far as this daemon saw it. ``limited``: answers 429."""

    bytes_down: int
    bytes_up: int
    calls: int
    cost_usd: float = 0.0
    generation: int
    last_status: int
    limited: int
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonDraining(Event):
    """No new work is started; running attempts are finished."""

    reason: str
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonReady(Event):
    """Recovery is done and dispatch begins; ``took_s`` is the time since the process began to start."""

    adopted: int
    api: str
    pid: int
    target: str
    tasks: int
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonReloading(Event):
    """The configuration is read again and everything but the agents starts anew; ``DaemonReady`` follows."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStopped(Event):
    """The last event of a run."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsFolded(Event):
    """A scan was compared with what was known. ``status`` is one of ``ScanStatus``; ``opened`` counts new and returned findings,
    ``reopened`` the returned ones among them. ``unchanged``: the tool was not run, for it could only have said the same.
    """

    closed: int
    opened: int
    queued: int
    reason: str = ""
    reopened: int = 0
    status: str
    tool: str
    took_s: float
    total: int
    unchanged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanTakesLong(Event):
    """A tool has been looking for ``so_far_s`` and has not answered: told once for each look, as a sign of life."""

    so_far_s: float
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsJudged(Event):
    """A person said of ``count`` findings that they are none, or that they are to be worked on after all: ``verdict`` is
    ``dismissed`` or ``reopened``. ``findings`` are the fingerprints of the first hundred.
    """

    count: int
    findings: tuple[str, ...]
    reason: str = ""
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetIdle(Event):
    """Nothing is at work any more, and nothing could be without a person or a new task. Counts are totals by state."""

    completed: int
    failed: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateBroke(Event):
    """The gate could not judge; until it can, the line is stopped, or with ``tasks`` only these wait beside it."""

    command: str
    reason: str
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJudged(Event):
    """One run of the gate over one or several tasks; ``verdict`` is ``passed``, ``failed`` or ``broken``.

    ``notes`` say what a person should know although it passed, ``untested`` which tests could not be run and why.
    """

    notes: tuple[str, ...] = ()
    reason: str = ""
    tasks: tuple[str, ...]
    took_s: float
    untested: str = ""
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateMended(Event):
    """The gate can judge again; the line moves."""

    stopped_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReady(Event):
    """Model calls are taken at ``url`` and go to ``upstreams``."""

    upstreams: tuple[str, ...]
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentEnded(Event):
    """What an incident consisted of is as usual again, or was declared to be the new usual."""

    cause: str
    lasted_s: float
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentSeen(Event):
    """Something is not as usual, or (told again with ``level`` critical) worse than was told. ``cause`` is a likely one, in
    words; ``size`` how far what was noticed first went."""

    cause: str
    level: str
    metrics: tuple[str, ...]
    number: int
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobTurned(Event):
    """A number that acts while everything runs was changed; ``author`` is a person's command or what turns knobs by itself."""

    author: str
    knob: str
    new: float
    old: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed(Event):
    """Something a person may want to know and that has no event of its own: a refusal, a pause, a clock step."""

    message: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadRefused(Event):
    """The configuration on disk cannot be used; the last good one stays in force."""

    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestServed(Event):
    """A model call that was accepted is over; exactly one for each. ``ending`` is a value of ``CallEnding``.

    ``status`` is the last one that was sent or meant to be sent (0: none), ``first_byte_s`` counts from the call's
    begin (0: no byte of a body came), ``wait_s`` is how much of that it was held here. Tokens and cost are the upstream's
    own figures at the price table's prices; not ``priced``: one of the two is unknown. ``collapsed`` says how it shared
    another call's answer (empty: it did not) and ``saved_usd`` what it would have cost by itself. ``age_s``: how long ago it
    ended when it was told. ``answer_model`` and ``finish`` are what the answer said of itself, where that was read.
    """

    lasting: ClassVar[bool] = False

    age_s: float = 0.0
    agent: str = ""
    answer_model: str = ""
    bytes_down: int
    bytes_up: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    collapsed: str = ""
    cost_usd: float = 0.0
    ending: str
    finish: str = ""
    first_byte_s: float
    generation: int
    input_tokens: int = 0
    lane: str = ""
    model: str = ""
    output_tokens: int = 0
    path: str
    priced: bool = False
    request: str = ""
    role: str = ""
    saved_usd: float = 0.0
    status: int
    stream: bool = False
    task: str
    took_s: float
    tries: int = 0
    upstream: str
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMended(Event):
    """A probe of a paused role worked: its tasks are started again."""

    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePaused(Event):
    """What the agents of a role need is not there, or all of them fail: none is started for a while. ``reason`` is a sentence."""

    reason: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFailed(Event):
    """A background service raised and is restarted after ``after_s`` seconds."""

    after_s: float
    error: str
    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceReclaimed(Event):
    """Of ended attempts was given up what [retention] does not want to keep: folders of ``attempts``, ``homes`` of tasks,
    rescue ``refs`` of what has landed. ``kept_bytes`` are still there."""

    attempts: int
    freed_bytes: int
    homes: int
    kept_bytes: int
    refs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolRead(Event):
    """The spool was read and something in it had changed; counts are totals after the read."""

    files: int
    problems: tuple[str, ...]
    tasks: int
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChanged(Event):
    """A task moved from one state to another. ``old`` is empty when it is new to the ledger."""

    generation: int
    new: str
    old: str
    reason: str
    task: str
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLanded(Event):
    """A task's work is on the target branch. ``untested``: which of the project's tests could not be run, and why."""

    commit: str
    files: tuple[str, ...]
    generation: int
    target: str
    task: str
    title: str = ""
    untested: str = ""

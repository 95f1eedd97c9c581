"""How a kind of agent program is started and understood. A driver makes a command line and reads what comes of it.

Owns one invariant: everything here is computed from values; nothing is started, opened or timed. A driver's word on how
it went is a word, as the agent's is: the gate decides what lands. Running the program is ``fleet.work``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.domain.attempt import Order, Outcome, Reason
from coordinator.domain.vitals import Doing

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """``env`` is set beside what every command gets. ``files`` (path below the order's ``home``, text) are written before.

    ``stdin`` replaces the brief. ``transcript``: what it prints is data, kept in ``transcript.jsonl`` and given to the
    reader line by line; its complaints go to ``errors.log``, notes on what it does to ``agent.log``. Else all goes there.
    ``drop`` names variables that do not reach it, whoever let them through, unless ``env`` sets them.
    """

    argv: tuple[str, ...]
    drop: tuple[str, ...] = ()
    env: Mapping[str, str]
    files: tuple[tuple[str, str], ...] = ()
    stdin: bytes | None = None
    transcript: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the command ended, as far as the system tells. ``log`` is the end of its complaints (of ``agent.log``, when it has
    no transcript), ``last`` the last line of that, ``now`` the epoch second."""

    code: int | None = None
    last: str = ""
    log: str = ""
    memory_exceeded: bool = False
    now: float = 0.0
    output_exceeded: bool = False
    signal: int | None = None
    spawn_error: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What goes into the result; not ``clean``: something of the command still runs and cannot be ended."""

    outcome: Outcome
    clean: bool = True
    cost_usd: float = 0.0
    exit_code: int | None = None
    reason: str = ""
    retry_at: float = 0.0
    session: str = ""
    summary: str = ""
    turns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """What the agent does right now, as its output tells. ``note`` is for people; the rest is as in ``Vitals``."""

    cost_usd: float = 0.0
    doing: Doing = Doing.WORKING
    note: str = ""
    repeats: int = 0
    tool: str = ""
    tool_limit_s: float = 0.0
    turns: int = 0


class Reader(Protocol):
    """Follows one attempt's output. Never raises, whatever it is fed."""

    def feed(self, line: bytes) -> None:
        """One line of the transcript, without its end; a line longer than a MiB comes cut."""

    def glimpse(self) -> Glimpse: ...

    def doom(self, now: float) -> Said | None:
        """Something was seen that makes going on pointless (a login that is missing): how that is to be recorded."""

    def conclude(self, ended: Ended) -> Said:
        """The last word, from all that was seen."""


class Driver(Protocol):
    """One kind of agent program."""

    def launch(self, order: Order, *, python: str) -> Launch: ...

    def reader(self, order: Order) -> Reader: ...


def limit_of(ended: Ended, order: Order, *, output_bytes: int) -> Said | None:
    """What any kind of command may have run into; None: it ended by itself."""
    more = f": {ended.last}" if ended.last else ""
    if ended.spawn_error:
        return Said(outcome=Outcome.UNSTARTED, reason="spawn", summary=ended.spawn_error)
    if ended.timed_out:
        summary = f"over its time limit of {order.timeout_s:g} s{more}"
        return Said(outcome=Outcome.OVER_TIME, reason="timeout", summary=summary)
    if ended.memory_exceeded:
        summary = f"its processes had more than {order.memory_bytes / 2**20:.0f} MiB in memory and were stopped"
        return Said(outcome=Outcome.FAILED, reason=Reason.OVER_MEMORY, summary=summary)
    if ended.output_exceeded:
        summary = f"printed more than {output_bytes // 1024**2} MiB and was stopped"
        return Said(outcome=Outcome.FAILED, reason="output", summary=summary)
    return None


def by_exit(ended: Ended) -> Said:
    """What an exit code says, for programs that say nothing else. 75 is EX_TEMPFAIL of sysexits.h: "not now"."""
    more = f": {ended.last}" if ended.last else ""
    if ended.signal is not None:
        said = f"ended by signal {ended.signal}{more}"
        return Said(outcome=Outcome.FAILED, reason=f"signal {ended.signal}", summary=said)
    if ended.code == 0:
        return Said(outcome=Outcome.DONE, exit_code=0, summary=ended.last)
    reason = Reason.UNAVAILABLE if ended.code == _TEMPFAIL else f"exit {ended.code}"
    return Said(outcome=Outcome.FAILED, exit_code=ended.code, reason=reason, summary=f"exit code {ended.code}{more}")


_TEMPFAIL: Final = 75


class PlainReader:
    """Of a command whose output is for people: nothing in it is understood."""

    def feed(self, line: bytes) -> None:
        """Nothing to learn."""

    def glimpse(self) -> Glimpse:
        return Glimpse()

    def doom(self, now: float) -> Said | None:
        return None

    def conclude(self, ended: Ended) -> Said:
        return by_exit(ended)


class PlainDriver:
    """Any command that reads the brief on its standard input."""

    def launch(self, order: Order, *, python: str) -> Launch:
        argv = tuple(python if word == "{python}" else word for word in order.command)
        return Launch(
            argv=argv,
            drop=PROVIDER_VARIABLES if order.gateway else (),
            env=gateway_variables(order) | google_variables(order),
        )

    def reader(self, order: Order) -> Reader:
        return PlainReader()


PROVIDER_VARIABLES: Final = (
    "ANTHROPIC_API_BASE",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_CUSTOM_HEADERS",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GOOGLE_GEMINI_BASE_URL",
    "GOOGLE_GENAI_USE_VERTEXAI",
    "GOOGLE_VERTEX_BASE_URL",
    "OPENAI_API_BASE",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
)
"""What leads to a provider past our gateway."""


def gateway_variables(order: Order) -> dict[str, str]:
    """Where model calls go while our gateway runs, by the names that clients look for. Empty when it does not."""
    if not order.gateway:
        return {}
    return {
        "ANTHROPIC_API_KEY": order.key,
        "ANTHROPIC_BASE_URL": order.gateway,
        "NO_PROXY": "127.0.0.1,localhost",
        "OPENAI_API_KEY": order.key,
        "OPENAI_BASE_URL": f"{order.gateway}/v1",
    }


def google_variables(order: Order) -> dict[str, str]:
    """The same for Google's clients. Not for every program: some take the key for a reason to call Google itself."""
    return {"GEMINI_API_KEY": order.key, "GOOGLE_GEMINI_BASE_URL": order.gateway} if order.gateway else {}

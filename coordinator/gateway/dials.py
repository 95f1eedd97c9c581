"""The gateway's knobs: numbers that act on the path and may be turned while calls pass.

Owns one invariant: each knob here is read where it acts, at the next call; a value outside of its bounds is never set. They
begin as the settings say, or for what settings do not name as it stands here. Who turns one, and why, is told by whoever does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import BadInput
from coordinator.domain.knob import Knob, KnobKind
from coordinator.domain.problem import Problem
from coordinator.policy.circuit_breaker import CircuitKnobs

if TYPE_CHECKING:
    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.station import Station


_ROOM: Final = (0, 4096, 8)
_WIDTH: Final = (1, 4096, 1)


def _knob(
    name: str,
    about: str,
    kind: KnobKind,
    bounds: tuple[float, float, float],
    settle_s: float,
    unit: str = "",
    *,
    whole: bool = False,
) -> Knob:
    low, high, step = bounds
    return Knob(
        about=about,
        kind=kind,
        maximum=high,
        minimum=low,
        name=name,
        settle_s=settle_s,
        step=step,
        unit=unit,
        whole=whole,
    )


KNOBS: Final = (
    _knob("agent_calls_per_s", "calls that one agent may begin, 0: all", KnobKind.SERVO, (0, 1000, 0.1), 30, "/s"),
    _knob(
        "assemble_room", "prompts that may wait to be put together", KnobKind.SERVO, _ROOM, 30, "prompts", whole=True
    ),
    _knob("assemble_width", "prompts put together at once", KnobKind.BLOCK, _WIDTH, 60, "prompts", whole=True),
    _knob(
        "breaker_window",
        "calls by which a rate of failures is judged, 0: none",
        KnobKind.FIXED,
        (0, 1000, 1),
        60,
        whole=True,
    ),
    _knob("cache_bytes", "all kept answers to prompts", KnobKind.FIXED, (0, 2**30, 2**20), 300, "bytes", whole=True),
    _knob("cache_ttl_s", "how long an answer to a prompt is kept", KnobKind.FIXED, (1, 86_400, 1), 300, "s"),
    _knob("close_rate", "share of a round of probes that closes a breaker", KnobKind.FIXED, (0.01, 1, 0.01), 60),
    _knob("dedup_ttl_s", "how long an unfinished answer is kept", KnobKind.SERVO, (1, 300, 1), 60, "s"),
    _knob("dedup_wait_s", "how long a joined call waits for a first byte", KnobKind.FIXED, (1, 600, 1), 60, "s"),
    _knob("failures_to_open", "failures that open a breaker", KnobKind.FIXED, (1, 20, 1), 60, whole=True),
    _knob("fleet_calls_per_s", "calls that all agents may begin, 0: all", KnobKind.SERVO, (0, 10_000, 0.1), 30, "/s"),
    _knob("hold_s", "how long a call is held for a limit", KnobKind.SERVO, (0, 350, 5), 60, "s"),
    _knob("longest_probe_s", "longest pause between probes", KnobKind.FIXED, (0.1, 86_400, 1), 60, "s"),
    _knob("open_rate", "share of failures that opens a breaker", KnobKind.FIXED, (0.01, 1, 0.01), 60),
    _knob("post_room", "answers that may wait to be looked at", KnobKind.SERVO, _ROOM, 30, "prompts", whole=True),
    _knob("post_width", "answers looked at at once", KnobKind.BLOCK, _WIDTH, 60, "prompts", whole=True),
    _knob("probe_every_s", "pause between probes of an open breaker", KnobKind.FIXED, (0.1, 60, 0.1), 60, "s"),
    _knob("probe_growth", "what a failed round makes of the pause", KnobKind.FIXED, (1, 10, 0.1), 60),
    _knob("probes_to_close", "probes in a round", KnobKind.FIXED, (1, 100, 1), 60, whole=True),
    _knob("promote_s", "wait that lifts a call by one lane", KnobKind.SERVO, (0.1, 3600, 1), 60, "s"),
    _knob("rag_room", "prompts that may wait for passages", KnobKind.SERVO, _ROOM, 30, "prompts", whole=True),
    _knob("rag_width", "prompts that look for passages at once", KnobKind.BLOCK, (1, 64, 1), 60, "prompts", whole=True),
    _knob("retries", "tries more after a failure", KnobKind.FIXED, (0, 10, 1), 60, whole=True),
    _knob("room", "calls that may wait at a door", KnobKind.SERVO, _ROOM, 30, "calls", whole=True),
    _knob("stream_room", "answers that may wait to be given", KnobKind.SERVO, _ROOM, 30, "prompts", whole=True),
    _knob("stream_width", "answers given at once", KnobKind.BLOCK, _WIDTH, 60, "prompts", whole=True),
    _knob("width", "calls under way at all upstreams", KnobKind.BLOCK, _WIDTH, 120, "calls", whole=True),
)


CALLS_AT: Final = "calls@"
"""What the name of an upstream's knob begins with."""


def calls_knob(station: Station) -> Knob:
    """How many calls at once an upstream may be given at most. What it refuses lowers the limit below that by itself."""
    most = station.upstream.settings.max_concurrency or _WIDTH[1]
    about = "the most calls at once that it is given"
    return _knob(f"{CALLS_AT}{station.name}", about, KnobKind.PROBE, (1, most, 1), 60, "calls", whole=True)


class Dials:
    """The knobs' values. They are attributes, because a call reads several of them."""

    __slots__ = (
        "agent_calls_per_s",
        "assemble_room",
        "assemble_width",
        "breaker_window",
        "cache_bytes",
        "cache_ttl_s",
        "close_rate",
        "dedup_ttl_s",
        "dedup_wait_s",
        "failures_to_open",
        "fleet_calls_per_s",
        "hold_s",
        "longest_probe_s",
        "open_rate",
        "post_room",
        "post_width",
        "probe_every_s",
        "probe_growth",
        "probes_to_close",
        "promote_s",
        "rag_room",
        "rag_width",
        "retries",
        "room",
        "stream_room",
        "stream_width",
        "width",
    )

    def __init__(self, settings: GatewaySettings) -> None:
        self.agent_calls_per_s = settings.agent_calls_per_s
        self.assemble_room, self.assemble_width = 512.0, 32.0
        self.breaker_window = float(settings.breaker_window)
        self.cache_bytes = 64.0 * 1024 * 1024
        self.cache_ttl_s = 300.0
        self.close_rate = settings.close_rate
        self.dedup_ttl_s = 60.0
        self.dedup_wait_s = 120.0
        self.failures_to_open = float(settings.failures_to_open)
        self.fleet_calls_per_s = settings.fleet_calls_per_s
        self.hold_s = settings.hold_s
        self.longest_probe_s = settings.longest_probe_s
        self.open_rate = settings.open_rate
        self.post_room, self.post_width = 1024.0, 32.0
        self.probe_every_s = settings.probe_every_s
        self.probe_growth = settings.probe_growth
        self.probes_to_close = float(settings.probes_to_close)
        self.promote_s = settings.promote_s
        self.rag_room, self.rag_width = 512.0, 8.0
        self.retries = float(settings.retries)
        self.room = float(settings.room)
        self.stream_room, self.stream_width = 256.0, 256.0
        self.width = float(settings.width)

    def circuit(self) -> CircuitKnobs:
        """Of those, what breakers are made with."""
        return CircuitKnobs(
            close_rate=self.close_rate,
            failures_to_open=int(self.failures_to_open),
            longest_pause_s=self.longest_probe_s,
            open_rate=self.open_rate,
            pause_growth=self.probe_growth,
            probe_every_s=self.probe_every_s,
            probes_to_close=int(self.probes_to_close),
            rate_window=int(self.breaker_window),
        )

    def value(self, name: str) -> float:
        value: float = getattr(self, name)
        return value

    def turn(self, name: str, value: float) -> float:
        """Returns what it was. Raises ``BadInput``."""
        knob = next((one for one in KNOBS if one.name == name), None)
        if knob is None:
            names = ", ".join(one.name for one in KNOBS)
            raise BadInput([Problem(file=name, message="is no knob", expected=f"one of {names}")])
        if fault := knob.fault(value):
            raise BadInput([Problem(file=name, message=fault, expected="a value within its bounds")])
        before = self.value(name)
        setattr(self, name, float(value))
        return before

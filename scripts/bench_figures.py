"""What the benchmark of the gateway says in the end: tables for the README, and which of the aims were met.

Aims are ratios within one run; the absolute figures are this machine's. A figure that could not be measured is a dash, and an
aim that needs it is said to be not measured, never met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scripts.bench_peers import ANTHROPIC, DIRECT, OPENAI, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scripts.bench_gateway import Target
    from scripts.bench_primitives import Timed

Table = dict[str, dict[str, dict[str, float]]]
"""Protocol (or ``start``, ``memory``), scenario, figure."""

MORE_IS_BETTER: Final = frozenset({"calls_per_s", "chunks_per_s"})
TITLES: Final = {ANTHROPIC: "Anthropic's protocol", OPENAI: "OpenAI's protocol"}
MB: Final = 2**20

# Aims. Each is a ratio to a peer in the same run unless its name has a unit.
SMALL_TO_ENVOY: Final = 1.1
RATE_TO_ENVOY: Final = 0.8
RATE_TO_VLLM: Final = 1.0
STREAM_TO_ENVOY: Final = 1.3
BIG_TO_ENVOY: Final = 2.2
P99_TO_P50: Final = 3.0
FIRST_TOKEN_US: Final = 400.0
IDLE_MB: Final = 60.0
OPEN_MB: Final = 150.0
DIRECT_PER_S: Final = 40_000.0
"""Below it the load generator is what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    what: str
    measured: str
    aim: str
    met: bool | None
    """None: not measured."""

    @property
    def verdict(self) -> str:
        return "not measured" if self.met is None else "PASS" if self.met else "FAIL"


@dataclass(frozen=True, kw_only=True)
class Report:
    machine: str
    open_streams: int
    primitives: Sequence[Timed]
    rounds: int
    seconds: float
    targets: Sequence[Target]

    def figure(self, name: str, protocol: str, scenario: str, figure: str) -> float | None:
        for target in self.targets:
            if target.peer.name == name:
                return target.figures.get(protocol, {}).get(scenario, {}).get(figure)
        return None

    def added(self, name: str, protocol: str, scenario: str, figure: str = "p50_us") -> float | None:
        """Microseconds over the same call made directly."""
        mine, direct = (self.figure(one, protocol, scenario, figure) for one in (name, DIRECT.name))
        return None if mine is None or direct is None else mine - direct

    # ---------------------------------------------------------------------------------------------------------- aims

    def aims(self) -> Iterator[Aim]:
        for protocol in (ANTHROPIC, OPENAI):
            yield from self._aims_of(protocol)
        for what, scenario, most in (
            ("idle", "idle", IDLE_MB),
            (f"{self.open_streams:,} open streams", "open", OPEN_MB),
        ):
            size = self.figure(OURS.name, "memory", scenario, "bytes")
            yield _at_most(f"memory, {what}", None if size is None else size / MB, most, "MB")
        slower = [one for one in self.primitives if one.verdict == "FAIL"]
        known = [one for one in self.primitives if one.verdict]
        yield Aim(
            what="primitives slower than the seed's Rust",
            measured=f"{len(slower)} of {len(known)}",
            aim="0",
            met=not slower if known else None,
        )
        for protocol in (ANTHROPIC, OPENAI):
            rate = self.figure(DIRECT.name, protocol, "small_many", "calls_per_s")
            met = None if rate is None else rate >= DIRECT_PER_S
            what = f"the rig itself: direct calls/s, {TITLES[protocol]}"
            yield Aim(what=what, measured=_number(rate), aim=f"≥ {DIRECT_PER_S:,.0f}", met=met)

    def _aims_of(self, protocol: str) -> Iterator[Aim]:
        title = TITLES[protocol]

        def added(scenario: str) -> Callable[[str], float | None]:
            return lambda name: self.added(name, protocol, scenario)

        def rate(name: str) -> float | None:
            return self.figure(name, protocol, "small_many", "calls_per_s")

        yield _ratio(f"2 KB added p50, {title}", added("small"), "envoy", SMALL_TO_ENVOY, more=False)
        yield _ratio(f"calls/s at 64 callers, {title}", rate, "envoy", RATE_TO_ENVOY, more=True)
        yield _ratio(f"calls/s at 64 callers, {title}", rate, "vllm-router", RATE_TO_VLLM, more=True)
        yield _ratio(f"50-chunk stream added p50, {title}", added("stream"), "envoy", STREAM_TO_ENVOY, more=False)
        yield _ratio(f"150 KB added p50, {title}", added("big"), "envoy", BIG_TO_ENVOY, more=False)
        others = [target.peer.name for target in self.targets if target.peer.llm and target.peer.name != OURS.name]
        best = min(others, key=lambda name: _or_inf(self.added(name, protocol, "big")), default="")
        yield _ratio(f"150 KB added p50, {title}", added("big"), best, 1.0, more=False, as_="best LLM gateway")
        for scenario, what in (("small", "2 KB"), ("big", "150 KB"), ("stream", "50-chunk stream")):
            p50, p99 = (self.figure(OURS.name, protocol, scenario, name) for name in ("p50_us", "p99_us"))
            yield Aim(
                what=f"{what} p99, {title}",
                measured="–" if p50 is None or p99 is None else f"{p99 / p50:.2f} × its p50 ({p99:,.0f} µs)",
                aim=f"≤ {P99_TO_P50:g} × its p50",
                met=None if p50 is None or p99 is None else p99 <= P99_TO_P50 * p50,
            )
        first = self.figure(OURS.name, protocol, "big_stream", "token_p50_us")
        yield _at_most(f"first token of a 150 KB stream, p50, {title}", first, FIRST_TOKEN_US, "µs")

    # -------------------------------------------------------------------------------------------------------- output

    def as_markdown(self, *, judged: bool) -> str:
        said = "times in µs; added: over the same call made directly; best of all rounds"
        parts = [f"`scripts/bench gateway`: {self.machine}; {self.rounds} rounds in {self.seconds:.0f} s; {said}."]
        parts += [_markdown(self._head(protocol), self._rows(protocol)) for protocol in (ANTHROPIC, OPENAI)]
        if judged:
            rows = [(aim.what, aim.measured, aim.aim, aim.verdict) for aim in self.aims()]
            parts.append(_markdown(("aim", "measured", "wanted", ""), rows))
        parts.append(
            _markdown(
                ("primitive, ns", "seed's README", "seed, measured", "that, here", "ours", ""), self._primitives()
            )
        )
        notes = [f"- {target.peer.title}: {note}" for target in self.targets for note in target.notes]
        return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)

    def _head(self, protocol: str) -> tuple[str, ...]:
        return (
            TITLES[protocol],
            "2 KB, added p50 · p99",
            "calls/s, 64 callers",
            "CPU per call",
            "50-chunk stream, added p50 · p99",
            "chunks/s, 16 streams",
            "150 KB, added p50 · p99",
            "150 KB calls/s, 16 callers",
            "150 KB stream, first token p50 · p99",
            "start s",
            "idle MB",
            f"MB, {self.open_streams:,} streams",
        )

    def _rows(self, protocol: str) -> list[tuple[str, ...]]:
        return [self._row(target, protocol) for target in self.targets if protocol in target.figures]

    def _row(self, target: Target, protocol: str) -> tuple[str, ...]:
        name, direct = target.peer.name, target.peer.name == DIRECT.name

        def of(scenario: str, figure: str) -> float | None:
            return self.figure(name, protocol, scenario, figure)

        def both(scenario: str) -> str:
            p50, p99 = (
                of(scenario, figure) if direct else self.added(name, protocol, scenario, figure)
                for figure in ("p50_us", "p99_us")
            )
            text = _pair(p50, p99)
            return f"({text})" if direct and p50 is not None else text

        start = self.figure(name, "start", "start", "seconds")
        memory = [self.figure(name, "memory", scenario, "bytes") for scenario in ("idle", "open")]
        version = target.peer.version()
        return (
            f"{target.peer.title} {version}".strip(),
            both("small"),
            _number(of("small_many", "calls_per_s")),
            _number(of("small_many", "cpu_us")),
            both("stream"),
            _number(of("stream_many", "chunks_per_s")),
            both("big"),
            _number(of("big_many", "calls_per_s")),
            _pair(of("big_stream", "token_p50_us"), of("big_stream", "token_p99_us")),
            "–" if start is None else f"{start:.2f}",
            *("–" if size is None else f"{size / MB:.0f}" for size in memory),
        )

    def _primitives(self) -> list[tuple[str, ...]]:
        return [
            (
                one.primitive.name,
                _number(one.primitive.seed_published or None),
                _number(one.primitive.seed_measured or None),
                _number(one.seed_here or None),
                _number(one.ns),
                one.verdict,
            )
            for one in self.primitives
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 1),
            "targets": {
                target.peer.name: {
                    "version": target.peer.version(),
                    "notes": target.notes,
                    "figures": target.figures,
                }
                for target in self.targets
            },
            "aims": [
                {"what": aim.what, "measured": aim.measured, "aim": aim.aim, "verdict": aim.verdict}
                for aim in self.aims()
            ],
            "primitives_ns": {one.primitive.name: one.ns for one in self.primitives if one.ns is not None},
        }


def _ratio(what: str, of: Callable[[str], float | None], peer: str, limit: float, *, more: bool, as_: str = "") -> Aim:
    mine, theirs = of(OURS.name), of(peer)
    name = f"{as_} ({peer})" if as_ and peer else as_ or peer
    aim = f"{'≥' if more else '≤'} {limit:g} × {name}"
    if mine is None or theirs is None or theirs <= 0:
        return Aim(what=what, measured="–" if mine is None else _number(mine), aim=aim, met=None)
    ratio = mine / theirs
    met = ratio >= limit if more else ratio <= limit
    return Aim(what=what, measured=f"{ratio:.2f} × ({mine:,.0f} to {theirs:,.0f})", aim=aim, met=met)


def _at_most(what: str, measured: float | None, most: float, unit: str) -> Aim:
    said = "–" if measured is None else f"{measured:,.0f} {unit}"
    return Aim(what=what, measured=said, aim=f"≤ {most:g} {unit}", met=None if measured is None else measured <= most)


def _or_inf(value: float | None) -> float:
    return float("inf") if value is None else value


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _pair(p50: float | None, p99: float | None) -> str:
    return "–" if p50 is None or p99 is None else f"{p50:,.0f} · {p99:,.0f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

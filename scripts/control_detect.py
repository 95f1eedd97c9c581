"""A part of scripts/bench control: the product's own detectors in a simulated fleet, on seeds they were not made on."""

from __future__ import annotations

import copy
import math
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from scripts.control_world import DAY_S, HOUR_S, Trouble, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scripts.bench_rig import Row

HELD_OUT = 9000
"""Seeds from here on were never looked at while constants were chosen."""


def quiet_days(asked: tuple[int, float]) -> tuple[list[tuple[float, tuple[str, ...]]], int, float, int]:
    """When incidents began in a world without trouble, with which metrics; how many metrics, days and calls there were."""
    seed, days = asked
    world = World(seed)
    world.pass_to(days * DAY_S)
    begun: dict[int, tuple[float, tuple[str, ...]]] = {}
    for at_s, number, metrics in world.changed:
        begun[number] = begun.get(number, (at_s, metrics))[0], metrics
    return list(begun.values()), len(world.watch.detector), days, world.calls


def incidents(_: Path, short: bool) -> Iterator[Row]:
    seeds, days = (2, 0.3) if short else (4, 4.0)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(quiet_days, [(HELD_OUT + seed, days) for seed in range(seeds)]))
    yield "metrics watched", str(max(watched for _, watched, _, _ in found)), "≥ 40"
    calls = sum(one[3] for one in found)
    yield "calls a day", f"{calls / seeds / days:,.0f}", ""
    first = sum(at_s < DAY_S for begun, _, _, _ in found for at_s, _ in begun)
    yield f"false incidents on day 1, mean of {seeds} fleets", f"{first / seeds:.2f}", ""
    if days <= 1:
        return
    later = [metrics for begun, _, _, _ in found for at_s, metrics in begun if at_s >= DAY_S]
    spent = seeds * (days - 1)
    spread = 1.96 * math.sqrt(max(len(later), 1)) / spent
    yield f"false incidents a day after it, {spent:.0f} days", f"{len(later) / spent:.2f} ± {spread:.2f}", "≤ 1"
    causes: dict[str, int] = {}
    for metrics in later:
        causes[metrics[0]] = causes.get(metrics[0], 0) + 1
    most = sorted(causes.items(), key=lambda item: -item[1])[:3]
    yield "  of these first seen by", ", ".join(f"{name} {count}" for name, count in most) or "none", ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``aim`` is the 95th percentile in looks of 5 s; None: no aim is set. ``watched_s``: for how long it may be found."""

    aim: int | None
    name: str
    trouble: Trouble
    watched_s: float = 1800.0


SCENARIOS = (
    Scenario(name="full outage, 5 min", aim=2, trouble=Trouble(errors=1.0, lasts_s=300)),
    Scenario(name="first token × 4", aim=7, trouble=Trouble(first_token=4.0)),
    Scenario(name="first token × 2", aim=15, trouble=Trouble(first_token=2.0)),
    Scenario(name="errors 20 %, 5 min", aim=15, trouble=Trouble(errors=0.2, lasts_s=300)),
    Scenario(name="one of three upstreams × 2", aim=30, trouble=Trouble(first_token=2.0, token=2.0, upstream="south")),
    Scenario(
        name="gate 90 → 50 %",
        aim=1440,
        trouble=Trouble(gate_pass=0.5, lasts_s=4 * HOUR_S),
        watched_s=4 * HOUR_S,
    ),
    Scenario(name="tokens × 2", aim=None, trouble=Trouble(token=2.0)),
    Scenario(name="calls cost × 3", aim=None, trouble=Trouble(cost=3.0)),
    Scenario(name="agents busy, calls − 80 %", aim=None, trouble=Trouble(silent=True)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A fleet from ``starts_s`` on, whose copies get into trouble at ``tries`` moments of the hours from ``warm_s`` on."""

    hours: float = 4.0
    seed: int
    starts_s: float = 0.0
    tries: int
    warm_s: float = DAY_S + 10.5 * HOUR_S


def troubled(asked: Trial) -> list[tuple[str, float, int]]:
    """For each scenario and try: its name, looks until it was found (inf: never), and how many incidents it made."""
    seed, warm_s = asked.seed, asked.warm_s
    world, chance, found = World(seed, asked.starts_s), random.Random(seed), []
    moments = sorted(chance.uniform(warm_s, warm_s + asked.hours * HOUR_S) for _ in range(asked.tries))
    for moment in moments:
        world.pass_to(moment)
        if world.watch.book.open:
            continue
        for scenario in SCENARIOS:
            other = copy.deepcopy(world)
            other.chance.seed(f"{seed} {moment} {scenario.name}")
            other.begin(copy.copy(scenario.trouble))
            before = len(other.changed)
            other.pass_to(moment + scenario.watched_s)
            begun = {number: at_s for at_s, number, _ in reversed(other.changed[before:])}
            looks = math.ceil((min(begun.values()) - moment) / 5) if begun else math.inf
            found.append((scenario.name, looks, len(begun)))
    return found


def detection(_: Path, short: bool) -> Iterator[Row]:
    asked = [Trial(seed=HELD_OUT + 500 + number, tries=6) for number in range(4)]
    if short:
        morning = {"hours": 0.5, "starts_s": 7 * HOUR_S, "tries": 1, "warm_s": 11 * HOUR_S}
        asked = [Trial(seed=HELD_OUT + 500 + number, **morning) for number in range(2)]  # type: ignore[arg-type]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [one for each in pool.map(troubled, asked) for one in each]
    for scenario in SCENARIOS:
        delays = sorted(looks for name, looks, _ in found if name == scenario.name)
        seen = sum(looks < math.inf for looks in delays) / len(delays)
        p50, p95 = (delays[min(math.floor(share * len(delays)), len(delays) - 1)] for share in (0.5, 0.95))
        aim = f"≤ {scenario.aim}" if scenario.aim is not None else ""
        yield f"{scenario.name}: looks of 5 s, p50 / p95, n {len(delays)}", f"{p50:g} / {p95:g}", aim
        if seen < 1:
            yield "  found at all", f"{seen:.0%}", ""
    counts = [count for _, looks, count in found if looks < math.inf]
    alone = sum(count == 1 for count in counts) / len(counts)
    yield "of what was found, exactly one incident", f"{alone:.1%}", "≥ 95 %"


def cost(_: Path, short: bool) -> Iterator[Row]:
    """Of the whole bank with telemetry, on one core of this machine: the same day with and without the watch."""
    world = World(HELD_OUT + 900)
    world.pass_to(2 * HOUR_S if short else 20 * HOUR_S)
    served, looks = [], []
    take, look = world.watch.take, world.watch.look

    def timed(event: object, at_s: float) -> None:
        began = time.thread_time()
        take(event, at_s)  # type: ignore[arg-type]
        served.append(time.thread_time() - began)

    def timed_look(at_s: float, standings: object) -> object:
        began = time.thread_time()
        sight = look(at_s, standings)  # type: ignore[arg-type]
        looks.append(time.thread_time() - began)
        return sight

    world.watch.take, world.watch.look = timed, timed_look  # type: ignore[method-assign, assignment]
    world.pass_to(world.at_s + (0.1 if short else 2) * HOUR_S)
    for name, times, aim in (("event", served, "≤ 60 µs"), ("look", looks, "")):
        times.sort()
        mean, p99 = sum(times) / len(times), times[int(0.99 * len(times))]
        yield f"watch, per {name}: mean (p99), n {len(times):,}", f"{mean * 1e6:.0f} ({p99 * 1e6:.0f}) µs", aim


def replayed(folder: Path, short: bool) -> Iterator[Row]:
    """A recorded fleet, replayed twice: the decisions are the recorded ones."""
    from coordinator.control.recording import Recording, replay

    world = World(HELD_OUT + 901, trouble=Trouble(errors=1.0, since_s=6 * HOUR_S, lasts_s=300))
    file = folder / "seen.jsonl"
    recording = Recording(file.open("w", encoding="utf-8"), 0.0, first_incident=1, robust_z=())
    take, look = world.watch.take, world.watch.look

    def take_too(event: object, at_s: float) -> None:
        recording.event(event, at_s)  # type: ignore[arg-type]
        take(event, at_s)  # type: ignore[arg-type]

    def look_too(at_s: float, standings: dict[str, float]) -> object:
        recording.look(at_s, standings)
        return look(at_s, standings)

    world.watch.take, world.watch.look = take_too, look_too  # type: ignore[method-assign, assignment]
    world.pass_to((6.5 if short else 14) * HOUR_S)
    recording.close()
    runs = []
    for _ in range(2):
        with file.open(encoding="utf-8") as lines:
            runs.append([(one.number, one.began_s, one.metrics) for one in replay(lines, file.name)])
    live: dict[int, tuple[float, tuple[str, ...]]] = {}
    for at_s, number, metrics in world.changed:
        live[number] = live.get(number, (at_s, metrics))[0], metrics
    same = runs[0] == [(number, *seen) for number, seen in live.items()] and all(a == b for a, b in pairwise(runs))
    yield f"replay of {file.stat().st_size >> 20} MiB: incidents, the recorded ones", f"{len(runs[0])}, {same}", "True"

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from coordinator.domain.cron import cron_fault
from coordinator.domain.errors import PermanentError
from coordinator.domain.event import Noticed, ServiceFailed
from coordinator.kit import schedule
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.schedule import Ticks, next_fire, next_local_fire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.domain.event import Event


class Stage:
    """Ticks on a real loop, with every event they publish."""

    def __init__(self) -> None:
        clock = SystemClock()
        bus = Bus(clock)
        self.events: list[Event] = []
        bus.tap(lambda published: self.events.append(published.event))
        self.ticks = Ticks(bus, clock)
        self.stopping = asyncio.Event()

    async def serve(self, play: Callable[[], Awaitable[None]]) -> None:
        service = asyncio.create_task(self.ticks.run(self.stopping))
        try:
            await asyncio.wait_for(play(), 8)
        finally:
            self.stopping.set()
            await asyncio.wait_for(service, 8)


async def test_a_tick_comes_again_and_again() -> None:
    stage, runs, third = Stage(), [], asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 3:
            third.set()

    stage.ticks.every("beat", 0.05, work)

    async def play() -> None:
        await third.wait()

    await stage.serve(play)
    ended = len(runs)
    await asyncio.sleep(0)
    assert len(runs) == ended


async def test_run_soon_does_not_wait_for_the_pause_even_when_asked_before_the_start() -> None:
    stage, ran = Stage(), asyncio.Event()

    async def work() -> None:
        ran.set()

    stage.ticks.every("rare", 3600, work)
    stage.ticks.run_soon("rare")

    async def play() -> None:
        await ran.wait()
        ran.clear()
        stage.ticks.run_soon("rare")
        await ran.wait()

    await stage.serve(play)
    with pytest.raises(KeyError):
        stage.ticks.run_soon("unheard of")


async def test_a_tick_added_while_running_is_served() -> None:
    stage, ran = Stage(), asyncio.Event()

    async def work() -> None:
        ran.set()

    async def play() -> None:
        stage.ticks.every("late", 0.02, work, jitter_s=0.01)
        await ran.wait()

    await stage.serve(play)


async def test_requests_during_a_run_are_one_more_run_and_never_beside_it() -> None:
    stage, gate = Stage(), asyncio.Event()
    started: asyncio.Queue[int] = asyncio.Queue()
    inside = most = runs = 0

    async def work() -> None:
        nonlocal inside, most, runs
        inside, runs = inside + 1, runs + 1
        most = max(most, inside)
        started.put_nowait(runs)
        await gate.wait()
        inside -= 1

    stage.ticks.every("slow", 3600, work)
    stage.ticks.run_soon("slow")

    async def play() -> None:
        await started.get()
        for _ in range(20):
            stage.ticks.run_soon("slow")
        gate.set()
        assert await started.get() == 2

    await stage.serve(play)
    assert (runs, most) == (2, 1)


async def test_a_full_disk_is_told_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    stage, ran = Stage(), asyncio.Event()

    async def full() -> None:
        ran.set()
        raise sqlite3.OperationalError("database or disk is full")

    stage.ticks.every("sweep", 0.05, full)

    async def play() -> None:
        await ran.wait()
        while not stage.events:  # noqa: ASYNC110 - a tap has no event of its own
            await asyncio.sleep(0.005)

    await stage.serve(play)
    assert "sweep failed: database or disk is full" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_tick_that_raises_is_told_and_comes_again() -> None:
    stage, runs, second = Stage(), [], asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 2:
            second.set()
            return
        raise RuntimeError("no luck")

    stage.ticks.every("faulty", 0.05, work)

    async def play() -> None:
        await second.wait()

    await stage.serve(play)
    failed = [event for event in stage.events if isinstance(event, ServiceFailed)]
    assert failed == [ServiceFailed(service="faulty", error="RuntimeError('no luck')", after_s=0.05)]


async def test_a_stop_lets_the_running_tick_finish() -> None:
    stage, started, may_end = Stage(), asyncio.Event(), asyncio.Event()
    finished = []

    async def work() -> None:
        started.set()
        await may_end.wait()
        finished.append(True)

    stage.ticks.every("careful", 3600, work)
    stage.ticks.run_soon("careful")
    service = asyncio.create_task(stage.ticks.run(stage.stopping))
    await asyncio.wait_for(started.wait(), 5)
    stage.stopping.set()
    done, _ = await asyncio.wait({service}, timeout=0.05)
    assert not done
    may_end.set()
    await asyncio.wait_for(service, 5)
    assert finished == [True]
    assert stage.events == []


async def test_a_stop_before_the_start_returns_and_a_second_life_works() -> None:
    stage, ran = Stage(), asyncio.Event()

    async def work() -> None:
        ran.set()

    stage.ticks.every("beat", 0.02, work)
    stage.stopping.set()
    await asyncio.wait_for(stage.ticks.run(stage.stopping), 5)
    stage.stopping.clear()

    async def play() -> None:
        await ran.wait()

    await stage.serve(play)


async def test_a_wall_clock_set_back_does_not_silence_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    import apscheduler.schedulers.base

    offset = timedelta(0)

    class Wall(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + offset

    monkeypatch.setattr(schedule, "datetime", Wall)
    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Wall)
    monkeypatch.setattr(schedule, "_LOOK_S", 0.05)
    stage, ran = Stage(), asyncio.Event()

    async def work() -> None:
        ran.set()

    stage.ticks.every("beat", 0.1, work)

    async def play() -> None:
        nonlocal offset
        await ran.wait()
        offset = timedelta(hours=-2)
        ran.clear()
        await ran.wait()
        ran.clear()
        await ran.wait()

    await stage.serve(play)
    assert next(event for event in stage.events if isinstance(event, Noticed)).subject == "clock"


def test_a_pause_of_nothing_is_refused() -> None:
    async def work() -> None: ...

    stage = Stage()
    with pytest.raises(ValueError, match="pause"):
        stage.ticks.every("storm", 0, work)


THURSDAY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("*/15 * * * *", (2026, 1, 1, 0, 15)),
        ("0 0 * * *", (2026, 1, 2, 0, 0)),
        ("0 9 * * 1-5", (2026, 1, 1, 9, 0)),
        ("0 0 * * 0", (2026, 1, 4, 0, 0)),
        ("0 0 * * 7", (2026, 1, 4, 0, 0)),
        ("0 0 * * sun", (2026, 1, 4, 0, 0)),
        ("0 0 * * SAT-SUN", (2026, 1, 3, 0, 0)),
        ("0 0 * * 6-7", (2026, 1, 3, 0, 0)),
        ("0 0 * * 1", (2026, 1, 5, 0, 0)),
        ("0 0 13 * 5", (2026, 1, 2, 0, 0)),
        ("0 0 2 * 1", (2026, 1, 2, 0, 0)),
        ("0 0 * MAR *", (2026, 3, 1, 0, 0)),
        ("0 0 29 2 *", (2028, 2, 29, 0, 0)),
    ],
)
def test_cron_lines_mean_what_cron_means(cron: str, expected: tuple[int, ...]) -> None:
    assert next_fire(cron, THURSDAY) == datetime(*expected, tzinfo=UTC)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "61 * * * *",
        "0 0 31 2 *",
        "0 0 * * 8",
        "0 0 * * fri-mon",
        "0 0 * * ²",
        "5-2 * * * *",
        "*/0 * * * *",
        "*-3 * * * *",
    ],
)
def test_a_line_that_cannot_be_is_named(cron: str) -> None:
    with pytest.raises(PermanentError, match="schedule"):
        next_fire(cron, THURSDAY)


def test_cron_keeps_the_zone_it_was_asked_in() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    fire = next_fire("30 3 * * *", datetime(2026, 6, 1, 12, tzinfo=berlin))
    assert (fire.hour, fire.minute, fire.utcoffset()) == (3, 30, timedelta(hours=2))


@settings(max_examples=60, deadline=None)
@given(
    after=st.integers(946_684_800_000, 3_786_912_000_000),
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    weekday=st.integers(0, 7),
)
def test_next_fire_is_after_matches_and_is_the_first(after: int, minute: int, hour: int, weekday: int) -> None:
    asked = datetime.fromtimestamp(after / 1000, UTC)
    fire = next_fire(f"{minute} {hour} * * {weekday}", asked)
    assert asked < fire <= asked + timedelta(days=7)
    assert (fire.minute, fire.hour, fire.isoweekday() % 7) == (minute, hour, weekday % 7)
    assert next_fire(f"{minute} {hour} * * {weekday}", fire) == fire + timedelta(days=7)


def field_text(low: int, high: int, *names: str) -> st.SearchStrategy[str]:
    number = st.integers(low, high + (high > 30))
    ends = st.tuples(number, number).map(lambda pair: f"{pair[0]}-{pair[1]}")
    stepped = st.tuples(st.one_of(st.just("*"), number.map(str), ends), number).map(lambda pair: f"{pair[0]}/{pair[1]}")
    part = st.one_of(st.just("*"), number.map(str), ends, stepped, st.sampled_from(names or ("*",)))
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=2).map(",".join))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.tuples(
        field_text(0, 59),
        field_text(0, 23),
        field_text(1, 31),
        field_text(1, 12, "jan", "feb", "feb-apr"),
        field_text(0, 7, "sun", "fri-sat", "sun-tue"),
    )
)
def test_what_the_spool_accepts_comes_some_day(fields: tuple[str, ...]) -> None:
    cron = " ".join(fields)
    assume(not cron_fault(cron))
    assert next_fire(cron, THURSDAY) > THURSDAY


def test_a_time_on_the_wall_is_that_of_the_machine_summer_time_and_all() -> None:
    script = """
from datetime import UTC, datetime
from coordinator.kit.schedule import next_local_fire
for day in (28, 29):
    print(next_local_fire("30 4 * * *", datetime(2026, 3, day, 0, 0, tzinfo=UTC)).astimezone(UTC).isoformat())
"""
    env = {**os.environ, "TZ": "Europe/Berlin"}
    done = subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2026-03-28T03:30:00+00:00", "2026-03-29T02:30:00+00:00"]


async def test_a_tick_by_cron_comes_at_its_minutes_and_one_by_interval_when_it_is_due() -> None:
    stage, runs, both = Stage(), [], asyncio.Event()

    async def work(name: str) -> None:
        runs.append(name)
        if {"cron", "late"} <= set(runs):
            both.set()

    stage.ticks.every("late", 3600, functools.partial(work, "late"), first_s=-5)
    stage.ticks.every("early", 3600, functools.partial(work, "early"))
    stage.ticks.at("cron", "* * * * *", functools.partial(work, "cron"))

    async def play() -> None:
        tick = stage.ticks._ticks["cron"]
        job = stage.ticks._scheduler.get_job("cron")
        assert abs(job.next_run_time - next_local_fire("* * * * *", datetime.now(UTC))) < timedelta(seconds=1)
        assert job.trigger.get_next_fire_time(None, datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)) == datetime(
            2026, 1, 1, 0, 1, tzinfo=UTC
        )
        stage.ticks.run_soon("cron")  # its minute may be far
        await both.wait()
        await tick.idle.wait()
        assert 0 < tick.due - stage.ticks._clock.monotonic() <= 60

    await stage.serve(play)
    assert sorted(runs) == ["cron", "late"]


async def test_a_stepped_clock_plans_cron_lines_by_the_new_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()

    async def nothing() -> None: ...

    stage.ticks.at("cron", "0 4 * * *", nothing)

    async def play() -> None:
        stage.ticks._ticks["cron"].due += 9999
        stage.ticks._replan(9999)
        job = stage.ticks._scheduler.get_job("cron")
        assert abs(job.next_run_time - next_local_fire("0 4 * * *", datetime.now(UTC))) < timedelta(seconds=1)

    await stage.serve(play)


async def test_a_tick_s_first_run_is_spread_as_all_others_are() -> None:
    stage, spread = Stage(), []

    async def nothing() -> None: ...

    for number in range(40):
        stage.ticks.every(f"n{number}", 100, nothing, jitter_s=50)

    async def play() -> None:
        now = datetime.now(UTC)
        spread.extend((job.next_run_time - now).total_seconds() for job in stage.ticks._scheduler.get_jobs())

    await stage.serve(play)
    assert all(99 < wait_s < 150.1 for wait_s in spread)
    assert max(spread) - min(spread) > 10


def test_importing_the_module_does_not_import_apscheduler() -> None:
    import subprocess
    import sys

    code = "import sys, coordinator.kit.schedule; sys.exit('apscheduler' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

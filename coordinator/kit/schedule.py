"""The one table of periodic work, and the one reading of cron lines; both stand on APScheduler.

Owns one invariant: a tick never runs beside itself, and a stepped wall clock neither silences nor storms it (APScheduler
plans by wall time, so its plan is made anew from the monotonic clock when the two disagree). A tick that raises is
reported and comes again. It is not a queue: several requests for one tick while it runs are one more run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.errors import PermanentError, is_the_machines
from coordinator.domain.event import Noticed, ServiceFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock

_log = logging.getLogger(__name__)

_STEP_S: Final = 1.0
"""Wall and monotonic clock may drift apart this far between two looks before it is called a step."""

_LOOK_S: Final = 5.0
"""How often the clocks are compared: the longest that a step backwards can hold up a tick."""

_YEARS_AHEAD: Final = 9
"""29 February comes within eight years, so a cron line without a date in nine has none."""

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: Final[Mapping[str, tuple[int, int, tuple[str, ...]]]] = {
    "minute": (0, 59, ()),
    "hour": (0, 23, ()),
    "day": (1, 31, ()),
    "month": (1, 12, _MONTHS),
    "day_of_week": (0, 7, _WEEKDAYS),
}
_PART: Final = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d{1,4}))?", re.ASCII)


@dataclass(slots=True, kw_only=True)
class _Tick:
    """``due`` is the monotonic time of the next run; ``again`` asks for one more when the present one is over. ``cron`` is
    empty for one that comes every so many ``seconds``.
    """

    again: bool = False
    cron: str = ""
    due: float
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    jitter_s: float
    name: str
    seconds: float
    work: Callable[[], Awaitable[object]]

    def __post_init__(self) -> None:
        self.idle.set()


class Ticks:
    """A service: named coroutines, each run every so many seconds or as cron has it, never two of one name at a time."""

    name = "ticks"

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._ticks: dict[str, _Tick] = {}
        self._scheduler: Any = None  # APScheduler ships no types

    def every(
        self,
        name: str,
        seconds: float,
        work: Callable[[], Awaitable[object]],
        *,
        first_s: float | None = None,
        jitter_s: float = 0,
    ) -> None:
        """Run ``work`` every ``seconds``, first after ``first_s`` (None: ``seconds``); a tick of the same name is replaced.

        ``jitter_s`` delays each run by up to that much, so that many daemons do not beat together. May be called
        before and after the start.
        """
        if seconds <= 0:
            raise ValueError(f"tick {name}: {seconds} s is not a pause")
        due = self._clock.monotonic() + (seconds if first_s is None else max(0.0, first_s))
        self._put(_Tick(name=name, seconds=seconds, work=work, jitter_s=jitter_s, due=due))

    def at(self, name: str, cron: str, work: Callable[[], Awaitable[object]], *, jitter_s: float = 0) -> None:
        """Run ``work`` at the minutes of the local time that ``cron`` names, each delayed by up to ``jitter_s``; times that
        passed while nobody served, or while a run took long, are one run or none. Otherwise as ``every``.
        """
        wait_s = self._until(cron)
        self._put(
            _Tick(
                name=name, cron=cron, seconds=wait_s, work=work, jitter_s=jitter_s, due=self._clock.monotonic() + wait_s
            )
        )

    def _put(self, tick: _Tick) -> None:
        self._ticks[tick.name] = tick
        if self._scheduler is not None:
            self._add(tick)

    def _until(self, cron: str) -> float:
        now = datetime.now(UTC)
        return (next_local_fire(cron, now) - now).total_seconds()

    def run_soon(self, name: str) -> None:
        """Run the tick now, or once more after its present run. Before the start: as soon as it starts.

        Raises ``KeyError`` for an unknown name.
        """
        tick = self._ticks[name]
        if not tick.idle.is_set():
            tick.again = True
            return
        tick.due = self._clock.monotonic()
        if self._scheduler is not None:
            self._scheduler.modify_job(name, next_run_time=datetime.now(UTC))

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until ``stopping``; then let running ticks finish (a stop is not a cancel) and start no more."""
        self._scheduler = _new_scheduler(self._on_event)
        try:
            self._scheduler.start()
            for tick in self._ticks.values():
                self._add(tick)
            await self._watch_clocks(stopping)
            self._scheduler.pause()
            for tick in tuple(self._ticks.values()):
                await tick.idle.wait()
        finally:
            scheduler, self._scheduler = self._scheduler, None
            scheduler.shutdown(wait=False)
            await asyncio.sleep(0)  # APScheduler's shutdown is itself posted to the loop

    def _add(self, tick: _Tick) -> None:
        from apscheduler.triggers.interval import IntervalTrigger

        jitter_s = tick.jitter_s or None
        self._scheduler.add_job(
            self._run_tick,
            _cron_trigger(tick.cron, jitter_s)
            if tick.cron
            else IntervalTrigger(seconds=tick.seconds, jitter=jitter_s, timezone=UTC),
            args=(tick,),
            id=tick.name,
            name=tick.name,
            next_run_time=self._wall(tick.due + random.uniform(0, tick.jitter_s)),
            replace_existing=True,
        )

    async def _run_tick(self, tick: _Tick) -> None:
        tick.idle.clear()
        tick.due = self._clock.monotonic() + (self._until(tick.cron) if tick.cron else tick.seconds)
        try:
            await tick.work()
        finally:
            tick.idle.set()

    def _wall(self, due: float) -> datetime:
        """A monotonic time as APScheduler wants it."""
        return datetime.now(UTC) + timedelta(seconds=max(0.0, due - self._clock.monotonic()))

    async def _watch_clocks(self, stopping: asyncio.Event) -> None:
        gap = self._gap()
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _LOOK_S)
            step = self._gap() - gap
            gap += step
            if abs(step) > _STEP_S and not stopping.is_set():
                self._replan(step)

    def _gap(self) -> float:
        return datetime.now(UTC).timestamp() - self._clock.monotonic()

    def _replan(self, step_s: float) -> None:
        for tick in self._ticks.values():
            if tick.cron:  # which minute it is now, the new time tells
                tick.due = self._clock.monotonic() + self._until(tick.cron)
            self._scheduler.modify_job(tick.name, next_run_time=self._wall(tick.due))
        self._bus.publish(
            Noticed(subject="clock", message=f"the wall clock stepped by {step_s:+.0f} s, or the machine slept")
        )

    def _on_event(self, event: Any) -> None:
        from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED

        tick = self._ticks.get(event.job_id)
        if tick is None or self._scheduler is None:
            return
        if event.code == EVENT_JOB_MAX_INSTANCES:
            _log.debug("tick is still running", extra={"action": "tick_skipped", "tick": tick.name})
            return
        if event.code == EVENT_JOB_MISSED:
            self._bus.publish(Noticed(subject=tick.name, message="a run was missed"))
        elif event.code == EVENT_JOB_ERROR:
            error = event.exception
            trace = None if is_the_machines(error) else (type(error), error, error.__traceback__)
            _log.error("%s failed: %s", tick.name, error, exc_info=trace, extra={"action": "tick_failed"})
            self._bus.publish(ServiceFailed(service=tick.name, error=repr(error), after_s=tick.seconds))
        if tick.again:
            tick.again = False
            self.run_soon(tick.name)


def _cron_trigger(cron: str, jitter_s: float | None) -> Any:
    """A trigger of APScheduler's that fires when ``next_fire`` says so: its own reads cron lines otherwise than cron does."""
    from apscheduler.triggers.base import BaseTrigger

    class CronLine(BaseTrigger):  # type: ignore[misc] # APScheduler ships no types
        def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
            fire: datetime = self._apply_jitter(next_local_fire(cron, now), jitter_s, now)
            return fire

    return CronLine()


def _new_scheduler(listener: Callable[[Any], None]) -> Any:
    """An AsyncIOScheduler in memory that folds late runs into one and never calls a run too late to be made."""
    from apscheduler import events
    from apscheduler.executors.asyncio import AsyncIOExecutor
    from apscheduler.jobstores.memory import MemoryJobStore
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    # It would log each run, and each error a second time; what matters goes through our own logger and the bus.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
    scheduler = AsyncIOScheduler(
        executors={"default": AsyncIOExecutor()},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        jobstores={"default": MemoryJobStore()},
        timezone=UTC,
    )
    watched = events.EVENT_JOB_ERROR | events.EVENT_JOB_EXECUTED
    scheduler.add_listener(listener, watched | events.EVENT_JOB_MAX_INSTANCES | events.EVENT_JOB_MISSED)
    return scheduler


# --- cron --------------------------------------------------------------------------------------------------------------


def next_fire(cron: str, after: datetime) -> datetime:
    """The first minute strictly after ``after`` that the five-field line names, in ``after``'s time zone.

    As crontab(5) has it, 0 and 7 are Sunday (APScheduler: Monday is 0), ``1-3/9`` is a fault of style only, and when
    neither day of month nor day of week is ``*`` either suffices (APScheduler: both). Raises ``PermanentError`` for an
    unreadable line or one that never comes; a line that ``domain.cron`` accepts is neither.
    """
    if after.tzinfo is None:
        raise ValueError("a time without a zone")
    written = cron.lower().split()
    if len(written) != len(_FIELDS):
        raise PermanentError(f"schedule {cron!r}: {len(written)} fields, expected {len(_FIELDS)}")
    fields = {name: _spelled_out(cron, text, name) for text, name in zip(written, _FIELDS, strict=True)}
    either = ("day", "day_of_week") if fields["day"] != "*" != fields["day_of_week"] else ("",)
    fires = [_first(fields | {ignored: "*"} if ignored else fields, after) for ignored in either]
    coming = [fire for fire in fires if fire is not None]
    if not coming:
        raise PermanentError(f"schedule {cron!r}: no such day in the next {_YEARS_AHEAD} years")
    return min(coming)


def next_local_fire(cron: str, after: datetime) -> datetime:
    """``next_fire`` by the clock on the wall of this machine, summer time and all."""
    from apscheduler.triggers.cron import CronTrigger

    return next_fire(cron, after.astimezone(CronTrigger().timezone))


def _first(fields: Mapping[str, str], after: datetime) -> datetime | None:
    from apscheduler.triggers.cron import CronTrigger

    end = after + timedelta(days=366 * _YEARS_AHEAD)
    trigger = CronTrigger(**fields, timezone=after.tzinfo, end_date=end)
    fire = trigger.get_next_fire_time(None, after + timedelta(microseconds=1))
    return fire if isinstance(fire, datetime) else None


def _spelled_out(cron: str, text: str, name: str) -> str:
    """A field as APScheduler reads it the way cron would: ``*`` or its values one by one."""
    if text == "*":
        return text
    values: set[int] = set()
    for part in text.split(","):
        values.update(_values(cron, part, name))
    if name == "day_of_week":
        return ",".join(_WEEKDAYS[value] for value in sorted({value % 7 for value in values}))
    return ",".join(str(value) for value in sorted(values))


def _values(cron: str, part: str, name: str) -> range:
    low, high, names = _FIELDS[name]
    match = _PART.fullmatch(part)
    if match is None:
        raise PermanentError(f"schedule {cron!r}: {part!r} is not a {name}")
    step = int(match["step"] or 1)
    if match["first"] is None:
        first, last = low, 6 if name == "day_of_week" else high
    else:
        first = _value(match["first"], low, names)
        last = _value(match["last"] or match["first"], low, names)
        if match["step"] and not match["last"]:
            last = high  # cron reads 5/15 as 5-59/15
        elif match["last"] == "sun":
            last = 7
    if not (low <= first <= last <= high and step >= 1):
        raise PermanentError(f"schedule {cron!r}: {part!r} is not within {low}…{high} of {name}")
    return range(first, last + 1, step)


def _value(text: str, low: int, names: tuple[str, ...]) -> int:
    """A number or a name as a number; -1, which no field allows, for anything else."""
    if text in names:
        return names.index(text) + low
    return int(text) if text.isdigit() and len(text) < 5 else -1

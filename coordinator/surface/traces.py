"""Tells a collector of OpenTelemetry's of attempts and their model calls, in batches, when they are over.

Owns one invariant: whoever takes the spans, or does not, slows and stops nothing. What waits is bounded and sent from a thread
of its own; what is lost is counted, shown with the other meters, and said when it begins and when it ends. What a span says is
``policy.spans``', whether there are any ``policy.trace_export``'s; nothing of OpenTelemetry is imported unless there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from coordinator import __version__
from coordinator.domain.event import AttemptEnded, Noticed, RequestServed
from coordinator.domain.meter import Meter, MeterKind
from coordinator.policy.spans import span_sketch
from coordinator.policy.trace_export import EXTRA, trace_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from coordinator.domain.event import Published
    from coordinator.kit.bus import Bus
    from coordinator.kit.otlp import OtlpSender
    from coordinator.policy.spans import SpanPlace
    from coordinator.policy.trace_export import TraceExport

T = TypeVar("T")

LAST_WORDS_S: Final = 3.0
"""What is not sent when the daemon stops gets this long."""


class Traces:
    """A service. ``places`` are the upstreams by name, ``state`` is where this house keeps what it knows."""

    name = "traces"

    def __init__(
        self, bus: Bus, plan: TraceExport, places: Mapping[str, SpanPlace], *, repository: Path, state: Path
    ) -> None:
        self._about = {"service.name": "coordinator", "service.version": __version__}
        self._about |= {"coordinator.repository": repository.name}
        self._bus = bus
        self._counts = dict.fromkeys(("sent", "refused", "dropped", "left"), 0)
        self._house = f"{os.uname().nodename}:{state}"
        self._full = asyncio.Event()
        self._news = asyncio.Event()
        self._over = False
        self._places = places
        self._plan = plan
        self._sender: OtlpSender | None = None
        self._subscription = bus.subscribe()
        self._trouble = ""
        self._lost_before = 0
        self._under_way = 0
        self._waiting: deque[Published] = deque()

    def meters(self) -> Iterable[Meter]:
        """From any thread."""
        yield Meter(
            about="Spans of attempts and calls: sent, or lost as the collector did not take them (refused), as too many "
            "waited (dropped) or at a stop (left).",
            kind=MeterKind.COUNTER,
            labels=("outcome",),
            name="orchestrator_spans_total",
            samples=tuple(((outcome,), float(count)) for outcome, count in self._counts.items()),
        )

    @property
    def lost(self) -> int:
        return sum(self._counts.values()) - self._counts["sent"]

    async def run(self, stopping: asyncio.Event) -> None:
        feeding = asyncio.create_task(self._feed())
        try:
            fault = self._plan.fault or await self._open()
            if not fault:
                await self._serve_until(stopping, feeding)
                return
            feeding.cancel()
            self._subscription.close()
            self._waiting.clear()
            self._say(f"no spans are sent to {self._plan.where}: {fault}")
            await stopping.wait()
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            self._close()

    async def _serve_until(self, stopping: asyncio.Event, feeding: asyncio.Task[None]) -> None:
        serving = asyncio.create_task(self._serve())
        told = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
            self._subscription.close()
            await feeding
            self._end()
            await asyncio.wait({serving}, timeout=LAST_WORDS_S)
            if serving.done():
                await serving
        finally:
            for task in (serving, told):
                task.cancel()
            await asyncio.gather(serving, told, return_exceptions=True)

    async def _open(self) -> str:
        """What stands in the way."""
        made = await _apart(self._make)
        if isinstance(made, str):
            return made
        self._sender = made
        return ""

    def _make(self) -> OtlpSender | str:
        try:
            from coordinator.kit.otlp import OtlpSender as Sender

            return Sender("coordinator", __version__, self._about)
        except ImportError:
            return f"OpenTelemetry is not installed; {EXTRA}"
        except (RuntimeError, ValueError) as error:
            return str(error)

    def _close(self) -> None:
        """What was not sent is lost."""
        left, self._under_way = len(self._waiting) + self._under_way, 0
        self._waiting.clear()
        self._counts["left"] += left
        if left:
            self._say(f"{left} spans were not sent to {self._plan.where} before the end")
        if self._sender is not None:
            self._sender.close()

    # -- what waits ----------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        async for published in self._subscription:
            if not isinstance(published.event, RequestServed | AttemptEnded):
                continue
            if len(self._waiting) >= self._plan.room:
                self._waiting.popleft()
                self._counts["dropped"] += 1
            self._waiting.append(published)
            self._news.set()
            if len(self._waiting) >= self._plan.batch:
                self._full.set()

    def _end(self) -> None:
        self._over = True
        self._full.set()
        self._news.set()

    async def _serve(self) -> None:
        """Send a batch when it is full, or some time after its first span; when it is over, whatever is left."""
        while not self._over or self._waiting:
            await self._news.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._plan.every_s)
            batch = [self._waiting.popleft() for _ in range(min(self._plan.batch, len(self._waiting)))]
            if batch:
                await self._send(batch)
            if not self._over and len(self._waiting) < self._plan.batch:
                self._full.clear()
            if not self._over and not self._waiting:
                self._news.clear()

    async def _send(self, batch: list[Published]) -> None:
        assert self._sender is not None  # _open
        sender, places, house = self._sender, self._places, self._house
        self._under_way = len(batch)

        def send() -> str:
            sketches = [span_sketch(published, places, house) for published in batch]
            return sender.send([sketch for sketch in sketches if sketch is not None])

        fault = await _apart(send)
        self._under_way = 0
        self._counts["refused" if fault else "sent"] += len(batch)
        if fault and not self._trouble:
            self._lost_before = self.lost - len(batch)
            self._say(f"{self._plan.where} takes no spans ({fault}); they are lost, and counted, until it does")
        elif self._trouble and not fault:
            self._say(f"{self._plan.where} takes spans again; {self.lost - self._lost_before} were lost")
        self._trouble = fault

    def _say(self, message: str) -> None:
        self._bus.publish(Noticed(subject="traces", message=message))


def traces_of(
    setting: str,
    environment: Mapping[str, str],
    bus: Bus,
    places: Mapping[str, SpanPlace],
    *,
    repository: Path,
    state: Path,
) -> Traces | None:
    """None: nobody asked for any."""
    plan = trace_export(setting, environment)
    return Traces(bus, plan, places, repository=repository, state=state) if plan.on else None


async def _apart(call: Callable[[], T]) -> T:
    """The result of a call that may block for long: in a thread that nothing waits for, least of all the process's end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[Any], object], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # that loop is no more
            loop.call_soon_threadsafe(lambda: answer.done() or settle(what))

    def work() -> None:
        try:
            tell(answer.set_result, call())
        except BaseException as error:
            tell(answer.set_exception, error)
            raise

    threading.Thread(target=work, name="traces", daemon=True).start()
    return await answer

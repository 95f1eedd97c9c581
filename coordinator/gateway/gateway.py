"""The gateway as the rest of the house sees it: credentials for attempts, calls under way, revoking, and the service.

Owns one invariant: while it is on, an agent reaches a model here and with its own key only, and a key dies with its
attempt. Where it is off, it says so by having no credentials and no calls to tell of.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from coordinator.domain.errors import CoordinatorError, DaemonUnreachable
from coordinator.domain.event import CallsCounted, Noticed
from coordinator.gateway import place
from coordinator.gateway.calls import Calls
from coordinator.gateway.hosts import HostNames
from coordinator.gateway.keys import ClaimKeys, base_path
from coordinator.gateway.quotes import barred_arms
from coordinator.gateway.upstream import upstreams_of
from coordinator.kit.loop_thread import LoopThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from coordinator.domain.event import Event
    from coordinator.domain.knob import KnobReading
    from coordinator.domain.meter import Meter
    from coordinator.domain.model_choice import ModelCapacity
    from coordinator.domain.settings import GatewaySettings
    from coordinator.domain.upstream_sample import UpstreamSample
    from coordinator.gateway.claimant import Claimant
    from coordinator.gateway.documents import Document
    from coordinator.gateway.engine import Engine, EngineOrder
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

_log = logging.getLogger(__name__)

T = TypeVar("T")

_TURN_S: Final = 0.0002
"""How long one thread keeps the interpreter while another wants it. A piece of a stream asks for it two or three times, and
pieces come every few milliseconds: with a longer turn they would queue up behind the daemon's own work."""


_GARBAGE: Final = (10_000, 20, 20)
"""When the collector looks for circles: a call leaves none, and makes hundreds of objects."""


class Gateway:
    """A service. ``open`` before the first order is written, ``close`` when no service will run any more.

    ``who`` tells of an attempt that may make calls: it was offered, and its end has not been seen (None: it may not). It is
    asked for each call, from the gateway's own thread, and has to be quick. ``render`` turns meters into what a scraper reads.
    """

    name = "gateway"

    def __init__(
        self,
        state: Path,
        settings: GatewaySettings,
        environment: Mapping[str, str],
        bus: Bus,
        clock: Clock,
        store: Store | None = None,
        *,
        origins: Mapping[str, Callable[[], Iterable[Document]]],
        render: Callable[[Iterable[Meter]], tuple[bytes, str]],
        who: Callable[[str, int], Claimant | None],
    ) -> None:
        self._state = state
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self._engine: Engine | None = None
        self._origins = origins
        self._environment = {name: value for name, value in environment.items() if name.lower().endswith("_proxy")}
        self._remarks: list[str] = []
        self._render = render
        self._store = store
        self._thread: LoopThread | None = None
        self._turned: dict[str, tuple[float, float | None]] = {}
        self._who = who
        self._calls = Calls(clock, self._post)
        self._place: place.GatewayPlace | None = None
        self._upstreams = upstreams_of(settings, environment)
        self.on = self._upstreams.wanted
        """Whether there is a gateway at all."""

    # -- what the house asks -----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Empty while it is not open."""
        return self._place.url if self._place is not None else ""

    def credentials(self, task: str, generation: int) -> tuple[str, str]:
        """Base URL and key for an attempt; both empty when there is no gateway."""
        if self._place is None:
            return "", ""
        claim = task, generation
        return f"{self.url}{base_path(claim)}", ClaimKeys(self._place.secret).key(claim)

    def calls(self, task: str, generation: int) -> tuple[int, float] | None:
        """Model calls of an attempt in flight and the age of the oldest in seconds.

        None: not known. There is no gateway, or this attempt never called through it (yet): it may have another way.
        """
        claim = task, generation
        return self._calls.under_way(claim) if self._calls.ever_called(claim) else None

    def revoke(self, task: str, generation: int) -> None:
        """From now on the attempt reaches no model, under this daemon or the next; its calls in flight are cut."""
        if not self.on or not self._calls.revoke((task, generation)):
            return
        try:
            place.remember_revoked(self._state, (task, generation))
        except OSError as error:
            extra = {"action": "revocation_not_kept", "task": task}
            _log.warning("a restart would forget that the key is revoked: %s", error, extra=extra)

    def conclude(self, task: str, generation: int) -> float:
        """The attempt is over: its key is dead, and what it called is told. The ledger keeps that it is over.

        Returns in how many seconds the provider, which had no more for it, said that there is more; 0: it did not.
        """
        if not self.on:
            return 0.0
        self._calls.revoke((task, generation))
        tally = self._calls.take_tally((task, generation))
        if tally is None:
            return 0.0
        self._bus.publish(
            CallsCounted(
                bytes_down=tally.bytes_down,
                bytes_up=tally.bytes_up,
                calls=tally.calls,
                cost_usd=round(tally.cost_usd, 9),
                generation=generation,
                last_status=tally.last_status,
                limited=tally.limited,
                task=task,
            )
        )
        limited = tally.last_status == 429
        return max(0.0, tally.again_at - self._clock.monotonic()) if limited and tally.again_at else 0.0

    # -- its life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen, so that credentials can be given and agents of before find us. Safe to call twice; raises ``OSError``, and
        ``BadInput`` for a host that is none."""
        if not self.on or self._place is not None:
            return
        for claim in place.revoked_before(self._state):
            self._calls.revoke(claim)
        self._place = kept = place.take(self._state, self._settings.host, self._settings.port)
        if kept.lost:
            self._remarks.append(
                f"{kept.lost}: model calls pass through {self.url}; agents that an earlier daemon started do not "
                "find it and will fail within about 3 minutes"
            )
        if kept.at.open:
            self._remarks.append(
                f"other machines can reach {kept.at.literal}:{kept.port}: each call needs a key, but nothing is encrypted, and "
                "/health, /ready and /metrics need none"
            )

    def close(self) -> None:
        """Listen no more. Safe to call twice."""
        kept, self._place = self._place, None
        if kept is None:
            return
        kept.listener.close()
        try:
            place.write(self._state, kept.at.near, kept.port, kept.secret, pid=0)
        except OSError as error:
            _log.warning("not written down that the gateway is closed: %s", error, extra={"action": "close_not_kept"})

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until told to stop. After a failure the socket goes on listening, so that callers only wait."""
        self.open()
        if self._place is None:
            await stopping.wait()
            return
        while self._remarks:
            self._bus.publish(Noticed(subject="gateway", message=self._remarks.pop(0)))
        from coordinator.kit.wire import new_loop  # who has no gateway needs none of its libraries

        listener, order = self._place.listener.dup(), self._order(self._place)
        self._thread = thread = LoopThread("gateway", new_loop)
        serving = asyncio.ensure_future(thread.run(lambda: self._serve(order, listener)))
        told = asyncio.ensure_future(stopping.wait())
        turn_s, garbage = sys.getswitchinterval(), gc.get_threshold()
        sys.setswitchinterval(_TURN_S)
        gc.collect()
        gc.freeze()  # what was loaded up to now need not be looked through again and again, while no thread may run
        gc.set_threshold(*_GARBAGE)
        try:
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and self._engine is not None:
                thread.post(self._engine.stop)
            await serving
        finally:
            sys.setswitchinterval(turn_s)
            gc.set_threshold(*garbage)
            gc.unfreeze()
            told.cancel()
            serving.cancel()
            self._thread = self._engine = None
            if stopping.is_set():
                self.close()

    async def _serve(self, order: EngineOrder, listener: socket.socket) -> None:
        """On the gateway's own loop."""
        from coordinator.gateway.engine import Engine

        try:
            self._engine = Engine(order, self._calls, self._clock)
        except BaseException:
            listener.close()
            raise
        await self._engine.serve(listener)

    def _order(self, kept: place.GatewayPlace) -> EngineOrder:
        from coordinator.gateway.engine import EngineOrder

        rows = self._store.query("spend_by_task") if self._store is not None else []
        today = self._clock.now().date().isoformat()
        days = self._store.query("spend_by_day") if self._store is not None else []
        return EngineOrder(
            environment=self._environment,
            hosts=HostNames(kept.at, self._settings.allowed_hosts, socket.gethostname()),
            origins=self._origins,
            render=self._render,
            revoke=self.revoke,
            secret=kept.secret,
            settings=self._settings,
            spent={row["task"]: row["cost_usd"] for row in rows},
            spent_today=sum(row["cost_usd"] for row in days if row["day"] == today),
            store=self._store,
            tell=self._tell,
            turned=dict(self._turned),
            upstreams=self._upstreams.known,
            url=self.url,
            who=self._who,
        )

    async def ask(self, question: Callable[[Engine], T]) -> T:
        """Have something asked of the run that is under way, on its loop. Raises what ``question`` does, if that is a
        ``CoordinatorError``, and ``DaemonUnreachable`` when no gateway runs."""
        thread, answer = self._thread, asyncio.get_running_loop().create_future()

        def there() -> None:
            engine = self._engine
            try:
                if engine is None or thread is None:
                    raise DaemonUnreachable("the gateway does not run yet")
                thread.tell(_settle, answer, question(engine), None)
            except CoordinatorError as error:
                if thread is not None:
                    thread.tell(_settle, answer, None, error)

        if not self._post(there):
            raise DaemonUnreachable(
                "no gateway runs here: no provider's key or URL is set, or [gateway] enabled is off"
            )
        found: T = await answer
        return found

    # -- its knobs (``control.knob_board.KnobPanel``) ------------------------------------------------------------------

    async def knobs(self) -> Sequence[KnobReading]:
        """None while no gateway runs."""
        try:
            return await self.ask(lambda engine: engine.knobs())
        except DaemonUnreachable:
            return ()

    async def turn(self, name: str, value: float, author: str, reason: str) -> None:
        """Also for runs to come. Raises ``BadInput`` and ``DaemonUnreachable``."""
        await self.ask(lambda engine: engine.turn(name, value, author, reason))
        self._turned[name] = value, None

    def begin_with(self, turned: Mapping[str, tuple[float, float | None]]) -> None:
        """What knobs begin as instead of what the settings say, and what these said then; before it runs."""
        self._turned.update(turned)

    async def samples(self) -> Sequence[UpstreamSample]:
        try:
            return await self.ask(lambda engine: engine.samples())
        except DaemonUnreachable:
            return ()

    async def capacity(self) -> ModelCapacity | None:
        """What the upstreams can take; None while no gateway runs."""
        try:
            return await self.ask(lambda engine: engine.capacity())
        except DaemonUnreachable:
            return None

    async def barred(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of these models go nowhere just now; none while no gateway runs."""
        try:
            standing = await self.ask(lambda engine: engine.upstreams())
        except DaemonUnreachable:
            return ()
        return barred_arms(names, standing, self._settings.aliases)

    # -- between the two loops ---------------------------------------------------------------------------------------

    def _post(self, call: Callable[..., object], *arguments: object) -> bool:
        return self._thread.post(call, *arguments) if self._thread is not None else False

    def _tell(self, events: Sequence[Event]) -> None:
        if self._thread is not None:
            self._thread.tell(self._publish, events)

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            self._bus.publish(event)


def _settle(answer: asyncio.Future[Any], value: object, error: CoordinatorError | None) -> None:
    if not answer.done() and error is not None:
        answer.set_exception(error)
    elif not answer.done():
        answer.set_result(value)


def listening_at(state: Path) -> str:
    """Where the gateway of this very process listens; empty: there is none."""
    return place.url_of(state, os.getpid())

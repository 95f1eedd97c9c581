"""One run of the gateway on a loop of its own: everything on a call's path, built, joined, served and taken down.

Owns one invariant: all of it lives on one loop, so nothing on the path locks; what the rest of the house is told goes home in
batches. It is made anew for each run; what must outlive one (calls, place) is the ``Gateway``'s.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.errors import BadInput
from coordinator.domain.event import GatewayReady, KnobTurned, Noticed
from coordinator.domain.knob import KnobReading
from coordinator.domain.model_choice import ModelCapacity
from coordinator.domain.problem import Problem
from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway.aftermath import Aftermath, counts_as_delivered
from coordinator.gateway.books import Books
from coordinator.gateway.calls import CallEnding
from coordinator.gateway.courier import Courier
from coordinator.gateway.dials import CALLS_AT, KNOBS, Dials, calls_knob
from coordinator.gateway.doorkeeper import Doorkeeper
from coordinator.gateway.echo import EchoOrigin
from coordinator.gateway.keys import ClaimKeys
from coordinator.gateway.meters import (
    Meters,
    breaker_meters,
    budget_meters,
    named_models,
    sharing_meters,
    standing_meters,
)
from coordinator.gateway.model_inquiry import ModelInquiry
from coordinator.gateway.pacing import Pacing
from coordinator.gateway.pages import Pages
from coordinator.gateway.prices import Prices
from coordinator.gateway.prompt_lane import PromptLane
from coordinator.gateway.prompt_routes import PromptRoutes
from coordinator.gateway.prompt_sharing import PromptSharing
from coordinator.gateway.relay import Relay
from coordinator.gateway.response_cache import ResponseCache
from coordinator.gateway.retrieval import Retrieval
from coordinator.gateway.routing import Routes
from coordinator.gateway.station import Station
from coordinator.kit.stage import Stage
from coordinator.kit.wire_client import Origin, proxy_for
from coordinator.kit.wire_server import WireServer
from coordinator.policy.learned_limit import UNLIMITED

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from coordinator.domain.event import Event
    from coordinator.domain.meter import Meter
    from coordinator.domain.settings import GatewaySettings
    from coordinator.domain.upstream_sample import UpstreamSample
    from coordinator.gateway.calls import Call, Calls
    from coordinator.gateway.claimant import Claimant
    from coordinator.gateway.documents import Document
    from coordinator.gateway.hosts import HostNames
    from coordinator.gateway.upstream import Upstream
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

FAREWELL_S: Final = 3.0
"""What calls under way get to end by themselves when the gateway stops: each that does is not paid for twice."""

_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """What a run needs from home. ``origins`` give documents that a prompt may be about, by kind; ``store`` is where they are
    found by their words (None: nothing is retrieved). ``tell`` takes batches of events there; ``spent`` is USD by task,
    ``spent_today`` of all.

    ``turned`` are knobs that do not begin as the settings say, with what these said when they were turned (None: as now).

    ``render`` turns meters into what a scraper reads: body and content type.
    """

    environment: Mapping[str, str]
    hosts: HostNames
    origins: Mapping[str, Callable[[], Iterable[Document]]]
    render: Callable[[Iterable[Meter]], tuple[bytes, str]]
    revoke: Callable[[str, int], None]
    secret: bytes
    settings: GatewaySettings
    spent: Mapping[str, float]
    spent_today: float
    store: Store | None
    tell: Callable[[list[Event]], object]
    turned: Mapping[str, tuple[float, float | None]]
    upstreams: tuple[Upstream, ...]
    url: str
    who: Callable[[str, int], Claimant | None]


class Engine:
    """Made on the loop that ``serve`` runs on."""

    def __init__(self, order: EngineOrder, calls: Calls, clock: Clock) -> None:
        settings = order.settings
        self._calls = calls
        self._clock = clock
        self._order = order
        self._stop = asyncio.Event()
        self._trouble: dict[str, tuple[str, float]] = {}
        self._usual: dict[str, float] = {}
        self.meters = Meters(named_models(settings))
        self.books = Books(settings, today=clock.now().date(), spent_today=order.spent_today, spent=order.spent)
        self.dials = dials = Dials(settings)
        width, room = int(dials.width), int(dials.room)
        self.inference = Stage("inference", width=width, room=room, promote_s=dials.promote_s)
        self.stations = [self._station(upstream) for upstream in order.upstreams if not upstream.fault]
        self._aftermath = Aftermath(clock, self.meters, order.tell)
        self._pacing = Pacing(dials, clock)
        self._prices = Prices(settings, clock.now().date())
        self._doorkeeper = Doorkeeper(
            ClaimKeys(order.secret),
            calls,
            clock,
            calls_per_agent=settings.calls_per_agent,
            hosts=order.hosts,
            who=order.who,
        )
        self._courier = Courier(dials, clock, self.inference, self.meters, random.random)
        self._courier.heard = self._heard
        faulty = [one for one in order.upstreams if one.fault]
        self._routes = Routes(self.stations, settings.aliases, faulty, roles=settings.roles)
        store, origins = order.store, order.origins
        self._retrieval = Retrieval(store, origins, clock) if store is not None and origins else None
        self._lane = self._make_lane()
        self._pages = Pages(self.stations, self.all_meters, order.render, lambda: calls.closing, self._lane)
        self._relay = self._make_relay()
        self._usual.update({one.knob.name: one.value for one in self.knobs()})
        self._restore(order.turned)

    def _station(self, upstream: Upstream) -> Station:
        dials, share = self.dials, self._order.settings.retry_share
        if upstream.kind is UpstreamKind.ECHO:
            return Station(upstream, EchoOrigin(), dials, self._clock, share)
        origin = Origin(
            origin_of(upstream.url),
            connect_s=upstream.settings.connect_s,
            proxy=proxy_for(upstream.url, self._order.environment),
        )
        return Station(upstream, origin, dials, self._clock, share)

    def _make_relay(self) -> Relay:
        return Relay(
            self._order.settings,
            self._clock,
            aftermath=self._aftermath,
            books=self.books,
            calls=self._calls,
            courier=self._courier,
            dials=self.dials,
            doorkeeper=self._doorkeeper,
            inquiry=ModelInquiry(
                self._clock,
                aliases=self._order.settings.aliases,
                books=self.books,
                courier=self._courier,
                pacing=self._pacing,
                routes=self._routes,
            ),
            pacing=self._pacing,
            pages=self._pages.protocol,
            prices=self._prices,
            retrieval=self._retrieval,
            revoke=self._order.revoke,
            routes=self._routes,
        )

    def _make_lane(self) -> PromptLane:
        order, dials = self._order, self.dials
        cache = ResponseCache(self._clock, max_bytes=int(dials.cache_bytes), ttl_s=dials.cache_ttl_s)
        return PromptLane(
            order.settings,
            self._clock,
            aftermath=self._aftermath,
            books=self.books,
            calls=self._calls,
            courier=self._courier,
            dials=dials,
            doorkeeper=self._doorkeeper,
            meters=self.meters,
            pacing=self._pacing,
            prices=self._prices,
            retrieval=self._retrieval,
            routes=PromptRoutes(self.stations, self._routes),
            sharing=PromptSharing(cache, joins=order.settings.dedup != "off", wait_s=dials.dedup_wait_s),
        )

    def stop(self) -> None:
        """Serve no longer; called on this loop."""
        self._stop.set()

    async def serve(self, listener: socket.socket) -> None:
        """Until told to stop."""
        server = WireServer(self._relay)
        looking = asyncio.create_task(self._look())
        try:
            with listener:
                await self._pages.open()
                await server.start(listener.dup())
            urls = tuple(upstream.url for upstream in self._order.upstreams if upstream.given or not upstream.fault)
            self._order.tell([GatewayReady(url=self._order.url, upstreams=urls)])
            await self._stop.wait()
            server.refuse_new()
            await self._calls.close(FAREWELL_S)
        finally:
            looking.cancel()
            await server.stop(0.5)
            await self._pages.close()
            self._aftermath.fold()
            if self._retrieval is not None:
                await self._retrieval.close()
            for station in self.stations:
                await station.source.close()

    async def _look(self) -> None:
        """What is done now and then: limits' ticks, the day's budget, calls of which nothing comes or is taken."""
        while True:
            await self._clock.sleep(_LOOK_S)
            now = self._clock.monotonic()
            for station in self.stations:
                station.tick(now)
            today = self._clock.now().date()
            self.books.roll_over(today)
            self._prices.roll_over(today)
            self._courier.look(now)
            for call in self._calls.open():
                self._check(call, now)

    def _check(self, call: Call, now: float) -> None:
        """A caller that takes nothing of its answer is hung up on: others want its chair, and what is set aside for it."""
        exchange = call.exchange
        if exchange is None or not exchange.full or exchange.sent_bytes != call.seen_bytes:
            call.full_at, call.seen_bytes = now, exchange.sent_bytes if exchange is not None else 0
        elif now - call.full_at > self._order.settings.stall_s:
            call.cut(CallEnding.STALLED)

    # -- what a person may ask and turn --------------------------------------------------------------------------------

    def upstreams(self) -> list[dict[str, Any]]:
        """How each stands."""
        now = self._clock.monotonic()
        return [station.standing(now) for station in self.stations]

    def capacity(self) -> ModelCapacity:
        """What all of them can take."""
        limits = [station.limit.limit for station in self.stations]
        known = bool(limits) and all(limit < UNLIMITED for limit in limits)
        return ModelCapacity(
            calls=int(sum(limits)) if known else None,
            in_flight=sum(station.limit.in_flight for station in self.stations),
            spent=any(purse.spent_usd >= purse.limit_usd for purse in (self.books.day, self.books.fleet)),
        )

    def pause(self, name: str, reason: str) -> None:
        self._named(name).pause(reason)
        self._order.tell([Noticed(subject="gateway", message=f"no call goes to {name} until it is resumed: {reason}")])

    def resume(self, name: str) -> None:
        self._named(name).resume()
        self._order.tell([Noticed(subject="gateway", message=f"calls go to {name} again, a few at first")])

    def knobs(self) -> list[KnobReading]:
        values = [(knob, self.dials.value(knob.name)) for knob in KNOBS]
        values += [(knob := calls_knob(one), min(float(one.limit.cap), knob.maximum)) for one in self.stations]
        return [
            KnobReading(default=self._usual.get(knob.name, value), knob=knob, value=value) for knob, value in values
        ]

    def samples(self) -> list[UpstreamSample]:
        """What is to be seen of each upstream by whom its limit is tried."""
        flowing: dict[str, int] = {}
        for call in self._calls.open():
            if call.exchange is not None and counts_as_delivered(call):
                flowing[call.upstream] = flowing.get(call.upstream, 0) + call.exchange.sent_bytes
        delivered = self._aftermath.delivered
        return [
            one.sample(flowing.get(one.name, 0) + delivered.get(one.name, 0))
            for one in self.stations
            if one.upstream.kind is not UpstreamKind.ECHO
        ]

    def turn(self, name: str, value: float, author: str, reason: str) -> None:
        """Raises ``BadInput``."""
        before = self._set(name, value)
        self._order.tell([KnobTurned(author=author, knob=name, new=value, old=before, reason=reason)])

    def _set(self, name: str, value: float) -> float:
        """Returns what it was."""
        if name.startswith(CALLS_AT):
            return self._named(name.removeprefix(CALLS_AT)).set_calls(value)
        before = self.dials.turn(name, value)
        dials = self.dials
        self.inference.resize(width=int(dials.width), room=int(dials.room), promote_s=dials.promote_s)
        for station in self.stations:
            station.turned()
        self._lane.turned()
        self._pacing.turned()
        self._relay.sharing.turned()
        return before

    def _restore(self, turned: Mapping[str, tuple[float, float | None]]) -> None:
        """Settings that were changed since are the newer word. Names that are not known here are passed over."""
        for name, (value, usual) in turned.items():
            if name not in self._usual or usual not in (None, self._usual[name]):
                continue
            try:
                self._set(name, value)
            except BadInput as error:
                self._order.tell([Noticed(subject="gateway", message=f"{name} is as the settings say again: {error}")])

    def _named(self, name: str) -> Station:
        found = next((station for station in self.stations if station.name == name), None)
        if found is None:
            names = ", ".join(station.name for station in self.stations) or "there is none"
            raise BadInput([Problem(file=name, message="is no upstream that is in use", expected=f"one of: {names}")])
        return found

    def all_meters(self) -> Iterable[Meter]:
        """What was counted, and how doors, limits and breakers stand."""
        yield from self.meters.meters()
        now, loop_now = self._clock.monotonic(), asyncio.get_running_loop().time()
        yield from standing_meters(self.inference, self.stations, now, loop_now, self._lane.stages())
        yield from breaker_meters(self.stations, self.meters)
        yield from sharing_meters(self._relay.sharing.deduplicator.counts, self._lane.sharing.counts)
        yield from budget_meters((self.books.day, self.books.fleet))
        yield from self._lane.meters()

    # -- the upstreams' health, told when it changes -------------------------------------------------------------------

    def _heard(self, station: Station, why: str) -> None:
        known = self._trouble.get(station.name)
        if why:
            if known is None or known[0] != why:
                self._trouble[station.name] = why, self._clock.monotonic()
                self._order.tell([Noticed(subject="gateway", message=f"{station.upstream.url} {why}")])
        elif known is not None:
            del self._trouble[station.name]
            took_s = self._clock.monotonic() - known[1]
            message = f"{station.upstream.url} answers again after {took_s:.0f} s (it was: {known[0]})"
            self._order.tell([Noticed(subject="gateway", message=message)])


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"

"""Carries one request up until there is an answer that is worth passing on: tried again, or elsewhere, while that is safe.

Owns one invariant: nothing is sent again once a byte of an answer's body was passed on, and never more often than the budget of
retries has room for; what an upstream said last is what the caller hears. Doors, limits and breakers are ``station``'s.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import Shed, ShedReason
from coordinator.gateway.calls import CallEnding
from coordinator.gateway.dialect import Denial, Denied
from coordinator.gateway.endings import NOTHING_LEFT
from coordinator.gateway.errand import Errand
from coordinator.gateway.upstream_error import ERROR_BYTES, refuses_key, said_within, told_error
from coordinator.kit.wire import AnswerCut, NotReached
from coordinator.policy.circuit_breaker import CallFault, counts
from coordinator.policy.limit_headers import pause_s, used_up_s
from coordinator.policy.retry_budget import retry_pause_s
from coordinator.policy.upstream_limit import LONGEST_WINDOW_S, RefusalKind, kind_of_429

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.gateway.calls import Call
    from coordinator.gateway.dials import Dials
    from coordinator.gateway.echo import EchoAnswer
    from coordinator.gateway.meters import Meters
    from coordinator.gateway.station import Station
    from coordinator.kit.clock import Clock
    from coordinator.kit.stage import Stage
    from coordinator.kit.wire import RawHeaders
    from coordinator.kit.wire_client import Answer, RequestLines

_BASE_S: Final = 0.25
_ERROR_FIRST: Final = (b"event: error", b"event:error", b'data: {"error"', b'data:{"error"')
"""Anthropic and OpenAI's responses; chat completions and Google."""
_LONGEST_S: Final = 5.0
_OUT_OF_TIME: Final = frozenset({Denial.LIMITED, Denial.UNREACHED})
"""How a door turns away a call that may be held no longer; the others are for want of room, or because it closes."""
_PRELUDE_S: Final = 1.0
"""An answer's head is kept back so long at most: what breaks off before its first byte can still be tried again."""
_TRANSIENT: Final = frozenset({500, 502, 503, 504, 520, 522, 524, 529})


@dataclass(slots=True, kw_only=True)
class UpRequest:
    """What goes to an upstream."""

    body: bytes
    head: RequestLines


class Delivery(Errand, ABC):
    """What is asked, and who wants the answer."""

    @abstractmethod
    def request(self, station: Station) -> UpRequest: ...

    @abstractmethod
    async def take(self, station: Station, answer: Answer | EchoAnswer) -> None:
        """The whole of a good answer. Raises ``AnswerCut`` and ``FailedWithin``."""

    @abstractmethod
    async def take_error(self, station: Station, failure: Failure) -> None:
        """An error that the upstream told, as it told it."""


class FailedWithin(Exception):
    """An answer of status 200 that tells of an error before anything else, and of which nothing was passed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One try that failed. ``status`` 0: the upstream told nothing."""

    after_s: float = 0.0
    body: bytes = b""
    fault: CallFault
    headers: RawHeaders = ()
    status: int = 0
    usage: bool = False
    why: str = ""

    @property
    def final(self) -> bool:
        """The key is ours, or the limit for hours: no agent can mend it by trying again."""
        return self.status == 401 or self.usage or (self.status == 429 and self.after_s > LONGEST_WINDOW_S)


class Courier:
    """``chance`` gives numbers from 0 to 1, for pauses that do not fall together."""

    def __init__(
        self,
        dials: Dials,
        clock: Clock,
        inference: Stage,
        meters: Meters,
        chance: Callable[[], float],
    ) -> None:
        self._chance = chance
        self._clock = clock
        self._inference = inference
        self._meters = meters
        self._dials = dials
        self._under_way: set[Errand] = set()
        self.heard: Callable[[Station, str], object] = lambda _station, _why: None
        """Told of an upstream that is in trouble (why), or well again (empty)."""

    def look(self, now: float) -> None:
        """Called from time to time: calls of which nothing comes are ended."""
        for errand in tuple(self._under_way):
            errand.check(now)

    async def carry(self, call: Call, stations: Sequence[Station], delivery: Delivery) -> None:
        """Until the delivery has a whole answer, or the upstream's last error. Raises ``Denied`` when there is none to pass on,
        and ``AnswerCut`` when an answer broke off of which something was passed on."""
        until = call.began + self._dials.hold_s
        failures, last, told = 0, None, None
        shut: set[Station] = set()
        delivery.task = asyncio.current_task()
        while True:
            station = stations[0] if len(stations) == 1 else self._next(call, stations, last)
            turn = station.try_enter(call, self._clock.monotonic(), self._inference)
            if turn is None:
                try:
                    turn = await self._entered(call, station, until)
                except Denied as denied:
                    last = station
                    if self._elsewhere(call, denied, station, stations, shut):
                        continue
                    if denied.denial in _OUT_OF_TIME:
                        self._meters.note_expired(station.door.name)
                    if told is None:
                        raise
                    return await delivery.take_error(*told)
            try:
                failure = await self._once(call, station, turn, delivery)
            finally:
                station.leave(self._inference)
            if failure is None:
                return self._meters.note_affinity(hit=station is stations[0]) if len(stations) > 1 else None
            failures += failure.fault not in (CallFault.RATE, CallFault.CONCURRENCY)
            if not self._again(call, station, failure, failures, until, stations):
                if failure.status:
                    return await delivery.take_error(station, failure)
                raise _undeliverable(station, failure)
            last = station
            if failure.status and failure.fault is CallFault.SERVER:
                told = station, failure
            self._count(station, failure, len(stations) > 1)
            if failure.fault not in (CallFault.RATE, CallFault.CONCURRENCY):
                await self._clock.sleep(retry_pause_s(failures, self._chance(), _BASE_S, _LONGEST_S))

    async def _entered(self, call: Call, station: Station, until: float) -> int:
        """Through its doors. Raises ``Denied``."""
        try:
            return await station.enter(call, until, self._inference)
        except Shed as shed:
            raise _shed(shed) from shed

    def _elsewhere(
        self, call: Call, denied: Denied, station: Station, stations: Sequence[Station], shut: set[Station]
    ) -> bool:
        """Whether a call that one upstream's doors did not let in may try another's: each turns it away once at most."""
        if denied.denial is Denial.STOPPING:
            return False
        shut.add(station)
        now = self._clock.monotonic()
        return any(one not in shut and one.stands_open(call.model, now) for one in stations)

    def _next(self, call: Call, stations: Sequence[Station], last: Station | None) -> Station:
        """The first that could take it at once and has not just failed; else the first that has not; else the first."""
        now = self._clock.monotonic()
        others = [station for station in stations if station is not last] or stations
        return next((station for station in others if station.stands_open(call.model, now)), others[0])

    def _again(
        self, call: Call, station: Station, failure: Failure, failures: int, until: float, stations: Sequence[Station]
    ) -> bool:
        """Whether it is worth another try, and there is one left. A limit costs no try: the call is held for it, or goes where
        there is none."""
        now = self._clock.monotonic()
        if failure.fault is CallFault.CALLER:
            return False
        if failure.fault in (CallFault.RATE, CallFault.CONCURRENCY):
            held = not failure.usage and now < until and now + failure.after_s <= until
            return held or any(one.stands_open(call.model, now) for one in stations if one is not station)
        return failures <= self._dials.retries and self._next(call, stations, station).retries.may_retry(now)

    def _count(self, station: Station, failure: Failure, elsewhere: bool) -> None:
        table = self._meters.failovers if elsewhere else self._meters.retries
        key = station.name, failure.fault.value
        table[key] = table.get(key, 0) + 1

    # -- one try -------------------------------------------------------------------------------------------------------

    async def _once(self, call: Call, station: Station, turn: int, delivery: Delivery) -> Failure | None:
        """None: delivered. The station's door is held."""
        now = self._clock.monotonic()
        call.tries += 1
        call.upstream = station.name
        delivery.station, delivery.asked_at = station, now
        self._under_way.add(delivery)
        if call.tries == 1:
            call.wait_s = now - call.began
            station.retries.note_request(now)
        try:
            return await self._tried(call, station, turn, delivery)
        except NotReached as error:
            self.heard(station, f"cannot be reached: {error}")
            return self._failed(station, call, Failure(fault=CallFault.UNREACHED, why=str(error)))
        except FailedWithin as error:
            return self._failed(station, call, Failure(fault=CallFault.SERVER, why=str(error)))
        except AnswerCut as error:
            failure = self._failed(station, call, Failure(fault=CallFault.CUT, why=str(error)))
            if delivery.begun:
                raise
            return failure
        except asyncio.CancelledError:
            return self._cancelled(call, station, delivery)
        finally:
            delivery.asked_at = 0.0
            self._under_way.discard(delivery)

    async def _tried(self, call: Call, station: Station, turn: int, delivery: Delivery) -> Failure | None:
        request = delivery.request(station)
        answer = await station.source.ask(request.head, request.body)
        try:
            if answer.status >= 400:
                return await self._refused(call, station, turn, answer)
            first = answer.at_hand or await answer.peek(_PRELUDE_S)
            if first.startswith(_ERROR_FIRST):
                raise FailedWithin(f"its stream began with an error{said_within(station.upstream, first)}")
            now = self._clock.monotonic()
            station.answered(call.model, now, turn)
            for name, value in answer.headers:
                if value == b"0" and b"emaining" in name:
                    fields = _fields(answer.headers)
                    station.limit.told(now, 0.0, used_up_s(fields, self._clock.now().timestamp()))
                    break
            self.heard(station, "")
            await delivery.take(station, answer)
            return None
        finally:
            if not answer.ended:
                answer.close()

    def _cancelled(self, call: Call, station: Station, delivery: Delivery) -> Failure:
        """That nothing came is a failure of the upstream's. Any other end is nobody's; where all who listened left at the same
        time, it is theirs."""
        ending, delivery.cut_for = delivery.cut_for, None
        if ending is None or delivery.task is None or delivery.task.uncancel():
            station.breaker(call.model).abandon(self._clock.monotonic())
            raise asyncio.CancelledError
        if ending is CallEnding.BUDGET:
            station.breaker(call.model).abandon(self._clock.monotonic())
            raise Denied(Denial.OVER_BUDGET, NOTHING_LEFT)
        failure = self._failed(station, call, Failure(fault=CallFault.TIMEOUT, why="it took too long"))
        if delivery.begun:
            raise Denied(Denial.TOO_LATE, f"{station.name} stood still for too long")
        return failure

    def _failed(self, station: Station, call: Call, failure: Failure) -> Failure:
        """Told to the breaker, of one call and upstream once: a request that no upstream can bear is no outage. A probe's end is
        always told."""
        breaker = station.breaker(call.model)
        if not (breaker.closed and counts(failure.fault) and call.failed_at == station.name):
            breaker.failure(self._clock.monotonic(), failure.fault, failure.why)
        if counts(failure.fault):
            call.failed_at = station.name
        self._meters.note_fault(station.name, failure.fault)
        return failure

    async def _refused(self, call: Call, station: Station, turn: int, answer: Answer | EchoAnswer) -> Failure:
        """Read what it says, and tell whom it concerns."""
        headers, body, said = told_error(station.upstream, answer.headers, await answer.read(ERROR_BYTES))
        fields, now = _fields(headers), self._clock.monotonic()
        after_s = pause_s(fields, said, self._clock.now().timestamp())
        status, limit = answer.status, station.limit
        fault, usage = CallFault.CALLER, False
        if status == 429:
            kind = kind_of_429(fields, said)
            fault = CallFault.CONCURRENCY if kind is RefusalKind.CONCURRENCY else CallFault.RATE
            if kind is RefusalKind.CONCURRENCY:
                limit.concurrency_refused(now, limit.in_flight - 1, after_s)
                after_s = 0.0  # the next end of a call makes room, whatever pause is asked for
            elif kind is RefusalKind.USAGE:
                usage = True
                limit.usage_refused(now, after_s)
            else:
                limit.rate_refused(now, after_s)
            after_s = max(after_s, limit.closed_until - now)
        elif status in _TRANSIENT:
            fault = CallFault.SERVER
            limit.server_failed(now, after_s)
        else:
            limit.accepted(now, turn)
        self.heard(station, f"refuses the coordinator's key ({status})" if refuses_key(status, said) else "")
        failure = Failure(
            after_s=after_s,
            body=body,
            fault=fault,
            headers=headers,
            status=status,
            usage=usage,
            why=f"it answers {status}",
        )
        return self._failed(station, call, failure)


def _fields(headers: RawHeaders) -> dict[str, str]:
    return {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in headers}


def _shed(shed: Shed) -> Denied:
    match shed.why:
        case ShedReason.CLOSED:
            return Denied(Denial.STOPPING, "the gateway restarts; try again", retry_after_s=1.0)
        case ShedReason.FULL:
            return Denied(Denial.OVERLOADED, f"too many calls wait for {shed.stage}", retry_after_s=shed.after_s)
        case _:
            said = f"{shed.stage} had no room for this call in time"
            return Denied(Denial.LIMITED, said, retry_after_s=shed.after_s)


def _undeliverable(station: Station, failure: Failure) -> Denied:
    url = station.upstream.url
    match failure.fault:
        case CallFault.UNREACHED:
            said = f"{url} cannot be reached from here: {failure.why}; it is worth trying again"
            return Denied(Denial.UNREACHED, said)
        case CallFault.TIMEOUT:
            return Denied(Denial.TOO_LATE, f"{url} did not begin to answer in time")
        case _:
            return Denied(Denial.UNREACHED, f"{url} broke off before its answer: {failure.why}")

"""One model call from the agent's socket to the upstream's and back, in one task.

Owns one invariant: an accepted call ends in exactly one ``RequestServed``, however it ends, and nothing of a call
outlives it: who hangs up, is revoked or is cut off ends the upstream's part with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from coordinator.gateway import fast_json
from coordinator.gateway.calls import NO_USAGE, Call, CallEnding
from coordinator.gateway.delivery import RelayDelivery
from coordinator.gateway.dialect import Denial, Denied, Dialect, not_called, refusal_event, refusal_reply
from coordinator.gateway.doorkeeper import END, Caller
from coordinator.gateway.echo import last_text
from coordinator.gateway.endings import CallerStalled, ending_of, why_cut
from coordinator.gateway.envelope import plain_body, read_envelope, why_unread
from coordinator.gateway.prompt import appended
from coordinator.gateway.routing import spoken
from coordinator.gateway.sharing import Sharing
from coordinator.kit.wire import AnswerCut
from coordinator.kit.wire_server import HandOver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from coordinator.domain.price import Price
    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.aftermath import Aftermath
    from coordinator.gateway.books import Books
    from coordinator.gateway.calls import Calls
    from coordinator.gateway.courier import Courier
    from coordinator.gateway.dials import Dials
    from coordinator.gateway.doorkeeper import CallAddress, Doorkeeper
    from coordinator.gateway.envelope import Envelope
    from coordinator.gateway.model_inquiry import ModelInquiry
    from coordinator.gateway.pacing import Pacing
    from coordinator.gateway.prices import Prices
    from coordinator.gateway.retrieval import Retrieval
    from coordinator.gateway.routing import Routes
    from coordinator.gateway.station import Station
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire_server import Exchange

HELD_BYTES: Final = 512 * 1024 * 1024
"""All request bodies held at one time."""
UNSAID_TOKENS: Final = 32_000
"""What a request that names no maximum may generate."""
PAGES: Final = frozenset({b"/health", b"/ready", b"/metrics", b"/v1/infer"})

_REFUSALS: Final[Mapping[int, Denial]] = {408: Denial.TOO_LATE, 413: Denial.TOO_LARGE, 503: Denial.OVERLOADED}
"""What the wire says no to in a body; the rest makes no sense."""


class Relay:
    """The wire's handler: ``admit`` at the end of each request's head, ``serve`` when its body is there."""

    def __init__(
        self,
        settings: GatewaySettings,
        clock: Clock,
        *,
        aftermath: Aftermath,
        books: Books,
        calls: Calls,
        courier: Courier,
        dials: Dials,
        doorkeeper: Doorkeeper,
        inquiry: ModelInquiry,
        pacing: Pacing,
        pages: Callable[[], asyncio.Protocol],
        prices: Prices,
        retrieval: Retrieval | None,
        revoke: Callable[[str, int], None],
        routes: Routes,
    ) -> None:
        self._aftermath = aftermath
        self._books = books
        self._calls = calls
        self._clock = clock
        self._courier = courier
        self._dials = dials
        self._doorkeeper = doorkeeper
        self._held_bytes = 0
        self._inquiry = inquiry
        self._pacing = pacing
        self._pages = HandOver(factory=pages)
        self._prices = prices
        self._retrieval = retrieval
        self._revoke = revoke
        self._routes = routes
        self._settings = settings
        self.sharing = Sharing(settings, dials, clock, books, self._over, self._price)

    # -- who is calling ----------------------------------------------------------------------------------------------

    def admit(self, exchange: Exchange) -> int | HandOver:
        keeper, most = self._doorkeeper, self._settings.body_bytes
        caller: Caller | None = exchange.notes.get(Caller)
        address = keeper.address(exchange.method, exchange.target) if caller is None else caller.address
        try:
            if caller is None:
                keeper.check_host(exchange)
                if address.dialect is None:
                    return self._other(exchange, address)
                caller = exchange.notes[Caller] = Caller(address, keeper.claim(address, exchange), exchange)
            exchange.note = keeper.admit(address, caller.claim, exchange)
            if exchange.length > most:
                raise Denied(Denial.TOO_LARGE, self._most())
        except Denied as denied:
            status, headers, body = refusal_reply(address.dialect, denied)
            exchange.reply(status, headers, body)
            return 0
        return most

    def refuse(self, exchange: Exchange, status: int, why: str) -> None:
        """A call of which no body came, or too much of one."""
        denied = Denied(_REFUSALS.get(status, Denial.BAD_REQUEST), self._most() if status == 413 else why)
        _, headers, body = refusal_reply(exchange.note.dialect, denied)
        exchange.reply(status, headers, body)

    def _most(self) -> str:
        return f"a request has {self._settings.body_bytes / 2**20:g} MiB at most ([gateway] body_bytes)"

    def _other(self, exchange: Exchange, address: CallAddress) -> int | HandOver:
        """What is no model's call. Raises ``Denied``."""
        if address.path == END and exchange.method == b"POST":
            claim = self._doorkeeper.claim(address, exchange)
            self._revoke(*claim)  # who has the key may give it up; its agent process does before it stops the agent
            exchange.reply(204, (), b"")
            return 0
        if address.path in PAGES:
            return self._pages
        raise not_called(exchange.method, address.rest)

    # -- one accepted call -------------------------------------------------------------------------------------------

    async def serve(self, exchange: Exchange) -> None:
        call: Call = exchange.note
        call.exchange = exchange
        call.task = exchange.task
        call.bytes_up = len(exchange.body)
        self._held_bytes += call.bytes_up
        self._calls.begin(call)
        try:
            await self._carry(exchange, call)
            if not call.over:
                call.ending = CallEnding.SERVED
        except Denied as denied:
            self._deny(exchange, call, denied)
        except AnswerCut:
            call.ending = CallEnding.BROKEN
            exchange.cut()
        except ConnectionError as error:
            call.ending = CallEnding.STALLED if isinstance(error, CallerStalled) else _left(call)
            exchange.cut()
        except asyncio.CancelledError:
            if call.over:
                raise
            self._was_cut(exchange, call)
            if call.cut_for is None:
                raise
        finally:
            self._held_bytes -= call.bytes_up
            self._end(call, exchange)

    def _over(self, call: Call) -> None:
        """Its caller left, or must leave, while others still want the answer."""
        exchange = call.exchange
        if exchange is not None:
            self._was_cut(exchange, call)
            self._end(call, exchange)

    def _end(self, call: Call, exchange: Exchange) -> None:
        """Tell of it, once."""
        exchange.on_gone = None  # else the two hold each other, and the body, until the collector looks for circles
        if not call.over:
            call.bytes_down = exchange.sent_bytes
            self._calls.end(call)
            self._aftermath.add(call)

    async def _carry(self, exchange: Exchange, call: Call) -> None:
        self._doorkeeper.check_share(call)
        if self._held_bytes > HELD_BYTES:
            raise Denied(Denial.OVERLOADED, "too many large requests at one time; try again", retry_after_s=1.0)
        caller: Caller = exchange.notes[Caller]
        rest, body = caller.address.rest, exchange.body
        if call.dialect is Dialect.MODELS or call.dialect is Dialect.GOOGLE_MODELS:
            await self._inquiry.carry(exchange, call, rest)
            return
        if caller.coding:
            body = plain_body(body, caller.coding)
        envelope = self._envelope(call, rest, body)
        if call.who.retrieve and self._retrieval is not None and body is exchange.body:
            body = exchange.body = await self._with_passages(call, body)
        stations = self._routes.candidates(call, caller.session)
        if not stations:
            raise self._routes.obstacle(call)
        price = self._prices.dearest(stations, call.model)
        alias, question = alias_of(envelope.model, call.model), None
        delivery = RelayDelivery(exchange, call, rest, body, self._clock, self._books, alias)
        if spoken(stations[0].upstream.kind, call.dialect) is call.dialect:
            question = self.sharing.question(call, exchange, stations[0], caller, envelope)
            if question is not None and await self.sharing.joined(call, exchange, question):
                return
        most = (envelope.max_tokens or UNSAID_TOKENS) * envelope.choices
        if self._books.limits(call):
            delivery.hold = await self._books.held(call, price, len(body), most, self._dials.hold_s)
        try:
            if self._pacing.paces:
                await self._pacing.wait(call)
            if question is not None:
                self.sharing.offer(call, exchange, question, delivery, stations, most)
            await self._courier.carry(call, stations, delivery)
        except Denied as denied:
            if delivery.flight is not None:
                delivery.flight.why = denied
            raise
        finally:
            await self._settle(call, price, delivery, stations)

    def _envelope(self, call: Call, rest: bytes, body: bytes) -> Envelope:
        """What is asked for; the call has its model from now on. Raises ``Denied``."""
        envelope = read_envelope(call.dialect, rest, body)
        if envelope is None:
            raise Denied(Denial.BAD_REQUEST, why_unread(body))
        call.model = self._routes.model(envelope.model, call)
        call.stream = envelope.stream
        return envelope

    async def _settle(
        self, call: Call, price: Price | None, delivery: RelayDelivery, stations: Sequence[Station]
    ) -> None:
        """Who pays for what was used, and what was set aside for it and is free again."""
        delivery.account()
        if delivery.member is not None:
            self.sharing.deduplicator.withdraw(delivery.member)
        flight = delivery.flight
        try:
            if flight is not None:
                await self.sharing.landed(flight)
        finally:
            if flight is None or flight.payer is flight.lead:
                hold, delivery.hold = delivery.hold, None
                call.usage = delivery.usage if call.usage is NO_USAGE else call.usage + delivery.usage
                if len(stations) > 1:
                    price = self._price(call, stations)
                self._books.settle(call, hold, price, delivery.usage, delivery.body_bytes)

    def _price(self, call: Call, stations: Sequence[Station]) -> Price | None:
        """Of where it was answered last, or else would have been asked first."""
        station = next((one for one in stations if one.name == call.upstream), stations[0])
        return self._prices.of(station, call.model)

    async def _with_passages(self, call: Call, body: bytes) -> bytes:
        """What the role's card asks for: passages about the last question, after everything that a provider may have cached."""
        asked = fast_json.decode(body)
        if self._retrieval is None or not isinstance(asked, dict):
            return body
        return appended(body, call.dialect, await self._retrieval.find(last_text(asked)))

    def _deny(self, exchange: Exchange, call: Call, denied: Denied) -> None:
        call.ending = ending_of(denied)
        if exchange.started:
            if call.between_events:  # after half an event it would be taken for its rest
                exchange.send(refusal_event(call.dialect, denied))
            exchange.cut()
            return
        status, headers, body = refusal_reply(call.dialect, denied)
        call.status = status
        call.retry_after_s = denied.retry_after_s
        exchange.reply(status, (*headers, (b"x-request-id", call.id.encode())), body)

    def _was_cut(self, exchange: Exchange, call: Call) -> None:
        """It was ended from outside, or its client hung up. Who has no answer yet gets one; who has half of one sees it break
        off, and hears why where that is its budget's end."""
        if call.cut_for is None:
            call.ending = _left(call)
            exchange.cut()
            return
        if exchange.started and call.cut_for is not CallEnding.BUDGET:
            exchange.cut()
        else:
            self._deny(exchange, call, why_cut(call))
        call.ending = call.cut_for


def _left(call: Call) -> CallEnding:
    """Its client hung up: with all that it wanted, if it did not wait for the last bytes behind the answer's own end."""
    return CallEnding.SERVED if call.whole and not call.over else CallEnding.LEFT


def alias_of(asked: str, meant: str) -> bytes:
    """The word to be replaced in the body; empty: none is."""
    return asked.encode() if asked != meant else b""

"""Has calls that are the same share one upstream call, and sees that each is answered, paid for and counted once.

Owns one invariant: of all who hear one answer exactly one pays for it, and a saving is claimed only for a call that really was
avoided, at the price that it would have had. What is the same is ``deduplicator``'s, how bytes reach many ``flight``'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.calls import CallEnding
from coordinator.gateway.deduplicator import Deduplicator
from coordinator.gateway.flight import Flight
from coordinator.gateway.question import Question
from coordinator.gateway.sameness import Sameness, sense
from coordinator.gateway.seat import Landing
from coordinator.policy.pricing import cost_usd

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.domain.price import Price
    from coordinator.domain.settings import GatewaySettings
    from coordinator.gateway.books import Books
    from coordinator.gateway.calls import Call
    from coordinator.gateway.delivery import RelayDelivery
    from coordinator.gateway.dials import Dials
    from coordinator.gateway.doorkeeper import Caller
    from coordinator.gateway.envelope import Envelope
    from coordinator.gateway.keys import Claim
    from coordinator.gateway.seat import Seat
    from coordinator.gateway.station import Station
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire_exchange import Exchange

_CLAIMS: Final = 4096


class _Bill:
    """What one shared call used, and how many still want to know."""

    __slots__ = ("delivery", "hearers", "price")

    def __init__(self, delivery: RelayDelivery | None, price: Price | None) -> None:
        self.delivery = delivery
        self.hearers = 1
        self.price = price


class _Offer:
    """One call on its own way, until somebody joins it."""

    __slots__ = ("_call", "_delivery", "_exchange", "_price", "_question", "_sharing")

    def __init__(
        self,
        sharing: Sharing,
        call: Call,
        exchange: Exchange,
        question: Question,
        delivery: RelayDelivery,
        price: Price | None,
    ) -> None:
        self._call = call
        self._delivery = delivery
        self._exchange = exchange
        self._price = price
        self._question = question
        self._sharing = sharing

    def fly(self) -> Flight:
        """A flight, as far as the call has come."""
        call, delivery, exchange, table = self._call, self._delivery, self._exchange, self._sharing.deduplicator
        task, member = call.task, delivery.member
        assert task is not None  # it is under way
        flight = Flight(
            exchange,
            self._question.who,
            abandon=task.cancel,
            answered=delivery.answered,
            kept=member.kept if member is not None else None,
            loop=asyncio.get_running_loop(),
            max_bytes=table.flight_bytes,
            on_change=table.changed,
        )
        delivery.fly(flight)

        def leave(ending: CallEnding) -> bool:
            if not flight.leave(flight.lead):
                return False
            call.ending = ending
            exchange.cut()
            self._sharing.over(call, exchange)
            return True

        call.leave = leave
        exchange.on_gone = lambda: leave(CallEnding.LEFT)
        self._sharing.bill(flight, delivery, self._price)
        return flight


class Sharing:
    """``over`` ends a call whose client left while its flight goes on for others."""

    def __init__(
        self,
        settings: GatewaySettings,
        dials: Dials,
        clock: Clock,
        books: Books,
        over: Callable[[Call, Exchange], None],
    ) -> None:
        self._books = books
        self._bills: dict[Flight, _Bill] = {}
        self._mode = Sameness(settings.dedup)
        self._paths: dict[Claim, AgentPaths] = {}
        self.deduplicator = Deduplicator(clock, ttl_s=dials.dedup_ttl_s, wait_s=dials.dedup_wait_s)
        self.over = over
        self._dials = dials

    def question(
        self, call: Call, exchange: Exchange, station: Station, caller: Caller, envelope: Envelope
    ) -> Question | None:
        """None: this call is nobody else's."""
        if self._mode is Sameness.OFF or exchange.method != b"POST":
            return None
        about: bytes | None = exchange.notes.get(Sharing)
        if about is None:
            about = exchange.notes[Sharing] = sense(call.dialect, caller.address.rest, exchange.headers)
        return Question(
            exchange.body,
            claim=call.claim,
            dialect=call.dialect,
            mode=self._mode,
            model=call.model,
            most=envelope.max_tokens,
            owner=station.upstream.settings.owner,
            paths=self._paths_of(call),
            sense=about,
            session=caller.session,
            streams=call.stream,
            turns=envelope.turns,
        )

    async def joined(self, call: Call, exchange: Exchange, question: Question) -> bool:
        """Whether another's call answered this one."""
        while (seat := self.deduplicator.join(question, exchange)) is not None:
            bill = self._bills.get(seat.flight) or _Bill(None, None)
            bill.hearers += 1
            try:
                landing = await seat.landed()
                if landing is not Landing.ALONE:
                    self._account(call, seat, bill)
            finally:
                bill.hearers -= 1
                self._forget(seat.flight, bill)
            if landing is Landing.ALONE:
                self.deduplicator.settle(seat, 0.0)
                continue
            if landing is not Landing.WHOLE:
                raise ConnectionResetError("the answer that was shared did not reach this caller whole")
            return True
        return False

    def offer(
        self, call: Call, exchange: Exchange, question: Question, delivery: RelayDelivery, price: Price | None
    ) -> None:
        """Others may join this call from now on."""
        offer = _Offer(self, call, exchange, question, delivery, price)
        delivery.member = member = self.deduplicator.offer(question, exchange, offer.fly)
        if member is not None:
            exchange.on_gone = call.leave = member.shut

    def bill(self, flight: Flight, delivery: RelayDelivery, price: Price | None) -> None:
        """It will have to be said who pays for that."""
        self._bills[flight] = _Bill(delivery, price)

    async def landed(self, delivery: RelayDelivery, flight: Flight) -> bool:
        """The flight's call is over; wait until its first caller has it all. Whether that one pays."""
        try:
            if flight.whole:
                await flight.lead.landed()
        finally:
            flight.cut()
            bill = self._bills[flight]
            bill.hearers -= 1
            self._forget(flight, bill)
        return flight.payer is flight.lead

    def _forget(self, flight: Flight, bill: _Bill) -> None:
        if bill.hearers <= 0:
            self._bills.pop(flight, None)

    def _account(self, call: Call, seat: Seat, bill: _Bill) -> None:
        flight, delivery, price = seat.flight, bill.delivery, bill.price
        call.collapsed = seat.likeness.value if seat.likeness is not None else ""
        call.status = flight.status
        if delivery is None:  # told from memory: the call was paid for before
            self.deduplicator.settle(seat, 0.0)
            return
        delivery.account()
        if flight.payer is seat:
            call.usage = delivery.usage
            self._books.settle(call, None, price, delivery.usage, 0)
            self.deduplicator.settle(seat, 0.0)
            return
        if seat.saved and price is not None:
            call.saved_usd = cost_usd(delivery.usage, price)
        self.deduplicator.settle(seat, call.saved_usd)

    def turned(self) -> None:
        """A knob was changed."""
        self.deduplicator.ttl_s, self.deduplicator.wait_s = self._dials.dedup_ttl_s, self._dials.dedup_wait_s

    def _paths_of(self, call: Call) -> AgentPaths:
        found = self._paths.get(call.claim)
        if found is None:
            if len(self._paths) >= _CLAIMS:
                self._paths.clear()
            found = self._paths[call.claim] = AgentPaths(call.who.places)
        return found

"""Has calls that are the same share one upstream call, and sees that each is answered, paid for and counted once.

Owns one invariant: of all who hear one answer exactly one pays for it, and a saving is claimed only for a call that really was
avoided, at the price that it would have had. What is the same is ``deduplicator``'s, how bytes reach many ``flight``'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, assert_never

from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.calls import CallEnding
from coordinator.gateway.deduplicator import Deduplicator
from coordinator.gateway.dialect import Denial, Denied
from coordinator.gateway.endings import NOTHING_LEFT, CallerStalled
from coordinator.gateway.flight import Flight
from coordinator.gateway.question import Question
from coordinator.gateway.sameness import Sameness, sense
from coordinator.gateway.seat import Landing
from coordinator.kit.wire import AnswerCut
from coordinator.policy.pricing import cost_usd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    """What one shared call uses, who listens to it, and for whom what is set aside for it. ``most``: tokens it may generate.
    Its flight's host."""

    __slots__ = ("_most", "_sharing", "_stations", "_task", "calls", "delivery", "lead")

    def __init__(
        self, sharing: Sharing, lead: Call, delivery: RelayDelivery | None, stations: Sequence[Station], most: int
    ) -> None:
        self._most = most
        self._sharing = sharing
        self._stations = stations
        self._task = lead.task
        self.calls: dict[Seat, Call] = {}
        self.delivery = delivery
        """None: it is told from memory, and was paid for before."""
        self.lead = lead

    @property
    def price(self) -> Price | None:
        return self._sharing.price(self.lead, self._stations)

    def abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def changed(self, flight: Flight) -> None:
        self._sharing.deduplicator.changed(flight)

    def given_up(self) -> None:
        self.lead.cut_for = CallEnding.STALLED
        self._sharing.over(self.lead)

    def heir(self, seats: Sequence[Seat]) -> Seat | None:
        """Who pays from now on: the first that has as much. None: nobody has, and the upstream's part ends."""
        delivery = self.delivery
        assert delivery is not None  # it is under way
        books, price, so_far = self._sharing.books, self.price, delivery.tokens_so_far
        for seat in seats:
            try:
                delivery.hold = books.hold(
                    self.calls[seat], price, delivery.body_bytes, self._most, before=delivery.hold, so_far=so_far
                )
            except Denied:
                continue
            return seat
        if delivery.flight is not None:
            delivery.flight.why = Denied(Denial.OVER_BUDGET, NOTHING_LEFT)
        delivery.end(CallEnding.BUDGET)
        return None

    def conclude(self, seat: Seat) -> float:
        """One who joined has landed: it pays, or is told what it saved (USD), for which it was told the whole."""
        call, delivery, flight = self.calls.pop(seat), self.delivery, seat.flight
        if seat.landing is not Landing.ALONE:
            call.collapsed = seat.likeness.value if seat.likeness is not None else ""
            call.status = flight.status
            call.between_events = self.lead.between_events and seat.plain and seat.taken == flight.pieces
        if delivery is None:
            return 0.0
        if flight.payer is seat:
            delivery.account()
            lead = self.lead
            call.answer_model, call.estimated, call.upstream = lead.answer_model, lead.estimated, lead.upstream
            hold, delivery.hold = delivery.hold, None
            self._sharing.books.settle(call, hold, self.price, delivery.usage, delivery.body_bytes)
            call.usage = delivery.usage
        elif seat.saved:
            delivery.account()
            price = self.price
            call.saved_usd = cost_usd(delivery.usage, price) if price is not None else 0.0
        return call.saved_usd


class _Offer:
    """One call on its own way, until somebody joins it."""

    __slots__ = ("_call", "_delivery", "_exchange", "_most", "_question", "_sharing", "_stations")

    def __init__(
        self,
        sharing: Sharing,
        call: Call,
        exchange: Exchange,
        question: Question,
        delivery: RelayDelivery,
        stations: Sequence[Station],
        most: int,
    ) -> None:
        self._call = call
        self._delivery = delivery
        self._exchange = exchange
        self._most = most
        self._question = question
        self._sharing = sharing
        self._stations = stations

    def fly(self) -> Flight:
        """A flight, as far as the call has come."""
        call, delivery, exchange, sharing = self._call, self._delivery, self._exchange, self._sharing
        member = delivery.member
        bill = _Bill(sharing, call, delivery, self._stations, self._most)
        flight = Flight(
            exchange,
            self._question.who,
            answered=delivery.answered,
            host=bill,
            kept=member.kept if member is not None else None,
            loop=asyncio.get_running_loop(),
            max_bytes=sharing.deduplicator.flight_bytes,
        )
        delivery.fly(flight)
        sharing.opened(flight, bill)

        def leave(_: CallEnding) -> bool:
            if not flight.leave(flight.lead):
                return False
            sharing.over(call)
            return True

        call.leave = leave
        exchange.on_gone = lambda: leave(CallEnding.LEFT)
        return flight


class Sharing:
    """``over`` ends a call whose caller left, or must leave, while its flight goes on for others; ``price`` is what a call costs
    where it went last."""

    def __init__(
        self,
        settings: GatewaySettings,
        dials: Dials,
        clock: Clock,
        books: Books,
        over: Callable[[Call], None],
        price: Callable[[Call, Sequence[Station]], Price | None],
    ) -> None:
        self.books = books
        self._bills: dict[Flight, _Bill] = {}
        self._mode = Sameness(settings.dedup)
        self._paths: dict[Claim, AgentPaths] = {}
        self.deduplicator = Deduplicator(
            clock,
            across_owners=settings.dedup_across_owners,
            ttl_s=dials.dedup_ttl_s,
            wait_s=dials.dedup_wait_s,
        )
        self.over = over
        self.price = price
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
        """Whether another's call answered this one. Raises ``Denied``, ``AnswerCut`` or ``CallerStalled`` when it was told only a
        part."""
        while (seat := self.deduplicator.join(question, exchange)) is not None:
            flight = seat.flight
            bill = self._bills.get(flight) or _Bill(self, call, None, (), 0)
            bill.calls[seat] = call
            try:
                landing = await seat.landed()
            finally:
                self.deduplicator.settle(seat, bill.conclude(seat))
                self._forget(flight, bill)
            match landing:
                case Landing.WHOLE:
                    return True
                case Landing.STALLED:
                    raise CallerStalled("it reads too slowly")
                case Landing.BROKEN | Landing.LEFT:
                    raise flight.why or AnswerCut("the answer that was shared broke off")
                case Landing.ALONE:
                    continue
                case _:
                    assert_never(landing)
        return False

    def offer(
        self,
        call: Call,
        exchange: Exchange,
        question: Question,
        delivery: RelayDelivery,
        stations: Sequence[Station],
        most: int,
    ) -> None:
        """Others may join this call from now on. ``most``: tokens that it may generate."""
        offer = _Offer(self, call, exchange, question, delivery, stations, most)
        delivery.member = member = self.deduplicator.offer(question, exchange, offer.fly)
        if member is not None:
            exchange.on_gone = call.leave = member.shut

    def opened(self, flight: Flight, bill: _Bill) -> None:
        """It will have to be said who pays for that."""
        bill.calls[flight.lead] = bill.lead
        self._bills[flight] = bill

    async def landed(self, flight: Flight) -> None:
        """The flight's call is over; wait until its first caller has it all."""
        try:
            if flight.whole:
                await flight.lead.landed()
        finally:
            flight.cut()
            bill = self._bills[flight]
            del bill.calls[flight.lead]
            self._forget(flight, bill)

    def _forget(self, flight: Flight, bill: _Bill) -> None:
        if not bill.calls:
            self._bills.pop(flight, None)

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

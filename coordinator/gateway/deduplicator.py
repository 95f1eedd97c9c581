"""The calls under way that others may share, found by what they ask.

Owns one invariant: a caller is put on another's flight only if both have equal forms (compared byte by byte), one owner of
money (unless that is waived), the same kind of answer on the wire, and an answer that can be told anew to the one who joins.
An agent's own second ask is a call of its own; only the same request of the same session, sent again while the first is under
way or when it was not delivered whole, is that client trying again. How bytes reach callers is ``flight``'s.

A new request costs one hash of its body and two look-ups while nothing like it is under way: a flight is made when somebody
joins, shapes are worked out when a second call of the same model, protocol, owner and number of messages comes, and forms
when two shapes agree. Bodies are held while their calls last, since hashes prove nothing.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from coordinator.gateway.dialect import Dialect
from coordinator.gateway.retold import Retelling, Retold
from coordinator.gateway.sameness import Sameness
from coordinator.gateway.seat import NOBODY, Landing, Likeness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.gateway.flight import Flight
    from coordinator.gateway.keys import Claim
    from coordinator.gateway.question import Question
    from coordinator.gateway.seat import Outlet, Seat
    from coordinator.kit.clock import Clock

_ENDED: Final = 256
"""Answers that are kept for who did not get them whole."""
_ENDED_BYTES: Final = 64 * 1024 * 1024
_SALT_BYTES: Final = 16
_MESSAGES: Final = Dialect.ANTHROPIC_MESSAGES
_OFF: Final = Sameness.OFF


class Asked:
    """Somebody whose answer others may hear, and how it is told to them.

    Its flight is made when the first other one comes: then ``fly`` is asked for it. Until then ``kept`` has what passed.
    """

    __slots__ = ("_room_bytes", "flight", "fly", "kept", "listed", "outlet", "question", "retelling", "salt")

    def __init__(
        self,
        question: Question,
        *,
        flight: Flight | None = None,
        fly: Callable[[], Flight] | None = None,
        outlet: Outlet = NOBODY,
        retelling: Retelling | None = None,
        room_bytes: int = 0,
    ) -> None:
        self.outlet = outlet
        self._room_bytes = room_bytes
        self.flight = flight
        self.fly = fly
        self.kept: list[bytes] = []
        self.listed = False  # where those are found who ask something alike
        self.question = question
        self.retelling = retelling
        self.salt = secrets.token_bytes(_SALT_BYTES) if retelling is not None else b""

    def keep(self, data: bytes) -> None:
        """A piece of the answer passed. Of one that gets too long nothing is kept, and nobody joins it any more."""
        if self.fly is not None:
            self.kept.append(data)
            self._room_bytes -= len(data)
            if self._room_bytes < 0:
                self.fly = None
                self.kept.clear()

    def shut(self, _: object = None) -> bool:
        """Its caller leaves, or may not have an answer any more: nobody joins a call that ends. Always False: it has nobody
        for whose sake it would go on."""
        self.fly = None
        return False

    def takes(self, who: object) -> bool:
        """Whether that one may join."""
        if self.flight is not None:
            return self.flight.takes(who)
        return self.fly is not None and not self.outlet.gone and not self.outlet.finished

    def retold(self) -> Retold | None:
        """The same each time: one who asks again is told the same ids."""
        return Retold(self.retelling, self.salt) if self.retelling is not None else None


class _Alike:
    """The first callers with one key: those whose shape nobody has asked for yet, and the others by shape."""

    __slots__ = ("by_shape", "claims", "new")

    def __init__(self) -> None:
        self.by_shape: dict[bytes, dict[Asked, None]] = {}
        self.claims: dict[Claim, int] = {}
        self.new: dict[Asked, None] = {}

    def add(self, member: Asked) -> None:
        claim = member.question.claim
        self.claims[claim] = self.claims.get(claim, 0) + 1
        self.new[member] = None
        member.listed = True

    def of(self, question: Question) -> Iterable[Asked]:
        """Those of other agents that have its shape."""
        if len(self.claims) == 1 and question.claim in self.claims:
            return ()
        shape = question.shape
        for member in self.new:
            self.by_shape.setdefault(member.question.shape, {})[member] = None
        self.new.clear()
        return tuple(self.by_shape.get(shape, ())) if shape else ()

    def drop(self, member: Asked) -> bool:
        """Whether nobody is left."""
        claim = member.question.claim
        self.claims[claim] -= 1
        if not self.claims[claim]:
            del self.claims[claim]
        member.listed = False
        if member in self.new:
            del self.new[member]
        else:
            alike = self.by_shape[member.question.shape]
            del alike[member]
            if not alike:
                del self.by_shape[member.question.shape]
        return not self.new and not self.by_shape


@dataclass(slots=True, kw_only=True)
class DedupCounts:
    """Since the start. ``alone``: waited for nothing and asked themselves. ``crowded``: not shared, the table was full.
    ``led``: calls that others could join. ``saved_calls`` and ``saved_usd``: calls that really were avoided."""

    alone: int = 0
    crowded: int = 0
    joined: dict[Likeness, int] = field(default_factory=lambda: dict.fromkeys(Likeness, 0))
    led: int = 0
    saved_calls: int = 0
    saved_usd: float = 0.0
    unblocked: dict[Landing, int] = field(default_factory=dict)
    """Those who joined and wait no more, by what became of them."""


class Deduplicator:
    """The table of one gateway, for its one loop. ``join`` first; ``offer`` when there was nobody to join, and ``withdraw`` when
    that call is over.

    ``ttl_s``: how long an answer that was not delivered whole is kept for its client to come back. ``wait_s``: how long one
    who joined waits for a first byte before it asks alone. Both may be changed at any time.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        across_owners: bool = False,
        flight_bytes: int = 8 * 1024 * 1024,
        max_bytes: int = 256 * 1024 * 1024,
        max_entries: int = 10_000,
        ttl_s: float = 60.0,
        wait_s: float = 120.0,
    ) -> None:
        self._across_owners = across_owners
        self._alike: dict[object, _Alike] = {}
        self._bytes = 0
        self._by_raw: dict[bytes, list[Asked]] = {}
        self._clock = clock
        self._ended: dict[Flight, float] = {}  # when each is forgotten, the soonest first
        self._ended_bytes = 0
        self._flights: dict[Flight, list[Asked]] = {}
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._offers = 0
        self.counts = DedupCounts()
        self.flight_bytes = flight_bytes
        """Kept of one answer at most, for those who come later or are slow."""
        self.ttl_s = ttl_s
        self.wait_s = wait_s

    def __len__(self) -> int:
        """Calls that others may find."""
        return len(self._flights) + self._offers

    # -- what the relay asks -------------------------------------------------------------------------------------------

    def join(self, question: Question, outlet: Outlet, *, more: Iterable[tuple[bytes, bytes]] = ()) -> Seat | None:
        """A seat on the flight of a call that is the same; None: there is none. ``more``: headers of this caller's own."""
        if question.mode is _OFF:
            return None
        if self._ended:
            self._forget()
        found = self._found(question)
        if found is None:
            return None
        member, likeness = found
        flight = member.flight
        if flight is None:
            return None
        seat = flight.join(
            outlet, question.who, likeness=likeness, more=more, retold=member.retold(), wait_s=self.wait_s
        )
        if seat is not None:
            self.counts.joined[likeness] += 1
            if likeness is not Likeness.RETRY and flight in self._flights:
                self._flights[flight].append(member)
                self._add(member)
        return seat

    def offer(self, question: Question, outlet: Outlet, fly: Callable[[], Flight]) -> Asked | None:
        """Others find this call from now on, until ``outlet`` has the whole answer or is gone. ``fly``: makes a flight of it,
        for the first who does, with ``changed`` as its ``on_change``. None: this call is shared with nobody, and goes the plain
        way."""
        if question.mode is _OFF:
            return None
        if self._ended:
            self._forget()
        if len(self) >= self._max_entries or self._bytes + len(question.body) > self._max_bytes:
            self.counts.crowded += 1
            return None
        member = Asked(question, fly=fly, outlet=outlet, room_bytes=self.flight_bytes)
        self._offers += 1
        self._add(member)
        if question.mode is not Sameness.RAW:
            scope = self._scope(question)
            alike = self._alike.get(scope)
            if alike is None:
                alike = self._alike[scope] = _Alike()
            alike.add(member)
        self.counts.led += 1
        return member

    def withdraw(self, member: Asked) -> None:
        """An offered call is over. One that has a flight is in the table as long as that is wanted."""
        if member.flight is None:
            self._offers -= 1
            member.fly = None
            if member.listed:
                self._unlist(member)
            self._remove(member)

    def settle(self, seat: Seat, usd: float) -> None:
        """A seat that ``join`` gave has landed; ``usd``: what its own call would have cost. Once for each."""
        landing = seat.landing
        if landing is not None and landing is not Landing.LEFT:
            self.counts.unblocked[landing] = self.counts.unblocked.get(landing, 0) + 1
        if seat.saved:
            self.counts.saved_calls += 1
            self.counts.saved_usd += usd
        elif seat.landing is Landing.ALONE:
            self.counts.alone += 1

    # -- who asks the same ---------------------------------------------------------------------------------------------

    def _scope(self, question: Question) -> tuple[object, ...]:
        return question.key[1:] if self._across_owners else question.key

    def _found(self, question: Question) -> tuple[Asked, Likeness] | None:
        """Somebody to join, who has a flight by now, and how the two are alike. A member that is new is one that is not yet in
        the table."""
        scope = self._scope(question)
        for member in self._by_raw.get(question.raw, ()):
            asked = member.question
            if not member.takes(question.who) or self._scope(asked) != scope or asked.body != question.body:
                continue
            if asked.who == question.who:
                self._launch(member)
                return member, Likeness.RETRY
            if asked.claim != question.claim and member.retelling is None:
                return self._verbatim(member, question), Likeness.RAW
        likeness = Likeness.LOOSE if question.mode is Sameness.LOOSE else Likeness.STRICT
        alike = self._alike.get(scope)
        for member in alike.of(question) if alike is not None else ():
            if member.question.claim != question.claim and member.takes(question.who):
                retelling = _retelling(member.question, question)
                if retelling is not None:
                    return Asked(question, flight=self._launch(member), retelling=retelling), likeness
        return None

    def _launch(self, member: Asked) -> Flight | None:
        """The flight of a call that was on its own until now."""
        if member.flight is None and member.fly is not None:
            member.flight = flight = member.fly()
            member.fly = None
            member.kept = []
            member.outlet = NOBODY
            self._offers -= 1
            self._flights[flight] = [member]
        return member.flight

    def _verbatim(self, member: Asked, question: Question) -> Asked:
        """The very same request, another agent: whatever it names, both name it. Only ids are told anew, where known how."""
        retelling = Retelling.of_ids() if question.dialect is _MESSAGES else None
        return Asked(question, flight=self._launch(member), retelling=retelling)

    # -- the table -----------------------------------------------------------------------------------------------------

    def _add(self, member: Asked) -> None:
        self._by_raw.setdefault(member.question.raw, []).append(member)
        self._bytes += len(member.question.body)

    def _remove(self, member: Asked) -> None:
        raw = member.question.raw
        members = self._by_raw[raw]
        members.remove(member)
        if not members:
            del self._by_raw[raw]
        self._bytes -= len(member.question.body)

    def _unlist(self, member: Asked) -> None:
        scope = self._scope(member.question)
        if self._alike[scope].drop(member):
            del self._alike[scope]

    def changed(self, flight: Flight) -> None:
        """It is open no more, or nobody is in it."""
        members = self._flights.get(flight)
        if members is None:
            return
        if members[0].listed and not flight.open:
            self._unlist(members[0])
        if not flight.empty:
            return
        if not (flight.replayable and flight.unfinished):
            self._drop(flight)
        elif flight not in self._ended:
            self._ended[flight] = self._clock.monotonic() + self.ttl_s
            self._ended_bytes += _weight(flight, members)

    def _drop(self, flight: Flight) -> None:
        gone = self._flights.pop(flight)
        if self._ended.pop(flight, None) is not None:
            self._ended_bytes -= _weight(flight, gone)
        for member in gone:
            self._remove(member)

    def _forget(self) -> None:
        """Answers that nobody came back for in time, and the oldest when there are too many."""
        while self._ended:
            flight, until = next(iter(self._ended.items()))
            crowded = len(self._ended) > _ENDED or self._ended_bytes > _ENDED_BYTES
            if not crowded and until > self._clock.monotonic():
                return
            self._drop(flight)


def _weight(flight: Flight, members: list[Asked]) -> int:
    """Bytes held: an answer, and requests with their forms."""
    return flight.kept_bytes + sum(2 * len(member.question.body) for member in members)


def _retelling(teller: Question, listener: Question) -> Retelling | None:
    """How the answer to one is told to the other; None: they are not the same, or it cannot be done beyond doubt."""
    one, other = teller.normal, listener.normal
    if one is None or other is None or one.digest != other.digest or one.form != other.form:
        return None
    retelling = Retelling.between(teller.paths, listener.paths, one.blanked - other.blanked)
    return None if retelling is None or (one.sealed and not retelling.idle) else retelling

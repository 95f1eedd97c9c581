"""One upstream call, many callers: who stays has every byte, who is slow holds nobody, who leaves just leaves."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.flight import Flight
from coordinator.gateway.retold import Retelling, Retold
from coordinator.gateway.seat import Landing, Likeness, Seat
from coordinator.kit.wire_client import Origin
from coordinator.kit.wire_exchange import Exchange
from coordinator.kit.wire_server import WireServer
from tests.gateway.callers import HEAD, START, STOP, TEXT, THINKING, Host, Reader, delta, event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST = 400
"""Bytes that the flights of these tests keep."""


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Timers:
    """The part of a loop that a flight uses."""

    def __init__(self) -> None:
        self.set: list[Timer] = []

    def call_later(self, _: float, call: Callable[[], None]) -> Timer:
        self.set.append(Timer(call))
        return self.set[-1]

    @property
    def running(self) -> list[Timer]:
        return [timer for timer in self.set if timer.call is not None]


class Rig:
    """A flight, its first caller, and an upstream that can be held."""

    def __init__(self, room: int = 10**9, *, max_bytes: int = MOST) -> None:
        self.abandoned = 0
        self.changes = 0
        self.first_given_up = 0
        self.poor: set[str] = set()
        self.unpaid = 0
        self.held = False
        self.timers = Timers()
        self.reader = Reader(room)
        self.flight = Flight(
            self.reader,
            "lead",
            host=self,
            loop=cast("asyncio.AbstractEventLoop", self.timers),
            max_bytes=max_bytes,
        )

    def abandon(self) -> None:
        self.abandoned += 1

    def given_up(self) -> None:
        self.first_given_up += 1

    def heir(self, seats: Sequence[Seat]) -> Seat | None:
        able = [seat for seat in seats if seat.who not in self.poor]
        self.unpaid += not able
        return able[0] if able else None

    def changed(self, _: Flight) -> None:
        self.changes += 1

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.held = False

    def head(self, status: int = 200, length: int | None = None) -> None:
        self.flight.head(status, HEAD, length=length)
        self.flow()

    def flow(self) -> None:
        """As ``Answer.flow`` begins."""
        self.flight.on_room(self.hold, self.go_on)
        if self.flight.full:
            self.hold()
        else:
            self.go_on()

    def join(
        self, reader: Reader, who: str = "other", *, retold: Retold | None = None, likeness: Likeness = Likeness.STRICT
    ) -> Seat:
        seat = self.flight.join(reader, who, likeness=likeness, retold=retold, wait_s=9)
        assert seat is not None
        return seat


# -- any interleaving ---------------------------------------------------------------------------------------------------


class Callers(RuleBasedStateMachine):
    """Joins, data, slow readers, leaving, time-outs, the end and the break, in any order."""

    seats = Bundle("seats")

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(room=60)
        self.flight = self.rig.flight
        self.sent = b""
        self.everybody: list[tuple[Seat, Reader]] = [(self.flight.lead, self.rig.reader)]
        self.left: set[int] = set()
        self.headed = False

    @rule(target=seats)
    def first(self) -> int:
        return 0

    @precondition(lambda self: not self.headed and not self.flight.over)
    @rule()
    def head(self) -> None:
        self.headed = True
        self.rig.head()

    @precondition(lambda self: self.flight.open)
    @rule(target=seats, room=st.sampled_from([0, 60, 10**9]), poor=st.booleans())
    def join(self, room: int, *, poor: bool) -> int:
        reader, who = Reader(room), f"other {len(self.everybody)}"
        if poor:
            self.rig.poor.add(who)
        self.everybody.append((self.rig.join(reader, who), reader))
        return len(self.everybody) - 1

    @precondition(lambda self: self.headed and not self.flight.over)
    @rule(size=st.integers(1, 150))
    def data(self, size: int) -> None:
        """Some of it comes while the upstream is held: that was read already."""
        data = bytes((len(self.sent) + place) % 251 for place in range(size))
        self.sent += data
        self.flight.data(data)

    @rule(number=seats, size=st.integers(1, 300))
    def read(self, number: int, size: int) -> None:
        self.everybody[number][1].take(size)

    @rule(number=seats)
    def leave(self, number: int) -> None:
        seat, reader = self.everybody[number]
        if seat.landing is None:
            reader.gone = True
            self.left.add(number)
            before = self.rig.abandoned
            goes_on = self.flight.leave(seat)
            ended = self.flight.empty or self.flight.over or self.flight.payer is seat
            assert goes_on is not ended
            assert self.rig.abandoned - before == int(self.flight.empty and number != 0 and not self.ended)

    @rule(number=seats)
    def lose(self, number: int) -> None:
        """The connection is lost, and only a write will tell."""
        seat, reader = self.everybody[number]
        if seat.landing is None and not reader.full:
            reader.gone = True
            self.left.add(number)

    @precondition(lambda self: self.rig.timers.running)
    @rule()
    def time_out(self) -> None:
        timer = self.rig.timers.running[0]
        assert timer.call is not None
        timer.call()
        timer.cancel()

    ended = ""

    @precondition(lambda self: self.headed and not self.flight.over)
    @rule()
    def end(self) -> None:
        self.ended = "whole"
        self.flight.end()

    @precondition(lambda self: not self.flight.over and not self.flight.empty and not self.rig.unpaid)
    @rule()
    def spend_up(self) -> None:
        """Who pays has no more: another does, or nobody."""
        payer = self.flight.payer
        handed_on = self.flight.hand_on()
        assert handed_on is (self.flight.payer is not payer) is not bool(self.rig.unpaid)

    @precondition(lambda self: not self.flight.over)
    @rule()
    def cut(self) -> None:
        self.ended = "cut"
        self.flight.cut()

    @invariant()
    def everybody_has_a_beginning_of_it(self) -> None:
        for number, (seat, reader) in enumerate(self.everybody):
            assert self.sent.startswith(reader.given)
            if number not in self.left and seat.landing in (None, Landing.WHOLE) and not reader.full and self.headed:
                assert reader.given == self.sent
            if seat.landing is Landing.WHOLE:
                assert reader.finished
                assert reader.given == self.sent
            assert reader.finished is (seat.landing is Landing.WHOLE)
            assert not (seat.landing in (Landing.BROKEN, Landing.STALLED) and not reader.head)
            assert not (seat.landing is Landing.ALONE and reader.head)

    @invariant()
    def the_upstream_is_held_for_nobody_alone(self) -> None:
        present = [reader for seat, reader in self.everybody if seat.landing is None]
        if self.headed and present and not self.flight.over:
            assert self.rig.held is all(reader.full for reader in present)

    @invariant()
    def what_is_kept_has_a_bound(self) -> None:
        present = [seat for seat, _ in self.everybody if seat.landing is None]
        if not self.flight.over:
            assert self.flight.kept_bytes <= MOST + 150 or len({seat.taken for seat in present}) == 1
        if self.flight.kept_bytes > MOST:
            assert not self.flight.open

    @invariant()
    def one_pays(self) -> None:
        payer = self.flight.payer
        landed = [seat for seat, _ in self.everybody if seat.landing is Landing.WHOLE]
        present = [seat for seat, _ in self.everybody if seat.landing is None]
        if present and not self.flight.over and not self.rig.unpaid:
            assert payer in present
        assert sum(seat.saved for seat, _ in self.everybody) == len([seat for seat in landed if seat is not payer])

    def teardown(self) -> None:
        """Everybody reads on: then all that stayed have all, or the break, and nothing is left behind."""
        if not self.flight.over:
            self.ended = "cut"
            self.flight.cut()
        for _, reader in self.everybody:
            while reader.waiting:
                reader.take(10**6)
        for number, (seat, reader) in enumerate(self.everybody):
            if number in self.left and seat.landing is None:
                self.flight.leave(seat)
            assert seat.landing is not None
            assert self.sent.startswith(reader.got)
        assert self.flight.empty
        assert self.rig.timers.running == []
        assert not self.flight.open
        assert self.rig.changes


Callers.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestCallers = Callers.TestCase


# -- one caller ---------------------------------------------------------------------------------------------------------


def test_one_caller_is_served_without_anything_per_piece() -> None:
    rig = Rig()
    rig.head(length=3000)
    assert rig.reader.head == (200, HEAD, 3000)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(30):
        rig.flight.data(b"x" * 10)
    assert len(gc.get_objects()) - before < 10
    rig.flight.end()
    assert rig.reader.given == b"x" * 300
    assert rig.reader.finished
    assert rig.flight.lead.landing is Landing.WHOLE
    assert not rig.flight.lead.saved
    assert rig.timers.set == []
    rig.flight.cut()
    assert rig.reader.cuts == 0


def test_one_slow_caller_holds_the_upstream() -> None:
    rig = Rig(room=5)
    rig.head()
    rig.flight.data(b"0123456789")
    assert rig.held
    rig.flight.data(b"what was read already")
    rig.reader.take(31)
    assert not rig.held
    assert rig.reader.got == b"0123456789what was read already"


def test_an_upstream_that_was_held_from_the_beginning_is_let_go() -> None:
    """What had come before anybody read is passed on first, and fills the connection."""
    rig = Rig(room=5)
    rig.flight.head(200, HEAD)
    rig.flight.data(b"what had come before")
    rig.flow()
    assert rig.held
    rig.reader.take(100)
    assert not rig.held


def test_a_long_answer_of_one_caller_is_not_kept() -> None:
    rig = Rig()
    rig.head()
    for _ in range(100):
        rig.flight.data(b"x" * 50)
    assert rig.flight.kept_bytes == 0
    assert rig.flight.join(Reader(), "late", likeness=Likeness.STRICT, wait_s=9) is None
    assert rig.changes == 1
    rig.flight.end()
    assert rig.reader.given == b"x" * 5000


def test_leaving_alone_ends_the_callers_own_task_and_nothing_else() -> None:
    rig = Rig()
    rig.head()
    assert rig.flight.leave(rig.flight.lead) is False
    assert rig.abandoned == 0
    assert rig.flight.gone
    rig.flight.data(b"late")
    assert rig.reader.given == b""


# -- several ------------------------------------------------------------------------------------------------------------


def test_the_first_caller_leaves_and_the_call_goes_on_for_the_other() -> None:
    rig = Rig()
    other = Reader()
    seat = rig.join(other)
    assert rig.flight.leave(rig.flight.lead) is True
    rig.head()
    rig.flight.data(b"abc")
    assert other.given == b"abc"
    assert rig.flight.payer is seat
    rig.flight.end()
    assert seat.landing is Landing.WHOLE
    assert not seat.saved
    assert rig.abandoned == 0
    assert rig.flight.unfinished == {"lead"}


def test_a_newcomer_lets_the_upstream_go() -> None:
    rig = Rig(room=5)
    rig.head()
    rig.flight.data(b"0123456789")
    assert rig.held
    quick = Reader()
    rig.join(quick)
    assert not rig.held
    rig.flight.data(b"more")
    assert quick.given == b"0123456789more"
    assert rig.reader.given == b"0123456789"
    rig.reader.take(10)
    assert rig.reader.given == b"0123456789more"


def test_who_remains_with_a_part_outstanding_gets_it_in_order() -> None:
    rig = Rig(room=5)
    quick = Reader()
    seat = rig.join(quick)
    rig.head()
    for piece in (b"0123456789", b"abc", b"def"):
        rig.flight.data(piece)
    rig.flight.leave(seat)
    assert rig.held
    rig.flight.data(b"read already")
    rig.reader.take(10)
    rig.reader.take(100)
    assert rig.reader.got == b"0123456789abcdefread already"


def test_those_who_are_equally_far_are_not_given_up() -> None:
    rig = Rig(room=5)
    rig.join(Reader(5))
    rig.head()
    rig.flight.data(b"0123456789")
    assert rig.held
    rig.flight.data(b"x" * MOST)
    rig.flight.data(b"y")
    assert rig.abandoned == 0
    rig.reader.take(10)
    assert rig.reader.given == b"0123456789" + b"x" * MOST + b"y"


def test_who_leaves_after_the_end_has_no_call_to_keep() -> None:
    rig = Rig(room=5)
    rig.join(Reader(5))
    rig.head()
    for piece in (b"0123456789", b"abc"):
        rig.flight.data(piece)
    rig.flight.end()
    assert not rig.flight.empty
    assert rig.flight.leave(rig.flight.lead) is False
    assert rig.abandoned == 0


def test_who_has_landed_holds_no_request() -> None:
    """A request may have megabytes, and what is accounted for later holds seats."""
    rig = Rig()
    held = weakref.ref(rig.reader)
    rig.head()
    rig.flight.end()
    del rig.reader
    assert held() is None


def test_the_head_ends_the_waiting() -> None:
    rig = Rig()
    rig.join(Reader())
    assert len(rig.timers.running) == 1
    rig.head()
    assert rig.timers.running == []


def test_when_nobody_is_left_the_call_is_abandoned_at_once() -> None:
    rig = Rig()
    seats = [rig.join(Reader(), f"other {number}") for number in range(3)]
    rig.head()
    rig.flight.leave(rig.flight.lead)
    for seat in seats[:2]:
        assert rig.flight.leave(seat) is True
        assert rig.abandoned == 0
    assert rig.flight.leave(seats[2]) is False
    assert rig.abandoned == 1
    assert rig.flight.leave(seats[2]) is False
    assert rig.abandoned == 1


def test_a_late_joiner_gets_the_beginning_in_portions_that_its_connection_takes() -> None:
    rig = Rig(max_bytes=10**7)
    rig.head()
    for _ in range(100):
        rig.flight.data(b"y" * 10_000)
    late = Reader(room=1000)
    rig.join(late)
    assert 64 * 1024 <= len(late.given) < 100_000
    assert not rig.held
    rig.flight.end()
    while late.waiting:
        late.take(10**6)
    assert late.got == b"y" * 1_000_000
    assert late.finished


def test_who_lags_too_far_is_given_up_and_nobody_else() -> None:
    rig = Rig()
    slow, quick = Reader(room=10), Reader()
    lagging, seat = rig.join(slow, "slow"), rig.join(quick, "quick")
    rig.head()
    for _ in range(30):
        rig.flight.data(b"z" * 50)
        assert rig.flight.kept_bytes <= MOST + 50
    assert lagging.landing is Landing.STALLED
    assert seat.landing is None
    rig.flight.end()
    assert quick.given == rig.reader.given == b"z" * 1500


def test_a_first_caller_that_lags_too_far_is_given_up_and_the_call_goes_on() -> None:
    rig = Rig(room=10)
    quick = Reader()
    seat = rig.join(quick, "quick")
    rig.head()
    for _ in range(30):
        rig.flight.data(b"z" * 50)
    assert (rig.flight.lead.landing, rig.first_given_up) == (Landing.STALLED, 1)
    assert rig.flight.payer is seat
    assert rig.abandoned == 0
    rig.flight.end()
    assert quick.given == b"z" * 1500


def test_a_break_reaches_everybody_after_what_came_before_it() -> None:
    rig = Rig()
    slow = Reader(room=1)
    seat = rig.join(slow)
    rig.head()
    for piece in (b"one ", b"two ", b"three"):
        rig.flight.data(piece)
    rig.flight.cut()
    assert (rig.reader.given, rig.flight.lead.landing) == (b"one two three", Landing.BROKEN)
    assert (slow.given, seat.landing) == (b"one ", None)
    slow.take(100)
    slow.take(100)
    assert slow.given == b"one two three"
    assert seat.landing is Landing.BROKEN
    assert not seat.saved


def test_an_error_is_shared_but_saves_nothing() -> None:
    rig = Rig()
    other = Reader()
    seat = rig.join(other)
    rig.head(529)
    rig.flight.data(b"{}")
    rig.flight.end()
    assert other.head is not None
    assert other.head[0] == 529
    assert seat.landing is Landing.WHOLE
    assert not seat.saved


def test_a_head_that_cannot_be_sent_leaves_the_others_free() -> None:
    class Strict(Reader):
        def start(self, *_: Any, **__: Any) -> None:
            raise ValueError("a field would end its line")

    rig = Rig()
    rig.flight.lead._outlet = Strict()
    seat = rig.join(Reader())
    with pytest.raises(ValueError):
        rig.head()
    rig.flight.cut()
    assert seat.landing is Landing.ALONE


# -- once more ----------------------------------------------------------------------------------------------------------


def test_an_answer_that_was_not_delivered_is_given_again_to_that_caller_alone() -> None:
    rig = Rig()
    seat = rig.join(Reader(), "other")
    rig.head()
    rig.flight.data(b"the answer")
    rig.flight.leave(rig.flight.lead)
    rig.flight.end()
    assert seat.landing is Landing.WHOLE
    assert rig.flight.empty
    again = Reader()
    for who in ("other", "stranger"):
        assert rig.flight.join(again, who, likeness=Likeness.RETRY, wait_s=9) is None
    retry = rig.join(again, "lead", likeness=Likeness.RETRY)
    assert again.given == b"the answer"
    assert retry.landing is Landing.WHOLE
    assert retry.saved
    assert not rig.flight.unfinished
    assert rig.flight.join(Reader(), "lead", likeness=Likeness.RETRY, wait_s=9) is None


def test_what_is_over_and_was_not_whole_is_not_given_again() -> None:
    broken = Rig()
    broken.head()
    broken.flight.data(b"x")
    broken.flight.leave(broken.flight.lead)
    assert not broken.flight.takes("lead")
    long = Rig()
    long.join(Reader())
    long.head()
    long.flight.leave(long.flight.lead)
    for _ in range(20):
        long.flight.data(b"x" * 50)
    long.flight.end()
    assert not long.flight.takes("lead")


# -- told anew ----------------------------------------------------------------------------------------------------------


ANN, BEN = AgentPaths({"/srv/worktrees/ann-7-1": "w"}), AgentPaths({"/srv/worktrees/ben-2-1": "w"})


def anew() -> Retold:
    retelling = Retelling.between(ANN, BEN)
    assert retelling is not None
    return Retold(retelling, b"salt")


def test_one_is_told_anew_beside_one_who_is_not() -> None:
    rig = Rig(max_bytes=10**6)
    plain, other = Reader(), Reader()
    rig.join(plain, "plain")
    seat = rig.join(other, retold=anew())
    rig.flight.head(200, (*HEAD, (b"ETag", b"x")), length=999)
    assert other.head is None
    answer = [START, TEXT, delta("in /srv/worktrees/ann"), delta("-7-1/x"), STOP, event("message_stop")]
    for piece in answer:
        rig.flight.data(piece)
    rig.flight.end()
    assert plain.given == rig.reader.given == b"".join(answer)
    assert other.head == (200, HEAD, None)
    assert b'"in "' in other.given
    assert b"/srv/worktrees/ben-2-1/x" in other.given
    assert b"ann" not in other.given
    assert seat.landing is Landing.WHOLE
    assert seat.saved


def test_who_cannot_be_told_learns_it_before_a_byte_came() -> None:
    rig = Rig(max_bytes=10**6)
    other = Reader()
    seat = rig.join(other, retold=anew())
    rig.head()
    rig.flight.data(START)
    assert seat.landing is None
    rig.flight.data(THINKING)
    assert seat.landing is Landing.ALONE
    assert other.head is None
    assert rig.flight.join(Reader(), "other", likeness=Likeness.STRICT, retold=anew(), wait_s=9) is None
    assert rig.flight.unfinished == set()


def test_who_cannot_be_told_the_rest_is_cut_off_before_it() -> None:
    rig = Rig(max_bytes=10**6)
    other = Reader()
    seat = rig.join(other, retold=anew())
    rig.head()
    for piece in (START, TEXT, delta("look in ../"), delta("ann-7-1"), STOP):
        rig.flight.data(piece)
    assert seat.landing is Landing.BROKEN
    assert b"look in" in other.given
    assert b"ann-7-1" not in other.given
    assert rig.flight.lead.landing is None


def test_a_packed_answer_is_not_told_anew() -> None:
    rig = Rig()
    seat = rig.join(Reader(), retold=anew())
    rig.flight.head(200, (*HEAD, (b"content-encoding", b"gzip")))
    assert seat.landing is Landing.ALONE


# -- waiting ------------------------------------------------------------------------------------------------------------


def aloft(reader: Reader, abandon: Callable[[], object] = bool) -> Flight:
    loop = asyncio.get_running_loop()
    return Flight(reader, "lead", host=Host(abandon), loop=loop, max_bytes=MOST)


async def test_who_saw_nothing_in_time_asks_alone() -> None:
    flight = aloft(Reader())
    seat = flight.join(Reader(), "other", likeness=Likeness.STRICT, wait_s=0.01)
    assert seat is not None
    assert await seat.landed() is Landing.ALONE
    assert not flight.open
    flight.head(200, HEAD)
    flight.end()
    assert await flight.lead.landed() is Landing.WHOLE


async def test_the_first_byte_ends_the_waiting() -> None:
    flight = aloft(Reader())
    seat = flight.join(Reader(), "other", likeness=Likeness.STRICT, wait_s=0.01)
    assert seat is not None
    flight.head(200, HEAD)
    await asyncio.sleep(0.03)  # the limit itself
    assert seat.landing is None
    flight.end()
    assert await seat.landed() is Landing.WHOLE


async def test_being_cancelled_leaves() -> None:
    abandoned = asyncio.Event()
    flight = aloft(Reader(), abandoned.set)
    seat = flight.join(Reader(), "other", likeness=Likeness.STRICT, wait_s=9)
    assert seat is not None
    waiting = asyncio.ensure_future(seat.landed())
    await asyncio.sleep(0)
    assert flight.leave(flight.lead) is True
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert abandoned.is_set()
    assert seat.landing is Landing.LEFT


async def test_refused_before_the_head_they_ask_in_the_order_in_which_they_came() -> None:
    flight = aloft(Reader())
    order: list[int] = []

    async def ask(number: int) -> None:
        seat = flight.join(Reader(), number, likeness=Likeness.STRICT, wait_s=9)
        assert seat is not None
        assert await seat.landed() is Landing.ALONE
        order.append(number)

    asking = [asyncio.ensure_future(ask(number)) for number in range(5)]
    await asyncio.sleep(0)
    flight.cut()
    await asyncio.gather(*asking)
    assert order == list(range(5))


# -- on real connections ------------------------------------------------------------------------------------------------


class Shared:
    """A server whose calls of ``/x`` all share one flight, wired as the module says."""

    def __init__(self, origin: Origin) -> None:
        self.flight: Flight | None = None
        self.joined: asyncio.Queue[Seat] = asyncio.Queue()
        self.landed: asyncio.Queue[Landing] = asyncio.Queue()
        self.origin = origin

    def admit(self, _: object) -> int:
        return 1000

    async def serve(self, exchange: Any) -> None:
        if self.flight is not None:
            seat = self.flight.join(exchange, exchange.peer, likeness=Likeness.STRICT, wait_s=5)
            assert seat is not None
            self.joined.put_nowait(seat)
            self.landed.put_nowait(await seat.landed())
            return
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        flight = self.flight = Flight(exchange, exchange.peer, host=Host(task.cancel), loop=loop, max_bytes=2**23)
        try:
            answer = await self.origin.ask(self.origin.head(b"POST", b"/x", ()), b"")
            flight.head(answer.status, answer.headers, length=answer.length)
            await answer.flow(cast("Any", flight), None)
        finally:
            flight.cut()
            self.landed.put_nowait(flight.lead.landing or Landing.BROKEN)
        await flight.lead.landed()


class Served:
    """The shared server, and behind it an upstream that says what a test has it say."""

    async def __aenter__(self) -> Self:
        self.asked, self.lost = asyncio.Event(), asyncio.Event()
        self.upstream = await asyncio.start_server(self._upstream, "127.0.0.1", 0)
        self.origin = Origin(f"http://127.0.0.1:{self.upstream.sockets[0].getsockname()[1]}")
        self.shared = Shared(self.origin)
        self.server = WireServer(self.shared)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        await self.server.start(listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(1)
        await self.origin.close()
        self.upstream.close()
        await self.upstream.wait_closed()

    async def _upstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.writer = writer
        self.asked.set()
        await reader.read()
        self.lost.set()
        writer.close()

    async def ask(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        return reader, writer

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def begin(self, length: int) -> None:
        self.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n01234" % length)


async def test_two_clients_and_one_upstream_call() -> None:
    async with Served() as served:
        one = await served.ask()
        await served.asked.wait()
        served.begin(20)
        assert (await one[0].readuntil(b"01234")).startswith(b"HTTP/1.1 200")
        other = await served.ask()
        assert (await other[0].readuntil(b"01234")).startswith(b"HTTP/1.1 200")
        served.say(b"567890123456789")
        for reader, writer in (one, other):
            assert await reader.readexactly(15) == b"567890123456789"
            writer.close()
        assert [await served.shared.landed.get(), await served.shared.landed.get()] == [Landing.WHOLE] * 2


async def test_a_client_that_does_not_read_holds_nobody_on_real_connections() -> None:
    size = 6_000_000
    async with Served() as served:
        stuck = await served.ask()
        await served.asked.wait()
        quick = await served.ask()
        seat = await served.shared.joined.get()
        served.begin(5 + size)
        served.say(b"x" * size)
        await quick[0].readuntil(b"01234")
        assert await quick[0].readexactly(size) == b"x" * size
        assert await served.shared.landed.get() is Landing.WHOLE or seat.landing is Landing.WHOLE
        assert served.shared.flight is not None
        assert served.shared.flight.lead.landing is None
        await stuck[0].readuntil(b"01234")
        assert await stuck[0].readexactly(size) == b"x" * size
        assert served.shared.flight.lead.landing is Landing.WHOLE
        for _, writer in (stuck, quick):
            writer.close()


@pytest.mark.parametrize("first", ["lead", "other"])
async def test_who_leaves_first_and_who_last(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream call outlives its first caller, and not its last one."""

    def lost(exchange: Exchange) -> None:
        flight = served.shared.flight
        if flight is None or exchange.peer != flight.lead.who or not flight.leave(flight.lead):
            was_lost(exchange)

    was_lost = Exchange.lost
    monkeypatch.setattr(Exchange, "lost", lost)
    async with Served() as served:
        lead = await served.ask()
        await served.asked.wait()
        other = await served.ask()
        seat = await served.shared.joined.get()
        served.begin(20)
        for reader, _ in (lead, other):
            await reader.readuntil(b"01234")
        flight = served.shared.flight
        assert flight is not None
        leaver, stayer = (lead, other) if first == "lead" else (other, lead)
        leaver[1].close()
        served.say(b"56789")
        assert await stayer[0].readexactly(5) == b"56789"
        began = asyncio.get_running_loop().time()
        stayer[1].close()
        await served.lost.wait()
        assert asyncio.get_running_loop().time() - began < 1.0  # 100 ms is meant, this machine is busy
        assert flight.lead.landing is seat.landing is Landing.LEFT

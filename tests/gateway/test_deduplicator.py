"""Whose calls share one upstream call, who asks again, who pays, and what the table may hold."""

from __future__ import annotations

import asyncio
import timeit
from typing import Any

import pytest

from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.deduplicator import Deduplicator
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.flight import Flight
from coordinator.gateway.question import Question
from coordinator.gateway.sameness import Sameness, sense
from coordinator.gateway.seat import Landing, Likeness, Seat
from tests.gateway.callers import HEAD, START, STOP, TEXT, THINKING, Host, Reader, delta, event
from tests.gateway.questions import ANN, BEN, CAI, OPENAI, HandClock, body, question, worktree


class Rig:
    def __init__(self, **more: Any) -> None:
        self.clock = HandClock()
        self.abandoned = 0
        self.table = Deduplicator(self.clock, **more)

    def _abandon(self) -> None:
        self.abandoned += 1

    def lead(self, asked: Question) -> tuple[Flight, Reader]:
        reader = Reader()
        assert self.table.join(asked, reader) is None
        member = self.table.offer(asked, reader, lambda: self.fly(asked, reader))
        assert member is not None
        flight = self.table._launch(member)
        assert flight is not None
        return flight, reader

    def fly(self, asked: Question, reader: Reader) -> Flight:
        return Flight(
            reader,
            asked.who,
            host=Host(self._abandon, self.table.changed),
            loop=asyncio.get_running_loop(),
            max_bytes=self.table.flight_bytes,
        )

    def join(self, asked: Question) -> tuple[Seat, Reader] | None:
        reader = Reader()
        seat = self.table.join(asked, reader)
        return None if seat is None else (seat, reader)

    def joins(self, asked: Question) -> Likeness | None:
        found = self.join(asked)
        return found[0].likeness if found is not None else None


@pytest.fixture
async def rig() -> Rig:
    return Rig()


def answer(flight: Flight, *pieces: bytes) -> bytes:
    flight.head(200, HEAD)
    for piece in pieces:
        flight.data(piece)
    flight.end()
    return b"".join(pieces)


# -- who shares ---------------------------------------------------------------------------------------------------------


async def test_two_agents_that_ask_the_same_share_a_call(rig: Rig) -> None:
    flight, reader = rig.lead(question(ANN))
    found = rig.join(question(BEN))
    assert found is not None
    seat, other = found
    assert seat.likeness is Likeness.STRICT
    told = answer(flight, START, TEXT, delta(f"in {worktree(ANN)}/x"), STOP, event("message_stop"))
    assert reader.given == told
    assert f"in {worktree(BEN)}/x".encode() in other.given
    assert b"ann-7" not in other.given
    rig.table.settle(seat, 0.25)
    counts = rig.table.counts
    assert (counts.led, counts.joined[Likeness.STRICT], counts.saved_calls, counts.saved_usd) == (1, 1, 1, 0.25)
    assert len(rig.table) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"owner": "other org"},
        {"streams": False},
        {"sense": b"another"},
        {"mode": Sameness.LOOSE},
        {"mode": Sameness.OFF},
        {"data": body(BEN, "Say goodbye")},
        {"data": body(BEN, model="n")},
        {"data": body(BEN, temperature=0.5)},
        {"data": body(BEN, tool_choice={"type": "any"})},
        {"data": b"{"},
        {"paths": AgentPaths({worktree(BEN): "w", "/srv/home/ben": "h"})},
        {"paths": AgentPaths({})},
    ],
)
async def test_what_is_not_the_same_goes_up(rig: Rig, more: dict[str, Any]) -> None:
    rig.lead(question(ANN))
    assert rig.joins(question(BEN, **more)) is None
    assert rig.joins(question(BEN)) is Likeness.STRICT


async def test_money_is_shared_where_that_is_allowed() -> None:
    rig = Rig(across_owners=True)
    rig.lead(question(ANN))
    assert rig.joins(question(BEN, owner="other org")) is Likeness.STRICT


async def test_off_is_off(rig: Rig) -> None:
    off = question(ANN, mode=Sameness.OFF)
    assert rig.table.offer(off, Reader(), lambda: rig.fly(off, Reader())) is None
    rig.lead(question(ANN))
    assert rig.joins(off) is None


async def test_loose_questions_meet_each_other(rig: Rig) -> None:
    def asked(claim: tuple[str, int], day: str) -> Question:
        return question(claim, body(claim, system=f"CWD: x\nDate: {day}"), mode=Sameness.LOOSE)

    flight, _ = rig.lead(asked(ANN, "2026-11-30"))
    found = rig.join(asked(BEN, "2026-12-01"))
    assert found is not None
    assert found[0].likeness is Likeness.LOOSE
    answer(flight, START, TEXT, delta("It is 2026-11-30."), STOP)
    assert found[0].landing is Landing.BROKEN  # what loose mode left out, the answer names
    assert b"2026" not in found[1].given


async def test_reasoning_that_will_be_signed_is_not_shared_between_folders(rig: Rig) -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000}
    rig.lead(question(ANN, body(ANN, thinking=thinking)))
    assert rig.joins(question(BEN, body(BEN, thinking=thinking))) is None
    same_place = AgentPaths({worktree(ANN): "w"})
    mounted = question(BEN, body(ANN, thinking=thinking).replace(b"s-(", b"t-("), paths=same_place)
    assert rig.joins(mounted) is Likeness.STRICT


async def test_reasoning_that_turns_up_sends_the_other_on_its_own_way(rig: Rig) -> None:
    adaptive = {"type": "adaptive"}
    flight, _ = rig.lead(question(ANN, body(ANN, thinking=adaptive)))
    asked = question(BEN, body(BEN, thinking=adaptive))
    found = rig.join(asked)
    assert found is not None
    flight.head(200, HEAD)
    flight.data(START + THINKING)
    assert found[0].landing is Landing.ALONE
    rig.table.settle(found[0], 1.0)
    assert (rig.table.counts.alone, rig.table.counts.saved_calls) == (1, 0)
    assert rig.join(asked) is None
    own = rig.table.offer(asked, Reader(), lambda: rig.fly(asked, Reader()))
    assert own is not None
    assert rig.joins(question(CAI, body(CAI, thinking=adaptive))) is Likeness.STRICT


async def test_the_very_same_bytes_from_another_agent(rig: Rig) -> None:
    """Whatever they name, both name it; only ids are new."""
    data = body(ANN)
    flight, _ = rig.lead(question(ANN, data, mode=Sameness.RAW))
    found = rig.join(question(BEN, data, mode=Sameness.RAW))
    assert found is not None
    assert found[0].likeness is Likeness.RAW
    answer(flight, START, TEXT, delta(worktree(ANN)), STOP)
    assert worktree(ANN).encode() in found[1].given
    assert b'"msg_1"' not in found[1].given
    assert rig.joins(question(CAI, body(CAI), mode=Sameness.RAW)) is None


async def test_other_protocols_share_the_very_same_bytes_alone(rig: Rig) -> None:
    flight, reader = rig.lead(question(ANN, body(ANN), dialect=OPENAI))
    assert rig.joins(question(BEN, body(BEN), dialect=OPENAI)) is None
    found = rig.join(question(BEN, body(ANN), dialect=OPENAI))
    assert found is not None
    assert found[0].likeness is Likeness.RAW
    answer(flight, b'data: {"id":"chatcmpl-1"}\n\n')
    assert found[1].given == reader.given


async def test_nobody_joins_a_call_whose_caller_has_just_left(rig: Rig) -> None:
    """Its task ends at the loop's next turn; who joined it until then would be told a part, and a break."""
    asked = question(ANN)
    member = rig.table.offer(asked, Reader(), lambda: rig.fly(asked, Reader()))
    assert member is not None
    assert member.shut() is False, "nothing goes on for others"
    assert rig.join(question(BEN)) is None
    rig.table.withdraw(member)
    assert len(rig.table) == 0


@pytest.mark.parametrize("how", ["finished", "gone"])
async def test_nobody_joins_an_answer_in_the_turn_in_which_it_ends(rig: Rig, how: str) -> None:
    """Its task has not run yet: a flight made now would be cut, and whoever joined it hold a torn answer."""
    asked, reader = question(ANN), Reader()
    member = rig.table.offer(asked, reader, lambda: rig.fly(asked, reader))
    assert member is not None
    setattr(reader, how, True)
    assert rig.join(question(BEN)) is None
    rig.table.withdraw(member)
    assert len(rig.table) == 0


async def test_hashes_prove_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("question", "sameness"):
        monkeypatch.setattr(f"coordinator.gateway.{module}.raw_key", lambda _: b"the same for all")
    rig.lead(question(ANN))
    assert rig.joins(question(ANN, body(ANN, "Something else"))) is None
    assert rig.joins(question(BEN, body(BEN, "Something else"))) is None
    assert rig.joins(question(BEN)) is Likeness.STRICT


# -- the same agent -----------------------------------------------------------------------------------------------------


async def test_an_agents_second_ask_is_a_call_of_its_own(rig: Rig) -> None:
    rig.lead(question(ANN))
    assert rig.joins(question(ANN, session=b"another")) is None
    assert rig.joins(question(ANN, body(ANN, metadata={}))) is None


async def test_a_client_that_tries_again_gets_the_call_under_way(rig: Rig) -> None:
    flight, _ = rig.lead(question(ANN))
    found = rig.join(question(BEN))
    assert found is not None
    assert flight.leave(flight.lead) is True
    again = rig.join(question(ANN))
    assert again is not None
    assert again[0].likeness is Likeness.RETRY
    told = answer(flight, START, TEXT, delta(f"in {worktree(ANN)}"), STOP)
    assert again[1].given == told
    assert flight.payer is found[0]


async def test_one_who_joined_tries_again_and_hears_the_same(rig: Rig) -> None:
    flight, _ = rig.lead(question(ANN))
    first = rig.join(question(BEN))
    assert first is not None
    flight.head(200, HEAD)
    flight.data(START + TEXT + delta(f"in {worktree(ANN)}/x"))
    flight.leave(first[0])
    flight.data(STOP)
    flight.end()
    again = rig.join(question(BEN))
    assert again is not None
    assert again[0].likeness is Likeness.RETRY
    assert again[1].given.startswith(first[1].given[:100])
    assert f"in {worktree(BEN)}/x".encode() in again[1].given
    assert len(rig.table) == 0


async def test_an_answer_that_was_not_delivered_waits_for_its_client(rig: Rig) -> None:
    flight, _ = rig.lead(question(ANN))
    found = rig.join(question(BEN))
    assert found is not None
    flight.leave(flight.lead)
    told = answer(flight, START, TEXT, STOP)
    assert len(rig.table) == 1
    assert rig.join(question(BEN)) is None  # that one has it: asking again is a second ask
    assert rig.join(question(CAI)) is None
    rig.clock.time += rig.table.ttl_s - 1
    again = rig.join(question(ANN))
    assert again is not None
    assert again[1].given == told
    assert again[0].landing is Landing.WHOLE
    rig.table.settle(again[0], 0.5)
    assert rig.table.counts.saved_usd == 0.5
    assert len(rig.table) == 0
    assert rig.join(question(ANN)) is None


async def test_it_does_not_wait_for_ever(rig: Rig) -> None:
    flight, _ = rig.lead(question(ANN))
    rig.join(question(BEN))
    flight.leave(flight.lead)
    answer(flight, START, TEXT, STOP)
    rig.clock.time += rig.table.ttl_s + 1
    assert rig.join(question(ANN)) is None
    assert len(rig.table) == 0
    assert rig.table._bytes == rig.table._ended_bytes == 0
    assert rig.table._by_raw == rig.table._alike == {}


async def test_a_broken_answer_is_not_kept(rig: Rig) -> None:
    flight, _ = rig.lead(question(ANN))
    rig.join(question(BEN))
    flight.head(200, HEAD)
    flight.leave(flight.lead)
    flight.cut()
    assert len(rig.table) == 0
    assert rig.join(question(ANN)) is None


# -- one leader after another -------------------------------------------------------------------------------------------


async def test_after_a_refusal_one_leads_and_the_others_follow(rig: Rig) -> None:
    first, _ = rig.lead(question(ANN))
    seats = [rig.join(question(claim)) for claim in (BEN, CAI)]
    first.cut()
    assert [seat[0].landing for seat in seats if seat is not None] == [Landing.ALONE] * 2
    second, _ = rig.lead(question(BEN))
    found = rig.join(question(CAI))
    assert found is not None
    answer(second, START, TEXT, STOP)
    assert found[0].landing is Landing.WHOLE


async def test_whoever_gave_up_waiting_is_followed_by_those_who_come(rig: Rig) -> None:
    rig.table.wait_s = 0.005
    silent, _ = rig.lead(question(ANN))
    found = rig.join(question(BEN))
    assert found is not None
    assert await found[0].landed() is Landing.ALONE
    second, _ = rig.lead(question(BEN))
    rig.table.wait_s = 9
    third = rig.join(question(CAI))
    assert third is not None
    answer(second, START, TEXT, STOP)
    assert third[0].landing is Landing.WHOLE
    assert silent.lead.landing is None
    answer(silent, START, TEXT, STOP)
    assert len(rig.table) == 0


# -- bounds -------------------------------------------------------------------------------------------------------------


async def test_a_full_table_shares_no_more() -> None:
    for more in ({"max_entries": 2}, {"max_bytes": 2 * len(body(ANN)) + 5}):
        rig = Rig(**more)
        for said in ("one", "two"):
            rig.lead(question(ANN, body(ANN, said)))
        crowded = question(BEN, body(BEN, "three"))
        assert rig.table.offer(crowded, Reader(), lambda: rig.fly(crowded, Reader())) is None  # noqa: B023
        assert rig.table.counts.crowded == 1
        assert rig.joins(question(BEN, body(BEN, "two"))) is Likeness.STRICT


async def test_answers_that_wait_are_not_too_many(rig: Rig) -> None:
    for number in range(300):
        flight, _ = rig.lead(question(ANN, body(ANN, str(number))))
        rig.join(question(BEN, body(BEN, str(number))))
        flight.leave(flight.lead)
        answer(flight, START, TEXT, STOP)
    assert rig.join(question(CAI)) is None
    assert len(rig.table) == 256
    assert rig.join(question(ANN, body(ANN, "43"))) is None
    assert rig.joins(question(ANN, body(ANN, "44"))) is Likeness.RETRY


async def test_nothing_is_left_of_what_is_over(rig: Rig) -> None:
    flights = [rig.lead(question(ANN, body(ANN, str(number))))[0] for number in range(20)]
    for number, flight in enumerate(flights):
        rig.join(question(BEN, body(BEN, str(number))))
        if number % 3:
            answer(flight, START, TEXT, STOP)
        else:
            flight.cut()
    assert len(rig.table) == 0
    assert rig.table._bytes == 0
    assert rig.table._by_raw == rig.table._alike == {}


async def test_a_new_question_costs_next_to_nothing(rig: Rig) -> None:
    """About 5 µs with flight, seat and all on the machine that this was measured on; a look at 150 KB alone takes 40."""
    large = body(ANN, "x" * 150_000)

    def once() -> None:
        asked = question_of(large)
        reader = Reader()
        assert rig.table.join(asked, reader) is None
        member = rig.table.offer(asked, reader, lambda: rig.fly(asked, reader))
        assert member is not None
        rig.table.withdraw(member)

    paths, about = AgentPaths({worktree(ANN): "w"}), sense(Dialect.ANTHROPIC_MESSAGES, b"/v1/messages", ())

    def question_of(data: bytes) -> Question:
        return Question(
            data,
            claim=ANN,
            dialect=Dialect.ANTHROPIC_MESSAGES,
            mode=Sameness.STRICT,
            model="m",
            most=9,
            owner="org",
            paths=paths,
            sense=about,
            session=b"s",
            streams=True,
            turns=1,
        )

    assert min(timeit.repeat(once, number=20, repeat=20)) / 20 < 100e-6

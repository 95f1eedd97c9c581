"""Which alarms are one incident, when it is over, and what it is said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.event import KnobTurned
from coordinator.domain.incident import Alarm, AlarmLevel, AlarmRecord, AlarmStep
from coordinator.policy.incident_book import JOIN_S, IncidentBook, likely_cause
from coordinator.policy.watch import Watch
from tests.policy.served import served

if TYPE_CHECKING:
    from coordinator.domain.incident import Incident


def alarm(metric: str, step: AlarmStep = AlarmStep.BEGAN, **more: Any) -> Alarm:
    return Alarm(**{"at_s": 0.0, "level": AlarmLevel.WARNING, "metric": metric, "size": "2", "step": step, **more})


def test_alarms_that_come_soon_after_each_other_are_one() -> None:
    book = IncidentBook(7)
    assert [one.number for one in book.take([alarm("first_token_s")], 100.0)] == [7]
    assert book.take([alarm("call_s", scope="a")], 100.0 + JOIN_S)[0].metrics == ("first_token_s", "call_s@a")
    assert len(book.open) == 1
    later = book.take([alarm("gate")], 101.0 + 2 * JOIN_S)
    assert [one.number for one in later] == [8]
    same = book.take([alarm("token_s", scope="a")], 5000.0)
    assert [one.number for one in same] == [7]  # the upstream that is in trouble already
    line = book.take([alarm("landing")], 9000.0)
    assert [one.number for one in line] == [8]  # the line, where the gate still passes less


def test_it_is_over_when_all_alarms_are_and_ended_with_the_last() -> None:
    book = IncidentBook()
    book.take([alarm("fault"), alarm("late")], 100.0)
    book.take([alarm("fault", AlarmStep.ENDED)], 200.0)
    assert book.close_quiet(200.0 + 2 * JOIN_S) == []
    assert book.take([alarm("late", AlarmStep.ENDED, size="")], 2000.0)[0].alarms[1].ended_s == 2000.0
    assert book.close_quiet(2000.0 + JOIN_S) == []
    over = book.close_quiet(2001.0 + JOIN_S)
    assert [(one.number, one.began_s, one.ended_s, one.size) for one in over] == [(1, 100.0, 2000.0, "2")]
    assert book.open == ()


def test_one_that_flaps_is_the_same_and_worse_is_told() -> None:
    book = IncidentBook()
    book.take([alarm("fault")], 100.0)
    book.take([alarm("fault", AlarmStep.ENDED)], 200.0)
    book.take([alarm("fault")], 900.0)
    assert [one.number for one in book.open] == [1]
    assert book.open[0].alarms[0].ended_s is None
    worse = book.take([alarm("fault", AlarmStep.WORSENED, level=AlarmLevel.CRITICAL)], 910.0)
    assert [one.level for one in worse] == [AlarmLevel.CRITICAL]


@pytest.mark.parametrize(
    ("found", "change", "said"),
    [
        ([("fault", "", ""), ("fault", "team", "")], "", "calls fail (upstream team)"),
        ([("token_s", "a", ""), ("token_s", "b", "")], "", "tokens come slowly (all upstreams)"),
        ([("cost_usd", "", "fixer")], "", "calls cost more (role fixer)"),
        ([("gate", "", ""), ("landing", "", "")], "", "the gate passes less (the gate)"),
        ([("wait", "", ""), ("depth", "", "")], "", "calls are held back (the gateway's own stages)"),
        ([("wait", "", "")], "hold_s from 2 to 9 by operator", "calls are held back (since a change: hold_s from 2 to 9 by operator)"),
    ],
)  # fmt: skip
def test_the_likely_cause(found: list[tuple[str, str, str]], change: str, said: str) -> None:
    records = [
        AlarmRecord(began_s=0.0, level=AlarmLevel.WARNING, metric=metric, role=role, scope=scope, size="")
        for metric, scope, role in found
    ]
    assert likely_cause(records, change) == said


def test_a_change_by_a_person_restarts_what_is_usual_one_by_the_loop_does_not() -> None:
    for author, silent in (("person", True), ("block", True), ("probe", False)):
        watch, at_s = Watch(0.0), 0.0
        for _ in range(300):
            at_s += 5
            watch.take(served(), at_s)
            watch.look(at_s, {})
        watch.take(KnobTurned(author=author, knob="hold_s", new=2.0, old=1.0, reason=""), at_s)
        watch.look(at_s + 5, {})
        begun: list[Incident] = []
        for _ in range(10):
            at_s += 5
            watch.take(served(status=500), at_s)
            begun += watch.look(at_s, {}).changed
        assert (begun == []) is silent
        if begun:
            assert begun[0].cause == "calls fail (since a change: hold_s from 1 to 2 by probe)"

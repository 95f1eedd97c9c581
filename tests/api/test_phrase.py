from __future__ import annotations

import dataclasses
import logging
import typing

import pytest

from coordinator.api.phrase import phrase
from coordinator.api.verbs_fleet import event_from
from coordinator.api.view import WARN
from coordinator.domain import event as happened
from coordinator.domain.task import TaskState

_VALUES = {"int": 3, "float": 1.5, "str": "word", "bool": True, "tuple[str, ...]": ("a", "b"), "int | None": 1}

EVENTS = [
    kind
    for kind in vars(happened).values()
    if isinstance(kind, type) and issubclass(kind, happened.Event) and kind is not happened.Event
]


def _make(kind: type[happened.Event]) -> happened.Event:
    return kind(**{item.name: _VALUES[typing.cast("str", item.type)] for item in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_every_event_of_the_table_has_words_or_is_silent_on_purpose(kind: type[happened.Event]) -> None:
    event = _make(kind)
    if isinstance(event, happened.TaskChanged):
        event = dataclasses.replace(event, new=TaskState.FAILED)
    told = phrase(event)
    assert told.word
    assert told.word != event.kind or kind is happened.Noticed, "nobody has put it into words"
    assert told.text


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_survives_the_journal(kind: type[happened.Event]) -> None:
    event = _make(kind)
    data = {"kind": event.kind, "at": "2030-01-01T00:00:00+00:00", **event.to_json()}
    assert event_from(data) == event


def test_what_a_newer_version_wrote_is_no_event() -> None:
    assert event_from({"kind": "moon_rose", "at": ""}) is None
    assert event_from({"kind": "noticed", "at": "", "message": "m", "subject": "s", "mood": "odd"}) is None


def _changed(old: str, new: str) -> str | None:
    told = phrase(happened.TaskChanged(task="t", old=old, new=new, reason="why", generation=1))
    return told.word if told.level >= logging.INFO else None


def test_a_task_is_told_once_on_its_way() -> None:
    way = ["pending", "ready", "claimed", "running", "validating", "landing", "completed"]
    words = [_changed(old, new) for old, new in zip(["", *way], way, strict=False)]
    assert words == [None, None, "started", None, None, None, None]
    landed = happened.TaskLanded(task="t", commit="c" * 40, files=("a.py",), generation=1, target="b", title="T")
    told = phrase(landed)
    assert told.text == "t: T, a.py, cccccccccc"


def test_trouble_is_loud() -> None:
    assert _changed("running", "pending") == "again"
    assert _changed("pending", "completed") == "completed"
    broke = phrase(happened.GateBroke(command="pytest", reason="not found"))
    assert broke.level == logging.ERROR


def test_untested_work_is_told_when_it_passes_and_when_it_lands() -> None:
    judged = phrase(
        happened.GateJudged(tasks=("a",), took_s=1, verdict="passed", untested="pytest (absent)", notes=("n",))
    )
    assert (judged.level, judged.style) == (logging.INFO, WARN)
    assert judged.text.endswith("untested: pytest (absent); n")
    assert phrase(happened.GateJudged(tasks=("a",), took_s=1, verdict="passed", notes=("n",))).level == logging.DEBUG
    landed = happened.TaskLanded(
        task="a", commit="c" * 40, files=("x",), generation=1, target="t", untested="pytest (absent)"
    )
    assert phrase(landed).text.endswith("untested: pytest (absent)")
    parked = phrase(happened.GateBroke(command="pytest", reason="r", tasks=("a", "b")))
    assert (parked.text, parked.level) == ("2 tasks cannot land yet: r", logging.ERROR)


def _fold(status: str = "scanned", **values: object) -> tuple[str, int]:
    numbers = {"closed": 0, "opened": 0, "queued": 0, "total": 6, **values}
    told = phrase(happened.FindingsFolded(status=status, tool="ruff", took_s=0.1, **numbers))  # type: ignore[arg-type]
    return told.text, told.level


def test_a_look_is_told_for_what_it_was_worth() -> None:
    text, level = _fold(opened=2, reopened=1)
    assert ("2 new, 1 of them fixed before" in text, level) == (True, logging.INFO)
    assert _fold() == ("ruff found 6 (0 new, 0 gone), 0 tasks written, in 0.1 s", logging.DEBUG)
    text, level = _fold(unchanged=True)
    assert ("was not run" in text, level) == (True, logging.DEBUG)
    text, level = _fold("partial", opened=1, reason="crate a does not build")
    assert ("saw a part only" in text and "crate a" in text, level) == (True, logging.WARNING)
    text, level = _fold("unavailable", reason="not found")
    assert ("did not scan (unavailable): not found" in text, level) == (True, logging.WARNING)
    text, level = _fold("uncalled", closed=6, reason="there is no Python file")
    assert ("no longer called for" in text, level) == (True, logging.INFO)

"""Every turn of a knob is recorded and told; what is pinned, frozen or a person's is not the loop's; values outlive a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.domain.errors import BadInput
from coordinator.domain.knob import ChangeAuthor, ChangeVerdict, KnobKind
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from tests.control.knobs import Panelled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "ledger.db")
    yield store
    store.close()


def room(store: Store, **values: float) -> Panelled:
    return Panelled(SystemClock(), store, values or {"room": 10.0})


async def test_a_person_sets_it_which_is_told_recorded_and_kept_for_the_next_daemon(store: Store) -> None:
    one = room(store)
    assert await one.board.set("room", 20, "it sheds") == 20
    assert one.values == {"room": 20}
    assert one.turned() == [("person", "room", 20)]
    [change] = one.changes()
    assert [change[key] for key in ("author", "knob", "old", "new", "why", "verdict")] == [
        "person", "room", 10, 20, "it sheds", "kept",
    ]  # fmt: skip
    assert room(store).values == {"room": 20}
    await one.board.set("room", None, "enough")
    assert (one.values, room(store).values) == ({"room": 10}, {"room": 10})


async def test_settings_that_were_changed_since_are_the_newer_word(store: Store) -> None:
    await room(store).board.set("room", 20, "")
    assert room(store, room=12.0).values == {"room": 12}


@pytest.mark.parametrize(("name", "value"), [("room", 101), ("room", -1), ("room", float("nan")), ("door", 1)])
async def test_what_is_no_value_of_a_knob_changes_nothing(store: Store, name: str, value: float) -> None:
    one = room(store)
    with pytest.raises(BadInput):
        await one.board.set(name, value, "")
    assert (one.values, one.changes(), one.turned()) == ({"room": 10}, [], [])


async def test_the_loop_turns_nothing_that_is_frozen_pinned_or_a_persons(store: Store) -> None:
    one = room(store, room=10.0, retries=3.0)
    one.kinds["retries"] = KnobKind.FIXED
    one = Panelled(one.clock, store, one.values, one.kinds)
    assert await one.board.turn("retries", 5, ChangeAuthor.SERVO, "no") is None
    await one.board.pin("room", True)
    assert await one.board.turn("room", 5, ChangeAuthor.SERVO, "no") is None
    await one.board.set("room", 11, "a person may")
    await one.board.pin("room", False)
    one.board.freeze(True)
    assert await one.board.turn("room", 5, ChangeAuthor.SERVO, "no") is None
    again = Panelled(one.clock, store, {"room": 10.0})
    assert (again.board.frozen, again.values) == (True, {"room": 11})
    one.board.freeze(False)
    assert await one.board.turn("room", 5, ChangeAuthor.SERVO, "yes") is not None
    assert one.values == {"room": 5, "retries": 3}


async def test_the_loop_sets_the_nearest_value_that_is_allowed_and_no_other_twice(store: Store) -> None:
    one = room(store)
    assert await one.board.turn("room", 1e9, ChangeAuthor.SERVO, "more") is not None
    assert one.values == {"room": 100}
    assert await one.board.turn("room", 1e9, ChangeAuthor.SERVO, "more") is None
    assert len(one.changes()) == 1


@pytest.mark.parametrize(
    ("verdict", "value", "next_daemon"),
    [(ChangeVerdict.KEPT, 20, 20), (ChangeVerdict.REVERTED, 10, 10), (ChangeVerdict.ABORTED, 10, 10)],
)
async def test_a_trial_ends_with_its_verdict(
    store: Store, verdict: ChangeVerdict, value: float, next_daemon: float
) -> None:
    one = room(store)
    number = await one.board.turn("room", 20, ChangeAuthor.PROBE, "calls wait", trial="20 s")
    assert number is not None
    assert one.changes()[0]["verdict"] == "on trial"
    await one.board.settle(number, "room", verdict, "it says so", back_to=10, author=ChangeAuthor.PROBE)
    [change] = one.changes()
    assert (change["verdict"], change["outcome"]) == (verdict, "it says so")
    assert one.values == {"room": value}
    assert room(store).values == {"room": next_daemon}


async def test_a_trial_that_the_daemon_did_not_live_to_judge_is_reverted_by_the_next(store: Store) -> None:
    one = room(store)
    await one.board.turn("room", 20, ChangeAuthor.PROBE, "calls wait", trial="20 s")
    two = room(store)
    assert two.values == {"room": 10}
    assert [(change["verdict"], change["outcome"]) for change in two.changes()] == [
        ("reverted", "the daemon ended in the middle of the trial")
    ]


async def test_a_dry_run_records_and_turns_nothing(store: Store) -> None:
    one = room(store)
    assert await one.board.turn("room", 20, ChangeAuthor.SERVO, "it waits", dry=True) is not None
    assert (one.values, one.turned(), one.changes()[0]["verdict"]) == ({"room": 10}, [], "dry run")

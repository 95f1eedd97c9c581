"""A person lists, sets, pins and freezes knobs while the daemon runs, and reads who changed what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.control.fleet_knobs import FLEET_KNOBS
from coordinator.control.knob_board import KnobBoard
from coordinator.control.knob_panel import LiveKnob, LivePanel
from coordinator.control.objective import Score
from coordinator.control.snapshot_store import SnapshotStore
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.knob import ChangeAuthor, KnobReading
from tests.api.test_verbs import shown
from tests.api.test_verbs_gateway import ask, house_of

if TYPE_CHECKING:
    from tests.api.conftest import Place


def board(place: Place, *panels: Any) -> KnobBoard:
    place.live.knobs = made = KnobBoard(place.live.store, place.live.clock, panels)  # type: ignore[attr-defined]
    return made


async def test_knobs_are_listed_with_their_bounds_and_set(place: Place) -> None:
    async with house_of(place) as house:
        board(place, house.gateway)
        reply = await ask(place, "knobs list")
        by_name = {one["name"]: one for one in reply.data["knobs"]}
        assert (by_name["hold_s"]["value"], by_name["hold_s"]["maximum"]) == (0.0, 350)
        assert (by_name["calls@team"]["value"], by_name["calls@team"]["maximum"]) == (4, 4)
        assert "hold_s" in shown(place, "knobs list", reply)
        reply = await ask(place, "knobs set", name="hold_s", value="45", reason="agents time out")
        assert "hold_s is 45" in shown(place, "knobs set", reply)
        await ask(place, "knobs set", name="calls@team", value="2")
        told = [one.event.to_json() for one in house.events if one.event.kind == "knob_turned"]
        assert [(one["author"], one["knob"], one["old"], one["new"], one["reason"]) for one in told] == [
            ("person", "hold_s", 0, 45, "agents time out"),
            ("person", "calls@team", 4, 2, "by hand"),
        ]
        upstreams = (await ask(place, "upstreams list")).data["upstreams"]
        assert upstreams[0]["limit"] == 2
        reply = await ask(place, "knobs set", name="calls@team", value="default")
        assert reply.data["value"] == 4


async def test_what_was_set_stands_when_the_next_gateway_begins(place: Place) -> None:
    async with house_of(place) as house:
        board(place, house.gateway)
        await ask(place, "knobs set", name="rag_width", value="3")
        await ask(place, "knobs set", name="calls@team", value="1")
    async with house_of(place) as house:
        board(place, house.gateway)
        assert {one["name"]: one["value"] for one in (await ask(place, "knobs list")).data["knobs"]}["rag_width"] == 8
        await house.stop()
    kept = board(place)
    kept._remember(KnobReading(default=4.0, knob=FLEET_KNOBS[0], value=4.0), 3.0)
    async with house_of(place, begin=lambda gateway: board(place, gateway).begin()) as house:
        assert house.said("noticed") == []  # the fleet's knobs are none of the gateway's
        found = {one["name"]: one["value"] for one in (await ask(place, "knobs list")).data["knobs"]}
        assert (found["rag_width"], found["calls@team"]) == (3, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hold_s", "much"),
        ("hold_s", "351"),
        ("hold_s", "nan"),
        ("no", "1"),
        ("room", "1.5"),
        ("calls@team", "5"),
        ("calls@nobody", "1"),
    ],
)
async def test_what_is_no_value_of_a_knob_changes_nothing(place: Place, name: str, value: str) -> None:
    async with house_of(place) as house:
        board(place, house.gateway)
        with pytest.raises(BadInput):
            await ask(place, "knobs set", name=name, value=value)
        assert house.said("knob_turned") == []


def fleet_board(place: Place) -> tuple[KnobBoard, dict[str, float]]:
    values = {"agents": 4.0}

    def write(value: float) -> None:
        values["agents"] = value

    agents = LiveKnob(knob=FLEET_KNOBS[0], read=lambda: values["agents"], write=write)
    return board(place, LivePanel(place.live.bus, [agents])), values


async def test_one_is_shown_with_its_changes_pinned_and_frozen(place: Place) -> None:
    turned, values = fleet_board(place)
    assert "Nothing was changed" in shown(place, "knobs show", await ask(place, "knobs show", name="agents"))
    await ask(place, "knobs set", name="agents", value="6", reason="much to do")
    await ask(place, "knobs pin", name="agents")
    assert await turned.turn("agents", 8, ChangeAuthor.BLOCK, "more") is None
    said = shown(place, "knobs show", await ask(place, "knobs show", name="agents"))
    assert "6 agents (pinned)" in said
    assert "agents 4 to 6 by person (much to do), kept" in " ".join(said.split())
    await ask(place, "knobs unpin", name="agents")
    await ask(place, "knobs freeze")
    assert "All are frozen" in shown(place, "knobs list", await ask(place, "knobs list"))
    assert await turned.turn("agents", 8, ChangeAuthor.BLOCK, "more") is None
    await ask(place, "knobs unfreeze")
    assert await turned.turn("agents", 8, ChangeAuthor.BLOCK, "more") is not None
    assert values == {"agents": 8}
    reply = await ask(place, "changes", live=False)
    assert [(one["author"], one["new"]) for one in reply.data["changes"]] == [("person", 6), ("block", 8)]
    assert (await ask(place, "changes", knob="none")).data["changes"] == []


async def test_without_a_daemon_there_is_nothing_to_turn(place: Place) -> None:
    for verb in ("knobs list", "knobs freeze"):
        with pytest.raises(DaemonUnreachable, match="no daemon"):
            await ask(place, verb, live=False)


@dataclass
class Tuner:
    """What is asked of a tuning controller."""

    on: bool = True
    advised: list[tuple[str, int]] = field(default_factory=list)

    @property
    def limits(self) -> Tuner:
        return self

    def advise(self, upstream: str, calls: int, _: str) -> bool:
        self.advised.append((upstream, calls))
        return upstream == "team"


async def test_a_value_is_tried_where_the_loop_may_turn_it(place: Place) -> None:
    async with house_of(place) as house:
        made = board(place, house.gateway)
        place.live.tuning = tuner = Tuner()  # type: ignore[attr-defined]
        reply = await ask(place, "knobs try", name="calls@team", value="2")
        assert "is to be tried at 2" in shown(place, "knobs try", reply)
        assert tuner.advised == [("team", 2)]
        for name, value in (("calls@team", "9"), ("calls@echo", "2"), ("hold_s", "2"), ("calls@team", "two")):
            with pytest.raises(BadInput):
                await ask(place, "knobs try", name=name, value=value)
        made.freeze(True)
        with pytest.raises(BadInput, match="nobody turns it but you"):
            await ask(place, "knobs try", name="calls@team", value="2")
        assert {one["name"]: one["value"] for one in await made.list()}["calls@team"] == 4


async def test_snapshots_are_listed_compared_and_restored(place: Place) -> None:
    turned, values = fleet_board(place)
    assert "No snapshot" in shown(place, "knobs snapshots", await ask(place, "knobs snapshots"))
    kept = SnapshotStore(place.live.store, place.live.clock)
    kept.take(values, "as the daemon began", Score(calls=9, took_s=3600.0, value_usd=5.0))
    await turned.set("agents", 9, "more")
    kept.take(values, "agents by person", Score(calls=9, took_s=3600.0, value_usd=3.0))
    said = shown(place, "knobs snapshots", await ask(place, "knobs snapshots", live=False))
    assert "light 5 (best)" in said
    reply = await ask(place, "knobs diff", old=1, new=2)
    assert reply.data["differences"] == [{"knob": "agents", "new": 9, "old": 4}]
    assert (await ask(place, "knobs restore", version=1)).data["turned"] == ["agents"]
    assert values == {"agents": 4}
    assert "snapshot 1 is restored" in shown(place, "changes", await ask(place, "changes")).replace("\n    ", " ")
    assert (await ask(place, "knobs restore", version=1)).data["turned"] == []
    with pytest.raises(BadInput, match="no snapshot"):
        await ask(place, "knobs diff", old=1, new=7)

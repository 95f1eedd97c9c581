"""Telemetry tells what was told to it, and nothing of what was not."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.event import AttemptEnded, GateJudged, RequestServed, TaskChanged, TaskLanded
from coordinator.policy.telemetry import LOOK_S, WINDOWS_S, Telemetry, figures_of
from coordinator.policy.telemetry_cell import TelemetryCell
from tests.policy.served import served


def figures(telemetry: Telemetry, window: str = "1m") -> dict[str, object]:
    return figures_of(telemetry.window(WINDOWS_S[window]), WINDOWS_S[window])


def test_nothing_told_is_no_sample_anywhere() -> None:
    shown = figures(Telemetry(0.0))
    for key in ("cache_rate", "cost_usd", "error_rate", "fault_rate", "gate_pass_rate", "landing_rate", "shed_rate"):
        assert shown[key] is None, key
    assert shown["spreads"] == dict.fromkeys(shown["spreads"])  # type: ignore[call-overload]
    assert (shown["agents_busy"], shown["depth"], shown["tokens_per_s"]) == (None, {}, None)
    assert shown["calls"] == 0  # a count of what was told is a number


def test_calls_are_folded_into_times_rates_and_money() -> None:
    telemetry = Telemetry(0.0)
    telemetry.take(served(first_byte_s=3.0, wait_s=1.0, took_s=13.0, output_tokens=100))
    telemetry.take(served(status=500, cost_usd=0.0, priced=False, output_tokens=0))
    telemetry.take(served(collapsed="cache", upstream="", first_byte_s=0.0, cost_usd=0.0))
    telemetry.take(served(ending="shed", status=529, upstream="", cost_usd=0.0, priced=False, output_tokens=0))
    shown = figures(telemetry)
    assert shown["calls"] == 4
    assert shown["errors"] == {"server": 1, "shed": 1}
    assert (shown["error_rate"], shown["cache_rate"], shown["shed_rate"]) == (0.5, 0.25, 0.25)
    assert shown["fault_rate"] == 0.5
    assert shown["cost_usd"] == pytest.approx(0.02)
    spreads: dict[str, dict[str, float]] = shown["spreads"]  # type: ignore[assignment]
    assert spreads["first_token_s"]["p50"] == pytest.approx(2.0, rel=0.03)
    assert spreads["token_s"]["p50"] == pytest.approx(0.1, rel=0.03)
    assert spreads["call_s"]["count"] == 1
    assert spreads["gate_s"] is None


def test_a_call_that_came_whole_says_nothing_of_first_tokens() -> None:
    telemetry = Telemetry(0.0)
    telemetry.take(served(stream=False))
    spreads: dict[str, object] = figures(telemetry)["spreads"]  # type: ignore[assignment]
    assert (spreads["first_token_s"], spreads["token_s"]) == (None, None)


def test_gate_attempts_and_stages() -> None:
    telemetry = Telemetry(0.0)
    for new in ("ready", "claimed", "running"):
        telemetry.take(TaskChanged(task="a", generation=1, old="", new=new, reason=""))
    telemetry.take(TaskChanged(task="b", generation=1, old="", new="ready", reason=""))
    for verdict in ("passed", "failed", "broken"):
        telemetry.take(GateJudged(tasks=("a",), took_s=2.0, verdict=verdict))
    for ending in ("landed", "gate_failed", "stopped"):
        telemetry.take(AttemptEnded(ending=ending, generation=1, reason="", task="a", duration_s=9.0))
    telemetry.take(TaskLanded(commit="c", files=(), generation=1, target="b", task="a"))
    telemetry.look(LOOK_S, {})
    shown = figures(telemetry)
    assert (shown["gate_pass_rate"], shown["landing_rate"], shown["landed"]) == (0.5, 0.5, 1)
    assert shown["agents_busy"] == 1
    assert shown["depth"] == {"claimed": 0, "landing": 0, "ready": 1, "running": 1, "validating": 0}
    telemetry.take(TaskChanged(task="a", generation=1, old="running", new="failed", reason=""))
    assert telemetry.busy == 0


def test_windows_forget_what_is_older() -> None:
    telemetry, at_s = Telemetry(0.0), 0.0
    telemetry.take(served())
    seen = {}
    for _ in range(round(2 * 3600 / LOOK_S)):
        at_s += LOOK_S
        telemetry.look(at_s, {})
        for window in WINDOWS_S:
            if figures(telemetry, window)["calls"]:
                seen[window] = at_s
    for window, length_s in WINDOWS_S.items():
        assert length_s - 60 <= seen[window] <= length_s + LOOK_S, window


@given(st.lists(st.sampled_from([served(), served(status=500), served(role="b", took_s=9.0)]), max_size=60))
def test_cells_added_up_are_one_cell(calls: list[RequestServed]) -> None:
    split, whole = Telemetry(0.0), Telemetry(0.0)
    for at, call in enumerate(calls):
        split.take(call)
        whole.take(call)
        split.look(LOOK_S * (at % 5), {})
    one, other = (telemetry.window(3600.0).to_json() for telemetry in (split, whole))
    assert one["counts"] == other["counts"]
    assert one["sums"] == pytest.approx(other["sums"])
    assert {key: values["bins"] for key, values in one["spreads"].items()} == {
        key: values["bins"] for key, values in other["spreads"].items()
    }


def test_a_cell_survives_the_ledger_and_labels_are_bounded() -> None:
    telemetry = Telemetry(0.0)
    for number in range(500):
        telemetry.take(served(role=f"r{number}", upstream=f"u{number}"))
    cell = telemetry.window(60.0)
    assert len(cell.counts) < 200
    read = TelemetryCell.from_json(json.loads(json.dumps(cell.to_json())))
    assert figures_of(read, 60.0) == figures_of(cell, 60.0)


def test_a_minute_is_handed_over_once_and_only_when_something_happened() -> None:
    telemetry, minutes = Telemetry(0.0), []
    telemetry.take(served())
    for number in range(1, 37):
        minute = telemetry.look(number * LOOK_S, {})
        if minute is not None:
            minutes.append(number * LOOK_S)
    assert minutes == [60.0]
    assert all(later > earlier for earlier, later in pairwise(minutes))

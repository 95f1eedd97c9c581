"""What agents wrote may be anything; what cannot be understood is absent."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Order, Result
from coordinator.fleet import sighting
from coordinator.fleet.ready import shell_lines
from coordinator.kit import lock
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path, tmp_path / ".coordinator")
    layout.attempt("t", 1).mkdir(parents=True)
    layout.claims.mkdir()
    return layout


def _result(layout: Layout, text: bytes) -> Result | None:
    (layout.attempt("t", 1) / "result.json").write_bytes(text)
    return sighting.read_result(layout, "t", 1)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"task": "t"}', b'{"a":' * 50_000, b"1" * 2_000_000],
)
def test_a_result_that_is_none(place: Layout, text: bytes) -> None:
    assert _result(place, text) is None


def test_a_result_of_another_generation_is_none(place: Layout) -> None:
    good = Result(task="t", generation=1, outcome="done").to_json()
    assert _result(place, json.dumps(good | {"future": [1]}).encode()) == Result(task="t", generation=1, outcome="done")
    assert _result(place, json.dumps(good | {"generation": 2}).encode()) is None
    assert _result(place, json.dumps(good | {"task": "other"}).encode()) is None


def test_links_pipes_and_folders_are_not_followed(place: Layout, tmp_path: Path) -> None:
    path = place.attempt("t", 1) / "result.json"
    secret = tmp_path / "secret"
    secret.write_text(json.dumps(Result(task="t", generation=1, outcome="done").to_json()))
    path.symlink_to(secret)
    assert sighting.read_result(place, "t", 1) is None
    path.unlink()
    os.mkfifo(path)
    assert sighting.read_result(place, "t", 1) is None
    assert sighting.last_lines(path) == ""
    path.unlink()
    path.mkdir()
    assert sighting.read_result(place, "t", 1) is None


def test_last_lines_are_whole_lines_and_bounded(place: Layout) -> None:
    log = place.attempt("t", 1) / "agent.log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    text = sighting.last_lines(log, 100)
    assert text.endswith("line 999")
    assert text.startswith("line 9")
    assert len(text) <= 100


def test_look_tells_held_from_free(place: Layout) -> None:
    assert not sighting.look(place, "t", 1).held
    with lock.acquire(place.claim_lock("t")) or pytest.fail("not acquired"):
        assert sighting.look(place, "t", 1).held
    assert not sighting.look(place, "t", 1).held


def test_shell_lines_survive_quotes_and_newlines() -> None:
    import subprocess

    order = Order(
        attempt="/a b/'c'",
        base="0" * 40,
        branch="x",
        brief="/br\nief",
        generation=3,
        repository="/$HOME `x`",
        task="t",
        worktree="/w",
    )
    script = (
        shell_lines(order) + 'printf "%s|%s|%s" "$COORDINATOR_ATTEMPT" "$COORDINATOR_BRIEF" "$COORDINATOR_REPOSITORY"'
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "/a b/'c'|/br\nief|/$HOME `x`"


@pytest.mark.parametrize(
    "odd",
    [
        {"summary": 5},
        {"summary": "half \ud83d"},
        {"duration_s": float("nan")},
        {"duration_s": 1e300},
        {"exit_code": 10**30},
        {"exit_code": "0"},
        {"cost_usd": [1]},
        {"outcome": None},
        {"generation": True},
    ],
)
def test_a_result_with_a_value_of_another_kind_is_none(place: Layout, odd: dict[str, object]) -> None:
    good = Result(task="t", generation=1, outcome="done").to_json()
    assert _result(place, json.dumps(good | odd).encode()) is None


@pytest.mark.parametrize("odd", [{"agent": "half \ud83d"}, {"pid": 10**30}, {"pid": -1}, {"pid": 2**40}, {"host": 7}])
def test_a_claim_record_with_a_value_of_another_kind_is_none(place: Layout, odd: dict[str, object]) -> None:
    good = {"agent": "a", "boot": "b", "generation": 1, "host": "h", "pid": 7, "started": "s", "task": "t"}
    place.claim_record("t").write_text(json.dumps(good))
    assert sighting.look(place, "t", 1).record is not None
    place.claim_record("t").write_text(json.dumps(good | odd))
    assert sighting.look(place, "t", 1).record is None

"""A role with several models: each attempt gets one, what came of it is learnt, and another policy can be compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.waiting import wait_until
from tests.walks.house import build

if TYPE_CHECKING:
    from pathlib import Path

GOOD_MODEL_ONLY = 'test "$COORDINATOR_MODEL" = sound && echo "$COORDINATOR_MODEL" > {name}.txt'


def test_attempts_are_given_models_and_the_router_learns_which(tmp_path: Path) -> None:
    house = build(tmp_path / "house")
    card = house.top / "agents" / "edit.toml"
    card.write_text(f'{card.read_text()}\nmodels = ["broken", "sound via somewhere"]\n')
    house.git("commit", "-qam", "models")
    for number in range(3):
        house.task(f"t{number}", GOOD_MODEL_ONLY.format(name=f"t{number}"), max_attempts=8)
    house.task("pinned", GOOD_MODEL_ONLY.format(name="pinned"), model="sound")
    daemon = house.start("run")
    try:
        wait_until(lambda: set(house.states().values()) == {"completed"}, 60, what="all landed")
        wait_until(
            lambda: house.rows("SELECT count(*) FROM decisions WHERE landed = 1") == [(4,)], 10, what="outcomes joined"
        )
        judged = house.command("router", "judge", "t0", "bad")
        shown = json.loads(house.command("router", "show", "--json").stdout)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    undone = house.git("rev-parse", "coordinator/main")
    task = house.git("log", "-1", "--format=%(trailers:key=Coordinator-Task,valueonly)", undone).strip()
    tree = house.git("rev-parse", f"{undone}^^{{tree}}")
    commit = house.git("commit-tree", tree, "-p", undone, "-m", f'Revert "x"\n\nThis reverts commit {undone}.')
    house.git("update-ref", "refs/heads/coordinator/main", commit)
    assert house.command("run", "--until-idle").returncode == 0
    last = house.rows(f"SELECT outcome FROM decisions WHERE task = '{task}' ORDER BY generation DESC LIMIT 1")
    assert last == [("verdict" if task == "t0" else "reverted",)]
    assert judged.returncode == 0, judged.stderr
    rows = house.rows("SELECT task, arm, propensities, pinned, landed, attempt, outcome FROM decisions ORDER BY number")
    assert {row[1] for row in rows if row[4] == 1} <= {"sound via somewhere", "sound"}
    assert all(abs(sum(json.loads(row[2])) - 1) < 1e-6 for row in rows)
    assert [row[1] for row in rows if row[0] == "pinned"] == ["sound"]
    failures = [row for row in rows if row[1] == "broken"]
    assert all(row[4] == 0 and row[6] in ("failed", "empty") for row in failures)
    assert {one["arm"] for one in shown["arms"]} >= {"sound via somewhere", "sound"}
    orders = [json.loads(path.read_text()) for path in house.top.glob(".coordinator/attempts/*/*/order.json")]
    assert {order["model"] for order in orders} <= {"sound", "broken"}, "the upstream is no part of a model's name"
    told = house.command("router", "replay", "cheapest")
    assert "It cannot be told" in told.stdout
    unknown = house.command("router", "replay", "nonsense")
    assert unknown.returncode != 0
    assert "no policy" in unknown.stderr

"""With scaling on the fleet follows the work: a spare agent is there before it is needed, and nobody at work is ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.waiting import wait_until
from tests.walks.house import House, build

if TYPE_CHECKING:
    from pathlib import Path

WAITS = 'while [ ! -e "{flag}" ]; do sleep 0.05; done; echo done > {name}.txt'


def agents(house: House) -> list[bool]:
    """Of each agent process, whether it has a task."""
    done = house.command("agents", "list", "--json")
    return sorted(bool(one["task"]) for one in json.loads(done.stdout)["agents"]) if done.returncode == 0 else []


def test_a_spare_agent_comes_and_goes_and_work_is_left_alone(tmp_path: Path) -> None:
    house, flag = build(tmp_path / "house"), tmp_path / "flag"
    settings = house.top / "coordinator.toml"
    settings.write_text(f'{settings.read_text()}\n[scale]\nenabled = "on"\nlinger_s = 2.0\n')
    house.task("long", WAITS.format(flag=flag, name="long"))
    daemon = house.start("run")
    try:
        wait_until(lambda: agents(house) == [False, True], 30, what="one at work and one spare")
        house.task("more", WAITS.format(flag=flag, name="more"))
        wait_until(lambda: agents(house) == [False, True, True], 30, what="the spare at work, and another")
        house.task("most", WAITS.format(flag=flag, name="most"))
        wait_until(lambda: agents(house) == [True, True, True], 30, what="no more than [fleet] agents")
        flag.touch()
        wait_until(lambda: set(house.states().values()) == {"completed"}, 30, what="all landed")
        wait_until(lambda: agents(house) == [], 30, what="the last one lingered long enough")
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert house.rows("SELECT DISTINCT ending, generation FROM attempts") == [("landed", 1)]

"""The walk of a finding: a tool sees it, an agent mends it, the gate lets it land, a scan closes it. Real tools, real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.walks.house import House

FAULTY = {
    "shop/__init__.py": "",
    "shop/ugly.py": "x = {  'a':1 }\n",
    "shop/page.py": "import re\n\n\ndef page(tags=[]):\n    return tags\n",
}
MENDER = """\
description = "Stands for a model: knows how to mend one thing."
command = ["sh", "-c", "sed -i 's/tags=\\\\[\\\\]/tags=()/' shop/page.py"]
"""
SETTINGS = """
[land]
target = "main-line"

[discovery]
role = "mender"
"""


def plant(house: House, **more: str) -> None:
    for name, text in {**FAULTY, "agents/mender.toml": MENDER, "ruff.toml": "[format]\n", **more}.items():
        path = house.top / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with (house.top / "coordinator.toml").open("a") as settings:
        settings.write(SETTINGS)
    house.git("add", "-A")
    house.git("commit", "-q", "-m", "Plant")


def improve(house: House) -> dict[str, Any]:
    done = house.command("run", "--self-improve", "--until-idle", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def findings(house: House) -> dict[tuple[str, str], str]:
    return {(rule, path): state for rule, path, state in house.rows("SELECT rule, path, state FROM findings")}


def test_what_tools_find_is_mended_by_whoever_can_and_closed_by_a_scan_alone(house: House) -> None:
    plant(house)
    summary = improve(house)
    assert {one["tool"]: (one["found"], one["fixed"], one["left"]) for one in summary["findings"]} == {
        "ruff": (3, 3, 0),
        "ruff-format": (1, 1, 0),
    }
    assert findings(house) == {
        ("F401", "calc.py"): "fixed",
        ("F401", "shop/page.py"): "fixed",
        ("B006", "shop/page.py"): "fixed",
        ("unformatted", "shop/ugly.py"): "fixed",
    }
    assert "tags=()" in house.show("shop/page.py", "main-line")
    assert house.show("shop/ugly.py", "main-line") == 'x = {"a": 1}'
    assert list((house.top / "tasks/auto").glob("*.toml")) == []
    roles = dict(house.rows("SELECT id, role FROM tasks"))
    assert sorted(roles.values()) == ["autofix"] * 3 + ["mender"]
    again = improve(house)
    assert (again["landed"], {one["left"] for one in again["findings"]}) == ([], {0})
    unchanged = house.rows("SELECT data FROM journal WHERE kind = 'findings_folded' ORDER BY seq DESC LIMIT 2")
    assert all(json.loads(data)["unchanged"] for (data,) in unchanged)


def test_what_comes_back_is_a_regression_and_what_was_dismissed_does_not_come_back(house: House) -> None:
    plant(house)
    house.command("scan")
    (one,) = json.loads(house.command("findings", "list", "--rule", "B006", "--json").stdout)["findings"]
    assert house.command("findings", "dismiss", one["id"], "-m", "callers rely on it").returncode == 0
    improve(house)
    assert findings(house)["B006", "shop/page.py"] == "dismissed"
    (fixer,) = house.rows("SELECT task FROM findings WHERE rule = 'F401' AND path = 'shop/page.py'")[0]
    house.git("checkout", "-q", "main-line")
    (house.top / "shop/page.py").write_text(FAULTY["shop/page.py"])
    house.git("commit", "-q", "-a", "-m", "Bring it back")
    house.git("checkout", "-q", "main")
    improve(house)
    (data,) = house.rows("SELECT data FROM findings WHERE rule = 'F401' AND path = 'shop/page.py'")[0]
    assert (json.loads(data)["returns"], json.loads(data)["fixed_by"]) == (1, fixer)
    assert findings(house)["F401", "shop/page.py"] == "fixed"
    assert findings(house)["B006", "shop/page.py"] == "dismissed"
    assert house.landed_on("main-line").count(f"{fixer}-2") == 1


def test_thousands_of_findings_bury_nobody_s_task(house: House) -> None:
    many = {f"part{number}/a.py": "import os\nimport re\n" for number in range(60)}
    plant(house, **many)
    with (house.top / "coordinator.toml").open("a") as settings:
        settings.write("max_open = 3\n")
    house.git("commit", "-q", "-a", "-m", "Few at a time")
    house.command("scan")
    house.task("mine", "echo mine > MINE.txt")
    daemon = house.start("run", "--self-improve", "--agents", "1", "--json")
    most = 0
    try:
        assert daemon.stdout is not None
        for line in daemon.stdout:
            event = json.loads(line) if line.startswith("{") else {}
            waiting = [task for task, state in house.states().items() if task != "mine" and state not in _SETTLED]
            most = max(most, len(waiting))
            if event.get("kind") == "task_landed" and len(house.landed_on("main-line")) >= 4:
                break
    finally:
        daemon.terminate()
        daemon.communicate(timeout=60)
    assert "mine" in house.landed_on("main-line")[:2]  # one may have been under way
    assert 1 <= most <= 3


_SETTLED = {"completed", "failed", "cancelled", "rejected"}

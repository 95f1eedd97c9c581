"""The real Gemini CLI in a real daemon, through its gateway, against a local server of Google's shape."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.dialects import Refusal, ScriptedModels, Shell, Text
from tests.real.programs import path_with
from tests.walks.house import ENVIRONMENT, House, build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.dialects import Line

SECRET = "AIza-provider-secret-0123456789"
MODEL = "gemini-2.5-pro"
TURN = (
    "sed -i 's/number \\* 2/2 * number/' calc.py && python3 -m unittest -q && "
    "git commit -qam 'Turn the factors around' && env"
)
TASK = (
    f'[[tasks]]\nid = "turn"\nrole = "gemini"\nmodel = "{MODEL}"\nprompt = "Turn the factors around."\ntimeout = 90\n'
)


def run(tmp_path: Path, *script: Line, task: str = TASK, settings: str = "") -> tuple[House, ScriptedModels, str]:
    """A daemon's run over one task of role ``gemini``, as its card is."""
    search, house = path_with("gemini"), build(tmp_path / "house")
    (house.top / "tasks").mkdir()
    (house.top / "tasks" / "turn.toml").write_text(task)
    if settings:
        with (house.top / "coordinator.toml").open("a") as file:
            file.write(settings)
    with ScriptedModels(*script) as models:
        keys = {"GEMINI_API_KEY": SECRET, "GOOGLE_GEMINI_BASE_URL": models.url}
        argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), "run", "--until-idle"]
        environment = {**ENVIRONMENT, **keys, "PATH": search}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=110, check=False)
    return house, models, done.stdout + done.stderr


def attempt(house: House, name: str) -> str:
    return (house.top / ".coordinator" / "attempts" / "turn" / "1" / name).read_text()


def calls(house: House) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", "coordinator", "-C", str(house.top), "calls", "--json"]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_task_lands_and_its_calls_are_seen_priced_and_made_with_a_key_that_no_agent_has(tmp_path: Path) -> None:
    house, models, said = run(tmp_path, Shell(TURN), Text("Turned."))
    assert house.landed() == ["turn"], said
    assert "2 * number" in house.show("calc.py")
    assert {one.key for one in models.asked} == {SECRET}
    assert {one.path for one in models.asked} == {f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"}
    order, transcript = json.loads(attempt(house, "order.json")), attempt(house, "transcript.jsonl")
    assert f"GEMINI_API_KEY={order['key']}" in transcript
    assert SECRET not in transcript + attempt(house, "agent.log")
    assert order["key"] not in json.dumps([[one.path, *one.headers.values()] for one in models.asked])
    seen = calls(house)
    assert len(seen) == len(models.asked) == 2
    assert {(one["task"], one["model"], one["upstream"], one["ending"]) for one in seen} == {
        ("turn", MODEL, "google", "served")
    }
    assert all(one["priced"] for one in seen)
    spent = sum(one["cost_usd"] for one in seen)
    assert spent == pytest.approx(2 * (100 * 1.25 + 10 * 10.0) / 1e6)  # by the list that ships
    assert house.rows("SELECT ending FROM attempts") == [("landed",)]


def test_a_budget_that_is_used_up_ends_the_task_as_that(tmp_path: Path) -> None:
    house, models, said = run(tmp_path, Text("never asked"), task=TASK + "budget_usd = 0.00001\n")
    assert models.asked == [], said
    assert house.rows("SELECT ending FROM attempts") == [("over_budget",)], said


def test_a_key_that_google_refuses_is_a_missing_login(tmp_path: Path) -> None:
    house, models, said = run(tmp_path, Refusal(401, "API key not valid", "UNAUTHENTICATED"))
    assert "login_missing" in attempt(house, "result.json"), said
    assert "calls go through its gateway" in attempt(house, "result.json")
    assert 1 <= len(models.asked) <= 3

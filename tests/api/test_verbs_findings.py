"""The verbs on real findings of a real ruff in a real repository, asked as the command line does without a daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from coordinator import cli
from coordinator.checks.adapter import accept_by_look
from coordinator.domain.finding import Finding, Fix, Place, identified
from coordinator.policy.grouping import GroupKey, TaskGroup
from tests.improve.rig import FAULTS, commit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def shop(repository: Path) -> Path:
    commit(repository, dict(FAULTS))
    return repository


@pytest.fixture
def ask(shop: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def asked(*words: str, text: bool = False) -> tuple[int, Any]:
        code = cli.main(["-C", str(shop), *([] if text else ["--json"]), *words])
        out = capsys.readouterr().out
        return code, out if text else json.loads(out)

    return asked


def test_a_scan_is_told_left_out_when_nothing_changed_and_made_when_asked_for(ask: Ask, shop: Path) -> None:
    code, data = ask("scan")
    assert (code, [(one["tool"], one["total"], one["opened"]) for one in data["scans"]]) == (0, [("ruff", 6, 6)])
    assert ask("scan")[1]["scans"][0]["unchanged"]
    assert not ask("scan", "--fresh")[1]["scans"][0]["unchanged"]
    assert "nothing that it reads has changed" in ask("scan", text=True)[1]
    code, data = ask("scan", "sonar")
    assert (code, data["scans"][0]["status"]) == (1, "unavailable")
    assert "sonar: not scanned (unavailable)" in ask("scan", "sonar", text=True)[1]
    assert "ruff-format: not called for" in ask("scan", "ruff-format", text=True)[1]
    (shop / "coordinator.toml").write_text('[discovery]\ntools = ["ruff-format"]\n')
    assert [(one["tool"], one["status"]) for one in ask("scan")[1]["scans"]] == [("ruff-format", "scanned")]


def test_findings_are_listed_the_worst_first_and_by_what_they_have_in_common(ask: Ask) -> None:
    assert "no such findings" in ask("findings", "list", text=True)[1]
    ask("scan")
    data = ask("findings", "list")[1]
    assert data["total"] == 6
    assert [one["severity"] for one in data["findings"]] == ["medium"] * 2 + ["low"] * 4
    assert [one["path"] for one in ask("findings", "list", "--rule", "F541")[1]["findings"]] == ["shop/till.py"]
    assert ask("findings", "list", "--path", "shop/web/*")[1]["total"] == 2
    assert ask("findings", "list", "--tool", "mypy")[1]["total"] == 0
    assert len(ask("findings", "list", "-n", "2")[1]["findings"]) == 2
    text = ask("findings", "list", "-n", "2", text=True)[1]
    assert "and 4 more" in text
    assert "shop/web/page.py" in text
    assert ask("findings", "list", "--state", "nonsense")[0] == 2


def test_one_finding_is_shown_whole_and_named_by_how_its_id_begins(ask: Ask) -> None:
    ask("scan")
    (one,) = ask("findings", "list", "--rule", "B006")[1]["findings"]
    (shown,) = ask("findings", "show", one["fingerprint"][:6].upper())[1]["findings"]
    assert shown == one
    text = ask("findings", "show", one["id"], text=True)[1]
    for part in ("B006", one["fingerprint"], "shop/web/page.py:4", "def page(tags=[]):", "https://docs.astral.sh"):
        assert part in text
    assert ask("findings", "show", "zzz")[0] == 2
    assert ask("findings", "show", "")[0] == 2


def test_a_dismissal_needs_a_reason_and_a_name_and_lasts_until_it_is_undone(ask: Ask) -> None:
    ask("scan")
    one = ask("findings", "list", "--rule", "F541")[1]["findings"][0]
    assert ask("findings", "dismiss", one["id"])[0] == 2
    assert ask("findings", "dismiss", "-m", "why")[0] == 2
    assert ask("findings", "dismiss", one["id"], "--rule", "F541", "-m", "why")[0] == 2
    assert ask("findings", "dismiss", one["id"], "zzz", "-m", "why")[0] == 2
    assert ask("findings", "list", "--state", "dismissed")[1]["total"] == 0
    assert ask("findings", "dismiss", one["id"], "-m", "as it is")[1]["changed"] == 1
    assert ask("findings", "dismiss", one["id"], "-m", "as it is")[0] == 1
    ask("scan", "--fresh")
    assert [row["reason"] for row in ask("findings", "list", "--state", "dismissed")[1]["findings"]] == ["as it is"]
    assert ask("findings", "list")[1]["total"] == 5
    assert "1 finding reopened" in ask("findings", "reopen", one["id"], text=True)[1]
    assert ask("findings", "list")[1]["total"] == 6
    assert ask("findings", "dismiss", "--rule", "F401", "--path", "shop/s*", "-m", "both")[1]["changed"] == 2
    assert ask("findings", "reopen", "--tool", "ruff")[1]["changed"] == 2
    assert ask("findings", "reopen", "--tool", "ruff")[0] == 1


def test_stats_count_what_became_of_findings_day_by_day(ask: Ask, shop: Path) -> None:
    ask("scan")
    commit(shop, {"shop/till.py": "x = 1\n"})
    subprocess.run(["git", "-C", shop, "branch", "-f", "coordinator/main", "main"], check=True)
    ask("scan")
    ask("findings", "dismiss", "--rule", "B006", "-m", "known")
    data = ask("findings", "stats")[1]
    (day,) = data["days"]
    assert (day["found"], day["fixed"], day["dismissed"], day["reopened"]) == (6, 2, 1, 0)
    assert (data["open"], data["by_severity"]) == (3, {"low": 3})
    assert data["rules"] == [["ruff F401", 3]]
    assert 0 <= data["median_age_s"] <= data["oldest_s"] < 600
    assert 0 <= data["median_fixed_after_s"] < 600
    text = ask("findings", "stats", text=True)[1]
    assert "3 open" in text
    assert "1 dismissed" in text
    assert "FOUND" in text


def test_the_sarif_file_says_what_is_open_dismissed_and_could_not_be_looked_at(
    ask: Ask, shop: Path, tmp_path: Path
) -> None:
    ask("scan")
    ask("findings", "dismiss", "--rule", "F541", "-m", "as it is")
    file = tmp_path / "out.sarif"
    ask("scan", "ruff", "sonar", "--sarif", str(file))
    document = json.loads(file.read_text())
    assert document["version"] == "2.1.0"
    runs = {run["tool"]["driver"]["name"]: run for run in document["runs"]}
    assert not runs["sonar"]["invocations"][0]["executionSuccessful"]
    assert "cannot scan" in runs["sonar"]["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    results = runs["ruff"]["results"]
    assert (len(results), runs["ruff"]["invocations"][0]["executionSuccessful"]) == (6, True)
    (dismissed,) = [one for one in results if "suppressions" in one]
    assert (dismissed["ruleId"], dismissed["suppressions"][0]["justification"]) == ("F541", "as it is")
    place = dismissed["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("shop/till.py", 5)
    assert {rule["id"] for rule in runs["ruff"]["tool"]["driver"]["rules"]} == {"B006", "F401", "F541"}


def test_a_look_is_at_the_files_as_they_are_and_leaves_nothing_behind(ask: Ask, shop: Path) -> None:
    (shop / "shop/dirty.py").write_text("import os\n")
    code, data = ask("look", "ruff", "--rule", "F401", "--path", "shop/dirty.py")
    assert (code, [one["line"] for one in data["findings"]]) == (1, [1])
    assert not (shop / ".coordinator").exists()
    assert ask("look", "ruff", "--rule", "F401", "--path", "shop/dirty.py", "--fix", "unsafe")[0] == 0
    (shop / "shop/dirty.py").write_text("def f():\n    import os\n\n\ndef g():\n    import os\n")
    spare = f"--spare={data['findings'][0]['id']}"
    for spared, left in (((), 2), ((spare,), 1), ((spare, spare), 0)):
        code, data = ask("look", "ruff", "--rule", "F401", "--path", "shop/dirty.py", *spared)
        assert (code, len(data["findings"])) == (int(left > 0), left)
    assert ask("look", "ruff", "--rule", "F811")[0] == 0
    assert "ruff finds nothing" in ask("look", "ruff", "--rule", "F811", text=True)[1]
    assert ask("look", "sonar")[0] == 2
    assert ask("look", "ruff", "--fix", "glue")[0] == 2


def test_what_cannot_be_read_is_never_clean_and_what_is_not_here_is_no_fault_of_the_tree(ask: Ask, shop: Path) -> None:
    (shop / "shop/till.py").write_text("def broken(:\n")
    code, data = ask("look", "ruff", "--rule", "F401", "--path", "shop/till.py")
    assert (code, data["hidden"]) == (1, ["shop/till.py"])
    assert (
        "could not look into shop/till.py"
        in ask("look", "ruff", "--path", "shop/till.py", "--rule", "F401", text=True)[1]
    )
    (shop / "ruff.toml").write_text("no-such-option = 1\n")
    assert ask("look", "ruff", "--rule", "F401")[0] == 1
    (shop / "ruff.toml").write_text('required-version = "==0.0.1"\n')
    code, text = ask("look", "ruff", "--rule", "F401", text=True)
    assert code == 126
    assert "could not look (unavailable)" in text


def run_line(line: str, folder: Path, **env: str) -> int:
    done = subprocess.run(line, shell=True, cwd=folder, env={**os.environ, **env}, capture_output=True, check=False)
    return done.returncode


def test_the_line_of_a_group_asks_our_own_adapter_and_not_what_the_tree_calls_so(shop: Path) -> None:
    (found,) = identified(
        [
            Finding(
                category="dead code",
                fix=Fix.SAFE,
                message="`json` imported but unused",
                places=(Place(path="shop/till.py", line=1),),
                rule="F401",
                tool="ruff",
            )
        ]
    )
    key = GroupKey.of(found, {"ruff": {Fix.SAFE}})
    values: dict[str, Any] = {"findings": (found,), "id": "x", "key": key, "priority": 50, "role": "autofix"}
    line = accept_by_look(TaskGroup(**values, whole=True))
    assert "--fix" not in line
    assert accept_by_look(TaskGroup(**values, whole=False)).endswith("--path=shop/till.py --fix=safe")
    (shop / "coordinator").mkdir()
    (shop / "coordinator/__init__.py").write_text("")
    (shop / "coordinator/__main__.py").write_text("raise SystemExit(0)\n")
    assert run_line(line, shop, PYTHONPATH=str(shop)) == 1
    (shop / "shop/till.py").write_text("x = 1\n")
    assert run_line(line, shop, PYTHONPATH=str(shop)) == 0
    assert sys.executable in line

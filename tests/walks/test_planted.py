"""Fixture repositories with planted findings, and the real tools: all are found, grouped as stated, and nothing else is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.finding import ScanStatus
from coordinator.domain.settings import ToolSettings
from coordinator.domain.task import TaskState
from tests.checks.crate_registry import advise, crate_registry
from tests.checks.npm_registry import npm_registry
from tests.checks.rust_rig import needs, rust
from tests.checks.vulnerability_service import vulnerability_service
from tests.improve.rig import git
from tests.walks.fixture import PLANTED, Fixture, planted, shifted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["rust"]

CRITICAL = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"
FIXTURES = sorted(path.parent.name for path in PLANTED.glob("*/planted.toml"))
LEAST = 40

BAD = {
    "jinja2": [("PYSEC-2019-217", ("CVE-2019-10906",), "0", ("2.10.1",)), ("PYSEC-2021-66", (), "0", ("2.11.3",))],
    "hopeless": [("PYSEC-2020-1", (), "0", ())],
    "urllib3": [("PYSEC-2019-132", (), "0", ("1.24.2",))],
}
REPORT = {
    "version": "2.1.0",
    "runs": [
        {
            "tool": {"driver": {"name": "secrets"}},
            "results": [
                {
                    "ruleId": rule,
                    "level": "error",
                    "message": {"text": f"{rule} in the open"},
                    "locations": [
                        {
                            "physicalLocation": {
                                "artifactLocation": {"uri": "src/stock/list.txt"},
                                "region": {"startLine": line, "snippet": {"text": quoted}},
                            }
                        }
                    ],
                }
                for rule, line, quoted in (
                    ("password", 3, 'password = "swordfish"'),
                    ("token", 4, 'token = "pass along"'),
                )
            ],
        }
    ],
}
"""Of yesterday, as it were: it is no part of the tree."""


def test_the_table_is_as_long_as_is_claimed() -> None:
    assert sum(len(planted(name)["findings"]) for name in FIXTURES) >= LEAST


@pytest.fixture(params=FIXTURES)
def fixture(
    request: pytest.FixtureRequest, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fixture]:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    if request.param == "rust":
        cargo_home = request.getfixturevalue("rust")
        needs("cargo", "clippy", "--version")
        needs("cargo-audit", "--version")
    log = tmp_path / "yesterday.sarif"
    log.write_text(json.dumps(REPORT))
    database = tmp_path / "database"
    advise(database, "tally", "RUSTSEC-2021-0001", patched=(">= 1.0.4",), cvss=CRITICAL)
    advise(database, "ledge", "RUSTSEC-2022-0002", informational="unmaintained")
    with vulnerability_service() as service, npm_registry() as registry, crate_registry() as crates:
        service.bad = dict(BAD)
        crates.versions["ledge"] = ("0.3.0",)
        if request.param == "rust":
            crates.use(cargo_home)
        tables = (
            ToolSettings(name="pip-audit", arguments=service.arguments),
            ToolSettings(name="npm-audit", arguments=registry.arguments),
            ToolSettings(name="cargo-audit", arguments=("--db", str(database), "--no-fetch", "--no-yanked")),
            ToolSettings(name="sarif", commands=("python3 lint.py",)),
            ToolSettings(name="sarif-file", files=(str(log),)),
            ToolSettings(name="pytest", env=("PYTEST_DISABLE_PLUGIN_AUTOLOAD",)),
        )
        made = Fixture(request.param, repository, settings={one.name: one for one in tables})
        yield made
        made.rig.store.close()


async def test_all_that_is_planted_is_found_and_grouped_and_stays_the_same_whatever_moves(fixture: Fixture) -> None:
    reports = await fixture.scan()
    assert {tool: report.status for tool, report in reports.items()} == dict.fromkeys(
        fixture.tools, ScanStatus.SCANNED
    ), {tool: report.reason for tool, report in reports.items()}
    assert fixture.found() == fixture.findings
    await fixture.scan()  # tasks that the ledger has not taken over yet are none the less written
    before, marks = fixture.world(), fixture.marks()
    for _ in range(98):
        await fixture.scan()
    assert fixture.world() == before
    for _ in range(2):
        assert not any(report.unchanged for report in (await fixture.scan(fresh=True)).values())
    assert fixture.world() == before
    for seed in range(2):
        for tool in fixture.tools:
            fixture.shuffle(tool, seed)
        reports = await fixture.scan()
        assert not any(report.unchanged for report in reports.values())
        assert {report.status for report in reports.values()} == {ScanStatus.SCANNED}, reports
        assert fixture.world() == before
    for tool in fixture.tools:
        fixture.give_back(tool)
    await fixture.scan()
    assert fixture.world() == before
    fixture.edit(shifted)
    reports = await fixture.scan()
    assert sum(report.opened + report.closed for report in reports.values()) == 0
    assert fixture.marks() == marks
    for old, new in fixture.renamed.items():
        (fixture.repository / new).parent.mkdir(exist_ok=True)
        git(fixture.repository, "mv", old, new)
    git(fixture.repository, "commit", "--quiet", "-m", "Rename")
    reports = await fixture.scan()
    assert sum(report.opened + report.closed for report in reports.values()) == 0
    assert sorted(fixture.marks().values()) == sorted(marks.values())
    assert {str(row["path"]) for row in fixture.rig.rows()}.isdisjoint(fixture.renamed)


async def test_what_is_fixed_is_closed_what_returns_is_a_regression_and_a_dismissal_stays(fixture: Fixture) -> None:
    await fixture.scan()
    dismissed = {str(row["tool"]): str(row["fingerprint"]) for row in fixture.rig.rows()}
    assert await fixture.rig.discovery.dismiss(dismissed.values(), "a fixture") == len(fixture.tools)
    await fixture.scan(fresh=True)
    assert _states(fixture, dismissed.values()) == {"dismissed"}
    others = fixture.marks().keys() - set(dismissed.values())
    tasks = {str(row["fingerprint"]): str(row["task"]) for row in fixture.rig.rows()}
    for task in set(tasks.values()) - {""}:
        fixture.rig.set_state(task, TaskState.COMPLETED)
    fixture.mend()
    await fixture.scan()
    assert _states(fixture, others) <= {"fixed"}
    assert _states(fixture, dismissed.values()) == {"dismissed"}
    assert fixture.rig.files() == {}
    git(fixture.repository, "revert", "--no-edit", "HEAD")
    reports = await fixture.scan()
    assert sum(report.reopened for report in reports.values()) == len(others)
    assert _states(fixture, dismissed.values()) == {"dismissed"}
    texts = fixture.rig.files()
    for row in fixture.rig.rows():
        if row["fingerprint"] in others:
            told = json.loads(str(row["data"]))
            assert (told["returns"], told["fixed_by"]) == (1, tasks[str(row["fingerprint"])])
            assert not row["task"] or "is back" in texts[str(row["task"])]
    assert all(" again " in text.partition("prompt")[0] for text in texts.values())


async def test_a_tool_that_is_taken_away_is_not_scanned_and_closes_nothing(fixture: Fixture) -> None:
    await fixture.scan()
    before = fixture.world()
    for tool in fixture.tools:
        fixture.take_away(tool)
    fixture.mend()
    for _ in range(2):
        reports = await fixture.scan()
        assert {report.status for report in reports.values()} == {ScanStatus.UNAVAILABLE}
        assert all("is no program" in report.reason and report.remedy for report in reports.values())
        assert fixture.world() == before
    for tool in fixture.tools:
        fixture.give_back(tool)
    await fixture.scan()
    assert set(fixture.marks().values()) == {"fixed"}


def _states(fixture: Fixture, marks: object) -> set[str]:
    known = fixture.marks()
    return {known[mark] for mark in marks}  # type: ignore[attr-defined]

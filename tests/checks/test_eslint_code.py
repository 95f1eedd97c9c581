"""The real ``eslint``, from npm, as a discovery tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import Printed
from coordinator.checks.eslint_code import Eslint, understood_eslint
from coordinator.checks.locate import locate
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity
from coordinator.domain.settings import ToolSettings
from tests.checks.eslint_program import install_eslint
from tests.checks.hostile import spoilt
from tests.checks.rig import files_of, order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = 'export default [{ rules: { "no-var": "error", "no-unused-vars": "warn" } }];\n'
FAULTY = "var a = 1;\nexport default a;\nconst b = 2;\n"


@pytest.fixture(scope="module")
def eslint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_eslint(tmp_path_factory.mktemp("eslint"))


async def scan(tree: Path, scratch: Path, program: Path, **more: Any) -> ScanReport:
    return await Eslint().scan(order_for(Eslint(), tree, scratch, program=program, **more))


async def test_faults_have_place_rule_and_evidence_and_the_tree_is_only_read(tmp_path: Path, eslint: Path) -> None:
    tree = write_tree(tmp_path / "tree", **{"eslint.config.mjs": CONFIGURATION, "src/a.js": FAULTY})
    report = await scan(tree, tmp_path / "1", eslint)
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("no-var", "src/a.js", 1), ("no-unused-vars", "src/a.js", 3)]
    first, second = report.findings
    assert (first.evidence, first.fix, first.severity) == ("var a = 1;", Fix.UNSAFE, Severity.MEDIUM)
    assert (second.fix, second.severity, second.suggestion) == (Fix.NONE, Severity.LOW, "Remove unused variable 'b'.")
    assert first.links == ("https://eslint.org/docs/latest/rules/no-var",)
    assert sorted(path.name for path in tree.rglob("*")) == ["a.js", "eslint.config.mjs", "src"]
    (tree / "src/a.js").write_text("\n\n" + FAULTY)
    moved = await scan(tree, tmp_path / "2", eslint)
    assert [one.fingerprint for one in moved.findings] == [one.fingerprint for one in report.findings]


async def test_a_file_that_cannot_be_parsed_was_not_looked_at(tmp_path: Path, eslint: Path) -> None:
    tree = write_tree(tmp_path / "tree", **{"eslint.config.mjs": CONFIGURATION, "a.js": "let x = ;\n", "b.js": FAULTY})
    report = await scan(tree, tmp_path / "1", eslint)
    assert (report.status, report.unread) == (ScanStatus.SCANNED, ("a.js",))
    assert told(report)[0] == ("syntax", "a.js", 1)
    assert len(report.findings) == 3


async def test_a_configuration_that_cannot_be_is_broken(tmp_path: Path, eslint: Path) -> None:
    tree = write_tree(tmp_path / "tree", **{"eslint.config.mjs": 'import "nowhere-at-all";\n', "a.js": FAULTY})
    report = await scan(tree, tmp_path / "1", eslint)
    assert (report.status, "nowhere-at-all" in report.reason) == (ScanStatus.BROKEN, True)


def test_one_from_inside_the_project_is_run_only_where_that_is_allowed(tmp_path: Path, eslint: Path) -> None:
    project = write_tree(tmp_path / "project", **{"eslint.config.mjs": CONFIGURATION})
    (project / "node_modules").symlink_to(eslint.parents[1])
    refused = locate(Eslint(), ToolSettings(name="eslint"), project)
    assert refused.program is None or project not in refused.program.parents
    assert locate(Eslint(), ToolSettings(name="eslint", inside=True), project).program is not None


@pytest.mark.parametrize(
    "script", ["exit 0", "exit 1", "exit 2", "echo '['; exit 1", "echo '[]'; exit 1", "kill -9 $$"]
)
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "eslint"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", **{"a.js": FAULTY}), tmp_path / "s", fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


@pytest.mark.parametrize(
    ("files", "called"),
    [
        ({"a.js": FAULTY}, False),
        ({"eslint.config.mjs": ""}, True),
        ({".eslintrc.json": "{}"}, True),
        ({"package.json": '{"eslintConfig": {}}'}, True),
    ],
)
def test_it_is_called_for_by_a_configuration(tmp_path: Path, files: dict[str, str], called: bool) -> None:
    assert (not Eslint().uncalled(files_of(write_tree(tmp_path, **files)), named=True)) is called


HONEST = [
    {
        "filePath": "/tree/a.js",
        "messages": [
            {"ruleId": "no-var", "severity": 2, "message": "m", "line": 1, "column": 1, "fix": {"range": [0, 1], "text": ""}},
            {"ruleId": None, "fatal": True, "severity": 2, "message": "m", "line": 1, "column": 9},
            {"ruleId": "x/y", "severity": 1, "message": "m", "line": 3, "column": 1, "suggestions": [{"desc": "d"}]},
        ],
    }
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("report")
    (folder / "out").write_bytes(raw)
    order = order_for(Eslint(), folder, folder / "s", program=folder)
    report = understood_eslint(order, Printed(out=folder / "out", ran=ToolRun(code=1, output="")))
    assert report.status in {ScanStatus.SCANNED, ScanStatus.BROKEN}
    assert bool(report.reason) is (report.status is ScanStatus.BROKEN)
    assert not any("root:" in one.evidence for one in report.findings)

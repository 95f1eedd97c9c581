"""SARIF of a real tool (ruff), of hand-made logs, and of nobody honest."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import UNREADABLE, Printed, SourceLines
from coordinator.checks.sarif_report import SarifReader
from coordinator.checks.sarif_tools import SarifCommands, SarifFiles, understood_sarif
from coordinator.checks.tool import ToolRun, find_tool
from coordinator.domain.check import BrokenBy
from coordinator.domain.finding import Finding, Fix, ScanReport, ScanStatus, Severity
from coordinator.policy.grouping import GroupKey, TaskGroup
from tests.checks.hostile import spoilt
from tests.checks.rig import order_for, told, write_tree

if TYPE_CHECKING:
    from pathlib import Path


def result(uri: str = "a.py", line: int = 1, **more: Any) -> dict[str, Any]:
    region = {"startLine": line, "startColumn": 2, **more.pop("region", {})}
    where = {"artifactLocation": {"uri": uri, **more.pop("artifact", {})}, "region": region}
    return {"ruleId": "R1", "message": {"text": "bad"}, "locations": [{"physicalLocation": where}], **more}


def log(*results: dict[str, Any], rules: Any = (), name: str = "lint", **run: Any) -> dict[str, Any]:
    driver = {"name": name, "rules": list(rules)}
    return {"version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": list(results), **run}]}


def read(tree: Path, document: Any, scratch: Path, *, quoted: bool = False) -> list[Finding]:
    order = order_for(SarifCommands(), tree, scratch)
    reader = SarifReader(lines=SourceLines(tree), quoted=quoted, relative=order.relative, tool="sarif")
    return list(reader.findings(document))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", a="import os\nx = 1\n", **{"dir/a b.py": "y = 2\n"})


async def scan(tree: Path, scratch: Path, *commands: str, **more: Any) -> ScanReport:
    return await SarifCommands().scan(order_for(SarifCommands(), tree, scratch, commands=commands, **more))


async def test_a_command_that_prints_sarif_is_read_whatever_it_exits_with(tree: Path, tmp_path: Path) -> None:
    ruff = find_tool("ruff", tree=tree)
    line = f"{ruff} check --no-cache --isolated --select F --output-format sarif ."
    report = await scan(tree, tmp_path / "1", line, f"{line} --exit-zero")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("ruff/F401", "a.py", 1)]  # told twice, by two commands
    (found,) = report.findings
    assert (found.severity, found.evidence, found.fix) == (Severity.HIGH, "import os", Fix.NONE)
    assert found.links == ("https://docs.astral.sh/ruff/rules/unused-import",)
    assert found.suggestion.startswith("Remove unused import")
    (tree / "a.py").write_text("\n\nimport os\n")
    moved = await scan(tree, tmp_path / "2", line)
    assert [one.fingerprint for one in moved.findings] == [found.fingerprint]
    assert moved.findings[0].place.line == 3


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 0", ScanStatus.BROKEN),
        ("no-such-program-at-all", ScanStatus.UNAVAILABLE),
        ("echo '{'", ScanStatus.BROKEN),
        ("echo '{}'", ScanStatus.BROKEN),
        ("echo '[]'", ScanStatus.BROKEN),
        ("echo '{\"runs\": 3}'", ScanStatus.BROKEN),
        ("echo '{\"runs\": []}'; exit 1", ScanStatus.SCANNED),
        ("kill -9 $$", ScanStatus.BROKEN),
        ("sleep 60", ScanStatus.BROKEN),
    ],
)
async def test_what_is_no_sarif_is_broken(tree: Path, tmp_path: Path, command: str, status: ScanStatus) -> None:
    report = await scan(tree, tmp_path / "s", command, timeout_s=2.0)
    assert report.status is status
    assert bool(report.reason) is (status is not ScanStatus.SCANNED)
    good = f"echo '{json.dumps(log(result()))}'"
    report = await scan(tree, tmp_path / "t", good, command, timeout_s=2.0)
    assert (report.status, bool(report.findings)) == (status, status is ScanStatus.SCANNED)


def test_a_run_that_says_that_it_failed_is_no_clean_one(tree: Path, tmp_path: Path) -> None:
    failed = {"executionSuccessful": False, "toolExecutionNotifications": [{"message": {"text": "no rules"}}]}
    with pytest.raises(UNREADABLE, match="its run failed: no rules"):
        read(tree, log(invocations=[failed]), tmp_path / "s")
    assert read(tree, log(result(), invocations=[{"executionSuccessful": True}]), tmp_path / "s")


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        ({"kind": "pass"}, False),
        ({"kind": "fail"}, True),
        ({"baselineState": "absent"}, False),
        ({"baselineState": "unchanged"}, True),
        ({"suppressions": []}, True),
        ({"suppressions": [{"kind": "inSource"}]}, False),
        ({"suppressions": [{"kind": "external", "status": "rejected"}]}, True),
        ({"locations": []}, False),
    ],
)
def test_what_the_tool_itself_leaves_out_is_left_out(tree: Path, tmp_path: Path, more: Any, counts: bool) -> None:
    assert bool(read(tree, log({**result(), **more}), tmp_path / "s")) is counts


@pytest.mark.parametrize(
    ("uri", "artifact", "path"),
    [
        ("a.py", {}, "a.py"),
        ("./dir/../a.py", {}, "a.py"),
        ("dir/a%20b.py", {}, "dir/a b.py"),
        ("file://{tree}/a.py", {}, "a.py"),
        ("file:{tree}/a.py", {}, "a.py"),
        ("{tree}/a.py", {}, "a.py"),
        ("a.py", {"uriBaseId": "SRCROOT"}, "a.py"),
        ("a b.py", {"uriBaseId": "DIR"}, "dir/a b.py"),
        ("", {"index": 0}, "dir/a b.py"),
        ("../a.py", {}, None),
        ("/etc/passwd", {}, None),
        ("https://a.example/a.py", {}, None),
        ("", {}, None),
    ],
)
def test_places_are_told_in_many_ways(tree: Path, tmp_path: Path, uri: str, artifact: Any, path: str | None) -> None:
    bases = {"DIR": {"uri": "dir/", "uriBaseId": "TOP"}, "TOP": {"uri": f"file://{tree}/"}}
    told = log(
        result(uri.format(tree=tree), artifact=artifact),
        originalUriBaseIds=bases,
        artifacts=[{"location": {"uri": "dir/a%20b.py"}}],
    )
    assert [one.place.path for one in read(tree, told, tmp_path / "s")] == ([path] if path else [])


def test_severity_is_that_of_the_result_of_the_rule_or_a_warning(tree: Path, tmp_path: Path) -> None:
    rules = [
        {"id": "R1", "defaultConfiguration": {"level": "note"}, "messageStrings": {"m": {"text": "{0} and {1}"}}},
        {"id": "R2", "properties": {"security-severity": "9.1"}},
    ]
    found = read(
        tree,
        log(
            result(),
            result(level="error"),
            result(ruleId="R3"),
            {**result(ruleIndex=1, message={"id": "m", "arguments": []}), "ruleId": None, "message": {"text": "x"}},
            result(message={"id": "m", "arguments": ["one", "two"]}),
            rules=rules,
        ),
        tmp_path / "s",
    )
    assert [one.severity for one in found[:4]] == [Severity.LOW, Severity.HIGH, Severity.MEDIUM, Severity.CRITICAL]
    assert (found[3].rule, found[3].cvss, found[3].category) == ("lint/R2", 9.1, "security")
    assert found[4].message == "one and two"


def test_a_message_that_grows_out_of_its_own_arguments_stays_small(tree: Path, tmp_path: Path) -> None:
    """Each of nineteen levels would make it a hundred times as long."""
    arguments = [f"{{{number}}}" * 100 for number in range(1, 20)]
    (found,) = read(tree, log(result(message={"text": "{0}", "arguments": arguments})), tmp_path / "s")
    assert found.message == "{1}" * 100
    (found,) = read(tree, log(result(message={"text": "{0} {7}" * 10**6, "arguments": ["x" * 10**6]})), tmp_path / "t")
    assert len(found.message) == 2000


async def test_what_is_printed_is_limited_so_that_reading_it_holds_nobody_up(tree: Path, tmp_path: Path) -> None:
    """Four times as many brackets took a minute and 6 GiB to be read."""
    report = await scan(tree, tmp_path / "s", "yes '[],' | head -c 100000000")
    assert (report.status, report.broken_by) == (ScanStatus.BROKEN, BrokenBy.TREE)
    assert "printed more than" in report.reason
    report = await scan(tree, tmp_path / "t", "exit 3")
    assert report.reason == "'exit 3' exited with 3 without a word"


def filed(tree: Path, scratch: Path, *names: str) -> Any:
    return order_for(SarifFiles(), tree, scratch, files=names)


async def test_a_file_is_read_and_what_it_quotes_must_still_be_there(tree: Path, tmp_path: Path) -> None:
    quote = {"snippet": {"text": "\n    x = 1\n"}}
    gone = {"snippet": {"text": "x = 7"}}
    (tmp_path / "scan.sarif").write_text(
        json.dumps(log(result(line=1, region=quote), result(line=2, region=gone), result(line=2)))
    )
    order = filed(tree, tmp_path / "1", str(tmp_path / "scan.sarif"))
    before = await SarifFiles().scan(order)
    assert before.status is ScanStatus.SCANNED, before.reason
    assert [(one.place.line, one.evidence) for one in before.findings] == [(1, "x = 1"), (2, "x = 1")]
    (tree / "a.py").write_text("x  =  2\n")
    after = await SarifFiles().scan(order)
    assert [one.fingerprint for one in after.findings] == [before.findings[1].fingerprint]


async def test_a_file_that_is_gone_or_damaged_closes_nothing(tree: Path, tmp_path: Path) -> None:
    assert (await SarifFiles().scan(filed(tree, tmp_path / "1", "no.sarif"))).status is ScanStatus.UNAVAILABLE
    assert (await SarifFiles().scan(filed(tree, tmp_path / "2"))).status is ScanStatus.UNAVAILABLE
    assert (await scan(tree, tmp_path / "3")).status is ScanStatus.UNAVAILABLE
    (tree / "cut.sarif").write_text(json.dumps(log(result()))[:-3])
    assert (await SarifFiles().scan(filed(tree, tmp_path / "4", "cut.sarif"))).status is ScanStatus.BROKEN
    (tree / "bom.sarif").write_bytes(b"\xef\xbb\xbf" + json.dumps(log(result())).encode())
    assert told(await SarifFiles().scan(filed(tree, tmp_path / "5", "bom.sarif"))) == [("lint/R1", "a.py", 1)]


def test_a_change_is_judged_by_whether_the_quoted_lines_are_gone(tree: Path, tmp_path: Path) -> None:
    (tree / "a.py").write_text("it's = '--x'\ny = 1\n")
    findings = tuple(read(tree, log(result(line=1), result(line=2)), tmp_path / "s"))
    group = TaskGroup(
        findings=findings, id="x", key=GroupKey.of(findings[0], {}), priority=1, role="claude", whole=True
    )
    line = SarifFiles().accept(group, ())
    for text, code in (("it's = '--x'\ny = 1\n", 1), ("z\ny = 1\n", 1), ("it's = '--x'\n", 1), ("z\n", 0)):
        (tree / "a.py").write_text(text)
        assert subprocess.run(["sh", "-c", line], cwd=tree, check=False).returncode == code, text
    (tree / "a.py").unlink()
    assert subprocess.run(["sh", "-c", line], cwd=tree, check=False).returncode == 0


HONEST = log(
    result(fixes=[{"description": {"text": "do"}}], relatedLocations=[result()["locations"][0]]),
    result(ruleIndex=0, artifact={"uriBaseId": "TOP"}, region={"snippet": {"text": "import os"}}),
    rules=[
        {
            "id": "R1",
            "helpUri": "x",
            "properties": {"security-severity": "5.0"},
            "defaultConfiguration": {"level": "note"},
        }
    ],
    originalUriBaseIds={"TOP": {"uri": "dir/"}},
    invocations=[{"executionSuccessful": True}],
)


@settings(max_examples=300, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_log_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("log")
    (folder / "out").write_bytes(raw)
    order = order_for(SarifCommands(), folder, folder / "s")
    for quoted in (False, True):
        reader = SarifReader(lines=SourceLines(folder), quoted=quoted, relative=order.relative, tool="sarif")
        answer = understood_sarif(reader, Printed(out=folder / "out", ran=ToolRun(code=1, output="")), "x")
        if isinstance(answer, ScanReport):
            assert answer.status is ScanStatus.BROKEN
            assert answer.reason
        else:
            assert not any(one.place.path.startswith(("/", "../")) for one in answer)
            assert not any("root:" in one.evidence for one in answer)

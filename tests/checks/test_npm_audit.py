"""The real ``npm audit`` against a registry of our own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import Printed
from coordinator.checks.npm_audit import NpmAudit, understood_npm
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Fix, ScanReport, ScanStatus, Severity
from tests.checks.hostile import spoilt
from tests.checks.npm_registry import NpmRegistry, npm_registry
from tests.checks.rig import files_of, order_for, told, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def registry() -> Iterator[NpmRegistry]:
    with npm_registry() as server:
        yield server


def package(wanted: str = "4.17.4") -> dict[str, str]:
    manifest = {"name": "shop", "version": "1.0.0", "dependencies": {"lodash": wanted}}
    entries = {"": manifest, "node_modules/lodash": {"version": "4.17.4"}}
    lock = {"name": "shop", "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": entries}
    return {"package.json": json.dumps(manifest), "package-lock.json": json.dumps(lock, indent=2)}


async def scan(tree: Path, scratch: Path, registry: NpmRegistry, **more: Any) -> ScanReport:
    return await NpmAudit().scan(order_for(NpmAudit(), tree, scratch, arguments=registry.arguments, **more))


async def test_each_lock_file_s_vulnerabilities_are_found_and_nothing_is_written(
    tmp_path: Path, registry: NpmRegistry
) -> None:
    tree = write_tree(tmp_path / "tree", **package())
    write_tree(tree / "web", **package("^4.0.0"))
    report = await scan(tree, tmp_path / "1", registry)
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [
        ("GHSA-aaaa-bbbb-cccc", "package-lock.json", 14),
        ("GHSA-aaaa-bbbb-cccc", "web/package-lock.json", 14),
    ]
    top, web = report.findings
    assert (top.package, top.installed, top.severity, top.cvss) == ("lodash", "4.17.4", Severity.MEDIUM, 6.5)
    assert (top.fix, top.fix_version, top.scope, web.scope) == (Fix.NONE, "4.17.21", "", "web")
    assert top.suggestion.startswith("npm install lodash@4.17.21")
    assert web.suggestion == "npm audit fix --package-lock-only"
    assert top.message == "lodash 4.17.4 has a known vulnerability, GHSA-aaaa-bbbb-cccc: Prototype pollution"
    names = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*"))
    assert names == ["package-lock.json", "package.json", "web", "web/package-lock.json", "web/package.json"]
    registry.bad = {}
    report = await scan(tree, tmp_path / "2", registry)
    assert (report.status, report.findings) == (ScanStatus.SCANNED, ())


async def test_a_shrinkwrap_speaks_for_its_folder_and_older_lock_files_are_read(
    tmp_path: Path, registry: NpmRegistry
) -> None:
    texts = package()
    old = {
        "lodash": {"version": "4.17.4"},
        "other": {"version": "1.0.0", "dependencies": {"lodash": {"version": "4.17.3"}}},
    }
    first = {"name": "shop", "version": "1.0.0", "lockfileVersion": 1, "requires": True, "dependencies": old}
    tree = write_tree(tmp_path / "tree", **texts, **{"npm-shrinkwrap.json": texts["package-lock.json"]})
    write_tree(
        tree / "old", **{"package.json": texts["package.json"], "package-lock.json": json.dumps(first, indent=2)}
    )
    report = await scan(tree, tmp_path / "1", registry)
    assert [one.place.path for one in report.findings] == ["npm-shrinkwrap.json", "old/package-lock.json"]
    found = report.findings[1]
    assert (found.installed, found.place.line) == ("4.17.4", 0)  # two entries are called lodash
    del old["other"]
    (tree / "old/package-lock.json").write_text(json.dumps(first, indent=2))
    report = await scan(tree, tmp_path / "2", registry)
    assert report.findings[1].place.line == 7


async def test_a_registry_without_an_answer_makes_nothing_clean(tmp_path: Path, registry: NpmRegistry) -> None:
    tree = write_tree(tmp_path / "tree", **package())
    registry.endpoint = False
    report = await scan(tree, tmp_path / "1", registry)
    assert report.status is ScanStatus.UNAVAILABLE
    assert report.reason.startswith(
        "the registry has no audit endpoint, as many mirrors have none: 405 Method Not Allowed"
    )
    nowhere = ("--registry", "http://127.0.0.1:9/", "--fetch-retries", "0")
    report = await NpmAudit().scan(order_for(NpmAudit(), tree, tmp_path / "2", arguments=nowhere))
    assert report.status is ScanStatus.UNAVAILABLE
    (tree / "package-lock.json").write_text("{")
    assert (await scan(tree, tmp_path / "3", registry)).status is ScanStatus.BROKEN


@pytest.mark.parametrize("script", ["exit 0", "exit 1", "exit 7", "echo '{'; exit 1", "echo '{}'; exit 1", "kill -9 $$",
                                    "echo '{\"vulnerabilities\": {}}'; exit 1"])  # fmt: skip
async def test_what_nobody_can_read_is_broken(tmp_path: Path, registry: NpmRegistry, script: str) -> None:
    fake = tmp_path / "npm"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", **package()), tmp_path / "s", registry, program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


def test_it_is_called_for_by_a_lock_file(tmp_path: Path) -> None:
    assert NpmAudit().uncalled(files_of(write_tree(tmp_path / "1", **{"package.json": "{}"})), named=True)
    assert NpmAudit().uncalled(files_of(write_tree(tmp_path / "2", **package())), named=False) == ""


HONEST = {
    "auditReportVersion": 2,
    "vulnerabilities": {
        "lodash": {
            "name": "lodash",
            "via": [
                {"source": 1, "title": "t", "url": "u/GHSA-x", "severity": "high", "cvss": {"score": 5.0}},
                "minimist",
            ],
            "nodes": ["node_modules/lodash"],
            "fixAvailable": {"name": "lodash", "version": "4.17.21", "isSemVerMajor": False},
        }
    },
}


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = write_tree(tmp_path_factory.mktemp("report"), **package())
    (folder / "out").write_bytes(raw)
    answer = understood_npm(folder, "package-lock.json", Printed(out=folder / "out", ran=ToolRun(code=1, output="")))
    if isinstance(answer, ScanReport):
        assert answer.status in {ScanStatus.BROKEN, ScanStatus.UNAVAILABLE}
        assert answer.reason
    else:
        assert all(one.place.path == "package-lock.json" and isinstance(one.message, str) for one in answer)

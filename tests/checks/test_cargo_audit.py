"""The real cargo-audit with an advisory database of the test's own, and the real cargo against a registry of our own."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import FixResult, FixTask, Printed
from coordinator.checks.cargo_audit import CargoAudit, LockAnswer, understood_cargo_audit
from coordinator.checks.tool import ToolRun
from coordinator.domain.errors import ToolFailed
from coordinator.domain.finding import Finding, Fix, ScanReport, ScanStatus, Severity
from tests.checks.crate_registry import CrateRegistry, advise, crate_registry, lock_file
from tests.checks.hostile import spoilt
from tests.checks.rig import files_of, order_for, told, write_tree
from tests.checks.rust_rig import crate, needs, rust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["rust"]

CRITICAL = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    needs("cargo-audit", "--version")
    advise(tmp_path / "database", "tally", "RUSTSEC-2021-0001", patched=(">= 1.0.4",), cvss=CRITICAL)
    return tmp_path / "database"


@pytest.fixture
def registry(rust: Path) -> Iterator[CrateRegistry]:
    with crate_registry() as server:
        server.use(rust)
        yield server


def cargo(tree: Path, *words: str) -> None:
    subprocess.run(["cargo", *words], cwd=tree, check=True, capture_output=True)


def shop(**locked: str | tuple[str, ...]) -> dict[str, str]:
    asked = "\n".join(f'{name} = "1"' for name in locked)
    return {"Cargo.toml": crate(dependencies=asked), "Cargo.lock": lock_file(**locked), "src/lib.rs": ""}


async def scan(tree: Path, scratch: Path, database: Path, *more: str, **settings: Any) -> ScanReport:
    arguments = ("--db", str(database), "--no-fetch", "--no-yanked", *more)
    return await CargoAudit().scan(order_for(CargoAudit(), tree, scratch, **{"arguments": arguments, **settings}))


def of_rule(report: ScanReport) -> dict[str, Finding]:
    assert report.status is ScanStatus.SCANNED, report.reason
    return {one.rule: one for one in report.findings}


async def test_each_lock_file_s_advisories_are_found_and_nothing_is_written(tmp_path: Path, database: Path) -> None:
    advise(database, "tally", "RUSTSEC-2022-0002", informational="unmaintained")
    advise(database, "tally", "RUSTSEC-2023-0003", patched=(">= 2.0.0",), informational="unsound")
    tree = write_tree(tmp_path / "tree", **shop(tally="1.0.0"))
    write_tree(tree / "tools", **shop(tally="1.2.0"))
    report = await scan(tree, tmp_path / "1", database)
    assert sorted(told(report), key=lambda one: (one[1], one[0])) == [
        ("RUSTSEC-2021-0001", "Cargo.lock", 11),
        ("RUSTSEC-2022-0002", "Cargo.lock", 11),
        ("RUSTSEC-2023-0003", "Cargo.lock", 11),
        ("RUSTSEC-2022-0002", "tools/Cargo.lock", 11),
        ("RUSTSEC-2023-0003", "tools/Cargo.lock", 11),
    ]
    found = of_rule(report)
    bad, old, unsound = (found[f"RUSTSEC-{number}"] for number in ("2021-0001", "2022-0002", "2023-0003"))
    assert (bad.package, bad.installed, bad.severity, bad.cvss) == ("tally", "1.0.0", Severity.CRITICAL, 9.8)
    assert (bad.fix, bad.fix_version, bad.scope) == (Fix.VERSION, "1.0.4", "")
    assert bad.suggestion == "cargo update -p tally@1.0.0 --precise 1.0.4"
    assert bad.message == "tally 1.0.0 has a known vulnerability, RUSTSEC-2021-0001: It counts wrongly"
    assert bad.links[0] == "https://rustsec.org/advisories/RUSTSEC-2021-0001.html"
    assert (old.severity, old.category, old.fix, old.fix_version) == (Severity.LOW, "dependencies", Fix.NONE, "")
    assert (unsound.severity, unsound.category, unsound.fix) == (Severity.MEDIUM, "security", Fix.NONE)
    assert sorted(path.name for path in tree.iterdir()) == ["Cargo.lock", "Cargo.toml", "src", "tools"]


async def test_a_move_goes_past_what_the_next_version_has_of_its_own(tmp_path: Path, database: Path) -> None:
    """1.0.4 mends the first one and has the second, which 1.2.0 mends."""
    advise(database, "tally", "RUSTSEC-2022-0002", patched=("^1.2.0", "<1.0.4"))
    advise(database, "ledger", "RUSTSEC-2022-0003", patched=(">=2.0.0",))
    report = await scan(write_tree(tmp_path / "tree", **shop(tally="1.0.0", ledger="1.0.0")), tmp_path / "1", database)
    found = of_rule(report)
    assert (found["RUSTSEC-2021-0001"].fix, found["RUSTSEC-2021-0001"].fix_version) == (Fix.VERSION, "1.2.0")
    far = found["RUSTSEC-2022-0003"]
    assert (far.fix, far.fix_version, far.severity) == (Fix.NONE, "2.0.0", Severity.HIGH)
    assert far.suggestion == "ask for ledger 2.0.0 or later: what asks for it now does not admit that"


async def test_there_is_no_move_to_a_version_that_has_a_vulnerability_which_nothing_mends(
    tmp_path: Path, database: Path
) -> None:
    advise(database, "tally", "RUSTSEC-2022-0002", patched=("<1.0.4",))
    report = await scan(write_tree(tmp_path / "tree", **shop(tally="1.0.0")), tmp_path / "1", database)
    (found,) = of_rule(report).values()
    assert (found.fix, found.fix_version) == (Fix.NONE, "1.0.4")
    advise(database, "tally", "RUSTSEC-2022-0002")  # now the present version has it as well, so a move is no loss
    found = of_rule(await scan(tmp_path / "tree", tmp_path / "2", database))["RUSTSEC-2021-0001"]
    assert (found.fix, found.fix_version) == (Fix.VERSION, "1.0.4")


async def test_a_missing_empty_or_old_database_makes_nothing_clean(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    tree = write_tree(tmp_path / "tree", **shop(tally="1.0.0"))
    report = await scan(tree, tmp_path / "1", tmp_path / "nowhere")
    assert (report.status, "the advisory database cannot be used" in report.reason) == (ScanStatus.UNAVAILABLE, True)
    (tmp_path / "empty/crates").mkdir(parents=True)
    assert (await scan(tree, tmp_path / "2", tmp_path / "empty")).reason == "the advisory database is empty"
    fetching: dict[str, Any] = {"arguments": ("--no-yanked",), "env": ("HTTPS_PROXY",)}
    report = await scan(tree, tmp_path / "3", database, **fetching)
    assert (report.status, "there is none from before" in report.reason) == (ScanStatus.UNAVAILABLE, True)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home/advisory-db").symlink_to(database)
    assert told(await scan(tree, tmp_path / "4", database, **fetching)) == [("RUSTSEC-2021-0001", "Cargo.lock", 11)]
    old = time.time() - 100 * 86400
    os.utime(database / "crates", (old, old))
    report = await scan(tree, tmp_path / "5", database, **fetching)
    assert (report.status, "100 days old" in report.reason) == (ScanStatus.UNAVAILABLE, True)


async def test_what_was_yanked_stays_so_while_nobody_can_be_asked(
    tmp_path: Path, database: Path, rust: Path, registry: CrateRegistry
) -> None:
    registry.versions["ledger"] = ("1.0.0", "1.0.1")
    registry.yanked.add("ledger 1.0.0")
    tree = write_tree(tmp_path / "tree", **shop(ledger="1.0.0"))
    cargo(tree, "fetch")
    arguments = ("--db", str(database), "--no-fetch")
    report = await scan(tree, tmp_path / "1", database, arguments=arguments)
    (found,) = of_rule(report).values()
    assert (found.rule, found.severity, found.fix, found.advisories) == ("yanked", Severity.LOW, Fix.NONE, ())
    assert found.suggestion == "cargo update -p ledger@1.0.0"
    (rust / "registry").rename(tmp_path / "gone")
    again = await scan(tree, tmp_path / "2", database, arguments=arguments)
    assert again.findings == report.findings
    write_tree(tree, **shop(ledger="1.0.1"))
    assert of_rule(await scan(tree, tmp_path / "3", database, arguments=arguments)) == {}


async def test_a_lock_file_that_nobody_can_read_is_broken(tmp_path: Path, database: Path) -> None:
    tree = write_tree(tmp_path / "tree", **{"Cargo.lock": "version = 3\n[[package]"})
    report = await scan(tree, tmp_path / "1", database)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


@pytest.mark.parametrize(
    "script", ["exit 0", "exit 1", "exit 7", "echo '{'; exit 1", "echo '{}'; exit 0", "kill -9 $$"]
)
async def test_what_is_no_report_is_broken(tmp_path: Path, script: str) -> None:
    fake = tmp_path / "cargo-audit"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    report = await scan(write_tree(tmp_path / "tree", **shop(tally="1.0.0")), tmp_path / "s", tmp_path, program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


def test_it_is_called_for_by_a_lock_file(tmp_path: Path) -> None:
    assert CargoAudit().uncalled(files_of(write_tree(tmp_path / "1", **{"Cargo.toml": ""})), named=True)
    assert CargoAudit().uncalled(files_of(write_tree(tmp_path / "2", **{"a/Cargo.lock": ""})), named=False) == ""


# -- moving --------------------------------------------------------------------------------------------------------


async def moved(tree: Path, *files: str, **versions: tuple[str, ...]) -> FixResult:
    result = await CargoAudit().fix(FixTask(files=files, scratch=tree.parent, tree=tree, versions=versions))
    assert bool(result.nothing) is not bool(result.files)
    return result


async def test_only_the_lock_file_changes_and_only_as_far_as_it_has_to(
    tmp_path: Path, rust: Path, registry: CrateRegistry
) -> None:
    tree = write_tree(tmp_path / "tree", **shop(tally="1.0.0"))
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file() and path.name != "Cargo.lock"}
    result = await moved(tree, "Cargo.lock", "gone/Cargo.lock", tally=("0.9.1", "1.0.4"))
    assert (result.files, result.done) == (("Cargo.lock",), ("Cargo.lock: tally 1.0.0 → 1.0.4",))
    assert result.headline == "cargo audit: tally 1.0.0 → 1.0.4 in Cargo.lock"
    assert 'version = "1.0.4"' in (tree / "Cargo.lock").read_text()
    assert {path: path.read_bytes() for path in before} == before
    registry.shutdown()
    again = await moved(tree, "Cargo.lock", tally=("1.0.4",))
    assert again.nothing.startswith("nothing to move")


async def test_what_was_fetched_before_is_enough(tmp_path: Path, rust: Path, registry: CrateRegistry) -> None:
    cargo(write_tree(tmp_path / "other", **shop(tally="1.0.4")), "fetch")
    registry.versions = {}
    tree = write_tree(tmp_path / "tree", **shop(tally="1.0.0"))
    assert (await moved(tree, "Cargo.lock", tally=("1.0.4",))).done == ("Cargo.lock: tally 1.0.0 → 1.0.4",)
    before = (tree / "Cargo.lock").read_text()
    with pytest.raises(ToolFailed, match="1.7.0"):
        await moved(tree, "Cargo.lock", tally=("1.7.0",))
    assert (tree / "Cargo.lock").read_text() == before


async def test_a_version_that_the_manifest_does_not_admit_is_an_error_and_all_is_put_back(
    tmp_path: Path, rust: Path, registry: CrateRegistry
) -> None:
    registry.versions["ledger"] = ("1.0.0", "1.0.1")
    files = shop(ledger="1.0.0", tally="1.0.0")
    files["Cargo.toml"] = files["Cargo.toml"].replace('tally = "1"', 'tally = "=1.0.0"')
    tree = write_tree(tmp_path / "tree", **files)
    with pytest.raises(ToolFailed, match="does not take that version"):
        await moved(tree, "Cargo.lock", ledger=("1.0.1",), tally=("1.0.4",))
    assert (tree / "Cargo.lock").read_text() == files["Cargo.lock"]


async def test_a_lock_file_that_is_not_its_workspace_s_is_an_error(
    tmp_path: Path, rust: Path, registry: CrateRegistry
) -> None:
    inner = shop(tally="1.0.0")
    outer = {"Cargo.toml": '[workspace]\nmembers = ["in"]\nresolver = "2"\n', "Cargo.lock": inner["Cargo.lock"]}
    tree = write_tree(tmp_path / "tree", **outer, **{f"in/{name}": text for name, text in inner.items()})
    with pytest.raises(ToolFailed, match="lock file of its workspace"):
        await moved(tree, "in/Cargo.lock", tally=("1.0.4",))
    assert (tree / "Cargo.lock").read_text() == inner["Cargo.lock"]


@pytest.mark.parametrize(
    ("name", "versions"), [("tally", ("1 --config x",)), ("tally", ()), ("--config", ("1.0.0",)), ("tally", ("1.0",))]
)
async def test_a_brief_that_names_no_version_is_refused(tmp_path: Path, name: str, versions: tuple[str, ...]) -> None:
    tree = write_tree(tmp_path / "tree", **shop(tally="1.0.0"))
    with pytest.raises(ToolFailed, match="no version"):
        await CargoAudit().fix(FixTask(files=("Cargo.lock",), scratch=tree, tree=tree, versions={name: versions}))


HONEST = {
    "database": {"advisory-count": 3, "last-commit": None, "last-updated": None},
    "lockfile": {"dependency-count": 2},
    "vulnerabilities": {
        "found": True,
        "count": 1,
        "list": [
            {
                "advisory": {"id": "RUSTSEC-1", "aliases": ["CVE-1"], "title": "t", "cvss": CRITICAL, "url": None},
                "versions": {"patched": [">=1.0.4"], "unaffected": []},
                "package": {"name": "tally", "version": "1.0.0"},
            }
        ],
    },
    "warnings": {"yanked": [{"kind": "yanked", "package": {"name": "tally", "version": "1.0.0"}, "advisory": None}]},
}


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_report_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    out = tmp_path_factory.mktemp("report") / "out"
    out.write_bytes(raw)
    answer = understood_cargo_audit("Cargo.lock", Printed(out=out, ran=ToolRun(code=1, output="")))
    if isinstance(answer, ScanReport):
        assert answer.status in {ScanStatus.BROKEN, ScanStatus.UNAVAILABLE}
        assert answer.reason
    else:
        assert isinstance(answer, LockAnswer)
        assert all(one.package and one.version and isinstance(one.title, str) for one in answer.found)

"""The real cargo and clippy as discovery tools."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from coordinator.checks.adapter import FixTask, Printed
from coordinator.checks.cargo_check import CargoCheck, CargoClippy, findings_of_build
from coordinator.checks.cargo_project import CargoProject, understood_cargo
from coordinator.checks.cargo_stream import read_stream
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Finding, Fix, ScanReport, ScanStatus, Severity
from tests.checks.hostile import spoilt
from tests.checks.rig import files_of, order_for, told, write_tree
from tests.checks.rust_rig import crate, needs, rust

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["rust"]

WORKSPACE = '[workspace]\nmembers = ["till", "web"]\nresolver = "2"\n'
TILL = """\
use std::collections::HashMap;
use std::collections::HashSet;

pub fn ring() -> i32 {
    let mut total = 1;
    total
}

fn forgotten() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings() {
        let seen: HashSet<i32> = HashSet::new();
        assert_eq!(ring(), 1 + seen.len() as i32);
    }
}
"""
WEB = 'fn main() {\n    while true {\n        println!("{}", till::ring());\n        break;\n    }\n}\n'
TREE = {
    "Cargo.toml": WORKSPACE,
    "till/Cargo.toml": crate("till"),
    "till/src/lib.rs": TILL,
    "web/Cargo.toml": crate("web", dependencies='till = { path = "../till" }'),
    "web/src/main.rs": WEB,
}
FOUND = [
    ("unused_imports", "till/src/lib.rs", 1),
    ("unused_imports", "till/src/lib.rs", 2),
    ("unused_mut", "till/src/lib.rs", 5),
    ("dead_code", "till/src/lib.rs", 9),
    ("while_true", "web/src/main.rs", 2),
]


async def scan(tree: Path, scratch: Path, adapter: CargoCheck | None = None, **more: Any) -> ScanReport:
    tool = adapter or CargoCheck()
    report = await tool.scan(order_for(tool, tree, scratch, **more))
    assert report.tool == tool.name
    return report


def by_place(report: ScanReport) -> dict[tuple[str, int], Finding]:
    return {(one.rule, one.place.line): one for one in report.findings}


async def test_each_place_of_a_workspace_is_told_once_and_again_the_second_time(tmp_path: Path, rust: Path) -> None:
    tree = write_tree(tmp_path / "tree", **TREE)
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert (told(report), report.unread) == (FOUND, ())
    assert {one.scope for one in report.findings} == {"till", "web"}
    found = by_place(report)
    assert found["unused_imports", 1].fix is found["unused_mut", 5].fix is found["while_true", 2].fix is Fix.SAFE
    assert found["dead_code", 9].fix is Fix.NONE
    assert found["unused_imports", 2].fix is Fix.UNSAFE, "its tests need it"
    assert found["while_true", 2].evidence == "while true {"
    assert found["while_true", 2].suggestion == "use `loop`: loop"
    assert sorted(path.name for path in tree.iterdir()) == ["Cargo.toml", "till", "web"], "nothing is left in the tree"
    again = await scan(tree, tmp_path / "2")
    assert (again.findings, again.status) == (report.findings, ScanStatus.SCANNED)
    assert again.took_s < report.took_s


async def test_findings_keep_their_identity_where_lines_move_and_go_when_they_are_mended(
    tmp_path: Path, rust: Path
) -> None:
    tree = write_tree(tmp_path / "tree", **TREE)
    before = await scan(tree, tmp_path / "1")
    moved = "// a till\n\n" + TILL.replace("use std::collections::HashMap;\n", "")
    write_tree(tree, **{"till/src/lib.rs": moved})
    after = await scan(tree, tmp_path / "2")
    assert told(after) == [(rule, path, line + path.startswith("till/")) for rule, path, line in FOUND[1:]]
    assert {one.fingerprint for one in after.findings} == {one.fingerprint for one in before.findings[1:]}


async def test_two_trees_do_not_tell_each_other_s_findings(tmp_path: Path, rust: Path) -> None:
    one, other = (write_tree(tmp_path / name, **TREE) for name in ("one", "other"))
    await scan(one, tmp_path / "1")
    source = other / "web/src/main.rs"
    source.write_text(WEB + "\nfn lost() {}\n")
    stamp = (one / "web/src/main.rs").stat()
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    report = await scan(other, tmp_path / "2")
    assert ("dead_code", "web/src/main.rs", 8) in told(report)


async def test_a_crate_that_does_not_build_hides_itself_and_what_needs_it(tmp_path: Path, rust: Path) -> None:
    files = {
        **TREE,
        "Cargo.toml": WORKSPACE.replace('"till"', '"till", "sum"'),
        "sum/Cargo.toml": crate("sum"),
        "sum/src/lib.rs": "fn lone() {}\n",
        "sum/benches/fast.rs": "fn main() {}\n",
    }
    tree = write_tree(tmp_path / "tree", **{**files, "till/src/lib.rs": TILL + "\npub fn bad() -> i32 { true }\n"})
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert ("E0308", "till/src/lib.rs", 22) in told(report)
    assert ("dead_code", "sum/src/lib.rs", 1) in told(report)
    error = by_place(report)["E0308", 22]
    assert (error.severity, error.fix, error.links) == (
        Severity.HIGH,
        Fix.NONE,
        ("https://doc.rust-lang.org/error_codes/E0308.html",),
    )
    assert report.unread == ("till/", "web/")
    assert report.hides("web/src/main.rs")
    assert not report.hides("sum/src/lib.rs")


async def test_a_crate_in_the_top_folder_hides_its_files_alone(tmp_path: Path, rust: Path) -> None:
    top = crate("top") + '\n[workspace]\nmembers = ["in"]\n'
    tree = write_tree(
        tmp_path / "tree",
        **{
            "Cargo.toml": top,
            "src/main.rs": "fn main() { let x: i32 = true; }\n",
            "in/Cargo.toml": crate("in"),
            "in/src/lib.rs": "fn lone() {}\n",
        },
    )
    report = await scan(tree, tmp_path / "1")
    assert report.unread == ("Cargo.toml", "src/main.rs")
    assert told(report) == [("dead_code", "in/src/lib.rs", 1), ("E0308", "src/main.rs", 1)]


async def test_a_manifest_that_cargo_cannot_read_is_a_finding_and_hides_its_folder(tmp_path: Path, rust: Path) -> None:
    tree = write_tree(tmp_path / "tree", **{**TREE, "odd/Cargo.toml": '[package]\nname = "{{name}}"\n'})
    report = await scan(tree, tmp_path / "1")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert told(report) == [("manifest", "odd/Cargo.toml", 0), *FOUND]
    assert report.unread == ("odd/",)


async def test_a_benchmark_for_another_compiler_is_left_out_and_a_crate_for_one_is_no_fault_of_the_code(
    tmp_path: Path, rust: Path
) -> None:
    nightly = "#![feature(test)]\n"
    files = {
        "Cargo.toml": crate(),
        "src/lib.rs": "fn lone() {}\n",
        "benches/fast.rs": nightly,
        "tests/all.rs": "use std::fmt;\n",
    }
    tree = write_tree(tmp_path / "tree", **files)
    report = await scan(tree, tmp_path / "1")
    assert (report.status, report.unread) == (ScanStatus.SCANNED, ())
    assert told(report) == [("dead_code", "src/lib.rs", 1), ("unused_imports", "tests/all.rs", 1)]
    write_tree(tree, **{"src/lib.rs": nightly})
    report = await scan(tree, tmp_path / "2")
    if "nightly" in report.reason:  # else the compiler here is one
        assert (report.status, report.findings) == (ScanStatus.PARTIAL, ())
        assert report.hides("src/lib.rs")
    else:
        assert report.status is ScanStatus.SCANNED


async def test_one_manifest_that_spoils_a_workspace_is_told_once(tmp_path: Path, rust: Path) -> None:
    tree = write_tree(tmp_path / "tree", **{**TREE, "web/Cargo.toml": "[package\n"})
    report = await scan(tree, tmp_path / "1")
    assert told(report) == [("manifest", "Cargo.toml", 0)]
    assert str(tmp_path) not in report.findings[0].message
    assert all(report.hides(path) for path in ("till/src/lib.rs", "web/src/main.rs", "Cargo.toml"))


async def test_what_is_not_here_and_cannot_be_fetched_makes_nothing_clean(tmp_path: Path, rust: Path) -> None:
    (rust / "config.toml").write_text(
        '[source.crates-io]\nreplace-with = "nowhere"\n[source.nowhere]\nregistry = "sparse+http://127.0.0.1:9/"\n'
    )
    files = {"Cargo.toml": crate(dependencies='smallvec = "1.6.1"'), "src/lib.rs": "fn lone() {}\n"}
    tree = write_tree(tmp_path / "tree", **files)
    report = await scan(tree, tmp_path / "1")
    assert (report.status, report.findings) == (ScanStatus.UNAVAILABLE, ())
    assert "cannot be fetched" in report.reason
    assert not (tree / "Cargo.lock").exists()


async def test_a_build_script_that_fails_is_told_as_what_it_is(tmp_path: Path, rust: Path) -> None:
    files = {"Cargo.toml": crate(), "src/lib.rs": "", "build.rs": 'fn main() { panic!("no weather"); }\n'}
    report = await scan(write_tree(tmp_path / "tree", **files), tmp_path / "1")
    assert report.status is ScanStatus.BROKEN
    assert (
        report.reason
        == "the project could not be built: failed to run custom build command for `shop v0.1.0 ("
        + str(tmp_path / "tree")
        + ")`"
    )


async def test_a_toolchain_that_is_not_installed_is_not_fetched(tmp_path: Path, rust: Path) -> None:
    needs("rustup", "--version")
    files = {"Cargo.toml": crate(), "src/lib.rs": "", "rust-toolchain.toml": '[toolchain]\nchannel = "1.2.0"\n'}
    report = await scan(write_tree(tmp_path / "tree", **files), tmp_path / "1")
    assert (report.status, "1.2.0" in report.reason) == (ScanStatus.UNAVAILABLE, True)


async def test_lints_that_the_project_denies_are_not_errors_of_the_compiler(tmp_path: Path, rust: Path) -> None:
    files = {"Cargo.toml": crate(), "src/lib.rs": "#![deny(warnings)]\npub fn f() -> i32 {\n    (1)\n}\n"}
    report = await scan(write_tree(tmp_path / "tree", **files), tmp_path / "1")
    (found,) = report.findings
    assert (found.rule, found.fix, found.severity) == ("unused_parens", Fix.SAFE, Severity.LOW)
    assert report.hides("src/lib.rs")


async def test_clippy_tells_its_own_rules_alone(tmp_path: Path, rust: Path) -> None:
    needs("cargo", "clippy", "--version")
    source = "pub fn f(x: i32) -> i32 {\n    return x;\n}\n\nfn lone() {}\n"
    tree = write_tree(tmp_path / "tree", **{"Cargo.toml": crate(), "src/lib.rs": source})
    report = await scan(tree, tmp_path / "1", CargoClippy())
    assert told(report) == [("clippy::needless_return", "src/lib.rs", 2)]
    assert report.findings[0].fix is Fix.SAFE
    assert told(await scan(tree, tmp_path / "2")) == [("dead_code", "src/lib.rs", 5)]
    result = await CargoClippy().fix(
        FixTask(files=("src/lib.rs",), rules=("clippy::needless_return",), scratch=tmp_path / "1", tree=tree)
    )
    assert (tree / "src/lib.rs").read_text() == source.replace("return x;", "x")
    assert result.headline == "cargo clippy: clippy::needless_return in src/lib.rs"


async def test_features_of_the_settings_are_looked_at_too(tmp_path: Path, rust: Path) -> None:
    files = {
        "Cargo.toml": crate() + "\n[features]\nextra = []\n",
        "src/lib.rs": '#[cfg(feature = "extra")]\nfn lone() {}\n',
    }
    tree = write_tree(tmp_path / "tree", **files)
    assert told(await scan(tree, tmp_path / "1")) == []
    report = await scan(tree, tmp_path / "2", arguments=("--all-features", "--jobs", "1"))
    assert (told(report), report.options) == ([("dead_code", "src/lib.rs", 2)], ("--all-features",))


async def test_a_macro_of_the_tree_is_told_where_it_is_and_the_project_s_own_output_is_passed_over(
    tmp_path: Path, rust: Path
) -> None:
    source = "macro_rules! make { ($n:ident) => { fn $n() { let x = 1; } } }\nmake!(lone);\n"
    build = 'fn main() { println!("{{\\"reason\\":\\"x\\"}}"); println!("{{"); }\n'
    report = await scan(
        write_tree(tmp_path / "tree", **{"Cargo.toml": crate(), "src/lib.rs": source, "build.rs": build}),
        tmp_path / "1",
    )
    assert report.status is ScanStatus.SCANNED, report.reason
    assert ("dead_code", "src/lib.rs", 2) in told(report)
    assert all(one.fix is not Fix.SAFE for one in report.findings), "what a macro wrote is mended by nobody's edit"


def test_it_is_called_for_where_the_gate_builds_or_when_named(tmp_path: Path) -> None:
    top = files_of(write_tree(tmp_path / "1", **{"Cargo.toml": ""}))
    below = files_of(write_tree(tmp_path / "2", **{"native/Cargo.toml": ""}))
    assert CargoCheck().uncalled(top, named=False) == ""
    assert "settings do not name it" in CargoCheck().uncalled(below, named=False)
    assert CargoCheck().uncalled(below, named=True) == ""
    assert CargoCheck.standard
    assert not CargoClippy.standard


@pytest.mark.parametrize(
    "script",
    ["exit 0", "exit 101", "exit 7", "kill -9 $$", "echo '{\"reason\":'", "echo '{\"reason\":\"build-finished\",\"success\":true}'; exit 101",
     "echo '{\"reason\":\"build-finished\",\"success\":false}'; exit 101", "echo '{\"reason\":\"build-finished\"}'"],
)  # fmt: skip
async def test_what_nobody_can_read_is_broken(tmp_path: Path, script: str) -> None:
    tree = write_tree(tmp_path / "tree", **{"Cargo.toml": crate(), "src/lib.rs": ""})
    known = json.dumps({"packages": [], "workspace_root": str(tree)})
    fake = tmp_path / "cargo"
    fake.write_text(f"#!/bin/sh\nif [ \"$1\" = metadata ]; then echo '{known}'; exit 0; fi\n{script}\n")
    fake.chmod(0o755)
    report = await scan(tree, tmp_path / "s", program=fake)
    assert report.status is ScanStatus.BROKEN
    assert report.reason


SPAN = {"file_name": "a.py", "byte_start": 0, "byte_end": 3, "line_start": 1, "line_end": 1, "column_start": 1, "column_end": 4,
        "is_primary": True, "text": [{"text": "use x", "highlight_start": 1, "highlight_end": 4}], "label": None,
        "suggested_replacement": None, "suggestion_applicability": None, "expansion": None}  # fmt: skip
OFFER = {**SPAN, "suggested_replacement": "y", "suggestion_applicability": "MachineApplicable"}
TARGET = {"kind": ["lib"], "name": "shop"}
HONEST = [
    {"reason": "compiler-message", "manifest_path": "/tree/Cargo.toml", "target": TARGET, "package_id": "x",
     "message": {"code": {"code": "unused_imports"}, "level": "warning", "message": "unused", "rendered": "…", "spans": [SPAN],
                 "children": [{"code": None, "level": "help", "message": "remove it", "spans": [OFFER], "children": []}]}},
    {"reason": "compiler-artifact", "manifest_path": "/tree/Cargo.toml", "target": TARGET, "profile": {"test": False}},
    {"reason": "build-finished", "success": True},
]  # fmt: skip


def test_a_guess_and_what_lies_in_a_macro_are_no_fix() -> None:
    for change in ({}, {"suggestion_applicability": "MaybeIncorrect"}, {"expansion": {"span": SPAN}}):
        line = json.loads(json.dumps(HONEST))
        line[0]["message"]["children"][0]["spans"] = [OFFER, {**OFFER, "byte_start": 1, **change}]
        (message,) = read_stream("\n".join(json.dumps(one, separators=(",", ":")) for one in line)).messages
        assert len(message.edits) == (0 if change else 2)
        assert message.helps == ("remove it",)


@settings(max_examples=200, deadline=None)
@given(spoilt(HONEST))
def test_whatever_the_stream_holds_it_is_read_or_broken(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("report")
    tree = write_tree(folder / "tree", **{"Cargo.toml": "", "a.py": "use x\n"})
    out = folder / "out"
    out.write_bytes(_as_lines(raw))
    order = order_for(CargoCheck(), tree, folder / "scratch", program=out)
    stream = understood_cargo(order, Printed(out=out, ran=ToolRun(code=0, output="")))
    project = CargoProject(crates=(), root=tree)
    answer = (
        stream if isinstance(stream, ScanReport) else findings_of_build(CargoCheck(), order, project, stream, stream)
    )
    if isinstance(answer, ScanReport):
        assert answer.status is ScanStatus.BROKEN
        assert answer.reason
    else:
        assert all(one.place.path == "a.py" and isinstance(one.message, str) for one in answer)


def _as_lines(raw: bytes) -> bytes:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    lines = data if isinstance(data, list) else [data]
    texts = (json.dumps(one, separators=(",", ":")) for one in lines)
    return "\n".join(texts).encode(errors="surrogatepass")

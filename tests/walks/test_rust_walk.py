"""The walk of a Rust crate's findings: the compiler's warnings and a vulnerable lock file, mended by the embedded agents, tested by
the gate, landed, and closed by a scan. Real cargo and cargo-audit; the registry and the advisory database are the test's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.checks.crate_registry import advise, crate_registry, lock_file
from tests.checks.rig import write_tree
from tests.checks.rust_rig import crate, needs, rust
from tests.walks.house import ENVIRONMENT, House

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["rust"]

SOURCE = """\
use std::collections::HashMap;

pub fn total() -> usize {
    let mut parts = tally::version().len();
    parts
}

#[cfg(test)]
mod tests {
    #[test]
    fn counts() {
        assert_eq!(super::total(), 5);
    }
}
"""


def plant(top: Path, database: Path) -> House:
    house = House(top)
    arguments = json.dumps(["--db", str(database), "--no-fetch", "--no-yanked"])
    write_tree(
        top,
        **{
            ".gitignore": "target/\n",
            "Cargo.lock": lock_file(tally="1.0.0"),
            "Cargo.toml": crate(dependencies='tally = "1"'),
            "coordinator.toml": f'[land]\ntarget = "line"\n\n[[discovery.tool]]\nname = "cargo-audit"\narguments = {arguments}\n',
            "src/lib.rs": SOURCE,
        },
    )
    house.git("init", "-q", "-b", "main")
    house.git("add", "-A")
    house.git("commit", "-q", "-m", "begin")
    return house


def improve(house: House) -> dict[str, Any]:
    argv = [
        sys.executable,
        "-m",
        "coordinator",
        "-C",
        str(house.top),
        "run",
        "--self-improve",
        "--until-idle",
        "--json",
    ]
    rusty = {name: os.environ[name] for name in ("CARGO_HOME", "RUSTUP_HOME") if name in os.environ}
    done = subprocess.run(argv, env={**ENVIRONMENT, **rusty}, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def counts(summary: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    return {one["tool"]: (one["found"], one["fixed"], one["left"]) for one in summary["findings"]}


def test_a_crate_s_warnings_and_its_vulnerable_lock_file_are_mended_and_closed(tmp_path: Path, rust: Path) -> None:
    needs("cargo-audit", "--version")
    advise(tmp_path / "database", "tally", "RUSTSEC-2021-0001", patched=(">= 1.0.4",))
    house = plant(tmp_path / "house", tmp_path / "database")
    with crate_registry() as registry:
        registry.use(rust)
        summary = improve(house)
        assert counts(summary) == {"cargo-check": (2, 2, 0), "cargo-audit": (1, 1, 0)}
        assert (
            house.show("src/lib.rs", "line")
            == SOURCE.removeprefix("use std::collections::HashMap;\n").replace("let mut", "let").strip()
        )
        locked = lock_file(tally="1.0.4").partition("\n")[2].strip()
        assert house.show("Cargo.lock", "line").endswith(locked)
        roles = sorted(role for (role,) in house.rows("SELECT role FROM tasks"))
        assert roles == ["autofix", "autofix", "upgrade"]
        subjects = house.git("log", "--no-merges", "--format=%s", "line").splitlines()
        assert "cargo audit: tally 1.0.0 → 1.0.4 in Cargo.lock" in subjects
        assert "cargo check: unused_mut in src/lib.rs" in subjects
        changed = house.git("diff", "--name-only", "main", "line").splitlines()
        assert changed == ["Cargo.lock", "src/lib.rs"]
        states = {state for (state,) in house.rows("SELECT state FROM findings")}
        assert states == {"fixed"}
        assert list((house.top / "tasks/auto").glob("*.toml")) == []
        assert improve(house)["landed"] == []

"""Arrows point down only (the contracts of pyproject.toml), and the SDK stays light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.house.source import TOP

LOADED = """
import json, sys, time
before = set(sys.modules)
began = time.process_time()
import coordinator.sdk
took = time.process_time() - began
print(json.dumps({"loaded": sorted(set(sys.modules) - before), "took_s": took}))
"""


def test_contracts_hold() -> None:
    """``lint-imports`` of this environment, without its cache in the tree."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdk_import() -> dict[str, object]:
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", LOADED], cwd=TOP, capture_output=True, check=True).stdout)
        for _ in range(5)
    ]
    best: dict[str, object] = min(runs, key=lambda run: float(run["took_s"]))
    return best


def test_the_sdk_loads_nothing_of_ours_but_domain_and_the_lock(sdk_import: dict[str, object]) -> None:
    loaded = sdk_import["loaded"]
    assert isinstance(loaded, list)
    assert "coordinator.sdk" in loaded
    ours = {name for name in loaded if name.startswith("coordinator")}
    allowed = {"coordinator", "coordinator.kit", "coordinator.kit.lock"}
    strays = {name for name in ours - allowed if not name.startswith(("coordinator.sdk", "coordinator.domain"))}
    assert sorted(strays) == []


def test_the_sdk_loads_no_library_but_filelock(sdk_import: dict[str, object]) -> None:
    loaded = sdk_import["loaded"]
    assert isinstance(loaded, list)
    roots = {name.partition(".")[0] for name in loaded}
    assert sorted(roots - sys.stdlib_module_names - {"coordinator", "filelock"}) == []
    assert "asyncio" not in roots


def test_the_sdk_is_imported_quickly(sdk_import: dict[str, object]) -> None:
    """Processor time: on a busy machine the wall clock measures the others."""
    took_s = sdk_import["took_s"]
    assert isinstance(took_s, float)
    assert took_s < 0.06, "the best of five imports of coordinator.sdk took 60 ms or more"

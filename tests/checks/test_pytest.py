from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coordinator.checks.inroads import Inroads
from coordinator.checks.origins import Borders
from coordinator.checks.pytest import NOTHING_COLLECTED, PytestCheck, has_configuration
from coordinator.checks.tool import Surroundings
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus
from coordinator.domain.settings import GateSettings

SUITE = """
import pytest

def test_ok(): pass
def test_bad(): assert 0
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert 0
@pytest.mark.parametrize("x", [1, object()], ids=repr)
def test_p(x): pass
class TestX:
    def test_m(self): pass
@pytest.fixture
def broken(): raise ValueError
def test_error(broken): pass
"""


async def run(
    tree: Path,
    tmp_path: Path,
    *,
    checkout: Path | None = None,
    python: str = sys.executable,
    timeout_s: float = 60.0,
) -> CheckOutcome:
    scratch = tmp_path / f"scratch-{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    surroundings = Surroundings(
        checkout=checkout,
        gate=GateSettings(env=("PYTEST_DISABLE_PLUGIN_AUTOLOAD",), timeout_s=timeout_s, memory_bytes=0),
    )
    check = PytestCheck(python=Path(python), identity="x", required=True, surroundings=surroundings)
    return await check.run(tree, scratch)


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's pytest needs none of the plug-ins that this suite has installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    (path / "tests").mkdir(parents=True)
    (path / "tests" / "test_a.py").write_text(SUITE)
    return path


async def test_what_ran_and_what_failed(tree: Path, tmp_path: Path) -> None:
    (tree / "tests" / "test_b.py").write_text("import nowhere\n")
    # A configuration above the tree and a project's own -x must not change what is seen.
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    outcome = await run(tree, tmp_path)
    assert outcome.status is CheckStatus.FAILED
    a = "tests/test_a.py"
    assert outcome.failures == {f"{a}::test_bad", f"{a}::test_error", "tests/test_b.py"}
    assert {name.partition("[")[0] for name in outcome.seen} == {
        f"{a}::test_ok", f"{a}::test_bad", f"{a}::test_p", f"{a}::TestX::test_m", f"{a}::test_error",
    }  # fmt: skip
    assert (await run(tree, tmp_path)).seen == outcome.seen
    assert "failed" in outcome.reason
    assert not list(tree.rglob("__pycache__"))


async def test_dash_x_of_the_project_hides_no_test(tree: Path, tmp_path: Path) -> None:
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "-x"\n')
    assert len((await run(tree, tmp_path)).seen) == 6


async def test_passed_and_the_tree_itself_is_imported(tree: Path, tmp_path: Path) -> None:
    (tree / "src").mkdir()
    (tree / "src" / "coordinator.py").write_text("MINE = True\n")  # an installed package of that name exists
    (tree / "tests" / "test_a.py").write_text("import coordinator\n\ndef test_a(): assert coordinator.MINE\n")
    outcome = await run(tree, tmp_path)
    assert outcome.status is CheckStatus.PASSED, outcome.excerpt
    assert outcome.seen == {"tests/test_a.py::test_a"}


async def test_nothing_collected_is_broken(tree: Path, tmp_path: Path) -> None:
    (tree / "tests" / "test_a.py").write_text("")
    outcome = await run(tree, tmp_path)
    assert (outcome.status, outcome.broken_by) == (CheckStatus.BROKEN, BrokenBy.TREE)
    assert outcome.reason == NOTHING_COLLECTED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conftest.py", "import nowhere\n"),
        ("pytest.ini", "[pytest]\naddopts = --no-such-option\n"),
        ("tests/test_a.py", "import os\ndef test_a(): os._exit(0)\n"),
        ("tests/test_a.py", "import os\ndef test_a(): os.abort()\n"),
        ("tests/test_a.py", "import pytest\ndef test_a(): pytest.exit('enough', 3)\n"),
    ],
)
async def test_a_tree_that_pytest_cannot_look_at_is_broken_by_the_tree(
    tree: Path, tmp_path: Path, name: str, text: str
) -> None:
    (tree / name).write_text(text)
    outcome = await run(tree, tmp_path)
    assert (outcome.status, outcome.broken_by) == (CheckStatus.BROKEN, BrokenBy.TREE)
    assert outcome.reason


async def test_time_and_environment(tree: Path, tmp_path: Path) -> None:
    (tree / "tests" / "test_a.py").write_text("import time\ndef test_a(): time.sleep(60)\n")
    assert (await run(tree, tmp_path, timeout_s=1.0)).broken_by is BrokenBy.TIME
    assert (await run(tree, tmp_path, python="/no/such/python")).broken_by is BrokenBy.ENVIRONMENT
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    outcome = await run(tree, tmp_path, python=str(bare))
    assert outcome.broken_by is BrokenBy.ENVIRONMENT
    assert "not installed" in outcome.reason


async def test_a_failure_that_no_test_owns_is_nameless(tree: Path, tmp_path: Path) -> None:
    (tree / "tests" / "test_a.py").write_text("def test_a(): pass\n")
    (tree / "conftest.py").write_text("def pytest_sessionfinish(session): session.exitstatus = 1\n")
    outcome = await run(tree, tmp_path)
    assert outcome.status is CheckStatus.FAILED
    assert not outcome.failures


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("pytest.ini", "", True), ("setup.cfg", "[tool:pytest]\n", True), ("setup.cfg", "[metadata]\n", False),
        ("tox.ini", "[pytest]\n", True), ("tox.ini", "[[[", False), ("pyproject.toml", "[tool.pytest.ini_options]\n", True),
        ("pyproject.toml", "[tool.ruff]\n", False), ("pyproject.toml", "x x", False), ("pyproject.toml", "tool = 1", False),
    ],
)  # fmt: skip
def test_own_configuration(tmp_path: Path, name: str, text: str, expected: bool) -> None:
    (tmp_path / name).write_text(text)
    assert has_configuration(tmp_path) is expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nowhere\ndef test_a(): pass\n", "the test file could not be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n", "all of them were skipped"),
        ("def test_a(): pass\n", ""),
    ],
)  # fmt: skip
async def test_why_no_test_ran(tree: Path, tmp_path: Path, text: str, why: str) -> None:
    (tree / "tests" / "test_a.py").write_text(text)
    assert (await run(tree, tmp_path)).none_ran == why


async def test_a_module_from_the_checkout_breaks_the_run(tree: Path, tmp_path: Path) -> None:
    """Whichever way it came in: here the test itself goes and gets it."""
    checkout = tmp_path / "checkout"
    (checkout / "lib").mkdir(parents=True)
    (checkout / "lib" / "user_module.py").write_text("")
    text = "import sys\nsys.path.append({!r})\nimport user_module\n\ndef test_a(): pass\n"
    (tree / "tests" / "test_a.py").write_text(text.format(str(checkout / "lib")))
    assert (await run(tree, tmp_path)).status is CheckStatus.PASSED
    outcome = await run(tree, tmp_path, checkout=checkout)
    assert (outcome.status, outcome.broken_by) == (CheckStatus.BROKEN, BrokenBy.TREE)
    assert outcome.reason.startswith("tests import user_module from the checkout (")
    inside = tmp_path / "inside"  # the trees of the gate lie below the checkout and are not it
    tree.rename(inside)
    (inside / "tests" / "test_a.py").write_text("import sys\nsys.path.append('lib')\n\ndef test_a(): pass\n")
    assert (await run(inside, tmp_path, checkout=tmp_path)).status is CheckStatus.PASSED


def test_without_a_note_nobody_knows_what_was_tested(tree: Path, tmp_path: Path) -> None:
    borders = Borders(checkout=tmp_path, inroads=Inroads(), scratch=tmp_path / "s", tree=tree)
    assert "no note" in borders.complaint(tmp_path)
    (tmp_path / "notes-1.json").write_text("[")
    assert "no note" in borders.complaint(tmp_path)


async def test_modules_may_be_anything(tree: Path, tmp_path: Path) -> None:
    text = "import sys\nclass Odd:\n    def __getattr__(self, name): raise RuntimeError(name)\nsys.modules['odd'] = Odd()\nsys.modules['none'] = None\n"
    (tree / "tests" / "test_a.py").write_text(f"{text}\ndef test_a(): pass\n")
    outcome = await run(tree, tmp_path, checkout=tmp_path / "elsewhere")
    assert outcome.status is CheckStatus.PASSED, outcome.excerpt

"""The real ``pytest`` as a discovery tool."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.checks.adapter import Printed
from coordinator.checks.failing_tests import FailingTests, findings_of_tests, understood_tests
from coordinator.checks.tool import ToolRun
from coordinator.domain.finding import Finding, Fix, ScanReport, ScanStatus
from coordinator.policy.grouping import GroupKey, TaskGroup
from tests.checks.rig import files_of, order_for, told, write_tree

STOCK = "def count(items):\n    return len(items) + 1\n\n\ndef price(item):\n    raise ValueError('no price')\n"
TESTS = """\
import pytest
from shop.stock import count
from shop import till

def test_count():
    assert count([]) == 0

class TestTill:
    @pytest.mark.parametrize("x", [1, 2])
    def test_ring(self, x):
        assert till.ring(x) == 1

@pytest.fixture
def bad():
    raise KeyError("gone")

def test_fixture(bad): pass
def test_good(): pass
@pytest.mark.skip
def test_skipped(): assert 0
@pytest.mark.xfail
def test_known(): assert 0
"""
SHOP = {
    "shop/__init__.py": "",
    "shop/stock.py": STOCK,
    "shop/till.py": "from shop.stock import price\n\n\ndef ring(x):\n    return 1 if x == 1 else price(x)\n",
    "tests/test_shop.py": TESTS,
}


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


async def scan(tree: Path, scratch: Path, **more: Any) -> ScanReport:
    order = order_for(FailingTests(), tree, scratch, env=("PYTEST_DISABLE_PLUGIN_AUTOLOAD",), **more)
    return await FailingTests().scan(order)


@pytest.mark.parametrize("folder", ["--flag", "a b", "new\nline", "x::y", "e[1]", "@x", "'q'", "$(touch x)"])
async def test_a_name_that_pytest_would_take_for_something_else_is_a_name(tmp_path: Path, folder: str) -> None:
    tree = write_tree(tmp_path / "tree", **{f"{folder}/test_odd.py": "def test_odd():\n    assert 0\n"})
    report = await scan(tree, tmp_path / "scratch")
    assert report.status is ScanStatus.SCANNED, report.reason
    assert [one.place.path for one in report.findings] == [f"{folder}/test_odd.py"]
    line = FailingTests().accept(group_of(report.findings), ())
    assert runs(line, tree) == 1
    (tree / folder / "test_odd.py").write_text("def test_odd():\n    pass\n")
    assert runs(line, tree) == 0


async def test_what_fails_is_found_with_where_its_cause_may_be(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", **SHOP)
    report = await scan(tree, tmp_path / "scratch")
    assert report.status is ScanStatus.SCANNED, report.reason
    by_name = {one.about: one for one in report.findings}
    assert set(by_name) == {"test_count", "TestTill::test_ring[2]", "test_fixture"}
    count = by_name["test_count"]
    assert (count.rule, count.place.path, count.place.line, count.fix) == (
        "failing-test",
        "tests/test_shop.py",
        5,
        Fix.NONE,
    )
    assert count.message.startswith("test_count fails: assert 1 == 0")
    assert count.evidence == "def test_count():"
    assert [one.path for one in count.places] == [
        "tests/test_shop.py",
        "shop/stock.py",
        "shop/till.py",
        "shop/__init__.py",
    ]
    ring = by_name["TestTill::test_ring[2]"]
    assert [(one.path, one.line) for one in ring.places[1:3]] == [("shop/till.py", 5), ("shop/stock.py", 6)]
    assert "ValueError: no price" in ring.message
    left = {path.name for path in tree.rglob("*")}
    assert left == {"shop", "tests", "__init__.py", "stock.py", "till.py", "test_shop.py"}


async def test_a_test_is_known_by_its_name_and_a_mended_one_is_gone(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", **SHOP)
    before = {one.about: one.fingerprint for one in (await scan(tree, tmp_path / "1")).findings}
    (tree / "tests/test_shop.py").write_text("import sys\n\n\n" + TESTS.replace("== 0", "== -1"))
    (tree / "shop/stock.py").write_text(STOCK.replace("raise ValueError('no price')", "return 1"))
    after = {one.about: one.fingerprint for one in (await scan(tree, tmp_path / "2")).findings}
    del before["TestTill::test_ring[2]"]
    assert after == before


async def test_what_fails_only_now_and_then_is_not_told(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    flaky = f"from pathlib import Path\n\ndef test_flaky():\n    mark = Path({str(mark)!r})\n    seen = mark.exists()\n    mark.touch()\n    assert seen\n"
    tree = write_tree(tmp_path / "tree", **{"test_a.py": flaky, "test_b.py": "def test_bad():\n    assert 0\n"})
    assert told(await scan(tree, tmp_path / "scratch")) == [("failing-test", "test_b.py", 1)]


async def test_a_file_that_cannot_be_imported_hides_its_tests(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", **{"test_a.py": "def test_x(:\n", "test_b.py": "def test_bad():\n    assert 0\n"}
    )
    report = await scan(tree, tmp_path / "1")
    assert told(report) == [("broken-test-file", "test_a.py", 0), ("failing-test", "test_b.py", 1)]
    assert (report.status, report.unread) == (ScanStatus.SCANNED, ("test_a.py",))
    (tree / "test_a.py").write_text("import nowhere_at_all\n")
    report = await scan(tree, tmp_path / "2")
    assert told(report) == [("failing-test", "test_b.py", 1)]
    assert (report.status, report.unread) == (ScanStatus.PARTIAL, ("test_a.py",))
    assert "nowhere_at_all is not installed" in report.reason


async def test_what_a_group_s_check_asks_is_whether_its_files_pass(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", **SHOP)
    findings = (await scan(tree, tmp_path / "scratch")).findings
    line = FailingTests().accept(group_of(findings), ())
    assert runs(line, tree) == 1
    for name, text in {
        "shop/stock.py": STOCK.replace(" + 1", "").replace("raise", "return 1 or"),
        "tests/test_shop.py": TESTS.replace('raise KeyError("gone")', "return 1"),
    }.items():
        (tree / name).write_text(text)
    assert runs(line, tree) == 0, line
    (tree / "tests/test_shop.py").unlink()
    assert runs(line, tree) != 0


def group_of(findings: tuple[Finding, ...]) -> TaskGroup:
    key = GroupKey.of(findings[0], {})
    return TaskGroup(findings=findings, id="x", key=key, priority=1, role="claude", whole=True)


def runs(line: str, tree: Path) -> int:
    program, *words = shlex.split(line)
    env = {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [str(Path(sys.executable).parent / program), *words]
    return subprocess.run(argv, cwd=tree, env=env, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    "files",
    [
        {"test_a.py": "", "pytest.ini": "[pytest]\naddopts = --no-such\n"},
        {"test_a.py": "", "conftest.py": "raise ValueError('no')\n"},
        {"test_a.py": "import os\nos._exit(1)\n"},
        {"test_a.py": "import os\nos._exit(0)\n"},
        {"test_a.py": "x = 1\n"},
    ],
)
async def test_a_run_that_did_not_come_to_its_end_says_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    report = await scan(write_tree(tmp_path / "tree", **files), tmp_path / "scratch")
    assert (report.status, report.findings) == (ScanStatus.BROKEN, ())
    assert report.reason


async def test_it_is_called_for_by_tests_and_never_without_being_named(tmp_path: Path) -> None:
    assert FailingTests.standard is False
    assert FailingTests().uncalled(files_of(write_tree(tmp_path / "1", a="x = 1\n")), named=True)
    assert FailingTests().uncalled(files_of(write_tree(tmp_path / "2", test_a="x = 1\n")), named=True) == ""
    report = await scan(
        write_tree(tmp_path / "3", test_a="import time\ntime.sleep(60)\n"), tmp_path / "s", timeout_s=1.0
    )
    assert (report.status, report.reason) == (ScanStatus.BROKEN, "pytest was stopped after 1 s")


HONEST = '<testsuites><testsuite><testcase classname="test_a" name="test_x[1]" file="test_a.py" line="3"><failure message="m">E   boo\ntest_a.py:4: X</failure></testcase><testcase classname="" name="test_b" file="test_b.py"><error>E  y</error></testcase></testsuite></testsuites>'


@settings(max_examples=200, deadline=None)
@given(
    cut=st.none() | st.integers(0, len(HONEST)),
    old=st.sampled_from(["", "testcase", '"3"', "test_a", "file", "failure", "\n", 'classname="test_a"']),
    new=st.sampled_from(
        ["", '"-9"', '"1e9"', '"' + "9" * 400 + '"', "<", "\0", "&boom;", "é\udcff", "../../x", "x" * 5000]
    ),
)
def test_whatever_the_report_holds_it_is_read_or_broken(
    tmp_path_factory: pytest.TempPathFactory, cut: int | None, old: str, new: str
) -> None:
    folder = tmp_path_factory.mktemp("report")
    text = HONEST[:cut].replace(old, new) if old else HONEST[:cut] + new
    (folder / "junit.xml").write_bytes(text.encode(errors="surrogatepass"))
    (folder / "out").write_text("")
    answer = understood_tests(Printed(out=folder / "out", ran=ToolRun(code=1, output="")), folder / "junit.xml")
    found = answer if isinstance(answer, ScanReport) else findings_of_tests(folder, answer, {})
    if isinstance(found, ScanReport):
        assert found.status is ScanStatus.BROKEN
        assert found.reason
    else:
        assert all(one.fingerprint and one.place.path for one in found)

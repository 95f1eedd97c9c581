"""Fixtures of the whole suite: a machine without a past, and a small real repository to work on."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import hypothesis
import pytest

from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

hypothesis.settings.register_profile("house", deadline=None)  # a busy machine is not a failing rule
hypothesis.settings.load_profile("house")

CANNOT = "cannot run here: "
"""How a skip that nobody can help on this machine begins; with ``COORDINATOR_SKIPS=forbidden`` any other one fails the run."""

FILES = {
    "README.md": "# Shop\n\nPrices and orders.\n",
    "shop/__init__.py": '"""A shop."""\n',
    "shop/price.py": "def gross(net: float, tax: float = 0.19) -> float:\n    return round(net * (1 + tax), 2)\n",
    "tests/test_price.py": (
        "from shop.price import gross\n\n\ndef test_gross():\n    assert gross(100.0) == 119.0\n\n\n"
        "def test_no_tax():\n    assert gross(5.0, tax=0.0) == 5.0\n"
    ),
}
"""What the ``repository`` fixture holds: two tests that pass, nothing that ruff objects to."""


SLOW = ("tests/real/", "tests/walks/", "tests/house/test_scripts.py")
TOGETHER = ("tests/real/test_claude_bytes.py", "tests/walks/test_chaos.py", "tests/walks/test_fleet_walk.py")
"""Each has one long run that all its tests look at: they share a worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.nodeid.startswith(TOGETHER):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that skipped what could have run here (``.ci/run`` asks for it)."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("COORDINATOR_SKIPS") != "forbidden" or reporter is None:
        return
    needless = [report for report in reporter.stats.get("skipped", ()) if CANNOT not in str(report.longrepr)]
    for report in needless:
        reporter.write_line(f"needlessly skipped: {report.nodeid}: {report.longrepr}", red=True)
    if needless and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _fresh_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No git configuration, no settings and no colours of whoever runs the suite reach it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("GIT_", "COORDINATOR_", "LOG_")) or name in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}:
                patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("GIT_TERMINAL_PROMPT", "0")
        yield


def git(directory: Path, *arguments: str) -> str:
    """Run git in ``directory`` as a person would; raises when it fails."""
    done = subprocess.run(["git", "-C", str(directory), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A real repository on branch ``main`` with one commit, an identity of its own and passing tests."""
    top = tmp_path / "repository"
    for name, text in FILES.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(top, "init", "--quiet", "--initial-branch=main")
    git(top, "config", "user.name", "Ada")
    git(top, "config", "user.email", "ada@example.org")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "-m", "Open the shop")
    return top


@pytest.fixture
def layout(repository: Path) -> Layout:
    """The run-time folders of ``repository``, made."""
    made = Layout(repository, repository / ".coordinator")
    for folder in (made.agents, made.attempts, made.claims, made.ready, made.worktrees):
        folder.mkdir(parents=True, exist_ok=True)
    return made

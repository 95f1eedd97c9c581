"""The systemd unit: accepted by systemd itself, as closed as it says, and written only where it may be."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.unit import UnitOrder, quoted, unit_name, unit_text

if TYPE_CHECKING:
    from pathlib import Path

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
MOST_EXPOSED = 30
"""Of 100; ``systemd-analyze security`` prints it divided by ten."""


def order(**more: object) -> UnitOrder:
    usual = {
        "command": ("/usr/bin/env", "x"),
        "leave_agents": False,
        "path": "/bin",
        "repository": "/srv/re po",
        "stop_s": 60,
    }
    return UnitOrder(**{**usual, **more})  # type: ignore[arg-type]


def analyse(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, check=False)


@needs_systemd
@pytest.mark.parametrize("user", ["", "daemon"])
@pytest.mark.parametrize("leave", [True, False])
def test_systemd_takes_it_and_calls_it_well_closed(tmp_path: Path, user: str, leave: bool) -> None:
    unit = tmp_path / "coordinator-x.service"
    unit.write_text(
        unit_text(order(user=user, leave_agents=leave, repository='/srv/100% re\\po $HOME "x"', writable=["-/srv/a b"]))
    )
    checked = analyse("verify", str(unit))
    assert (checked.returncode, checked.stderr) == (0, "")
    threshold = f"--threshold={MOST_EXPOSED}"
    judged = analyse("security", "--offline=true", threshold, "--no-pager", str(unit))
    assert judged.returncode == 0, judged.stdout


@needs_systemd
def test_the_limit_of_exposure_can_be_missed(tmp_path: Path) -> None:
    unit = tmp_path / "coordinator-x.service"
    unit.write_text(
        "\n".join(
            line for line in unit_text(order()).splitlines() if not line.startswith(("Protect", "Capab", "System"))
        )
    )
    assert analyse("security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)).returncode == 1


def test_what_stays_open_is_explained() -> None:
    text = unit_text(order())
    for opening in (
        "PrivateTmp",
        "PrivateNetwork",
        "MemoryDenyWriteExecute",
        "ProcSubset",
        "ProtectHome",
        "@resources",
    ):
        assert any(line.startswith("# - ") and opening in line for line in text.splitlines())
    assert "WatchdogSec=" in text
    assert "TimeoutStopSec=90\n" in text
    assert "--stop-within 60" in text
    assert "--leave-agents" in unit_text(order(leave_agents=True))


@pytest.mark.parametrize("user", ["", "daemon"])
def test_nothing_that_systemd_removes_is_used_by_agents_that_outlive_the_service(user: str) -> None:
    text = unit_text(order(user=user))
    assert "\nKillMode=process" in text
    assert not any(line.startswith(("PrivateTmp=", "RemoveIPC=", "RuntimeDirectory=")) for line in text.splitlines())
    assert " /tmp /var/tmp\n" in text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_a_word_stays_one_word_and_expands_to_nothing(word: str) -> None:
    text = quoted(word)
    assert "$" not in text.replace("$$", "")
    assert "%" not in text.replace("%%", "")
    if any(character.isspace() for character in word):
        assert text.startswith('"')
        assert text.endswith('"')


@pytest.mark.parametrize(
    ("path", "name"), [("/a/my repo", "my-repo"), ("/a/été", "t"), ("/a/-", "repository"), ("/", "repository")]
)
def test_the_name_is_one_that_systemd_takes(path: str, name: str) -> None:
    assert unit_name(path) == f"coordinator-{name}"

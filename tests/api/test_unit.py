"""The systemd unit: accepted by systemd itself, as closed as it says, and written only where it may be."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.unit import UnitOrder, quoted, unit_name, unit_text
from coordinator.domain.errors import BadInput, DaemonBusy

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


def test_what_neither_daemon_nor_agent_needs_is_closed() -> None:
    lines = unit_text(order()).splitlines()
    closed = (
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateDevices=yes",
    )
    assert [line for line in closed if line not in lines] == []


def test_what_stays_open_is_explained() -> None:
    text = unit_text(order())
    for opening in (
        "PrivateTmp",
        "PrivateNetwork",
        "MemoryDenyWriteExecute",
        "ProcSubset",
        "ProtectHome",
        "@resources",
        "RestrictNamespaces",
        "@mount",
    ):
        assert any(line.startswith("# - ") and opening in line for line in text.splitlines())
    assert "WatchdogSec=" in text
    assert "TimeoutStopSec=90\n" in text
    assert "--stop-within 60" in text
    assert "--leave-agents" in unit_text(order(leave_agents=True))


def test_it_is_started_again_for_ever_but_not_after_what_a_person_must_mend() -> None:
    lines = unit_text(order()).splitlines()
    assert "StartLimitIntervalSec=0" in lines[: lines.index("[Service]")]
    assert not any(line.startswith("StartLimitBurst") for line in lines)
    assert {"Restart=on-failure", "RestartSec=10"} <= set(lines)
    (prevented,) = (line.partition("=")[2].split() for line in lines if line.startswith("RestartPreventExitStatus="))
    (good,) = (line.partition("=")[2].split() for line in lines if line.startswith("SuccessExitStatus="))
    assert not {"70", "75"} & {*prevented, *good}
    assert {str(BadInput.exit_code), str(DaemonBusy.exit_code)} == set(prevented)


def group(name: str) -> set[str]:
    """The calls of a group and of the groups in it, as this systemd has them."""
    words = [line.strip() for line in analyse("syscall-filter", name).stdout.splitlines()[1:]]
    calls = {word for word in words if word and not word.startswith(("#", "@"))}
    return calls.union(*(group(word) for word in words if word.startswith("@")))


@needs_systemd
def test_agents_can_make_sandboxes_of_their_own_and_nothing_else_was_opened() -> None:
    allowed: set[str] = set()
    for line in unit_text(order()).splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            named = {word.lstrip("~") for word in value.split()}
            calls = set().union(*(group(word) if word.startswith("@") else {word} for word in named))
            allowed = allowed - calls if value.startswith("~") else allowed | calls
        elif key == "RestrictNamespaces":
            assert {"user", "mnt", "pid", "net"} <= set(value.split())
    landlock = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    bubblewrap = {"capset", "chroot", "clone", "mount", "pivot_root", "seccomp", "setns", "umount2", "unshare"}
    assert landlock | bubblewrap <= allowed
    assert (group("@privileged") - group("@mount") - {"capset"}) & allowed == set()


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

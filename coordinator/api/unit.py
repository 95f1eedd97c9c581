"""The systemd unit that runs the daemon, as text made from values.

Owns one invariant: every restriction that is not closed says beside it why agents need it open. Nothing is written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

STOP_MARGIN_S: Final = 30
"""What the service manager waits beyond the daemon's own limit for a stop, so that it never has to kill."""

_WATCHDOG_S: Final = 180
"""Twice the time after which the daemon itself calls its work loop hung."""


_OPEN: Final = (
    "# Open, because agents need it:",
    "# - the temporary folders that all share (PrivateTmp) and shared memory (RemoveIPC): systemd removes a private one when",
    "#   the service ends, under the feet of agents that outlive it;",
    "# - network (PrivateNetwork, IPAddressDeny): the model's provider, package registries;",
    "# - namespaces but cgroup and time (RestrictNamespaces), and the calls that fill them (@mount, capset, seccomp,",
    "#   landlock_*): Codex, Chromium and the like put what they run into a sandbox of their own. Outside such a namespace",
    "#   these calls need capabilities, and nobody here has any;",
    "# - limits and priorities of child processes (@resources): test runners and compilers set them;",
    "# - memory that is writable and executable (MemoryDenyWriteExecute): node, bun, PyPy and other compilers at run time;",
    "# - /proc beside processes (ProcSubset): free memory and the boot id are read there;",
    "# - the user's home for reading (ProtectHome): compilers, interpreters and their configuration live there.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOrder:
    """``command`` is the start of the command line up to ``run``'s options, ``writable`` what agents may write besides
    temporary files. ``user`` is whom a system unit runs as; empty: it is a user unit."""

    command: Sequence[str]
    leave_agents: bool
    options: Sequence[str] = ()
    path: str
    repository: str
    stop_s: int
    user: str = ""
    writable: Sequence[str] = ()


def unit_text(order: UnitOrder) -> str:
    """The whole file."""
    return "\n".join([*_unit(order), *_service(order), *_hardening(order), *_install(order)]) + "\n"


def unit_name(repository: str) -> str:
    """A name that systemd takes and a person recognises."""
    return "coordinator-" + (
        re.sub(r"[^A-Za-z0-9_.-]+", "-", repository.rpartition("/")[2]).strip("-.") or "repository"
    )


def quoted(word: str) -> str:
    """A word of a command line in a unit file (systemd.service(5), "Command lines")."""
    escaped = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"[\s\"';\\]", word) or not word else escaped


def _path(path: str) -> str:
    """One of a list of paths."""
    return quoted(path).replace("$$", "$")


def _rest(text: str) -> str:
    """A value that is the rest of its line, unquoted."""
    return text.replace("%", "%%")


def _unit(order: UnitOrder) -> list[str]:
    return [
        "[Unit]",
        f"Description=Coding agents on {_rest(order.repository)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "# No number of starts is too many: a disk that is full at night has room in the morning.",
        "StartLimitIntervalSec=0",
    ]


def _service(order: UnitOrder) -> list[str]:
    leave = ["--leave-agents"] if order.leave_agents else []
    words = [*order.command, "run", "--stop-within", str(order.stop_s), *leave, *order.options]
    what = "left at work; the next start finds them" if order.leave_agents else "drained by the daemon"
    return [
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        "ExecStart=" + " ".join(map(quoted, words)),
        "ExecReload=/bin/kill -HUP $MAINPID",
        f"WorkingDirectory={_rest(order.repository)}",
        *([f"User={order.user}"] if order.user else []),
        f"Environment={quoted('PATH=' + order.path).replace('$$', '$')}",
        "Environment=PYTHONUNBUFFERED=1",
        "# Provider keys and the like, one NAME=value a line, mode 0600. It may be missing.",
        f"EnvironmentFile=-{_rest(order.repository)}/.coordinator/environment",
        "Restart=on-failure",
        "# A fault of ours (70), a machine that is short of something (75) or a signal: started again, at a calm pace.",
        "RestartSec=10",
        "# Bad settings and a second daemon do not get better by trying again; a task that failed is no failure of ours.",
        "RestartPreventExitStatus=2 3",
        "SuccessExitStatus=1 5",
        "TimeoutStartSec=120",
        f"# On a stop agents are {what}, within this time.",
        f"TimeoutStopSec={order.stop_s + STOP_MARGIN_S}",
        f"WatchdogSec={_WATCHDOG_S}",
        "# Only the daemon is signalled: agents outlive it when it is killed or upgraded, and are found again.",
        "KillMode=process",
        "OOMPolicy=continue",
    ]


def _hardening(order: UnitOrder) -> list[str]:
    writable = " ".join(map(_path, (order.repository, *order.writable, "/tmp", "/var/tmp")))  # noqa: S108 - all programs do
    return [
        "",
        "# What neither the daemon nor an agent needs.",
        *([] if order.user else ["PrivateUsers=yes"]),
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        f"ReadWritePaths={writable}",
        "PrivateDevices=yes",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "LockPersonality=yes",
        "RestrictNamespaces=user mnt pid net ipc uts",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged",
        "# After the line above, which takes some of them away. By name: not every systemd knows the group @sandbox.",
        "SystemCallFilter=@mount capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
        "# A refused call fails instead of killing: package managers try to change owners and go on without.",
        "SystemCallErrorNumber=EPERM",
        "UMask=0077",
        "KeyringMode=private",
        *_OPEN,
    ]


def _install(order: UnitOrder) -> list[str]:
    return ["", "[Install]", f"WantedBy={'multi-user.target' if order.user else 'default.target'}"]

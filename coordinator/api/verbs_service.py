"""The verb for running as a service: systemd.

Owns one invariant: without ``--install`` nothing is written, and an existing unit is only replaced when it is ours.
"""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.unit import UnitOrder, unit_name, unit_text
from coordinator.api.verb import Reach, Reply, Verb, option
from coordinator.api.view import DIM, GOOD, STRONG, Line, Span, line, span
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.kit import files, lock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.api.desk import Desk

_OURS: Final = "Description=Coding agents on "
_SYSTEM_FOLDER: Final = Path("/etc/systemd/system")
_CACHES: Final = (".cache", ".npm", ".cargo", ".local/share/uv")
"""Below a person's home: where package managers of agents and tests keep what they download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemdArguments:
    """``coordinator systemd``."""

    system: bool = option("a unit of the system instead of one of yours", default=False)
    user: str = option("whom a system unit runs as (you, unless you are root)", default="", metavar="NAME")
    install: bool = option("write it where systemd finds it", default=False)
    agents: int | None = option("agent processes at most", default=None, short="-a", metavar="N")
    self_improve: bool = option("let discovery look for work", default=False)
    leave_agents: bool = option("a stop leaves the agents at work", default=False)
    stop_within: int = option("a stop may take this long", default=270, metavar="SECONDS")


async def systemd(desk: Desk, asked: SystemdArguments) -> Reply:
    """The unit's text; with ``--install`` it is written, and what to do next is said."""
    if asked.stop_within < 1:
        problem = Problem(file="--stop-within", message=f"is {asked.stop_within}", expected="1 second or more")
        raise BadInput([problem])
    name = unit_name(str(desk.root)) + ".service"
    folder = _SYSTEM_FOLDER if asked.system else Path("~/.config/systemd/user").expanduser()
    text = unit_text(_order(desk, asked))
    path = folder / name
    if asked.install:
        _install(path, text)
    control = "systemctl" if asked.system else "systemctl --user"
    steps = [f"{control} daemon-reload", f"{control} enable --now {name}", f"{control} status {name}"]
    if not asked.system:
        steps.append("loginctl enable-linger  # so that it also runs while you are not logged in")
    data = {"installed": asked.install, "name": name, "next": steps, "path": str(path), "unit": text}
    return Reply(data=data)


def _order(desk: Desk, asked: SystemdArguments) -> UnitOrder:
    user = ""
    if asked.system:
        user = asked.user or getpass.getuser()
        if user == "root" and not asked.user:
            fault = "agents would run as root"
            raise BadInput([Problem(file="--user", message=fault, expected="--user NAME of whom they shall run as")])
    home = Path(f"~{user}").expanduser() if user else Path.home()
    return UnitOrder(
        command=(sys.executable, "-P", "-m", "coordinator", "-C", str(desk.root)),
        leave_agents=asked.leave_agents,
        options=(
            *(["--self-improve"] if asked.self_improve else []),
            *(["--agents", str(asked.agents)] if asked.agents is not None else []),
        ),
        path=os.environ.get("PATH", os.defpath),
        repository=str(desk.root),
        stop_s=asked.stop_within,
        user=user,
        writable=[f"-{home / name}" for name in _CACHES],
    )


def _install(path: Path, text: str) -> None:
    try:
        old = files.read_text(path)
        if isinstance(old, str) and _OURS not in old:
            raise BadInput(
                [Problem(file=str(path), message="is there already and is not ours", expected="no such file")]
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.write_atomic(path, text.encode())
    except OSError as error:
        raise BadInput([Problem(file=str(path), message=f"cannot be written: {error.strerror}")]) from error


def show_systemd(data: Mapping[str, Any], width: int) -> list[Line]:
    if not data["installed"]:
        return [(Span(text),) for text in data["unit"].rstrip("\n").split("\n")]
    lines = [line(span("wrote  ", GOOD), data["path"]), line(), line(span("Next:", STRONG))]
    lines += [line("  ", step) for step in data["next"]]
    hint = "Keys: one NAME=value a line in .coordinator/environment, mode 0600."
    return [*lines, line(), line(span(hint, DIM))]


VERBS = (
    Verb(
        name="systemd",
        arguments=SystemdArguments,
        call=systemd,
        doc="Print (or install) a systemd unit that runs the daemon here.",
        example="coordinator systemd --self-improve --install",
        reach=Reach.HERE,
        show=show_systemd,
    ),
)

"""Makes an attempt's working tree from an agent's own process: the same git lines the daemon would run.

Owns one invariant: git starts under the user's own configuration only, with no hook, no background process and no
variable of the caller's environment that could point it at another repository.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import ToolFailed
from coordinator.domain.worktree import clone_commands

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.attempt import Order

_CONFIGURATION: Final = (
    ("core.fsmonitor", "false"),  # its daemon would inherit the claim's lock and keep the task held for ever
    ("core.hooksPath", "/dev/null"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
)
_TIMEOUT_S: Final = 600.0


def prepare(order: Order, lock_fd: int) -> Path:
    """Clone to ``order.worktree``, which must not exist, and check out ``order.branch`` at ``order.base``.

    git inherits the claim's lock: if this process is killed meanwhile, the task is free only when git has ended too.
    Raises ``ToolFailed`` with the command, its exit code and what it said; what is half made is left for the daemon.
    """
    Path(order.worktree).parent.mkdir(parents=True, exist_ok=True)
    environment = git_environment(os.environ)
    lines = clone_commands(repository=order.repository, worktree=order.worktree, base=order.base, branch=order.branch)
    for command in lines:
        _run(command, environment, lock_fd)
    return Path(order.worktree)


def git_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without any ``GIT_*`` variable and with ours: no prompt, plain English, nothing in the background.

    Large files kept by git-lfs stay pointers: the clone has no remote to get them from.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith("GIT_")}
    kept |= {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    kept["GIT_CONFIG_COUNT"] = str(len(_CONFIGURATION))
    for number, (key, value) in enumerate(_CONFIGURATION):
        kept |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return kept


def _run(command: tuple[str, ...], environment: Mapping[str, str], lock_fd: int) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            env=environment,
            pass_fds=(lock_fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"{' '.join(command)}: no end after {_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise ToolFailed(f"{command[0]} could not be started: {error}") from error
    if done.returncode:
        raise ToolFailed(f"{' '.join(command)}: exit code {done.returncode}: {done.stdout.strip()[-2000:]}")

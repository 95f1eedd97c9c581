"""A command line of a person's as a check: exit 0 is passed, anything else failed, unless it could not run at all.

Owns one invariant: "command not found" and "not executable" (127, 126), and that something in it was killed (137, 143), are
never a failure of the code, for as one of the target's they would excuse everything. Whether the missing program should have
come out of the tree itself is told by ``BrokenBy.TREE``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.checks.tool import Surroundings, ToolRun, last_line, run_tool
from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_KILLED: Final = frozenset({137, 143})
"""What a shell makes of SIGKILL and SIGTERM to the program it waited for."""
_NOT_RUN: Final = re.compile(
    r"sh: (?:(?:line )?\d+: )?(?P<program>[^:\n]+): (?:(?:command )?not found|No such file or directory|Permission denied)"
)


class ShellCheck:
    """``key`` names command and surroundings, so that an outcome is re-used only where it would be the same."""

    required = True
    tests = True

    def __init__(
        self, command: str, *, surroundings: Surroundings, identity: str, env: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._env = dict(env or {})
        self._surroundings = surroundings
        self.key = f"sh {identity} {command}"
        self.name = command

    async def run(self, tree: Path, scratch: Path) -> CheckOutcome:
        """``{scratch}`` in a value of ``env`` becomes this run's own folder."""
        extra = {name: value.replace("{scratch}", str(scratch)) for name, value in self._env.items()}
        return await run_command(
            self._command, name=self.name, tree=tree, scratch=scratch, surroundings=self._surroundings, env=extra
        )


async def run_command(
    command: str,
    *,
    name: str,
    tree: Path,
    scratch: Path,
    surroundings: Surroundings,
    env: Mapping[str, str] | None = None,
) -> CheckOutcome:
    """Run ``sh -c command`` in ``tree``; never raises for what it does."""
    ran = await run_tool(
        ("/bin/sh", "-c", command),
        cwd=tree,
        env=surroundings.environment(tree, scratch) | dict(env or {}),
        limits=surroundings.limits(),
        log=scratch / "output.log",
    )
    broken_by, reason = (ran.broken_by, ran.problem) if ran.broken_by else _not_run(ran, tree)
    status = CheckStatus.PASSED if ran.code == 0 else CheckStatus.FAILED
    if not broken_by and status is CheckStatus.FAILED:
        reason = f"exit {ran.code}: {last_line(ran.output)}"
    return CheckOutcome(
        check=name,
        status=CheckStatus.BROKEN if broken_by else status,
        broken_by=broken_by,
        excerpt=ran.output,
        reason=reason,
        took_s=ran.took_s,
    )


def _not_run(ran: ToolRun, tree: Path) -> tuple[BrokenBy | None, str]:
    """Who killed something cannot be seen: the machine, or a time limit of the tests' own. Where that happens twice with a
    change, and not on the target, it is the change's doing; a line that waits for it to end might wait for ever."""
    if ran.code in _KILLED:
        return BrokenBy.TREE, f"exit {ran.code}: something in it was killed"
    if ran.code not in {126, 127}:
        return None, ""
    found = _NOT_RUN.findall(ran.output)
    program = found[-1] if found else ""
    in_tree = "/" in program and (not program.startswith("/") or program.startswith(f"{tree}/"))
    reason = f"exit {ran.code}: {last_line(ran.output) or 'command not found or not executable'}"
    return (BrokenBy.TREE if in_tree else BrokenBy.ENVIRONMENT), reason

"""One way to start git: a subprocess with a clean environment, a time limit and a group that can be killed.

Owns one invariant: git never runs under a variable, a hook or a file-system monitor that somebody else chose for us;
only the repository named in the constructor and the user's own global configuration count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_SAFETY: Final = (
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.fsync=committed,loose-object,reference",
    "core.fsyncMethod=batch",
    "core.filesRefLockTimeout=2000",
    "core.packedRefsTimeout=5000",
    "core.bigFileThreshold=16m",
    "gc.auto=0",
    "maintenance.auto=false",
    "commit.gpgsign=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
    "i18n.commitEncoding=utf-8",
    "i18n.logOutputEncoding=utf-8",
    "log.showSignature=false",
)
"""Nothing planted runs, nothing runs in the background, what we were told is stored survives a power cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitOutput:
    """What a git command printed; ``stderr`` is decoded for people."""

    code: int
    stdout: bytes
    stderr: str


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without any ``GIT_*``, plus what keeps git from asking, translating and locking needlessly."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") and name != "LANGUAGE"}
    env |= {
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    return env | dict(extra or {})


def safety_options(*, hooks: bool) -> tuple[str, ...]:
    """The ``-c`` options every git command of ours gets."""
    names = _SAFETY if hooks else ("core.hooksPath=/dev/null", *_SAFETY)
    return tuple(word for name in names for word in ("-c", name))


async def run_git(
    argv: tuple[str, ...],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    stdin: bytes | int | None = None,
    stdout: int | None = None,
) -> GitOutput:
    """Start ``argv`` in a group of its own; ``stdin`` is bytes or an open file, ``stdout`` an open file if not kept.

    Raises ``ToolFailed`` when git cannot be started or is not done after ``timeout_s``; a cancel kills the group too.
    """
    try:
        process = await _start(
            argv, cwd, env, stdin if isinstance(stdin, int) else PIPE, PIPE if stdout is None else stdout
        )
    except (OSError, ValueError) as error:
        raise ToolFailed(f"{_brief(argv)}: cannot be started: {error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin if isinstance(stdin, bytes) else None)
    except TimeoutError as error:
        raise ToolFailed(f"{_brief(argv)}: not done after {timeout_s:g} s, stopped") from error
    finally:
        if process.returncode is None:
            await _kill(process)
    assert process.returncode is not None
    return GitOutput(code=process.returncode, stdout=out or b"", stderr=err.decode(errors="replace"))


async def _start(
    argv: tuple[str, ...], cwd: Path, env: Mapping[str, str], stdin: int, stdout: int
) -> asyncio.subprocess.Process:
    """A cancel while git starts kills its whole group; asyncio would leave what git has started meanwhile."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=PIPE, start_new_session=True
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError, ValueError):
            await _kill(await starting)
        raise


async def _kill(process: asyncio.subprocess.Process) -> None:
    # Not reaped yet, so the pid is still ours and so is the group of the same number.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


def _brief(argv: tuple[str, ...]) -> str:
    """The command without our standing options, short enough for one line."""
    words, skip = [], False
    for word in argv[1:]:
        if skip or word == "-c":
            skip = not skip
        elif not word.startswith(("--git-dir=", "--work-tree=")):
            words.append(word)
    text = " ".join(["git", *words])
    return text if len(text) <= 200 else text[:199] + "…"


class GitCommand:
    """Git on one repository, named by its (common) git folder; ``hooks`` lets the repository's own hooks run."""

    def __init__(self, top: Path, git_dir: Path, *, hooks: bool = False) -> None:
        self.top = top
        self.git_dir = git_dir
        self._prefix = ("git", f"--git-dir={git_dir}", *safety_options(hooks=hooks))

    async def run(
        self,
        *args: str,
        stdin: bytes | int | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
        ok: Collection[int] = (0,),
        stdout: int | None = None,
    ) -> GitOutput:
        """Run one git command on the repository; its working folder is the git folder, not anybody's checkout.

        Raises ``ToolFailed`` with command, exit code and last output unless the exit code is in ``ok``.
        """
        argv = (*self._prefix, *args)
        environment = clean_environment(env)
        output = await run_git(argv, cwd=self.git_dir, env=environment, timeout_s=timeout_s, stdin=stdin, stdout=stdout)
        if output.code not in ok:
            raise failure(argv, output)
        return output


def failure(argv: tuple[str, ...], output: GitOutput) -> ToolFailed:
    """The error that says which command ended how, with the end of what it printed."""
    last = "\n".join(output.stderr.strip().splitlines()[-5:])[-1000:]
    how = f"exit code {output.code}" if output.code >= 0 else f"killed by signal {-output.code}"
    return ToolFailed(f"{_brief(argv)}: {how}" + (f": {last}" if last else ""))

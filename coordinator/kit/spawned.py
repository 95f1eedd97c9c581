"""One program that we have started: how it is started, how its end is noticed, and what its end was.

Owns one invariant: until its end is asked for, its pid (or that of the warden before it) stays its own. It ends nobody who
is not its warden: that is ``kin``'s.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from coordinator.kit import process_table, warden
from coordinator.kit.process_table import Member

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from pathlib import Path

_LOOK_S: Final = 0.1
_WARDEN_PATIENCE_S: Final = 5.0
"""A warden that has nobody left to watch over ends within milliseconds, if the machine lets it run at all."""
_WORD_BYTES: Final = 4096

CONTAINABLE: Final = sys.platform == "linux"
"""Elsewhere nobody can adopt orphans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnd:
    """``code`` is negative for a signal; ``problem`` says why it could not be started. ``clean``: nothing of it is left."""

    clean: bool
    code: int | None
    problem: str = ""


class Spawned:
    """A child of ours in a session of its own. Unless it is reaped, its pid stays its own even after its end."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        seen = process_table.row(popen.pid)
        self.member = seen.member if seen else Member(popen.pid, "")

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: Sequence[int],
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> Self:
        """``output`` takes stdout and, the last of it, stderr. Raise ``OSError`` or ``ValueError`` when it cannot be started."""
        return cls(_popen(argv, cwd=cwd, env=env, output=output, stdin=stdin, pass_fds=pass_fds))

    @property
    def warded(self) -> bool:
        """``member`` is not the program itself but a warden before it."""
        return False

    async def ended(self) -> None:
        """Return when the program has ended."""
        await exited(self.member)

    async def conclude(self, *, clean: bool) -> ProgramEnd:
        """Its end, when it has been ended; ``clean``: all of it, as far as we have seen."""
        return ProgramEnd(clean=clean, code=self.reap())

    def reap(self) -> int | None:
        """The exit code, negative for a signal; None while it runs, which is then nobody's business any more."""
        code = self._popen.poll()
        if code is None:
            self.detach()
        return code

    def detach(self) -> None:
        """Let it outlive us without a complaint of ``Popen``, which believes that children are always waited for."""
        if self._popen.returncode is None:
            self._popen.returncode = 0


class WardedProgram(Spawned):
    """A program under a warden (``kit.warden``). Whatever is reaped or let go, the warden then ends what is left of it."""

    def __init__(self, popen: subprocess.Popen[bytes], link: socket.socket) -> None:
        super().__init__(popen)
        self._link = link
        link.setblocking(False)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: Sequence[int],
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> Self:
        if not argv:
            raise ValueError("the command is empty")
        ours, theirs = socket.socketpair()
        try:
            command, passed = warden.command(argv, theirs.fileno()), (*pass_fds, theirs.fileno())
            return cls(_popen(command, cwd=cwd, env=env, output=output, stdin=stdin, pass_fds=passed), ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    @property
    def warded(self) -> bool:
        return True

    async def ended(self) -> None:
        await _readable(self._link.fileno())

    async def conclude(self, *, clean: bool) -> ProgramEnd:
        """A warden knows for certain, and with the link cut it goes on until nobody is left. As long as somebody is, it stays,
        and what it holds open stays held with it."""
        process_table.send(self.member, signal.SIGCONT)  # the program may have stopped it
        if clean:
            await _in_time(self.ended())
        code, problem = warden.parse(self._last_word())
        if clean and not await _in_time(exited(self.member)):
            clean = not process_table.members_below(self.member.pid)
            if clean:
                process_table.send(self.member, signal.SIGKILL)
                await exited(self.member)
        own = super().reap()
        if code is None and not problem and own is not None and own >= 0:
            problem = f"the process that was to watch over it ended with code {own}"
        return ProgramEnd(clean=clean, code=own if code is None and not problem else code, problem=problem)

    def reap(self) -> int | None:
        code, _ = warden.parse(self._last_word())
        own = super().reap()
        return own if code is None else code

    def _last_word(self) -> bytes:
        try:
            return self._link.recv(_WORD_BYTES)
        except OSError:
            return b""
        finally:
            self._link.close()


def _popen(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    output: Sequence[int],
    stdin: int,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    if not argv:
        raise ValueError("the command is empty")
    return subprocess.Popen(
        list(argv),
        cwd=cwd,
        env=dict(env),
        stdin=stdin,
        stdout=output[0],
        stderr=output[-1],
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )


async def exited(member: Member) -> None:
    """Return when that process has ended (reaped or not), at once when it is not there. It need not be a child."""
    try:
        descriptor = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        while process_table.alive(member):  # noqa: ASYNC110 - without a pidfd nothing announces it
            await asyncio.sleep(_LOOK_S)
        return
    try:
        if process_table.alive(member):
            await _readable(descriptor)
    finally:
        os.close(descriptor)


async def _in_time(event: Coroutine[None, None, None]) -> bool:
    try:
        await asyncio.wait_for(event, _WARDEN_PATIENCE_S)
    except TimeoutError:
        return False
    return True


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)

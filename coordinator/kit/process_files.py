"""The files of a program that is run: what it reads, what it writes, and how much.

Owns one invariant: only regular files are opened, never a link or a fifo that was planted in their place.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Room:
    """How much the output's files may grow by, each."""

    def __init__(self, sinks: Sequence[int], limit_bytes: int) -> None:
        self._ends = {sink: _size(sink) + limit_bytes for sink in sinks if limit_bytes}
        self._over = False

    def exceeded(self) -> bool:
        self._over = self._over or any(_size(sink) > end for sink, end in self._ends.items())
        return self._over

    def cut(self) -> bool:
        """Whether the limit was passed; what is beyond it is thrown away. Only for when nobody writes any more."""
        if self.exceeded():
            for sink, end in self._ends.items():
                with contextlib.suppress(OSError):
                    os.ftruncate(sink, min(_size(sink), end))
        return self._over


def _size(descriptor: int) -> int:
    return os.fstat(descriptor).st_size


def _open(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    """A regular file only: neither a symlink nor a fifo planted in its place leads us anywhere."""
    descriptor = os.open(path, flags | _OPEN_FLAGS, 0o600)
    stack.callback(os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError(f"{path} is not a regular file")
    return descriptor


def open_sink(stack: contextlib.ExitStack, output: Path | int) -> int:
    return output if isinstance(output, int) else _open(stack, output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def open_source(stack: contextlib.ExitStack, stdin: Path | bytes | None) -> int:
    if stdin is None:
        return subprocess.DEVNULL
    if not isinstance(stdin, bytes):
        return _open(stack, stdin, os.O_RDONLY)
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by the stack
    file.write(stdin)
    file.seek(0)
    return file.fileno()

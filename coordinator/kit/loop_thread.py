"""An event loop in a thread of its own, for work that must not wait for what else its process does.

Owns one invariant: whatever becomes of the work is told to who started it, and its thread is over when ``run`` returns. The
two loops share no lock: what one wants of the other is posted. It does not know what it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class LoopThread:
    """One run of some work on a loop that ``new_loop`` makes."""

    def __init__(self, name: str, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._name = name
        self._new_loop = new_loop
        self._home: asyncio.AbstractEventLoop | None = None
        self._there: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Raises what ``work`` raises. A cancelled ``run`` cancels it and waits for its end."""
        self._home = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix=self._name) as threads:
            living = self._home.run_in_executor(threads, self._live, work)
            try:
                await asyncio.shield(living)
            except asyncio.CancelledError:
                if not living.done():
                    self.post(self._cancel)
                    with contextlib.suppress(asyncio.CancelledError):
                        await living
                raise

    def post(self, call: Callable[..., object], *arguments: object) -> bool:
        """Have ``call`` called there soon, from any thread. False: nothing runs there (any more)."""
        return _post(self._there, call, *arguments)

    def tell(self, call: Callable[..., object], *arguments: object) -> bool:
        """Have ``call`` called soon where ``run`` was awaited. False: that loop is gone."""
        return _post(self._home, call, *arguments)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _live(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            self._there = runner.get_loop()
            try:
                runner.run(self._follow(work))
            finally:
                self._there = None

    async def _follow(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._task = asyncio.create_task(work())
        await self._task


def _post(loop: asyncio.AbstractEventLoop | None, call: Callable[..., object], *arguments: object) -> bool:
    if loop is None:
        return False
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:  # it was closed at this moment
        return False
    return True

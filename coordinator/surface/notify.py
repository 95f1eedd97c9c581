"""Calls people: runs a command or posts to a URL for each occasion that a ``[[notify]]`` asks for.

Owns one invariant: nothing here slows or stops the daemon. Each hook has a queue of its own; a full one loses its oldest
message and says so in the log. When an event is an occasion is ``policy.notify``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from coordinator.api.phrase import phrase
from coordinator.kit import webhook
from coordinator.policy.notify import occasion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from coordinator.domain.event import Published
    from coordinator.domain.settings import NotifyHook
    from coordinator.kit.bus import Bus

_log = logging.getLogger(__name__)

_ROOM: Final = 200
_FIRST_PAUSE_S: Final = 1.0
_LAST_WORDS_S: Final = 5.0
"""What is still unsaid when the daemon stops gets this long."""
_OUTPUT_BYTES: Final = 64 * 1024


class _Caller:
    """One hook and the messages that wait for it."""

    def __init__(self, hook: NotifyHook, repository: Path, log: Path, pause_s: float) -> None:
        self._hook = hook
        self._repository = repository
        self._log_file = log
        self._pause_s = pause_s
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._news = asyncio.Event()
        self.silent = asyncio.Event()
        self.silent.set()

    def take(self, message: Mapping[str, Any]) -> None:
        if message["occasion"] not in self._hook.on:
            return
        if len(self._waiting) >= _ROOM:
            lost = self._waiting.popleft()
            _log.warning("a notification was dropped: %s", lost["text"], extra={"action": "notification_dropped"})
        self._waiting.append(message)
        self.silent.clear()
        self._news.set()

    async def serve(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                await self._say(self._waiting.popleft())
            self.silent.set()

    async def _say(self, message: Mapping[str, Any]) -> None:
        pause_s, fault = self._pause_s, ""
        for turn in range(self._hook.retries + 1):
            if turn:
                await asyncio.sleep(pause_s)
                pause_s *= 2
            fault = await self._try(message)
            if not fault:
                return
        whom = self._hook.command[0] if self._hook.command else self._hook.url_env or self._hook.url.split("?")[0]
        extra = {"action": "notification_failed", "occasion": message["occasion"]}
        _log.warning("%s was not told of %s: %s", whom, message["occasion"], fault, extra=extra)

    async def _try(self, message: Mapping[str, Any]) -> str:
        """What went wrong; empty: it was taken."""
        hook = self._hook
        if hook.command:
            return await self._run(message)
        url = os.environ.get(hook.url_env, "") if hook.url_env else hook.url
        try:
            await webhook.post(url, message, hook.timeout_s)
        except (OSError, TimeoutError) as error:
            return str(error) or "no answer in time"
        return ""

    async def _run(self, message: Mapping[str, Any]) -> str:
        from coordinator.kit import process

        environment = {**os.environ, "COORDINATOR_OCCASION": str(message["occasion"])}
        ended = await process.run(
            self._hook.command,
            contained=True,
            cwd=self._repository,
            env=environment,
            limits=process.Limits(timeout_s=self._hook.timeout_s, grace_s=1.0, output_bytes=_OUTPUT_BYTES),
            output=self._log_file,
            stdin=json.dumps(message).encode() + b"\n",
        )
        if ended.spawn_error:
            return ended.spawn_error
        if ended.timed_out:
            return f"it took longer than {self._hook.timeout_s:g} s"
        return "" if ended.code == 0 else f"it ended with {ended.code if ended.code is not None else 'a signal'}"


class Notifier:
    """A service; ``log`` is where commands' output goes, ``pause_s`` what lies before the first repeat (then twice that …)."""

    name = "notifier"

    def __init__(
        self, bus: Bus, hooks: Sequence[NotifyHook], repository: Path, log: Path, *, pause_s: float = _FIRST_PAUSE_S
    ) -> None:
        self._subscription = bus.subscribe()
        self._repository = repository
        self._callers = [_Caller(hook, repository, log, pause_s) for hook in hooks]
        self._log = log

    async def run(self, stopping: asyncio.Event) -> None:
        closing = asyncio.create_task(self._close_on(stopping))
        serving = [asyncio.create_task(caller.serve()) for caller in self._callers]
        self._trim()
        try:
            async for published in self._subscription:
                self._pass_on(published)
            await self._last_words()
        finally:
            for task in (closing, *serving):
                task.cancel()
            await asyncio.gather(closing, *serving, return_exceptions=True)

    async def _close_on(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._subscription.close()

    def _pass_on(self, published: Published) -> None:
        what = occasion(published.event)
        if not what:
            return
        news = phrase(published.event)
        message = {
            "at": published.at.isoformat(),
            "event": {"kind": published.event.kind, **published.event.to_json()},
            "occasion": what,
            "repository": str(self._repository),
            "text": f"{self._repository.name}: {news.word}: {news.text}",
        }
        for caller in self._callers:
            caller.take(message)

    async def _last_words(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await asyncio.gather(*(caller.silent.wait() for caller in self._callers))

    def _trim(self) -> None:
        """What commands printed is for whoever looks for a fault today."""
        try:
            if self._log.lstat().st_size > 16 * _OUTPUT_BYTES:
                self._log.unlink()
        except OSError:
            return

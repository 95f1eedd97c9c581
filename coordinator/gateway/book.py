"""The book of model calls: each one that is over, and what was spent by day, task, role, upstream and model.

Owns one invariant: whatever passed is in the sums, and written within ``FLUSH_S`` and away from every stream; of a flood
only the last calls are kept one by one. It computes no price.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.event import RequestServed

if TYPE_CHECKING:
    from coordinator.domain.event import Published
    from coordinator.kit.store import Store

_log = logging.getLogger(__name__)

FLUSH_S: Final = 0.5
_EACH: Final = 500
"""Calls written one by one in a flush; beyond that the newest ones, and all of them in the sums."""
_KEPT: Final = 50_000
_TRIM_EVERY: Final = 200
"""Flushes."""

_SUMS: Final = ("calls", "unpriced", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class CallBook:
    """A service. ``take`` is a tap of the bus: it only notes down."""

    name = "calls"

    def __init__(self, store: Store) -> None:
        self._store = store
        self._served: list[Published] = []
        self._some = asyncio.Event()
        self._flushes = 0

    def take(self, published: Published) -> None:
        if type(published.event) is RequestServed:
            self._served.append(published)
            self._some.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Raises ``sqlite3.Error`` when it cannot be written; what was not, is at the next try."""
        ending = asyncio.ensure_future(stopping.wait())
        try:
            while not stopping.is_set():
                waiting = asyncio.ensure_future(self._some.wait())
                await asyncio.wait({ending, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not stopping.is_set():
                    await asyncio.wait({ending}, timeout=FLUSH_S)
                await self.flush()
        finally:
            ending.cancel()

    async def flush(self) -> None:
        self._some.clear()
        served = self._served
        if not served:
            return
        self._served = []
        try:
            await asyncio.to_thread(self._write, served)
        except BaseException:
            self._served = served + self._served
            raise

    def _write(self, served: list[Published]) -> None:
        rows = [
            {"at": one.at.isoformat(), "task": one.event.task, "data": json.dumps(one.event.to_json())}  # type: ignore[attr-defined]
            for one in served[-_EACH:]
        ]
        with self._store.transaction():
            self._store.execute_many("spend_put", sums_of(served))
            self._store.execute_many("call_put", rows)
        self._flushes += 1
        if self._flushes % _TRIM_EVERY == 1:
            self._store.execute("calls_trim", keep=_KEPT)


def sums_of(served: list[Published]) -> list[dict[str, Any]]:
    """One row for each day, task, role, upstream and model."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for published in served:
        event = published.event
        if not isinstance(event, RequestServed):
            continue
        key = published.at.date().isoformat(), event.task, event.role, event.upstream, event.model[:200]
        row = rows.get(key)
        if row is None:
            names = ("day", "task", "role", "upstream", "model")
            row = rows[key] = {**dict(zip(names, key, strict=True)), **dict.fromkeys(_SUMS, 0)}
            row |= {"collapsed": 0, "cost_usd": 0.0, "saved_usd": 0.0}
        row["calls"] += 1
        if not event.priced:
            row["unpriced"] += 1
        if event.collapsed:
            row["collapsed"] += 1
            row["saved_usd"] += event.saved_usd
        row["cost_usd"] += event.cost_usd
        row["input_tokens"] += event.input_tokens
        row["output_tokens"] += event.output_tokens
        row["cache_read_tokens"] += event.cache_read_tokens
        row["cache_write_tokens"] += event.cache_write_tokens
    return list(rows.values())

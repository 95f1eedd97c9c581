"""The gateway as the rest of the house sees it: credentials for attempts, calls under way, revoking, and the service.

Owns one invariant: while it is on, an agent reaches a model here and with its own key only, and a key dies with its
attempt. Where it is off, it says so by having no credentials and no calls to tell of.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from coordinator.domain.event import CallsCounted, GatewayReady, Noticed
from coordinator.gateway import place
from coordinator.gateway.calls import Calls
from coordinator.gateway.keys import ClaimKeys, base_path
from coordinator.gateway.relay import Relay
from coordinator.gateway.upstream import upstreams_of
from coordinator.kit.http import HttpClient, HttpServer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from coordinator.domain.settings import GatewaySettings
    from coordinator.kit.bus import Bus
    from coordinator.kit.clock import Clock

_log = logging.getLogger(__name__)

FAREWELL_S: Final = 3.0
"""What calls under way get to end by themselves when the gateway stops: each that does is not paid for twice."""


class Gateway:
    """A service. ``open`` before the first order is written, ``close`` when no service will run any more.

    ``is_live`` says whether an attempt may make calls: it was offered, and its end has not been seen. It is asked for
    each call and has to be quick.
    """

    name = "gateway"

    def __init__(
        self,
        state: Path,
        settings: GatewaySettings,
        environment: Mapping[str, str],
        bus: Bus,
        clock: Clock,
        *,
        is_live: Callable[[str, int], bool],
    ) -> None:
        self._state = state
        self._settings = settings
        self._bus = bus
        self._clock = clock
        self._is_live = is_live
        self._calls = Calls(clock)
        self._place: place.GatewayPlace | None = None
        self._upstreams = upstreams_of(settings, environment)
        self.on = self._upstreams.wanted
        """Whether there is a gateway at all."""

    # -- what the house asks -----------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Empty while it is not open."""
        return f"http://{place.HOST}:{self._place.port}" if self._place is not None else ""

    def credentials(self, task: str, generation: int) -> tuple[str, str]:
        """Base URL and key for an attempt; both empty when there is no gateway."""
        if self._place is None:
            return "", ""
        claim = task, generation
        return f"{self.url}{base_path(claim)}", ClaimKeys(self._place.secret).key(claim)

    def calls(self, task: str, generation: int) -> tuple[int, float] | None:
        """Model calls of an attempt in flight and the age of the oldest in seconds.

        None: not known. There is no gateway, or this attempt never called through it (yet): it may have another way.
        """
        claim = task, generation
        return self._calls.under_way(claim) if self._calls.ever_called(claim) else None

    def revoke(self, task: str, generation: int) -> None:
        """From now on the attempt reaches no model, under this daemon or the next; its calls in flight are cut."""
        if not self.on or not self._calls.revoke((task, generation)):
            return
        try:
            place.remember_revoked(self._state, (task, generation))
        except OSError as error:
            extra = {"action": "revocation_not_kept", "task": task}
            _log.warning("a restart would forget that the key is revoked: %s", error, extra=extra)

    def conclude(self, task: str, generation: int) -> float:
        """The attempt is over: its key is dead, and what it called is told. The ledger keeps that it is over.

        Returns in how many seconds the provider, which had no more for it, said that there is more; 0: it did not.
        """
        if not self.on:
            return 0.0
        self._calls.revoke((task, generation))
        tally = self._calls.take_tally((task, generation))
        if tally is None:
            return 0.0
        self._bus.publish(
            CallsCounted(
                bytes_down=tally.bytes_down,
                bytes_up=tally.bytes_up,
                calls=tally.calls,
                generation=generation,
                last_status=tally.last_status,
                limited=tally.limited,
                task=task,
            )
        )
        limited = tally.last_status == 429
        return max(0.0, tally.again_at - self._clock.monotonic()) if limited and tally.again_at else 0.0

    # -- its life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen, so that credentials can be given and agents of before find us. Safe to call twice; raises ``OSError``."""
        if not self.on or self._place is not None:
            return
        for claim in place.revoked_before(self._state):
            self._calls.revoke(claim)
        self._place = place.take(self._state, self._settings.port)
        if self._place.lost:
            message = (
                f"{self._place.lost}: model calls pass through {self.url}; agents that an earlier daemon started do not "
                "find it and will fail within about 3 minutes"
            )
            self._bus.publish(Noticed(subject="gateway", message=message))

    def close(self) -> None:
        """Listen no more. Safe to call twice."""
        kept, self._place = self._place, None
        if kept is None:
            return
        kept.listener.close()
        try:
            place.write(self._state, kept.port, kept.secret, pid=0)
        except OSError as error:
            _log.warning("not written down that the gateway is closed: %s", error, extra={"action": "close_not_kept"})

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until told to stop. After a failure the socket goes on listening, so that callers only wait."""
        self.open()
        if self._place is None:
            await stopping.wait()
            return
        client = HttpClient()
        keys = ClaimKeys(self._place.secret)
        relay = Relay(
            keys,
            self._calls,
            self._upstreams,
            client,
            self._bus,
            self._clock,
            is_live=self._is_live,
            revoke=self.revoke,
        )
        server = HttpServer(relay.serve)
        try:
            await client.open()
            await server.start(self._place.listener.dup())
            urls = tuple(upstream.url for upstream in self._upstreams.in_use())
            self._bus.publish(GatewayReady(url=self.url, upstreams=urls))
            await stopping.wait()
            await server.refuse_new()
            await self._calls.close(FAREWELL_S)
        finally:
            await server.stop()
            await client.close()
            if stopping.is_set():
                self.close()


def listening_at(state: Path) -> str:
    """Where the gateway of this very process listens; empty: there is none."""
    return place.url_of(state, os.getpid())

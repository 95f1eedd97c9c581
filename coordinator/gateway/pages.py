"""What is asked of the gateway beside model calls: health, readiness, metrics, and prompts of our own.

Owns one invariant: a page costs a relayed call nothing: its connection was handed over to an ordinary framework, which
answers one request on it and hangs up. Reading what is here takes no key, except where it spends money.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.kit.http import PageServer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from coordinator.domain.meter import Meter
    from coordinator.gateway.prompt_lane import PromptLane
    from coordinator.gateway.station import Station
    from coordinator.kit.http import PageExchange

INFER: Final = "/v1/infer"

_JSON: Final = ((b"content-type", b"application/json"),)


class Pages:
    """``ready`` says why no call can be served, or nothing. ``render`` turns meters into a body and its content type.
    ``lane`` answers prompts; without one there is no such page."""

    def __init__(
        self,
        stations: Iterable[Station],
        meters: Callable[[], Iterable[Meter]],
        render: Callable[[Iterable[Meter]], tuple[bytes, str]],
        closing: Callable[[], bool],
        lane: PromptLane | None = None,
    ) -> None:
        self._closing = closing
        self.lane = lane
        self._meters = meters
        self._render = render
        self._server = PageServer(self._answer)
        self._stations = tuple(stations)

    async def open(self) -> None:
        await self._server.open()

    def protocol(self) -> asyncio.Protocol:
        """For one connection."""
        return self._server.protocol()

    async def close(self) -> None:
        await self._server.close()

    async def _answer(self, page: PageExchange) -> None:
        match page.method, page.path:
            case (("GET" | "HEAD"), "/health"):
                await page.reply(200, _JSON, _json({"status": "ok"}))
            case (("GET" | "HEAD"), "/ready"):
                why = self._obstacle()
                await page.reply(503 if why else 200, _JSON, _json({"ready": not why, "reason": why}))
            case (("GET" | "HEAD"), "/metrics"):
                body, kind = self._render(self._meters())
                await page.reply(200, ((b"content-type", kind.encode()),), body)
            case "POST", path if path.endswith(INFER) and self.lane is not None:
                await self.lane.serve(page)
            case _:
                await page.reply(405, _JSON, _json({"error": {"message": "not called in this way"}}))

    def _obstacle(self) -> str:
        if self._closing():
            return "it stops"
        if not self._stations:
            return "no upstream can be used: `coordinator doctor` says why"
        return ""


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"

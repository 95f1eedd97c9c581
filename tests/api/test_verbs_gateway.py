"""The verbs for who runs the gateway, on one that runs: what they show, what they change, and that it is told."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api import view
from coordinator.api.verb import arguments_from
from coordinator.domain.errors import BadInput, DaemonUnreachable
from coordinator.domain.upstream import UpstreamKind, UpstreamSettings
from tests.api.test_verbs import VERBS, shown
from tests.gateway.rig import Exchange, House, Upstream, hello

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from coordinator.api.verb import Reply
    from coordinator.gateway.gateway import Gateway
    from tests.api.conftest import Place

BODY = b'{"model":"claude-x"}'


async def ask(place: Place, verb: str, /, *, live: bool = True, **arguments: Any) -> Reply:
    found = VERBS[verb]
    assert found.call is not None
    reply = await found.call(place.desk if live else place.offline, arguments_from(found, arguments))
    json.dumps(reply.data)
    for width in (60, 80):
        for line in found.show(reply.data, width):
            assert view.width_of("".join(span.text for span in line)) <= width, line
    return reply


@contextlib.asynccontextmanager
async def house_of(
    place: Place, script: Any = hello, begin: Callable[[Gateway], None] = lambda _: None, **settings: Any
) -> AsyncIterator[House]:
    async with Upstream(script) as upstream:
        described = (
            UpstreamSettings(kind=UpstreamKind.ANTHROPIC, name="team", url=upstream.url, max_concurrency=4),
            UpstreamSettings(kind=UpstreamKind.ECHO, name="echo", models=("echo",)),
        )
        made = House(place.desk.root / "gateway", "", upstreams=described, **settings)
        begin(made.gateway)
        async with made as house:
            place.live.gateway = house.gateway  # type: ignore[attr-defined]
            yield house


async def test_upstreams_are_listed_with_what_holds_calls_back(place: Place) -> None:
    async with house_of(place):
        reply = await ask(place, "upstreams list")
        assert [one["name"] for one in reply.data["upstreams"]] == ["team", "echo"]
        assert set(reply.data["upstreams"][0]) == {
            "breakers", "held_by", "in_flight", "kind", "limit", "models", "name", "pace_per_s", "url", "waiting",
        }  # fmt: skip
        assert "team  0 of 4 under way, 0 waiting" in shown(place, "upstreams list", reply)
        await ask(place, "upstreams pause", name="team", reason="the key is being changed, which takes a while")
        held = shown(place, "upstreams list", await ask(place, "upstreams list"))
        assert "paused: the key is being changed" in held


async def test_a_breaker_that_is_open_is_shown_with_its_reason(place: Place) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.plain(b"{}", status="503 No")

    async with house_of(place, script, probe_every_s=60.0) as house:
        for _ in range(3):
            await house.reply(body=BODY)
        assert "breaker of claude-x is open: it answers 503" in shown(
            place, "upstreams list", await ask(place, "upstreams list")
        )


async def test_an_upstream_is_paused_and_resumed(place: Place) -> None:
    async with house_of(place) as house:
        reply = await ask(place, "upstreams pause", name="team")
        assert reply.data == {"name": "team", "paused": True}
        assert (await house.reply(body=BODY)).status == 429
        reply = await ask(place, "upstreams resume", name="team")
        assert shown(place, "upstreams resume", reply) == "team takes calls again"
        assert (await house.reply(body=BODY)).status == 200
        assert len(house.said("noticed")) == 2
        for verb in ("upstreams pause", "upstreams resume"):
            with pytest.raises(BadInput, match="no upstream"):
                await ask(place, verb, name="nobody")


async def test_without_a_gateway_they_say_so(place: Place, tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="no daemon"):
        await ask(place, "upstreams list", live=False)
    off = House(tmp_path / "off", "", enabled="off")
    place.live.gateway = off.gateway  # type: ignore[attr-defined]
    with pytest.raises(DaemonUnreachable, match="no gateway runs"):
        await ask(place, "upstreams list")

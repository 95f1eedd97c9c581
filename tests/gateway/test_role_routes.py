"""A rule for a role decides which model its calls get, and where, whatever its agents ask for."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.domain.role_route import RoleRoute
from coordinator.domain.upstream import UpstreamKind, usual_upstream
from coordinator.gateway.claimant import Claimant
from tests.gateway.rig import Exchange, House, Upstream, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

JSON = "Content-Type: application/json\r\n"
SAID: dict[str, Any] = {"type": "message", "content": [{"type": "text", "text": "Hi"}], "usage": {"output_tokens": 1}}


async def answer(exchange: Exchange) -> None:
    await exchange.plain(json.dumps({**SAID, "model": model_of(exchange)}).encode(), more=JSON)


def model_of(exchange: Exchange) -> str:
    return str(json.loads(exchange.body)["model"])


def body(model: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "max_tokens": 5, "messages": [], **more}).encode()


@asynccontextmanager
async def two_upstreams(state: Path, **rules: RoleRoute) -> AsyncIterator[tuple[House, Upstream, Upstream]]:
    async with Upstream(answer) as near, Upstream(answer) as far:
        listed = tuple(
            replace(
                usual_upstream(UpstreamKind.ANTHROPIC, name), url=one.url, models=("claude-*", *more), weight=weight
            )
            for name, one, more, weight in (("near", near, (), 1.0), ("far", far, ("far-1",), 0.0))
        )
        aliases = {"fast": "claude-small"}
        async with House(state, "", upstreams=listed, aliases=aliases, roles=rules) as house:
            yield house, near, far


@pytest.mark.parametrize(("model", "gets"), [("claude-small", "claude-small"), ("fast", "claude-small")])
async def test_a_roles_calls_get_the_model_of_its_rule(tmp_path: Path, model: str, gets: str) -> None:
    async with two_upstreams(tmp_path, reviewer=RoleRoute(model=model)) as (house, near, _):
        house.claimant = Claimant(role="reviewer")
        asked = body("claude-large", system="Review claude-large's work.")
        assert (await house.reply(body=asked)).status == 200
        house.claimant = Claimant(role="builder")
        assert (await house.reply(body=asked)).status == 200
        assert [model_of(one) for one in near.seen] == [gets, "claude-large"]
        assert near.seen[0].body == asked.replace(b'"model": "claude-large"', f'"model": "{gets}"'.encode())
        assert near.seen[1].body == asked
        await until(lambda: len(house.served()) >= 2)
        assert [one.model for one in house.served()] == [gets, "claude-large"]


async def test_a_roles_calls_go_to_the_upstream_of_its_rule_and_to_no_other(tmp_path: Path) -> None:
    async with two_upstreams(tmp_path, reviewer=RoleRoute(upstream="far")) as (house, near, far):
        for role, model in (("reviewer", "claude-1"), ("builder", "claude-1"), ("reviewer", "claude-1")):
            house.claimant = Claimant(role=role)
            assert (await house.reply(body=body(model))).status == 200
        assert (len(near.seen), len(far.seen)) == (1, 2)
        house.claimant = Claimant(role="reviewer")
        refused = await house.reply(body=body("gpt-1"))
        assert refused.status == 404
        assert "calls of the role reviewer go to far alone" in refused.error["message"]
        await far.stop()
        assert (await house.reply(body=body("claude-1"))).status == 502
        assert len(near.seen) == 1


async def test_both_together(tmp_path: Path) -> None:
    async with two_upstreams(tmp_path, reviewer=RoleRoute(model="far-1", upstream="far")) as (house, near, far):
        house.claimant = Claimant(role="reviewer")
        assert (await house.reply(body=body("claude-large"))).status == 200
        assert (await house.reply("/v1/messages/count_tokens", body("claude-large"))).status == 200
        assert ([model_of(one) for one in far.seen], near.seen) == (["far-1", "far-1"], [])


@pytest.mark.parametrize("asked", [{}, {"model": "claude-large"}])
async def test_prompts_keep_to_it_too(tmp_path: Path, asked: dict[str, str]) -> None:
    async with two_upstreams(tmp_path, reviewer=RoleRoute(model="fast", upstream="far")) as (house, near, far):
        house.claimant = Claimant(role="reviewer")
        got = await house.reply("/v1/infer", json.dumps({"prompt": "hi", "max_tokens": 5, **asked}).encode())
        assert (got.status, json.loads(got.body)["upstream"]) == (200, "far")
        assert ([model_of(one) for one in far.seen], near.seen) == (["claude-small"], [])


async def test_a_prompt_that_names_no_model_stays_at_the_roles_upstream(tmp_path: Path) -> None:
    async with two_upstreams(tmp_path, reviewer=RoleRoute(upstream="far")) as (house, near, far):
        house.claimant = Claimant(role="reviewer")
        got = await house.reply("/v1/infer", json.dumps({"prompt": "hi", "max_tokens": 5}).encode())
        assert got.status == 200
        assert ([model_of(one) for one in far.seen], near.seen) == (["far-1"], [])


async def test_embeddings_keep_their_model(tmp_path: Path) -> None:
    async def embed(exchange: Exchange) -> None:
        await exchange.plain(b'{"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}', more=JSON)

    async with Upstream(embed) as upstream:
        one = replace(usual_upstream(UpstreamKind.OPENAI, "one"), url=f"{upstream.url}/v1")
        async with House(tmp_path, "", upstreams=(one,), roles={"reviewer": RoleRoute(model="gpt-1")}) as house:
            house.claimant = Claimant(role="reviewer")
            sent = json.dumps({"model": "text-embedding-3", "input": "hi"}).encode()
            async with asyncio.timeout(5):
                assert (await house.reply("/v1/embeddings", sent)).status == 200
            assert model_of(upstream.seen[0]) == "text-embedding-3"

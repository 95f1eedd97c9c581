"""Who may call: the holder of a key of a claim that lives, at that claim's own address."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway import engine, place
from coordinator.gateway.keys import ClaimKeys, base_path, split_path
from tests.gateway.rig import SSE, Exchange, House, Upstream, housed, until

if TYPE_CHECKING:
    from pathlib import Path

TASKS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,99}", fullmatch=True)
CLAIMS = st.tuples(TASKS, st.integers(0, 999_999_999))


@given(CLAIMS, CLAIMS, st.binary(min_size=32, max_size=32))
def test_a_key_names_its_claim_and_no_other(one: tuple[str, int], two: tuple[str, int], secret: bytes) -> None:
    keys = ClaimKeys(secret)
    assert keys.claim_of(keys.key(one)) == one
    assert (keys.key(one) == keys.key(two)) == (one == two)
    assert ClaimKeys(secret[::-1] + b"x").claim_of(keys.key(one)) is None
    assert split_path(base_path(one) + "/v1/messages?a=/b") == (one, "/v1/messages?a=/b")


@given(st.text(), CLAIMS)
def test_nothing_else_is_a_key(text: str, claim: tuple[str, int]) -> None:
    keys = ClaimKeys(b"s" * 32)
    assert keys.claim_of(text) is None
    good = keys.key(claim)
    head, generation, code, task = good.split("-", 3)
    assert keys.claim_of(f"{head}-{generation}-{code}-{task}x") is None
    assert keys.claim_of(f"{head}-{int(generation) + 1}-{code}-{task}") is None
    assert keys.claim_of(f"{head}-0{generation}-{code}-{task}") is None
    assert keys.claim_of(good[:-1]) is None


async def test_a_key_that_is_none_ends_the_client_at_once(tmp_path: Path) -> None:
    async with housed(tmp_path) as (house, upstream):
        good = house.gateway.credentials("fix-it", 1)[1]
        for given in ({"x_api_key": ""}, {"x_api_key": "wrong"}, {"x_api_key": good[:-1]}, {"x_api_key": "sk-ant-1"}):
            got = await house.reply(**given)
            assert (got.status, got.headers["x-should-retry"]) == (401, "false")
            assert got.error["type"] == "authentication_error"
        assert json.loads(got.body)["type"] == "error"
        assert (await house.reply(x_api_key="", authorization=f"Bearer {good}")).status == 200
        assert len(upstream.seen) == 1


async def test_a_key_opens_its_own_address_only(tmp_path: Path) -> None:
    async with housed(tmp_path) as (house, upstream):
        for other in (("fix-it", 2), ("other", 1)):
            key = house.gateway.credentials(*other)[1]
            got = await house.reply(x_api_key=key)
            assert (got.status, got.error["type"]) == (403, "permission_error")
        assert upstream.seen == []


async def test_a_claim_that_does_not_live_calls_nobody(tmp_path: Path) -> None:
    async with housed(tmp_path) as (house, upstream):
        got = await house.reply(claim=("fix-it", 3))
        assert got.status == 403
        assert "over or was never begun" in got.error["message"]
        house.live.remove(("fix-it", 1))
        assert (await house.reply()).status == 403
        assert upstream.seen == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.1", ""])
async def test_another_name_than_this_machines_is_refused(tmp_path: Path, host: str) -> None:
    async with housed(tmp_path) as (house, upstream):
        got = await house.reply(host=host)
        assert got.status in (400, 403)
        assert upstream.seen == []
        for own in ("localhost", "127.0.0.1", f"[::1]:{house.port}"):
            assert (await house.reply(host=own)).status == 200


async def test_revoking_cuts_what_is_under_way_and_is_remembered(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.body == b'{"begun":0}':
            await exchange.send(SSE)
            await exchange.chunk(b"data: 1\n\n")
        await exchange.gone.wait()

    async with housed(tmp_path, script) as (house, upstream):
        begun = await house.ask(body=b'{"begun":0}')
        await begun.head()
        await begun.chunk()
        silent = await house.ask(body=b'{"silent":0}')
        bystander = await house.ask(body=b'{"silent":0}', claim=("fix-it", 2))
        await until(lambda: len(upstream.seen) >= 3)
        assert (house.gateway.calls("fix-it", 1) or (0, 0))[0] == 2
        house.gateway.revoke("fix-it", 1)
        async with asyncio.timeout(1):
            assert await begun.reader.read(-1) == b"", "cut, without the end of an answer"
            got = await silent.reply()
            assert got.status == 403
            assert "revoked" in got.error["message"]
            for seen in upstream.seen[:2]:
                await seen.gone.wait()
        assert not upstream.seen[2].gone.is_set()
        assert (await house.reply()).status == 403
        await until(lambda: len(house.served()) >= 2)
        assert sorted((one.ending, one.status) for one in house.served()) == [("revoked", 200), ("revoked", 403)]
        assert house.gateway.calls("fix-it", 1) == (0, 0.0)
        assert (house.gateway.calls("fix-it", 2) or (0, 0))[0] == 1
        for talk in (begun, silent, bystander):
            talk.close()
        await until(lambda: len(house.served()) >= 3)
    async with House(tmp_path, upstream.url) as later:
        assert (await later.reply()).status == 403, "the next daemon knows as well"
        assert (await later.reply(claim=("fix-it", 2))).status == 502


async def test_one_claim_does_not_take_everything(tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.gone.wait()

    async with housed(tmp_path, script, calls_per_agent=2) as (house, upstream):
        talks = [await house.ask() for _ in range(2)]
        await until(lambda: len(upstream.seen) >= 2)
        got = await house.reply()
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        for talk in talks:
            talk.close()


async def test_the_next_daemon_is_at_the_same_place_with_the_same_keys(tmp_path: Path) -> None:
    """An agent's connection breaks; its next try, with what it had from the start, is served."""

    async def script(exchange: Exchange) -> None:
        await exchange.plain(exchange.body)

    async with Upstream(script) as upstream:
        async with House(tmp_path, upstream.url) as first:
            credentials = first.gateway.credentials("fix-it", 1)
            assert (await first.reply(body=b'{"one":0}')).body == b'{"one":0}'
            assert place.url_of(tmp_path, os.getpid()) == first.gateway.url
        assert place.url_of(tmp_path, os.getpid()) == ""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(credentials[0].split(":")[2].split("/")[0]))
        async with House(tmp_path, upstream.url) as second:
            assert second.gateway.credentials("fix-it", 1) == credentials
            assert (await second.reply(body=b'{"two":0}')).body == b'{"two":0}'
            assert second.said("noticed") == []
    assert (tmp_path / place.FILE).stat().st_mode & 0o777 == 0o600


async def test_a_stop_lets_calls_end_and_cuts_those_that_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FAREWELL_S", 0.3)
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE)
        await exchange.chunk(b"data: 1\n\n")
        if exchange.body == b'{"soon":0}':
            await go.wait()
            await exchange.send(b"0\r\n\r\n")
        await exchange.gone.wait()

    async with Upstream(script) as upstream:
        house = House(tmp_path, upstream.url)
        async with house:
            soon, never = await house.ask(body=b'{"soon":0}'), await house.ask(body=b'{"never":0}')
            kept = await house.ask("/v1/nothing")
            assert (await kept.reply()).status == 404
            for talk in (soon, never):
                await talk.head()
                await talk.chunk()
            stop = asyncio.create_task(house.stop())
            await until(lambda: house.gateway._calls.closing)
            go.set()
            assert await soon.chunk() == b""
            assert await never.reader.read(-1) == b""
            await stop
        assert sorted(one.ending for one in house.served()) == ["served", "stopped"]
        for talk in (soon, never, kept):
            talk.close()


async def test_a_port_that_was_taken_meanwhile_is_named(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        async with House(tmp_path, upstream.url) as first:
            port = first.port
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", port))
            squatter.listen()
            async with House(tmp_path, upstream.url) as second:
                assert second.port != port
                assert f"port {port} of this machine is taken" in second.said("noticed")[0]
                assert (await second.reply()).status == 200
                moved = second.port
        async with House(tmp_path, upstream.url) as third:
            assert third.port == moved


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"port": 99999, "secret": "zz"}', '{"port": true, "secret": 7}', "link"]
)
async def test_a_damaged_file_is_told_and_replaced(tmp_path: Path, text: str) -> None:
    if text == "link":
        (tmp_path / place.FILE).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / place.FILE).write_text(text)
    (tmp_path / "gateway.revoked").write_bytes(b"\xff\nnonsense\n/agents/fix-it/2/\n")
    async with housed(tmp_path) as (house, _):
        assert place.FILE in house.said("noticed")[0]
        assert (await house.reply()).status == 200
    assert not (tmp_path / "elsewhere").exists()


async def test_after_a_fault_it_goes_on_at_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor runs it again; who connects meanwhile waits, and is not refused."""
    async with Upstream() as upstream:
        house = House(tmp_path, upstream.url)
        gateway = house.gateway
        gateway.open()
        with monkeypatch.context() as patch:
            patch.setattr("coordinator.gateway.pages.Pages.open", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await gateway.run(asyncio.Event())
        waiting = await house.ask()
        async with house:
            assert (await waiting.reply()).status == 200
            waiting.close()

"""Where the gateway listens, and under which names it may be called there."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.errors import BadInput
from coordinator.gateway import place
from coordinator.gateway.hosts import HostNames, ListeningAddress, listening_address
from tests.gateway.rig import House, Talk, Upstream, housed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway.rig import Reply

LOOPBACK = ListeningAddress(address="127.0.0.1", asked="127.0.0.1", family=socket.AF_INET)
EVERYWHERE = ListeningAddress(address="0.0.0.0", asked="0.0.0.0", family=socket.AF_INET)
FOREIGN = [b"evil.example", b"evil.example:8080", b"127.0.0.1.evil.example", b"localhost.evil.example", b"box.evil"]
ODD = [b"", b":", b":80", b"::1", b"[::1", b"::1]", b"[::1]x", b"[127.0.0.1]", b"a b", b"127.0.0.1:80:80", b"127.0.0.1:x",
       b"localhost:123456", b"[]", b"127.0.0.1@evil.example", b"2130706433", b"0x7f.1", b"\xe4"]  # fmt: skip


def own_addresses() -> list[str]:
    """Of this machine in a network; none where it has none. No packet is sent."""
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.77"), (socket.AF_INET6, "2001:db8::77")):
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            try:
                asking.connect((far, 9))
                found.append(asking.getsockname()[0])
            except OSError:
                continue
    return found


@pytest.mark.parametrize("value", FOREIGN + ODD)
@pytest.mark.parametrize("at", [LOOPBACK, EVERYWHERE], ids=["loopback", "everywhere"])
def test_a_foreign_name_never_passes(value: bytes, at: ListeningAddress) -> None:
    assert not HostNames(at, (), "box.lan").passes(value)


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,9}[a-z0-9])?){1,3}", fullmatch=True))
def test_no_name_that_a_stranger_can_register_passes(name: str) -> None:
    passes = HostNames(EVERYWHERE, ("gateway.example",), "box.lan").passes(f"{name}:80".encode())
    assert passes is (name in ("gateway.example", "box.lan", "box.local"))


@pytest.mark.parametrize(
    ("value", "near", "far"),
    [
        (b"127.0.0.1", True, True),
        (b"LOCALHOST:80", True, True),
        (b"localhost.:80", True, True),
        (b"[::1]:80", True, True),
        (b"192.0.2.7:80", False, True),
        (b"[2001:DB8::7]:80", False, True),
        (b"box", False, True),
        (b"Box.Lan:80", False, True),
        (b"box.local", False, True),
        (b"proxy.example", True, True),
        (b"[fd00::9]:80", True, True),
    ],
)
def test_what_passes(value: bytes, near: bool, far: bool) -> None:
    allowed = ("Proxy.example", "fd00::9")
    assert HostNames(LOOPBACK, allowed, "box.lan").passes(value) is near
    assert HostNames(EVERYWHERE, allowed, "box.lan").passes(value) is far


@pytest.mark.parametrize(
    ("host", "literal", "near", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2", False),
        ("localhost", "127.0.0.1", "127.0.0.1", False),
        ("::1", "[::1]", "[::1]", False),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1", True),
        ("::", "[::]", "127.0.0.1", True),
    ],
)
def test_what_a_host_means(host: str, literal: str, near: str, reached: bool) -> None:
    at = listening_address(host)
    assert (at.literal, at.near, at.open) == (literal, near, reached)


@pytest.mark.parametrize("host", ["203.0.113.254", "no.such.host.invalid", "a" * 64 + ".b", "300.1.1.1", "::zz"])
def test_what_is_no_address_here_is_said(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadInput, match=r"\[gateway\] host: .* is no address of this machine"):
        House(tmp_path, "http://127.0.0.1:1", host=host).gateway.open()
    assert not (tmp_path / place.FILE).exists()


async def called(house: House, address: str, host: str, **more: str) -> Reply:
    """By way of one of the machine's addresses, under a name."""
    _, key = house.gateway.credentials("fix-it", 1)
    talk = Talk(*await asyncio.open_connection(address, house.port))
    headers = {"host": host, "x-api-key": key, "content-length": "2", **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    talk.writer.write(f"POST /v1/messages HTTP/1.1\r\n{lines}\r\n{{}}".encode())
    try:
        async with asyncio.timeout(5):
            return await talk.reply()
    finally:
        talk.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_others_reach_one_that_was_told_to_listen_everywhere(tmp_path: Path, host: str) -> None:
    async with housed(tmp_path, host=host, allowed_hosts=("gateway.example",)) as (house, _):
        assert house.gateway.url == f"http://127.0.0.1:{house.port}"
        for address in ("127.0.0.1", *(one for one in own_addresses() if host == "::" or ":" not in one)):
            literal = f"[{address}]" if ":" in address else address
            for name in (f"{literal}:{house.port}", socket.gethostname(), "gateway.example", "localhost"):
                assert (await called(house, address, name)).status == 200, (address, name)
            assert (await called(house, address, "evil.example")).status == 403
            assert (await called(house, address, literal, origin=f"http://{literal}")).status == 403
            assert (await called(house, address, literal, **{"x-api-key": "cck-1-x-fix-it"})).status == 401
        (said,) = house.said("noticed")
        shown = "[::]" if host == "::" else host
        assert f"other machines can reach {shown}:{house.port}" in said
        assert "nothing is encrypted" in said


async def test_one_on_loopback_is_reached_by_this_machine_alone(tmp_path: Path) -> None:
    async with housed(tmp_path) as (house, _):
        for address in own_addresses():
            with pytest.raises(OSError):
                await called(house, address, "localhost")
        assert house.said("noticed") == []


async def test_one_address_of_a_network_is_what_agents_are_told(tmp_path: Path) -> None:
    for address in own_addresses():
        literal = f"[{address}]" if ":" in address else address
        async with housed(tmp_path, host=address) as (house, _):
            assert house.gateway.credentials("fix-it", 1)[0] == f"http://{literal}:{house.port}/agents/fix-it/1"
            assert (await called(house, address, f"{literal}:{house.port}")).status == 200
            with pytest.raises(OSError):
                await called(house, "127.0.0.1", "localhost")
        (tmp_path / place.FILE).unlink()


async def test_an_ipv6_loopback_is_none_of_others(tmp_path: Path) -> None:
    async with housed(tmp_path, host="::1") as (house, _):
        assert house.gateway.url == f"http://[::1]:{house.port}"
        assert (await called(house, "::1", f"[::1]:{house.port}")).status == 200
        assert (await called(house, "::1", "evil.example")).status == 403
        assert house.said("noticed") == []


async def test_agents_of_before_find_the_next_one_only_at_the_same_address(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        async with House(tmp_path, upstream.url) as first:
            port = first.port
        async with House(tmp_path, upstream.url, host="0.0.0.0") as second:
            assert second.port == port
            assert not [said for said in second.said("noticed") if "do not find it" in said], "they come by 127.0.0.1"
        async with House(tmp_path, upstream.url, host="::1") as third:
            assert "the address is [::1] now, it was 127.0.0.1" in third.said("noticed")[0]


async def test_what_was_written_down_before_there_was_a_choice_is_understood(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        async with House(tmp_path, upstream.url):
            pass
        known = json.loads((tmp_path / place.FILE).read_text())
        del known["host"]
        (tmp_path / place.FILE).write_text(json.dumps({**known, "pid": 7}))
        assert place.url_of(tmp_path, 7) == f"http://127.0.0.1:{known['port']}"
        async with House(tmp_path, upstream.url) as second:
            assert second.said("noticed") == []

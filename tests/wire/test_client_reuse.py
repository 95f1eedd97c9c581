"""When a connection is used again, when a request is sent again, and what a request looks like on the wire."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.kit.wire import NotReached
from coordinator.kit.wire_client import Origin, proxy_for
from coordinator.kit.wire_dial import WireDial
from tests.wire.upstream import OK, PATIENCE_S, PLAIN, Sink, Talk, at_once, listening, on_each_loop, saying, soon

if TYPE_CHECKING:
    from collections.abc import Callable

BIG = b"x" * 8_000_000
"""More than the buffers of two sockets take."""


async def asked(origin: Origin, method: bytes = b"GET", body: bytes = b"") -> bytes:
    return await (await origin.ask(origin.head(method, b"/", ()), body)).read(1000)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@on_each_loop
async def test_one_connection_serves_one_call_after_the_other() -> None:
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url)
        for _ in range(5):
            assert await asked(origin) == b"ok"
        assert len(upstream.talks) == 1
        await origin.close()
        await upstream.talks[0].end()


@on_each_loop
async def test_the_one_used_last_is_used_next() -> None:
    requests: list[int] = []

    async def talk(talk: Talk) -> None:
        number = len(upstream.talks)
        while await talk.request():
            requests.append(number)
            await gate.wait()
            talk.say(PLAIN)

    gate = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(asked(origin))
            await soon(lambda: len(requests) == 3)
            gate.set()
        before = len(requests)
        for _ in range(4):
            await asked(origin)
        assert len(set(requests[before:])) == 1
        assert len(upstream.talks) == 3
        await origin.close()


@on_each_loop
async def test_no_more_are_kept_than_may_be() -> None:
    async def talk(talk: Talk) -> None:
        while await talk.request():
            await gate.wait()
            talk.say(PLAIN)

    gate = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url, kept=2)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(asked(origin))
            await soon(lambda: len(upstream.talks) == 5)
            gate.set()
        await soon(lambda: sum(talk.closed.is_set() for talk in upstream.talks) == 3)
        await origin.close()
        await soon(lambda: all(talk.closed.is_set() for talk in upstream.talks))


@on_each_loop
async def test_an_idle_connection_is_closed_in_time() -> None:
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url, idle_s=0.1)
        await asyncio.gather(asked(origin), asked(origin))
        await asyncio.wait_for(asyncio.gather(*(talk.closed.wait() for talk in upstream.talks)), PATIENCE_S)
        before = len(upstream.talks)
        assert await asked(origin) == b"ok"
        assert len(upstream.talks) == before + 1
        await origin.close()


@on_each_loop
async def test_one_sweep_is_enough_for_all() -> None:
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url, idle_s=60)
        for _ in range(3):
            await asked(origin)
        assert origin._sweep is not None
        assert origin._sweep.when() > asyncio.get_running_loop().time() + 50
        sweep = origin._sweep
        await asked(origin)
        assert origin._sweep is sweep
        await origin.close()


@on_each_loop
async def test_one_that_the_upstream_closed_is_not_used() -> None:
    """It is dropped when it is closed, not when it is wanted."""

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(PLAIN)
        await asyncio.sleep(0)
        talk.hang_up()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        for number in range(1, 4):
            assert await asked(origin) == b"ok"
            await soon(lambda: not origin._open)
            assert origin._idle == []
            assert len(upstream.talks) == number
        await origin.close()


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 40", b"X", b"\r\n"]
)
@on_each_loop
async def test_one_that_speaks_unasked_is_not_used(said: bytes) -> None:
    async def talk(talk: Talk) -> None:
        while await talk.request():
            talk.say(PLAIN)
            await turn.wait()
            talk.say(said)

    turn = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        assert await asked(origin) == b"ok"
        turn.set()
        await soon(lambda: not origin._open)
        assert await asked(origin) == b"ok"
        assert len(upstream.talks) == 2
        await origin.close()


@pytest.mark.parametrize("how", ["FIN", "RST"])
@on_each_loop
async def test_a_kept_connection_that_breaks_at_once_is_replaced_once(how: str) -> None:
    """The upstream closes at the moment in which the next request is on its way."""
    bodies: list[bytes] = []

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(PLAIN)
        bodies.append(await talk.request())
        if len(upstream.talks) == 1:
            talk.hang_up() if how == "FIN" else talk.reset()
        else:
            talk.say(PLAIN)
            await talk.end()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        assert await asked(origin) == b"ok"
        assert await asked(origin, b"POST", b"pay") == b"ok"
        assert len(upstream.talks) == 2
        assert bodies[0].endswith(b"\r\n\r\npay")
        await origin.close()


@on_each_loop
async def test_it_is_sent_again_only_once() -> None:
    requests: list[bytes] = []

    async def talk(talk: Talk) -> None:
        requests.append(await talk.request())
        if len(requests) == 1:
            talk.say(PLAIN)
            requests.append(await talk.request())
        talk.hang_up()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        assert await asked(origin) == b"ok"
        with pytest.raises(NotReached) as caught:
            await asked(origin, b"POST", b"pay")
        assert caught.value.sent
        assert len(requests) == 3
        await origin.close()


@pytest.mark.parametrize("why", ["a fresh connection", "later than at once", "a byte of an answer came"])
@on_each_loop
async def test_what_may_have_been_worked_on_is_not_sent_again(why: str) -> None:
    requests: list[bytes] = []

    async def talk(talk: Talk) -> None:
        if why != "a fresh connection":
            await talk.request()
            talk.say(PLAIN)
        requests.append(await talk.request())
        if why == "later than at once":
            await asyncio.sleep(0.3)
        if why == "a byte of an answer came":
            talk.say(b"H")
        talk.hang_up()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        if why != "a fresh connection":
            assert await asked(origin) == b"ok"
        with pytest.raises(NotReached, match="closed") as caught:
            await asked(origin, b"POST", b"pay")
        assert caught.value.sent
        assert len(requests) == len(upstream.talks) == 1
        await origin.close()


@pytest.mark.parametrize("framing", ["length", "close"])
@on_each_loop
async def test_an_answer_that_is_early_is_given_and_its_connection_is_not_kept(framing: str) -> None:
    """The upstream answers before it has read the request; the rest of that is not sent any more."""
    raw = PLAIN if framing == "length" else OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"

    async def talk(talk: Talk) -> None:
        await talk.head()
        talk.say(raw)
        await talk.end()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        for number in range(1, 3):
            assert await asked(origin, b"POST", BIG) == b"ok"
            assert len(upstream.talks) == number
            await asyncio.wait_for(upstream.talks[-1].closed.wait(), PATIENCE_S)
        await origin.close()


@on_each_loop
async def test_a_long_request_arrives_whole_and_its_connection_is_kept() -> None:
    arrived: list[bytes] = []

    async def talk(talk: Talk) -> None:
        while data := await talk.request():
            arrived.append(data.partition(b"\r\n\r\n")[2])
            talk.say(PLAIN)

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        for size in (0, 1, 16 * 1024, 16 * 1024 + 1, 150_000, len(BIG)):
            assert await asked(origin, b"POST", BIG[:size]) == b"ok"
        assert arrived == [BIG[:size] for size in (0, 1, 16 * 1024, 16 * 1024 + 1, 150_000, len(BIG))]
        assert len(upstream.talks) == 1
        await origin.close()


@on_each_loop
async def test_whoever_is_cancelled_closes_at_once() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        arrived.set()
        await talk.end()

    arrived = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)

        async def once() -> Talk:
            arrived.clear()
            call = asyncio.create_task(asked(origin, b"POST", b"pay"))
            await arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return upstream.talks[-1]

        await at_once(once)
        await origin.close()


@on_each_loop
async def test_a_late_cancel_does_not_touch_the_next_call() -> None:
    """The answer is whole and its connection free for others, when the caller that waited for it learns of its end."""
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url)
        await asked(origin)
        (connection,) = origin._idle
        first = asyncio.create_task(asked(origin))
        await asyncio.sleep(0)
        waiter = connection._waiter
        assert waiter is not None
        while not waiter.done():
            await asyncio.sleep(0)
            assert not first.done()
        first.cancel()
        assert origin._idle == [connection]
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asked(origin) == b"ok"
        assert len(upstream.talks) == 1
        await origin.close()


@on_each_loop
async def test_an_answer_for_somebody_cancelled_is_not_the_next_ones() -> None:
    """Cancelled, and in the same turn the answer comes: the connection is closed, not kept."""
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url)
        await asked(origin)
        (connection,) = origin._idle
        call = asyncio.create_task(asked(origin))
        await asyncio.sleep(0)
        assert not origin._idle
        call.cancel()
        connection.data_received(PLAIN)
        assert not origin._idle
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asked(origin) == b"ok"
        assert len(upstream.talks) == 2
        await origin.close()


@on_each_loop
async def test_an_answer_that_is_closed_frees_the_upstream_and_is_not_kept() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 3\r\n\r\nok")
        await talk.end()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        answer.close()
        answer.close()
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)
        assert origin._idle == []
        await origin.close()


@on_each_loop
async def test_closing_ends_what_is_under_way() -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        arrived.set()
        await talk.end()

    arrived = asyncio.Event()
    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        call = asyncio.create_task(asked(origin))
        await arrived.wait()
        await asyncio.gather(origin.close(), origin.close())
        with pytest.raises(NotReached):
            await call
        with pytest.raises(NotReached, match="not used") as caught:
            await asked(origin)
        assert not caught.value.sent
        assert len(upstream.talks) == 1


# ------------------------------------------------------------------------------------------------------------ connecting


@on_each_loop
async def test_refused() -> None:
    origin = Origin(f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(NotReached, match="^Connection refused$") as caught:
        await asked(origin)
    assert not caught.value.sent
    await origin.close()


@on_each_loop
async def test_an_upstream_that_hangs_up_at_once() -> None:
    """Before it was asked, or while it is: both happen. Nobody waits for an answer on what is closed already."""

    async def talk(talk: Talk) -> None:
        talk.reset() if len(upstream.talks) % 2 else talk.hang_up()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        for _ in range(40):
            with pytest.raises(NotReached, match="closed|reset"):
                await asyncio.wait_for(asked(origin, b"POST", b"{}"), PATIENCE_S)
        await origin.close()


@on_each_loop
async def test_what_speaks_before_it_was_asked_is_no_upstream() -> None:
    async def talk(talk: Talk) -> None:
        talk.say(b"SSH-2.0-x\r\n")
        await talk.end()

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        with pytest.raises(NotReached):
            await asked(origin)
        await origin.close()


@on_each_loop
async def test_no_such_name() -> None:
    origin = Origin("http://no-such-name.invalid:1234", connect_s=3)
    with pytest.raises(NotReached) as caught:
        await asked(origin)
    assert not caught.value.sent
    assert "invalid" not in str(caught.value)
    assert "1234" not in str(caught.value)
    await origin.close()


async def names(patch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Have the running loop's resolver find these, in this order. Returns the names it is asked for."""
    asked_for: list[str] = []

    async def getaddrinfo(_: asyncio.AbstractEventLoop, host: str, port: int, **__: int) -> list[Any]:
        asked_for.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    patch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", getaddrinfo, raising=False)
    return asked_for


@on_each_loop
async def test_all_addresses_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(saying(PLAIN)) as upstream:
        asked_for = await names(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
        origin = Origin(f"http://two-addresses.example:{upstream.port}")
        assert await asked(origin) == b"ok"
        assert asked_for == ["two-addresses.example"]
        await origin.close()


@on_each_loop
async def test_an_address_that_never_answers_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(saying(PLAIN)) as upstream:
        await names(monkeypatch, "127.0.0.2", "127.0.0.1")
        loop = asyncio.get_running_loop()
        connect = type(loop).create_connection

        async def create_connection(loop: asyncio.AbstractEventLoop, make: Any, host: str, port: int) -> Any:
            if host == "127.0.0.2":
                await asyncio.Event().wait()
            return await connect(loop, make, host, port)

        monkeypatch.setattr(type(loop), "create_connection", create_connection, raising=False)
        origin = Origin(f"http://two-addresses.example:{upstream.port}", connect_s=1.0)
        assert await asked(origin) == b"ok"
        await origin.close()


@on_each_loop
async def test_a_connection_that_broke_before_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It came about, and was lost before whoever opened it had its turn."""
    reach = WireDial._reach

    async def broken(dial: WireDial) -> Any:
        raw, tunnel = await reach(dial)
        raw.abort()
        await asyncio.sleep(0.01)
        return raw, tunnel

    async with listening(saying(PLAIN)) as upstream:
        monkeypatch.setattr(WireDial, "_reach", broken)
        origin = Origin(upstream.url)
        with pytest.raises(NotReached, match="closed") as caught:
            await asyncio.wait_for(asked(origin), PATIENCE_S)
        assert not caught.value.sent
        await origin.close()


@on_each_loop
async def test_no_address_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    await names(monkeypatch, "127.0.0.2", "127.0.0.3")
    origin = Origin(f"http://two-addresses.example:{unused_port()}")
    with pytest.raises(NotReached, match="^Connection refused$") as caught:
        await asked(origin)
    assert not caught.value.sent
    await origin.close()


@on_each_loop
async def test_a_name_that_is_never_found_takes_no_longer_than_connecting_may(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(_: asyncio.AbstractEventLoop, *__: object, **___: object) -> list[Any]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", getaddrinfo, raising=False)
    origin = Origin("http://slow.example", connect_s=0.05)
    with pytest.raises(NotReached, match="too long to connect") as caught:
        await asked(origin)
    assert not caught.value.sent
    await origin.close()


@on_each_loop
async def test_an_address_in_ipv6() -> None:
    head: list[bytes] = []

    async def talk(talk: Talk) -> None:
        head.append(await talk.request())
        talk.say(PLAIN)

    try:
        async with listening(talk, host="::1") as upstream:
            origin = Origin(f"http://[::1]:{upstream.port}")
            assert await asked(origin) == b"ok"
            assert b"\r\nHost: [::1]:%d\r\n" % upstream.port in head[0]
            await origin.close()
    except OSError:
        pytest.skip("cannot run here: no IPv6")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "upstream:80",
        "ftp://upstream",
        "http://",
        "http://upstream:port",
        "http://upstream:99999",
        "http://me:secret@upstream",
        "http://upstream/v1",
        "http://upstream?x",
        f"http://{'a' * 64}.example",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        Origin(url)
    assert "secret" not in str(caught.value)
    assert "upstream:" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- what is sent


async def sent(
    *headers: tuple[bytes, bytes], method: bytes = b"POST", target: bytes = b"/v1/x?y=%20", body: bytes = b"{}"
) -> bytes:
    """A request as the upstream gets it, with ``HOST`` for host and port."""
    heads: list[bytes] = []

    async def talk(talk: Talk) -> None:
        heads.append(await talk.request())
        talk.say(PLAIN)

    async with listening(talk) as upstream:
        origin = Origin(upstream.url)
        await origin.ask(origin.head(method, target, headers), body)
        await origin.close()
        return heads[0].replace(b"127.0.0.1:%d" % upstream.port, b"HOST")


async def test_a_request() -> None:
    head = await sent((b"X-a", b"1"), (b"x-A", b""), (b"accept", b"\xe9"))
    assert head == (
        b"POST /v1/x?y=%20 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nX-a: 1\r\nx-A: \r\naccept: \xe9\r\n\r\n{}"
    )


async def test_a_request_without_a_body() -> None:
    assert await sent(method=b"GET", body=b"") == b"GET /v1/x?y=%20 HTTP/1.1\r\nHost: HOST\r\n\r\n"
    assert await sent(body=b"") == b"POST /v1/x?y=%20 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\n\r\n"


async def test_fields_of_the_connection_and_ours_are_left_out() -> None:
    head = await sent(
        (b"Host", b"evil"),
        (b"CONTENT-LENGTH", b"9"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"connection", b"x-other"),
        (b"x-hop", b"1"),
        (b"X-Other", b"1"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"),
        (b"Trailer", b"x"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"x-kept", b"1"),
    )
    assert head == b"POST /v1/x?y=%20 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nx-kept: 1\r\n\r\n{}"


async def test_connection_cannot_take_our_own_fields_away() -> None:
    head = await sent((b"Connection", b"host, content-length, close"), (b"x-kept", b"1"))
    assert head == b"POST /v1/x?y=%20 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nx-kept: 1\r\n\r\n{}"


INJECTED: dict[str, Callable[[Origin], Any]] = {
    "CRLF in a value": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x", b"a\r\nb: c")]), b""),
    "LF in a value": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x", b"a\nb: c")]), b""),
    "CR in a value": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x", b"a\rb: c")]), b""),
    "NUL in a value": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x", b"a\0")]), b""),
    "CRLF in a name": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x: y\r\nz", b"a")]), b""),
    "space in a name": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x y", b"a")]), b""),
    "a folded name": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x", b"1"), (b" y", b"a")]), b""),
    "colon in a name": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"x:", b"a")]), b""),
    "no name": lambda origin: origin.ask(origin.head(b"GET", b"/", [(b"", b"a")]), b""),
    "CRLF in what Connection names": lambda origin: origin.ask(
        origin.head(b"GET", b"/", [(b"connection", b"a"), (b"x", b"\r\n")]), b""
    ),
    "space in the target": lambda origin: origin.ask(origin.head(b"GET", b"/ HTTP/1.1", []), b""),
    "CRLF in the target": lambda origin: origin.ask(origin.head(b"GET", b"/\r\nx: y", []), b""),
    "LF at the target's end": lambda origin: origin.ask(origin.head(b"GET", b"/\n", []), b""),
    "another's target": lambda origin: origin.ask(origin.head(b"GET", b"http://evil/", []), b""),
    "a target that goes on with the host": lambda origin: origin.ask(origin.head(b"GET", b"@evil/", []), b""),
    "no target": lambda origin: origin.ask(origin.head(b"GET", b"", []), b""),
    "space in the method": lambda origin: origin.ask(origin.head(b"GET /x", b"/", []), b""),
    "no method": lambda origin: origin.ask(origin.head(b"", b"/", []), b""),
    "CONNECT": lambda origin: origin.ask(origin.head(b"CONNECT", b"/", []), b""),
}


@pytest.mark.parametrize("name", INJECTED)
async def test_what_would_not_be_one_request_is_not_sent(name: str) -> None:
    async with listening(saying(PLAIN)) as upstream:
        origin = Origin(upstream.url)
        with pytest.raises(ValueError):
            await INJECTED[name](origin)
        assert upstream.talks == []
        await origin.close()


# ---------------------------------------------------------------------------------------------------------------- proxies


@on_each_loop
async def test_a_proxy_gets_the_whole_url_and_its_credentials() -> None:
    requests: list[bytes] = []

    async def talk(talk: Talk) -> None:
        while request := await talk.request():
            requests.append(request)
            talk.say(PLAIN)

    async with listening(talk) as proxy:
        way = f"http://me:pass%2Fword@127.0.0.1:{proxy.port}"
        origin = Origin("http://upstream.example:8080", proxy=way)
        sink = Sink()
        answer = await origin.ask(
            origin.head(b"POST", b"/v1", [(b"proxy-authorization", b"theirs"), (b"a", b"b")]), b"{}"
        )
        await answer.flow(sink, None)
        await asked(origin)
        assert sink.body == b"ok"
        assert requests[0] == (
            b"POST http://upstream.example:8080/v1 HTTP/1.1\r\nHost: upstream.example:8080\r\nContent-Length: 2\r\n"
            b"Proxy-Authorization: Basic bWU6cGFzcy93b3Jk\r\na: b\r\n\r\n{}"
        )
        assert len(proxy.talks) == 1
        await origin.close()


async def test_a_proxy_that_is_not_there_is_not_named() -> None:
    origin = Origin("http://upstream.example", proxy=f"http://me:secret@127.0.0.1:{unused_port()}")
    with pytest.raises(NotReached, match="^Connection refused$") as caught:
        await asked(origin)
    assert not caught.value.sent
    await origin.close()


@pytest.mark.parametrize(
    "proxy", ["socks5://me:secret@proxy", "https://me:secret@proxy", "http://", "http://me:secret@proxy:x"]
)
def test_what_is_no_proxy(proxy: str) -> None:
    with pytest.raises(ValueError) as caught:
        Origin("http://upstream", proxy=proxy)
    assert "secret" not in str(caught.value)


PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://a.example", {}, ""),
        ("https://a.example", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https://a.example", {"https_proxy": PROXY, "HTTPS_PROXY": "http://other"}, PROXY),
        ("https://a.example", {"HTTP_PROXY": PROXY}, ""),
        ("http://a.example", {"HTTP_PROXY": PROXY}, PROXY),
        ("http://a.example", {"HTTPS_PROXY": PROXY}, ""),
        ("http://a.example", {"http_proxy": "proxy:3128"}, PROXY),
        ("http://a.example", {"http_proxy": " "}, ""),
        ("https://a.example", {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, ""),
        ("https://a.example", {"HTTPS_PROXY": PROXY, "NO_PROXY": "b.example, a.example"}, ""),
        ("https://a.example", {"HTTPS_PROXY": PROXY, "no_proxy": "example"}, ""),
        ("https://a.example", {"HTTPS_PROXY": PROXY, "NO_PROXY": ".example"}, ""),
        ("https://a.example", {"HTTPS_PROXY": PROXY, "NO_PROXY": "*.example"}, ""),
        ("https://A.Example", {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.EXAMPLE"}, ""),
        ("https://nota.example", {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example"}, PROXY),
        ("https://a.example", {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example:443"}, ""),
        ("https://a.example:8443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example:443"}, PROXY),
        ("https://a.example:8443", {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.example"}, ""),
        ("http://127.0.0.1:8080", {"HTTP_PROXY": PROXY, "NO_PROXY": "localhost,127.0.0.1"}, ""),
        ("http://[::1]:8080", {"HTTP_PROXY": PROXY, "NO_PROXY": "::1"}, ""),
        ("http://[::1]:8080", {"HTTP_PROXY": PROXY, "NO_PROXY": "[::1]:8080"}, ""),
        ("http://[::1]:8080", {"HTTP_PROXY": PROXY, "NO_PROXY": "[::1]:8081"}, PROXY),
        ("http://a.example", {"HTTP_PROXY": PROXY, "NO_PROXY": ","}, PROXY),
    ],
)
def test_what_the_environment_says_of_proxies(url: str, environment: dict[str, str], proxy: str) -> None:
    assert proxy_for(url, environment) == proxy

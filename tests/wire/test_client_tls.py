"""TLS to an upstream: whom it trusts, what it asks for, sessions, and the way through a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from coordinator.kit.wire import AnswerCut, NotReached, new_loop
from coordinator.kit.wire_client import Origin
from tests.conftest import CANNOT
from tests.wire.upstream import (
    OK,
    PATIENCE_S,
    PLAIN,
    Sink,
    Talk,
    Upstream,
    at_once,
    guarded,
    listening,
    on_each_loop,
    saying,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\nok\r\n" * 50 + b"0\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signs itself, for ``localhost`` alone, and its key in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip(CANNOT + "no openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -subj /CN=test"
    command += f" -addext subjectAltName=DNS:localhost -keyout {folder / 'key'} -out {folder / 'pem'}"
    subprocess.run(command.split(), check=True, capture_output=True)
    both = folder / "both"
    both.write_bytes((folder / "key").read_bytes() + (folder / "pem").read_bytes())
    return both


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def named(upstream: Upstream) -> str:
    return f"https://localhost:{upstream.port}"


async def asked(origin: Origin) -> bytes:
    sink = Sink()
    answer = await origin.ask(origin.head(b"POST", b"/", ()), b"{}")
    await answer.flow(sink, None)
    return sink.body


async def refused(origin: Origin, match: str) -> None:
    with pytest.raises(NotReached, match=match) as caught:
        await asked(origin)
    assert not caught.value.sent
    assert "localhost" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    await origin.close()


@on_each_loop
async def test_a_call(certificate: Path) -> None:
    async with listening(saying(CHUNKS), tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        for _ in range(3):
            assert await asked(origin) == b"ok" * 50
        assert len(upstream.talks) == 1
        await origin.close()


@on_each_loop
async def test_a_long_request_and_a_long_answer(certificate: Path) -> None:
    body = bytes(range(256)) * 8192

    async def talk(talk: Talk) -> None:
        while request := await talk.request():
            assert request.endswith(body)
            talk.say(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async with listening(talk, tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        for _ in range(2):
            assert await (await origin.ask(origin.head(b"POST", b"/", ()), body)).read(len(body)) == body
        assert len(upstream.talks) == 1
        await origin.close()


@on_each_loop
async def test_the_name_is_asked_for_and_so_is_http(certificate: Path) -> None:
    names: list[str | None] = []
    context = server_side(certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = lambda _, name, __: names.append(name)
    async with listening(saying(PLAIN), tls=context) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        assert await asked(origin) == b"ok"
        assert names == ["localhost"]
        tls = upstream.talks[0].writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"
        await origin.close()


@on_each_loop
async def test_a_certificate_that_nobody_vouches_for(certificate: Path) -> None:
    async with listening(saying(PLAIN), tls=server_side(certificate)) as upstream:
        await refused(Origin(named(upstream)), "certificate is not trusted: self-signed certificate")
        assert not any(talk.closed.is_set() for talk in upstream.talks)


@on_each_loop
async def test_a_certificate_for_another_name(certificate: Path) -> None:
    async with listening(saying(PLAIN), tls=server_side(certificate)) as upstream:
        with pytest.raises(NotReached, match="certificate is not trusted") as caught:
            await asked(origin := Origin(upstream.url, ca_file=str(certificate)))
        assert not caught.value.sent
        await origin.close()


@on_each_loop
async def test_the_machine_says_whom_to_trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with listening(saying(PLAIN), tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream))
        assert await asked(origin) == b"ok"
        await origin.close()


@on_each_loop
async def test_a_file_of_certificates_that_is_not_there(tmp_path: Path) -> None:
    await refused(Origin("https://localhost:1", ca_file=str(tmp_path / "none")), "No such file or directory")


@on_each_loop
async def test_an_upstream_that_speaks_no_tls(certificate: Path) -> None:
    async def talk(talk: Talk) -> None:
        await talk.reader.read(1)
        talk.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await talk.end()

    async with listening(talk) as upstream:
        await refused(Origin(named(upstream), ca_file=str(certificate)), "TLS failed")
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)


@pytest.mark.parametrize("how", ["FIN", "RST"])
@on_each_loop
async def test_an_upstream_that_hangs_up_in_the_handshake(how: str, certificate: Path) -> None:
    async def talk(talk: Talk) -> None:
        await talk.reader.read(1)
        talk.hang_up() if how == "FIN" else talk.reset()

    async with listening(talk) as upstream:
        await refused(Origin(named(upstream), ca_file=str(certificate)), "closed|reset|TLS failed")


@on_each_loop
async def test_a_handshake_that_never_ends(certificate: Path) -> None:
    async with listening(Talk.end) as upstream:
        await refused(Origin(named(upstream), ca_file=str(certificate), connect_s=0.5), "too long to connect")
        await asyncio.wait_for(upstream.talks[0].closed.wait(), PATIENCE_S)


@on_each_loop
async def test_being_cancelled_in_the_handshake_closes_at_once(certificate: Path) -> None:
    async with listening(Talk.end) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))

        async def once() -> Talk:
            before = len(upstream.talks)
            call = asyncio.create_task(asked(origin))
            await soon(lambda: len(upstream.talks) > before)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return upstream.talks[-1]

        await at_once(once)
        await origin.close()


@on_each_loop
async def test_being_cancelled_closes_at_once(certificate: Path) -> None:
    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Content-Length: 9\r\n\r\nok")
        await talk.end()

    async with listening(talk, tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))

        async def once() -> Talk:
            sink = Sink()
            answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
            flow = asyncio.create_task(answer.flow(sink, None))
            await sink.more.wait()
            flow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flow
            return upstream.talks[-1]

        await at_once(once)
        await origin.close()


@pytest.mark.parametrize("kept", ["kept", "closed"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_each_loop
async def test_a_later_handshake_is_short(version: ssl.TLSVersion, kept: str, certificate: Path) -> None:
    context = server_side(certificate)
    context.maximum_version = version
    raw = PLAIN if kept == "kept" else OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"
    async with listening(saying(raw), tls=context) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        assert await asked(origin) == b"ok"
        await asyncio.gather(asked(origin), asked(origin), asked(origin))
        reused = [talk.writer.get_extra_info("ssl_object").session_reused for talk in upstream.talks]
        assert reused == [False] + [True] * (2 if kept == "kept" else 3)
        await origin.close()


@on_each_loop
async def test_an_answer_to_the_connections_end(certificate: Path) -> None:
    """A close that TLS announces ends it."""
    async with listening(saying(OK + b"\r\nok", hang_up=True), tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        assert await asked(origin) == b"ok"
        await origin.close()


def test_an_answer_that_somebody_on_the_way_cut_off(certificate: Path) -> None:
    """A close that TLS does not announce may be anybody's: the answer is not whole (RFC 9112 section 9.8). The standard
    library's loop cannot tell the two."""

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"\r\nok")
        await taken.wait()
        talk.writer.transport.abort()

    taken = asyncio.Event()

    async def work() -> None:
        async with listening(talk, tls=server_side(certificate)) as upstream:
            origin = Origin(named(upstream), ca_file=str(certificate))
            answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
            flow = asyncio.create_task(answer.flow(sink, None))
            await sink.more.wait()
            taken.set()
            with pytest.raises(AnswerCut):
                await flow
            assert (sink.body, sink.finished) == (b"ok", False)
            await origin.close()

    guarded(new_loop, work())


@on_each_loop
async def test_an_upstream_that_ends_while_the_client_has_no_room_loses_nothing(certificate: Path) -> None:
    """It says everything and closes without a further word; that is seen only when there is room again."""
    body = bytes(range(256)) * 256

    async def talk(talk: Talk) -> None:
        await talk.request()
        talk.say(OK + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:9])
        await held.wait()
        talk.say(body[9:])
        await soon(lambda: not talk.writer.transport.get_write_buffer_size())
        await asyncio.sleep(0.05)
        talk.writer.transport.abort()

    held = asyncio.Event()
    async with listening(talk, tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        answer, sink = await origin.ask(origin.head(b"GET", b"/", ()), b""), Sink()
        flow = asyncio.create_task(answer.flow(sink, None))
        await sink.more.wait()
        sink.fill()
        held.set()
        await asyncio.sleep(0.2)
        assert sink.body == body[:9]
        sink.drain()
        await flow
        assert sink.body == body
        await origin.close()


@on_each_loop
async def test_who_does_not_read_holds_the_upstream(certificate: Path) -> None:
    piece = bytes(64 * 1024)
    written_bytes = 0

    async def talk(talk: Talk) -> None:
        nonlocal written_bytes
        await talk.request()
        talk.say(OK + b"\r\n")
        while True:
            talk.say(piece)
            await talk.writer.drain()
            written_bytes += len(piece)

    async with listening(talk, tls=server_side(certificate)) as upstream:
        origin = Origin(named(upstream), ca_file=str(certificate))
        answer = await origin.ask(origin.head(b"GET", b"/", ()), b"")
        before = -1
        async with asyncio.timeout(10):
            while before != written_bytes:
                before = written_bytes
                await asyncio.sleep(0.05)
        assert written_bytes < 32 * 1024 * 1024
        answer.close()
        await origin.close()


# ---------------------------------------------------------------------------------------------------------------- proxies


class Proxy:
    """Answers ``CONNECT`` and joins the two ends."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", *, joins: bool = True) -> None:
        self._answer = answer
        self._joins = joins
        self.heads: list[bytes] = []

    async def __call__(self, talk: Talk) -> None:
        head = await talk.head()
        self.heads.append(head)
        talk.say(self._answer)
        if not self._joins:
            await talk.end()
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pour(talk.reader, writer))
                group.create_task(_pour(reader, talk.writer))
        finally:
            writer.transport.abort()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def behind(
    certificate: Path, proxy: Callable[[Talk], Awaitable[None]], *, user: str = ""
) -> AsyncIterator[tuple[Upstream, Upstream, Origin]]:
    """An upstream with TLS, a proxy, and a way to the one through the other."""
    async with listening(saying(PLAIN), tls=server_side(certificate)) as upstream, listening(proxy) as way:
        origin = Origin(named(upstream), proxy=f"http://{user}127.0.0.1:{way.port}", ca_file=str(certificate))
        yield upstream, way, origin
        await origin.close()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nX: y\r\n\r\n"]
)
@on_each_loop
async def test_through_a_proxy(answer: bytes, certificate: Path) -> None:
    proxy = Proxy(b"HTTP/1.1 100 Continue\r\n\r\n" + answer)
    async with behind(certificate, proxy, user="me:secret@") as (upstream, way, origin):
        assert await asked(origin) == b"ok"
        assert await asked(origin) == b"ok"
        place = b"localhost:%d" % upstream.port
        credentials = b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"
        assert proxy.heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, credentials)]
        assert len(way.talks) == len(upstream.talks) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "^the proxy answered 407$"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\nno", "^the proxy answered 502$"),
        (b"SSH-2.0-x\r\n", "^the proxy speaks no HTTP/1.1$"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", "^something was said"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore", "^something was said"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "^the proxy speaks no HTTP/1.1$"),
        (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "^the proxy speaks no HTTP/1.1$"),
    ],
)
@on_each_loop
async def test_a_proxy_that_lets_nobody_through(answer: bytes, why: str, certificate: Path) -> None:
    async with behind(certificate, Proxy(answer, joins=False), user="me:secret@") as (upstream, way, origin):
        with pytest.raises(NotReached, match=why) as caught:
            await asked(origin)
        assert not caught.value.sent
        await asyncio.wait_for(way.talks[0].closed.wait(), PATIENCE_S)
        assert upstream.talks == []


@on_each_loop
async def test_a_proxy_that_hangs_up(certificate: Path) -> None:
    async def talk(talk: Talk) -> None:
        await talk.head()
        talk.hang_up()

    async with behind(certificate, talk) as (_, __, origin):
        with pytest.raises(NotReached, match="closed|reset") as caught:
            await asked(origin)
        assert not caught.value.sent


@on_each_loop
async def test_a_proxy_that_says_nothing_and_a_caller_that_is_cancelled(certificate: Path) -> None:
    async with behind(certificate, Proxy(b"", joins=False)) as (_, way, origin):
        call = asyncio.create_task(asked(origin))
        await soon(lambda: way.talks)
        call.cancel()
        await asyncio.wait_for(way.talks[0].closed.wait(), PATIENCE_S)
        await asyncio.gather(call, return_exceptions=True)

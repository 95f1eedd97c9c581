"""The real server on a real socket, asked by the real client and by strangers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.api import client, wire
from coordinator.api.server import ApiServer, socket_path
from coordinator.api.table import all_verbs
from coordinator.domain.errors import BadInput, DaemonUnreachable, PermanentError, UnknownTask
from coordinator.domain.event import Noticed
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from coordinator.api.verb import Reply
    from tests.api.conftest import Place


def _announced(place: Place) -> bool:
    address = client.find(place.desk.layout)
    return address is not None and address.pid == os.getpid()


@contextlib.asynccontextmanager
async def serving(place: Place) -> AsyncIterator[asyncio.Event]:
    stopping = asyncio.Event()
    task = asyncio.create_task(ApiServer(place.desk, all_verbs()).run(stopping))
    await soon(lambda: task.done() or _announced(place))
    try:
        yield stopping
    finally:
        stopping.set()
        await asyncio.wait_for(task, 5)


async def connected(place: Place) -> client.Client:
    found = await client.connect(place.desk.layout)
    assert found is not None
    return found


async def ask(place: Place, verb: str, arguments: dict[str, Any]) -> Reply:
    async with await connected(place) as asking:
        return await asyncio.wait_for(asking.call(verb, arguments), 10)


async def soon(condition: Callable[[], object]) -> None:
    """Let the loop turn until it is so."""
    async with asyncio.timeout(5):
        for _ in iter(lambda: bool(condition()), True):
            await asyncio.sleep(0.001)


async def raw(place: Place, data: bytes) -> dict[str, Any]:
    """What the server says to somebody who sends ``data``."""
    reader, writer = await asyncio.open_unix_connection(str(place.desk.layout.state / "api.sock"))
    writer.write(data)
    answer = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return json.loads(answer)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: a socket's path has room for 107 bytes, and temporary folders can be deep."""
    with TemporaryDirectory(prefix="c-", dir="/tmp") as folder:
        yield Path(folder)


async def test_a_call_is_answered_and_files_are_private_and_gone_at_the_end(place: Place) -> None:
    layout = place.desk.layout
    async with serving(place):
        for path in (layout.api, layout.state / "api.sock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reply = await ask(place, "tasks list", {"state": []})
        assert (reply.data, reply.exit_code) == ({"tasks": [], "total": 0}, 0)
    assert not layout.api.exists()
    assert not (layout.state / "api.sock").exists()
    assert await client.connect(layout) is None


async def test_errors_arrive_as_what_they_were(place: Place) -> None:
    async with serving(place):
        with pytest.raises(UnknownTask, match="no task 'x'"):
            await ask(place, "tasks show", {"task": "x"})
        with pytest.raises(BadInput, match="task: missing"):
            await ask(place, "tasks show", {})


async def test_operating_reaches_the_daemon_and_a_refusal_does_not_stop_the_others(place: Place) -> None:
    async with serving(place):
        arguments = {"tasks": ["nobody", "a"], "reason": "late"}
        reply = await ask(place, "tasks cancel", arguments)
    assert place.live.asked == [("cancel", "a", "late")]
    assert [result["done"] for result in reply.data["results"]] == [False, True]
    assert reply.exit_code == 2


async def test_events_stream_until_the_daemon_ends(place: Place) -> None:
    async with serving(place) as stopping:
        async with await connected(place) as asking:
            stream = asking.stream("events", {"follow": True, "limit": 0})
            waiting = asyncio.ensure_future(anext(stream))
            await soon(lambda: place.live.bus._subscriptions)
            place.live.bus.publish(Noticed(subject="s", message="m"))
            assert (await asyncio.wait_for(waiting, 5))["message"] == "m"
            stopping.set()
            with pytest.raises(DaemonUnreachable):
                await asyncio.wait_for(anext(stream), 5)


async def test_a_listener_that_leaves_is_forgotten(place: Place) -> None:
    async with serving(place):
        async with await connected(place) as asking:
            waiting = asyncio.ensure_future(anext(asking.stream("events", {"follow": True, "limit": 0})))
            await soon(lambda: place.live.bus._subscriptions)
        with pytest.raises(DaemonUnreachable):
            await waiting
        await soon(lambda: not place.live.bus._subscriptions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": "wrong"}, "token"),
        ({"token": "é"}, "token"),
        ({"verb": "nonsense"}, "no verb"),
        ({"verb": "doctor"}, "no verb"),
        ({"arguments": []}, "bad request"),
    ],
)
async def test_strangers_are_refused(place: Place, change: dict[str, Any], said: str) -> None:
    async with serving(place):
        address = client.find(place.desk.layout)
        request = {"token": address.token, "verb": "tasks list", "arguments": {}, **change}
        answer = await raw(place, wire.encode(request))
    assert said in answer["error"]["message"]
    assert "end" not in answer


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"])
async def test_garbage_is_an_error_and_the_next_one_is_served(place: Place, data: bytes) -> None:
    async with serving(place):
        assert "bad request" in (await raw(place, data))["error"]["message"]
        assert (await ask(place, "tasks list", {})).exit_code == 0


async def test_an_endless_line_is_cut_off(place: Place) -> None:
    async with serving(place):
        assert "error" in await raw(place, b"x" * (wire.REQUEST_BYTES + 100_000))


async def test_a_verb_that_breaks_is_an_error_not_the_end(place: Place) -> None:
    place.ledger._store.close()
    async with serving(place):
        with pytest.raises(PermanentError, match="tasks list failed"):
            await ask(place, "tasks list", {})


async def test_a_daemon_that_died_left_nothing_in_the_way(place: Place) -> None:
    layout = place.desk.layout
    (layout.state / "api.sock").write_text("")
    layout.api.write_text(
        json.dumps({"pid": 1, "socket": str(layout.state / "api.sock"), "token": "t", "version": "1"})
    )
    layout.api.chmod(0o600)
    assert await client.connect(layout) is None
    async with serving(place):
        assert (await ask(place, "tasks list", {})).exit_code == 0


def test_an_address_that_others_could_have_written_is_no_address(place: Place) -> None:
    api = place.desk.layout.api
    api.write_text(json.dumps({"pid": 1, "socket": "/s", "token": "t", "version": "1"}))
    api.chmod(0o644)
    assert client.find(place.desk.layout) is None
    api.chmod(0o600)
    assert client.find(place.desk.layout) is not None
    api.rename(api.with_suffix(".moved"))
    api.symlink_to(api.with_suffix(".moved"))
    assert client.find(place.desk.layout) is None


async def test_a_long_folder_name_is_no_obstacle(place: Place, tmp_path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60) / ".coordinator"
    deep.mkdir(parents=True)
    place.desk = replace(place.desk, layout=Layout(tmp_path, deep))
    async with serving(place):
        address = client.find(place.desk.layout)
        assert len(address.socket) <= 100
        assert (await ask(place, "tasks list", {})).exit_code == 0
    assert not Path(address.socket).exists()
    path, made = socket_path(deep)
    assert made is not None
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.rmdir()
    assert path.parent == made

"""Asks a running daemon: the other end of ``api.server``.

Owns one invariant: "no daemon" and "a daemon that does not answer" are told apart. The first lets a verb be answered
here, the second never does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from coordinator.api import wire
from coordinator.api.verb import Reply
from coordinator.domain.errors import DaemonUnreachable
from coordinator.kit import lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from coordinator.sdk.layout import Layout

_CONNECT_S = 5.0
_ANSWER_S = 600.0
"""Longest silence in one answer; a scan of a large tree takes minutes."""


@dataclass(frozen=True, slots=True)
class Address:
    """Content of ``api.json``."""

    pid: int
    socket: str
    token: str
    version: str


def find(layout: Layout) -> Address | None:
    """None when no daemon has left an address that only its owner could have written."""
    try:
        info = os.lstat(layout.api)
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        return None
    data = lock.read_object(layout.api) or {}
    try:
        return Address(
            pid=int(data["pid"]), socket=str(data["socket"]), token=str(data["token"]), version=str(data["version"])
        )
    except (KeyError, TypeError, ValueError):
        return None


class Client:
    """One connection, one question; close it by leaving its ``async with``."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._address = address
        self._reader = reader
        self._writer = writer

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> Reply:
        """Raises what the verb raised."""
        async for message in self._ask(verb, arguments, _ANSWER_S):
            if "end" in message:
                end = message["end"]
                return Reply(data=end.get("data", {}), exit_code=int(end.get("exit_code", 0)))
        raise DaemonUnreachable(f"the daemon (pid {self._address.pid}) went away before it answered")

    async def stream(self, verb: str, arguments: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        """Items as they come; ends when the verb ends, raises when the daemon goes away."""
        async for message in self._ask(verb, arguments, None):
            if "item" in message:
                yield message["item"]
            elif "end" in message:
                return
        raise DaemonUnreachable(f"the daemon (pid {self._address.pid}) went away")

    async def _ask(
        self, verb: str, arguments: Mapping[str, Any], patience_s: float | None
    ) -> AsyncIterator[Mapping[str, Any]]:
        request = {"token": self._address.token, "verb": verb, "arguments": dict(arguments)}
        with contextlib.suppress(ConnectionError):
            self._writer.write(wire.encode(request))
            await self._writer.drain()
        while line := await self._line(patience_s):
            message = wire.decode(line)
            if "error" in message:
                raise wire.error_from_json(message["error"])
            yield message

    async def _line(self, patience_s: float | None) -> bytes:
        try:
            async with asyncio.timeout(patience_s):
                return await self._reader.readline()
        except TimeoutError:
            raise DaemonUnreachable(
                f"the daemon (pid {self._address.pid}) has not answered for {patience_s:.0f} s"
            ) from None
        except ConnectionError:
            return b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def connect(layout: Layout) -> Client | None:
    """None when no daemon runs here; raises ``DaemonUnreachable`` when one runs and does not take the question."""
    address = find(layout)
    if address is None:
        return None
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_unix_connection(address.socket, limit=wire.REPLY_BYTES)
    except TimeoutError:
        raise DaemonUnreachable(f"the daemon (pid {address.pid}) does not take questions") from None
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise DaemonUnreachable(f"cannot reach the daemon (pid {address.pid}): {error}") from None
    return Client(address, reader, writer)

"""The local API: a Unix socket that answers the verbs of the table to its owner.

Owns one invariant: only a process of the same user that shows the token is answered, and no question can stop the
daemon: each has its own task, a bounded request and a deadline to ask it. It knows no verb by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.api import wire
from coordinator.api.verb import Reach, arguments_from
from coordinator.domain.errors import CoordinatorError, PermanentError, TemporaryError
from coordinator.kit import lock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.api.desk import Desk
    from coordinator.api.verb import Verb

_log = logging.getLogger(__name__)

_ASK_S = 10.0
"""Time a connection has to send its question."""
_MANY = 64
"""Questions answered at the same time; a further one is told to come back."""
_PATH_BYTES = 100
"""A socket's path may have 104 bytes on macOS, 108 on Linux."""


class ApiServer:
    """A service. ``desk`` has the running daemon in ``live``."""

    name = "api"

    def __init__(self, desk: Desk, verbs: Sequence[Verb]) -> None:
        self._desk = desk
        self._verbs = {verb.name: verb for verb in verbs if verb.reach is not Reach.HERE}
        self._token = secrets.token_urlsafe(32)
        self._open = 0
        self._stopping = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Listen until told to stop; streams that are open then are ended."""
        self._stopping = stopping
        path, own_folder = socket_path(self._desk.layout.state)
        listener = _bind(path)
        try:
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=wire.REQUEST_BYTES)
            async with server:
                self._announce(path)
                await stopping.wait()
        finally:
            self._withdraw(path, own_folder)

    def _announce(self, path: Path) -> None:
        _, boot, pid, started = lock.own_identity()
        address = {
            "socket": str(path),
            "token": self._token,
            "pid": pid,
            "started": started,
            "boot": boot,
            "version": self._desk.version,
        }
        lock.write_atomic(self._desk.layout.api, json.dumps(address).encode(), mode=0o600)

    def _withdraw(self, path: Path, own_folder: Path | None) -> None:
        for name in (self._desk.layout.api, path):
            name.unlink(missing_ok=True)
        if own_folder is not None:
            with contextlib.suppress(OSError):
                own_folder.rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):  # they left, or never asked
                await self._converse(reader, writer)
        finally:
            self._open -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._listen(reader, writer)
            verb = self._verbs.get(request.verb)
            if verb is None:
                raise PermanentError(f"the daemon has no verb {request.verb!r}")
            arguments = arguments_from(verb, request.arguments)
            answering = asyncio.create_task(self._answer(verb, arguments, writer))
            fault = await self._until_over(answering, reader if verb.streams else None)
            if fault is not None:
                _log.error("a verb failed", exc_info=fault, extra={"action": "verb_failed", "verb": verb.name})
                raise PermanentError(f"{verb.name} failed: {fault!r}; the daemon's log has more")
        except CoordinatorError as error:
            await _send(writer, {"error": wire.error_to_json(error)})
        except (wire.BadWire, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            await _send(writer, {"error": wire.error_to_json(PermanentError(f"bad request: {error}"))})

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> wire.Request:
        if not same_user(writer.get_extra_info("socket")):
            raise PermanentError("the local API answers its owner only")
        if self._open > _MANY:
            raise TemporaryError(f"{_MANY} questions are being answered already", after_s=1.0)
        async with asyncio.timeout(_ASK_S):
            request = wire.request_from(await reader.readuntil(b"\n"))
        if not hmac.compare_digest(request.token.encode(), self._token.encode()):
            raise PermanentError("wrong token: read it from api.json again")
        return request

    async def _until_over(
        self, answering: asyncio.Task[None], reader: asyncio.StreamReader | None
    ) -> BaseException | None:
        """Answer, but do not stream to somebody who has left (``reader``), nor beyond the daemon's own end.

        Returns what went wrong in the verb, if anything did.
        """
        ends = [asyncio.create_task(_set(self._stopping))]
        if reader is not None:
            ends.append(asyncio.create_task(_gone(reader)))
        try:
            await asyncio.wait({answering, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set() and reader is None:
                await asyncio.wait({answering}, timeout=1.0)
            return answering.exception() if answering.done() else None
        finally:
            for task in (answering, *ends):
                task.cancel()
            await asyncio.gather(answering, *ends, return_exceptions=True)

    async def _answer(self, verb: Verb, arguments: Any, writer: asyncio.StreamWriter) -> None:
        end: dict[str, Any] = {"data": {}, "exit_code": 0}
        try:
            if verb.stream is not None:
                async for item in verb.stream(self._desk, arguments):
                    await _send(writer, {"item": item})
            elif verb.call is not None:
                reply = await verb.call(self._desk, arguments)
                end = {"data": reply.data, "exit_code": reply.exit_code}
        except CoordinatorError as error:
            await _send(writer, {"error": wire.error_to_json(error)})
        else:
            await _send(writer, {"end": end})


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _gone(reader: asyncio.StreamReader) -> None:
    """Return when the other end has closed; what it says meanwhile is thrown away."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(4096):
            pass


async def _send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(wire.encode(message))
    await writer.drain()


def _is_short(folder: str) -> bool:
    return len(os.fsencode(folder)) < _PATH_BYTES - 40 and os.access(folder, os.W_OK)


def socket_path(state: Path) -> tuple[Path, Path | None]:
    """Where to listen, and the folder that was made for it when the state folder's name is too long for a socket."""
    path = state / "api.sock"
    if len(os.fsencode(path)) <= _PATH_BYTES:
        return path, None
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    places = (base, tempfile.gettempdir(), "/tmp")  # noqa: S108 - mkdtemp makes it ours alone
    parent = next(one for one in places if one and (one == "/tmp" or _is_short(one)))  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="coordinator-", dir=parent))
    return folder / "api.sock", folder


def _bind(path: Path) -> socket.socket:
    """Bind before listening, so that nobody can connect before the mode is set. The daemon's lock is ours: a socket
    that is there already is one of a dead daemon.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def same_user(connection: Any) -> bool:
    """Whether the other end runs as us; True where the system does not tell (the token still decides)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", packed)
    return bool(uid == os.geteuid())

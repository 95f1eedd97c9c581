"""A relay of bytes on loopback that keeps every request which passed it, as it came.

Owns one invariant: it passes on what it gets and changes no byte of it, so that what is said of its two sides is said by
neither of them. It reads HTTP/1.1 with its own few lines: no parser that is under test tells what came.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """``fields`` as they were spelled and in their order."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes


def split_requests(data: bytes) -> tuple[list[Request], bytes]:
    """The whole requests at the beginning of what a client sent, and the rest. Raises ``ValueError``."""
    requests = []
    while (end := data.find(_HEAD_END)) >= 0:
        first, *lines = data[:end].split(b"\r\n")
        fields = tuple((name, value.strip()) for name, _, value in (line.partition(b":") for line in lines))
        known = {name.lower(): value for name, value in fields}
        if b"transfer-encoding" in known:
            raise ValueError("a body whose length is not said is not read here")
        begin = end + len(_HEAD_END)
        until = begin + int(known.get(b"content-length", b"0"))
        if len(data) < until:
            break
        method, target, _ = first.split(b" ")
        requests.append(Request(method, target, fields, data[begin:until]))
        data = data[until:]
    return requests, data


class Tap:
    """``port`` says where to pass on to; it is asked for each connection."""

    def __init__(self, port: Callable[[], int]) -> None:
        self.requests: list[Request] = []
        """In the order in which they were whole."""
        self.wrong: list[str] = []
        """What could not be passed on or read."""
        self._port = port
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._pass_on)  # type: ignore[arg-type]
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _pass_on(self, near: socket.socket, *_: object) -> None:
        """One connection, both ways."""
        try:
            far = socket.create_connection(("127.0.0.1", self._port()))
        except OSError as fault:
            self.wrong.append(f"nobody to pass on to: {fault}")
            return
        with far:
            down = threading.Thread(target=_pump, args=(far, near))
            down.start()
            rest = b""
            try:
                while data := near.recv(65536):
                    far.sendall(data)
                    found, rest = split_requests(rest + data)
                    self.requests += found
            except (OSError, ValueError) as fault:
                self.wrong.append(f"not passed on: {fault}")
            _end(far)
            down.join()
        if rest:
            self.wrong.append(f"{len(rest)} bytes of a request that was not whole")


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):  # who asked has gone
        while data := source.recv(65536):
            sink.sendall(data)
    _end(sink)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_WR)

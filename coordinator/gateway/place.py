"""Where the gateway listens and the secret of its keys, kept from one daemon to the next.

Owns one invariant: agents that outlive a daemon find the next one at the same address with the same keys, or a person is
told that they will not; what was revoked stays revoked. Both files are for their owner alone.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from coordinator.gateway.hosts import listening_address
from coordinator.gateway.keys import split_path
from coordinator.kit import files, lock

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.gateway.hosts import ListeningAddress
    from coordinator.gateway.keys import Claim

FILE: Final = "gateway.json"
_REVOKED: Final = "gateway.revoked"

_BACKLOG: Final = 512
_HOST: Final = "127.0.0.1"
_LOWEST_PORT: Final = 20_000
_PORTS: Final = 12_000
"""Chosen below the ports that systems give to outgoing connections, so that nobody takes it by chance while we restart."""
_SECRET_BYTES: Final = 32
_TRIES: Final = 20
_REMEMBERED: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlace:
    """``lost``: why agents of an earlier daemon do not find us or have keys that are none any more; empty: they do."""

    at: ListeningAddress
    listener: socket.socket
    lost: str
    port: int
    secret: bytes = field(repr=False)

    @property
    def url(self) -> str:
        """For programs of this machine."""
        return f"http://{self.at.near}:{self.port}"


def take(state: Path, host: str, wanted: int) -> GatewayPlace:
    """Listen where it was listened before (``wanted``: a person named the port; 0: nobody did). Raises ``OSError``, and
    ``BadInput`` when this machine has no such ``host``."""
    at = listening_address(host)
    known = lock.read_object(state / FILE)
    secret, before = _secret(known), _port(known)
    lost = ""
    if known is None and os.path.lexists(state / FILE):
        lost = f"{FILE} cannot be read"
    elif known is not None and not (secret and before):
        lost = f"{FILE} is damaged"
    listener = _listen_at(at, wanted or before)
    if before and _host(known) != at.near:
        lost = lost or f"the address is {at.near} now, it was {_host(known)}"
    elif wanted and before and wanted != before:
        lost = lost or f"the port is {wanted} now, it was {before}"
    elif listener is None and (wanted or before):
        lost = f"port {wanted or before} of this machine is taken"
    listener = listener or _listen_anywhere(at)
    port = listener.getsockname()[1]
    secret = secret or secrets.token_bytes(_SECRET_BYTES)
    try:
        write(state, at.near, port, secret, pid=os.getpid())
    except BaseException:
        listener.close()
        raise
    return GatewayPlace(at=at, listener=listener, lost=lost, port=port, secret=secret)


def write(state: Path, host: str, port: int, secret: bytes, *, pid: int) -> None:
    """``host`` is for programs of this machine, ``pid`` who listens there now (0: nobody)."""
    data = {"host": host, "pid": pid, "port": port, "secret": secret.hex()}
    lock.write_atomic(state / FILE, json.dumps(data).encode() + b"\n", mode=0o600)


def url_of(state: Path, pid: int) -> str:
    """Where the process ``pid`` listens; empty: it does not."""
    known = lock.read_object(state / FILE)
    port = _port(known)
    return f"http://{_host(known)}:{port}" if port and known is not None and known.get("pid") == pid else ""


def _host(known: dict[str, Any] | None) -> str:
    """Whoever wrote down none knew this one alone."""
    host = (known or {}).get("host")
    return host if isinstance(host, str) and host else _HOST


def _port(known: dict[str, Any] | None) -> int:
    port = (known or {}).get("port")
    return port if isinstance(port, int) and not isinstance(port, bool) and 1024 <= port < 65_536 else 0


def _secret(known: dict[str, Any] | None) -> bytes:
    try:
        secret = bytes.fromhex((known or {}).get("secret", ""))
    except (TypeError, ValueError):
        return b""
    return secret if len(secret) >= _SECRET_BYTES else b""


def _listen_at(at: ListeningAddress, port: int) -> socket.socket | None:
    """None: somebody else is there, or no port was named."""
    if not port:
        return None
    listener = socket.socket(at.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if at.family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is for IPv4 as well
        listener.bind((at.address, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        return None
    return listener


def _listen_anywhere(at: ListeningAddress) -> socket.socket:
    for _ in range(_TRIES):
        listener = _listen_at(at, _LOWEST_PORT + secrets.randbelow(_PORTS))
        if listener is not None:
            return listener
    raise OSError(f"no port of {at.address} can be listened at")


# -- what was revoked -------------------------------------------------------------------------------------------------


def remember_revoked(state: Path, claim: Claim) -> None:
    """One line more. Not forced to the disk: a machine that forgets it has lost the agents as well.

    Raises ``OSError``.
    """
    task, generation = claim
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(state / _REVOKED, flags, 0o600)
    try:
        os.write(fd, f"/agents/{task}/{generation}/\n".encode())
    finally:
        os.close(fd)


def revoked_before(state: Path) -> list[Claim]:
    """What earlier daemons revoked, the newest last. Lines that are none are passed over; the file is kept short."""
    text = files.read_text(state / _REVOKED, largest_bytes=16 * 1024 * 1024)
    if not isinstance(text, str):
        return []
    lines = text.splitlines()
    if len(lines) > 2 * _REMEMBERED:
        lines = lines[-_REMEMBERED:]
        lock.write_atomic(state / _REVOKED, "".join(f"{one}\n" for one in lines).encode(), mode=0o600)
    return [found[0] for found in map(split_path, lines) if found is not None]

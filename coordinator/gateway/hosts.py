"""Where the gateway listens, and the names it may be called by: what a request's ``Host`` says.

Owns one invariant: a web page that led a browser here under a name of its own (DNS rebinding) is turned away, wherever we
listen. Such a page has to say a name that its author can point at us: this machine's own, and those that a person wrote into
the settings, are none of these, and neither is an address. Who may call a model is not decided by it: that takes a key.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_FIELD: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._~-]{1,253})(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningAddress:
    """``address`` is numeric. ``asked`` is what it was made of; ``family`` the socket's."""

    address: str
    asked: str
    family: socket.AddressFamily

    @property
    def open(self) -> bool:
        """Whether other machines can reach it."""
        return not ipaddress.ip_address(self.address).is_loopback

    @property
    def literal(self) -> str:
        """As a URL has it."""
        return f"[{self.address}]" if self.family is socket.AF_INET6 else self.address

    @property
    def near(self) -> str:
        """What programs of this machine call it, as a URL has it. One that listens everywhere takes IPv4 in any case."""
        return "127.0.0.1" if ipaddress.ip_address(self.address).is_unspecified else self.literal


def listening_address(host: str) -> ListeningAddress:
    """What ``host`` means here, IPv4 first. Raises ``BadInput`` for what nobody can listen at."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, place = min(found, key=lambda one: one[0] is not socket.AF_INET)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((place[0], 0))
    except (OSError, UnicodeError) as error:
        fault = f"{host!r} is no address of this machine"
        remedy = "127.0.0.1, or 0.0.0.0 for all that it has"
        raise BadInput([Problem(file="[gateway] host", message=fault, expected=remedy)]) from error
    return ListeningAddress(address=str(place[0]), asked=host, family=family)


class HostNames:
    """``allowed`` are names that a person added; ``machine`` is what this machine calls itself."""

    def __init__(self, at: ListeningAddress, allowed: Iterable[str], machine: str) -> None:
        self._any_address = at.open
        names = {*_LOOPBACK, at.literal, *allowed}
        if at.open:
            short = machine.partition(".")[0]
            names |= {at.asked, machine, short, f"{short}.local"}
        self._names = frozenset(_bracketed(name.lower().rstrip(".")).encode() for name in names if name)

    def passes(self, field: bytes) -> bool:
        """Whether a request whose ``Host`` is ``field`` may have been meant for us."""
        match = _FIELD.fullmatch(field)
        if match is None:
            return False
        name = match[1].lower().rstrip(b".")
        return name in self._names or (self._any_address and _is_address(name))


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def _is_address(name: bytes) -> bool:
    try:
        found = ipaddress.ip_address(name.strip(b"[]").decode())
    except ValueError:
        return False
    return (found.version == 6) is name.startswith(b"[")

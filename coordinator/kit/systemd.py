"""What a service manager (systemd) is told about us, through the socket that it names in our environment.

Owns one invariant: telling never blocks and never fails us. The protocol is sd_notify(3): datagrams of ``NAME=value`` lines.
What is worth telling is ``surface.systemd``'s.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Systemd:
    """``watchdog_s`` is how often it wants to hear of us at least (None: it does not watch)."""

    def __init__(self, address: str, watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """None when nobody asked to be told. A watchdog that was meant for another process is none of ours."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        watchdog_s = None
        with contextlib.suppress(ValueError):
            if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
                watchdog_s = int(environment["WATCHDOG_USEC"]) / 1e6 if "WATCHDOG_USEC" in environment else None
        return cls(address, watchdog_s)

    def tell(self, **news: str) -> bool:
        """For instance ``tell(READY="1", STATUS="24 agents")``; False when nobody could be told."""
        text = "".join(f"{name}={value.replace(chr(10), ' ')}\n" for name, value in news.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.setblocking(False)
                to.sendto(text.encode(), self._address)
        except OSError:
            return False
        return True

"""Who is calling, and for what: decided on a request's head, before a byte of its body is taken.

Owns one invariant: no call without a living claim's own key, no caller that was led here under a name that is not
ours, and no path outside of a short list. What a path means in a protocol is ``dialect``'s.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final, Protocol

from coordinator.gateway.calls import Call
from coordinator.gateway.dialect import Denial, Denied, Dialect, dialect_of
from coordinator.gateway.endings import revoked
from coordinator.gateway.keys import split_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.gateway.calls import Calls
    from coordinator.gateway.claimant import Claimant
    from coordinator.gateway.hosts import HostNames
    from coordinator.gateway.keys import Claim, ClaimKeys
    from coordinator.kit.clock import Clock

END: Final = b"/end"
"""Below an attempt's address: its own key is to be good for nothing any more."""

_KEY_IN_PATH: Final = re.compile(rb"/keys/([^/?#]+)(/[^#]*)")
_KNOWN: Final = 4096
"""Addresses and keys that are remembered once they were understood."""
SESSION: Final = b"x-claude-code-session-id"
_NAME_BYTES: Final = 64
"""Of a call's id that its caller gives."""

KEY_FIELDS: Final = (b"x-api-key", b"authorization", b"x-goog-api-key", b"api-key")


class CallAddress:
    """What a request's target names. ``claim`` None: the key alone says who calls."""

    __slots__ = ("claim", "dialect", "key", "name", "path", "rest")

    def __init__(self, claim: Claim | None, key: bytes, dialect: Dialect | None, path: bytes, rest: bytes) -> None:
        self.claim = claim
        self.dialect = dialect
        self.key = key
        self.name = path.decode("ascii", "replace")
        self.path = path
        self.rest = rest


class Caller:
    """What a request's head tells of who calls: worked out once for heads that are the same. ``session``: what belongs
    together; ``coding``: how the body is packed."""

    __slots__ = ("address", "claim", "coding", "session")

    def __init__(self, address: CallAddress, claim: Claim, asker: Asker) -> None:
        self.address = address
        self.claim = claim
        self.coding = asker.header(b"content-encoding")
        self.session = asker.header(SESSION) or repr(claim).encode()


class Asker(Protocol):
    """A request, as far as its head tells who asks."""

    def header(self, name: bytes) -> bytes: ...


class Doorkeeper:
    """``who`` tells of an attempt that may call (None: it may not); it is asked for each call and has to be quick.

    ``calls_per_agent`` may be under way at once. ``hosts`` are the names that this gateway may be called by.
    """

    def __init__(
        self,
        keys: ClaimKeys,
        calls: Calls,
        clock: Clock,
        *,
        calls_per_agent: int,
        hosts: HostNames,
        who: Callable[[str, int], Claimant | None],
    ) -> None:
        self._keys = keys
        self._calls = calls
        self._calls_per_agent = calls_per_agent
        self._clock = clock
        self._hosts = hosts
        self._numbers = itertools.count(1)
        self._prefix = f"{int(clock.now().timestamp()):x}"
        self._who = who
        self._addresses: dict[tuple[bytes, bytes], CallAddress] = {}
        self._claims: dict[bytes, Claim] = {}
        self._names: set[bytes] = set()

    def address(self, method: bytes, target: bytes) -> CallAddress:
        """What it names; ``dialect`` is None for what is no model's call."""
        found = self._addresses.get((method, target))
        if found is None:
            found = _read_address(method, target)
            if len(self._addresses) >= _KNOWN:
                self._addresses.clear()
            self._addresses[method, target] = found
        return found

    def check_host(self, asker: Asker) -> None:
        """Raises ``Denied``."""
        if asker.header(b"origin"):
            raise Denied(Denial.NOT_ALLOWED, "web pages may not call models here")
        host = asker.header(b"host")
        if host in self._names:
            return
        if not self._hosts.passes(host):
            raise Denied(Denial.NOT_ALLOWED, "the gateway is not called by this name ([gateway] allowed_hosts)")
        if len(self._names) < _KNOWN:
            self._names.add(host)

    def claim(self, address: CallAddress, asker: Asker) -> Claim:
        """Whose key was shown. Raises ``Denied``."""
        shown = self._shown(address, asker)
        if shown is None:
            raise Denied(Denial.NO_KEY, "this is no key of an agent; the one it was started with is")
        if address.claim is not None and shown != address.claim:
            raise Denied(Denial.NOT_ALLOWED, "the key is another agent's than the address")
        return shown

    def admit(self, address: CallAddress, claim: Claim, asker: Asker) -> Call:
        """A call that may begin. Raises ``Denied``."""
        assert address.dialect is not None  # a model's call
        task, generation = claim
        if self._calls.is_revoked(claim):
            raise Denied(Denial.NOT_ALLOWED, revoked(claim))
        who = self._who(task, generation)
        if who is None:
            raise Denied(Denial.NOT_ALLOWED, f"attempt {generation} at {task} is over or was never begun")
        if self._calls.closing:
            raise Denied(Denial.STOPPING, "the gateway restarts; try again", retry_after_s=1.0)
        call = Call(claim, who, address.dialect, address.name, self._clock.monotonic())
        given = asker.header(b"x-request-id")
        own = not given or len(given) > _NAME_BYTES or not given.isalnum()
        call.id = f"{self._prefix}-{next(self._numbers):x}" if own else given.decode()
        return call

    def check_share(self, call: Call) -> None:
        """Of a call that is under way: whether its agent has not too many. Raises ``Denied``."""
        if self._calls.number(call.claim) > self._calls_per_agent:
            said = f"{self._calls_per_agent} calls of this agent are under way already"
            raise Denied(Denial.LIMITED, said, retry_after_s=1.0)

    def _shown(self, address: CallAddress, asker: Asker) -> Claim | None:
        if address.key:
            return self._claim_of(address.key)
        for name in KEY_FIELDS:
            key = asker.header(name)
            if key:
                if name == b"authorization":
                    scheme, _, token = key.partition(b" ")
                    key = token.strip() if scheme.lower() == b"bearer" else b""
                claim = self._claim_of(key)
                if claim is not None:
                    return claim
        return None

    def _claim_of(self, key: bytes) -> Claim | None:
        claim = self._claims.get(key)
        if claim is None and key.isascii():
            claim = self._keys.claim_of(key.decode())
            if claim is not None:
                if len(self._claims) >= _KNOWN:
                    self._claims.clear()
                self._claims[key] = claim
        return claim


def _read_address(method: bytes, target: bytes) -> CallAddress:
    claim, key, rest = None, b"", target
    named = split_path(target.decode()) if target.isascii() else None
    if named is not None:
        claim, rest = named[0], named[1].encode()
    elif (match := _KEY_IN_PATH.fullmatch(target)) is not None:
        key, rest = match[1], match[2]
    return CallAddress(claim, key, dialect_of(method, rest), rest.partition(b"?")[0], rest)

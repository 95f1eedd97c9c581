"""A call as far as another may ask the same: what it asks, who asks, and whose money it is.

Owns one invariant: what is costly to work out of a body is worked out once, and only when somebody wants it. Whether two are the
same is ``deduplicator``'s to say, what makes their forms ``sameness``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway.dialect import Dialect
from coordinator.gateway.sameness import Sameness, normalised, raw_key, shape

if TYPE_CHECKING:
    from coordinator.gateway.agent_paths import AgentPaths
    from coordinator.gateway.keys import Claim
    from coordinator.gateway.sameness import Normalised

_MESSAGES: Final = Dialect.ANTHROPIC_MESSAGES
_OFF: Final = Sameness.OFF


class Question:
    """A call as far as others may ask the same: made once per call. What is worked out of it is worked out once.

    ``owner`` is whose money it is, ``sense`` what ``sameness.sense`` gives, ``streams`` whether a stream is asked for; ``model``
    is the one it is routed to, ``most`` the tokens it asks for, ``turns`` how many messages it has.
    """

    __slots__ = ("_normal", "_raw", "_shape", "body", "claim", "dialect", "key", "mode", "paths", "who")

    def __init__(
        self,
        body: bytes,
        *,
        claim: Claim,
        dialect: Dialect,
        mode: Sameness,
        model: str,
        most: int,
        owner: str,
        paths: AgentPaths,
        sense: bytes,
        session: bytes,
        streams: bool,
        turns: int,
    ) -> None:
        self._normal: Normalised | bool | None = False  # not worked out yet
        self._raw = b""
        self._shape: bytes | None = None
        self.body = body
        self.claim = claim
        self.dialect = dialect
        self.mode = mode if mode is _OFF or dialect is _MESSAGES else Sameness.RAW
        self.key = (owner, sense, model, most, streams, turns, self.mode)
        """What must be equal before forms are looked at: whose money, and the kind of call."""
        self.paths = paths
        self.who = (claim, session)

    @property
    def raw(self) -> bytes:
        if not self._raw:
            self._raw = raw_key(self.body)
        return self._raw

    @property
    def shape(self) -> bytes:
        if self._shape is None:
            self._shape = shape(self.body, paths=self.paths, mode=self.mode)
        return self._shape

    @property
    def normal(self) -> Normalised | None:
        if isinstance(self._normal, bool):
            self._normal = normalised(self.body, paths=self.paths, mode=self.mode)
        return self._normal

"""What an answer tells about itself, in each protocol: tokens used, model, errors, and how far it has come.

Owns one invariant: whatever an upstream sends, nothing here raises, and no count is believed that cannot be one (negative,
no whole number, more than a billion). It decodes one event or one whole body at a time; where these begin and end in a
stream of bytes is ``usage_reader``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from coordinator.domain.usage import TokenUsage
from coordinator.gateway.envelope import MOST, Sparse, sparse_reader

_MESSAGE: Final = 600
"""Characters kept of an error's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerError:
    """An error that came in an answer, in the upstream's words."""

    kind: str
    message: str


class AnswerFacts:
    """What is known so far. Each dialect fills it in its own way.

    ``block_ended``: a content block or tool call was passed on whole, so a client may have acted on it. ``finished``: the
    answer came to its proper end. ``told``: the usage is final and the upstream's own.
    """

    generates = True
    """Whether what comes is output that is paid for."""
    marks: tuple[bytes, ...] = ()
    """What stands in each event that may end a block."""

    __slots__ = ("_counts", "_total", "block_ended", "error", "finished", "first_token", "model", "told")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._total: TokenUsage | None = None  # of a whole answer that says it plainly
        self.block_ended = False
        self.error: AnswerError | None = None
        self.finished = False
        self.first_token = False
        self.model = ""
        self.told = False

    def event(self, payload: bytes) -> None:
        """The data of one event of a stream, without white space around it. Any event but those at the beginning, up to the
        first token, those at the end and those with one of the ``marks`` may be left out; one may come twice."""

    def end(self, left: bytes) -> None:
        """The stream is over; ``left`` is what came after the last event."""

    def whole(self, body: bytes) -> None:
        """An answer that is no stream."""
        answer = _plain(body)
        if answer is not None:
            self.told = True
            self._whole_ended(answer.error)

    @property
    def usage(self) -> TokenUsage:
        return TokenUsage()

    def _whole_told(self, model: str, usage: TokenUsage) -> None:
        """A whole answer without any error or oddity."""
        self._total = usage
        self.model = model[:200]
        self.block_ended = self.finished = self.first_token = self.told = True

    def _whole_ended(self, error: Any) -> None:
        self._failed(error)
        if self.error is None:
            self.block_ended = self.finished = self.first_token = True

    def _failed(self, error: Any) -> None:
        """``error`` as the upstream put it; nothing, when there is none."""
        if not error or self.error is not None:
            return
        words = [
            str(within(error, key)) for key in ("status", "code", "type") if isinstance(within(error, key), str | int)
        ]
        kind = next((word for word in words if not word.isdigit()), words[0] if words else "error")
        said = within(error, "message") if isinstance(error, dict) else error
        self.error = AnswerError(kind=kind[:100], message=(said if isinstance(said, str) else kind)[:_MESSAGE])

    def _named(self, model: Any) -> None:
        if not self.model and isinstance(model, str):
            self.model = model[:200]

    def _note(self, name: str, value: Any) -> None:
        """The last count that is one stands; what later usage leaves out stays as it was."""
        if type(value) is int and 0 <= value <= MOST:
            self._counts[name] = value

    def _noted(self, name: str) -> int:
        return self._counts.get(name, 0)


class _Plain(Sparse):
    error: Any = None


_plain: Final = sparse_reader(_Plain)


def within(value: Any, *keys: str) -> Any:
    """What stands there in nested objects; None: nothing, or they are of another shape."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value

"""What an answer in Anthropic's protocol tells about itself.

Owns one invariant: each billed token is counted once, with what ``message_delta`` says last standing above what
``message_start`` said first. It knows ``/v1/messages`` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.usage import TokenUsage
from coordinator.gateway.answer_facts import AnswerFacts, within
from coordinator.gateway.envelope import Count, Sparse, sparse_reader

if TYPE_CHECKING:
    from collections.abc import Mapping


class _AnthropicMessage(Sparse):
    model: Any = None
    usage: Any = None


class _AnthropicEvent(Sparse):
    """An event of a stream, or a whole answer: their names do not clash."""

    error: Any = None
    message: _AnthropicMessage | None = None
    model: Any = None
    type: Any = None
    usage: Any = None


class _Creation(Sparse):
    ephemeral_1h_input_tokens: Count = 0
    ephemeral_5m_input_tokens: Count = 0


class _OutputDetails(Sparse):
    thinking_tokens: Count = 0


class _PlainUsage(Sparse):
    cache_creation: _Creation | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    input_tokens: Count = 0
    iterations: None = None
    output_tokens: Count = 0
    output_tokens_details: _OutputDetails | None = None


class _PlainAnswer(Sparse, kw_only=True):
    """A whole answer as nearly all are: what does not fit is read as an event is."""

    error: None = None
    model: str = ""
    usage: _PlainUsage


_anthropic: Final = sparse_reader(_AnthropicEvent)
_plain_answer: Final = sparse_reader(_PlainAnswer)

_ANTHROPIC_COUNTS: Final[Mapping[str, str]] = {
    "cache_creation_input_tokens": "written",
    "cache_read_input_tokens": "read",
    "input_tokens": "input",
    "output_tokens": "output",
}


class AnthropicFacts(AnswerFacts):
    """Usage stands in ``message_start``; ``message_delta`` has the final counts, all or some. ``input_tokens`` are those
    that have nothing to do with the cache."""

    marks = (b'"content_block_stop"',)

    __slots__ = ()

    def event(self, payload: bytes) -> None:
        event = _anthropic(payload)
        if event is None:
            return
        match event.type:
            case "content_block_delta":
                self.first_token = True
            case "message_start" if event.message is not None:
                self._named(event.message.model)
                self._count(event.message.usage)
            case "message_delta":
                self._count(event.usage)
                self.told = self.told or within(event.usage, "output_tokens") is not None
            case "content_block_stop":
                self.block_ended = True
            case "message_stop":
                self.finished = True
            case "error":
                self._failed(event.error or "error")

    def whole(self, body: bytes) -> None:
        plain = _plain_answer(body)
        if plain is not None:
            self._whole_told(plain.model, _told(plain.usage))
            return
        answer = _anthropic(body)
        if answer is not None:
            self._named(answer.model)
            self._count(answer.usage)
            self.told = isinstance(answer.usage, dict)
            self._whole_ended(answer.error)

    def _count(self, usage: Any) -> None:
        for key, name in _ANTHROPIC_COUNTS.items():
            self._note(name, within(usage, key))
        self._note("written_1h", within(usage, "cache_creation", "ephemeral_1h_input_tokens"))
        self._note("written_5m", within(usage, "cache_creation", "ephemeral_5m_input_tokens"))
        self._note("thinking", within(usage, "output_tokens_details", "thinking_tokens"))
        extra = within(usage, "iterations")
        for key, name in _ANTHROPIC_COUNTS.items() if isinstance(extra, list) else ():
            # Compaction on the server is a call of its own, billed and left out of the sums above.
            counts = [within(one, key) for one in extra if within(one, "type") == "compaction"]
            self._note(f"extra_{name}", sum(count for count in counts if type(count) is int and count > 0))

    @property
    def usage(self) -> TokenUsage:
        if self._total is not None:
            return self._total
        hour = self._noted("written_1h")
        written = max(self._noted("written"), hour + self._noted("written_5m"))
        output = self._noted("output")
        return TokenUsage(
            cache_read_tokens=self._noted("read") + self._noted("extra_read"),
            cache_write_1h_tokens=hour,
            cache_write_tokens=written - hour + self._noted("extra_written"),
            input_tokens=self._noted("input") + self._noted("extra_input"),
            output_tokens=output + self._noted("extra_output"),
            reasoning_tokens=min(self._noted("thinking"), output),
        )


def _told(usage: _PlainUsage) -> TokenUsage:
    """The same sums as those of an event's counts."""
    creation, details = usage.cache_creation, usage.output_tokens_details
    hour = creation.ephemeral_1h_input_tokens if creation is not None else 0
    parts = hour + creation.ephemeral_5m_input_tokens if creation is not None else 0
    return TokenUsage(
        cache_read_tokens=usage.cache_read_input_tokens or 0,
        cache_write_1h_tokens=hour,
        cache_write_tokens=max(usage.cache_creation_input_tokens or 0, parts) - hour,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=min(details.thinking_tokens, usage.output_tokens) if details is not None else 0,
    )

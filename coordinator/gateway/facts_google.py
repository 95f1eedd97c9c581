"""What an answer in Google's protocol tells about itself.

Owns one invariant: what was thought is output, and what was read from the cache is no other input. It knows
``generateContent`` and ``streamGenerateContent``, with ``alt=sse`` and without, and embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.usage import TokenUsage
from coordinator.gateway.answer_facts import AnswerFacts, within
from coordinator.gateway.envelope import Raw, Sparse, sparse_reader

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Part(Sparse):
    functionCall: Raw = Raw(b"")  # noqa: N815
    text: Any = None


class _Content(Sparse):
    parts: list[_Part] | None = None


class _Candidate(Sparse):
    content: _Content | None = None
    finishReason: Any = None  # noqa: N815


class _GoogleEvent(Sparse):
    candidates: list[_Candidate] | None = None
    error: Any = None
    modelVersion: Any = None  # noqa: N815
    promptFeedback: Any = None  # noqa: N815
    usageMetadata: Any = None  # noqa: N815


_google: Final = sparse_reader(_GoogleEvent)
_google_list: Final = sparse_reader(list[_GoogleEvent])

_GOOGLE_COUNTS: Final[Mapping[str, str]] = {
    "cachedContentTokenCount": "read",
    "candidatesTokenCount": "output",
    "promptTokenCount": "input",
    "thoughtsTokenCount": "thoughts",
    "toolUsePromptTokenCount": "tool_input",
}


class GoogleFacts(AnswerFacts):
    """Every chunk has the usage so far. An error in the middle of a stream stands there bare, over several lines."""

    marks = (b'"functionCall"',)

    __slots__ = ()

    def event(self, payload: bytes) -> None:
        event = _google(payload)
        if event is not None:
            self._take(event)

    def end(self, left: bytes) -> None:
        self.event(left)

    def whole(self, body: bytes) -> None:
        """A stream without ``alt=sse`` is a list of chunks."""
        single = _google(body)
        chunks = [single] if single is not None else _google_list(body)
        for chunk in chunks or ():
            self._take(chunk)
        if chunks is not None:
            self.told = self.told or "input" in self._counts
            self._whole_ended(None)

    def _take(self, event: _GoogleEvent) -> None:
        self._named(event.modelVersion)
        for key, name in _GOOGLE_COUNTS.items():
            self._note(name, within(event.usageMetadata, key))
        for candidate in event.candidates or ():
            for part in (candidate.content.parts if candidate.content is not None else None) or ():
                called = bytes(part.functionCall) not in (b"", b"null")
                self.first_token = self.first_token or called or bool(part.text)
                self.block_ended = self.block_ended or called
            if isinstance(candidate.finishReason, str):
                self._stop()
        if within(event.promptFeedback, "blockReason"):
            self._stop()
        self._failed(event.error)
        if event.error:
            self.finished = False

    def _stop(self) -> None:
        self.block_ended = self.finished = True
        self.told = self.told or "input" in self._counts

    @property
    def usage(self) -> TokenUsage:
        prompt = self._noted("input")
        read = min(self._noted("read"), prompt)
        return TokenUsage(
            cache_read_tokens=read,
            input_tokens=prompt - read + self._noted("tool_input"),
            output_tokens=self._noted("output") + self._noted("thoughts"),
            reasoning_tokens=self._noted("thoughts"),
        )


class GoogleEmbeddingFacts(GoogleFacts):
    """Vectors are no output. Some models tell what they counted, others nothing."""

    generates = False

    __slots__ = ()

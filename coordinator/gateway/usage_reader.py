"""Follows an answer while it is passed on, and knows afterwards what it used, what failed and how far it came.

Owns one invariant: it never raises, never holds more than a bounded part of an answer, and costs a piece of a stream no more
than being put on a list. What is on the list is looked through in batches: when enough has come together, when somebody asks,
or at the end. Of a stream only the events at its two ends are decoded, and those that may end a block. How the bytes were cut
on their way makes no difference to what is found in the end.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coordinator.gateway.answer_facts import AnswerFacts
from coordinator.gateway.codings import inflater_of
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.facts_anthropic import AnthropicFacts
from coordinator.gateway.facts_google import GoogleEmbeddingFacts, GoogleFacts
from coordinator.gateway.facts_openai import ChatFacts, ResponsesFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.usage import TokenUsage
    from coordinator.gateway.answer_facts import AnswerError
    from coordinator.gateway.codings import Inflater

BATCH_BYTES: Final = 16 * 1024
"""Of a stream, read together."""
LINE_BYTES: Final = 1024 * 1024
"""The longest line that is read; a longer one is passed over."""
WHOLE_BYTES: Final = 8 * 1024 * 1024
"""The largest answer in one piece that is read; more is as good as unreadable."""
INFLATED_BYTES: Final = 4 * 1024 * 1024
"""What one batch of a compressed stream may become: sixty times what comes at one time is no text."""

_LAST: Final = 4
"""Events at the end of a stream that may tell how it ended. No protocol has more than three."""
_LEFT_BYTES: Final = 64 * 1024
"""Kept of what comes after the last event."""
_SAMPLE_BYTES: Final = 1024
_TOKEN_BYTES: Final = 4
"""Of text in a token, about."""
_TEXTS: Final = re.compile(
    rb'"(?:arguments|content|delta|partial_json|reasoning|reasoning_content|text|thinking)": ?"((?:[^"\\]|\\.)++)'
)
"""Generated text in the events of any dialect."""

_FACTS: Final[Mapping[Dialect, type[AnswerFacts]]] = {
    Dialect.ANTHROPIC_MESSAGES: AnthropicFacts,
    Dialect.GOOGLE_EMBEDDINGS: GoogleEmbeddingFacts,
    Dialect.GOOGLE_GENERATE: GoogleFacts,
    Dialect.OPENAI_CHAT: ChatFacts,
    Dialect.OPENAI_EMBEDDINGS: ChatFacts,
    Dialect.OPENAI_RESPONSES: ResponsesFacts,
}
"""Lists and counts of tokens use nothing, and that is told."""


def usage_reader(dialect: Dialect, *, content_type: bytes, content_encoding: bytes) -> UsageReader:
    """A reader for one answer; the values are those of its header fields."""
    facts = _FACTS.get(dialect, AnswerFacts)()
    coding = content_encoding.strip().lower()
    inflater = inflater_of(coding)
    kind = _StreamReader if b"event-stream" in content_type.lower() else _WholeReader
    return kind(facts, inflater, unreadable=inflater is None and coding not in (b"", b"identity"))


class UsageReader:
    """``feed`` takes each piece of the body as it was received; ``end`` is to be called once, when no more will come, however
    that came about. What is asked before is true of what has come so far; asking costs some microseconds. Only an answer with
    a status of success has used anything.

    ``output_bytes``: of the body, as they came.
    """

    _most = INFLATED_BYTES

    __slots__ = ("_due", "_facts", "_inflater", "_kept", "output_bytes", "unreadable")

    def __init__(self, facts: AnswerFacts, inflater: Inflater | None, *, unreadable: bool) -> None:
        self._due = 0
        self._facts = facts
        self._inflater = inflater
        self._kept: list[bytes] = []
        self.output_bytes = 0
        self.unreadable = unreadable
        """Compressed in a way that is not known here, broken, or too large."""

    def feed(self, data: bytes) -> None:
        self._kept.append(data)
        self.output_bytes += len(data)
        if self.output_bytes >= self._due:
            self._catch_up()

    def end(self) -> None:
        """No more will come."""

    @property
    def usage(self) -> TokenUsage:
        """What the upstream told. Where it did not tell all (``estimated``), the output is our estimate; input that was not
        told is 0."""
        self._look()
        told = self._facts.usage
        if not self.estimated or not self._facts.generates:
            return told
        return replace(told, output_tokens=max(told.output_tokens, self.tokens_so_far))

    @property
    def estimated(self) -> bool:
        """Something was generated, and the upstream has not told how much, or not yet."""
        self._look()
        facts = self._facts
        return not facts.told and self.output_bytes > 0 and (facts.first_token or facts.error is None)

    @property
    def tokens_so_far(self) -> int:
        """About how many were generated: good enough to stop a stream that runs away, not to bill by."""
        return int(self.output_bytes / _TOKEN_BYTES)

    @property
    def model(self) -> str:
        """As the upstream names it; empty: it has not."""
        self._look()
        return self._facts.model

    @property
    def error(self) -> AnswerError | None:
        """An error told in the answer, in the middle of a stream or in the place of one."""
        self._look()
        return self._facts.error

    @property
    def block_ended(self) -> bool:
        """A content block or tool call is complete: a client may have acted on it."""
        self._look()
        return self._facts.block_ended

    @property
    def finished(self) -> bool:
        """The protocol's own end was seen. An answer that is broken off without it is not whole."""
        self._look()
        return self._facts.finished

    @property
    def first_token(self) -> bool:
        """Something generated has come; of a stream this is up to date after each ``feed``."""
        return self._facts.first_token

    @property
    def between_events(self) -> bool:
        """A stream stands where another event may begin."""
        return False

    def _look(self) -> None:
        """Bring the facts up to date."""

    def _catch_up(self) -> None:
        """Read what has come together."""

    def _take(self) -> bytes:
        """What was kept, as plain bytes; it is kept no more."""
        data = self._kept[0] if len(self._kept) == 1 else b"".join(self._kept)
        self._kept.clear()
        if self._inflater is not None and not self.unreadable:
            data, self.unreadable = self._inflater.inflate(data, self._most)
        return data

    def _pass_over(self) -> None:
        """It cannot be read: only its length is known."""
        self._kept.clear()
        self._due = self.output_bytes + BATCH_BYTES


class _StreamReader(UsageReader):
    """Of server-sent events, one JSON document on each data line. Lines end with LF or CR LF; nobody sends CR alone."""

    __slots__ = (
        "_ending",
        "_events",
        "_latest",
        "_latest_bytes",
        "_left",
        "_line",
        "_line_bytes",
        "_skipped",
        "_tokens",
    )

    def __init__(self, facts: AnswerFacts, inflater: Inflater | None, *, unreadable: bool) -> None:
        super().__init__(facts, inflater, unreadable=unreadable)
        self._ending = b"\n\n"
        self._events: list[bytes] = []
        self._latest = b""
        self._latest_bytes = 0
        self._left = b""
        self._line: list[bytes] = []
        self._line_bytes = 0
        self._skipped = b""
        self._tokens = 0.0

    def end(self) -> None:
        if self._kept:
            self._catch_up()
        if self._line:
            self._read(b"".join(self._line))
            self._line.clear()
        self._decode()
        self._facts.end(self._left.strip())

    @property
    def tokens_so_far(self) -> int:
        if self._kept:
            self._catch_up()
        if self.unreadable:
            return super().tokens_so_far
        self._estimate()
        return int(self._tokens)

    @property
    def between_events(self) -> bool:
        self._look()
        return self._inflater is None and not self.unreadable and self._ending.endswith((b"\n\n", b"\n\r\n"))

    def _look(self) -> None:
        if self._kept:
            self._catch_up()
        if self._events:
            self._decode()

    def _decode(self) -> None:
        for line in self._events:
            if len(line) <= LINE_BYTES:
                self._facts.event(line[5:].strip())
        self._events = []

    def _catch_up(self) -> None:
        """A line that is not complete is kept in its pieces, so that no byte is copied twice."""
        if self.unreadable:
            self._pass_over()
            return
        data = self._take()
        self._ending = (self._ending + data[-4:])[-4:]
        cut = data.rfind(b"\n") + 1
        if cut:
            lines = data[:cut]
            if self._line:
                lines = b"".join((*self._line, lines))
                self._line.clear()
                self._line_bytes = 0
            elif self._skipped:
                lines = self._skipped + lines[lines.find(b"\n") :]
                self._skipped = b""
            self._read(lines)
        if cut < len(data) and not self._skipped:
            self._line.append(data[cut:])
            self._line_bytes += len(data) - cut
            if self._line_bytes > LINE_BYTES:
                self._skipped = b"".join(self._line)[:_LEFT_BYTES] + b"\0"  # in its place, and certainly no JSON
                self._line.clear()
                self._line_bytes = 0
        if self._facts.first_token:
            self._due = self.output_bytes + BATCH_BYTES

    def _read(self, lines: bytes) -> None:
        """Whole lines."""
        facts, at = self._facts, 0
        while not facts.first_token and at < len(lines):
            end = lines.find(b"\n", at) + 1 or len(lines)
            if lines.startswith(b"data:", at) and end - at <= LINE_BYTES:
                facts.event(lines[at + 5 : end].strip())
            at = end
        for mark in facts.marks:
            self._follow(mark, lines, at)
        self._estimate()
        self._latest = lines[:_SAMPLE_BYTES]
        self._latest_bytes = len(lines)
        self._keep_last(lines)

    def _follow(self, mark: bytes, lines: bytes, at: int) -> None:
        """Decode the events with this mark, until a block has ended."""
        facts = self._facts
        while not facts.block_ended and (found := lines.find(mark, at)) >= 0:
            begin, at = lines.rfind(b"\n", 0, found) + 1, lines.find(b"\n", found) + 1 or len(lines)
            if lines.startswith(b"data:", begin) and at - begin <= LINE_BYTES:
                facts.event(lines[begin + 5 : at].strip())

    def _keep_last(self, lines: bytes) -> None:
        """The last events, and what comes after them; found from the end."""
        found: list[bytes] = []
        end = begin = len(lines)
        while begin > 0 and len(found) < _LAST:
            begin = lines.rfind(b"\ndata:", 0, end) + 1
            if not begin and not lines.startswith(b"data:"):
                break
            stop = lines.find(b"\n", begin, end)
            if stop < 0:
                stop = end
            if not found:
                self._left = lines[stop : stop + _LEFT_BYTES]
            found.append(lines[begin:stop])
            end = begin
        if not found:
            self._left = (self._left + lines)[:_LEFT_BYTES]
        found.reverse()
        self._events = found if len(found) == _LAST else (self._events + found)[-_LAST:]

    def _estimate(self) -> None:
        """Count the batch that was read last, by a sample of it: one token for each piece of text at least."""
        sample, self._latest = self._latest, b""
        if sample:
            tokens = sum(max(1.0, len(text) / _TOKEN_BYTES) for text in _TEXTS.findall(sample))
            self._tokens += tokens * self._latest_bytes / len(sample)


class _WholeReader(UsageReader):
    """Of one JSON document, read at its end."""

    __slots__ = ()

    _most = WHOLE_BYTES

    def __init__(self, facts: AnswerFacts, inflater: Inflater | None, *, unreadable: bool) -> None:
        super().__init__(facts, inflater, unreadable=unreadable)
        self._due = 0 if unreadable else WHOLE_BYTES + 1

    def end(self) -> None:
        body = self._take()
        if not self.unreadable:
            self._facts.whole(body)

    def _catch_up(self) -> None:
        self.unreadable = True
        self._pass_over()

"""One call whose client and upstream speak different protocols: its request, and whatever comes of it, in the other's words.

Owns one invariant: what the client hears is its own protocol from the first byte to the last, errors included, and what could
not be carried over is named in ``NOTES``. How words are put into others is the ``translate_*`` modules'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.domain.upstream import UpstreamKind
from coordinator.gateway.courier import UpRequest
from coordinator.gateway.dialect import Denial, Denied, Dialect
from coordinator.gateway.fast_json import BadJson
from coordinator.gateway.translate_answer import (
    answer_to_anthropic,
    answer_to_openai,
    error_to_anthropic,
    error_to_openai,
)
from coordinator.gateway.translate_request_to_anthropic import to_anthropic
from coordinator.gateway.translate_request_to_openai import to_openai
from coordinator.gateway.translate_stream_to_anthropic import StreamToAnthropic
from coordinator.gateway.translate_stream_to_openai import StreamToOpenai
from coordinator.gateway.translate_terms import Untranslatable
from coordinator.kit.wire import AnswerCut

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.gateway.calls import Call
    from coordinator.gateway.echo import EchoAnswer
    from coordinator.gateway.station import Station
    from coordinator.gateway.translate_stream import AnswerStream
    from coordinator.gateway.usage_reader import UsageReader
    from coordinator.kit.wire_client import Answer
    from coordinator.kit.wire_exchange import Exchange

NOTES: Final = b"x-coordinator-notes"
WHOLE_BYTES: Final = 64 * 1024 * 1024
"""The largest answer in one piece that is translated."""

_JSON: Final = (b"content-type", b"application/json")
_LONGEST: Final = 1000
_MAX_TOKENS: Final = 8192
"""What Anthropic's protocol must be told and OpenAI's need not."""


class Translation:
    """Into ``dialect``, which is what the upstream speaks."""

    def __init__(self, exchange: Exchange, call: Call, dialect: Dialect, body: bytes) -> None:
        self._body = body
        self._call = call
        self._exchange = exchange
        self._notes: tuple[str, ...] = ()
        self._thinking = False
        self._usage = False
        self.dialect = dialect

    def request(self, station: Station) -> UpRequest:
        """Raises ``Denied`` for what the other protocol has no honest word for."""
        call, official = self._call, station.upstream.kind is UpstreamKind.OPENAI
        try:
            if self.dialect is Dialect.OPENAI_CHAT:
                made = to_openai(self._body, model=call.model, official=official)
            else:
                made = to_anthropic(self._body, model=call.model, default_max_tokens=_MAX_TOKENS)
        except (Untranslatable, BadJson) as error:
            raise Denied(Denial.BAD_REQUEST, f"{station.name} speaks another protocol: {error}") from error
        self._notes, self._thinking, self._usage = made.notes, made.thinking, made.usage
        headers = [_JSON, (b"accept", b"text/event-stream" if call.stream else b"application/json")]
        if self.dialect is Dialect.OPENAI_CHAT:
            target = b"/chat/completions" if official else b"/v1/chat/completions"
        else:
            target = b"/v1/messages"
            headers.append((b"anthropic-version", b"2023-06-01"))
        return UpRequest(
            body=made.body,
            head=station.source.head(b"POST", station.upstream.base + target, station.upstream.up(headers)),
        )

    def headers(self, kind: bytes) -> list[tuple[bytes, bytes]]:
        said = "; ".join(self._notes).encode("ascii", "replace")[:_LONGEST]
        fields = [(b"content-type", kind), (b"x-request-id", self._call.id.encode())]
        return [*fields, (NOTES, said)] if said else fields

    async def stream(self, answer: Answer | EchoAnswer, tap: Callable[[bytes], None]) -> None:
        """The answer's events, as they come, in the client's protocol; ``tap`` sees what came. Raises ``AnswerCut``."""
        exchange, told = self._exchange, self._stream()
        exchange.start(200, self.headers(b"text/event-stream"), length=None)
        try:
            async for data in answer:
                tap(data)
                words = told.feed(data)
                if words:
                    if exchange.full:
                        await exchange.room()
                    exchange.send(words)
        except AnswerCut:
            exchange.send(told.broken("the upstream broke off in the middle of its answer"))
            raise
        exchange.send(told.end())
        exchange.finish()

    async def whole(self, answer: Answer | EchoAnswer, reader: UsageReader) -> None:
        """Raises ``AnswerCut`` also for what is no answer in the upstream's protocol."""
        body, call = await answer.read(WHOLE_BYTES), self._call
        reader.feed(body)
        try:
            if self.dialect is Dialect.OPENAI_CHAT:
                name = f"msg_{call.id}"
                made = answer_to_anthropic(body, model=call.model, message_id=name, thinking=self._thinking)
            else:
                made = answer_to_openai(body, model=call.model, answer_id=f"chatcmpl-{call.id}", created=_seconds(call))
        except (Untranslatable, BadJson) as error:
            raise AnswerCut(f"its answer cannot be understood: {error}") from error
        self._exchange.reply(200, self.headers(b"application/json"), made.body)

    def error(self, status: int, body: bytes) -> bytes:
        return (
            error_to_anthropic(status, body) if self.dialect is Dialect.OPENAI_CHAT else error_to_openai(status, body)
        )

    def _stream(self) -> AnswerStream:
        call = self._call
        if self.dialect is Dialect.OPENAI_CHAT:
            return StreamToAnthropic(model=call.model, message_id=f"msg_{call.id}", thinking=self._thinking)
        created = _seconds(call)
        return StreamToOpenai(model=call.model, answer_id=f"chatcmpl-{call.id}", created=created, counted=self._usage)


def _seconds(call: Call) -> int:
    """OpenAI's answers say when they were made; the call's id begins with that."""
    return int(call.id.partition("-")[0], 16) if call.id[:8].isalnum() and "-" in call.id else 0

"""A prompt's answer as it comes from whichever upstream: asked for in its protocol, read as text, followed for its usage.

Owns one invariant: text is told on once and in order, and what is told is whole only when the upstream said so; what broke off
before a word was told can be asked for again. Prompts are built in Anthropic's protocol and read in it; upstreams that speak
another one get and give theirs through the relay's own translation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.upstream import UpstreamKind
from coordinator.domain.usage import TokenUsage
from coordinator.gateway import fast_json
from coordinator.gateway.books import LOOK_BYTES
from coordinator.gateway.courier import Delivery, FailedWithin, UpRequest
from coordinator.gateway.dialect import Denial, Denied, Dialect
from coordinator.gateway.endings import NOTHING_LEFT
from coordinator.gateway.prompt import request_body
from coordinator.gateway.routing import spoken
from coordinator.gateway.translate_answer import answer_to_anthropic, error_to_anthropic
from coordinator.gateway.translate_request_to_openai import to_openai
from coordinator.gateway.translate_stream import COMMENT, EventReader
from coordinator.gateway.translate_stream_to_anthropic import StreamToAnthropic
from coordinator.gateway.translate_terms import Untranslatable, as_list, as_map, as_text, denial_of
from coordinator.gateway.usage_reader import WHOLE_BYTES, usage_reader
from coordinator.kit.wire import AnswerCut, field
from coordinator.policy.quality import Finish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from coordinator.gateway.books import Books, Hold
    from coordinator.gateway.calls import Call
    from coordinator.gateway.courier import Failure
    from coordinator.gateway.echo import EchoAnswer
    from coordinator.gateway.prompt import Prompt
    from coordinator.gateway.station import Station
    from coordinator.gateway.usage_reader import UsageReader
    from coordinator.kit.clock import Clock
    from coordinator.kit.wire_client import Answer

_CHARS_PER_TOKEN: Final = 4
"""About: what is assumed of a question where the upstream does not tell."""
_HOTTEST: Final[Mapping[UpstreamKind, float]] = {UpstreamKind.ANTHROPIC: 1.0}
_FINISHES: Final[Mapping[str, Finish]] = {
    "end_turn": Finish.END,
    "max_tokens": Finish.LENGTH,
    "model_context_window_exceeded": Finish.LENGTH,
    "refusal": Finish.REFUSED,
    "stop_sequence": Finish.END,
    "tool_use": Finish.END,
}


class UpstreamRefused(Denied):
    """The upstream's own no, in words that say whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptAnswer:
    """A whole one. ``cost_usd`` and ``usage`` are what it took, all tries included."""

    cost_usd: float
    finish: Finish
    model: str
    text: str
    upstream: str
    usage: TokenUsage


class PromptDelivery(Delivery):
    """One prompt's; used for each try in turn, and read afterwards. ``tell`` gets text as it comes, if the answer is to be a
    stream, and may take its time: meanwhile the upstream waits."""

    def __init__(
        self,
        prompt: Prompt,
        question: str,
        *,
        books: Books,
        call: Call,
        clock: Clock,
        tell: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        super().__init__(call)
        self._books = books
        self._call = call
        self._clock = clock
        self._dialect = Dialect.OPENAI_CHAT
        self._look_at = LOOK_BYTES
        self._prompt = prompt
        self._question = question
        self._reader: UsageReader | None = None
        self._tell = tell
        self._telling = False
        self._texts: list[str] = []
        self.finish = Finish.UNKNOWN
        self.hold: Hold | None = None

    @property
    def heard_bytes(self) -> int:
        return self._reader.output_bytes if self._reader is not None else 0

    @property
    def held(self) -> bool:
        return self._telling

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def request(self, station: Station) -> UpRequest:
        kind = station.upstream.kind
        body = request_body(self._prompt, self._question, model=self._call.model, hottest=_HOTTEST.get(kind, 2.0))
        fields = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        path = b"/v1/messages"
        self._dialect = spoken(kind, Dialect.OPENAI_CHAT) or Dialect.OPENAI_CHAT
        if self._dialect is Dialect.OPENAI_CHAT:
            official = kind is UpstreamKind.OPENAI
            body = to_openai(body, model=self._call.model, official=official).body
            path = b"/chat/completions" if official else b"/v1/chat/completions"  # OpenAI's address ends in /v1
        else:
            fields.append((b"anthropic-version", b"2023-06-01"))
        return UpRequest(
            body=body,
            head=station.source.head(b"POST", station.upstream.base + path, station.upstream.up(fields)),
        )

    async def take(self, station: Station, answer: Answer | EchoAnswer) -> None:
        self.account()
        self._texts.clear()
        self._look_at = LOOK_BYTES
        self.finish = Finish.UNKNOWN
        kind = field(answer.headers, b"content-type")
        coding = field(answer.headers, b"content-encoding")
        self._reader = reader = usage_reader(self._dialect, content_type=kind, content_encoding=coding)
        if b"event-stream" in kind.lower():
            await self._stream(answer, reader)
        else:
            await self._whole(answer, reader)

    async def take_error(self, station: Station, failure: Failure) -> None:
        """Raises ``UpstreamRefused``."""
        said = as_map(fast_json.decode(error_to_anthropic(failure.status, failure.body)))
        message = as_text(as_map(said.get("error")).get("message"))
        denial = denial_of(failure.status)
        if denial is Denial.FAULT:
            denial = Denial.UNREACHED  # it is the upstream's, not ours
        raise UpstreamRefused(denial, f"{station.name}: {message}", retry_after_s=failure.after_s)

    def account(self) -> None:
        """Whatever the last try used is the call's."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        reader.end()
        self._call.answer_model = reader.model
        self._call.finish = self.finish.value if self.finish is not Finish.UNKNOWN else ""
        usage = reader.usage
        if reader.estimated:
            self._call.estimated = True
            if not usage.prompt_tokens:
                usage = usage + TokenUsage(input_tokens=len(self._question) // _CHARS_PER_TOKEN + 1)
        self._call.usage = self._call.usage + usage

    # -- a whole answer ------------------------------------------------------------------------------------------------

    async def _whole(self, answer: Answer | EchoAnswer, reader: UsageReader) -> None:
        body = await answer.read(WHOLE_BYTES)
        reader.feed(body)
        call = self._call
        try:
            if self._dialect is Dialect.OPENAI_CHAT:
                body = answer_to_anthropic(body, model=call.model, message_id=call.id).body
            said = as_map(fast_json.decode(body))
        except (fast_json.BadJson, Untranslatable) as error:
            raise FailedWithin(str(error)) from error
        if said.get("type") != "message":
            raise FailedWithin("it answered without a message")
        self.finish = _FINISHES.get(as_text(said.get("stop_reason")), Finish.UNKNOWN)
        parts = map(as_map, as_list(said.get("content")))
        await self._say("".join(as_text(part.get("text")) for part in parts if part.get("type") == "text"))

    # -- a stream ------------------------------------------------------------------------------------------------------

    async def _stream(self, answer: Answer | EchoAnswer, reader: UsageReader) -> None:
        call, events = self._call, EventReader()
        translated: StreamToAnthropic | None = None
        if self._dialect is Dialect.OPENAI_CHAT:
            translated = StreamToAnthropic(model=call.model, message_id=call.id)
        whole = False
        async for piece in answer:
            reader.feed(piece)
            text, ended = self._read(events, translated.feed(piece) if translated is not None else piece)
            whole = whole or ended
            await self._say(text)
            self._watch(reader)
        text, ended = self._read(events, translated.end() if translated is not None else b"\n\n")
        await self._say(text)
        if not (whole or ended):
            self._broken("its stream ended before its answer did")

    def _read(self, events: EventReader, data: bytes) -> tuple[str, bool]:
        """Text of what came, and whether the answer is whole with it."""
        texts: list[str] = []
        whole = False
        try:
            for name, payload in events.feed(data):
                said = as_map(fast_json.decode(payload)) if name != COMMENT else {}
                match said.get("type"):
                    case "content_block_delta":
                        texts.append(as_text(as_map(said.get("delta")).get("text")))
                    case "message_delta":
                        stop = as_text(as_map(said.get("delta")).get("stop_reason"))
                        self.finish = _FINISHES.get(stop, self.finish)
                    case "message_stop":
                        whole = True
                    case "error":
                        self._broken(as_text(as_map(said.get("error")).get("message")) or "an error came in its stream")
        except fast_json.BadJson as error:
            self._broken(f"its stream cannot be read: {error}")
        return "".join(texts), whole

    def _broken(self, why: str) -> None:
        """Raises: asked again when nothing was told yet."""
        if self.begun:
            raise AnswerCut(why)
        raise FailedWithin(why)

    async def _say(self, text: str) -> None:
        if not text:
            return
        if not self._call.first_at:
            self._call.first_at = self._clock.monotonic()
        self._texts.append(text)
        if self._tell is not None:
            self.begun = self._telling = True
            await self._tell(text)
            self._telling = False

    def _watch(self, reader: UsageReader) -> None:
        """Raises ``Denied`` when nothing is left to pay for more."""
        if self.hold is not None and self._prompt.stream and reader.output_bytes >= self._look_at:
            self._look_at = reader.output_bytes + LOOK_BYTES
            if not self._books.goes_on(self.hold, reader.tokens_so_far):
                raise Denied(Denial.OVER_BUDGET, NOTHING_LEFT)

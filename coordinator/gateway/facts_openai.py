"""What an answer in one of OpenAI's protocols tells about itself: chat completions, embeddings, responses.

Owns one invariant: the classes of input are disjoint and add up to what the upstream called all of it; there, what was
read from the cache is part of the prompt. Servers that only resemble OpenAI's are read as well as they resemble it.
"""

from __future__ import annotations

import re
from typing import Any, Final

from coordinator.domain.usage import TokenUsage
from coordinator.gateway.answer_facts import AnswerFacts, within
from coordinator.gateway.envelope import Count, Sparse, sparse_reader


class _Choice(Sparse):
    delta: Any = None
    finish_reason: Any = None


class _ChatEvent(Sparse):
    choices: list[_Choice] | None = None
    error: Any = None
    model: Any = None
    usage: Any = None


class _PromptDetails(Sparse):
    cache_write_tokens: None = None
    cached_tokens: Count | None = None


class _CompletionDetails(Sparse):
    reasoning_tokens: Count | None = None


class _PlainUsage(Sparse, kw_only=True):
    completion_tokens: Count = 0
    completion_tokens_details: _CompletionDetails | None = None
    prompt_tokens: Count
    prompt_tokens_details: _PromptDetails | None = None


class _PlainCompletion(Sparse, kw_only=True):
    """A whole answer as nearly all are: what does not fit is read as an event is."""

    error: None = None
    model: str = ""
    usage: _PlainUsage


_chat: Final = sparse_reader(_ChatEvent)
_plain_completion: Final = sparse_reader(_PlainCompletion)

_CLOSED: Final = re.compile(rb'\}(?:\\[nrt]| )*"')
"""A text ends in a closing brace: the arguments of a tool call may be complete."""


class _OpenAiFacts(AnswerFacts):
    """``prompt_tokens`` include what was read from the cache and what was written to it; output includes reasoning."""

    __slots__ = ()

    def _count(self, usage: Any, into: str, out: str) -> None:
        self._note("input", within(usage, into))
        self._note("output", within(usage, out))
        details = within(usage, f"{into}_details")
        self._note("read", within(details, "cached_tokens"))
        self._note("written", within(details, "cache_write_tokens"))
        self._note("written_1h", within(details, "cache_write_tokens_details", "ttl_12h_tokens"))
        self._note("reasoning", within(usage, f"{out}_details", "reasoning_tokens"))
        self.told = self.told or type(within(usage, into)) is int

    @property
    def usage(self) -> TokenUsage:
        """Never more classes of input than there is input."""
        if self._total is not None:
            return self._total
        left = self._noted("input")
        read = min(self._noted("read"), left)
        written = min(self._noted("written"), left - read)
        hour = min(self._noted("written_1h"), written)
        output = self._noted("output")
        return TokenUsage(
            cache_read_tokens=read,
            cache_write_1h_tokens=hour,
            cache_write_tokens=written - hour,
            input_tokens=left - read - written,
            output_tokens=output,
            reasoning_tokens=min(self._noted("reasoning"), output),
        )


class ChatFacts(_OpenAiFacts):
    """Usage comes in the last chunk, if it was asked for (``stream_options.include_usage``)."""

    marks = (b'"tool_calls"',)

    __slots__ = ("_stopped",)

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False

    def event(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self.finished = True
            return
        event = _chat(payload)
        if event is None:
            return
        self._named(event.model)
        if event.usage:
            self._count(event.usage, "prompt_tokens", "completion_tokens")
        self._failed(event.error)
        for choice in event.choices or ():
            if isinstance(choice.delta, dict):
                self.first_token = self.first_token or any(
                    value for key, value in choice.delta.items() if key != "role"
                )
                if choice.delta.get("tool_calls") and _CLOSED.search(payload) is not None:
                    self.block_ended = True  # some clients run a tool as soon as its arguments are whole
            if isinstance(choice.finish_reason, str):
                self.block_ended = self._stopped = True

    def end(self, left: bytes) -> None:
        """Some servers leave ``[DONE]`` out."""
        self.finished = self.finished or (self._stopped and self.error is None)

    def whole(self, body: bytes) -> None:
        plain = _plain_completion(body)
        if plain is not None:
            self._whole_told(plain.model, _told(plain.usage))
            return
        answer = _chat(body)
        if answer is not None:
            self._named(answer.model)
            self._count(answer.usage, "prompt_tokens", "completion_tokens")
            self._whole_ended(answer.error)


def _told(usage: _PlainUsage) -> TokenUsage:
    """The same sums as those of an event's counts."""
    prompt, completion, output = usage.prompt_tokens_details, usage.completion_tokens_details, usage.completion_tokens
    read = min(prompt.cached_tokens or 0, usage.prompt_tokens) if prompt is not None else 0
    thought = completion.reasoning_tokens or 0 if completion is not None else 0
    return TokenUsage(
        cache_read_tokens=read,
        input_tokens=usage.prompt_tokens - read,
        output_tokens=output,
        reasoning_tokens=min(thought, output),
    )


class _Response(Sparse):
    error: Any = None
    model: Any = None
    usage: Any = None


class _ResponsesEvent(Sparse):
    """An event of a stream, or a whole answer."""

    code: Any = None
    error: Any = None
    message: Any = None
    model: Any = None
    response: _Response | None = None
    type: Any = None
    usage: Any = None


_responses: Final = sparse_reader(_ResponsesEvent)


class ResponsesFacts(_OpenAiFacts):
    """Usage stands in the last event, which repeats the whole response."""

    marks = (b'"response.output_item.done"', b'"response.function_call_arguments.done"')

    __slots__ = ()

    def event(self, payload: bytes) -> None:
        event = _responses(payload)
        if event is None or not isinstance(event.type, str):
            return
        response = event.response or _Response()
        self._named(response.model)
        match event.type:
            case "response.completed" | "response.incomplete" | "response.failed":
                self._count(response.usage, "input_tokens", "output_tokens")
                self._failed(response.error or (event.type == "response.failed" and "failed"))
                self.finished = self.error is None
            case "response.output_item.done" | "response.function_call_arguments.done":
                self.block_ended = True
            case "error":
                self._failed(event.error or {"code": event.code, "message": event.message})
            case kind if kind.endswith(".delta"):
                self.first_token = True

    def whole(self, body: bytes) -> None:
        answer = _responses(body)
        if answer is not None:
            self._named(answer.model)
            self._count(answer.usage, "input_tokens", "output_tokens")
            self._whole_ended(answer.error)

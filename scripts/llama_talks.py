"""What the official clients say to a real llama.cpp server through the gateway, and what must come of it: scripts/llama.

Each talk makes its calls, looks at what came, and gives a line that says so. What the server said it used is added up, to be
held against the gateway's book.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anthropic
import openai

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO = "Hello from a real llama."
ANSWER = "It is cold in Oslo."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ASKED: list[Any] = [{"role": "user", "content": "Say hello."}]
ENDLESS: list[Any] = [{"role": "user", "content": "Please count."}]
TOOL: Any = {"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA}
FUNCTION: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CANCELLED_S = 1.0
"""The server looks whether somebody listens when it has something to say."""


@dataclass(frozen=True)
class Scene:
    """Both clients of one agent, and the server behind the gateway. ``model`` says which way a call goes."""

    anthropic: anthropic.Anthropic
    openai: openai.OpenAI
    llama: str
    model: str
    most: int
    """Tokens that a call which nobody ends may have; far more than are made until it is cancelled."""
    used: Counter[str] = field(default_factory=Counter)

    def messages(self, **more: Any) -> Any:
        return self.anthropic.messages.create(**{"model": self.model, "max_tokens": 100, "messages": ASKED, **more})

    def chat(self, **more: Any) -> Any:
        return self.openai.chat.completions.create(**{"model": self.model, "messages": ASKED, **more})

    def spent(self, usage: Any) -> int:
        """Notes what one call used; gives the tokens of its answer."""
        if isinstance(usage, anthropic.types.Usage | anthropic.types.MessageDeltaUsage):
            read, out = usage.cache_read_input_tokens or 0, usage.output_tokens
            self.used.update(calls=1, prompt=(usage.input_tokens or 0) + read, output=out)
        else:
            out = usage.completion_tokens
            self.used.update(calls=1, prompt=usage.prompt_tokens, output=out)
        return int(out)

    def busy(self) -> int:
        """Slots of the server at work."""
        with urllib.request.urlopen(f"{self.llama}/slots", timeout=10) as answer:
            return sum(slot["is_processing"] for slot in json.load(answer))


class Wrong(Exception):
    """What came is not what should have come."""


def expect(seen: object, wanted: object) -> None:
    if seen != wanted:
        raise Wrong(f"{seen!r} is not {wanted!r}")


# -- Anthropic's client --------------------------------------------------------------------------------------------------


def messages_plain(scene: Scene) -> str:
    said = scene.messages()
    expect([(block.type, block.text) for block in said.content], [("text", HELLO)])
    expect((said.role, said.stop_reason), ("assistant", "end_turn"))
    expect(scene.spent(said.usage), 7)
    return f"{said.usage.input_tokens} tokens in, {said.usage.output_tokens} out"


def messages_stream(scene: Scene) -> str:
    with scene.anthropic.messages.stream(model=scene.model, max_tokens=100, messages=ASKED) as stream:
        pieces = list(stream.text_stream)
        said = stream.get_final_message()
    expect("".join(pieces), HELLO)
    expect(said.stop_reason, "end_turn")
    expect(scene.spent(said.usage), 7)
    if len(pieces) < 3:
        raise Wrong(f"it came in {len(pieces)} pieces")
    return f"in {len(pieces)} pieces"


def messages_limit(scene: Scene) -> str:
    said = scene.messages(messages=ENDLESS, max_tokens=5)
    expect((said.content[0].text, said.stop_reason), ("one two three one two ", "max_tokens"))
    expect(scene.spent(said.usage), 5)
    return "stopped after 5 tokens"


def messages_tools(scene: Scene) -> str:
    """Both turns, the first as a stream."""
    with scene.anthropic.messages.stream(model=scene.model, max_tokens=100, messages=ASKED, tools=[TOOL]) as stream:
        said = stream.get_final_message()
    (use,) = [block for block in said.content if block.type == "tool_use"]
    expect((use.name, use.input, said.stop_reason), ("weather", {"city": "Oslo"}, "tool_use"))
    scene.spent(said.usage)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "cold"}
    talk = [*ASKED, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    told = scene.messages(messages=talk, tools=[TOOL])
    expect((told.content[0].text, told.stop_reason), (ANSWER, "end_turn"))
    scene.spent(told.usage)
    return "called with its input, and told the result"


def messages_too_long(scene: Scene) -> str:
    try:
        scene.messages(messages=[{"role": "user", "content": "x" * 2 * scene.most}])
    except anthropic.BadRequestError as error:
        return _refused(error.body["error"])  # type: ignore[index]
    raise Wrong("a prompt that is too long was taken")


def messages_cancel(scene: Scene) -> str:
    stream = scene.messages(messages=ENDLESS, max_tokens=scene.most, stream=True)
    return _cancelled(scene, stream, lambda event: event.type == "content_block_delta")


def count_tokens(scene: Scene) -> str:
    counted = scene.anthropic.messages.count_tokens(model=scene.model, messages=ASKED)
    said = scene.messages()
    prompt = (said.usage.input_tokens or 0) + (said.usage.cache_read_input_tokens or 0)
    scene.spent(said.usage)
    expect(counted.input_tokens, prompt)
    return f"{counted.input_tokens}, as the call itself used"


# -- OpenAI's client -----------------------------------------------------------------------------------------------------


def chat_plain(scene: Scene) -> str:
    said = scene.chat()
    expect((said.choices[0].message.content, said.choices[0].finish_reason), (HELLO, "stop"))
    expect(scene.spent(said.usage), 7)
    return f"{said.usage.prompt_tokens} tokens in, {said.usage.completion_tokens} out"


def chat_stream(scene: Scene) -> str:
    chunks = list(scene.chat(stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    expect("".join(pieces), HELLO)
    expect([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1], "stop")
    expect(scene.spent(chunks[-1].usage), 7)
    return f"in {len(pieces)} pieces"


def chat_tools(scene: Scene) -> str:
    with scene.openai.chat.completions.stream(
        model=scene.model, messages=ASKED, tools=[FUNCTION], stream_options={"include_usage": True}
    ) as stream:
        said = stream.get_final_completion()
    message = said.choices[0].message
    (call,) = message.tool_calls or []
    expect((call.function.name, json.loads(call.function.arguments)), ("weather", {"city": "Oslo"}))
    expect(said.choices[0].finish_reason, "tool_calls")
    scene.spent(said.usage)
    made = {"id": call.id, "type": "function", "function": {"name": "weather", "arguments": call.function.arguments}}
    talk = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": call.id, "content": "cold"},
    ]
    told = scene.chat(messages=talk, tools=[FUNCTION])
    expect((told.choices[0].message.content, told.choices[0].finish_reason), (ANSWER, "stop"))
    scene.spent(told.usage)
    return "called with its input, and told the result"


def chat_too_long(scene: Scene) -> str:
    try:
        scene.chat(messages=[{"role": "user", "content": "x" * 2 * scene.most}])
    except openai.BadRequestError as error:
        return _refused(error.body)
    raise Wrong("a prompt that is too long was taken")


def chat_cancel(scene: Scene) -> str:
    stream = scene.chat(messages=ENDLESS, max_tokens=scene.most, stream=True)
    return _cancelled(scene, stream, lambda chunk: bool(chunk.choices and chunk.choices[0].delta.content))


def responses(scene: Scene) -> str:
    said = scene.openai.responses.create(model=scene.model, input="Say hello.")
    expect((said.output_text, said.status), (HELLO, "completed"))
    assert said.usage is not None
    scene.used.update(calls=1, prompt=said.usage.input_tokens, output=said.usage.output_tokens)
    return f"{said.usage.input_tokens} tokens in, {said.usage.output_tokens} out"


def models(scene: Scene) -> str:
    named = [one.id for one in scene.openai.models.list()]
    if scene.model not in named:
        raise Wrong(f"{scene.model} is not among {named}")
    return ", ".join(named)


def _refused(error: Any) -> str:
    """With the reason, in the server's words or in those by which clients of Anthropic's know it."""
    said = str(error["message"])
    if (
        re.search(r"tokens\) exceeds the available context size|prompt is too long: \d+ tokens > \d+ maximum", said)
        is None
    ):
        raise Wrong(f"it was refused for {said!r}")
    return f"refused: {said[:72]}"


def _cancelled(scene: Scene, stream: Any, is_piece: Callable[[Any], bool]) -> str:
    """The server stops working on it soon after the client hung up, and long before it would have ended by itself."""
    pieces = 0
    for event in stream:
        pieces += is_piece(event)
        if pieces == 5:
            break
    expect(scene.busy(), 1)
    began = time.perf_counter()
    stream.close()
    while scene.busy():
        if time.perf_counter() - began > CANCELLED_S:
            raise Wrong(f"{CANCELLED_S:g} s after its client hung up the server was still at work")
        time.sleep(0.005)
    return f"the server stopped {1000 * (time.perf_counter() - began):.0f} ms after its client hung up"


TALKS: dict[str, Callable[[Scene], str]] = {
    "anthropic: plain": messages_plain,
    "anthropic: stream": messages_stream,
    "anthropic: limit": messages_limit,
    "anthropic: tools": messages_tools,
    "anthropic: too long": messages_too_long,
    "anthropic: cancel": messages_cancel,
    "anthropic: count_tokens": count_tokens,
    "openai: plain": chat_plain,
    "openai: stream": chat_stream,
    "openai: tools": chat_tools,
    "openai: too long": chat_too_long,
    "openai: cancel": chat_cancel,
    "openai: responses": responses,
    "openai: models": models,
}
NOT_TRANSLATED = ("anthropic: count_tokens", "openai: responses", "openai: models")
"""What a server is asked only in its own protocol, or one of several upstreams answers for all."""
CANCELS = ("anthropic: cancel", "openai: cancel")

"""The short way of reading a whole answer's usage gives what the long one does, whatever stands in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway import facts_anthropic, facts_openai
from coordinator.gateway.facts_anthropic import AnthropicFacts
from coordinator.gateway.facts_openai import ChatFacts

if TYPE_CHECKING:
    from types import ModuleType

    import pytest

    from coordinator.gateway.answer_facts import AnswerFacts

COUNT = st.integers(0, 5000) | st.none() | st.just(-1) | st.just(10**10) | st.just("7") | st.just(1.5) | st.just(True)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=fields)


ANTHROPIC = objects(
    cache_creation=objects(ephemeral_1h_input_tokens=COUNT, ephemeral_5m_input_tokens=COUNT) | st.none() | COUNT,
    cache_creation_input_tokens=COUNT,
    cache_read_input_tokens=COUNT,
    input_tokens=COUNT,
    iterations=st.none() | st.lists(objects(type=st.sampled_from(["compaction", "message"]), input_tokens=COUNT)),
    output_tokens=COUNT,
    output_tokens_details=objects(thinking_tokens=COUNT) | st.none(),
    service_tier=st.just("standard"),
)
OPENAI = objects(
    completion_tokens=COUNT,
    completion_tokens_details=objects(reasoning_tokens=COUNT, audio_tokens=COUNT) | st.none(),
    prompt_tokens=COUNT,
    prompt_tokens_details=objects(cached_tokens=COUNT, cache_write_tokens=COUNT) | st.none(),
    total_tokens=COUNT,
)


def answers(usage: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    error = st.none() | st.just({}) | st.just({"type": "overloaded_error", "message": "busy"})
    return objects(error=error, model=st.text(max_size=250) | st.none(), usage=usage | st.none(), id=st.just("x"))


def both(facts: type[AnswerFacts], module: ModuleType, quick: str, answer: Any) -> None:
    body = json.dumps(answer).encode()
    found = facts()
    found.whole(body)
    kept = getattr(module, quick)
    setattr(module, quick, lambda _: None)
    try:
        slow = facts()
        slow.whole(body)
    finally:
        setattr(module, quick, kept)
    names = ("usage", "told", "model", "error", "finished", "first_token", "block_ended")
    assert [getattr(found, name) for name in names] == [getattr(slow, name) for name in names]


@given(answers(ANTHROPIC))
def test_anthropic(answer: Any) -> None:
    both(AnthropicFacts, facts_anthropic, "_plain_answer", answer)


@given(answers(OPENAI))
def test_openai(answer: Any) -> None:
    both(ChatFacts, facts_openai, "_plain_completion", answer)


def test_the_short_way_is_taken_for_what_providers_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be for nothing."""
    monkeypatch.setattr(facts_anthropic, "_anthropic", None)
    monkeypatch.setattr(facts_openai, "_chat", None)
    said = AnthropicFacts()
    said.whole(
        b'{"type":"message","model":"claude-opus-5-5","content":[],"usage":{"input_tokens":3,'
        b'"cache_creation_input_tokens":9,"cache_read_input_tokens":7,"cache_creation":{"ephemeral_5m_input_tokens":4,'
        b'"ephemeral_1h_input_tokens":5},"output_tokens":2,"service_tier":"standard"}}'
    )
    usage = said.usage
    assert (usage.input_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (3, 4, 5)
    assert (usage.cache_read_tokens, usage.output_tokens) == (7, 2)
    chat = ChatFacts()
    chat.whole(
        b'{"object":"chat.completion","model":"gpt-5","choices":[{"index":0}],"usage":{"prompt_tokens":10,'
        b'"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":3}}}'
    )
    assert (chat.usage.input_tokens, chat.usage.cache_read_tokens, chat.usage.reasoning_tokens) == (6, 4, 3)

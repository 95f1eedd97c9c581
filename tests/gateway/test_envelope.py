from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.dialect import Dialect
from coordinator.gateway.envelope import MOST, Envelope, read_envelope, why_unread

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS = {
    Dialect.GOOGLE_COUNT: b"/v1beta/models/gemini-2.5-pro:countTokens",
    Dialect.GOOGLE_EMBEDDINGS: b"/v1beta/models/gemini-2.5-pro:embedContent",
    Dialect.GOOGLE_GENERATE: b"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
}
WITH_BODY = [one for one in Dialect if one not in (Dialect.MODELS, Dialect.GOOGLE_MODELS)]


def read(dialect: Dialect, body: Any) -> Envelope | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_envelope(dialect, TARGETS.get(dialect, b""), data)


def claude_code(megabytes: float = 0.15) -> dict[str, Any]:
    """The shape of what Claude Code sends."""
    text = 'The quick "brown" fox\njumps über den faulen Hund — 狐. ' * 20
    count = int(megabytes * 2**20 / 1150)
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]} for _ in range(count)]
    return {
        "model": "claude-opus-5-5",
        "messages": [*messages, {"role": "system", "content": []}],
        "system": [{"type": "text", "text": "x" * 7000, "cache_control": {"type": "ephemeral"}}],
        "tools": [{"name": f"t{number}", "input_schema": {"type": "object"}} for number in range(12)],
        "metadata": {"user_id": '{"model":"not this","stream":false}'},
        "max_tokens": 128000,
        "thinking": {"type": "adaptive", "max_tokens": 5},
        "stream": True,
    }


def test_anthropic() -> None:
    body = claude_code(0.01)
    expected = Envelope(max_tokens=128000, model="claude-opus-5-5", stream=True, turns=len(body["messages"]))
    assert read(Dialect.ANTHROPIC_MESSAGES, body) == expected
    assert read(Dialect.ANTHROPIC_COUNT, {"model": "m", "messages": [{}]}) == Envelope(model="m", turns=1)
    assert read(Dialect.ANTHROPIC_MESSAGES, {"n": 3, "max_completion_tokens": 9}) == Envelope()


def test_chat() -> None:
    body = {"model": "gpt-4o", "messages": [{}, {}], "max_tokens": 7, "temperature": 0.25, "n": 3, "tools": [{}]}
    expected = Envelope(choices=3, max_tokens=7, model="gpt-4o")
    assert read(Dialect.OPENAI_CHAT, body) == expected


@pytest.mark.parametrize(("old", "new", "most"), [(7, 9, 9), (9, 7, 9), (None, 7, 7), (7, None, 7), (None, None, 0)])
def test_of_two_maxima_the_worse_counts(old: int | None, new: int | None, most: int) -> None:
    envelope = read(Dialect.OPENAI_CHAT, {"max_tokens": old, "max_completion_tokens": new})
    assert envelope is not None
    assert envelope.max_tokens == most


def test_responses() -> None:
    body = {"model": "gpt-5-codex", "input": [{}, {}, {}], "max_output_tokens": 5, "stream": True, "tools": [{}]}
    expected = Envelope(max_tokens=5, model="gpt-5-codex", stream=True)
    assert read(Dialect.OPENAI_RESPONSES, body) == expected
    assert read(Dialect.OPENAI_RESPONSES, {"input": "Say hello"}) == Envelope()


@pytest.mark.parametrize(
    ("config", "count", "most"),
    [
        ("generationConfig", "candidateCount", "maxOutputTokens"),
        ("generation_config", "candidate_count", "max_output_tokens"),
    ],
)
def test_google(config: str, count: str, most: str) -> None:
    body = {"contents": [{}], config: {count: 2, most: 11, "temperature": 1}, "tools": [{}], "model": "not this"}
    expected = Envelope(choices=2, max_tokens=11, model="gemini-2.5-pro", stream=True)
    assert read(Dialect.GOOGLE_GENERATE, body) == expected
    assert read(Dialect.GOOGLE_COUNT, {"contents": [{}]}) == Envelope(model="gemini-2.5-pro")


def test_others() -> None:
    assert read(Dialect.OPENAI_EMBEDDINGS, {"model": "e", "input": ["a"]}) == Envelope(model="e")
    assert read(Dialect.MODELS, b"") == Envelope()
    assert read(Dialect.GOOGLE_MODELS, b"whatever") == Envelope()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("model", None),
        ("model", ["claude"]),
        ("max_tokens", "100"),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 10.5),
        ("max_tokens", True),
        ("max_tokens", {}),
        ("stream", "true"),
        ("stream", 1),
        ("n", 0),
        ("n", "two"),
    ],
)
def test_what_makes_no_sense_is_left_to_the_upstream(field: str, value: object) -> None:
    sound = {"model": "m", "max_tokens": 9, "messages": [{}], "stream": True, "temperature": 1.0, "tools": [{}]}
    nothing = Envelope()
    for dialect in (Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT):
        envelope = read(dialect, {**sound, field: value})
        assert envelope is not None
        assert field == "n" or getattr(envelope, field) == getattr(nothing, field)
        assert envelope.choices == 1
        assert envelope.model == ("" if field == "model" else "m")
        assert envelope.max_tokens == (0 if field == "max_tokens" else 9)


@pytest.mark.parametrize("dialect", [Dialect.OPENAI_RESPONSES, Dialect.GOOGLE_GENERATE])
def test_other_shapes_are_left_out_of_account(dialect: Dialect) -> None:
    body = {"contents": 1, "generationConfig": [], "input": {"a": 1}, "max_output_tokens": 3, "stream": True}
    envelope = read(dialect, body)
    assert envelope is not None
    assert (envelope.max_tokens, envelope.stream) == (3 if dialect is Dialect.OPENAI_RESPONSES else 0, True)


def test_a_huge_maximum_is_not_taken_for_none() -> None:
    envelope = read(Dialect.ANTHROPIC_MESSAGES, {"max_tokens": 10**25})
    assert envelope is not None
    assert envelope.max_tokens == MOST


def test_of_two_fields_of_one_name_the_last_counts() -> None:
    envelope = read(Dialect.OPENAI_CHAT, b'{"model":"a","model":"b"}')
    assert envelope == Envelope(model="b")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b'{"model": "a", ', "at byte 15"),
        (b'{"model": tru}', "at byte 11"),
        (b"{'model': 1}", "at byte 1"),
        (b"\xef\xbb\xbf{}", "at byte 0"),
        (b'{"model": "a"} x', "trailing characters at byte 1"),
        (b'{"model": "\x00"}', "at byte 11"),
        (b'{"model": NaN}', "at byte 10"),
        (b"[1, 2]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"null", "no JSON object"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"model": "\xff"}', "cannot be read"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "cannot be read"),
    ],
)
def test_no_json_object_is_told_with_its_place(body: bytes, says: str) -> None:
    for dialect in (Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT):
        assert read(dialect, body) is None
    assert says in why_unread(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["model", "messages", "max_tokens", "stream", "temperature", "tools", "n", "input", "contents", "generationConfig"]
)


@given(st.sampled_from(WITH_BODY), st.dictionaries(NAMES, JSON))
def test_any_object_has_an_envelope(dialect: Dialect, body: dict[str, Any]) -> None:
    envelope = read(dialect, body)
    assert envelope is not None
    assert 0 <= envelope.max_tokens <= MOST
    assert envelope.choices >= 1
    if "model" in body and isinstance(body["model"], str) and dialect not in TARGETS:
        assert envelope.model == body["model"]


@given(st.sampled_from(list(Dialect)), st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u01e tru', max_size=40))
def test_any_bytes_have_one_or_a_reason(dialect: Dialect, body: bytes | str) -> None:
    data = body.encode() if isinstance(body, str) else body
    if read(dialect, data) is None:
        assert why_unread(data)


def best_ns(what: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter_ns()
        for _ in range(times):
            what()
        best = min(best, (time.perf_counter_ns() - began) / times)
    return best


def test_a_large_body_is_skipped_not_built() -> None:
    """Seen: 0.65 µs for a small body, 40 µs for 150 KB, a sixth of what ``json`` takes."""
    body = json.dumps(claude_code()).encode()
    assert len(body) > 150_000
    ours = best_ns(lambda: read(Dialect.ANTHROPIC_MESSAGES, body), 20)
    assert ours < best_ns(lambda: json.loads(body), 3) / 2
    assert ours < 1_000_000

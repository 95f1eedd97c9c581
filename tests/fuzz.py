"""Parsers of what comes from outside, tampered with: one function per parser, which takes a source of chance and makes one case.

Owns one invariant: a case is a function of its number alone, so that whatever is found can be found again. ``scripts/fuzz`` runs
many, the suite a few. The wire's own parsers need sockets and have their tests beside them (tests/wire, ``WIRE_FUZZ``).
"""

from __future__ import annotations

import copy
import json
import random
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from coordinator.domain.errors import BadInput
from coordinator.gateway.dialect import Dialect, dialect_of
from coordinator.gateway.envelope import plain_body, read_envelope, why_unread
from coordinator.gateway.fast_json import BadJson
from coordinator.gateway.prompt import appended, read_prompt
from coordinator.gateway.retold import NotRetellable, Retelling, Retold
from coordinator.gateway.retrieval import Passage
from coordinator.gateway.sameness import Sameness
from coordinator.gateway.translate_answer import (
    answer_to_anthropic,
    answer_to_openai,
    error_to_anthropic,
    error_to_openai,
)
from coordinator.gateway.translate_request_to_anthropic import to_anthropic
from coordinator.gateway.translate_request_to_openai import to_openai
from coordinator.gateway.translate_terms import Untranslatable
from tests.gateway.questions import ANN, BEN, question
from tests.gateway.test_translate_stream import CHAT_STREAM, MESSAGE_STREAM, downward, upward
from tests.gateway.test_usage_reader import DIALECTS, STREAMS, cut, found, new, read
from tests.gateway.translate_cases import CHAT, CHAT_ANSWER, CLAUDE_CODE, JUNK, MESSAGE
from tests.wire.test_server_differential import mutated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SLOW_S: Final = 1.0
"""CPU time of one case: none takes a hundredth of it, and what does is found out by somebody who means it."""

BODIES: Final[tuple[dict[str, Any], ...]] = (CLAUDE_CODE, CHAT)
PROMPT: Final[dict[str, Any]] = {
    "prompt": "Say hello",
    "session_id": "s-1",
    "metadata": {"run": "7"},
    "max_tokens": 9,
    "temperature": 0,
    "priority": "high",
    "deadline_s": 9.5,
    "stream": True,
    "system": "You are brief.",
}
TARGETS: Final = (
    b"/v1/messages",
    b"/v1/messages/count_tokens",
    b"/v1/chat/completions",
    b"/v1/responses",
    b"/v1/models/claude-x",
    b"/v1beta/models/gemini-x:streamGenerateContent?alt=sse",
    b"/a/fix-it/1/v1/messages",
)
PASSAGES: Final = (Passage(source="a.md", text="Circuit breakers.", tokens=3),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``number`` makes the case again."""

    number: int
    parser: str
    what: str


def found_by(parser: str, numbers: range) -> list[Finding]:
    """What is wrong with the cases of these numbers."""
    findings = []
    case = PARSERS[parser]
    for number in numbers:
        began = time.thread_time()
        try:
            case(random.Random(f"{parser} {number}"))
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            findings.append(Finding(number=number, parser=parser, what=traceback.format_exc(limit=-4)))
        took_s = time.thread_time() - began
        if took_s > SLOW_S:
            findings.append(Finding(number=number, parser=parser, what=f"took {took_s:.1f} s of CPU"))
    return findings


# -- how things are spoilt -----------------------------------------------------------------------------------------------


def spoilt(chance: random.Random, value: Any) -> Any:
    """A copy, in which up to three things have been replaced by junk, doubled, or are missing."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 3))):
        inside, key = value, None
        while isinstance(inside, dict | list) and inside:
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            holder, key = inside, chance.choice(keys)
            inside = holder[key]
            if chance.random() < 0.25:
                break
        if key is None:
            return chance.choice(JUNK)
        match chance.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(inside))
            case _:
                holder[key] = copy.deepcopy(chance.choice(JUNK))
    return value


def body_of(chance: random.Random, value: Any) -> bytes:
    """As JSON with something wrong in what it means, in how it is written, or both."""
    if chance.random() < 0.7:
        value = spoilt(chance, value)
    data = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance.random() < 0.5:
        data = mutated(chance, data)
    return data[: chance.randrange(len(data) + 1)] if chance.random() < 0.05 else data


def stream_of(chance: random.Random, data: bytes) -> tuple[bytes, list[bytes]]:
    """A stream with something wrong in it, and the same in pieces."""
    for _ in range(chance.choice((0, 1, 1, 3))):
        data = mutated(chance, data)
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data) + 1)]
    return data, cut(data, chance.randrange(1 << 30), chance.choice((1, 3, 40, 4000)))


def _worded(refusal: Exception) -> None:
    """Who is refused hears why."""
    assert str(refusal)


# -- the parsers ---------------------------------------------------------------------------------------------------------


def usage_of_streams(chance: random.Random) -> None:
    """SSE of every protocol: nothing raises, no count is below zero, and pieces tell what the whole tells."""
    dialect = chance.choice(DIALECTS)
    data, pieces = stream_of(chance, b"".join(STREAMS[dialect]))
    whole = read(dialect, [data])
    usage = whole.usage
    assert min(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens) >= 0
    assert found(read(dialect, pieces)) == found(whole)


def usage_of_answers(chance: random.Random) -> None:
    """Answers in one piece, and answers that say to be packed and are not."""
    dialect = chance.choice(DIALECTS)
    coding = chance.choice((b"", b"", b"gzip", b"br", b"zstd", b"deflate", b"odd"))
    reader = new(dialect, b"application/json", coding)
    for piece in cut(body_of(chance, chance.choice((MESSAGE, CHAT_ANSWER))), chance.randrange(1 << 30), 900):
        reader.feed(piece)
    reader.end()
    assert reader.usage.prompt_tokens >= 0


def streams_translated(chance: random.Random) -> None:
    """Both ways: what comes out is well-formed, and is the same however it came in."""
    up = chance.random() < 0.5
    data, pieces = stream_of(chance, CHAT_STREAM if up else MESSAGE_STREAM)
    told = []
    for parts in ([data], pieces):
        stream = upward() if up else downward()
        told.append(b"".join(map(stream.feed, parts)) + stream.end())
    assert told[0] == told[1]
    for event in told[0].split(b"\n\n")[:-1]:
        line = event.rpartition(b"\n")[2]
        assert line == b"data: [DONE]" or line.startswith(b":") or json.loads(line.removeprefix(b"data: "))


def requests_translated(chance: random.Random) -> None:
    """To JSON, or a word why not."""
    try:
        if chance.random() < 0.5:
            made = to_openai(body_of(chance, CLAUDE_CODE), model="m", official=chance.random() < 0.5)
        else:
            made = to_anthropic(body_of(chance, CHAT), model="m", default_max_tokens=9, sampling=chance.random() < 0.5)
    except (BadJson, Untranslatable) as refused:
        _worded(refused)
        return
    assert isinstance(json.loads(made.body), dict)


def answers_translated(chance: random.Random) -> None:
    """The same, and errors always have words."""
    body = body_of(chance, chance.choice((MESSAGE, CHAT_ANSWER, {"error": {"type": "t", "message": "m", "code": 5}})))
    status = chance.choice((400, 401, 404, 413, 429, 500, 529))
    assert json.loads(error_to_anthropic(status, body))["error"]["message"]
    assert json.loads(error_to_openai(status, body))["error"]["message"]
    try:
        if chance.random() < 0.5:
            made = answer_to_anthropic(body, model="m", message_id="i", thinking=chance.random() < 0.5)
        else:
            made = answer_to_openai(body, model="m", answer_id="i", created=1)
    except (BadJson, Untranslatable) as refused:
        _worded(refused)
        return
    assert isinstance(json.loads(made.body), dict)


def envelopes(chance: random.Random) -> None:
    """What routing needs of a request: as the standard library reads it, or nothing."""
    dialect, target = chance.choice(list(Dialect)), mutated(chance, chance.choice(TARGETS))
    body = body_of(chance, chance.choice(BODIES))
    envelope = read_envelope(dialect, target, body)
    if envelope is None:
        assert why_unread(body)
        return
    assert envelope.max_tokens >= 0
    assert envelope.choices >= 1
    assert isinstance(envelope.model, str)


def bodies_unpacked(chance: random.Random) -> None:
    """A coding that a client names, and that the body does not have: it stays as it is."""
    coding = chance.choice((b"gzip", b"deflate", b"br", b"zstd", b"identity", b"odd"))
    body = body_of(chance, CHAT)
    assert plain_body(body, coding) == body, "it was not packed"


def addresses(chance: random.Random) -> None:
    """Targets: a protocol, or none."""
    target = chance.choice(TARGETS)
    for _ in range(chance.choice((0, 1, 2))):
        target = mutated(chance, target)
    assert dialect_of(chance.choice((b"GET", b"POST", b"PUT")), target) in {None, *Dialect}


def prompts(chance: random.Random) -> None:
    """A prompt, or every fault with its key."""
    try:
        prompt = read_prompt(body_of(chance, PROMPT))
    except BadInput as bad:
        _worded(bad)
        return
    assert prompt.text
    assert prompt.max_tokens > 0


def passages_put_in(chance: random.Random) -> None:
    """What retrieval adds leaves a body that is JSON as JSON, and all before the last question as it is."""
    body = body_of(chance, chance.choice(BODIES))
    made = appended(body, chance.choice(list(Dialect)), PASSAGES)
    if made != body:
        assert json.loads(made) is not None
        assert len(made) > len(body)


def sameness(chance: random.Random) -> None:
    """Of two calls that differ in one thing at most: equal forms have equal digests, and a body is like itself."""
    mode = chance.choice((Sameness.STRICT, Sameness.LOOSE, Sameness.RAW))
    body = body_of(chance, CLAUDE_CODE)
    one, same, other = question(ANN, body, mode=mode), question(BEN, body, mode=mode), question(ANN, mode=mode)
    if one.normal is not None:
        assert same.normal is not None
        assert (one.normal.digest == same.normal.digest) == (one.normal.form == same.normal.form)
        assert other.normal is None or (one.normal.form == other.normal.form) == (
            one.normal.digest == other.normal.digest
        )
    assert one.raw == same.raw


def answers_retold(chance: random.Random) -> None:
    """To another caller: refused, or the same however it came."""
    data, pieces = stream_of(chance, MESSAGE_STREAM)
    told = []
    for parts in ([data], pieces):
        retold = Retold(Retelling.of_ids(), b"0123456789abcdef")
        try:
            retold.head(200, ((b"content-type", b"text/event-stream"),))
            told.append(b"".join(map(retold.feed, parts)) + retold.end())
        except NotRetellable:
            told.append(b"refused")
    assert told[0] == told[1]


PARSERS: Final[Mapping[str, Callable[[random.Random], None]]] = {
    case.__name__: case
    for case in (
        addresses,
        answers_retold,
        answers_translated,
        bodies_unpacked,
        envelopes,
        passages_put_in,
        prompts,
        requests_translated,
        sameness,
        streams_translated,
        usage_of_answers,
        usage_of_streams,
    )
}

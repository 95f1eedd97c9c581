"""One agent's answer told to another: whatever way it is cut into pieces, and nothing of the teller's left in it."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.retold import NotRetellable, Retelling, Retold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Event = dict[str, Any]

ANN_W, BEN_W = "/srv/worktrees/ann-7-1", "/srv/worktrees/ben-12-1"
ANN_H, BEN_H = "/srv/worktrees/ann-7-1-home", "/srv/b/home"
ANN = AgentPaths({ANN_W: "w", ANN_H: "h"})
BEN = AgentPaths({BEN_W: "w", BEN_H: "h"})
EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"),)
JSON = ((b"Content-Type", b"application/json"),)


def retelling(teller: AgentPaths = ANN, listener: AgentPaths = BEN, unlike: Iterable[str] = ()) -> Retelling:
    found = Retelling.between(teller, listener, tuple(unlike))
    assert found is not None
    return found


def teller(headers: tuple[tuple[bytes, bytes], ...] = EVENTS, *, how: Retelling | None = None) -> Retold:
    retold = Retold(how or retelling(), b"salt")
    retold.head(200, headers)
    return retold


def sse(events: Iterable[Event], *, end: str = "\n") -> bytes:
    return "".join(f"event: {one['type']}{end}data: {json.dumps(one)}{end}{end}" for one in events).encode()


def start(number: str = "msg_01abc") -> Event:
    return {"type": "message_start", "message": {"id": number, "type": "message", "content": [], "model": "m"}}


def said(*pieces: str, index: int = 0) -> list[Event]:
    block = {"type": "text", "text": ""}
    return block_of(index, block, [{"type": "text_delta", "text": piece} for piece in pieces])


def used(*pieces: str, index: int = 1, name: str = "toolu_01xyz") -> list[Event]:
    block = {"type": "tool_use", "id": name, "name": "Bash", "input": {}}
    return block_of(index, block, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces])


def block_of(index: int, block: Event, deltas: Iterable[Event]) -> list[Event]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


END: list[Event] = [
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]


def read(data: bytes) -> list[Event]:
    return [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: ")]


def texts(events: Iterable[Event]) -> dict[int, str]:
    """The text or the input of each block, put together as a client does."""
    found: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_delta":
            delta = event["delta"]
            piece = delta.get("text", "") + delta.get("partial_json", "")
            found[event["index"]] = found.get(event["index"], "") + piece
    return found


def pieces_of(data: bytes, places: Iterable[int]) -> list[bytes]:
    cuts = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


def told(data: bytes, places: Iterable[int] = (), *, how: Retelling | None = None) -> bytes:
    retold = teller(how=how)
    return b"".join(map(retold.feed, pieces_of(data, places))) + retold.end()


# -- texts --------------------------------------------------------------------------------------------------------------

PARTS = st.lists(
    st.sampled_from([ANN_W, ANN_H, "/srv", "/", "/hello.py", "a", "é", " ", "-home", "ann-7", "\n"]), max_size=8
)


@settings(max_examples=150, deadline=None)
@given(parts=PARTS, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_a_text_in_pieces_is_told_as_a_whole(parts: list[str], cuts: list[int]) -> None:
    text, how = "".join(parts), retelling()
    try:
        whole = how.whole(text)
    except NotRetellable:
        return
    assert whole == text.replace(ANN_H, BEN_H).replace(ANN_W, BEN_W)
    done, left = "", ""
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    for begin, end in itertools.pairwise(places):
        part, left = how.part(left + text[begin:end])
        assert len(left) < len(ANN_H)
        done += part
    assert done + how.whole(left) == whole


def test_text_that_begins_like_nothing_of_ours_is_not_held_back() -> None:
    how = retelling()
    assert how.part("see src/hello") == ("see src/hello", "")
    assert how.part("see /srv/work") == ("see ", "/srv/work")
    assert how.part(f"see {ANN_W}") == ("see ", ANN_W)  # the home begins with the same
    assert how.part(f"see {ANN_W}/x") == (f"see {BEN_W}/x", "")


@pytest.mark.parametrize(
    "spelling", ["cd ..; cd ann-7-1", "%2Fworktrees%2Fann-7-1", "C:\\ann-7-1", "worktrees/ann-7-1"]
)
def test_what_gives_the_teller_away_ends_the_telling(spelling: str) -> None:
    with pytest.raises(NotRetellable):
        retelling().whole(spelling)
    with pytest.raises(NotRetellable):
        told(sse([start(), *said("see ", spelling), *END]), range(0, 2000, 7))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ANN, AgentPaths({BEN_W: "w"})),
        (ANN, AgentPaths({BEN_W: "w", BEN_H: "x"})),
        (AgentPaths({"/a/1": "w"}), AgentPaths({"/a/2": "w"})),
        (AgentPaths({"/srv/w": "w"}), AgentPaths({"/srv/w/x": "w"})),
    ],
)
def test_what_cannot_be_told_apart_is_not_told(one: AgentPaths, other: AgentPaths) -> None:
    assert Retelling.between(one, other) is None


def test_words_of_loose_mode() -> None:
    assert Retelling.between(ANN, BEN, ["main"]) is None  # it stands in "domain"
    how = retelling(ANN, ANN, ["coordinator/ann/1"])
    assert how.whole("on coordinator/ben/1") == "on coordinator/ben/1"
    with pytest.raises(NotRetellable):
        how.whole("on coordinator/ann/1")


# -- streams ------------------------------------------------------------------------------------------------------------


def test_ids_are_new_and_folders_the_listeners() -> None:
    source = [
        start(),
        {"type": "ping"},
        *said("Look at ", ANN_W[:9], ANN_W[9:], "/x and ", ANN_H),
        *used('{"file_pa', 'th": "' + ANN_W[:5], ANN_W[5:17], ANN_W[17:] + '/h.py", "n": 1.50}'),
        *END,
    ]
    heard = read(told(sse(source)))
    ids = [heard[0]["message"]["id"], *(e["content_block"]["id"] for e in heard if "id" in e.get("content_block", {}))]
    assert re.fullmatch(r"msg_[0-9a-f]{24}", ids[0])
    assert re.fullmatch(r"toolu_[0-9a-f]{24}", ids[1])
    assert texts(heard) == {
        0: f"Look at {BEN_W}/x and {BEN_H}",
        1: '{"file_path": "' + BEN_W + '/h.py", "n": 1.50}',
    }
    assert heard[-2:] == END
    assert heard[1] == {"type": "ping"}


def test_events_that_nobody_knows_yet_are_told_anew_as_well() -> None:
    event = {"type": "some_future_event", "path": f"{ANN_W}/x", "content": [ANN_H]}
    assert {**event, "path": f"{BEN_W}/x", "content": [BEN_H]} in read(told(sse([start(), *said("x"), event])))


def test_the_input_of_a_tool_keeps_its_beat() -> None:
    heard = read(told(sse([start(), *used('{"a":', '"b"', "}"), *END])))
    pieces = [event["delta"]["partial_json"] for event in heard if event["type"] == "content_block_delta"]
    assert pieces == ["", "", "", '{"a":"b"}']


@pytest.mark.parametrize(
    "form", [r"\/srv\/worktrees\/ann-7-1\/x", r"/srv/worktrees/\u0061nn-7-1/x", r"/srv\u002Fworktrees/ann-7-1/x"]
)
def test_a_folder_written_with_escapes(form: str) -> None:
    heard = read(told(sse([start(), *used('{"p":"', form, '"}'), *END]), range(0, 5000, 11)))
    assert json.loads(texts(heard)[1]) == {"p": f"{BEN_W}/x"}


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.sampled_from([ANN_W, ANN_H, "/srv/", "x", '"', "\\", "é", "\n", "/worktrees"]), max_size=6),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    splits=st.lists(st.integers(1, 60), max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_portions_of_any_split(text: list[str], cuts: list[int], splits: list[int], end: str) -> None:
    """Both ways of cutting: the model's pieces, and the network's."""
    plain = "".join(text)
    document = json.dumps({"command": plain, "k": [plain, 1]})

    def cut(value: str) -> list[str]:
        places = sorted({min(place, len(value)) for place in splits} | {0, len(value)})
        return [value[a:b] for a, b in itertools.pairwise(places)]

    data = sse([start(), *said(*cut(plain)), *used(*cut(document)), *END], end=end)
    heard = texts(read(told(data, cuts)))
    expected = plain.replace(ANN_H, BEN_H).replace(ANN_W, BEN_W)
    assert heard.get(0, "") == expected
    assert json.loads(heard[1]) == {"command": expected, "k": [expected, 1]}
    assert ANN_W not in json.dumps(heard)


def test_byte_by_byte() -> None:
    source = [start(), {"type": "ping"}, *said(f"in {ANN_W}/x"), *used(json.dumps({"p": ANN_H})), *END]
    for end in ("\n", "\r\n"):
        data = sse(source, end=end)
        assert told(data, range(len(data))) == told(data)


def test_an_input_without_folders_stays_as_it_is_written() -> None:
    document = r'{"p": "caf\u00e9 \/x", "n": 1.50, "n": 2 , "e": 1E5}'
    assert texts(read(told(sse([start(), *used(document), *END]))))[1] == document


def test_what_does_not_change_stays_byte_for_byte() -> None:
    blocks = [*said("no folder ", "here"), {"type": "some_future_event", "x": 1}, {"type": "ping"}, *END]
    data = sse(blocks, end="\r\n") + b": a comment\n\n"
    out = told(sse([start()]) + data)
    head = out.partition(b"\n\n")[0]
    begun = out.index(b"data: ", len(head))
    assert out[out.index(b"\n\n", begun) + 2 :] == data[data.index(b"\r\n\r\n") + 4 :]
    same_words = told(sse([start()]) + data, how=Retelling.of_ids())
    assert same_words.endswith(data)
    assert not same_words.startswith(sse([start()]))


def test_nothing_comes_before_the_first_block() -> None:
    retold = teller()
    assert retold.feed(sse([start(), {"type": "ping"}])) == b""
    assert retold.feed(sse(said("hello"))) != b""


@pytest.mark.parametrize("kind", ["thinking", "redacted_thinking"])
def test_signed_reasoning_is_not_told_in_other_words(kind: str) -> None:
    block = {"type": kind, "thinking": "", "signature": ""}
    delta = {"type": "signature_delta", "signature": "EqQ"}
    data = sse([start(), *block_of(0, block, [delta]), *END])
    retold = teller()
    with pytest.raises(NotRetellable):
        retold.feed(data)
    assert block in [event.get("content_block") for event in read(told(data, how=Retelling.of_ids()))]


def test_a_result_of_the_providers_tools() -> None:
    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"url": f"file://{ANN_W}/a"}]}
    call = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    heard = read(told(sse([start(), *block_of(0, call, []), *block_of(1, result, []), *END])))
    blocks = [event["content_block"] for event in heard if event["type"] == "content_block_start"]
    assert blocks[0]["id"] == blocks[1]["tool_use_id"] != "srvtoolu_1"
    assert blocks[1]["content"] == [{"url": f"file://{BEN_W}/a"}]


@pytest.mark.parametrize(
    "rest",
    [
        b"event: message_st",
        b"data: {\n\n",
        b"data: 5\n\n",
        sse(said("see /srv/work")[:2]),
        sse(used('{"p": "')[:2]),
        sse([{"type": "content_block_delta", "index": 7, "delta": {"type": "text_delta", "text": "x"}}]),
        sse(used('{"p": "' + ANN_W[:-1], ANN_W[-1] + "/x")),
        sse(used('{"p": "\\q"}')),
    ],
)
def test_what_breaks_off_or_is_not_understood_ends_the_telling(rest: bytes) -> None:
    with pytest.raises(NotRetellable):
        told(sse([start(), *said("hello")]) + rest)


def test_an_input_that_broke_off_harmlessly_is_told() -> None:
    """The model ran out of tokens: no client runs it."""
    assert texts(read(told(sse([start(), *used('{"a": [1, "b", "hel'), *END]))))[1] == '{"a": [1, "b", "hel'


# -- whole answers ------------------------------------------------------------------------------------------------------


def whole(answer: object, cuts: Iterable[int] = (), how: Retelling | None = None) -> bytes:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    retold = teller(JSON, how=how)
    assert b"".join(map(retold.feed, pieces_of(data, cuts))) == b""
    return retold.end()


def test_an_answer_that_is_no_stream() -> None:
    content = [
        {"type": "text", "text": f"in {ANN_W}"},
        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": f"{ANN_H}/x", ANN_W: 1e3}},
    ]
    answer = {"id": "msg_1", "type": "message", "content": content, "usage": {"input_tokens": 3}}
    heard = json.loads(whole(answer, range(0, 400, 3)))
    assert heard["content"][0]["text"] == f"in {BEN_W}"
    assert heard["content"][1]["input"] == {"file_path": f"{BEN_H}/x", BEN_W: 1000.0}
    assert heard["usage"] == answer["usage"]
    assert {heard["id"], heard["content"][1]["id"]}.isdisjoint({"msg_1", "toolu_1"})


def test_whole_answers_that_cannot_be_told() -> None:
    thinking = {"id": "msg_1", "content": [{"type": "thinking", "thinking": "", "signature": "E"}]}
    for answer in (b"{", b"[]", thinking, {"content": [5]}, {"content": [{"type": "text", "text": "../ann-7-1"}]}):
        with pytest.raises(NotRetellable):
            whole(answer)
    assert json.loads(whole(thinking, how=Retelling.of_ids()))["content"] == thinking["content"]


def test_heads() -> None:
    for headers in (
        (*EVENTS, (b"Content-Encoding", b"gzip")),
        ((b"content-type", b"text/html"),),
        (),
    ):
        with pytest.raises(NotRetellable):
            teller(headers)
    retold = teller((*EVENTS, (b"content-encoding", b"identity")))
    assert retold.feed(b"") == b""
    refused = Retold(retelling(), b"salt")
    refused.head(529, ((b"content-encoding", b"gzip"),))
    assert refused.feed(b"\x1f\x8b") == b"\x1f\x8b"
    assert refused.end() == b""


def test_each_listener_has_ids_of_its_own() -> None:
    def number(salt: bytes) -> str:
        retold = Retold(retelling(), salt)
        retold.head(200, EVENTS)
        return str(read(retold.feed(sse([start(), *said("x")])))[0]["message"]["id"])

    assert number(b"one") == number(b"one") != number(b"two")


def test_too_much_is_not_held() -> None:
    for headers in (EVENTS, JSON):
        retold = teller(headers)
        with pytest.raises(NotRetellable):
            feed_until(retold.feed, b"x" * 2**22, 3)


def feed_until(feed: Callable[[bytes], bytes], data: bytes, times: int) -> None:
    for _ in range(times):
        feed(data)

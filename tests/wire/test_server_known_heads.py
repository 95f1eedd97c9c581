"""A head that a client sends again is recognised by its bytes: it means what it meant, and its body ends where it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.kit.wire_exchange import Exchange
from coordinator.kit.wire_request import CHUNKED, HeadReader, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.kit.wire_intake import WireIntake

FIELDS = b"Host: a\r\nX-Api-Key: k\r\ncontent-LENGTH: %b\r\nAccept: */*\r\n"
HEAD = b"POST /v1/messages HTTP/1.1\r\n" + FIELDS + b"\r\n"


def read(reader: HeadReader, head: bytes, body: bytes = b"") -> bytes | None:
    """What is left behind the body."""
    rest = reader.read(head + body)
    if rest is None or reader.length == CHUNKED:
        return rest
    reader.skip(rest[: reader.length])
    return rest[reader.length :]


def test_the_same_head_is_the_same_object_with_the_length_of_the_day() -> None:
    reader = HeadReader()
    assert read(reader, HEAD % b"3", b"abc") == b""
    first = reader.head
    assert read(reader, HEAD % b"12", b"abcdefghijklmore") == b"more"
    assert reader.head is first
    assert (reader.length, first.length) == (12, 3)
    assert reader.received == HEAD % b"12" + b"abcdefghijklmore"


@pytest.mark.parametrize(
    "other",
    [
        HEAD.replace(b"X-Api-Key: k", b"X-Api-Key: l"),
        HEAD.replace(b"*/*", b"text"),
        HEAD.replace(b"POST", b"PUT "),
        HEAD.replace(b"/messages", b"/embeddings"),
        HEAD.replace(b"\r\n\r\n", b"\r\nA: b\r\n\r\n"),
        HEAD.replace(b"content-LENGTH", b"content-length"),
        HEAD.replace(b": %b", b":%b"),
    ],
)
def test_another_head_is_read_anew(other: bytes) -> None:
    reader = HeadReader()
    read(reader, HEAD % b"1", b"x")
    first = reader.head
    if b"PUT " in other:
        with pytest.raises(RequestRefused):
            read(reader, other % b"1", b"x")
        return
    assert read(reader, other % b"1", b"x") == b""
    assert reader.head is not first
    assert reader.length == 1


@pytest.mark.parametrize("length", [b"", b"+1", b"-1", b"1a", b"0x1", b"1 1", b"1,1", b" ", b"1" * 19, b"1" * 40])
def test_what_is_no_length_is_refused_as_ever(length: bytes) -> None:
    """A digit too many is llhttp's to judge."""
    known, fresh = HeadReader(), HeadReader()
    read(known, HEAD % b"1", b"x")
    assert outcome(known, HEAD % length) == outcome(fresh, HEAD % length)


def outcome(reader: HeadReader, head: bytes) -> object:
    try:
        return reader.read(head), reader.length
    except RequestRefused as refused:
        return refused.status


def test_llhttp_goes_on_where_it_was_after_heads_that_it_did_not_see() -> None:
    reader = HeadReader()
    read(reader, HEAD % b"1", b"x")
    read(reader, HEAD % b"5", b"GET /")
    other = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    assert read(reader, other) == b""
    assert (reader.head.method, reader.length) == (b"GET", 0)
    assert read(reader, HEAD % b"2", b"xy!") == b"!"


@pytest.mark.parametrize(
    "head", [HEAD.replace(b"Accept: */*", b"Connection: close"), HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")]
)
def test_who_means_to_close_is_not_remembered(head: bytes) -> None:
    reader = HeadReader()
    read(reader, head % b"1", b"x")
    assert not reader._before


@given(
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    keys=st.lists(st.sampled_from([b"k", b"l"]), min_size=6, max_size=6),
    cuts=st.lists(st.integers(1, 900), max_size=12),
)
def test_however_it_is_cut_it_is_read_as_if_nothing_were_known(
    lengths: list[int], keys: list[bytes], cuts: Sequence[int]
) -> None:
    """Against a reader that has seen nothing, for each request."""
    reader = HeadReader()
    for length, key in zip(lengths, keys, strict=False):
        raw = (HEAD.replace(b"%b", b"%d") % length).replace(b": k", b": " + key)
        body = b"b" * length
        fresh = HeadReader()
        assert fresh.read(raw + body) == body
        rest, at = None, 0
        for cut in (*cuts, len(raw) + length):
            piece = (raw + body)[at : at + cut]
            at += len(piece)
            if rest is None:
                rest = reader.read(piece) if piece else None
                if rest is not None:
                    reader.skip(rest)
            elif piece:
                rest += piece
                reader.skip(piece)
        assert rest == body
        assert (reader.head.headers, reader.head.index) == told(fresh, length, reader)
        assert (reader.head.method, reader.head.target, reader.length) == (b"POST", b"/v1/messages", length)


def told(fresh: HeadReader, length: int, reader: HeadReader) -> object:
    """What a fresh reader says, with the length that the known head was first seen with."""
    first = b"%d" % reader.head.length
    headers = tuple((name, first if name.lower() == b"content-length" else value) for name, value in fresh.head.headers)
    assert fresh.head.length == length
    return headers, {**fresh.head.index, b"content-length": first}


def test_an_exchange_tells_its_own_length() -> None:
    reader = HeadReader()
    read(reader, HEAD % b"3", b"abc")
    read(reader, HEAD % b"12", b"abcdefghijkl")
    exchange = Exchange(cast("WireIntake", None), reader.head, reader.length)
    assert exchange.header(b"content-length") == b"12"
    assert dict(exchange.headers)[b"content-LENGTH"] == b"12"
    assert exchange.header(b"x-api-key") == b"k"

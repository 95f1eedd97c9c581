"""A call under an alias is changed by that one word, wherever it stands, or is refused with a reason."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.delivery import with_model
from tests.gateway.rig import housed

if TYPE_CHECKING:
    from pathlib import Path

ALIASES = {"fast": "claude-haiku-5-5"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b'{"model":"fast","max_tokens":1}', b'{"model":"claude-haiku-5-5","max_tokens":1}', id="plain"),
        pytest.param(b'{ "model" :\n "fast" }', b'{ "model" :\n "claude-haiku-5-5" }', id="blanks"),
        pytest.param(
            b'{"metadata":{"model":"fast"},"model":"fast"}',
            b'{"metadata":{"model":"fast"},"model":"claude-haiku-5-5"}',
            id="another-model-before",
        ),
        pytest.param(
            b'{"messages":[{"content":"say \\"model\\":\\"fast\\" [{"}],"model":"fast"}',
            b'{"messages":[{"content":"say \\"model\\":\\"fast\\" [{"}],"model":"claude-haiku-5-5"}',
            id="in-a-text",
        ),
        pytest.param(
            '{"x":"ä\\\\","model":"fast"}'.encode(), '{"x":"ä\\\\","model":"claude-haiku-5-5"}'.encode(), id="backslash"
        ),
    ],
)
async def test_the_one_word_is_changed(tmp_path: Path, before: bytes, after: bytes) -> None:
    async with housed(tmp_path, aliases=ALIASES) as (house, upstream):
        assert (await house.reply(body=before)).status == 200
        assert upstream.seen[0].body == after


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        pytest.param(rb'{"model":"f\u0061st"}', "", id="escaped"),
        pytest.param(gzip.compress(b'{"model":"fast"}'), "gzip", id="compressed"),
    ],
)
async def test_what_cannot_be_changed_by_one_word_is_refused(tmp_path: Path, body: bytes, coding: str) -> None:
    async with housed(tmp_path, aliases=ALIASES) as (house, upstream):
        got = await house.reply(body=body, content_encoding=coding)
        assert (got.status, upstream.seen) == (400, [])
        assert "'fast' is an alias here" in got.error["message"]
        assert "claude-haiku-5-5" in got.error["message"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("fast"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.just("model").map(lambda key: key), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.text(max_size=6), _VALUES, max_size=3),
    after=st.dictionaries(st.text(max_size=6), _VALUES, max_size=3),
    indent=st.sampled_from([None, 1]),
)
def test_nothing_else_changes(before: dict[str, object], after: dict[str, object], indent: int | None) -> None:
    before.pop("model", None)
    after.pop("model", None)
    asked = {**before, "model": "fast", **{key: value for key, value in after.items() if key not in before}}
    told = with_model(json.dumps(asked, indent=indent).encode(), b"fast", b"claude-haiku-5-5")
    assert told == json.dumps({**asked, "model": "claude-haiku-5-5"}, indent=indent).encode()

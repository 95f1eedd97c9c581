"""Reports as no honest tool writes them: cut off, shuffled, of the wrong shape, enormous, full of odd bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

anything: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)

_PATHS = ("a.py", "/etc/passwd", "../../x", "file:///tmp/x", "", "a\0b", "x" * 5000, "é\udcff.py", "dir")


def spoilt(honest: Any) -> SearchStrategy[bytes]:
    """``honest`` is what a tool would say, JSON-ready: some value in it becomes something else, and the text may be cut."""

    @st.composite
    def made(draw: Any) -> bytes:
        data = json.loads(json.dumps(honest))
        for _ in range(draw(st.integers(0, 3))):
            data = _with_one_changed(data, draw)
        raw = json.dumps(data).encode(errors="surrogatepass")
        if draw(st.booleans()):
            raw = raw[: draw(st.integers(0, len(raw)))]
        return raw + draw(st.sampled_from([b"", b"\n", b"\xff\xfe", b"\0", b"]}", b"warning: odd\n", b"[" * 20_000]))

    return made()


def _with_one_changed(data: Any, draw: Any) -> Any:
    if isinstance(data, dict) and data and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(data)))
        if draw(st.integers(0, 5)) == 0:
            return {name: value for name, value in data.items() if name != key}
        return {**data, key: _with_one_changed(data[key], draw)}
    if isinstance(data, list) and data and draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 1))
        return [*data[:at], _with_one_changed(data[at], draw), *data[at + 1 :]]
    return draw(anything | st.sampled_from(_PATHS))

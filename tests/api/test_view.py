from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from coordinator.api import view

texts = st.text(max_size=200)


def _text(line: view.Line) -> str:
    return "".join(span.text for span in line)


@given(texts, st.integers(20, 100), st.integers(0, 12), st.text(max_size=8))
def test_no_wrapped_line_is_too_wide_and_no_word_is_lost(text: str, width: int, indent: int, first: str) -> None:
    first = view.clean(first)
    width = max(width, indent + 10, view.width_of(first) + 10)
    lines = view.wrap(text, width, indent=indent, first=first)
    assert all(view.width_of(_text(line)) <= width for line in lines)
    kept = "".join("".join(span.text for span in line[1:]) for line in lines)
    assert "".join(kept.split()) == "".join(view.clean(text).split())


@given(texts, st.integers(2, 60))
def test_cut_and_pad_keep_their_width(text: str, width: int) -> None:
    assert view.width_of(view.cut(text, width)) <= width
    assert view.width_of(view.pad(text, width)) == width


@given(texts)
def test_nothing_can_move_the_cursor(text: str) -> None:
    assert not any(unicodedata.category(character) == "Cc" for character in view.span(text).text)


def test_escape_sequences_and_direction_marks_are_made_harmless() -> None:
    assert view.clean("a\x1b[2Jb\u202ec\x9bd\re") == "a [2Jb c d e"


@given(st.lists(st.tuples(texts, texts, texts), max_size=5), st.integers(60, 100))
def test_tables_fit(rows: list[tuple[str, str, str]], width: int) -> None:
    for line in view.table(["ID", "STATE", "TITLE"], rows, width):
        assert view.width_of(_text(line)) <= width


def test_durations_are_read_aloud() -> None:
    said = [view.duration(seconds) for seconds in (0, 4.25, 59, 60, 125, 3600, 10_920, 356_400)]
    assert said == ["0 s", "4.2 s", "59 s", "1 min", "2 min 5 s", "1 h", "3 h 2 min", "4 d 3 h"]

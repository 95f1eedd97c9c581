"""The line of every key, in every way TOML lets people write one."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.problem import Problem
from coordinator.domain.toml_position import TomlDocument, lines_of, read_document

EVERYTHING = '''\
# [[tasks]]
title = "a # no comment"
"quoted key" = 'x = 1'
a.b."c.d" = """
[[tasks]]
id = "not a key"
"""  # comment = 1
list = [  # one
  "x]", 'y',
  [1, 2],
  { deep = { er = 1 }, other = "}" },
]
[table]
key = 1
[table.below]
key = """two quotes at the end\\""""""
[[tasks]]
id = "first"
[tasks.env]
NAME = "v"
[[tasks]]
id = \'\'\'
[[tasks]]\'\'\'
  [[tasks.more]]
  x = 1979-05-27T07:32:00Z
  [[tasks.more]]
  x = +1_000.5e-3
'''


def test_each_key_has_the_line_it_stands_on() -> None:
    lines = lines_of(EVERYTHING)

    def line_with(text: str, nth: int = 0) -> int:
        return [number for number, line in enumerate(EVERYTHING.splitlines(), 1) if text in line][nth]

    assert lines["title",] == line_with("no comment")
    assert lines["quoted key",] == line_with("quoted key")
    assert lines["a", "b", "c.d"] == line_with("c.d")
    assert lines["list",] == line_with("list =")
    assert lines["list", 1] == line_with("'y'")
    assert lines["list", 2, 1] == line_with("[1, 2]")
    assert lines["list", 3, "deep", "er"] == line_with("deep")
    assert lines["table", "below", "key"] == line_with("two quotes")
    assert lines["tasks", 0] == line_with('id = "first"') - 1
    assert lines["tasks", 0, "env", "NAME"] == line_with("NAME")
    assert lines["tasks", 1, "id"] == line_with("id = '''")
    assert lines["tasks", 1, "more", 1, "x"] == line_with("1_000")


def test_headers_are_told_from_the_same_characters_inside_a_text() -> None:
    document = read_document(EVERYTHING, "f")
    assert isinstance(document, TomlDocument)
    assert document.header_lines("tasks", 2) == [17, 21]


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += leaves(item, (*path, index))
    return found


words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8) | st.sampled_from(
    ["[[tasks]]", "a = 1", '"', "'", "#", "}", "]", "\\", "x\ny", '"""', "'''", "\n[[tasks]]\n"]
)
scalars = words | st.integers(-(2**62), 2**62) | st.booleans() | st.floats(allow_nan=False)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=12
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(words, values, max_size=5))
def test_no_key_of_any_document_is_missed(data: dict[str, Any]) -> None:
    text = tomlkit.dumps(data)
    read = tomllib.loads(text)
    lines = lines_of(text.replace("\r\n", "\n"))
    count = text.count("\n") + 1
    for path in leaves(read):
        assert 1 <= lines[path] <= count, path
    assert set(lines) == set(leaves(read))


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = \n", 2), ("a = 1\n\nx = [1,\n", 3), ('a = """\n\n', 1), ("\x00", 1), ("a = 1\na = 2\n", 2)],
)
def test_what_is_no_toml_has_a_line(text: str, line: int) -> None:
    problem = read_document(text, "f.toml")
    assert isinstance(problem, Problem)
    assert problem.line == line
    assert problem.message.startswith("not valid TOML")


@pytest.mark.parametrize("text", ["x=" + "[" * 100_000, "x=" + "9" * 10_000, "x=" + "{a=" * 50_000])
def test_hostile_nesting_and_numbers_are_problems_not_crashes(text: str) -> None:
    assert isinstance(read_document(text, "f.toml"), Problem)

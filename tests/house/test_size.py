"""A file is read in one sitting, a function at one look. Exceptions stand here by name, with the reason."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tests.house.source import product

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_LINES = 400
FUNCTION_LINES = 40

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Dotted name and length (signature to last line, without decorators) of every function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, (node.end_lineno or node.lineno) - node.lineno + 1
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def test_files_are_short() -> None:
    long = {file.name: file.text.count("\n") for file in product()}
    assert {name: lines for name, lines in long.items() if lines > FILE_LINES and name not in LONG_FILES} == {}


def test_functions_are_short() -> None:
    found = {f"{file.name}:{name}": lines for file in product() for name, lines in functions(file.tree)}
    assert {name: n for name, n in found.items() if n > FUNCTION_LINES and name not in LONG_FUNCTIONS} == {}


def test_exceptions_are_still_needed() -> None:
    files = {file.name: file.text.count("\n") for file in product()}
    found = {f"{file.name}:{name}": lines for file in product() for name, lines in functions(file.tree)}
    assert [name for name in LONG_FILES if files.get(name, 0) <= FILE_LINES] == []
    assert [name for name in LONG_FUNCTIONS if found.get(name, 0) <= FUNCTION_LINES] == []


def test_nested_and_conditional_functions_are_measured() -> None:
    tree = ast.parse(
        "class A:\n    if x:\n        async def f(self):\n            def g():\n                pass\n            pass\n"
    )
    assert dict(functions(tree)) == {"A.f": 4, "A.f.g": 2}

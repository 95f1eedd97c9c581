"""A module that nobody calls does not exist."""

from __future__ import annotations

import ast
import itertools
import tomllib

import grimp
import pytest

from tests.house.source import TOP, SourceFile, product

ENTRIES = ("coordinator.__main__", "coordinator.sdk")


def named_programs(file: SourceFile) -> set[str]:
    """Modules that ``file`` starts or loads by name: after ``"-m"`` in an argument list, or in ``import_module``."""
    names: set[str] = set()
    for node in ast.walk(file.tree):
        if isinstance(node, ast.List | ast.Tuple):
            texts = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
            names |= {str(after) for before, after in itertools.pairwise(texts) if before == "-m"}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {str(item.value) for item in node.args if isinstance(item, ast.Constant)}
    return names


def programs_of_cards() -> set[str]:
    """Modules that a shipped role card starts: a card is an entry point like ``__main__``."""
    names: set[str] = set()
    for path in (TOP / "agents").glob("*.toml"):
        command = tomllib.loads(path.read_text(encoding="utf-8")).get("command", [])
        names |= {after for before, after in itertools.pairwise(command) if before == "-m"}
    return names


def reached(graph: grimp.ImportGraph, entries: set[str]) -> set[str]:
    by_name = {file.module: file for file in product()}
    seen: set[str] = set()
    waiting = [name for name in entries if name in by_name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += graph.find_modules_directly_imported_by(name)
        waiting += named_programs(by_name[name]) & by_name.keys()
        waiting += [parent for parent in [name.rpartition(".")[0]] if parent]
    return seen


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    # Imports for types only do not run: a module reached by nothing else is still not reached.
    return grimp.build_graph("coordinator", exclude_type_checking_imports=True, cache_dir=None)


def test_every_module_is_reached_from_an_entry_point(graph: grimp.ImportGraph) -> None:
    alone = {file.module for file in product()} - reached(graph, {*ENTRIES, *programs_of_cards()})
    assert sorted(alone) == []


def test_a_module_that_nobody_calls_is_noticed(graph: grimp.ImportGraph) -> None:
    assert "coordinator.kit.store" not in reached(graph, {"coordinator.domain.task"})
    assert "coordinator.domain.errors" in reached(graph, {"coordinator.domain.task"})


def test_programs_started_by_name_count() -> None:
    text = 'import sys\nrun([sys.executable, "-m", "coordinator.x"])\nimport_module("coordinator.y")\nprint("coordinator.z")\n'
    file = SourceFile(module="m", path=TOP / "m.py", text=text, tree=ast.parse(text))
    assert named_programs(file) == {"coordinator.x", "coordinator.y"}

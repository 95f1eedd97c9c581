"""One name, one thing; and no name that says nothing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from tests.house.source import product

FORBIDDEN = re.compile(
    r"(^|_)(utils?|helpers?|common|misc|managers?|mgr|base|core|impl|v\d+)($|_)|^(smart|enhanced|advanced|new|improved)_"
)
"""Words that are put where a better one was not looked for."""


def words(class_name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


def public_classes() -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for file in product():
        for node in file.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file.name)
    return places


def test_a_public_class_name_means_one_thing() -> None:
    assert {name: places for name, places in public_classes().items() if len(places) > 1} == {}


def test_no_module_has_an_empty_name() -> None:
    parts = {(part, file.name) for file in product() for part in file.module.split(".")}
    assert sorted(name for part, name in parts if FORBIDDEN.search(part)) == []


def test_no_class_has_an_empty_name() -> None:
    assert sorted(name for name in public_classes() if FORBIDDEN.search(words(name))) == []


def test_the_pattern_knows_the_bad_names() -> None:
    bad = [
        "utils",
        "git_helper",
        "session_manager",
        "session_mgr",
        "smart_router",
        "enhanced_retry",
        "api_v2",
        "common",
    ]
    assert [name for name in bad if not FORBIDDEN.search(name)] == []
    assert not any(FORBIDDEN.search(name) for name in ["settings", "commons_land", "newsletter", "steward", "database"])

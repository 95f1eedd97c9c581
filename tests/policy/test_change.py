from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Ending
from coordinator.policy.change import check_change, is_test_file, name_some, path_matches


@dataclass(frozen=True)
class Changed:
    status: str
    path: str
    old_path: str = ""


def ending(changes: list[Changed], paths: tuple[str, ...] = (), role_paths: tuple[str, ...] = ()) -> Ending | None:
    refusal = check_change(changes, paths=paths, role_paths=role_paths)
    return refusal.ending if refusal else None


def test_nothing_changed_is_empty() -> None:
    assert ending([]) is Ending.EMPTY


def test_without_paths_everything_may_be_touched() -> None:
    assert ending([Changed("A", "anywhere/at/all.py")]) is None


def test_outside_is_named() -> None:
    refusal = check_change([Changed("M", "src/a.py"), Changed("M", "setup.py")], paths=["src/**"])
    assert refusal is not None
    assert refusal.ending is Ending.OUTSIDE_PATHS
    assert "setup.py" in refusal.reason
    assert "src/a.py" not in refusal.reason
    assert "setup.py" in refusal.feedback


def test_both_sides_of_a_rename_must_be_inside() -> None:
    assert ending([Changed("R", "src/b.py", "lib/b.py")], ("src/**",)) is Ending.OUTSIDE_PATHS
    assert ending([Changed("R", "src/b.py", "src/a.py")], ("src/**",)) is None


def test_role_and_task_must_both_allow() -> None:
    changed = [Changed("M", "src/a.py")]
    assert ending(changed, ("src/**",), ("docs/**",)) is Ending.OUTSIDE_PATHS
    assert ending(changed, (), ("docs/**",)) is Ending.OUTSIDE_PATHS
    assert ending(changed, ("src/**",), ("**/*.py",)) is None


@pytest.mark.parametrize(
    "name",
    [
        "test_a.py", "tests/test_a.py", "pkg/a_test.py", "app/tests.py", "crate/tests/it.rs", "web/a.test.ts",
        "web/a.spec.jsx", "web/__tests__/a.js", "pkg/a_test.go", "src/FooTest.java", "spec/a_spec.rb",
    ],
)  # fmt: skip
def test_tests_may_not_be_deleted(name: str) -> None:
    assert is_test_file(name)
    assert ending([Changed("D", name)]) is Ending.DELETED_TESTS
    assert ending([Changed("R", "old/kept.txt", name)]) is Ending.DELETED_TESTS
    assert ending([Changed("D", name)], ("**",)) is Ending.DELETED_TESTS
    assert ending([Changed("D", name)], (name,)) is None
    assert ending([Changed("M", name)]) is None


@pytest.mark.parametrize("name", ["src/testing.py", "tests/data.json", "contest.py", "latest.go", "src/lib.rs"])
def test_other_files_may_be_deleted(name: str) -> None:
    assert ending([Changed("D", name)]) is None


def test_a_test_may_be_renamed_into_another_test() -> None:
    assert ending([Changed("R", "tests/unit/test_a.py", "tests/test_a.py")]) is None


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("src/*.py", "src/a.py", True), ("src/*.py", "src/b/a.py", False), ("src/**/*.py", "src/a.py", True),
        ("src/**/*.py", "src/b/c/a.py", True), ("src/**", "src/b/c", True), ("src", "src/a.py", True),
        ("src/", "src/a.py", True), ("src", "src2/a.py", False), ("**/x.py", "x.py", True), ("a?.py", "a/.py", False),
        ("a[bc].py", "ab.py", True), ("a[!bc].py", "ab.py", False), ("a[!b].py", "a/.py", False), ("a[.py", "a[.py", True),
        ("a+(b).py", "a+(b).py", True), ("*.py", "a\nb.py", True), ("a.py", "axpy", False),
    ],
)  # fmt: skip
def test_globs(glob: str, path: str, expected: bool) -> None:
    assert path_matches(path, glob) is expected


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/*?[]\0"), min_size=1, max_size=8)
_PATHS = st.lists(_NAMES, min_size=1, max_size=4).map("/".join)


@given(_PATHS)
def test_every_literal_path_names_itself_and_what_is_below(path: str) -> None:
    assert path_matches(path, path)
    assert path_matches(f"{path}/below", path)
    assert path_matches(path, "**")
    assert not path_matches(f"{path}x", path)


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_glob_raises(glob: str, path: str) -> None:
    path_matches(path, glob)


def test_long_lists_are_counted() -> None:
    assert name_some(["a", "b", "c"], 2) == "a, b and 1 more"
    assert name_some(["a", "b"], 2) == "a, b"

"""Machine-applicable suggestions of the real cargo, applied by our own edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.checks.adapter import FixResult, FixTask
from coordinator.checks.cargo_check import CargoCheck
from coordinator.checks.cargo_fix import RustFix, apply_edits, fits
from coordinator.checks.cargo_stream import SpanEdit
from coordinator.domain.errors import ToolFailed
from tests.checks.rig import write_tree
from tests.checks.rust_rig import crate, needs, rust

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["rust"]

MESSY = "use std::fmt;\n\npub fn f() -> i32 {\n    let mut x = 1;\n    (x)\n}\n"


async def fixed(
    tree: Path, scratch: Path, *files: str, rules: tuple[str, ...], options: tuple[str, ...] = ()
) -> FixResult:
    scratch.mkdir(exist_ok=True)
    result = await CargoCheck().fix(FixTask(files=files, options=options, rules=rules, scratch=scratch, tree=tree))
    assert bool(result.nothing) is not bool(result.files)
    return result


async def test_only_the_rules_and_files_of_the_task_change(tmp_path: Path, rust: Path) -> None:
    files = {"Cargo.toml": crate(), "src/lib.rs": "pub mod other;\n" + MESSY, "src/other.rs": MESSY}
    tree = write_tree(tmp_path / "tree", **files)
    result = await fixed(tree, tmp_path / "s", "src/other.rs", "gone.rs", rules=("unused_imports", "unused_mut"))
    assert (result.files, result.told) == (("src/other.rs",), "fixed 1 × unused_imports, 1 × unused_mut")
    assert result.headline == "cargo check: unused_imports, unused_mut in src/other.rs"
    assert result.done[0] == "src/other.rs:1 unused_imports unused import: `std::fmt`"
    assert (tree / "src/other.rs").read_text() == "pub fn f() -> i32 {\n    let x = 1;\n    (x)\n}\n"
    assert (tree / "src/lib.rs").read_text() == files["src/lib.rs"]
    assert sorted(one.name for one in tree.iterdir()) == ["Cargo.toml", "src"], "no target folder and no lock file"
    again = await fixed(tree, tmp_path / "s2", "src/other.rs", rules=("unused_mut",))
    assert again.nothing.startswith("nothing to fix")


async def test_line_ends_and_letters_of_several_bytes_stay(tmp_path: Path, rust: Path) -> None:
    source = 'pub fn f() -> String {\r\n    let (s, mut x) = ("žluťoučký kůň 🐎", 1); let mut y = x;\r\n    format!("{s}{x}{y}")\r\n}\r\n'
    tree = write_tree(tmp_path / "tree", **{"Cargo.toml": crate()})
    (tree / "src").mkdir()
    (tree / "src/lib.rs").write_bytes(source.encode())
    await fixed(tree, tmp_path / "s", "src/lib.rs", rules=("unused_mut",))
    assert (tree / "src/lib.rs").read_bytes() == source.replace("mut ", "").encode()


async def test_what_was_formatted_stays_so_and_nothing_else_is_formatted(tmp_path: Path, rust: Path) -> None:
    needs("rustfmt", "--version")
    tidy = "pub fn f(x: i32) -> i32 {\n    (x)\n}\n"
    files = {"Cargo.toml": crate(), "src/lib.rs": f"pub mod a;\npub mod b;\n\n{tidy}", "src/a.rs": "pub  fn g() {}\n"}
    tree = write_tree(tmp_path / "tree", **files, **{"src/b.rs": tidy.replace("i32 {", "i32  {")})
    await fixed(tree, tmp_path / "s", "src/lib.rs", "src/b.rs", rules=("unused_parens",))
    assert (tree / "src/lib.rs").read_text() == files["src/lib.rs"].replace("(x)", "x")
    assert (tree / "src/b.rs").read_text() == tidy.replace("i32 {", "i32  {").replace("(x)", "x ")
    assert (tree / "src/a.rs").read_text() == files["src/a.rs"]


async def test_what_would_not_build_any_more_is_put_back(tmp_path: Path, rust: Path) -> None:
    """The compiler calls the import unused, and does not see that the tests need it."""
    source = "use std::collections::HashSet;\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n    fn seen() -> HashSet<i32> {\n        HashSet::new()\n    }\n    #[test]\n    fn none() {\n        assert!(seen().is_empty());\n    }\n}\n"
    tree = write_tree(tmp_path / "tree", **{"Cargo.toml": crate(), "src/lib.rs": source})
    result = await fixed(tree, tmp_path / "s", "src/lib.rs", rules=("unused_imports",))
    assert result.nothing == "nothing was fixed: with the fix that cargo offers the project does not build"
    assert (tree / "src/lib.rs").read_text() == source


async def test_a_project_that_cargo_cannot_look_at_is_an_error(tmp_path: Path, rust: Path) -> None:
    tree = write_tree(
        tmp_path / "tree", **{"Cargo.toml": crate(), "src/lib.rs": MESSY, "build.rs": "fn main() { panic!() }"}
    )
    with pytest.raises(ToolFailed, match="could not be built"):
        await fixed(tree, tmp_path / "s", "src/lib.rs", rules=("unused_mut",))


async def test_a_link_is_not_followed(tmp_path: Path, rust: Path) -> None:
    outside = write_tree(tmp_path, **{"outside.rs": MESSY}) / "outside.rs"
    tree = write_tree(tmp_path / "tree", **{"Cargo.toml": crate(), "src/lib.rs": "pub mod far;\n"})
    (tree / "src/far.rs").symlink_to(outside)
    result = await fixed(tree, tmp_path / "s", "src/far.rs", rules=("unused_mut",))
    assert (result.files, outside.read_text()) == ((), MESSY)


def edit(
    start: int, end: int, text: str, *, column: int = 1, line: int = 1, lines: tuple[str, ...] = ("let mut x;",)
) -> SpanEdit:
    return SpanEdit(column=column, end=end, file="a.rs", line=line, lines=lines, start=start, text=text)


@pytest.mark.parametrize(
    ("raw", "one", "fit"),
    [
        (b"let mut x;\n", edit(4, 8, "", column=5), True),
        (b"let mut x;\r\n", edit(4, 8, "", column=5), True),
        (b"let mut y;\n", edit(4, 8, "", column=5), False),
        (b"\nlet mut x;\n", edit(4, 8, "", column=5), False),
        (b"\nlet mut x;\n", edit(5, 9, "", column=5, line=2), True),
        (b"\nlet mut x;\n", edit(4, 8, "", column=5, line=2), False),
        (b"let mut x;\n", edit(4, 12, "", column=5), False),
        (b"let mut x;\nmore\n", edit(4, 14, "", column=5), False),
        (b"let mut x;\n", edit(8, 4, "", column=9), False),
        (b"let mut x;\n", edit(4, 8, "", column=5, line=7), False),
        (b"let mut x;\n", edit(4, 8, "", column=5, lines=()), False),
        ("ů = 1".encode(), edit(2, 3, "", column=2, lines=("ů = 1",)), True),
        ("ů = 1".encode(), edit(1, 3, "", column=2, lines=("ů = 1",)), False),
    ],
)
def test_an_edit_fits_only_where_the_file_holds_what_the_compiler_saw(raw: bytes, one: SpanEdit, *, fit: bool) -> None:
    assert fits(raw, one) is fit


def test_all_of_a_suggestion_or_nothing_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "a.rs").write_bytes(b"f((x));\n")

    def fix(*edits: tuple[int, int, str]) -> RustFix:
        made = [("a.rs", edit(first, last, text, column=first + 1, lines=("f((x));",))) for first, last, text in edits]
        return RustFix(code="c", edits=tuple(made), message="")

    parens, name, torn = fix((2, 3, ""), (4, 5, "")), fix((3, 4, "y")), fix((0, 1, "g"), (40, 41, ""))
    assert apply_edits(tmp_path, [torn, name, parens]) == [parens]
    assert (tmp_path / "a.rs").read_bytes() == b"f(x);\n"
    assert apply_edits(tmp_path, [parens]) == []
    twice = fix((1, 1, "a"), (1, 1, "b"))
    assert apply_edits(tmp_path, [twice]) == []


def test_a_brief_asks_for_features_and_nothing_else() -> None:
    for good in ((), ("--all-features",), ("--no-default-features", "--features", "a,b")):
        assert CargoCheck().options_fault(good) == ""
    for bad in (("--config", "x"), ("--features",), ("--features", "--config"), ("--manifest-path", "/etc")):
        assert CargoCheck().options_fault(bad)

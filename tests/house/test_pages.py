"""What the pages say exists: commands, options, scripts, files, exit codes, the map."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from coordinator.domain import errors
from tests.house import map as house_map
from tests.house.source import TOP

PAGES = ("README.md", "CHANGELOG.md", "coordinator/README.md", "agents/PROTOCOL.md")


def text_of(page: str) -> str:
    return (TOP / page).read_text(encoding="utf-8")


def console_lines(page: str) -> list[list[str]]:
    """Commands of ``$`` lines in console blocks, without their comments."""
    blocks = re.findall(r"^```console\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


def commands() -> list[list[str]]:
    unique = {tuple(words) for page in PAGES for words in console_lines(page) if words[0] == "coordinator"}
    return [list(words[1:]) for words in sorted(unique)]


@functools.cache
def coordinator(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "coordinator", *arguments]
    return subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_on_a_page_exists(words: list[str]) -> None:
    """``--help`` in the place of the operands knows every option that the page uses."""
    path = [word for word in words if re.fullmatch(r"[a-z]+", word)]
    numbers = {str(number) for number in range(10_000)}
    done = coordinator(*[word for word in path if word not in numbers], "--help")
    assert done.returncode == 0, done.stderr
    options = {word for word in words if word.startswith("-")}
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout + coordinator("--help").stdout))
    assert options <= known


def test_the_pages_name_commands_at_all() -> None:
    assert len(commands()) >= 10


def test_each_script_on_a_page_exists() -> None:
    named = {match for page in PAGES for match in re.findall(r"\bscripts/[a-z-]+\b", text_of(page))}
    assert {"scripts/run", "scripts/test", "scripts/bench"} <= named
    assert [name for name in sorted(named) if not os.access(TOP / name, os.X_OK)] == []


def test_each_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", text_of(page)):
            assert ((TOP / page).parent / target).exists(), f"{page} links to {target}"


def test_each_product_file_on_the_why_page_exists() -> None:
    named = re.findall(
        r"`((?:domain|policy|kit|checks|fleet|improve|api|surface|sdk)/[a-z_/]*(?:\.py)?)`",
        text_of("coordinator/README.md"),
    )
    assert len(named) > 10
    assert [name for name in named if not (TOP / "coordinator" / name).exists()] == []


def test_the_examples_of_tasks_and_cards_are_toml() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", text_of("README.md"), re.DOTALL | re.MULTILINE)
    keys = {key for block in blocks for key in tomllib.loads(block)}
    assert {"tasks", "command"} <= keys


def test_the_exit_codes_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text_of("README.md"), re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")]
    assert {kind.exit_code for kind in kinds} | {0, 70, 130} == listed
    helped = coordinator("--help").stdout.partition("exit codes:")[2]
    assert {int(code) for code in re.findall(r"^  (\d+)  ", helped, re.MULTILINE)} == listed


def test_the_map_is_the_tree() -> None:
    assert house_map.on_page() == house_map.drawn(), "the map is old: python -m tests.house.map"

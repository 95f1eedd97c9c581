"""The repository knows no machine: no path, host or address of a place where somebody happened to work on it."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.house.source import TOP

# Pieced together, so that this file does not find itself.
PATTERNS = tuple(
    re.compile(text)
    for text in (
        r"(?<![\w.])/(" + "work|root|opt" + r")/\w",
        r"(?<![\w.])/(" + "home|Users" + r")/(?!you\b|ada\b|agent\b)\w",
        "/tmp/" + "brief",
        r"\b(index|extra-index|registry|find-links)[-_]?(url)?\s*=\s*['\"]?" + "https?:",
        r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?:\.\d{1,3})?\b(?!\s*(?:s|ms)\b)",
        "sk-" + r"ant-[a-z0-9]{2,}-[A-Za-z0-9_-]{20,}",
        "BEGIN [A-Z ]*PRIVATE" + " KEY",
    )
)


def tracked() -> list[str]:
    """Files that are, or with ``git add .`` would be, in the repository."""
    listed = ["git", "-C", str(TOP), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("cannot run here: not a git checkout")
    return [name for name in done.stdout.decode().split("\0") if name and (TOP / name).is_file()]


def suspicious(text: str) -> list[str]:
    return [match.group() for pattern in PATTERNS for match in pattern.finditer(text)]


def test_no_file_names_a_machine() -> None:
    found = {name: suspicious((TOP / name).read_text(encoding="utf-8", errors="replace")) for name in tracked()}
    assert {name: matches for name, matches in found.items() if matches} == {}


def test_no_junk_would_be_added() -> None:
    junk = re.compile(
        r"(^|/)(\.venv|__pycache__|\.coordinator|\.\w+_cache|dist|build|\.hypothesis)/|\.(pyc|orig|rej|swp)$"
    )
    assert [name for name in tracked() if junk.search(name)] == []


def test_the_patterns_find_what_they_should() -> None:
    assert suspicious("cd /" + "work/main") != []
    assert suspicious("/" + "home/" + "bob/x") != []
    assert suspicious("index-url = " + "https://pypi.example") != []
    assert suspicious("host = " + "10." + "1.2.3") != []
    assert suspicious("a/work/b, ./opt/x, version 10.5, https://example.org") == []

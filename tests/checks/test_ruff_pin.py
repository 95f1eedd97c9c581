from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.checks.ruff_pin import ruff_pins, wrong_release

if TYPE_CHECKING:
    from pathlib import Path

HOOKS = """repos:
  - repo: https://github.com/pre-commit/pre-commit-hooks
    rev: v4.0.1
  - repo: https://github.com/astral-sh/ruff-pre-commit
    rev: {}
    hooks:
      - id: ruff-format
"""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".pre-commit-config.yaml", HOOKS.format("v0.8.6")),
        (".pre-commit-config.yaml", HOOKS.format("'0.8.6'")),
        ("requirements-dev.txt", "pytest\nruff==0.8.6\n"),
        ("requirements/lint.txt", "ruff == 0.8.6  # formats\n"),
        ("pyproject.toml", '[dependency-groups]\nlint = ["ruff==0.8.6"]\n'),
        (
            "uv.lock",
            '[[package]]\nname = "ruff"\nversion = "0.8.6"\n',
        ),
    ],
)
def test_a_project_that_names_a_release_is_formatted_with_that_one(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert ruff_pins(tmp_path) == {"0.8.6": file}
    assert wrong_release(tmp_path, "ruff 0.8.6\n") == ""
    said = wrong_release(tmp_path, "ruff 0.17.6 (abc 2026-01-01)\n")
    assert said == f"the project formats with ruff 0.8.6 ({file}) and the one here is 0.17.6"


@pytest.mark.parametrize("text", ["ruff\n", "ruff>=0.8\n", "ruffian==0.1\n", ""])
def test_any_other_may_be_formatted_with_what_is_here(tmp_path: Path, text: str) -> None:
    (tmp_path / "requirements.txt").write_text(text)
    assert wrong_release(tmp_path, "ruff 0.17.6\n") == ""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coordinator.checks.detect import GatePlan, detect
from coordinator.domain.settings import GateSettings


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    path.mkdir()
    return path


def names(plan: GatePlan) -> list[str]:
    return [check.name for check in plan.checks]


def environment(checkout: Path, *, packages: tuple[str, ...]) -> Path:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    site = checkout / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    for package in packages:
        (site / package).mkdir()
    return python


def test_an_empty_project_has_nothing_to_check(tree: Path, checkout: Path) -> None:
    plan = detect(tree, checkout, GateSettings())
    assert not plan.checks
    assert not plan.unavailable


def test_python(tree: Path, checkout: Path) -> None:
    (tree / "a.py").touch()
    assert names(detect(tree, checkout, GateSettings())) == ["ruff"]
    (tree / "tests").mkdir()
    (tree / "tests" / "test_a.py").touch()
    plan = detect(tree, checkout, GateSettings())
    assert names(plan) == ["ruff", "pytest"]
    assert [check.required for check in plan.checks] == [False, False]


def test_the_projects_own_environment_is_used_and_its_tests_are_required(tree: Path, checkout: Path) -> None:
    (tree / "test_a.py").touch()
    python = environment(checkout, packages=("pytest",))
    plan = detect(tree, checkout, GateSettings())
    pytest_check = plan.checks[1]
    assert pytest_check.required
    assert str(python) in pytest_check.key
    assert plan.surroundings.first == (python.parent,)
    (checkout / ".venv" / "lib" / "python3.11" / "site-packages" / "other").mkdir()
    assert detect(tree, checkout, GateSettings()).checks[1].key != pytest_check.key


def test_an_environment_without_pytest_is_named_with_a_remedy(tree: Path, checkout: Path) -> None:
    (tree / "test_a.py").touch()
    python = environment(checkout, packages=())
    plan = detect(tree, checkout, GateSettings())
    assert names(plan) == ["ruff"]
    (missing,) = plan.unavailable
    assert missing.check == "pytest"
    assert str(python) in missing.remedy


def test_named_interpreter(tree: Path, checkout: Path) -> None:
    (tree / "test_a.py").touch()
    for named in (sys.executable, Path(sys.executable).name):
        check = detect(tree, checkout, GateSettings(python=named)).checks[1]
        assert check.required
        assert sys.executable in check.key or Path(sys.executable).name in check.key


def test_commands_replace_what_would_be_detected(tree: Path, checkout: Path) -> None:
    (tree / "test_a.py").touch()
    plan = detect(tree, checkout, GateSettings(commands=("make check", "make docs")))
    assert names(plan) == ["make check", "make docs"]
    assert all(check.required for check in plan.checks)
    assert len({check.key for check in plan.checks}) == 2


def test_other_languages(tree: Path, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "Cargo.toml").touch()
    (tree / "go.mod").touch()
    (tree / "package.json").write_text('{"scripts": {"test": "jest"}}')
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cargo").write_text("#!/bin/sh\n")
    (tools / "cargo").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    plan = detect(tree, checkout, GateSettings())
    assert names(plan) == ["cargo test --workspace --no-fail-fast"]
    assert [missing.check for missing in plan.unavailable] == ["go test", "npm test"]
    assert all(missing.remedy for missing in plan.unavailable)


@pytest.mark.parametrize("text", ["", "[]", '{"scripts": []}', '{"scripts": {"test": "echo no test specified"}}'])
def test_a_package_without_tests_calls_for_nothing(tree: Path, checkout: Path, text: str) -> None:
    (tree / "package.json").write_text(text)
    assert not detect(tree, checkout, GateSettings()).unavailable

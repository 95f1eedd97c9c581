"""What is shipped: only ``coordinator`` is importable, the role cards are inside, and nothing else travels along."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.house.source import TOP
from tests.house.test_machine import tracked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with wheel and sdist, made from what git would hold by the build backend that pip uses, without a network."""
    folder = tmp_path_factory.mktemp("package")
    source, out = folder / "source", folder / "out"
    for name in tracked():
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((TOP / name).read_bytes())
    argv = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--target",
        "sdist",
        "--directory",
        str(out),
    ]
    subprocess.run(argv, cwd=source, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> list[str]:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_the_cards(wheel: list[str]) -> None:
    inside = {name for name in wheel if ".dist-info/" not in name}
    code = {name for name in tracked() if name.startswith("coordinator/")}
    cards = {f"coordinator/cards/{name.removeprefix('agents/')}" for name in tracked() if name.startswith("agents/")}
    assert inside == code | cards
    assert {"coordinator/cards/autofix.toml", "coordinator/cards/command.toml"} <= inside


def test_only_the_package_is_importable(wheel: list[str]) -> None:
    roots = {name.partition("/")[0] for name in wheel}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"coordinator"}
    assert not any(name.startswith("coordinator/cards/") and name.endswith(".py") for name in wheel)


def test_the_sdist_holds_what_a_distributor_needs(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "PKG-INFO",
        "coordinator/__init__.py",
        "tests/conftest.py",
    } <= names
    kinds = ("agents/", "coordinator/", "scripts/", "tasks/", "tests/")
    other = {name for name in names if not name.startswith(kinds)}
    assert other == {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names - other - set(tracked()) == set()


def run_unpacked(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on the unpacked wheel from a folder that has nothing of ours."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    argv = [sys.executable, *arguments]
    return subprocess.run(argv, cwd=folder.parent, env=env, capture_output=True, text=True, check=False, timeout=30)


def test_the_command_of_the_wheel_works(unpacked: Path) -> None:
    program = "import coordinator, sys; from coordinator.cli import main; print(coordinator.__file__); sys.exit(main())"
    done = run_unpacked(unpacked, "-c", program, "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(unpacked))
    assert "0.1.0" in done.stdout


def test_the_wheel_finds_its_own_cards(unpacked: Path) -> None:
    program = "from coordinator.fleet import cards; print(cards.builtin_folder())"
    done = run_unpacked(unpacked, "-c", program)
    assert done.stdout.strip() == str(unpacked / "coordinator" / "cards"), done.stderr


def test_the_declared_command_exists(unpacked: Path) -> None:
    entry = next(unpacked.glob("*.dist-info")) / "entry_points.txt"
    assert "coordinator = coordinator.cli:main" in entry.read_text(encoding="utf-8")

"""Rust for tests: the machine's own toolchain, with a cargo home of the test's own that knows no registry but what it is given."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CANNOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def rust(tmp_path: Path) -> Iterator[Path]:
    """Yields the cargo home. Skips where there is no cargo."""
    home = Path(os.environ.get("RUSTUP_HOME") or Path(pwd.getpwuid(os.getuid()).pw_dir) / ".rustup")
    cargo_home = tmp_path / "cargo-home"
    cargo_home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if home.is_dir():
            patch.setenv("RUSTUP_HOME", str(home))
        patch.setenv("CARGO_HOME", str(cargo_home))
        if not _works("cargo", "--version"):
            pytest.skip(f"{CANNOT}there is no cargo")
        yield cargo_home


def needs(*words: str) -> None:
    """Skips where this part of Rust is not installed."""
    if not _works(*words):
        pytest.skip(f"{CANNOT}{' '.join(words)} does not work")


def _works(*words: str) -> bool:
    return (
        shutil.which(words[0]) is not None and subprocess.run(words, check=False, capture_output=True).returncode == 0
    )


def crate(name: str = "shop", **more: str) -> str:
    """A manifest; ``dependencies`` are its lines."""
    dependencies = more.get("dependencies", "")
    return f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n\n[dependencies]\n{dependencies}\n'

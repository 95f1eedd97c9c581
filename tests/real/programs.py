"""Where the real agent programs are, or why a test that wants one is skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import CANNOT

TOP = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("COORDINATOR_TOOLS", TOP / ".tools"))


def path_with(name: str) -> str:
    """A ``PATH`` on which ``name`` is the real one; skips the test when it is not there."""
    search = os.pathsep.join((str(TOOLS / "node_modules" / ".bin"), os.environ["PATH"], str(TOOLS / "node" / "bin")))
    if shutil.which(name, path=search) is None:
        try:
            reason = f"{CANNOT}scripts/agent-clis could not install {name}: {(TOOLS / f'{name}.missing').read_text()}"
        except OSError:
            reason = f"{name} is not installed; run scripts/agent-clis {name}"
        pytest.skip(reason.strip())
    return search

"""The real ``eslint``, from npm, into a folder of a test's own."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def install_eslint(folder: Path) -> Path:
    words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
    subprocess.run([*words, "eslint@10"], check=True)
    return folder / "node_modules/.bin/eslint"

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.walks.house import House, build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def house(tmp_path: Path) -> House:
    return build(tmp_path / "house")

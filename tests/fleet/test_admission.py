"""No attempt is started on a machine that cannot carry it, and the refusal says what is short."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.settings import FleetSettings
from coordinator.fleet.admission import Admission
from coordinator.kit import process

if TYPE_CHECKING:
    from pathlib import Path

_HUGE = 2**60


def test_nothing_speaks_against_it_here(tmp_path: Path) -> None:
    modest = replace(FleetSettings(), min_free_bytes=1, min_free_memory_bytes=1)
    assert Admission(tmp_path, modest).refusal() == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (replace(FleetSettings(), min_free_bytes=_HUGE), "MiB of disk are free"),
        (replace(FleetSettings(), min_free_bytes=1, min_free_memory_bytes=_HUGE), "MiB of memory are free"),
    ],
)
def test_what_is_short_is_named_with_its_setting(tmp_path: Path, settings: FleetSettings, said: str) -> None:
    refusal = Admission(tmp_path, settings).refusal()
    assert said in refusal
    assert "fleet.min_free" in refusal


def test_inodes_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "free_inodes", lambda _: 12)
    settings = replace(FleetSettings(), min_free_bytes=1, min_free_memory_bytes=0)
    assert "only 12 inodes" in Admission(tmp_path, settings).refusal()

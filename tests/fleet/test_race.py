"""The public self-test of claiming: it finds no doubles, and it would find them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.errors import ToolFailed
from coordinator.fleet import race as race_module
from coordinator.fleet.race import race
from coordinator.kit import lock
from coordinator.sdk.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


def test_every_task_is_won_once(tmp_path: Path) -> None:
    report = race(6, 60, tmp_path / "race")
    assert report.passed
    assert (report.claimed, report.doubles, report.processes, report.tasks) == (60, 0, 6, 60)
    assert report.fewest <= 10 <= report.most
    assert 1 <= report.winners <= 6
    assert 0 < report.took_s < 60
    assert report.claims_per_s > 1


def test_no_tasks_and_one_process(tmp_path: Path) -> None:
    report = race(1, 0, tmp_path / "race")
    assert (report.claimed, report.doubles, report.passed) == (0, 0, True)


def test_doubles_are_seen_in_what_the_processes_say_and_in_the_records(tmp_path: Path) -> None:
    folder = tmp_path / "race"
    race(2, 4, folder)
    layout = Layout(repository=folder, state=folder / ".coordinator")
    (folder / "wins-0").write_text("race-00000 2\nrace-00001 3\n")
    (folder / "wins-1").write_text("race-00001 4\nrace-00002 5\n")
    for number, name in enumerate(("racer-0", "racer-0", "racer-1")):
        path = layout.claim_record(f"race-{number:05d}")
        record = lock.read_record(path)
        assert record is not None
        lock.write_record(path, replace(record, agent=name))
    report = race_module._count(layout, 2, 4, 0.0)
    assert (report.claimed, report.doubles, report.passed) == (3, 1, False)
    record = lock.read_record(layout.claim_record("race-00002"))
    assert record is not None
    lock.write_record(layout.claim_record("race-00002"), replace(record, generation=2))
    assert race_module._count(layout, 2, 4, 0.0).doubles == 2


def test_a_process_that_breaks_is_reported_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho no such module; exit 3\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(ToolFailed, match="exit code 3: no such module"):
        race(2, 2, tmp_path / "race")

"""A few of the cases that ``scripts/fuzz`` makes by the million, and proof that it would see a fault."""

from __future__ import annotations

import pytest

from coordinator.gateway import translate_request_to_openai, usage_reader
from tests.fuzz import PARSERS, found_by

CASES = 150


@pytest.mark.parametrize("parser", PARSERS)
def test_nothing_is_found(parser: str) -> None:
    assert found_by(parser, range(CASES)) == []


def test_a_case_is_its_number_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate_request_to_openai, "_format", lambda *_: 1 / 0)
    found = found_by("requests_translated", range(40))
    assert {one.parser for one in found} == {"requests_translated"}
    assert all("ZeroDivisionError" in one.what for one in found)
    numbers = [one.number for one in found]
    assert 5 < len(numbers) < 40, "others go the other way, or are refused before"
    assert [
        one.number for number in numbers for one in found_by("requests_translated", range(number, number + 1))
    ] == numbers


def test_a_reader_that_depends_on_how_the_bytes_were_cut_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = usage_reader.UsageReader.feed
    monkeypatch.setattr(usage_reader.UsageReader, "feed", lambda self, data: feed(self, data.rstrip(b"\n")))
    assert found_by("usage_of_streams", range(40))

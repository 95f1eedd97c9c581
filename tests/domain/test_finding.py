from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.finding import Finding, Place, ScanReport, ScanStatus, Severity, identified, severity_of_cvss

if TYPE_CHECKING:
    import random


def seen(
    path: str = "a.py", line: int = 1, evidence: str = "import os", *, message: str = "unused", **other: object
) -> Finding:
    values: dict[str, object] = {"category": "dead code", "rule": "F401", "tool": "ruff"}
    places = (Place(path=path, line=line, column=1),)
    return Finding(places=places, evidence=evidence, message=message, **(values | other))  # type: ignore[arg-type]


findings = st.builds(
    seen,
    st.sampled_from(["a.py", "b.py", "pkg/c.py"]),
    st.integers(1, 40),
    st.sampled_from(["import os", "import sys", "x = 1"]),
    message=st.sampled_from(["unused", "redefined from line 7"]),
)
reports = st.lists(findings, max_size=20)


def marks(found: tuple[Finding, ...]) -> list[str]:
    return [one.fingerprint for one in found]


@settings(max_examples=200)
@given(reports, st.randoms(use_true_random=False))
def test_the_order_of_the_output_says_nothing(found: list[Finding], chance: random.Random) -> None:
    shuffled = found[:]
    chance.shuffle(shuffled)
    assert identified(shuffled) == identified(found)


@settings(max_examples=200)
@given(reports, st.integers(1, 500))
def test_moved_lines_say_nothing(found: list[Finding], by: int) -> None:
    moved = [replace(one, places=(replace(one.place, line=one.place.line + by),)) for one in found]
    assert marks(identified(moved)) == marks(identified(found))


@settings(max_examples=200)
@given(reports)
def test_a_renamed_file_takes_its_findings_along(found: list[Finding]) -> None:
    there = [replace(one, places=(replace(one.place, path="new/d.py"),)) for one in found if one.place.path == "a.py"]
    renamed = [one.renamed("new/d.py") for one in identified(found) if one.place.path == "a.py"]
    assert marks(tuple(renamed)) == marks(identified(there))
    assert all(one.place.path == "new/d.py" for one in renamed)


def test_what_else_a_finding_is_about_keeps_its_name() -> None:
    places = (Place(path="a.py", line=1), Place(path="b.py", line=2), Place(path="a.py", line=3))
    (one,) = identified([replace(seen(), places=places)])
    assert [place.path for place in one.renamed("c.py").places] == ["c.py", "b.py", "c.py"]


@settings(max_examples=200)
@given(reports)
def test_every_finding_has_a_fingerprint_of_its_own_and_none_is_lost(found: list[Finding]) -> None:
    done = identified(found)
    assert len(set(marks(done))) == len(done)
    assert {(one.place, one.message, one.evidence) for one in done} == {
        (one.place, one.message, one.evidence) for one in found
    }


def test_the_same_line_twice_is_two_findings_and_the_same_place_twice_is_one() -> None:
    assert len(identified([seen(line=1), seen(line=9)])) == 2
    assert len(identified([seen(line=1), seen(line=1)])) == 1
    whole_file = replace(seen(), places=(Place(path="n.ipynb"),))
    assert len(identified([whole_file, whole_file])) == 2  # where is not known, so they may well be two


def test_a_number_in_a_message_is_no_part_of_it_and_one_in_the_source_is() -> None:
    assert marks(identified([seen(message="from line 7")])) == marks(identified([seen(message="from line 90")]))
    assert marks(identified([seen(evidence="x = 1")])) != marks(identified([seen(evidence="x = 2")]))
    assert marks(identified([seen(evidence="x  =  1")])) == marks(identified([seen(evidence="x = 1")]))


def test_what_a_tool_names_is_known_by_that_name_alone() -> None:
    one = seen(message="requests 2.1 is vulnerable", about="requests|PYSEC-1", evidence="requests==2.1")
    same = seen(line=30, message="Session fixation", about="requests|PYSEC-1", evidence="requests==2.2")
    assert marks(identified([one])) == marks(identified([same]))
    assert marks(identified([one])) != marks(identified([replace(one, about="requests|PYSEC-2")]))


def test_tools_and_rules_do_not_share_findings() -> None:
    assert len({*marks(identified([seen(), seen(tool="other"), seen(rule="F811")]))}) == 3


def test_a_finding_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="without a place"):
        Finding(category="c", message="m", places=(), rule="r", tool="t")


def test_a_folder_that_was_not_looked_into_hides_what_is_below_it() -> None:
    report = ScanReport(tool="cargo", status=ScanStatus.SCANNED, unread=("crates/a/", "b.py"))
    assert report.hides("crates/a/src/lib.rs")
    assert report.hides("b.py")
    assert not any(map(report.hides, ("crates/ab/lib.rs", "pkg/b.py", "b.pyi")))


@pytest.mark.parametrize(
    ("score", "severity"),
    [(10.0, 1), (9.0, 1), (8.9, 2), (7.0, 2), (6.9, 3), (4.0, 3), (3.9, 4), (0.1, 4), (0.0, 5)],
)
def test_scores_have_the_words_of_their_standard(score: float, severity: int) -> None:
    assert severity_of_cvss(score) == Severity(severity)


def test_half_a_character_and_a_line_that_no_file_has_go_no_further() -> None:
    odd = seen("a\udcff.py", message="\ud800", evidence="x\udc00", links=("\ud800",), advisories=("\ud800",))
    (one,) = identified([odd])
    for text in (one.message, one.evidence, one.place.path, *one.links, *one.advisories):
        text.encode()
    assert one.place.path == "a\\udcff.py"
    (fine,) = identified([seen("é.py", message="naïve 漢字")])
    assert (fine.place.path, fine.message) == ("é.py", "naïve 漢字")
    for line, column in ((-1, 0), (2**31, 0), (1, -1), (1, 10**400)):
        with pytest.raises(ValueError, match="has no line"):
            Place(path="a.py", line=line, column=column)

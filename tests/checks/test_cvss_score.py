from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.checks.cvss_score import base_score

METRICS = {"AV": "NALP", "AC": "LH", "PR": "NLH", "UI": "NR", "S": "UC", "C": "NLH", "I": "NLH", "A": "NLH"}


@pytest.mark.parametrize(
    ("vector", "score"),
    [
        # From the examples of FIRST's own document for CVSS v3.1.
        ("CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N", 6.4),  # CVE-2013-0375
        ("CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N", 3.1),  # CVE-2014-3566
        ("CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:H/I:H/A:H", 9.9),  # CVE-2012-1516
        ("CVSS:3.0/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N", 7.5),  # CVE-2014-0160
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8),  # CVE-2014-6271
        ("CVSS:3.1/AV:P/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N", 4.6),  # CVE-2014-2005
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N", 6.1),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H", 10.0),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N", 0.0),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H/E:U", 9.8),
        # From FIRST's examples for CVSS v4.0.
        ("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", 9.3),
        ("CVSS:4.0/AV:L/AC:L/AT:P/PR:L/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", 7.3),  # CVE-2022-41741
        ("CVSS:4.0/AV:N/AC:L/AT:P/PR:N/UI:P/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", 7.7),  # CVE-2020-3549
        ("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N", None),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H", None),
        ("CVSS:3.1/AV:N/AC:X/PR:N/UI:N/S:U/C:H/I:H/A:H", None),
        ("AV:N/AC:L/Au:N/C:P/I:P/A:P", None),
        ("", None),
    ],
)
def test_the_score_is_that_of_the_specification(vector: str, score: float | None) -> None:
    assert base_score(vector) == score


@given(
    st.fixed_dictionaries({name: st.sampled_from(of) for name, of in METRICS.items()}), st.sampled_from(["C", "I", "A"])
)
def test_it_lies_from_0_to_10_and_does_not_fall_with_the_harm(at: dict[str, str], metric: str) -> None:
    def score(told: dict[str, str]) -> float:
        found = base_score("CVSS:3.1/" + "/".join(f"{name}:{value}" for name, value in told.items()))
        assert found is not None
        return found

    assert 0 <= score(at) <= 10
    assert score(at) == round(score(at), 1)
    assert score({**at, metric: "H"}) >= score({**at, metric: "N"})


@given(st.text(max_size=60) | st.text("CVS:3.1/AN", max_size=60))
def test_any_text_has_a_score_or_none(text: str) -> None:
    assert base_score(text) is None

"""What a machine can tell of an answer: how it ended, whether it refuses, whether it loops."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy import quality as module
from coordinator.policy.quality import CUT, LOOPED, REFUSED, UNSAID, Finish, quality

PROSE = Path(module.__file__).read_text(encoding="utf-8")


def score(text: str, finish: Finish = Finish.END, tokens: int = 10, most: int = 1024) -> float:
    return quality(text, finish=finish, output_tokens=tokens, max_tokens=most)


def test_a_good_answer_is_good() -> None:
    assert score("42") == 1.0
    assert score("  The tests pass.\n") == 1.0
    assert score(PROSE) == 1.0
    assert score("\n".join(f"| {number} | {number * number} | yes |" for number in range(100))) == 1.0


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"])
def test_nothing_is_worth_nothing(text: str) -> None:
    assert score(text) == 0.0


@pytest.mark.parametrize(
    ("finish", "tokens", "expected"),
    [
        (Finish.LENGTH, 1024, CUT),
        (Finish.UNKNOWN, 1024, CUT),
        (Finish.UNKNOWN, 1023, UNSAID),
        (Finish.END, 1024, 1.0),
        (Finish.REFUSED, 5, REFUSED),
    ],
)
def test_how_it_ended(finish: Finish, tokens: int, expected: float) -> None:
    assert score(PROSE, finish, tokens) == expected


def test_without_a_maximum_none_is_reached() -> None:
    assert score(PROSE, Finish.UNKNOWN, 5, 0) == UNSAID


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t assist with this request.",
        "I cannot provide that.",
        "As an AI language model, I have no opinion.",
        "I am unable to help you here.",
        "I'm unable to answer.",
        "I am afraid I'm not able to.",
        "\n\nI won't comply.",
    ],
)
def test_refusals(text: str) -> None:
    assert score(text) == REFUSED


@pytest.mark.parametrize(
    "text",
    [
        "The server cannot provide the file; retry.",
        "I'm sorry to hear that. Here is the fix: open the file and change the line.",
        "I'm sorry to hear that. You can't open it twice.",
        f"{'x' * 300} I cannot help",
    ],
)
def test_what_only_resembles_one(text: str) -> None:
    assert score(text) == 1.0


def test_loops() -> None:
    line = "The same line again, said a hundred times.\n"
    assert score(line) == 1.0
    assert score(line * 200) == LOOPED
    assert LOOPED < score(line * 25) < 0.5
    assert score(PROSE + line * 300) == LOOPED  # it is the end that tells


@given(
    st.text(max_size=2000),
    st.sampled_from(Finish),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.integers(1, 60),
)
def test_the_estimate_has_bounds_and_signs_never_raise_it(
    text: str, finish: Finish, tokens: int, most: int, times: int
) -> None:
    once = quality(text, finish=finish, output_tokens=tokens, max_tokens=most)
    assert 0.0 <= once <= 1.0
    assert once <= quality(text, finish=Finish.END, output_tokens=tokens, max_tokens=most)
    assert 0.0 <= quality(text * times, finish=finish, output_tokens=tokens, max_tokens=most) <= 1.0

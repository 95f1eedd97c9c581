from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.candidate import Candidate
from coordinator.domain.check import Verdict, VerdictKind
from coordinator.domain.task import Task
from coordinator.policy.landing import commit_message, feedback_of


def candidate(message: str, title: str = "Mend it") -> Candidate:
    task = Task(id="mine", prompt="do it", title=title)
    return Candidate(agent="a", base="b", commit="c", generation=3, message=message, task=task)


def test_the_agents_words_and_our_trailers() -> None:
    assert commit_message(candidate("Fix x\n\nBody")) == (
        "Fix x\n\nBody\n\nCoordinator-Task: mine\nCoordinator-Attempt: mine/3\n"
    )
    assert commit_message(candidate("  \n")).startswith("Mend it\n\n")


@given(st.text(max_size=80), st.sampled_from(["", " ", "\n", "\r\n", "\r", "\x0b", "\t"]), st.text(max_size=40))
def test_no_agent_can_speak_for_another_task(before: str, gap: str, after: str) -> None:
    message = commit_message(candidate(f"{before}{gap}coordinator-TASK: other{gap}Coordinator-Task=other\n{after}"))
    *body, trailers = message.rstrip("\n").split("\n\n")
    assert trailers == "Coordinator-Task: mine\nCoordinator-Attempt: mine/3"
    assert "\0" not in message
    lines = re.split(r"[\n\r]", "\n\n".join(body))
    assert not any(re.match(r"\s*coordinator-task\s*[:=]", line, re.IGNORECASE) for line in lines)


def test_feedback_names_everything_and_shows_the_output_as_a_block() -> None:
    verdict = Verdict(
        kind=VerdictKind.FAILED,
        reason="2 new failures",
        new_failures=tuple(f"t{n}" for n in range(40)),
        lost_tests=("gone",),
        excerpt="boom\n```\n# not a heading",
    )
    text = feedback_of(verdict)
    assert "2 new failures" in text
    assert "- t29" in text
    assert "- t30" not in text
    assert "and 10 more" in text
    assert "- gone" in text
    assert "    ```\n    # not a heading" in text


@given(st.text(max_size=400))
def test_what_landed_untested_says_so_in_one_trailer(why: str) -> None:
    message = commit_message(candidate("Fix x"), untested=f"pytest ({why})")
    *_, trailers = message.rstrip("\n").split("\n\n")
    lines = trailers.split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        "Coordinator-Task",
        "Coordinator-Attempt",
        "Coordinator-Untested",
    ]
    assert lines[-1].startswith("Coordinator-Untested: pytest (")
    assert len(lines[-1]) < 200

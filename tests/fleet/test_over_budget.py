"""A 402 of our gateway ends an attempt as over budget, whichever program passes it on, and the task waits for a person."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.attempt import Ending, Outcome, Reason
from coordinator.domain.settings import Settings
from coordinator.domain.task import Task, TaskState
from coordinator.fleet.call_failure import failure_in, said_of
from coordinator.fleet.claude_verdict import LastWord, Trouble, verdict
from coordinator.fleet.collector import Gathered
from coordinator.fleet.intake import Intake
from coordinator.fleet.ledger import Ledger
from coordinator.fleet.settling import Settling
from coordinator.gateway.dialect import Denial, Denied, Dialect, refusal_event, refusal_reply
from coordinator.kit.bus import Bus
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store
from coordinator.policy.budget import Budget, Purse

if TYPE_CHECKING:
    from coordinator.sdk.layout import Layout

CUT = "nothing is left of the budget for the rest of this answer"
UNPRICED = "a budget is set, and nobody has told what odd-1 costs: [[gateway.prices]] does"


def refused(budget: Budget, *, call: bool = False) -> str:
    """In the purse's own words."""
    purse = Purse(budget, 1.0, call_usd=0.5 if call else 10.0)
    purse.restore(0.9)
    return str(purse.reserve(0.6 if call else 0.2))


WORDS = [
    refused(Budget.TASK),
    refused(Budget.DAY),
    refused(Budget.FLEET),
    refused(Budget.TASK, call=True),
    CUT,
    UNPRICED,
]


def told(dialect: Dialect, words: str) -> tuple[int, str]:
    """What a client hears instead of an answer: the status, and the message in the body."""
    status, _, body = refusal_reply(dialect, Denied(Denial.OVER_BUDGET, words))
    return status, json.loads(body)["error"]["message"]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES])
def test_a_402_of_ours_is_over_budget_in_every_protocol(dialect: Dialect, words: str) -> None:
    status, message = told(dialect, words)
    for failure in (
        failure_in(message, status=status),
        failure_in(f"unexpected status 402 Payment Required: {message}"),
        failure_in(f"Error code: 402 - {{'error': {{'message': '{message}'}}}}"),
    ):
        said = said_of(failure, gateway=True, remedy="KEY", now=1e9)
        assert (said.outcome, said.reason, said.retry_at) == (Outcome.FAILED, Reason.OVER_BUDGET, 0.0)
        assert words in said.summary


@pytest.mark.parametrize("words", WORDS)
def test_claude_code_that_was_told_so_is_over_budget(words: str) -> None:
    status, message = told(Dialect.ANTHROPIC_MESSAGES, words)
    last = LastWord(
        failed=True, status=status, subtype="success", terminal="api_error", text=f"API Error: {status} {message}"
    )
    said = verdict(last, Trouble(gateway=True, now=1e9, reset_at=2e9))
    assert (said.outcome, said.reason, said.retry_at) == (Outcome.FAILED, Reason.OVER_BUDGET, 0.0)


@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES])
def test_a_stream_that_was_cut_for_it_is_over_budget_although_no_status_is_told(dialect: Dialect) -> None:
    event = refusal_event(dialect, Denied(Denial.OVER_BUDGET, CUT)).decode()
    data = next(line for line in event.splitlines() if line.startswith("data: ")).removeprefix("data: ")
    for text in (f"API Error: {data}", f"API Error: coordinator: {CUT}"):
        said = said_of(failure_in(text), gateway=True, remedy="KEY", now=1e9)
        assert said.reason == Reason.OVER_BUDGET
        last = LastWord(failed=True, subtype="success", terminal="api_error", text=text)
        assert verdict(last, Trouble(gateway=True, now=1e9)).reason == Reason.OVER_BUDGET


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("budget exhausted", 402),
        ("insufficient_quota: You exceeded your current quota", 429),
        ("coordinator: the day's budget: $0.90 of $1.00 are spent, $0.10 set aside for calls under way", 429),
    ],
)
def test_anothers_402_and_a_wait_for_a_budget_are_limits(text: str, status: int) -> None:
    """A provider's account that is empty mends itself by money, not by a release of this task."""
    said = said_of(failure_in(text, status=status), gateway=True, remedy="KEY", now=1e9)
    assert said.reason == Reason.RATE_LIMITED


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (refused(Budget.TASK), "raise budget_usd in its task or its role card"),
        (refused(Budget.DAY), "day_budget_usd in [gateway]"),
        (refused(Budget.FLEET), "total_budget_usd in [gateway]"),
        (refused(Budget.TASK, call=True), "call_budget_usd in [gateway]"),
        (UNPRICED, "[[gateway.prices]]"),
    ],
)
def test_the_task_is_held_with_its_conversation_and_what_would_help(layout: Layout, words: str, remedy: str) -> None:
    store, clock = Store.open(layout.ledger), SystemClock()
    bus = Bus(clock)
    ledger = Ledger(store, bus, clock)
    intake = Intake(layout, ledger, store, Settings(), clock, lambda: None)
    settling = Settling(bus=bus, clock=clock, intake=intake, ledger=ledger, settings=Settings())
    ledger.add(Task(id="t", prompt="p"), reason="new")
    ledger.move("t", TaskState.READY, "go", generation=1)
    ledger.record("t", 1, session="s-1")
    ledger.move("t", TaskState.CLAIMED, "go")
    ledger.move("t", TaskState.RUNNING, "go")
    status, message = told(Dialect.ANTHROPIC_MESSAGES, words)
    said = said_of(failure_in(message, status=status), gateway=True, remedy="", now=1e9)
    gathered = Gathered(candidate=None, ending=Ending(said.reason), feedback="", reason=said.summary, lived_s=100.0)
    settling.ended(ledger.get("t"), Ending(said.reason), said.summary, gathered)
    entry = ledger.get("t")
    assert (entry.state, entry.resume, entry.attempts) == (TaskState.HELD, "s-1", 0)
    assert remedy in entry.reason
    row = ledger.attempt("t", 1)
    assert row is not None
    assert row.ending == Ending.OVER_BUDGET
    store.close()

"""What is believed of a target that fails: when it excuses a change, and what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from coordinator.domain.check import BrokenBy, CheckOutcome, CheckStatus
from coordinator.fleet.baselines import SURE_S, Baselines, decode_outcome, encode_outcome
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class HandClock(SystemClock):
    """Goes when it is told to."""

    at = 0.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


@dataclass(frozen=True)
class Command:
    """A check of which only the name matters."""

    key: str = "make test"
    name: str = "make test"
    required: bool = True
    tests: bool = True

    async def run(self, tree: Path, scratch: Path) -> CheckOutcome:
        raise NotImplementedError(tree, scratch)


CHECK = Command()
EVERY = frozenset({"a", "b", "c"})


def said(*failures: str, failed: bool = False, seen: frozenset[str] = EVERY) -> CheckOutcome:
    status = CheckStatus.FAILED if failures or failed else CheckStatus.PASSED
    return CheckOutcome(check="make test", failures=frozenset(failures), seen=seen, status=status)


FINE, NAMELESS = said(seen=frozenset()), said(failed=True, seen=frozenset())


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def baselines(store: Store, clock: HandClock) -> Baselines:
    return Baselines(store, clock, again_s=30.0)


def is_in_doubt(outcome: CheckOutcome) -> bool:
    assert (outcome.status is CheckStatus.BROKEN) == (outcome.broken_by is BrokenBy.MOMENT)
    return outcome.status is CheckStatus.BROKEN


WORSE = [
    (FINE, NAMELESS),
    (said(), said("a")),
    (said("a"), said("a", "b")),
    (said("a"), said("b")),
    (said("a"), said(failed=True)),
    (NAMELESS, said("a", seen=frozenset())),
    (said(), said(seen=frozenset({"a", "b"}))),
    (said("a"), said("a", seen=frozenset({"a", "b"}))),
]
NO_WORSE = [
    (FINE, FINE),
    (NAMELESS, FINE),
    (NAMELESS, NAMELESS),
    (said("a", "b"), said("b")),
    (said("a"), said()),
    (said(seen=frozenset({"a"})), said()),
    (said(seen=frozenset({"a[1]"})), said(seen=frozenset({"a[2]"}))),
    (said("a[1]", seen=frozenset({"a[1]"})), said("a[2]", seen=frozenset({"a[2]"}))),
]


@pytest.mark.parametrize(("known", "fresh"), WORSE)
def test_a_known_tree_that_says_something_worse_is_believed_when_it_still_does_a_minute_later(
    baselines: Baselines, clock: HandClock, known: CheckOutcome, fresh: CheckOutcome
) -> None:
    baselines.remember("tree", CHECK, known)
    assert not baselines.expects("tree", CHECK, fresh)
    for clock.at in (0.0, 30.0, SURE_S - 1):
        assert is_in_doubt(baselines.settled("tree", CHECK, fresh))
        assert baselines.recall("tree", CHECK) == known
    clock.at = SURE_S
    assert baselines.settled("tree", CHECK, fresh) == fresh
    assert baselines.recall("tree", CHECK) == fresh


@pytest.mark.parametrize(("known", "fresh"), NO_WORSE)
def test_what_is_no_worse_is_believed_at_once(baselines: Baselines, known: CheckOutcome, fresh: CheckOutcome) -> None:
    baselines.remember("tree", CHECK, known)
    assert baselines.expects("tree", CHECK, fresh)
    assert baselines.settled("tree", CHECK, fresh) == fresh
    assert baselines.recall("tree", CHECK) == fresh


def test_what_gets_worse_while_it_is_doubted_is_a_new_doubt(baselines: Baselines, clock: HandClock) -> None:
    baselines.remember("tree", CHECK, said())
    for clock.at, fresh in ((0.0, said("a")), (40.0, said("a", "b")), (SURE_S, said("a", "b"))):
        assert is_in_doubt(baselines.settled("tree", CHECK, fresh))
    clock.at = 40.0 + SURE_S
    assert baselines.settled("tree", CHECK, said("b")) == said("b"), "what is left of it has lasted as long"


@pytest.mark.parametrize("how", ["looked at", "passed beside it"])
def test_a_doubt_ends_with_what_was_doubted(baselines: Baselines, clock: HandClock, how: str) -> None:
    """Two bad moments, hours apart, are not one that lasts."""
    baselines.remember("tree", CHECK, FINE)
    assert is_in_doubt(baselines.settled("tree", CHECK, NAMELESS))
    clock.at = 30.0
    if how == "looked at":
        assert baselines.settled("tree", CHECK, FINE) == FINE
    else:
        baselines.trust("tree", CHECK)
    clock.at = 7200.0
    assert is_in_doubt(baselines.settled("tree", CHECK, NAMELESS))


@pytest.mark.parametrize("outcome", [NAMELESS, said(*EVERY)])
def test_a_first_look_that_excuses_everything_is_believed_a_minute_later_and_says_why(
    baselines: Baselines, clock: HandClock, outcome: CheckOutcome
) -> None:
    """So a project that has always been red stands still for a minute, once."""
    first = baselines.settled("tree", CHECK, outcome)
    assert is_in_doubt(first)
    for words in ("nobody has looked before", "60 s later", "every 30 s ([gate] retry_s)"):
        assert words in first.reason
    clock.at = SURE_S
    assert baselines.settled("tree", CHECK, outcome) == outcome
    assert baselines.settled("made by hand", CHECK, outcome) == outcome, "as red as the target before it"
    assert is_in_doubt(baselines.settled("tree", replace(CHECK, key="of other packages"), outcome))
    clock.at += 1
    baselines.remember("mended", CHECK, FINE)
    assert is_in_doubt(baselines.settled("another", CHECK, outcome))


@pytest.mark.parametrize("outcome", [FINE, said("a"), said("old finding", seen=frozenset())])
def test_a_first_look_that_excuses_some_of_it_is_believed_at_once(baselines: Baselines, outcome: CheckOutcome) -> None:
    assert baselines.settled("tree", CHECK, outcome) == outcome
    assert baselines.recall("tree", CHECK) == outcome


NONE_RAN = replace(said("t.py", seen=frozenset()), none_ran="no module of that name")


@pytest.mark.parametrize("known", [None, said()])
def test_of_which_no_test_ran_is_never_remembered(
    baselines: Baselines, clock: HandClock, store: Store, known: CheckOutcome | None
) -> None:
    """The service that they need is away for an hour: when it is back, nothing must remind of it."""
    if known is not None:
        baselines.remember("tree", CHECK, known)
    baselines.remember("tree", CHECK, NONE_RAN)
    for clock.at in (0.0, 30.0, SURE_S, 3600.0):
        assert baselines.settled("tree", CHECK, NONE_RAN) == NONE_RAN
        assert baselines.recall("tree", CHECK) == known
    store.execute("baseline_put", tree="old", command=CHECK.key, outcome=encode_outcome(NONE_RAN), at="2020")
    assert baselines.recall("old", CHECK) is None, "an earlier version did remember it"


@pytest.mark.parametrize("by", BrokenBy)
def test_what_could_not_look_is_neither_doubted_nor_remembered(baselines: Baselines, by: BrokenBy) -> None:
    outcome = replace(NAMELESS, status=CheckStatus.BROKEN, broken_by=by)
    assert baselines.settled("tree", CHECK, outcome) == outcome
    assert baselines.recall("tree", CHECK) is None


def test_outcomes_are_remembered_whole_or_not_at_all() -> None:
    outcome = CheckOutcome(
        check="c", failures=frozenset({"a"}), seen=frozenset({"a", "b"}), status=CheckStatus.FAILED, took_s=1.5
    )
    assert decode_outcome(encode_outcome(outcome)) == outcome
    for garbage in ("", "{}", "[]", '{"check": 1}', encode_outcome(outcome).replace("failed", "fine")):
        assert decode_outcome(garbage) is None

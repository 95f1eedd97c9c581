"""Three failures open it, one probe a tick goes up, the first byte closes it; callers' faults and 429s never count."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.policy.circuit_breaker import CallFault, CircuitBreaker, CircuitKnobs, CircuitState, counts

COUNTED = {CallFault.CUT, CallFault.SERVER, CallFault.TIMEOUT, CallFault.UNREACHED}
SEED = CircuitKnobs(
    failures_to_open=5, probe_every_s=60.0, pause_growth=2.0, longest_pause_s=3840.0, probes_to_close=10, close_rate=0.8
)


def told(script: str, knobs: CircuitKnobs, began: float = 0.0) -> str:
    """Play ``script`` and return what came of it, a word for each word.

    ``3.5`` is the time; ``?`` asks; ``+`` a first byte; ``x`` a failure that counts, ``c`` the caller's, ``r`` a 429;
    ``~`` a call that is given up. Answers: ``go``, ``no``; otherwise the state: C, O or H.
    """
    breaker = CircuitBreaker(began, knobs)
    now = began
    said = []
    for word in script.split():
        match word:
            case "?":
                said.append("go" if breaker.allow(now) else "no")
                continue
            case "+":
                breaker.success(now)
            case "x":
                breaker.failure(now, CallFault.SERVER)
            case "c":
                breaker.failure(now, CallFault.CALLER)
            case "r":
                breaker.failure(now, CallFault.RATE)
            case "~":
                breaker.abandon(now)
            case _:
                now = began + float(word)
                continue
        said.append(breaker.state.name[0])
    return " ".join(said)


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        pytest.param("? x ? x ? x ?", "go C go C go O no", id="three in a row open it"),
        pytest.param("x x + x x + x x", "C C C C C C C C", id="a success in between begins anew"),
        pytest.param("x x c x", "C C C O", id="a caller's fault in between does not"),
        pytest.param("c c c c c r r r r r ?", "C C C C C C C C C C go", id="callers' faults and 429s never count"),
        pytest.param("x x x 4.9 ? 5 ? ? 9.9 ?", "C C O no go no no", id="one probe per tick"),
        pytest.param("x x x 5 ? 7 + ? ?", "C C O go C go go", id="the first byte closes it"),
        pytest.param(
            "x x x 5 ? x ? 9.9 ? 10 ?", "C C O go O no no go", id="a probe that fails waits for the next tick"
        ),
        pytest.param("x x x 5 ? 10 ? ? 15 ? +", "C C O go go no go C", id="a hung probe does not hold up the next"),
        pytest.param("x x x 5 ? 25 x ? ?", "C C O go O go no", id="a probe that failed late has had its pause"),
        pytest.param("x x x 5 ? ~ ? ? 10 ?", "C C O go O go no go", id="a probe that was given up leaves its turn"),
        pytest.param("x x x 5 ? 10 ? ~ ?", "C C O go go H no", id="but not while another is out"),
        pytest.param("x x x ~ ? 5 ?", "C C O O no go", id="nothing to give up"),
        pytest.param("x x x 5 ? r ?", "C C O go C go", id="a 429 is an answer"),
        pytest.param("x x x 5 ? c ?", "C C O go C go", id="a refusal is an answer"),
        pytest.param("x x x x x 5 ?", "C C O O O go", id="calls from before change nothing when they fail"),
        pytest.param("x x x 1 + ?", "C C O C go", id="and close it when they are answered"),
        pytest.param("x x x 5 ? + x x ? x ?", "C C O go C C C go O no", id="it counts anew"),
    ],
)
@pytest.mark.parametrize("began", [0.0, 1e6])
def test_as_it_is(script: str, answers: str, began: float) -> None:
    assert told(script, CircuitKnobs(), began) == answers


@pytest.mark.parametrize(
    ("knobs", "script", "answers"),
    [
        pytest.param(
            CircuitKnobs(pause_growth=2.0, longest_pause_s=15.0),
            "x x x 5 ? x 14.9 ? 15 ? x 29.9 ? 30 ? x 44.9 ? 45 ? + x x x 49.9 ? 50 ?",
            "C C O go O no go O no go O no go C C C O no go",
            id="pauses grow up to the longest and begin anew",
        ),
        pytest.param(
            CircuitKnobs(pause_growth=2.0, longest_pause_s=1.0),
            "x x x 5 ? x 9.9 ? 10 ?",
            "C C O go O no go",
            id="a longest pause below the tick shortens nothing",
        ),
        pytest.param(
            CircuitKnobs(probes_to_close=3, close_rate=0.6),
            "x x x 5 ? + 10 ? x 15 ? +",
            "C C O go H go H go C",
            id="two of three close it",
        ),
        pytest.param(
            CircuitKnobs(probes_to_close=3, close_rate=0.6),
            "x x x 5 ? x 10 ? + 15 ? x 20 ? + 25 ? +",
            "C C O go H go H go O go H go C",
            id="one of three does not, and the next round begins at nothing",
        ),
        pytest.param(
            CircuitKnobs(probes_to_close=3, close_rate=0.6),
            "x x x 5 ? + 10 ? ~ ?",
            "C C O go H go H go",
            id="one answered, one given up: nothing is out any more",
        ),
        pytest.param(
            CircuitKnobs(probes_to_close=3, close_rate=0.6),
            "x x x 5 ? x 10 ? ~ ?",
            "C C O go H go H go",
            id="one failed, one given up: nothing is out any more",
        ),
        pytest.param(CircuitKnobs(failures_to_open=1), "x ? 5 ? + ?", "O no go C go", id="a single failure"),
        pytest.param(
            CircuitKnobs(failures_to_open=99, rate_window=4, open_rate=0.5),
            "x x + + x ? 5 ? + x x x + x",
            "C C C C O no go C C C C C O",
            id="by rate, once there are enough",
        ),
        pytest.param(
            CircuitKnobs(failures_to_open=99, rate_window=4, open_rate=0.75),
            "x + x + x + x + c c c r x x",
            "C C C C C C C C C C C C C O",
            id="by rate, the old fall out and callers' faults are not in it",
        ),
        pytest.param(
            SEED,
            "x x x x x 59 ? 60 ? + 120 ? x 180 ? x 240 ? x 300 ? 359 ? 360 ?",
            "C C C C O no go H go H go H go O no no go",
            id="the seed's: three of ten failed is too many, and then twice the pause",
        ),
    ],
)
def test_with_other_knobs(knobs: CircuitKnobs, script: str, answers: str) -> None:
    assert told(script, knobs) == answers


@pytest.mark.parametrize(("probes", "rate", "failed"), [(10, 0.8, 2), (25, 0.56, 11), (3, 1.0, 0)])
def test_a_share_of_the_probes_closes_it(probes: int, rate: float, failed: int) -> None:
    """56 % of 25 are 14, though 0.56 * 25 is a little more in floats."""
    knobs = CircuitKnobs(probe_every_s=1.0, probes_to_close=probes, close_rate=rate)
    outcomes = "x" * failed + "+" * (probes - failed)
    words = " ".join(f"{number} ? {outcome}" for number, outcome in enumerate(outcomes, start=1))
    answers = told(f"x x x {words}", knobs).split()
    assert answers[3::2] == ["go"] * probes
    assert answers[4::2] == ["H"] * (probes - 1) + ["C"]


@pytest.mark.parametrize("kind", CallFault, ids=str)
def test_what_counts(kind: CallFault) -> None:
    assert counts(kind) == (kind in COUNTED)
    breaker = CircuitBreaker(0.0, CircuitKnobs(rate_window=3))
    for _ in range(100):
        breaker.failure(1.0, kind)
    assert (breaker.state is CircuitState.OPEN) == (kind in COUNTED)


def test_it_says_since_when_and_why() -> None:
    breaker = CircuitBreaker(7.0)
    assert (breaker.since, breaker.last_failure) == (7.0, "")
    breaker.failure(8.0, CallFault.RATE, "429 slow down")
    assert breaker.last_failure == ""
    breaker.failure(8.0, CallFault.TIMEOUT)
    assert breaker.last_failure == "timeout"
    for now in (9.0, 10.0):
        breaker.failure(now, CallFault.SERVER, "503 overloaded")
    assert (breaker.since, breaker.last_failure) == (10.0, "503 overloaded")
    assert breaker.allow(15.0)
    breaker.failure(15.5, CallFault.UNREACHED, "refused")
    assert (breaker.state, breaker.since, breaker.last_failure) == (CircuitState.OPEN, 10.0, "refused")
    assert breaker.allow(20.0)
    breaker.success(20.5)
    assert (breaker.state, breaker.since, breaker.last_failure) == (CircuitState.CLOSED, 20.5, "refused")


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures_to_open": 0},
        {"probe_every_s": 0.0},
        {"probe_every_s": math.nan},
        {"pause_growth": 0.9},
        {"rate_window": -1},
        {"open_rate": 0.0},
        {"open_rate": 1.1},
        {"probes_to_close": 0},
        {"close_rate": 0.0},
        {"close_rate": 1.1},
    ],
    ids=str,
)
def test_no_such_breaker(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no such circuit breaker"):
        CircuitKnobs(**wrong)  # type: ignore[arg-type]


@given(st.floats(0.1, 60), st.floats(0, 1e6))
def test_an_outage_is_over_within_a_tick_of_its_end(tick_s: float, outage_s: float) -> None:
    """Ten calls a tick: three fail, then a probe a tick, and the first that is answered closes it."""
    outage_s = min(outage_s, 50 * tick_s)
    breaker = CircuitBreaker(0.0, CircuitKnobs(probe_every_s=tick_s))
    failed = 0
    for number in range(700):
        now = number * tick_s / 10
        if not breaker.allow(now):
            continue
        if now < outage_s:
            breaker.failure(now, CallFault.SERVER)
            failed += 1
        else:
            breaker.success(now)
            break
    assert breaker.state is CircuitState.CLOSED
    assert now <= outage_s + 1.2 * tick_s
    assert failed <= 3 + outage_s / tick_s


class Circuit(RuleBasedStateMachine):
    """Against the rules in the plainest way: lists of what happened."""

    @initialize(
        failures=st.integers(1, 4),
        window=st.sampled_from([0, 0, 3, 5]),
        growth=st.sampled_from([1.0, 2.0]),
        probes=st.integers(1, 4),
        rate=st.sampled_from([0.5, 0.8, 1.0]),
    )
    def begin(self, failures: int, window: int, growth: float, probes: int, rate: float) -> None:
        self.now = 50.0
        self.knobs = CircuitKnobs(
            failures_to_open=failures,
            rate_window=window,
            open_rate=0.6,
            pause_growth=growth,
            longest_pause_s=18.0,
            probes_to_close=probes,
            close_rate=rate,
        )
        self.breaker = CircuitBreaker(self.now, self.knobs)
        self.closed = True
        self.calls: list[bool] = []  # while closed: failed?
        self.begin_rounds()

    def begin_rounds(self) -> None:
        self.pause_s = 5.0
        self.round: list[bool] = []
        self.out = 0
        self.claimed = self.now
        self.due = self.now + self.pause_s

    def outcome(self, *, failed: bool) -> None:
        knobs = self.knobs
        if self.closed:
            self.calls.append(failed)
            row = self.calls[-knobs.failures_to_open :]
            window = self.calls[-knobs.rate_window :] if knobs.rate_window else []
            many = len(window) == knobs.rate_window > 0 and sum(window) / len(window) >= 0.6
            if failed and ((len(row) == knobs.failures_to_open and all(row)) or many):
                self.closed = False
                self.begin_rounds()
            return
        if failed and not self.out and not self.round:
            return
        self.out = max(self.out - 1, 0)
        self.round.append(failed)
        good, bad = self.round.count(False), self.round.count(True)
        if good >= knobs.close_rate * knobs.probes_to_close - 1e-6:
            self.closed, self.calls = True, []
        elif knobs.probes_to_close - bad < knobs.close_rate * knobs.probes_to_close - 1e-6:
            self.round, self.out = [], 0
            self.pause_s = min(self.pause_s * knobs.pause_growth, 18.0)
            self.due = self.claimed + self.pause_s

    @rule(seconds=st.sampled_from([0.5, 2.5, 5.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        expected = self.closed or self.now >= self.due
        assert self.breaker.allow(self.now) == expected
        if expected and not self.closed:
            self.out += 1
            self.claimed = self.now
            self.due = self.now + self.pause_s

    @rule()
    def answer(self) -> None:
        self.breaker.success(self.now)
        self.outcome(failed=False)

    @rule(kind=st.sampled_from(sorted(COUNTED)), times=st.integers(1, 3))
    def fail(self, kind: CallFault, times: int) -> None:
        for _ in range(times):
            self.breaker.failure(self.now, kind)
            self.outcome(failed=True)

    @rule(kind=st.sampled_from(sorted(set(CallFault) - COUNTED)))
    def refuse(self, kind: CallFault) -> None:
        self.breaker.failure(self.now, kind)
        if not self.closed:
            self.outcome(failed=False)

    @precondition(lambda self: not self.closed)
    @rule()
    def give_up(self) -> None:
        self.breaker.abandon(self.now)
        if self.out:
            self.out -= 1
            if not self.out:
                self.due = min(self.due, self.now)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "breaker"):
            probing = bool(self.out or self.round)
            state = CircuitState.CLOSED if self.closed else CircuitState.HALF_OPEN if probing else CircuitState.OPEN
            assert self.breaker.state is state


TestCircuit = Circuit.TestCase
TestCircuit.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_who_only_wants_to_know_claims_no_probe() -> None:
    """An outage of any length: one call a tick is worth sending there, all others are not."""
    breaker = CircuitBreaker(0.0, CircuitKnobs(failures_to_open=1, probe_every_s=5.0))
    assert breaker.would_allow(0.0)
    breaker.failure(0.0, CallFault.SERVER)
    for tick in range(1, 20):
        assert not breaker.would_allow(5.0 * tick - 0.1)
        assert breaker.would_allow(5.0 * tick)
        assert breaker.would_allow(5.0 * tick)
        assert breaker.allow(5.0 * tick)
        assert not breaker.would_allow(5.0 * tick + 0.1), "its probe is out"
        breaker.failure(5.0 * tick + 0.2, CallFault.SERVER)

"""One agent's refusal is everybody's: windows, their one probe, the ramp after them, and what each kind of refusal moves."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.policy.learned_limit import FIRST_TRIAL_TICKS
from coordinator.policy.upstream_limit import (
    BLINK_S,
    EARLY,
    FULL,
    GO,
    LONGEST_BLIND_LIMIT_S,
    LONGEST_BLIND_S,
    LONGEST_LIMIT_S,
    LONGEST_WINDOW_S,
    RAMP_S,
    HeldBy,
    RefusalKind,
    UpstreamLimit,
    kind_of_429,
)

ANTHROPIC = '{"type":"error","error":{"type":"rate_limit_error","message":"%s"},"request_id":"req_1"}'
GOOGLE = (
    '{"error":{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.",'
    '"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":'
    '[{"quotaId":"%s"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"%s"}]}}'
)
OPENAI = '{"error":{"message":"%s","type":"%s","param":null,"code":"%s"}}'


@pytest.mark.parametrize(
    ("headers", "message", "kind"),
    [
        (
            {"retry-after": "8"},
            ANTHROPIC
            % "Number of concurrent connections has exceeded your rate limit. Please try again later or contact sales at https://www.anthropic.com/contact-sales to discuss your options for a rate limit increase.",
            RefusalKind.CONCURRENCY,
        ),
        ({}, ANTHROPIC % "Rate limited", RefusalKind.RATE),
        (
            {},
            ANTHROPIC % "This request would exceed your account's rate limit. Please try again later.",
            RefusalKind.RATE,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-tokens-remaining": "16000",
                "retry-after": "14",
            },
            ANTHROPIC % "Number of request tokens has exceeded your per-minute rate limit",
            RefusalKind.RATE,
        ),
        (
            {
                "anthropic-ratelimit-unified-representative-claim": "five_hour",
                "anthropic-ratelimit-unified-reset": "1790812800",
                "anthropic-ratelimit-unified-status": "rejected",
                "retry-after": "60",
            },
            ANTHROPIC % "This request would exceed your account's rate limit. Please try again later.",
            RefusalKind.USAGE,
        ),
        (
            {"anthropic-ratelimit-unified-status": "allowed", "retry-after": "3"},
            ANTHROPIC % "Rate limited",
            RefusalKind.RATE,
        ),
        ({"retry-after": "7999"}, ANTHROPIC % "Rate limited", RefusalKind.USAGE),
        ({}, ANTHROPIC % "You have reached your workspace spend limit", RefusalKind.USAGE),
        ({}, "Claude AI usage limit reached|1762952400", RefusalKind.USAGE),
        (
            {},
            OPENAI
            % (
                "You exceeded your current quota, please check your plan and billing details.",
                "insufficient_quota",
                "insufficient_quota",
            ),
            RefusalKind.USAGE,
        ),
        ({}, '{"error":{"type":"usage_limit_reached","resets_in_seconds":7200}}', RefusalKind.USAGE),
        (
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "8.64s"},
            OPENAI
            % (
                "Rate limit reached for gpt-6-luna in organization org-x on requests per min (RPM): Limit 500. Please try again in 120ms. You can increase your rate limit by adding a payment method to your account at https://platform.openai.com/account/billing.",
                "requests",
                "rate_limit_exceeded",
            ),
            RefusalKind.RATE,
        ),
        (
            {"retry-after": "1"},
            "Requests have exceeded token rate limit of your current pricing tier. Please go here: https://aka.ms/oai/quotaincrease",
            RefusalKind.RATE,
        ),
        (
            {},
            "You exceeded your current quota, please check your plan and billing details. Please retry in 22.6s.",
            RefusalKind.RATE,
        ),
        ({"retry-after": "20"}, "You exceeded your current quota", RefusalKind.RATE),
        ({}, GOOGLE % ("GenerateContentInputTokensPerModelPerMinute-FreeTier", "26s"), RefusalKind.RATE),
        ({}, GOOGLE % ("GenerateContentInputTokensPerModelPerMinute-FreeTier", ""), RefusalKind.RATE),
        ({}, GOOGLE % ("SomethingElse", "26s"), RefusalKind.RATE),
        ({}, GOOGLE % ("SomethingElse", "21599.960323804s"), RefusalKind.USAGE),
        ({}, GOOGLE % ("SomethingElse", ""), RefusalKind.USAGE),
        ({}, GOOGLE % ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "36s"), RefusalKind.USAGE),
        (
            {},
            '{"error":{"message":"Resource has been exhausted (e.g. check quota).","status":"RESOURCE_EXHAUSTED"}}',
            RefusalKind.RATE,
        ),
        ({}, "No capacity available for model gemini-3-flash-preview on the server", RefusalKind.RATE),
        ({}, "Your prepayment credits are depleted.", RefusalKind.USAGE),
        ({}, "Your project has exceeded its monthly spending cap.", RefusalKind.USAGE),
        ({}, "You exceeded your usage limit. Try again in 3 hours.", RefusalKind.USAGE),
        ({"x-ratelimit-remaining-tokens": "0"}, "over the quota of this minute", RefusalKind.RATE),
        ({"x-ratelimit-remaining-tokens": "-1"}, "over your quota", RefusalKind.USAGE),
        ({}, "Max parallel request limit reached", RefusalKind.CONCURRENCY),
        (
            {"rate_limit_type": "max_parallel_requests", "retry-after": "60"},
            "Rate limit exceeded",
            RefusalKind.CONCURRENCY,
        ),
        ({}, "the waiting queue is full", RefusalKind.CONCURRENCY),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", RefusalKind.RATE),
        ({}, "", RefusalKind.RATE),
    ],
)
def test_the_kinds_of_429(headers: dict[str, str], message: str, kind: RefusalKind) -> None:
    assert kind_of_429(headers, message) is kind


def storm(limit: UpstreamLimit, now: float) -> list[int]:
    """Everybody wants to start now: the turns of those who may."""
    turns = []
    while limit.may_start(now) == GO and len(turns) < 1000:
        turns.append(limit.began(now))
    return turns


def starts(limit: UpstreamLimit, begin: float, end: float) -> list[float]:
    """A crowd waits that asks again when it is told to: when its calls start."""
    at, now = [], begin
    while now < end and len(at) < 2000:
        wait = limit.may_start(now)
        if wait == GO:
            limit.began(now)
            at.append(now)
        elif wait == FULL:
            break
        else:
            now += max(wait, 1e-9)
    return at


def test_a_new_one_takes_all_that_it_is_allowed_to() -> None:
    limit = UpstreamLimit(max_concurrency=12)
    assert len(storm(limit, 0.0)) == 12
    assert (limit.may_start(0.0), limit.held_by) == (FULL, HeldBy.LIMIT)
    assert limit.why(0.0) == "12 calls are under way, and it takes 12"
    limit.ended()
    assert (limit.may_start(0.0), limit.held_by, limit.why(0.0)) == (GO, HeldBy.NOTHING, "")
    assert len(storm(UpstreamLimit(), 0.0)) == 1000


def test_a_concurrency_refusal_sets_the_limit_and_closes_nothing() -> None:
    limit = UpstreamLimit()
    storm(limit, 0.0)
    while limit.in_flight > 12:
        limit.concurrency_refused(0.1, limit.in_flight - 1, 30.0)
        limit.ended()
    assert (limit.limit, limit.closed_until, limit.pace_per_s) == (12, 0.0, math.inf)
    limit.ended()
    assert len(storm(limit, 0.2)) == 1


def test_where_others_hold_all_places_a_pause_is_kept_and_one_call_is_tried() -> None:
    limit = UpstreamLimit()
    limit.began(0.0)
    limit.concurrency_refused(0.1, 0, 20.0)
    limit.ended()
    assert (limit.limit, limit.closed_until) == (1, 20.1)
    assert limit.may_start(0.2) == pytest.approx(20 * EARLY - 0.1)


def test_a_rate_refusal_sets_the_pace_and_closes_the_window_but_leaves_the_limit() -> None:
    limit = UpstreamLimit(max_concurrency=12)
    storm(limit, 0.0)
    limit.rate_refused(0.5, 20.0)
    limit.ended()
    assert (limit.limit, limit.closed_until, limit.in_flight) == (12, 20.5, 11)
    assert limit.pace_per_s == pytest.approx(0.85 * 11)
    assert limit.may_start(1.0) == pytest.approx(5.5)
    assert limit.held_by is HeldBy.CLOSED
    assert limit.why(1.5) == "closed for another 19 s: too many calls in a short time"


def test_a_closed_window_is_probed_once_and_opens_when_the_probe_is_accepted() -> None:
    limit = UpstreamLimit()
    before = storm(limit, 0.0)[0]
    limit.rate_refused(0.0, 20.0)
    assert not limit.accepted(1.0, before), "it was sent before the window closed"
    assert limit.may_start(5.99) == pytest.approx(0.01)
    (probe,) = storm(limit, 6.0)
    assert limit.may_start(7.0) == pytest.approx(13.0)
    assert limit.accepted(8.0, probe)
    assert not limit.accepted(8.0, probe), "it is open already"
    assert len(starts(limit, 8.0, 9.0)) == 3


def test_a_probe_that_is_refused_leaves_it_closed_to_its_end() -> None:
    limit = UpstreamLimit()
    storm(limit, 0.0)
    limit.rate_refused(0.0, 20.0)
    pace = limit.pace_per_s
    storm(limit, 6.0)
    for tick in range(3):
        limit.tick(6.0 + tick / 10)
    grown = limit.pace_per_s
    limit.rate_refused(6.5, 14.0)
    assert starts(limit, 6.5, 20.49) == []
    assert limit.closed_until == 20.5
    assert limit.pace_per_s == grown >= pace, "the probe says nothing about the pace"
    assert len(starts(limit, 20.5, 21.5)) == 3


def test_short_windows_have_no_probe() -> None:
    limit = UpstreamLimit()
    limit.rate_refused(0.0, 2.0)
    assert limit.may_start(0.7) == pytest.approx(1.3)


def test_refusals_of_what_was_sent_before_make_a_window_longer_and_never_shorter() -> None:
    limit = UpstreamLimit()
    turns = storm(limit, 0.0)
    limit.rate_refused(0.1, 10.0)
    limit.rate_refused(0.2, 5.0)
    assert limit.closed_until == 10.1
    limit.rate_refused(0.3, 12.0)
    assert limit.closed_until == 12.3
    assert limit.began(5.0) == turns[0] + 1, "it is one window all the time, and this is its probe"
    assert starts(limit, 5.1, 12.2) == []


def test_after_a_window_the_fleet_starts_ever_faster_but_never_at_once() -> None:
    limit = UpstreamLimit()
    limit.server_failed(0.0, 30.0)
    began = starts(limit, 100.0, 106.0)
    per_second = [len([at for at in began if 100 + s <= at < 101 + s]) for s in range(6)]
    assert per_second[0] == 3
    assert all(one < two for one, two in itertools.pairwise(per_second))
    assert limit.why(began[3] + 1e-6) == "starting up again after a pause"
    assert len(storm(limit, 100.0 + RAMP_S + 1)) == 1000


def test_a_ramp_never_passes_the_pace() -> None:
    limit = UpstreamLimit(requests_per_s=4.0)
    limit.server_failed(0.0, 30.0)
    began = starts(limit, 30.0, 60.0)
    assert 3 <= len([at for at in began if at < 31]) <= 4
    assert len(began) <= 4 * 30 + 1
    gaps = [two - one for one, two in itertools.pairwise(began)]
    assert min(gaps) >= 0.2499
    limit.tick(60.0)
    assert limit.why(60.0) == "paced to 4 calls a second"


def test_a_blink_needs_no_ramp_where_there_is_a_pace() -> None:
    limit = UpstreamLimit(requests_per_s=20.0)
    limit.server_failed(0.0, BLINK_S / 2)
    assert len(starts(limit, 0.5, 1.49)) == 20
    limit = UpstreamLimit()
    limit.server_failed(0.0, BLINK_S / 2)
    assert len(starts(limit, 0.5, 1.5)) == 3


def test_a_pace_lets_a_tick_of_idle_time_be_made_up_for() -> None:
    limit = UpstreamLimit(requests_per_s=2.0)
    assert len(storm(limit, 0.0)) == 1 + 2 * 5
    assert limit.may_start(0.0) == pytest.approx(0.5)
    assert limit.held_by is HeldBy.PACE
    assert len(starts(limit, 0.0, 10.0)) == 19


def test_a_usage_limit_closes_until_its_reset_without_a_probe() -> None:
    limit = UpstreamLimit()
    limit.rate_refused(0.0, 7200.0)
    assert limit.closed_until == 7200.0
    assert limit.pace_per_s == math.inf
    assert limit.may_start(3600.0) == 3600.0
    assert limit.why(0.0) == "closed for another 7200 s: a usage limit is reached"
    assert len(starts(limit, 7200.0, 7201.0)) == 3
    limit.usage_refused(8000.0, 5 * 86_400.0)
    assert limit.closed_until == 8000.0 + LONGEST_LIMIT_S


def test_a_usage_limit_takes_the_probe_from_a_window_that_has_one() -> None:
    limit = UpstreamLimit()
    limit.rate_refused(0.0, 20.0)
    limit.usage_refused(1.0, 3600.0)
    assert starts(limit, 1.0, 3600.9) == []


def test_windows_that_nobody_measures_grow_until_something_is_accepted() -> None:
    def lengths(refuse: str, count: int) -> list[float]:
        limit, now, seen = UpstreamLimit(), 0.0, []
        for _ in range(count):
            getattr(limit, refuse)(now)
            seen.append(limit.closed_until - now)
            now = limit.closed_until
        limit.accepted(now, limit.began(now))
        getattr(limit, refuse)(now)
        assert limit.closed_until - now == seen[0]
        return seen

    assert lengths("rate_refused", 8) == [1, 2, 4, 8, 16, 32, LONGEST_BLIND_S, LONGEST_BLIND_S]
    assert lengths("usage_refused", 6) == [60, 120, 240, 480, LONGEST_BLIND_LIMIT_S, LONGEST_BLIND_LIMIT_S]


def test_a_pause_that_does_not_help_is_not_believed_for_ever() -> None:
    limit, now = UpstreamLimit(), 0.0
    seen = []
    for _ in range(5):
        limit.rate_refused(now, 0.5)
        seen.append(limit.closed_until - now)
        now = limit.closed_until
    assert seen == pytest.approx([0.5, 0.5, 4, 8, 16])


@pytest.mark.parametrize(("said", "kept"), [(0.001, 0.1), (1e9, LONGEST_WINDOW_S), (7.0, 7.0)])
def test_no_window_is_longer_or_shorter_than_makes_sense(said: float, kept: float) -> None:
    limit = UpstreamLimit()
    limit.server_failed(0.0, said)
    assert limit.closed_until == pytest.approx(kept)


def test_failures_move_nothing_and_close_only_when_they_ask_for_it() -> None:
    limit = UpstreamLimit(max_concurrency=4)
    storm(limit, 0.0)
    for _ in range(50):
        limit.server_failed(1.0)
    assert (limit.limit, limit.pace_per_s, limit.closed_until) == (4, math.inf, 0.0)
    limit.server_failed(1.0, 10.0)
    assert (limit.limit, limit.pace_per_s, limit.closed_until) == (4, math.inf, 11.0)


def test_headers_that_say_that_nothing_is_left_close_before_the_refusal() -> None:
    limit = UpstreamLimit()
    limit.told(0.0, 1, 10.0)
    limit.told(0.0, 0, 0.0)
    assert limit.may_start(0.0) == GO
    limit.told(0.0, 0, 10.0)
    assert limit.may_start(0.0) == pytest.approx(3.0)
    assert limit.pace_per_s == math.inf
    limit.resume(5.0)
    limit.told(5.0, 0, 8 * 3600.0)
    assert limit.closed_until == 5.0 + LONGEST_WINDOW_S


def test_an_operator_pauses_and_resumes() -> None:
    limit = UpstreamLimit()
    limit.pause("new key on its way")
    assert (limit.may_start(0.0), limit.held_by, limit.why(0.0)) == (FULL, HeldBy.PAUSED, "paused: new key on its way")
    limit.usage_refused(1.0, 3600.0)
    limit.resume(10.0)
    assert len(starts(limit, 10.0, 11.0)) == 3
    limit = UpstreamLimit(requests_per_s=20.0)
    limit.server_failed(10.0, BLINK_S / 2)
    limit.resume(10.1)
    assert len(starts(limit, 10.1, 11.1)) == 3, "as if it had been closed for long"
    limit.pause("")
    assert limit.why(11.0) == "paused: by an operator"


def test_one_more_is_tried_after_a_while_at_the_limit() -> None:
    limit = UpstreamLimit()
    storm(limit, 0.0)
    while limit.in_flight > 8:
        limit.concurrency_refused(0.0, limit.in_flight - 1)
        limit.ended()
    for tick in range(FIRST_TRIAL_TICKS):
        limit.tick(5.0 * tick)
        assert limit.may_start(5.0 * tick) == FULL
    limit.tick(300.0)
    assert len(storm(limit, 300.0)) == 1
    limit.concurrency_refused(300.1, 8)
    limit.ended()
    assert limit.limit == 8


def test_a_limit_is_tried_when_it_is_met_now_and_not_because_it_was_once() -> None:
    limit = UpstreamLimit()
    storm(limit, 0.0)
    while limit.in_flight > 8:
        limit.concurrency_refused(0.0, limit.in_flight - 1)
        limit.ended()
    while limit.in_flight:
        limit.ended()
    for tick in range(3 * FIRST_TRIAL_TICKS):
        limit.tick(5.0 * tick)
    assert limit.limit == 8
    assert len(storm(limit, 900.0)) == 8
    limit.ended()
    limit.tick(900.0)
    assert limit.limit == 9, "eight were under way at once since the last tick"


def test_a_pace_that_is_forgotten_holds_nobody() -> None:
    limit = UpstreamLimit()
    storm(limit, 0.0)
    limit.rate_refused(0.0, 1.0)
    now = 1.0
    limit.began(now)
    while limit.pace_per_s < math.inf:
        now += 5.0
        limit.tick(now)
    limit.began(now)
    limit.tick(now)
    assert len(storm(limit, now)) == 1000


class Upstreams(RuleBasedStateMachine):
    """Any order of starts, outcomes, clocks and operators. The model knows windows and starts only by what it sees."""

    @initialize(
        most=st.sampled_from([0, 1, 3, 50]), per_s=st.sampled_from([0.0, 0.5, 10.0]), tick_s=st.sampled_from([1.0, 5.0])
    )
    def begin(self, most: int, per_s: float, tick_s: float) -> None:
        self.limit = UpstreamLimit(max_concurrency=most, requests_per_s=per_s, tick_s=tick_s)
        self.most = most or 1 << 30
        self.fastest = per_s or math.inf
        self.now = 1000.0
        self.flying: list[int] = []
        self.paused = False
        self.window = 0.0
        """End of the closed window as last seen, 0: none."""
        self.inside = 0
        self.opened: float | None = None
        self.after = 0

    def look(self) -> None:
        """A window has begun or got longer."""
        until = self.limit.closed_until
        if until > self.now:
            if self.window <= self.now:
                self.inside = 0
            self.window = until
            self.opened = None

    def start(self) -> bool:
        closed = self.window > self.now
        pace = self.limit.pace_per_s
        wait = self.limit.may_start(self.now)
        assert wait >= 0
        if wait > 0:
            assert (self.limit.why(self.now) != "") == (self.limit.held_by is not HeldBy.NOTHING)
            return False
        assert not self.paused
        assert self.limit.in_flight < self.limit.limit
        self.flying.append(self.limit.began(self.now))
        if closed:
            self.inside += 1
            assert self.inside <= 1, "a second call in a closed window"
            return True
        if self.window and self.opened is None:
            self.opened, self.after = self.now, 0
        if self.opened is not None and self.now < self.opened + 1:
            self.after += 1
            assert self.after <= (3 if pace == math.inf else max(3, pace * 1.1 + 2)), "the fleet storms out of a window"
        return True

    @rule(count=st.integers(1, 30))
    def want(self, count: int) -> None:
        for _ in range(count):
            if not self.start():
                break

    @rule(seconds=st.one_of(st.floats(0, 2), st.floats(0, 400), st.floats(0, 30_000)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_as_told(self) -> None:
        wait = self.limit.may_start(self.now)
        if 0 < wait < FULL:
            self.now += wait
            assert self.limit.may_start(self.now) < 1e-6, "whoever comes back when told to may start"

    @rule()
    def tick(self) -> None:
        self.limit.tick(self.now)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 10**6), late=st.booleans())
    def accept(self, which: int, late: bool) -> None:
        turn = self.flying[which % len(self.flying)]
        before = self.limit.closed_until
        if self.limit.accepted(self.now, turn):
            assert before > 0
            self.window, self.opened, self.after = self.now, None, 0
        if not late:
            self.flying.remove(turn)
            self.limit.ended()

    @precondition(lambda self: self.flying)
    @rule(
        what=st.sampled_from(["concurrency", "rate", "usage", "failed", "gone"]),
        pause=st.one_of(st.just(0.0), st.floats(0.01, 400), st.floats(1, 1e6)),
        which=st.integers(0, 10**6),
    )
    def end(self, what: str, pause: float, which: int) -> None:
        limit = self.limit
        self.flying.pop(which % len(self.flying))
        calls, pace = limit.limit, limit.pace_per_s
        if what == "concurrency":
            limit.concurrency_refused(self.now, limit.in_flight - 1, pause)
            assert limit.limit <= max(limit.in_flight - 1, 1)
        elif what == "rate":
            limit.rate_refused(self.now, pause)
        elif what == "usage":
            limit.usage_refused(self.now, pause)
        elif what == "failed":
            limit.server_failed(self.now, pause)
        limit.ended()
        assert what == "concurrency" or limit.limit == calls
        assert what == "rate" or limit.pace_per_s == pace
        assert limit.pace_per_s <= pace
        self.look()

    @rule(remaining=st.integers(-1, 1), reset=st.floats(0, 1e5))
    def tell(self, remaining: int, reset: float) -> None:
        self.limit.told(self.now, remaining, reset)
        self.look()

    @rule()
    def pause(self) -> None:
        self.limit.pause("x")
        self.paused = True

    @rule()
    def resume(self) -> None:
        self.limit.resume(self.now)
        self.paused = False
        self.window, self.opened, self.after = self.now, None, 0

    @invariant()
    def within_bounds(self) -> None:
        assert 1 <= self.limit.limit <= self.most
        assert 0 < self.limit.pace_per_s <= self.fastest
        assert self.limit.in_flight == len(self.flying)
        assert self.limit.closed_until <= self.now + LONGEST_LIMIT_S


TestUpstreams = Upstreams.TestCase
TestUpstreams.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)

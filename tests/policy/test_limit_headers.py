"""Pauses as providers write them: in seconds, in milliseconds, as spans, as dates, in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.limit_headers import pause_s, used_up_s

NOW = 1_795_000_000.0  # 2026-11-18T11:06:40Z
LATER = "2026-11-18T11:07:10Z"


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({}, "", 0),
        ({"retry-after": "7"}, "", 7),
        ({"retry-after": "0.25"}, "", 0.25),
        ({"retry-after": "Wed, 18 Nov 2026 11:07:40 GMT"}, "", 60),
        ({"retry-after": "Wed, 18 Nov 2026 11:00:00 GMT"}, "", 0),
        ({"retry-after": "soon"}, "", 0),
        ({"retry-after": "-3"}, "", 0),
        ({"retry-after": "1", "retry-after-ms": "120"}, "", 0.12),
        ({}, "Rate limit reached for gpt-9. Please try again in 120ms. Visit …", 0.12),
        ({}, "Please try again in 6m0s.", 360),
        ({}, "Please try again in 1h2m3.5s.", 3723.5),
        ({}, "Please retry in 22.6s.", 22.6),
        ({}, "please try again after 20 seconds", 20),
        ({}, '{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45.837906927s"}', 45.837906927),
        ({}, '"retryDelay":"26s"', 26),
        ({}, '"retryDelay" : "26s", Please retry in 26.4s.', 26.4),
        ({}, '"retryDelay": "soon"', 0),
        ({}, '"retryDelay": "26"', 0),
        ({"retry-after": "3"}, '"retryDelay": "26s"', 3),
        ({}, '"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "retryDelay": "36s". Please retry in 36s.', 0),
        ({}, '"quota_limit":"Gemini25ProRequestsPerDay","retryDelay":"36s"', 0),
        ({}, '"quotaId": "GenerateRequestsPerMinutePerProjectPerModel", "retryDelay": "36s"', 36),
        ({}, "try again in 5 minutes", 300),
        ({}, "try again in 5 apples", 0),
        ({"retry-after": "3"}, "try again in 120ms", 3),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, "", 360),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "6m0s"}, "", 0),
        ({"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": LATER}, "", 30),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1795000060000"}, "", 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1795000060"}, "", 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "60"}, "", 60),
        ({"anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-reset": "1795003600"}, "", 3600),
        (
            {
                "anthropic-ratelimit-unified-status": "rejected",
                "anthropic-ratelimit-unified-reset": "1795003600",
                "retry-after": "5",
            },
            "",
            3600,
        ),
        (
            {
                "anthropic-ratelimit-unified-status": "allowed_warning",
                "anthropic-ratelimit-unified-reset": "1795003600",
                "retry-after": "5",
            },
            "",
            5,
        ),
        ({"anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-reset": "1", "retry-after": "5"}, "", 1),
    ],
)  # fmt: skip
def test_a_pause_is_read_in_whatever_words(headers: dict[str, str], message: str, seconds: float) -> None:
    assert pause_s(headers, message, NOW) == pytest.approx(seconds)


def test_the_limit_that_takes_longest_counts_and_only_if_nothing_is_left() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "8.5s",
        "x-ratelimit-remaining-images": "3",
        "x-ratelimit-reset-images": "1h",
    }
    assert used_up_s(headers, NOW) == 8.5
    assert used_up_s({"x-ratelimit-remaining-tokens": "0"}, NOW) == 0.0


NAMES = st.sampled_from(
    [
        "retry-after",
        "retry-after-ms",
        "anthropic-ratelimit-unified-reset",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-requests-reset",
    ]
)
VALUES = st.text(max_size=30) | st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,20})?(ms|s|m|h|d|Z)?", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES), VALUES)
def test_nothing_that_is_written_makes_it_fail_or_wait_for_ever(headers: dict[str, str], message: str) -> None:
    told = {
        **headers,
        "anthropic-ratelimit-unified-status": "rejected",
        "x-ratelimit-remaining-tokens": "0",
        "anthropic-ratelimit-requests-remaining": "0",
    }
    assert 0.0 <= pause_s(told, f"try again in {message}", NOW) <= 32 * 86_400.0

"""What follows when an attempt did not land: again, when, at whose cost, and whether with the same conversation.

Owns one invariant: every task ends, for each attempt is charged, counted as a crash or as a try, or waits for its role.
A decision is a value; ``fleet.settling`` carries it out. Chance comes in as an argument.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from coordinator.domain.attempt import Ending

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_PAUSE_S: Final = 300.0
"""Cap of the exponential back-off; longer pauses only hide a task that needs a person."""

UNCHARGED_FACTOR: Final = 5
"""No task may use more than this many times its allowed attempts, charged or not: nothing loops for ever."""

_JITTER: Final = 0.25


class Session(enum.Enum):
    """Whether the next attempt goes on with the conversation of the one that ended. The work itself is never lost by
    starting anew: it is in a ref that the next brief names."""

    ANEW = enum.auto()
    ONCE = enum.auto()
    """Not if the one that ended went on with it already: then the conversation may be what fails."""
    SAME = enum.auto()


class Fate(enum.Enum):
    AGAIN = enum.auto()
    FAILED = enum.auto()
    HELD = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``charged``: it uses up one of the task's attempts. ``held``: going on is a person's decision. ``pause`` multiplies
    the first back-off. ``patient``: it waits for what its role lacks, however long, and is not counted as a try."""

    charged: bool = True
    held: bool = False
    patient: bool = False
    pause: float = 1.0
    session: Session = Session.SAME


_NOBODY: Final = Rule(charged=False)

RULES: Final[Mapping[Ending, Rule]] = MappingProxyType(
    {
        # ended for good before this is asked; here so that the table is whole
        Ending.CANCELLED: Rule(session=Session.ANEW),
        Ending.LANDED: Rule(session=Session.ANEW),
        # the target moved: what the conversation knows of the files is not true any more
        Ending.CONFLICT: Rule(charged=False, session=Session.ANEW),
        # the conversation is what was too long
        Ending.CONTEXT_OVERFLOW: Rule(session=Session.ANEW),
        # charged unless it was a quick death, which ``crash_loop`` counts
        Ending.CRASHED: Rule(session=Session.ONCE),
        Ending.DELETED_TESTS: Rule(),
        # the same conversation asks for the same again
        Ending.DENIED: Rule(session=Session.ANEW),
        # it believes that it is done; asked again it says so again
        Ending.EMPTY: Rule(session=Session.ANEW),
        Ending.FAILED: Rule(session=Session.ONCE),
        # the test's complaint is the next turn of the same conversation, and the cheapest
        Ending.GATE_FAILED: Rule(),
        # the role is closed until somebody logs in (``policy.breaker``)
        Ending.LOGIN_MISSING: Rule(charged=False, patient=True),
        # going on would be going on in the loop
        Ending.LOOPING: Rule(session=Session.ANEW),
        Ending.OUTSIDE_PATHS: Rule(),
        # more money is a person's decision; the conversation waits for it
        Ending.OVER_BUDGET: Rule(charged=False, held=True),
        # a long conversation may be what filled the memory; a pause lets others give theirs back
        Ending.OVER_MEMORY: Rule(session=Session.ANEW, pause=4.0),
        Ending.OVER_TIME: Rule(),
        Ending.OVER_TURNS: Rule(),
        # the role is closed until the limit is reset (``policy.breaker``)
        Ending.RATE_LIMITED: Rule(charged=False, patient=True),
        # another owner has taken over and has a conversation of its own
        Ending.STALE: Rule(charged=False, session=Session.ANEW),
        # what did not answer needs a little while
        Ending.STALLED: Rule(session=Session.ONCE, pause=4.0),
        Ending.STOPPED: _NOBODY,
        # exit code 75, or its role is being probed
        Ending.UNAVAILABLE: Rule(charged=False, session=Session.ONCE, pause=2.0),
        Ending.UNSTARTED: Rule(session=Session.ONCE),
    }
)
"""(A gate that cannot look ends no attempt: it waits in the line.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What counts of a task's history, the attempt that ended not included, except in ``tries``.

    ``attempts`` are those charged (-1: not even this one counts), ``crashes`` the quick deaths in a row right before it,
    ``tries`` all since the task was last started anew.
    """

    attempts: int = 0
    crashes: int = 0
    tries: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """``after_s`` is meaningful when ``fate`` is AGAIN; ``past`` is what is to be remembered; ``resume``: with the same
    conversation, when the agent has one."""

    after_s: float = 0.0
    fate: Fate
    past: Past
    resume: bool
    why: str


def decide(
    ending: Ending,
    past: Past,
    *,
    backoff_s: float,
    chance: float,
    crash_loop: int,
    max_attempts: int,
    quick: bool = False,
    resumed: bool = False,
) -> RetryDecision:
    """Decide about an attempt that ended as ``ending``. ``resumed``: it had gone on with an earlier conversation.

    ``quick`` deaths (a crash soon after the start) are not charged: what dies at once has not tried. ``crash_loop`` of
    them in a row hold the task; anything else in between starts their count anew. The pause is
    ``backoff_s · rule.pause · 2^(n-1)``, capped, with ±25 % jitter ("equal jitter", AWS Architecture Blog 2015;
    ``chance`` is uniform in [0, 1)) so that tasks that failed together do not come back together.
    """
    rule = RULES[ending]
    died = quick and ending is Ending.CRASHED
    charged = max(past.attempts + (rule.charged and not died), 0)
    uncounted = died or rule.patient
    after = Past(
        attempts=charged,
        crashes=past.crashes + 1 if died else 0,
        tries=max(past.tries - uncounted, 0),
    )
    resume = rule.session is Session.SAME or (rule.session is Session.ONCE and not resumed)
    fate, why = _fate(rule, after, died=died, uncounted=uncounted, crash_loop=crash_loop, max_attempts=max_attempts)
    n = after.crashes if died else charged
    pause = min(backoff_s * rule.pause * 2.0 ** min(max(n - 1, 0), 60), LONGEST_PAUSE_S)
    pause *= 1 - _JITTER + 2 * _JITTER * chance
    return RetryDecision(
        after_s=pause if fate is Fate.AGAIN else 0.0,
        fate=fate,
        past=after,
        resume=resume and fate is not Fate.FAILED,
        why=why,
    )


def _fate(
    rule: Rule, after: Past, *, died: bool, uncounted: bool, crash_loop: int, max_attempts: int
) -> tuple[Fate, str]:
    if rule.held:
        return Fate.HELD, "going on is your decision"
    if died and after.crashes >= crash_loop:
        return Fate.HELD, f"crash loop, {after.crashes} times in a row soon after the start"
    if rule.charged and not died and after.attempts >= max_attempts:
        plural = "" if max_attempts == 1 else "s"
        return Fate.FAILED, f"{after.attempts} of {max_attempts} attempt{plural} used"
    if not uncounted and after.tries >= max_attempts * UNCHARGED_FACTOR:
        return Fate.FAILED, f"{after.tries} attempts in all, none landed"
    if died:
        return Fate.AGAIN, f"crash {after.crashes} of {crash_loop} in a row"
    if rule.patient:
        return Fate.AGAIN, "not charged"
    return Fate.AGAIN, f"attempt {after.attempts} of {max_attempts}"

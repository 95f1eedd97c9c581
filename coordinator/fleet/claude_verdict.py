"""What the last word of Claude Code amounts to: an outcome with a named reason, and a sentence for people.

Owns one invariant: what is wrong with the account, the provider or the conversation is never taken for the task's fault. It
is computed from values; the words and statuses in it are those that the program was seen to use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from coordinator.domain.attempt import Outcome, Reason
from coordinator.fleet.call_failure import LONGEST, OURS, failure_in, for_people, said_of
from coordinator.fleet.driver import Ended, Said, by_exit

_REFUSALS_TOLD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWord:
    """The last ``result`` line. ``error`` is the kind of the call's failure, ``status`` its HTTP status (0: none)."""

    error: str = ""
    failed: bool
    status: int = 0
    stop: str = ""
    subtype: str = ""
    terminal: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What else was seen on the way. ``refused`` are calls that no permission covered, ``touched``: a call was answered that
    may have changed a file; ``unwelcome``: the newest call was refused for its key; ``reset_at``: when a used-up limit is
    there again."""

    gateway: bool = False
    now: float = 0.0
    refused: tuple[str, ...] = ()
    reset_at: float = 0.0
    touched: bool = False
    unwelcome: bool = False

    @property
    def refusals(self) -> str:
        told = ", ".join(dict.fromkeys(what[:100] for what in self.refused[:_REFUSALS_TOLD]))
        more = len(self.refused) - _REFUSALS_TOLD
        return f"refused: {told}" + (f" and {more} more" if more > 0 else "") if told else ""

    def login(self, said: str) -> Said:
        """With the remedy in the place of the program's own (``/login``), which is for somebody at a keyboard."""
        said = _OWN_REMEDY.sub("", said) or "it is not logged in"
        remedy = "set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN (from `claude setup-token`)"
        if self.gateway:
            remedy = "set ANTHROPIC_API_KEY"
        where = f"{remedy} where the coordinator is started, and restart it"
        summary = said if OURS in said else f"{said}; {where}"
        return Said(outcome=Outcome.FAILED, reason=Reason.LOGIN_MISSING, summary=summary[:LONGEST])


def verdict(last: LastWord, trouble: Trouble) -> Said:
    """How an attempt ended that has said its last word."""
    text = _for_people(last.text)
    if not last.failed and last.subtype == "success":
        if not trouble.refused:
            return Said(outcome=Outcome.DONE, summary=text)
        summary = f"{trouble.refusals}; {text}"[:LONGEST]
        # what git says of a call that was answered is the daemon's to look at
        outcome = Outcome.DONE if trouble.touched else Outcome.FAILED
        return Said(outcome=outcome, reason=Reason.DENIED, summary=summary)
    reason = _SUBTYPES.get(last.subtype) or _TERMINALS.get(last.terminal) or _by_words(text)
    if reason is None:
        return _of_call(last, text, trouble)
    return Said(outcome=Outcome.FAILED, reason=reason, summary=text or reason.replace("_", " "))


_SUBTYPES: Final = MappingProxyType({"error_max_budget_usd": Reason.OVER_BUDGET, "error_max_turns": Reason.OVER_TURNS})
_TERMINALS: Final = MappingProxyType(
    {
        "budget_exhausted": Reason.OVER_BUDGET,
        "image_error": Reason.CONTEXT_OVERFLOW,  # 413: what has gathered in the conversation is too much for one call
        "max_turns": Reason.OVER_TURNS,
        "prompt_too_long": Reason.CONTEXT_OVERFLOW,
    }
)
_WORDS: Final = (
    (re.compile(r"compaction failed|prompt is too long", re.IGNORECASE), Reason.CONTEXT_OVERFLOW),
    # its folder was cleaned: the next attempt begins a conversation of its own
    (re.compile(r"no conversation found", re.IGNORECASE), Reason.UNAVAILABLE),
)
_OWN_REMEDY: Final = re.compile(r"\s*[·.]?\s*Please run /login\.?", re.IGNORECASE)
_LOGIN: Final = re.compile(r"not logged in|please run /login|invalid api key", re.IGNORECASE)
_STAMP: Final = re.compile(r"\|[1-9]\d{9}\b")
"""The reset of a limit as one release says it, behind the sentence."""
_STATUSES: Final = MappingProxyType({"authentication_failed": 401, "rate_limit": 429})
"""Kinds of failure that are told without their status."""


def _for_people(text: str) -> str:
    """Without a number that only programs read."""
    return for_people(_STAMP.sub("", text))


def _by_words(text: str) -> Reason | None:
    return next((reason for words, reason in _WORDS if words.search(text)), None)


def _of_call(last: LastWord, text: str, trouble: Trouble) -> Said:
    """A call of a model failed for good, and with it the conversation."""
    summary = text or last.subtype.replace("_", " ")
    if last.stop == "refusal":
        return Said(outcome=Outcome.FAILED, reason="refusal", summary=summary)
    if last.error == "max_output_tokens":
        return Said(outcome=Outcome.FAILED, reason="output_limit", summary=summary)
    status = last.status or _STATUSES.get(last.error, 0)
    said = said_of(
        failure_in(last.text, status=status, kind=last.error), gateway=trouble.gateway, remedy="", now=trouble.now
    )
    if said.reason == Reason.LOGIN_MISSING:
        return trouble.login(text or "its key was refused")
    if said.reason == Reason.RATE_LIMITED:
        return replace(said, retry_at=trouble.reset_at or said.retry_at, summary=summary)
    if said.reason == "error":
        away = last.terminal == "api_error"
        said = replace(said, reason=Reason.UNAVAILABLE if away else (last.terminal or last.subtype or "error")[:40])
    return replace(said, summary=summary)


def unfinished(ended: Ended, trouble: Trouble) -> Said:
    """How an attempt ended that has not said its last word."""
    code = ended.code or 0
    if code in _SIGNALLED:
        return by_exit(replace(ended, signal=code - 128))
    if trouble.unwelcome or _LOGIN.search(ended.log):
        return trouble.login(ended.last or "its key was refused")
    if code and _MISUSED.search(ended.log):
        return Said(outcome=Outcome.UNSTARTED, exit_code=code, reason="options", summary=ended.last)
    reason = _by_words(ended.log) if code else None
    if reason is not None:
        return Said(outcome=Outcome.FAILED, exit_code=code, reason=reason, summary=ended.last)
    if ended.signal is None and not code:
        summary = f"it ended without its last word: {ended.last}".rstrip(": ")
        return Said(outcome=Outcome.FAILED, exit_code=ended.code, reason="no_result", summary=summary)
    return by_exit(ended)


_SIGNALLED: Final = (129, 130, 131, 134, 137, 139, 143)
"""Exit codes of a program that tells a signal on."""
_MISUSED: Final = re.compile(r"^error: |cannot be used with root", re.IGNORECASE | re.MULTILINE)

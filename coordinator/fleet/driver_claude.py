"""Role ``claude``: how Claude Code is started without anybody at the keyboard.

Owns one invariant: nothing but the order decides what the program does. Neither a repository's own settings, hooks and
servers nor the user's nor an earlier task's configuration reach it. What it prints is understood in ``claude_reader``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.fleet.claude_reader import ClaudeReader
from coordinator.fleet.driver import PROVIDER_VARIABLES, Launch, gateway_variables

if TYPE_CHECKING:
    from coordinator.domain.attempt import Order
    from coordinator.fleet.driver import Reader

TOOLS: Final = ("Bash", "Edit", "NotebookEdit", "Read", "Write")
"""Allowed without asking when the card names none: what the work needs. What is not allowed is refused, never asked."""

_MODE: Final = "dontAsk"
_BYPASS: Final = "bypassPermissions"

_NEVER: Final = ("CronCreate", "EnterWorktree", "ScheduleWakeup")
"""Tools that no mode refuses and that lead away: into a tree that nobody collects, or to a time when nobody waits."""

_BASH_DEFAULT_S: Final = 600.0
"""What a command may take that declares nothing. The program's own 2 minutes end most test suites and builds."""
_BASH_MOST_S: Final = 3600.0

_SESSION: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class ClaudeDriver:
    """``command`` of the card is the program; arguments of yours stay before ours."""

    def launch(self, order: Order, *, python: str) -> Launch:
        argv = tuple(python if word == "{python}" else word for word in order.command)
        return Launch(
            argv=(*argv, *_FIXED, *_session(order), *_permissions(order), *_limits(order)),
            drop=PROVIDER_VARIABLES if order.gateway else (),
            env=_environment(order),
            transcript=True,
        )

    def reader(self, order: Order) -> Reader:
        default_s, most_s = bash_limits(order)
        return ClaudeReader(bash_default_s=default_s, bash_most_s=most_s, gateway=bool(order.gateway))


_FIXED: Final = (
    "-p",
    "--output-format",
    "stream-json",
    "--verbose",
    "--setting-sources",
    "",
    "--strict-mcp-config",
)


def _session(order: Order) -> tuple[str, ...]:
    """An id that an agent wrote may be anything; what is no id must not become an option."""
    if _SESSION.fullmatch(order.resume):
        return ("--resume", order.resume)
    return ("--session-id", order.session) if _SESSION.fullmatch(order.session) else ()


def _permissions(order: Order) -> tuple[str, ...]:
    mode = order.permission_mode or _MODE
    allowed = () if mode == _BYPASS else ("--allowedTools", *(order.tools or TOOLS))
    return ("--permission-mode", mode, *allowed, "--disallowedTools", *_NEVER)


def _limits(order: Order) -> tuple[str, ...]:
    limits: list[str] = []
    if order.max_turns:
        limits.append(f"--max-turns={order.max_turns}")
    if order.budget_usd:
        limits.append(f"--max-budget-usd={order.budget_usd:.6f}")
    if order.model:
        limits.append(f"--model={order.model}")
    return tuple(limits)


def bash_limits(order: Order) -> tuple[float, float]:
    """Seconds that a shell command of the agent's gets when it asks for none, and the most that it can ask for."""
    most_s = min(_BASH_MOST_S, max(order.timeout_s, 1.0))
    chosen = dict(order.env)
    most_s = _milliseconds(chosen.get("BASH_MAX_TIMEOUT_MS", ""), most_s)
    return _milliseconds(chosen.get("BASH_DEFAULT_TIMEOUT_MS", ""), min(_BASH_DEFAULT_S, most_s)), most_s


def _milliseconds(text: str, otherwise_s: float) -> float:
    return int(text) / 1000 if text.isascii() and text.isdecimal() and 0 < len(text) < 12 else otherwise_s


def _environment(order: Order) -> dict[str, str]:
    """The card and the task may change how it works, not where it keeps things and whom it calls."""
    default_s, most_s = bash_limits(order)
    env = {
        "BASH_DEFAULT_TIMEOUT_MS": f"{default_s * 1000:.0f}",
        "BASH_MAX_TIMEOUT_MS": f"{most_s * 1000:.0f}",
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
        # What runs on in the background outlives the last word, and then it is ended with it.
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        # The state of git and how to commit would stand in front of everything else: without it prompts of several agents
        # begin alike, so that providers' caches serve them all. What is not committed is committed for the agent.
        "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "TERM": "dumb",
    }
    if order.home:
        env["HOME"] = order.home
    env |= dict(order.env)
    if order.home:
        env |= {"CLAUDE_CODE_TMPDIR": f"{order.home}/temporary", "CLAUDE_CONFIG_DIR": f"{order.home}/.claude"}
    if order.permission_mode == _BYPASS:
        env["IS_SANDBOX"] = "1"  # as root it refuses the mode without it
    if order.gateway:
        env |= gateway_variables(order) | {"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1"}
    return env

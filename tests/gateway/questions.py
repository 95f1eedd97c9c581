"""Calls of three agents that ask the same, each in a folder of its own; and a clock that is set by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from coordinator.gateway.agent_paths import AgentPaths
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.question import Question
from coordinator.gateway.sameness import Sameness, sense

ANN, BEN, CAI = ("ann-7", 1), ("ben-12", 1), ("cai-3", 2)
OPENAI = Dialect.OPENAI_CHAT


class HandClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


def worktree(claim: tuple[str, int]) -> str:
    return f"/srv/worktrees/{claim[0]}-{claim[1]}"


def body(claim: tuple[str, int], said: str = "Say hello", **more: object) -> bytes:
    session = {"user_id": json.dumps({"session_id": f"s-{claim}"})}
    messages = [{"role": "user", "content": f"You are in {worktree(claim)}. {said}"}]
    return json.dumps({"model": "m", "max_tokens": 9, "messages": messages, "metadata": session, **more}).encode()


def question(claim: tuple[str, int], data: bytes | None = None, **more: Any) -> Question:
    dialect = more.get("dialect", Dialect.ANTHROPIC_MESSAGES)
    plain: dict[str, Any] = {
        "claim": claim,
        "dialect": dialect,
        "mode": Sameness.STRICT,
        "model": "m",
        "most": 9,
        "owner": "org",
        "paths": AgentPaths({worktree(claim): "w"}),
        "sense": sense(dialect, b"/v1/messages", ()),
        "session": b"s",
        "streams": True,
        "turns": 1,
    }
    return Question(body(claim) if data is None else data, **{**plain, **more})

"""What ``scripted`` says, in Google's protocol, as the Gemini API was seen to say it.

Owns one invariant: each chunk of a stream has the usage so far, and the last one the end. Lines and their order are ``scripted``'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.real.upstream import Refuse, Say

THOUGHTS = 7
CACHED = 40


def is_google(path: str) -> bool:
    return ":" in path.rpartition("/")[2]


def asks_for_stream(path: str) -> bool:
    return path.endswith(":streamGenerateContent")


def google_usage(say: Say, output: int = 10) -> dict[str, Any]:
    """``cachedContentTokenCount`` is part of the prompt, what was thought no part of the candidates."""
    total = say.tokens + output + THOUGHTS
    return {
        "promptTokenCount": say.tokens,
        "candidatesTokenCount": output,
        "totalTokenCount": total,
        "cachedContentTokenCount": CACHED,
        "thoughtsTokenCount": THOUGHTS,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": say.tokens}],
    }


def google_whole(say: Say, number: int) -> bytes:
    parts = [*([{"text": say.text}] if say.text else []), *_calls(say)]
    return json.dumps(_answer(parts, number, google_usage(say), say.stop or "STOP"), indent=2).encode()


def google_streamed(say: Say, number: int) -> Sequence[bytes]:
    """Ends of lines as Google's front end writes them."""
    half = len(say.text) // 2
    pieces: list[list[dict[str, Any]]] = [[{"text": text}] for text in (say.text[:half], say.text[half:]) if text]
    pieces += [[call] for call in _calls(say)]
    chunks = [_answer(parts, number, google_usage(say, at + 1)) for at, parts in enumerate(pieces)]
    chunks.append(_answer([{"text": ""}], number, google_usage(say), say.stop or "STOP"))
    return [b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks]


def google_refused(line: Refuse) -> bytes:
    return json.dumps({"error": {"code": line.status, "message": line.message, "status": line.kind}}).encode()


def google_failed(message: str) -> bytes:
    """In the middle of a stream it stands bare, over several lines."""
    error = {"code": 503, "message": message, "status": "UNAVAILABLE"}
    return json.dumps({"error": error}, indent=2).encode() + b"\n"


def google_models(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "name": f"models/{name}",
            "version": "001",
            "displayName": name.title(),
            "inputTokenLimit": 1_048_576,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
            "sayWhat": {"new": True},
        }
        for name in names
    ]


def _calls(say: Say) -> list[dict[str, Any]]:
    return [{"functionCall": {"name": name, "args": dict(given)}} for name, given in say.tools]


def _answer(parts: list[dict[str, Any]], number: int, usage: dict[str, Any], finish: str = "") -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    answer: dict[str, Any] = {"candidates": [candidate], "usageMetadata": usage}
    return {**answer, "modelVersion": "gemini-scripted", "responseId": f"r{number}"}

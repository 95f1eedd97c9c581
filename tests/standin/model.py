"""Model calls as ``claude`` makes them: one POST each, a stream back, and its way of trying again.

On a bare socket, because an HTTP library takes longer to import than all the rest. Without a base URL nobody is called and
every call is answered with a short text: a stand-in never talks to a provider.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

RETRIED = {401, 408, 409, 429}
LONGEST_WAIT_S = 60
PER_TOKEN_USD = (4e-6, 20e-6)


class ModelFailed(Exception):
    """A call came to nothing; ``status`` is 0 when nobody answered."""

    def __init__(self, status: int, message: str, reason: str = "api_error") -> None:
        super().__init__(message)
        self.message, self.reason, self.status = message, reason, status

    @property
    def kind(self) -> str:
        """What the CLI calls it in its own message."""
        if self.status in (401, 403) or "/login" in self.message:
            return "authentication_failed"
        return {402: "billing_error", 429: "rate_limit", 400: "invalid_request"}.get(self.status, "server_error")


class _Dropped(Exception):
    """The connection was refused or broke off."""


class Model:
    """``on_retry`` is told before each wait: number, most, seconds, status."""

    def __init__(self, name: str, session: str, on_retry: Callable[[int, int, float, int], None]) -> None:
        self.base = os.environ.get("ANTHROPIC_BASE_URL", "").rstrip("/")
        self.key = os.environ.get("ANTHROPIC_API_KEY", "")
        self.token = os.environ.get("ANTHROPIC_AUTH_TOKEN", "")
        self.name, self.session, self.on_retry = name, session, on_retry
        self.most = int(os.environ.get("CLAUDE_CODE_MAX_RETRIES", "10"))
        self.calls = 0
        self.cost_usd = 0.0
        self.usage = {"input_tokens": 0, "output_tokens": 0}

    def logged_in(self) -> bool:
        return bool(self.key or self.token)

    def call(self, messages: list[dict[str, Any]]) -> str:
        """The text of the answer. Raises ``ModelFailed``."""
        body = json.dumps(self._body(messages)).encode()
        for number in range(1, self.most + 2):
            try:
                status, headers, data = self._ask(body)
            except (OSError, _Dropped) as error:
                status, headers, data = 0, {}, str(error).encode()
            if status == 200:
                text = self._take(data)
                if text is not None:
                    return text
                status = 0
            wait_s = float(headers.get("retry-after") or min(0.5 * 2.0 ** (number - 1), 32.0))
            retried = status == 0 or status in RETRIED or status >= 500
            if not retried or number > self.most or wait_s > LONGEST_WAIT_S or headers.get("x-should-retry") == "false":
                raise _failed(status, data)
            self.on_retry(number, self.most, wait_s, status)
            time.sleep(wait_s * random.uniform(1.0, 1.1))
        raise AssertionError

    def _body(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        user = json.dumps({"device_id": "0" * 64, "account_uuid": "", "session_id": self.session})
        return {
            "model": self.name,
            "messages": messages,
            "system": [{"type": "text", "text": "You are a stand-in.", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": name, "input_schema": {"type": "object"}} for name in ("Bash", "Edit", "Read", "Write")],
            "metadata": {"user_id": user},
            "max_tokens": 128000,
            "stream": True,
        }

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.calls += 1
        if not self.base:
            usage = {"input_tokens": 1000, "output_tokens": 100}
            return (
                200,
                {},
                b"data: "
                + json.dumps({"type": "message_start", "message": {"usage": usage}}).encode()
                + b'\ndata: {"type":"message_stop"}\n',
            )
        address, _, path = self.base.removeprefix("http://").partition("/")
        host, _, port = address.partition(":")
        prefix = f"/{path}" if path else ""
        head = [f"POST {prefix}/v1/messages?beta=true HTTP/1.1", f"Host: {address}", *self._headers(len(body))]
        with socket.create_connection((host, int(port or 80))) as connection:
            connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
            with connection.makefile("rb") as answer:
                return _read(answer)

    def _headers(self, length: int) -> list[str]:
        more = [line for line in os.environ.get("ANTHROPIC_CUSTOM_HEADERS", "").splitlines() if ":" in line]
        if self.key:
            more.append(f"x-api-key: {self.key}")
        if self.token:
            more.append(f"Authorization: Bearer {self.token}")
        return [
            "User-Agent: claude-cli/2.1.330 (external, sdk-cli)",
            f"X-Claude-Code-Session-Id: {self.session}",
            "x-app: cli",
            "anthropic-version: 2023-06-01",
            "X-Stainless-Retry-Count: 0",
            "Accept: application/json",
            "Content-Type: application/json",
            f"Content-Length: {length}",
            "Connection: close",
            *more,
        ]

    def _take(self, data: bytes) -> str | None:
        """The text of a streamed answer; None when it broke off."""
        text, spent, whole = "", {}, False
        for line in data.decode(errors="replace").splitlines():
            if not line.startswith("data:"):
                continue
            event = json.loads(line[5:])
            kind = event.get("type")
            if kind == "message_start":
                spent |= event["message"].get("usage") or {}
            elif kind == "message_delta":
                spent |= event.get("usage") or {}
            elif kind == "content_block_delta":
                text += event["delta"].get("text", "")
            whole = whole or kind == "message_stop"
        for name, price in zip(self.usage, PER_TOKEN_USD, strict=True):
            self.usage[name] += spent.get(name, 0)
            self.cost_usd += spent.get(name, 0) * price
        return text if whole else None


def _failed(status: int, data: bytes) -> ModelFailed:
    try:
        told = json.loads(data)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = data.decode(errors="replace")[:200]
    if status == 0:
        return ModelFailed(0, "API Error: Connection refused. Is the gateway running?")
    if status == 401:
        return ModelFailed(401, "Invalid API key · Fix external API key")
    if status == 403:
        return ModelFailed(403, f"Failed to authenticate. API Error: 403 {told}")
    if status == 400 and "prompt is too long" in told:
        return ModelFailed(400, "Prompt is too long", "prompt_too_long")
    return ModelFailed(status, f"API Error: {status} {told}")


def _read(answer: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and the whole body."""
    first = answer.readline().split(b" ", 2)
    if len(first) < 2:
        raise _Dropped("no answer")
    headers: dict[str, str] = {}
    while line := answer.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int(answer.readline().strip() or b"0", 16):
            pieces.append(answer.read(size))
            answer.readline()
        return int(first[1]), headers, b"".join(pieces)
    length = headers.get("content-length")
    return int(first[1]), headers, answer.read(int(length)) if length else answer.read()

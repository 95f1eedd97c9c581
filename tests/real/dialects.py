"""A scripted server on loopback in the shapes of OpenAI (chat and responses) and Google: one script, whoever asks.

Owns one invariant: the n-th turn of the agent gets the n-th line of the script (beyond its end the last one again); what
programs ask beside their work (a title, a commit message) gets an answer and takes no line.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True)
class Text:
    """The model's last word."""

    text: str


@dataclass(frozen=True)
class Shell:
    """The model wants a command run, by whatever name the program's own tool for that has."""

    command: str


@dataclass(frozen=True)
class Refusal:
    status: int
    message: str = "refused by the script"
    code: str = "scripted"
    headers: Mapping[str, str] = field(default_factory=dict)


Line = Text | Shell | Refusal

_SHELLS = {"bash": "command", "exec_command": "cmd", "run_shell_command": "command"}


@dataclass(frozen=True)
class Asked:
    """One request as it came in, header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def is_aside(self) -> bool:
        """Not a turn of the agent's. Programs that have tools offer them whenever they work."""
        text = json.dumps(self.body)
        return (
            self.path.endswith("/chat/completions")
            and "tools" not in self.body
            and ("title" in text or "commit message" in text)
        )

    @property
    def key(self) -> str:
        given = self.headers.get("authorization", "").removeprefix("Bearer ")
        return given or self.headers.get("x-goog-api-key", "") or self.headers.get("x-api-key", "")

    def shell(self) -> tuple[str, str]:
        """The name of its tool for commands, and of the argument."""
        text = json.dumps(self.body.get("tools", ""))
        return next(((name, key) for name, key in _SHELLS.items() if f'"{name}"' in text), ("bash", "command"))


class ScriptedModels:
    def __init__(self, *script: Line) -> None:
        self.asked: list[Asked] = []
        self.asides: list[Asked] = []
        self._lock = threading.Lock()
        self._script: Sequence[Line] = script
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_line(self, asked: Asked) -> Line:
        with self._lock:
            if asked.is_aside:
                self.asides.append(asked)
                return Text("a small change")
            self.asked.append(asked)
            return self._script[min(len(self.asked), len(self._script)) - 1]


# -- the shapes --------------------------------------------------------------------------------------------------------


def _responses(line: Text | Shell, asked: Asked) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(line, Text):
        content = [{"type": "output_text", "text": line.text, "annotations": []}]
        item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant", "content": content}
    else:
        name, key = asked.shell()
        given = json.dumps({key: line.command})
        item = {"type": "function_call", "id": "fc_1", "call_id": f"call_{id(asked)}", "name": name, "arguments": given}
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 40},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 110,
    }
    answer = {"id": f"resp_{id(asked)}", "object": "response", "status": "completed", "output": [item], "usage": usage}
    yield "response.created", {"response": {**answer, "status": "in_progress", "output": []}}
    yield "response.output_item.added", {"output_index": 0, "item": item}
    yield "response.output_item.done", {"output_index": 0, "item": item}
    yield "response.completed", {"response": answer}


def _chat(line: Text | Shell, asked: Asked) -> tuple[dict[str, Any], str]:
    if isinstance(line, Text):
        return {"role": "assistant", "content": line.text}, "stop"
    name, key = asked.shell()
    given = {"command": line.command, "description": "run it"} if key == "command" else {key: line.command}
    call = {"id": f"call_{id(asked)}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
    return {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call}]}, "tool_calls"


def _google(line: Text | Shell, asked: Asked) -> dict[str, Any]:
    part: dict[str, Any] = {"text": line.text} if isinstance(line, Text) else {}
    if isinstance(line, Shell):
        name, key = asked.shell()
        part = {"functionCall": {"name": name, "args": {key: line.command}}}
    return {
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 10, "totalTokenCount": 110},
        "modelVersion": "scripted",
    }


def _answer(line: Text | Shell, asked: Asked) -> tuple[str, str]:
    """Content type and body."""
    path = asked.path.partition("?")[0]
    if path.endswith("/responses"):
        events = _responses(line, asked)
        parts = (f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n" for kind, data in events)
        return "text/event-stream", "".join(parts)
    if path.endswith(":countTokens"):
        return "application/json", json.dumps({"totalTokens": 100})
    if ":" in path.rpartition("/")[2]:
        answer = json.dumps(_google(line, asked))
        streamed = path.endswith(":streamGenerateContent")
        return ("text/event-stream", f"data: {answer}\n\n") if streamed else ("application/json", answer)
    message, reason = _chat(line, asked)
    head = {"id": "chatcmpl-1", "created": 1, "model": "scripted"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    if not asked.body.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return "application/json", json.dumps(
            {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )
    first = {"index": 0, "delta": message, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    chunks = [
        {**head, "object": "chat.completion.chunk", "choices": [first]},
        {**head, "object": "chat.completion.chunk", "choices": [last]},
        {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage},
    ]
    return "text/event-stream", "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def _handler(models: ScriptedModels) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(404, "application/json", "{}", {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.path.endswith("/end"):  # the agent process gives its key up, as to a gateway
                self._send(204, "application/json", "", {})
                return
            asked = Asked(self.path, headers, body)
            line = models.next_line(asked)
            if isinstance(line, Refusal):
                error = {"message": line.message, "type": line.code, "code": line.code, "status": line.code}
                if ":" in self.path.rpartition("/")[2]:
                    error["code"] = line.status  # type: ignore[assignment]
                self._send(line.status, "application/json", json.dumps({"error": error}), line.headers)
                return
            self._send(200, *_answer(line, asked), {})

        def _send(self, status: int, kind: str, text: str, more: Mapping[str, str]) -> None:
            data = text.encode()
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """What was asked is kept, not printed."""

    return Handler

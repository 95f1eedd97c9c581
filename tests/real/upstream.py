"""A scripted server of Anthropic's shape on loopback: says what a test wants said, and remembers what it was asked.

Owns one invariant: the n-th call of a task gets the n-th line of that task's script (a call beyond its end gets the last
one again), so a test reads like the conversation. It knows tasks by the line of the brief that names them.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TASK = re.compile(r"Task `([a-z0-9._-]+)`, attempt ")


@dataclass(frozen=True)
class Say:
    """A turn of the model: a text, calls of tools as (name, input), or both."""

    text: str = ""
    tools: Sequence[tuple[str, Mapping[str, Any]]] = ()
    stop: str = ""
    tokens: int = 100

    def events(self, number: int) -> list[dict[str, Any]]:
        usage = {"input_tokens": self.tokens, "output_tokens": 10}
        message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": "scripted", "content": []}
        start = {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
        blocks = [({"type": "text", "text": ""}, {"type": "text_delta", "text": self.text})] if self.text else []
        for place, (name, given) in enumerate(self.tools):
            use = {"type": "tool_use", "id": f"toolu_{number}_{place}", "name": name, "input": {}}
            blocks.append((use, {"type": "input_json_delta", "partial_json": json.dumps(given)}))
        for index, (block, delta) in enumerate(blocks):
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
            events.append({"type": "content_block_stop", "index": index})
        stop = self.stop or ("tool_use" if self.tools else "end_turn")
        events.append({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage})
        return [*events, {"type": "message_stop"}]


@dataclass(frozen=True)
class Refuse:
    """An answer that is none: a status, a message, headers."""

    status: int
    message: str = "refused by the script"
    kind: str = "api_error"
    headers: Mapping[str, str] = field(default_factory=dict)


class Silence:
    """No answer until the server is closed."""


Line = Say | Refuse | Silence


@dataclass(frozen=True)
class Call:
    """One request as it came in, header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        return json.dumps(self.body)


class Upstream:
    """``scripts`` maps a task's id to its lines; ``""`` stands for every task that has none of its own."""

    def __init__(self, scripts: Mapping[str, Sequence[Line]]) -> None:
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._scripts = dict(scripts)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def script(self, task: str, *lines: Line) -> None:
        with self._lock:
            self._scripts[task] = lines

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_line(self, call: Call) -> tuple[int, Line]:
        named = _TASK.search(call.text)
        task = named[1] if named is not None else ""
        with self._lock:
            self.calls[task].append(call)
            script = self._scripts.get(task) or self._scripts[""]
            number = len(self.calls[task])
            return number, script[min(number, len(script)) - 1]


def _handler(upstream: Upstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.path.endswith("/end"):  # the agent process gives its key up, as to a gateway
                self._send(204, "application/json", "", {})
                return
            number, line = upstream.next_line(Call(self.path, headers, body))
            match line:
                case Refuse():
                    error = {"type": "error", "error": {"type": line.kind, "message": line.message}}
                    self._send(line.status, "application/json", json.dumps(error), line.headers)
                case Silence():
                    upstream.closing.wait()
                    self.close_connection = True
                case Say():
                    events = line.events(number)
                    text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
                    self._send(200, "text/event-stream", text, {})

        def _send(self, status: int, kind: str, text: str, more: Mapping[str, str]) -> None:
            data = text.encode()
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """The calls are kept, not printed."""

    return Handler

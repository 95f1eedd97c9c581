"""The model of scripts/bench dedup: a local server of Anthropic's shape that plays jobs of a coding agent, at a model's pace.

It is sampled, as a real one is: each call that reaches it is answered in words that were never said before, so two agents
whose calls were not shared go separate ways from there. It knows its callers by what they ask alone. Its usage has the shape
of a real bill: what a provider would have in its prompt cache by then is read from there, the rest is written to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from coordinator.domain.usage import TokenUsage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BYTES_PER_TOKEN = 4
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "ri", "so", "tu")
"""What is said to go with tools: words enough that nobody says the same twice, and none that means something."""

Step = tuple[tuple[str, "Mapping[str, Any]"], ...]
"""Tools that are called in one turn; none: the last word."""


@dataclass(frozen=True)
class Job:
    """What is asked, word for word, and what is done about it turn by turn."""

    prompt: str
    steps: Sequence[Step]


@dataclass
class Model:
    """``first_s`` passes before an answer begins and ``rest_s`` while it comes. With ``reasons`` each begins with reasoning
    that is signed and not shown, as Claude Code asks for it."""

    jobs: Sequence[Job]
    first_s: float
    rest_s: float
    reasons: bool = False
    calls: int = 0
    usage: list[TokenUsage] = field(default_factory=list)
    strangers: int = 0
    """Calls that none of the jobs explains."""

    def __post_init__(self) -> None:
        self._cached: set[bytes] = set()
        self._lock = threading.Lock()
        self._dice = random.Random(0)
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

    def answer(self, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of the next answer, at their time."""
        said = json.dumps(asked["messages"], ensure_ascii=False)
        job = next((one for one in self.jobs if json.dumps(one.prompt, ensure_ascii=False)[1:-1] in said), None)
        turn = sum(message["role"] == "assistant" for message in asked["messages"])
        with self._lock:
            self.calls += 1
            self.strangers += job is None
            blocks = list(self._blocks(job.steps[min(turn, len(job.steps) - 1)] if job is not None else ()))
            chain = _chain(asked)
            usage = self._used(chain, len(json.dumps(blocks)))
            self.usage.append(usage)
            message = {"id": f"msg_{self._dice.randbytes(12).hex()}", "type": "message", "role": "assistant"}
        events = _events({**message, "model": asked["model"], "content": []}, blocks, usage)
        time.sleep(self.first_s)
        self._cached |= chain.keys()  # a provider's cache has it once the answer has begun
        for event in events:
            yield event
            time.sleep(self.rest_s / len(events))

    def _blocks(self, step: Step) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each as it begins, and the one piece that fills it."""
        if self.reasons:
            signed = {"type": "signature_delta", "signature": self._dice.randbytes(300).hex()}
            yield {"type": "thinking", "thinking": "", "signature": ""}, signed
        text = " ".join("".join(self._dice.choices(SYLLABLES, k=3)) for _ in range(24))
        yield {"type": "text", "text": ""}, {"type": "text_delta", "text": text}
        for name, given in step:
            use = {"type": "tool_use", "id": f"toolu_{self._dice.randbytes(12).hex()}", "name": name, "input": {}}
            yield use, {"type": "input_json_delta", "partial_json": json.dumps(given)}

    def _used(self, chain: Mapping[bytes, int], answer_bytes: int) -> TokenUsage:
        known = max((so_far for digest, so_far in chain.items() if digest in self._cached), default=0)
        return TokenUsage(
            cache_read_tokens=known // BYTES_PER_TOKEN,
            cache_write_tokens=(max(chain.values()) - known) // BYTES_PER_TOKEN,
            output_tokens=answer_bytes // BYTES_PER_TOKEN,
        )


def _chain(asked: Mapping[str, Any]) -> dict[bytes, int]:
    """Each beginning of a prompt, as a digest, and its bytes."""
    digest, total, chain = hashlib.blake2b(), 0, {}
    for block in _prompt(asked):
        text = json.dumps(block, sort_keys=True).encode()
        digest.update(text)
        total += len(text)
        chain[digest.digest()] = total
    return chain


def _prompt(asked: Mapping[str, Any]) -> Iterator[object]:
    """What a provider caches, block by block in its order."""
    yield asked.get("tools")
    blocks = [("system", block) for block in asked.get("system", ())]
    for message in asked["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        blocks += [(message["role"], block) for block in parts]
    for role, block in blocks:
        yield role, {name: value for name, value in block.items() if name != "cache_control"}


def _events(
    message: Mapping[str, Any], blocks: Sequence[tuple[dict[str, Any], dict[str, Any]]], usage: TokenUsage
) -> list[dict[str, Any]]:
    told = {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
    }
    start = {**message, "stop_reason": None, "stop_sequence": None, "usage": {**told, "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, (begun, piece) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        events.append({"type": "content_block_delta", "index": index, "delta": piece})
        events.append({"type": "content_block_stop", "index": index})
    stop = "tool_use" if any(begun["type"] == "tool_use" for begun, _ in blocks) else "end_turn"
    ended = {"stop_reason": stop, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": ended, "usage": {**told, "output_tokens": usage.output_tokens}})
    return [*events, {"type": "message_stop"}]


def _handler(model: Model) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            events = model.answer(asked)
            first = next(events)
            with contextlib.suppress(ConnectionError):  # who asked may have gone
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in itertools.chain((first,), events):
                    self._chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        def log_message(self, *args: object) -> None:
            """What is counted is in the model."""

    return Handler

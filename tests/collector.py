"""A collector of OpenTelemetry's: takes spans over HTTP, decodes them, and answers as it is told."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Value = str | int | float | bool | list[Any]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A span as it came. Ids are hexadecimal, times seconds since 1970."""

    attributes: Mapping[str, Value]
    began: float
    ended: float
    failed: bool
    kind: str
    name: str
    parent: str
    resource: Mapping[str, Value]
    said: str
    scope: str
    span: str
    trace: str


@dataclass
class Collector:
    """``status`` is what it answers. While ``open`` is not set it answers nothing."""

    batches: list[list[Seen]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    paths: list[str] = field(default_factory=list)
    port: int = 0
    status: int = 200
    taken: list[Seen] = field(default_factory=list)
    tries: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Seen]:
        return [one for one in self.taken if one.name == name]

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        self.tries += 1
        self.open.wait(60)
        if self.status == 200:
            self.paths.append(path)
            self.headers.append(headers)
            plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            spans = list(decoded(plain))
            self.batches.append(spans)
            self.taken += spans
        return self.status

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[Collector]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = collector.take(self.path, headers, body)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except ConnectionError:  # whoever asked has gone
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.daemon_threads = True
        server.block_on_close = False
        self.port = server.server_port
        self.open.set()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            self.open.set()
            server.shutdown()
            server.server_close()


def decoded(body: bytes) -> Iterator[Seen]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    attributes=plain(span.attributes),
                    began=span.start_time_unix_nano // 1000 / 1e6,
                    ended=span.end_time_unix_nano // 1000 / 1e6,
                    failed=span.status.code == Status.STATUS_CODE_ERROR,
                    kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    name=span.name,
                    parent=span.parent_span_id.hex(),
                    resource=plain(resource.resource.attributes),
                    said=span.status.message,
                    scope=scope.scope.name,
                    span=span.span_id.hex(),
                    trace=span.trace_id.hex(),
                )


def plain(pairs: Any) -> dict[str, Value]:
    return {pair.key: value_of(pair.value) for pair in pairs}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    return getattr(value, kind)

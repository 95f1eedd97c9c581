"""A registry of npm's with an audit endpoint, with advisories of a test's own."""

from __future__ import annotations

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ADVISORY = {
    "id": 1,
    "url": "https://advisories.example/GHSA-aaaa-bbbb-cccc",
    "title": "Prototype\npollution",
    "severity": "moderate",
    "vulnerable_versions": "<4.17.12",
    "cwe": [],
    "cvss": {"score": 6.5, "vectorString": None},
}


class NpmRegistry(ThreadingHTTPServer):
    """Every package has versions 4.17.4 and 4.17.21. Without its ``endpoint`` it is a mirror."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bad: dict[str, list[dict[str, Any]]] = {"lodash": [ADVISORY]}
        self.endpoint = True

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--registry", f"http://127.0.0.1:{self.server_port}/", "--fetch-retries", "0")


class _Handler(BaseHTTPRequestHandler):
    server: NpmRegistry

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        found = {name: bad for name, bad in self.server.bad.items() if name in asked}
        self._send(200 if self.server.endpoint else 405, found)

    def do_GET(self) -> None:
        name = self.path.strip("/")
        versions = {at: {"name": name, "version": at} for at in ("4.17.4", "4.17.21")}
        self._send(200, {"name": name, "versions": versions, "dist-tags": {"latest": "4.17.21"}})

    def _send(self, status: int, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def npm_registry() -> Iterator[NpmRegistry]:
    server = NpmRegistry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A registry of crates of our own on loopback (sparse index and downloads), and an advisory database that a test writes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class CrateRegistry(ThreadingHTTPServer):
    """``versions`` are what there is of each crate; those in ``yanked`` (``tally 1.0.0``) are withdrawn."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.versions: dict[str, tuple[str, ...]] = {"tally": ("1.0.0", "1.0.4", "1.2.0", "2.0.0")}
        self.yanked: set[str] = set()

    def use(self, cargo_home: Path) -> None:
        """Have cargo take this for the registry."""
        url = f"sparse+http://127.0.0.1:{self.server_port}/"
        text = f'[source.crates-io]\nreplace-with = "here"\n[source.here]\nregistry = "{url}"\n'
        (cargo_home / "config.toml").write_text(text)

    def index(self, name: str) -> bytes:
        lines = []
        for version in self.versions[name]:
            made: dict[str, Any] = {"name": name, "vers": version, "deps": [], "features": {}}
            made |= {"cksum": checksum(name, version), "yanked": f"{name} {version}" in self.yanked}
            lines.append(json.dumps(made))
        return "\n".join(lines).encode() + b"\n"


def crate_file(name: str, version: str) -> bytes:
    files = {
        "Cargo.toml": f'[package]\nname = "{name}"\nversion = "{version}"\nedition = "2021"\n',
        "src/lib.rs": f'pub fn version() -> &\'static str {{ "{version}" }}\n',
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    raw = bytearray(packed.getvalue())
    raw[4:8] = bytes(4)  # gzip writes the time there
    return bytes(raw)


def checksum(name: str, version: str) -> str:
    return hashlib.sha256(crate_file(name, version)).hexdigest()


def lock_file(**locked: str | tuple[str, ...]) -> str:
    """Of a crate ``shop`` that asks for one version of each."""
    names = "".join(f' "{name}",\n' for name in locked)
    entries = [f'[[package]]\nname = "shop"\nversion = "0.1.0"\ndependencies = [\n{names}]\n']
    for name, told in locked.items():
        for version in (told,) if isinstance(told, str) else told:
            source = 'source = "registry+https://github.com/rust-lang/crates.io-index"'
            mark = checksum(name, version)
            entries.append(f'[[package]]\nname = "{name}"\nversion = "{version}"\n{source}\nchecksum = "{mark}"\n')
    return "version = 3\n\n" + "\n".join(entries)


def advise(database: Path, package: str, number: str, *, patched: tuple[str, ...] = (), **more: str) -> None:
    """Write an advisory; ``more`` are further keys, such as ``cvss`` and ``informational``."""
    keys = {"id": number, "package": package, "date": "2021-01-08", "url": f"https://example.org/{number}", **more}
    told = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    text = f"```toml\n[advisory]\n{told}\n[versions]\npatched = {json.dumps(patched)}\n```\n\n# It counts wrongly\n\nMore.\n"
    folder = database / "crates" / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.md").write_text(text)


class _Handler(BaseHTTPRequestHandler):
    server: CrateRegistry

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        at = f"http://127.0.0.1:{self.server.server_port}"
        if parts == ["config.json"]:
            self._send(json.dumps({"dl": f"{at}/dl", "api": at}).encode())
        elif parts[0] == "dl":
            self._send(crate_file(parts[1], parts[2]))
        elif parts[-1] in self.server.versions:
            self._send(self.server.index(parts[-1]))
        else:
            self.send_error(404)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def crate_registry() -> Iterator[CrateRegistry]:
    server = CrateRegistry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

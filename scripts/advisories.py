"""A vulnerability service for where the live ones cannot be reached: real advisories, as published, on a port of this machine.

Python's are those of the package ``safety-db`` (pyup.io, CC BY-NC-SA), npm's and Rust's the tables below. It answers as OSV's
``/v1/query`` and as npm's audit endpoint do, and sends npm's other questions on to the real registry; Rust's are written to a
folder, as the RustSec database is one. It knows old advisories alone: no substitute for the live services.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NPM_ADVISORIES = (
    ("ansi-regex", ">=3.0.0 <3.0.1", "GHSA-93q8-gq69-wqmw", "high", "Inefficient regular expression complexity"),
    ("form-data", "<2.5.4", "GHSA-fjxv-7rqg-78g4", "critical", "Unsafe random function for choosing a boundary"),
    ("json-schema", "<0.4.0", "GHSA-896r-f27r-55mw", "critical", "Prototype pollution"),
    ("minimatch", "<3.0.5", "GHSA-f8q6-p94x-37v3", "high", "Regular expression denial of service"),
    ("qs", ">=6.5.0 <6.5.3", "GHSA-hrpp-h998-j3pp", "high", "Prototype pollution"),
    ("request", "<=2.88.2", "GHSA-p8p7-x288-28g6", "moderate", "Server-side request forgery"),
    ("semver", "<5.7.2", "GHSA-c2qf-rxjj-qqgw", "high", "Regular expression denial of service"),
    ("tough-cookie", "<4.1.3", "GHSA-72xf-g2v4-qvf3", "moderate", "Prototype pollution"),
)
CRATE_ADVISORIES = (
    ("ansi_term", "RUSTSEC-2021-0139", (), "unmaintained", "ansi_term is Unmaintained"),
    ("atty", "RUSTSEC-2021-0145", (), "unsound", "Potential unaligned read"),
    ("crossbeam-utils", "RUSTSEC-2022-0041", (">= 0.8.7",), "", "Unsound arithmetics of AtomicCell<*64> on 32-bit targets"),
    ("nix", "RUSTSEC-2021-0119", ("^0.20.2", "^0.21.2", "^0.22.2", ">= 0.23.0"), "", "Out-of-bounds write in getgrouplist"),
    ("regex", "RUSTSEC-2022-0013", (">= 1.5.5",), "", "Large repetitions on empty sub-expressions take very long to parse"),
    ("remove_dir_all", "RUSTSEC-2023-0018", (">= 0.8.0",), "", "Race condition that lets links be followed"),
    ("tempdir", "RUSTSEC-2018-0017", (), "unmaintained", "`tempdir` crate has been deprecated; use `tempfile` instead"),
    ("thread_local", "RUSTSEC-2022-0006", (">= 1.1.4",), "", "Data race in `Iter` and `IterMut`"),
)  # fmt: skip
_NPM = "https://registry.npmjs.org"


def write_crate_advisories(folder: Path) -> None:
    """As RustSec's own repository has them."""
    for package, number, patched, informational, title in CRATE_ADVISORIES:
        told = {"id": number, "package": package, "date": f"{number[8:12]}-01-01"}
        told |= {"informational": informational} if informational else {}
        head = "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())
        file = folder / "crates" / package / f"{number}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"```toml\n[advisory]\n{head}\n[versions]\npatched = {json.dumps(patched)}\n```\n\n# {title}\n")


class AdvisoryService(ThreadingHTTPServer):
    """``crates`` is where ``write_crate_advisories`` wrote."""

    def __init__(self, database: Path, crates: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._crates = crates
        told = json.loads(database.read_text(encoding="utf-8"))
        self._python = {canonicalize_name(name): items for name, items in told.items() if name != "$meta"}

    @property
    def settings(self) -> str:
        """For ``coordinator.toml``: whom the auditors are to ask."""
        osv = ["-s", "osv", "--osv-url", f"http://127.0.0.1:{self.server_port}/v1/query"]
        npm = ["--registry", f"http://127.0.0.1:{self.server_port}/"]
        cargo = ["--db", str(self._crates), "--no-fetch", "--no-yanked"]
        tables = (("cargo-audit", cargo), ("pip-audit", osv), ("npm-audit", npm))
        return "".join(f'[[discovery.tool]]\nname = "{name}"\narguments = {json.dumps(to)}\n\n' for name, to in tables)

    def of_python(self, package: str, version: str) -> dict[str, Any]:
        items = self._python.get(canonicalize_name(package), ())
        bad = [item for item in items if any(SpecifierSet(spec).contains(version) for spec in item["specs"])]
        return {"vulns": [_as_osv(package, item, version) for item in bad]} if bad else {}

    def of_npm(self, asked: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for number, (package, versions, rule, severity, title) in enumerate(NPM_ADVISORIES, start=1):
            if package in asked:
                url = f"https://github.com/advisories/{rule}"
                about = {"id": number, "url": url, "title": f"{title} in {package}", "severity": severity}
                found.setdefault(package, []).append({**about, "vulnerable_versions": versions})
        return found


def _as_osv(package: str, item: dict[str, Any], version: str) -> dict[str, Any]:
    (spec, *_) = (one for one in item["specs"] if SpecifierSet(one).contains(version))
    mended = re.findall(r"<(?!=)\s*([\w.]+)", spec)
    events = [{"introduced": "0"}, *({"fixed": one} for one in mended)]
    affected = {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    ids = re.findall(r"CVE-\d+-\d+", item.get("cve") or "")
    return {"id": item["id"], "aliases": ids, "summary": item["advisory"], "affected": [affected]}


class _Handler(BaseHTTPRequestHandler):
    server: AdvisoryService

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        if self.path == "/v1/query":
            answer: Any = self.server.of_python(asked["package"]["name"], asked["version"])
        else:
            answer = self.server.of_npm(asked)
        self._send(200, json.dumps(answer).encode())

    def do_GET(self) -> None:
        headers = {"Accept": self.headers.get("Accept", "*/*")}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(_NPM + self.path, headers=headers), timeout=60
            ) as answer:
                self._send(200, answer.read())
        except urllib.error.HTTPError as error:
            self._send(error.code, b"{}")

    def _send(self, status: int, body: bytes) -> None:
        try:
            self._write(status, body)
        except ConnectionError:  # an auditor that has heard enough
            self.close_connection = True

    def _write(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def advisory_service(database: Path, crates: Path) -> Iterator[AdvisoryService]:
    """``database`` is a file of ``safety-db``; ``crates`` a folder that is written."""
    write_crate_advisories(crates)
    server = AdvisoryService(database, crates)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""Finding outside programs and running them on a tree that other people wrote.

Owns one invariant: a program is never taken from inside the tree it is to judge, and never started with more of our
environment than PATH, HOME, the locale, the way to the network (which holds no secret) and what the settings let through. What a
program's answer means is its adapter's.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordinator.checks.inroads import Inroads
from coordinator.domain.check import BrokenBy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from coordinator.domain.settings import GateSettings
    from coordinator.kit.process import Exit, Limits

EXCERPT_BYTES: Final = 4096
"""How much of a program's last output is kept for people and for the next brief."""

_PASSED_ON: Final = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "SHELL", "TMPDIR", "TZ", "USER"),
    *("CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"),  # where Rust lies when it is not in HOME, as in its images
)
_WAY_OUT: Final = (
    *("CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE"),
    *("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "all_proxy", "https_proxy", "http_proxy", "no_proxy"),
)
"""Whom to trust and which way to go: without them an auditor reaches nothing where its owner does."""

_DEADLY_BY_ITSELF: Final = frozenset({4, 6, 7, 8, 11})  # SIGILL SIGABRT SIGBUS SIGFPE SIGSEGV: the program's own crash


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """``code`` is the exit code, None when it did not exit by itself; then ``broken_by`` and ``problem`` say why."""

    broken_by: BrokenBy | None = None
    code: int | None
    output: str
    problem: str = ""
    took_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every check of one gate runs in: its limits, and ``first``, the folders of programs found before others.

    ``inroads`` are where the project's environment leads into ``checkout``, the user's own folder. ``python`` is its
    interpreter, or ours for want of one; ``identity`` changes with it and with what is installed for it. ``packages`` is a
    folder of Python packages that go before the installed ones.
    """

    checkout: Path | None = None
    first: tuple[Path, ...] = ()
    gate: GateSettings
    identity: str = ""
    inroads: Inroads = field(default_factory=Inroads)
    packages: Path | None = None
    python: Path = Path(sys.executable)

    def environment(self, tree: Path, scratch: Path) -> dict[str, str]:
        before = self.inroads.in_tree(tree, scratch)
        env = tool_environment(tree, scratch=scratch, let_through=self.gate.env, first=self.first, before=before)
        if self.packages is not None:
            env["PYTHONPATH"] += f"{os.pathsep}{self.packages}"
        return env

    def limits(self) -> Limits:
        from coordinator.kit.process import Limits  # keeps psutil off the start path

        gate = self.gate
        return Limits(timeout_s=gate.timeout_s, memory_bytes=gate.memory_bytes, output_bytes=gate.output_bytes)


def own_folder() -> Path:
    """Where the programs of our own installation are (``ruff`` is one of our dependencies)."""
    return Path(sys.executable).absolute().parent


def temporary_folder() -> Path:
    """Where the programs that we start put their temporary files, if they follow custom."""
    return Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - nothing is made there


def search_path(tree: Path, path: str, *, first: Sequence[Path] = ()) -> str:
    """``PATH`` for a program that judges ``tree``: ``first``, absolute entries outside the tree, our own folder."""
    inside = tree.resolve()
    entries = [str(folder) for folder in first]
    for entry in path.split(os.pathsep):
        if Path(entry).is_absolute() and not Path(entry).resolve().is_relative_to(inside):
            entries.append(entry)
    entries.append(str(own_folder()))
    return os.pathsep.join(dict.fromkeys(entries))


def find_tool(name: str, *, tree: Path, first: Sequence[Path] = ()) -> Path | None:
    """The program ``name`` in the folders ``first``, on PATH or, in the end, of our own installation."""
    path = search_path(tree, os.environ.get("PATH", os.defpath), first=first)
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def tool_environment(
    tree: Path,
    *,
    scratch: Path,
    let_through: Iterable[str] = (),
    first: Sequence[Path] = (),
    before: Sequence[Path] = (),
) -> dict[str, str]:
    """The whole environment of a check. Python code of the tree is found before any installed copy of it.

    An editable install of the user's checkout would otherwise be what a test imports: ``before`` are the places in the
    tree that stand for those that the environment knows. ``COORDINATOR_ATTEMPT`` is the tag by which processes that
    outlive the check are found and ended.
    """
    python_path = dict.fromkeys(str(path) for path in (*before, tree / "src", tree))
    names = (*_PASSED_ON, *let_through)
    env = {name: os.environ[name] for name in names if name in os.environ and not name.startswith("GIT_")}
    # A proxy's password is a secret: such a proxy is let through by name only.
    ways = {name: os.environ[name] for name in _WAY_OUT if name in os.environ and "@" not in os.environ[name]}
    env = ways | env
    env |= {
        "COORDINATOR_ATTEMPT": str(scratch),
        "GIT_TERMINAL_PROMPT": "0",
        "PATH": search_path(tree, os.environ.get("PATH", os.defpath), first=first),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(python_path),
    }
    return env


async def run_tool(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    errors: Path | None = None,
    limits: Limits,
    log: Path,
) -> ToolRun:
    """Run ``argv`` with its output in ``log``, or its complaints in ``errors``, whose end is then what the run said.

    Never raises for what the program does, and leaves nothing of it behind.
    """
    from coordinator.kit.process import run  # keeps psutil off the start path

    exited = await run(argv, contained=True, cwd=cwd, env=env, errors=errors, limits=limits, output=log)
    broken_by, problem = _cut_short(exited, limits)
    code = None if broken_by else exited.code
    said = read_tail(errors or log)
    return ToolRun(broken_by=broken_by, code=code, output=said, problem=problem, took_s=exited.took_s)


def file_identity(path: Path) -> str:
    """A path with what tells that something else is there now."""
    try:
        status = path.stat()
    except OSError:
        return f"{path}:absent"
    return f"{path}:{status.st_size}:{status.st_mtime_ns}"


def _cut_short(exited: Exit, limits: Limits) -> tuple[BrokenBy | None, str]:
    if exited.spawn_error:
        return BrokenBy.ENVIRONMENT, f"could not be started: {exited.spawn_error}"
    if exited.timed_out:
        return BrokenBy.TIME, f"was stopped after {limits.timeout_s:g} s"
    if exited.memory_exceeded:
        problem = f"used more than {limits.memory_bytes // 2**20} MiB of memory (memory_bytes)"
        return BrokenBy.TREE, problem
    if exited.output_exceeded:
        return BrokenBy.TREE, f"printed more than {limits.output_bytes} bytes"
    if exited.signal is not None:
        by_itself = exited.signal in _DEADLY_BY_ITSELF
        return (BrokenBy.TREE if by_itself else BrokenBy.ENVIRONMENT), f"was ended by signal {exited.signal}"
    if exited.code is None:
        return BrokenBy.ENVIRONMENT, "ended without an exit code"
    return None, ""


def read_tail(path: Path, limit: int = EXCERPT_BYTES) -> str:
    """The last ``limit`` bytes of a file as text; empty when it is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit).decode(errors="replace").replace("\0", "�")
    except OSError:
        return ""


def exit_words(ran: ToolRun) -> str:
    """``exited with 3: the last thing it said``."""
    said = last_line(ran.output)
    return f"exited with {ran.code}" + (f": {said}" if said else " without a word")


def last_line(text: str) -> str:
    """The last line that says something, at most 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""

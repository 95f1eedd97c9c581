"""Files that people write, read with suspicion; and the one way to hear that files changed.

Owns one invariant: whatever lies in a folder (links, pipes, gigabytes, garbage), reading it ends soon and gives a text
or a sentence, and nothing of a person's is ever overwritten. A watcher is a hint; the scan is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from coordinator.domain.config import settings_from
from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.domain.settings import Settings
from coordinator.domain.toml_position import read_document

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence

_log = logging.getLogger(__name__)

LARGEST_FILE_BYTES: Final = 1024 * 1024
"""A file that a person writes is smaller; what is larger was put there by mistake and is not read."""

LOOK_S: Final = 1.0
"""How often a watch looks whether its folders are still the same ones."""

_DEEPEST: Final = 64
_MB: Final = 1024 * 1024
_FLOOD: Final = 500
"""More changes than this at once are reported as one: look at everything."""
_MOST_WATCHED: Final = 4000
"""Folders watched at once; what lies in further ones is found by the scan."""


class Stamp(NamedTuple):
    """Differs whenever a file was written, replaced or given other rights."""

    mtime_ns: int
    ctime_ns: int
    size: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TomlScan:
    """What is below a folder. All names are relative to it, with ``/``; names that begin with a dot are left out.

    ``files`` are the regular files called ``*.toml``, ``folders`` the real folders that may hold more (the folder
    itself is ``""``), ``odd`` what was passed over and why, ``unreadable`` folders that could not be listed.
    """

    files: Mapping[str, Stamp]
    folders: tuple[str, ...]
    odd: Mapping[str, str]
    unreadable: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """Why a file gave no text: one sentence, and the line when one is to blame. ``gone``: it is not there any more."""

    reason: str
    line: int = 0
    gone: bool = False
    expected: str = ""


def scan_toml(root: Path) -> TomlScan:
    """Look at everything below ``root`` without following a link. A missing ``root`` is an empty one."""
    files: dict[str, Stamp] = {}
    odd: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    folders: list[str] = []
    waiting = [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                folders.append(folder)
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if not _look(entry, name, files, odd):
                        continue
                    if depth < _DEEPEST:
                        waiting.append((name, depth + 1))
                    else:
                        odd[name] = f"is more than {_DEEPEST} folders deep and is not read"
        except FileNotFoundError:
            continue
        except OSError as error:
            unreadable[folder] = error.strerror or str(error)
    return TomlScan(files=files, folders=tuple(sorted(folders)), odd=odd, unreadable=unreadable)


def _look(entry: os.DirEntry[str], name: str, files: dict[str, Stamp], odd: dict[str, str]) -> bool:
    """Sort one entry; true when it is a folder to go into."""
    task_file = entry.name.endswith(".toml")
    if entry.is_symlink():
        if task_file or entry.is_dir():
            odd[name] = "is a symbolic link, which is not followed"
        return False
    if entry.is_dir(follow_symlinks=False):
        if task_file:
            odd[name] = "is a folder, not a file"
        return True
    if not task_file:
        return False
    try:
        stamp = stamp_of(entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
    if entry.is_file(follow_symlinks=False):
        files[name] = stamp
    else:
        odd[name] = "is no regular file"
    return False


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def read_text(path: Path | str, *, largest_bytes: int = LARGEST_FILE_BYTES, follow: bool = False) -> str | Unread:
    """The text of a regular file, without its byte order mark. Never waits on a pipe, never reads past the limit."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Unread(reason="is a symbolic link, which is not followed")
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        return Unread(reason=f"cannot be opened: {error.strerror}", gone=gone)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return Unread(reason="is no regular file")
        data = b"" if status.st_size > largest_bytes else _read(fd, largest_bytes + 1)
    except OSError as error:
        return Unread(reason=f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)
    size = max(status.st_size, len(data))
    if size > largest_bytes:
        limit = f"at most {largest_bytes / _MB:g} MB"
        return Unread(reason=f"has {size / _MB:.1f} MB and is not read", expected=limit)
    return _decoded(data)


def _read(fd: int, most: int) -> bytes:
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(most)


def _decoded(data: bytes) -> str | Unread:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Unread(
            reason=f"is not UTF-8 at byte {error.start} (0x{data[error.start]:02x})", line=line, expected="UTF-8"
        )


def shown(path: str) -> str:
    """A file name fit for a screen, a journal and a database: bytes that are no text, and line breaks, are escaped."""
    if path.isascii() and path.isprintable() and "\\" not in path:
        return path
    text = path.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown_in(path: Path, repository: Path) -> str:
    """``path`` relative to the repository when inside it, with ``/``."""
    inside = path.relative_to(repository) if path.is_relative_to(repository) else path
    return shown(inside.as_posix())


# -- settings ------------------------------------------------------------------------------------------------------


def read_settings(repository: Path) -> Settings:
    """``coordinator.toml`` if it is there, else ``[tool.coordinator]`` in ``pyproject.toml``, else the defaults.

    Raises ``BadInput`` when the file that counts cannot be read or has faults.
    """
    own = _optional_text(repository / "coordinator.toml")
    if own is not None:
        return settings_from(_read_toml(own, "coordinator.toml"), own, "coordinator.toml")
    text = _optional_text(repository / "pyproject.toml")
    if text is None or "coordinator" not in text:
        return Settings()
    tool = _read_toml(text, "pyproject.toml").get("tool")
    table = tool.get("coordinator") if isinstance(tool, dict) else None
    if table is None:
        return Settings()
    if not isinstance(table, dict):
        raise BadInput([Problem(file="pyproject.toml", key="tool.coordinator", message="is no table")])
    return settings_from(table, text, "pyproject.toml", at=("tool", "coordinator"))


def _optional_text(path: Path) -> str | None:
    text = read_text(path, follow=True)
    if isinstance(text, str):
        return text
    if text.gone and not path.is_symlink():
        return None
    raise BadInput([Problem(file=path.name, line=text.line, message=text.reason, expected=text.expected)])


def _read_toml(text: str, file: str) -> Mapping[str, Any]:
    document = read_document(text, file)
    if isinstance(document, Problem):
        raise BadInput([document])
    return document.data


# -- writing -------------------------------------------------------------------------------------------------------


def task_text(values: Mapping[str, Any], *, comment: str = "") -> str:
    """A task file with one task, written the way a person would: long texts over several lines, empty values left out."""
    import tomlkit  # 30 ms that only writers pay

    document = tomlkit.document()
    for line in comment.splitlines():
        document.add(tomlkit.comment(line))
    table = tomlkit.table()
    for key, value in values.items():
        if value in (None, "", (), [], {}):
            continue
        if isinstance(value, str):
            table.add(key, tomlkit.string(value, multiline="\n" in value and "\r" not in value))
        elif isinstance(value, list | tuple):
            array = tomlkit.array()
            array.extend(value)
            table.add(key, array.multiline(len(value) > 3))
        else:
            table.add(key, value)
    tasks = tomlkit.aot()
    tasks.append(table)
    document.add("tasks", tasks)
    return tomlkit.dumps(document)


def write_new(path: Path, text: str) -> None:
    """Create ``path`` with all of ``text`` at once. Raises ``FileExistsError`` rather than touch what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=".coordinator-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the name is reserved first, then filled by a rename
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            os.rename(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


# -- watching ------------------------------------------------------------------------------------------------------


async def watch(paths: Sequence[Path], stopping: asyncio.Event, *, recursive: bool = False) -> AsyncIterator[set[Path]]:
    """Sets of paths that may have changed, until ``stopping``.

    One of ``paths`` in a set means: look at everything below it. All of them come as soon as the watch is on, and again
    whenever it had to begin anew; so who scans at each set misses nothing but what the system itself loses. Paths may
    be missing, come, go and be replaced. ``recursive`` includes the real folders below; links are never followed (one
    to ``/`` would watch the whole machine).
    """
    polling = False
    while not stopping.is_set():
        targets = await asyncio.to_thread(_targets, paths, recursive)
        try:
            if targets:
                async for changed in _watch_same(targets, paths, stopping, recursive=recursive, polling=polling):
                    yield changed
                continue
        except FileNotFoundError as error:
            _log.debug("gone before it could be watched: %s", error, extra={"action": "watch_target_gone"})
        except (OSError, RuntimeError) as error:  # no more watches: 128 a user is a usual limit
            if polling:
                raise
            polling = True
            _log.warning("looking every second for changes: %s", error, extra={"action": "watch_by_polling"})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), LOOK_S / 4)


def _awatch(
    targets: Iterable[Path], stopping: asyncio.Event, polling: bool
) -> AsyncGenerator[set[tuple[Any, str]], None]:
    from watchfiles import awatch  # 60 ms that only a daemon pays, and not in its event loop

    return awatch(
        *targets,
        watch_filter=None,
        debounce=100,
        stop_event=_Stop(stopping),
        rust_timeout=int(LOOK_S * 1000),
        yield_on_timeout=True,
        force_polling=polling or None,
        poll_delay_ms=int(LOOK_S * 1000),
        recursive=False,
    )


class _Stop:
    """What ``awatch`` looks at. It sets its event when it is cancelled, and the caller's is not its to set."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._set = False

    def is_set(self) -> bool:
        return self._set or self._stopping.is_set()

    def set(self) -> None:
        self._set = True


async def _watch_same(
    targets: Mapping[Path, tuple[int, int]],
    roots: Sequence[Path],
    stopping: asyncio.Event,
    *,
    recursive: bool,
    polling: bool,
) -> AsyncIterator[set[Path]]:
    """Watch these very files and folders; return when one of them went away or was replaced, or another came."""
    changes = await asyncio.to_thread(_awatch, targets, stopping, polling)
    known_roots = {path: identity for path, identity in targets.items() if path in roots}
    following = asyncio.ensure_future(anext(changes, None))
    try:
        await asyncio.sleep(0)  # the watch is on once ``awatch`` has come to its first wait
        if not following.done():
            yield set(roots)
        while (batch := await following) is not None:
            flood = len(batch) > _FLOOD
            changed = set(roots) if flood else {Path(name) for _, name in batch}
            following = asyncio.ensure_future(anext(changes, None))
            if changed:
                yield changed
            if _targets(roots, False) != known_roots:
                return
            folders_changed = recursive and (flood or any(path in targets or path.is_dir() for path in changed))
            if folders_changed and await asyncio.to_thread(_targets, roots, True) != targets:
                return
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await changes.aclose()


def _targets(roots: Sequence[Path], recursive: bool) -> dict[Path, tuple[int, int]]:
    """What of ``roots`` (and of the real folders below) is there and may be watched, with its identity."""
    found: dict[Path, tuple[int, int]] = {}
    waiting = list(roots)
    while waiting and len(found) < _MOST_WATCHED:
        path = waiting.pop()
        with contextlib.suppress(OSError):
            status = path.stat()
            if not os.access(path, os.R_OK):
                continue
            found[path] = (status.st_dev, status.st_ino)
            if recursive and stat.S_ISDIR(status.st_mode):
                with os.scandir(path) as entries:
                    waiting.extend(
                        Path(entry.path)
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                    )
    return found

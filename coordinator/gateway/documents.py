"""What retrieval reads: the repository's pages, findings and notes, as documents; and how a document falls into passages.

Owns one invariant: a document's digest tells whether its text is another one, so that nothing is read, cut up and indexed
twice; and no passage is longer than ``PASSAGE_CHARS``. It follows no link out of a folder and reads no file that is not text.
Everything here blocks and is meant for a thread; what is found among passages is ``retrieval``'s.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from coordinator.kit.store import Store

PASSAGE_CHARS: Final = 1500
DOCUMENT_BYTES: Final = 512 * 1024
"""A longer file is no page that somebody wrote to be read."""
DOCUMENTS: Final = 5000
"""Of one origin at most."""

_WRITTEN: Final = (".md", ".rst")
_READABLE: Final = (*_WRITTEN, "", ".adoc", ".markdown", ".txt")
"""What is read below ``docs``: there are pictures and programs there as well."""
_SKIPPED: Final = frozenset({"node_modules", "target", "vendor", "venv"})
"""Folders of other people's pages, left out beside all whose name begins with a dot."""

_FENCE: Final = re.compile(r" {0,3}(```+|~~~+)")
_HEADING: Final = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_RULE: Final = re.compile(r"([=\-~^\"'`*+#:.])\1{2,}[ \t]*$")
"""What stands below a title in reStructuredText, and with ``=`` and ``-`` in Markdown."""
_TITLE_CHARS: Final = 160
_TITLE_LINE_CHARS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """``source`` is what a person would look it up by; ``read`` gives its text when it is wanted (raises ``OSError``)."""

    digest: str
    read: Callable[[], str]
    source: str


def text_documents(texts: Callable[[], Iterable[tuple[str, str]]]) -> Callable[[], Iterator[Document]]:
    """Of (source, text): notes that a memory keeps, say."""

    def documents() -> Iterator[Document]:
        for source, text in texts():
            yield _of_text(source, text)

    return documents


def finding_documents(store: Store) -> Callable[[], Iterator[Document]]:
    """What tools found, now or earlier, but for what a person dismissed; the newest state of each."""

    def texts() -> Iterator[tuple[str, str]]:
        for row in store.query("findings"):
            if row["state"] == "dismissed":
                continue
            place = f"{row['path']}:{row['line']}" if row["line"] else row["path"]
            said = f"{row['tool']} {row['rule']} at {place} ({row['state']}): {row['message']}"
            fixed = f"\nTask {row['task']}: {row['reason']}" if row["task"] and row["reason"] else ""
            yield f"finding {row['tool']} {row['rule']} {place} {row['fingerprint'][:8]}", said + fixed

    return text_documents(texts)


def folder_documents(root: Path) -> Callable[[], Iterator[Document]]:
    """The pages in a folder: ``README*``, ``*.md``, ``*.rst`` and what is text below ``docs``."""

    def documents() -> Iterator[Document]:
        for folder, names, files in os.walk(root):
            names[:] = sorted(name for name in names if not name.startswith(".") and name not in _SKIPPED)
            for name in sorted(files):
                path = os.path.join(folder, name)
                source = os.path.relpath(path, root).replace(os.sep, "/")
                if is_page(source) and (text := _file(path)):
                    yield _of_text(source, text)

    return documents


def _file(path: str) -> str:
    """Empty: no text, or gone, or none of ours to read."""
    try:
        if os.path.islink(path) or os.path.getsize(path) > DOCUMENT_BYTES:
            return ""
        with open(path, "rb") as file:
            return plain(file.read(DOCUMENT_BYTES))
    except OSError:
        return ""


def revision_documents(revision: str, git: Callable[[tuple[str, ...]], bytes]) -> Callable[[], Iterator[Document]]:
    """The same pages as they are in ``revision`` (read anew each time, so that a branch's name follows the branch).

    ``git`` runs one git command in the repository and gives what it prints; git's own blob ids serve as digests, so that only
    pages which changed are read.
    """

    def documents() -> Iterator[Document]:
        listed = git(("ls-tree", "-r", "-l", "-z", "--full-tree", "--end-of-options", revision))
        for line in listed.split(b"\0"):
            head, _, name = line.partition(b"\t")
            words, source = head.split(), name.decode("utf-8", "replace")
            if len(words) != 4 or words[0] not in (b"100644", b"100755") or not words[3].isdigit():
                continue  # links lead elsewhere, and submodules are other repositories
            if int(words[3]) <= DOCUMENT_BYTES and is_page(source) and _own(source):
                yield Document(digest=words[2].decode(), read=_blob(git, words[2].decode()), source=source)

    return documents


def _blob(git: Callable[[tuple[str, ...]], bytes], name: str) -> Callable[[], str]:
    return lambda: plain(git(("cat-file", "blob", name)))


def _of_text(source: str, text: str) -> Document:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(digest=digest, read=lambda: text, source=source)


def is_page(source: str) -> bool:
    """Whether a path (relative, ``/`` between its parts) is of a page that was written to be read."""
    parts = source.lower().split("/")
    name = parts[-1]
    suffix = os.path.splitext(name)[1]
    if suffix in _WRITTEN or (name.startswith("readme") and suffix in _READABLE):
        return True
    return "docs" in parts[:-1] and suffix in _READABLE and not name.startswith(".")


def _own(source: str) -> bool:
    return not any(part.startswith(".") or part in _SKIPPED for part in source.split("/")[:-1])


def plain(data: bytes) -> str:
    """Text with plain line ends; empty when it is none."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")


# -- passages -----------------------------------------------------------------------------------------------------------


def cut_up(text: str) -> Iterator[tuple[str, str]]:
    """The passages of a page: (headings above it, ``A › B``; text), each within one section and ``PASSAGE_CHARS`` long at most.

    Sections begin at headings (``#`` or underlined) outside of fenced code. A longer section is cut between paragraphs, else
    between lines, else where it must be. White space at a passage's ends is dropped, and nothing else is.
    """
    for title, section in _sections(text):
        for piece in _pieces(section):
            if piece.strip():
                yield title, piece.strip("\n").rstrip()


def _sections(text: str) -> Iterator[tuple[str, str]]:
    above: list[tuple[int, str]] = []
    lines: list[str] = []
    ranks: dict[str, int] = {}
    fence = ""
    for line in text.split("\n"):
        opened = _FENCE.match(line)
        if opened is not None and (not fence or (opened[1].startswith(fence) and not line[opened.end() :].strip())):
            fence = "" if fence else opened[1]
        elif not fence and len(line) <= _TITLE_LINE_CHARS:
            found = _HEADING.match(line)
            level, name = (len(found[1]), found[2]) if found is not None else (0, "")
            if found is None and lines and _underlines(line, lines):
                name = lines.pop().strip()
                level = ranks.setdefault(line[0], len(ranks) + 1)
                if lines and _RULE.match(lines[-1]) is not None:
                    lines.pop()  # the line above a title
            if name:
                yield _path(above), "\n".join(lines)
                above = [*(one for one in above if one[0] < level), (level, name)]
                lines = []
                continue
        lines.append(line)
    yield _path(above), "\n".join(lines)


def _underlines(line: str, before: list[str]) -> bool:
    """Whether ``line`` makes a title of the one before it, which stands alone."""
    title = before[-1].strip()
    if not title or len(title) > _TITLE_LINE_CHARS or _RULE.match(line) is None or len(line) + 2 < len(title):
        return False
    alone = len(before) < 2 or not before[-2].strip() or _RULE.match(before[-2]) is not None
    return alone and _RULE.match(title) is None


def _path(above: list[tuple[int, str]]) -> str:
    return " › ".join(name for _, name in above)[:_TITLE_CHARS]


def _pieces(section: str) -> Iterator[str]:
    """Cut where it hurts least, each time as late as it fits."""
    while len(section) > PASSAGE_CHARS:
        window = section[: PASSAGE_CHARS + 1]
        at = next((end for mark in ("\n\n", "\n", " ") if (end := window.rfind(mark)) > PASSAGE_CHARS // 4), 0)
        at = at or PASSAGE_CHARS
        yield section[:at]
        section = section[at:]
    yield section

"""What of the project's own pages, findings and notes bears on a question: an index of passages, and the search in it.

Owns one invariant: nothing of it runs on the gateway's loop: listing, cutting up, indexing and searching are a thread's; and
what is given fits in a budget of tokens. Search is BM25 over SQLite's FTS5 (words by their stem); of a Python whose SQLite has
none, retrieval says that it is unavailable and finds nothing. Where passages go in a prompt is ``prompt``'s.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from coordinator.domain.errors import CoordinatorError
from coordinator.gateway.documents import DOCUMENTS, cut_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from coordinator.gateway.documents import Document
    from coordinator.kit.clock import Clock
    from coordinator.kit.store import Store

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

PASSAGES: Final = 8
BUDGET_TOKENS: Final = 2048
"""Of all passages of one prompt together, as the seed had it."""
REFRESH_S: Final = 30.0

_BYTES_PER_TOKEN: Final = 4
_OVERHEAD_TOKENS: Final = 12
"""What naming a passage's source costs."""
_FORMAT: Final = "1"
"""Part of each digest: with another way of cutting up, everything is indexed anew."""
_LEAST_SHARE: Final = 0.25
"""Of the best passage's score: what has less shares a word with the question, not its subject."""
_LOOKED_AT: Final = 40
_NUMBERS: Final = 10_000
"""Rows that belong to one document; what a document has beyond is not found."""
_BATCH: Final = 100
"""Documents written in one transaction: the daemon's own writing waits no longer than for these."""

_WORD: Final = re.compile(r"[^\W_]{2,60}")
_WORDS: Final = 48
"""Different words of a question that are searched for."""
_ENDS_CHARS: Final = 4000
"""Of a long prompt its beginning and its end are read: what is asked stands there, and what it is about."""
_STOP_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        "a about after all also an and any are as at be because been before being but by can could did do does "
        "doing done for from get give go had has have he her here him his how i if in into is it its just let "
        "like make may me might more most must my need no not now of off on one only or other our out over please "
        "put said same say see she should so some such take tell than that the their them then there these they "
        "this those through to too under up us use very want was way we well were what when where which while who "
        "whom whose why will with would yes you your ve ll re don didn doesn isn",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """``source`` names the page and the headings above; ``tokens`` is an estimate."""

    source: str
    text: str
    tokens: int


class Retrieval:
    """``origins`` list documents by where they come from; they are called in a thread, and may raise ``OSError`` or one of our
    own errors: then what was indexed of that origin stays. Lives on one loop; ``close`` when it ends.

    ``trouble``: why nothing (or nothing new) can be found; empty when all is well.
    """

    def __init__(
        self,
        store: Store,
        origins: Mapping[str, Callable[[], Iterable[Document]]],
        clock: Clock,
        *,
        budget_tokens: int = BUDGET_TOKENS,
        most: int = PASSAGES,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._budget_tokens = budget_tokens
        self._clock = clock
        self._due_at = 0.0
        self._index = PassageIndex(store)
        self._most = most
        self._origins = dict(origins)
        self._ready = False
        self._refresh_s = refresh_s
        self._refreshing: asyncio.Task[None] | None = None
        self.trouble = ""

    async def find(self, question: str) -> tuple[Passage, ...]:
        """The best passages, the best first. The first one to ask waits until there is an index; later ones get what there is,
        while it is brought up to date beside them."""
        match = match_of(question)
        if not match:
            return ()
        if self._refreshing is None and self._clock.monotonic() >= self._due_at:
            self._refreshing = asyncio.create_task(self._refresh())
        if not self._ready and self._refreshing is not None:
            await asyncio.shield(self._refreshing)
        if not self._ready:
            return ()
        rows = await asyncio.to_thread(self._search, match)
        return fitting(rows, most=self._most, budget_tokens=self._budget_tokens)

    async def close(self) -> None:
        """Wait for what is being indexed. Safe to call twice."""
        if self._refreshing is not None:
            await self._refreshing

    async def _refresh(self) -> None:
        try:
            trouble = await asyncio.to_thread(self._bring_up_to_date)
        finally:
            self._due_at = self._clock.monotonic() + self._refresh_s
            self._refreshing = None
        if trouble and trouble != self.trouble:
            _log.warning("retrieval: %s", trouble, extra={"action": "retrieval_troubled"})
        self.trouble = trouble

    # -- in a thread ---------------------------------------------------------------------------------------------------

    def _bring_up_to_date(self) -> str:
        """What went wrong."""
        wrong: list[str] = []
        try:
            self._index.make()
        except sqlite3.Error as error:
            return f"retrieval is unavailable: {error}"
        for origin, documents in self._origins.items():
            try:
                self._index.update(origin, itertools.islice(documents(), DOCUMENTS))
            except (CoordinatorError, OSError, sqlite3.Error) as error:
                wrong.append(f"{origin} cannot be read: {error}")
        self._ready = True
        return "; ".join(wrong)

    def _search(self, match: str) -> list[tuple[str, str, float]]:
        try:
            return self._index.search(match)
        except sqlite3.Error as error:
            _log.warning("retrieval: %s", error, extra={"action": "retrieval_failed"})
            return []


class PassageIndex:
    """The tables. Each document has ``_NUMBERS`` row numbers of its own, so that it is taken out without a look at others."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def make(self) -> None:
        """Raises ``sqlite3.OperationalError`` where there is no FTS5."""
        self._store.execute("passages_make")
        self._store.execute("passage_documents_make")

    def update(self, origin: str, documents: Iterable[Document]) -> int:
        """Make the index hold these of ``origin`` and no others; returns how many had to be indexed. Raises what listing or
        reading them raises; then everything before stands."""
        known = {row["source"]: row for row in self._store.query("passage_documents", origin=origin)}
        now = {document.source: document for document in documents}
        fresh = [one for one in now.values() if one.source not in known or known[one.source]["digest"] != _mark(one)]
        for batch in _batches(fresh):
            read = [(document, list(itertools.islice(cut_up(document.read()), _NUMBERS))) for document in batch]
            with self._store.transaction():
                for document, passages in read:
                    self._drop(known.get(document.source))
                    self._add(origin, document, passages)
        for gone in _batches([row for source, row in known.items() if source not in now]):
            with self._store.transaction():
                for row in gone:
                    self._drop(row)
        return len(fresh)

    def _add(self, origin: str, document: Document, passages: Sequence[tuple[str, str]]) -> None:
        self._store.execute("passage_document_add", origin=origin, source=document.source, digest=_mark(document))
        found = self._store.query("passage_document", origin=origin, source=document.source)
        first = found[0]["number"] * _NUMBERS
        rows = [
            {"number": first + at, "source": document.source, "text": text, "title": title}
            for at, (title, text) in enumerate(passages)
        ]
        self._store.execute_many("passage_add", rows)

    def _drop(self, row: sqlite3.Row | None) -> None:
        if row is not None:
            first = row["number"] * _NUMBERS
            self._store.execute("passages_drop", first=first, last=first + _NUMBERS - 1)
            self._store.execute("passage_document_drop", number=row["number"])

    def search(self, match: str) -> list[tuple[str, str, float]]:
        """(source, text, score), the best first; a score is above 0, and more is better."""
        rows = self._store.query("passages_find", match=match, limit=_LOOKED_AT)
        return [
            (f"{row['source']} › {row['title']}" if row["title"] else row["source"], row["text"], -row["score"])
            for row in rows
        ]


def _mark(document: Document) -> str:
    return f"{_FORMAT}:{document.digest}"


def _batches(items: list[_T]) -> Iterable[list[_T]]:
    return (items[at : at + _BATCH] for at in range(0, len(items), _BATCH))


def match_of(question: str) -> str:
    """An FTS5 expression: any of the question's words but those that every question has. Words are letters and digits in
    quotation marks, so that nothing in a question is read as an operator. Empty: there is nothing to search for."""
    if len(question) > 2 * _ENDS_CHARS:
        question = f"{question[:_ENDS_CHARS]} {question[-_ENDS_CHARS:]}"
    words = dict.fromkeys(word for word in _WORD.findall(question.lower()) if word not in _STOP_WORDS)
    return " OR ".join(f'"{word}"' for word in itertools.islice(words, _WORDS))


def fitting(rows: Iterable[tuple[str, str, float]], *, most: int, budget_tokens: int) -> tuple[Passage, ...]:
    """Of (source, text, score), best first: what is near the best, says nothing twice and fits in the budget together."""
    passages: list[Passage] = []
    said: set[str] = set()
    least = 0.0
    for source, text, score in rows:
        least = least or score * _LEAST_SHARE
        tokens = len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1 + _OVERHEAD_TOKENS
        if score < least or text in said or tokens > budget_tokens:
            continue
        said.add(text)
        budget_tokens -= tokens
        passages.append(Passage(source=source, text=text, tokens=tokens))
        if len(passages) == most:
            break
    return tuple(passages)

"""Passages: how documents fall into them, what a question finds, when anything is indexed anew, and where they are put."""

from __future__ import annotations

import asyncio
import functools
import json
import sqlite3
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.errors import ToolFailed
from coordinator.gateway import documents as module
from coordinator.gateway import retrieval
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.documents import (
    PASSAGE_CHARS,
    Document,
    cut_up,
    finding_documents,
    folder_documents,
    revision_documents,
    text_documents,
)
from coordinator.gateway.prompt import appended, context_of
from coordinator.gateway.retrieval import Passage, PassageIndex, Retrieval, fitting, match_of
from coordinator.kit.clock import SystemClock
from coordinator.kit.store import QUERIES, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

GUIDE = """# Guide

Welcome.

## Install

Run the installer with `--quiet`.

```sh
# not a heading
make install
```

## Breakers

A circuit breaker opens after three failures.
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(tmp_path / "ledger.db")
    yield made
    made.close()


class Pages:
    """An origin whose texts a test changes; it counts what is read of it."""

    def __init__(self, **texts: str) -> None:
        self.fault: Exception | None = None
        self.reads: list[str] = []
        self.texts = texts

    def __call__(self) -> Iterator[Document]:
        if self.fault is not None:
            raise self.fault
        for source, text in self.texts.items():
            yield Document(digest=str(hash(text)), read=lambda source=source: self._read(source), source=source)  # type: ignore[misc]

    def _read(self, source: str) -> str:
        self.reads.append(source)
        return self.texts[source]


def made(store: Store, **more: Any) -> Retrieval:
    origins = more.pop("origins", {"docs": Pages(guide=GUIDE)})
    return Retrieval(store, origins, SystemClock(), **{"refresh_s": 0.0, **more})


async def found(one: Retrieval, question: str) -> list[str]:
    sources = [passage.source for passage in await one.find(question)]
    await one.close()
    return sources


# -- passages -----------------------------------------------------------------------------------------------------------


def test_sections_fall_apart_at_headings() -> None:
    assert list(cut_up(GUIDE)) == [
        ("Guide", "Welcome."),
        ("Guide › Install", "Run the installer with `--quiet`.\n\n```sh\n# not a heading\nmake install\n```"),
        ("Guide › Breakers", "A circuit breaker opens after three failures."),
    ]


def test_titles_that_are_underlined() -> None:
    text = (
        "=====\nTitle\n=====\n\nOne.\n\nPart\n----\nTwo.\n\n---\n\nStill two.\n\nOther\n=====\nThree.\n\n| a |\n|---|\n"
    )
    assert list(cut_up(text)) == [
        ("Title", "One."),
        ("Title › Part", "Two.\n\n---\n\nStill two."),
        ("Other", "Three.\n\n| a |\n|---|"),
    ]


def test_a_long_section_is_cut_where_it_hurts_least() -> None:
    paragraph = "word " * 100
    pieces = [text for _, text in cut_up(f"# T\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}")]
    assert [len(piece) <= PASSAGE_CHARS for piece in pieces] == [True, True]
    assert {piece.count("word") for piece in pieces} == {200}
    assert [len(text) for _, text in cut_up("x" * 4000)] == [1500, 1500, 1000]


@given(st.text(alphabet=st.sampled_from("ab #=-~`\n\r\t.é"), max_size=400), st.integers(1, 40))
def test_no_word_is_lost_and_none_is_too_long(text: str, times: int) -> None:
    page = text * times
    passages = list(cut_up(page))
    assert all(0 < len(piece) <= PASSAGE_CHARS and piece.strip() for _, piece in passages)
    said = "".join(f"{title}{piece}" for title, piece in passages)
    if not any(mark in page for mark in "#=-~`."):
        assert "".join(said.split()) == "".join(page.split())


# -- what is read -------------------------------------------------------------------------------------------------------


def git(top: Path) -> Callable[[tuple[str, ...]], bytes]:
    def run(args: tuple[str, ...]) -> bytes:
        done = subprocess.run(["git", "-C", str(top), *args], check=False, capture_output=True)
        if done.returncode:
            raise ToolFailed(done.stderr.decode())
        return done.stdout

    return run


def a_repository(top: Path) -> Callable[[tuple[str, ...]], bytes]:
    for name, data in {
        "README": b"read me\r\nfirst",
        "docs/deep/one.txt": b"one",
        "docs/picture.png": b"\x89PNG\0",
        "docs/broken.md": b"\xff\xfe",
        "src/notes.rst": "Ümlaut".encode(),
        "src/code.py": b"pass",
        ".hidden/x.md": b"hidden",
        "node_modules/a/README.md": b"foreign",
        "empty.md": b"",
    }.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (top / "docs/link.md").symlink_to("/etc/hostname")
    (top / "docs/big.md").write_bytes(b"x" * (module.DOCUMENT_BYTES + 1))
    run = git(top)
    for args in (("init", "-q", "-b", "main"), ("add", "-A", "-f")):
        run(args)
    run(("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one"))
    return run


PAGES = {"README": "read me\nfirst", "docs/deep/one.txt": "one", "src/notes.rst": "Ümlaut"}


def test_pages_of_a_folder(tmp_path: Path) -> None:
    a_repository(tmp_path)
    assert {one.source: one.read() for one in folder_documents(tmp_path)()} == PAGES
    assert list(folder_documents(tmp_path / "nowhere")()) == []


def test_pages_of_a_revision(tmp_path: Path) -> None:
    run = a_repository(tmp_path)
    documents = revision_documents("main", run)
    texts = {one.source: one.read() for one in documents()}
    assert {source: text for source, text in texts.items() if text} == PAGES
    assert set(texts) - set(PAGES) == {"docs/broken.md", "empty.md"}  # no text in them
    before = {one.source: one.digest for one in documents()}
    (tmp_path / "README").write_text("other")
    assert {one.source: one.digest for one in documents()} == before  # it is the revision that counts
    run(("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-a", "-m", "two"))
    after = {one.source: one.digest for one in documents()}
    assert {source for source in before if before[source] != after[source]} == {"README"}
    with pytest.raises(ToolFailed):
        list(revision_documents("--nowhere", run)())


def test_findings_are_documents(store: Store) -> None:
    row = dict.fromkeys(("fix", "reason", "data", "first_seen", "last_seen"), "")
    for mark, state in (("aaaaaaaa1", "open"), ("bbbbbbbb2", "dismissed"), ("cccccccc3", "fixed")):
        place = {"tool": "ruff", "rule": "F401", "path": "src/a.py", "line": 3, "severity": 3, "task": "t"}
        store.execute("finding_put", **{**row, **place, "fingerprint": mark, "state": state, "message": "os is unused"})
    texts = {one.source: one.read() for one in finding_documents(store)()}
    assert texts == {
        "finding ruff F401 src/a.py:3 aaaaaaaa": "ruff F401 at src/a.py:3 (open): os is unused",
        "finding ruff F401 src/a.py:3 cccccccc": "ruff F401 at src/a.py:3 (fixed): os is unused",
    }


# -- the search ---------------------------------------------------------------------------------------------------------


async def test_the_best_passage_comes_first(store: Store) -> None:
    notes = text_documents(lambda: [("note 7", "Breakers of upstream nine were slow."), ("note 8", "Cats sleep.")])
    one = made(store, origins={"docs": Pages(guide=GUIDE), "notes": notes})
    assert (await found(one, "When do circuit breakers open?"))[:1] == ["guide › Guide › Breakers"]
    assert await found(one, "sleeping CAT") == ["note 8"]
    assert "note 7" in await found(one, "breaker of an upstream")
    assert await found(one, "what is it, and why?") == []
    assert await found(one, "zebra") == []
    passages = await one.find("installer --quiet")
    assert passages[0].text.startswith("Run the installer")
    await one.close()


@settings(max_examples=300)
@given(st.text(max_size=300))
def test_no_question_is_an_expression(question: str) -> None:
    store = a_shared_store()
    match = match_of(question)
    if match:
        PassageIndex(store).search(match)


@functools.cache
def a_shared_store() -> Store:
    connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    connection.row_factory = sqlite3.Row
    index = PassageIndex(Store(connection))
    index.make()
    index.update("docs", Pages(guide=GUIDE)())
    return index._store


@pytest.mark.parametrize(
    "question",
    ['" OR "', "NEAR(circuit breaker, 2)", "circuit* AND NOT", "title : circuit", "(((", "circuit -breaker^"],
)
def test_signs_of_the_query_language_mean_nothing(question: str) -> None:
    match = match_of(question)
    rows = PassageIndex(a_shared_store()).search(match) if match else []
    assert bool(rows) == ("circuit" in question)


def test_long_questions_are_read_at_both_ends() -> None:
    question = "alpha " + "the of and " * 5000 + "middle " + "the of and " * 5000 + "omega"
    assert match_of(question) == '"alpha" OR "omega"'
    assert match_of(" ".join(f"w{number}" for number in range(500))).count(" OR ") == 47


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=60), st.floats(0, 50)), max_size=40),
    st.integers(1, 10),
    st.integers(0, 200),
)
def test_passages_fit_in_their_budget(rows: list[tuple[str, str, float]], most: int, budget: int) -> None:
    rows = sorted(rows, key=lambda row: -row[2])
    passages = fitting(rows, most=most, budget_tokens=budget)
    assert len(passages) <= most
    assert sum(one.tokens for one in passages) <= budget
    assert len({one.text for one in passages}) == len(passages)
    assert all(one.tokens >= len(one.text) // 4 for one in passages)


def test_what_only_shares_a_word_is_left_out() -> None:
    assert [
        one.source for one in fitting([("a", "x", 8.0), ("b", "y", 3.0), ("c", "z", 1.0)], most=9, budget_tokens=99)
    ] == ["a", "b"]
    assert [one.source for one in fitting([("a", "x" * 400, 8.0), ("b", "y", 3.0)], most=9, budget_tokens=50)] == ["b"]


# -- indexing -----------------------------------------------------------------------------------------------------------


async def test_only_what_changed_is_read_again(store: Store) -> None:
    pages = Pages(one="Alpha beta.", two="Gamma delta.")
    one = made(store, origins={"docs": pages})
    assert await found(one, "gamma") == ["two"]
    assert sorted(pages.reads) == ["one", "two"]
    await found(one, "gamma")
    await found(one, "gamma")
    assert len(pages.reads) == 2
    pages.texts = {"two": "Epsilon.", "three": "Zeta."}
    await found(one, "gamma")  # what there is; the index is brought up to date beside it
    assert await found(one, "gamma") == []
    assert await found(one, "epsilon zeta") == ["three", "two"] or await found(one, "epsilon zeta") == ["two", "three"]
    assert await found(one, "alpha") == []
    assert sorted(pages.reads[2:]) == ["three", "two"]
    fresh = made(store, origins={"docs": pages})
    assert await found(fresh, "zeta") == ["three"]  # another run finds it as it was
    assert len(pages.reads) == 4


async def test_what_cannot_be_listed_keeps_what_it_had(store: Store) -> None:
    pages, notes = Pages(one="Alpha."), Pages(note="Beta.")
    one = made(store, origins={"docs": pages, "notes": notes})
    assert await found(one, "alpha beta") != []
    pages.fault, notes.texts = ToolFailed("git is gone"), {"note": "Gamma."}
    await found(one, "alpha")
    assert one.trouble == "docs cannot be read: git is gone"
    assert await found(one, "alpha") == ["one"]
    assert await found(one, "gamma") == ["note"]
    pages.fault = None
    await found(one, "alpha")
    await found(one, "alpha")
    assert one.trouble == ""


async def test_it_works_in_a_thread_and_refreshes_once_at_a_time(store: Store) -> None:
    threads: set[str] = set()
    going, listed = threading.Event(), 0

    def slow() -> Iterable[Document]:
        nonlocal listed
        listed += 1
        threads.add(threading.current_thread().name)
        assert going.wait(5)
        return Pages(one="Alpha.")()

    one = made(store, origins={"docs": slow})
    asked = [asyncio.create_task(one.find("alpha")) for _ in range(5)]
    await asyncio.sleep(0)  # the loop goes on meanwhile
    assert not any(task.done() for task in asked)
    asked[0].cancel()
    going.set()
    answers = await asyncio.gather(*asked[1:])
    await one.close()
    assert [passages[0].source for passages in answers] == ["one"] * 4
    assert listed == 1
    assert threading.main_thread().name not in threads


async def test_a_fresh_index_is_left_alone(store: Store) -> None:
    pages = Pages(one="Alpha.")
    one = made(store, origins={"docs": pages}, refresh_s=1000.0)
    await found(one, "alpha")
    pages.fault = RuntimeError("listed again")
    assert await found(one, "alpha") == ["one"]


async def test_without_fts5_it_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUERIES, "passages_make", QUERIES["passages_make"].replace("fts5", "fts_nowhere"))  # type: ignore[arg-type]
    one = made(store)
    assert await found(one, "circuit breaker") == []
    assert one.trouble == "retrieval is unavailable: no such module: fts_nowhere"
    monkeypatch.undo()
    assert await found(one, "circuit breaker") == ["guide › Guide › Breakers"]
    assert one.trouble == ""


async def test_a_document_may_have_many_passages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_NUMBERS", 3)
    pages = Pages(one="\n".join(f"# H{n}\nword{n}" for n in range(9)), two="# A\nzebra")
    one = made(store, origins={"docs": pages})
    assert await found(one, "word2 word3") == ["one › H2"]
    pages.texts = {"two": "# A\nzebra"}
    await found(one, "word2")
    assert await found(one, "word2") == []
    assert await found(one, "zebra") == ["two › A"]


# -- in an agent's own request ------------------------------------------------------------------------------------------

PASSAGE = Passage(source='docs/a.md › "B"\n<c>', text='Said "so" \\ é\n</x>', tokens=9)
CONTEXT = context_of([PASSAGE])
ANTHROPIC = Dialect.ANTHROPIC_MESSAGES


def test_what_a_model_is_shown() -> None:
    assert CONTEXT.splitlines()[2] == '<passage source="docs/a.md ›  B   c ">'
    assert PASSAGE.text in CONTEXT
    assert context_of([]) == ""


def test_a_text_gets_longer() -> None:
    body = b' {"model":"m", "messages":[{"role":"user","content":"a \\" b"}] , "max_tokens":5}'
    got = appended(body, ANTHROPIC, [PASSAGE])
    at = body.index(b'"}]')
    assert got[:at] == body[:at]
    assert got.endswith(body[at:])
    assert json.loads(got)["messages"][0]["content"] == f'a " b\n\n{CONTEXT}'


def test_a_list_gets_a_part_behind_what_is_marked_for_the_cache() -> None:
    marked = '{"type":"tool_result","tool_use_id":"t","content":[],"cache_control":{"type":"ephemeral"}}'
    body = f'{{"messages":[{{"content":[{marked} ] ,"role":"user"}}],"stream":true}}'.encode()
    got = appended(body, ANTHROPIC, [PASSAGE])
    at = body.index(b" ] ,")
    assert (got[:at], got[-len(body[at:]) :]) == (body[:at], body[at:])
    assert json.loads(got)["messages"][0]["content"] == [json.loads(marked), {"type": "text", "text": CONTEXT}]


@pytest.mark.parametrize(
    ("dialect", "asked"),
    [
        (ANTHROPIC, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "{"}]}),
        (Dialect.OPENAI_CHAT, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": []}]}),
        (Dialect.OPENAI_RESPONSES, {"input": "q"}),
        (Dialect.OPENAI_RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]}),
    ],
)
def test_where_it_is_put(dialect: Dialect, asked: dict[str, Any]) -> None:
    got = json.loads(appended(json.dumps(asked).encode(), dialect, [PASSAGE]))
    assert CONTEXT in json.dumps(got, ensure_ascii=False).replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    if isinstance(got.get("input"), list):
        assert got["input"][0]["content"][1] == {"type": "input_text", "text": CONTEXT}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (ANTHROPIC, b"no json"),
        (ANTHROPIC, b"[]"),
        (ANTHROPIC, b'{"messages":{}}'),
        (ANTHROPIC, b'{"messages":[]}'),
        (ANTHROPIC, b'{"messages":[5]}'),
        (ANTHROPIC, b'{"messages":[{"role":"user"}]}'),
        (ANTHROPIC, b'{"messages":[{"role":"user","content":null}]}'),
        (ANTHROPIC, b'{"messages":[{"role":"user","content":"a","content":"b"}]}'),
        (ANTHROPIC, b'{"messages":[{"role":"user","content":"a"},{"role":"other","content":"b"}]}'),
        (ANTHROPIC, b'{"messages":[],"messages":[{"role":"user","content":"a"}]}'),
        (
            Dialect.OPENAI_CHAT,
            b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[]},{"role":"tool","content":"x"}]}',
        ),
        (Dialect.GOOGLE_GENERATE, b'{"contents":[{"role":"user","parts":[{"text":"a"}]}]}'),
    ],
)
def test_what_has_no_place_for_it_goes_as_it_came(dialect: Dialect, body: bytes) -> None:
    assert appended(body, dialect, [PASSAGE]) == body


def test_nothing_is_nothing() -> None:
    body = b'{"messages":[{"role":"user","content":"a"}]}'
    assert appended(body, ANTHROPIC, []) is body


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PART = st.fixed_dictionaries(
    {"type": st.just("text"), "text": st.text(max_size=20)}, optional={"cache_control": JSON, "x": JSON}
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=20) | st.lists(PART, max_size=3)},
    optional={"y": JSON},
)
REQUEST = st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=4)}, optional={"system": JSON, "tools": JSON, "messagez": JSON}
)


@given(REQUEST, st.randoms(use_true_random=False), st.booleans(), st.sampled_from(["", " ", "\n\t"]))
def test_every_byte_before_it_stays_where_it_was(
    asked: dict[str, Any], chance: Any, ascii_only: bool, space: str
) -> None:
    keys = list(asked)
    chance.shuffle(keys)
    text = json.dumps(
        {key: asked[key] for key in keys}, ensure_ascii=ascii_only, separators=(f"{space},{space}", f"{space}:{space}")
    )
    body = f"{space}{text}{space}".encode("utf-8", "surrogatepass")
    got = appended(body, ANTHROPIC, [PASSAGE])
    turns = asked["messages"]
    last = next((turn for turn in reversed(turns[-2:]) if turn["role"] == "user"), None)
    if last is None:
        assert got == body
        return
    more = len(got) - len(body)
    same = next(at for at in range(len(body) + 1) if at == len(body) or got[at] != body[at])
    assert any(got[:at] == body[:at] and got[at + more :] == body[at:] for at in range(same + 1))
    expected = json.loads(body)
    turn = expected["messages"][-1 if turns[-1]["role"] == "user" else -2]
    if isinstance(turn["content"], str):
        turn["content"] += f"\n\n{CONTEXT}"
    else:
        turn["content"].append({"type": "text", "text": CONTEXT})
    assert json.loads(got) == expected

"""Reading what people left in a folder, and hearing of changes: real files, real watches."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tomllib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.errors import BadInput
from coordinator.domain.settings import Settings
from coordinator.domain.taskfile import parse
from coordinator.kit import files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TASK = '[[tasks]]\nid = "a"\nprompt = "p"\n'


def test_a_scan_sees_files_and_says_what_it_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TASK)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.toml").write_text(TASK)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "folder.toml" / "inside.toml").write_text(TASK)
    (tmp_path / "link.toml").symlink_to("a.toml")
    (tmp_path / "everything").symlink_to("/")
    (tmp_path / "dangling.toml").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / ".#a.toml").symlink_to("user@host")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.toml").write_text(TASK)
    (tmp_path / "a.toml~").write_text(TASK)
    scan = files.scan_toml(tmp_path)
    assert set(scan.files) == {"a.toml", "deep/er/b.toml", "folder.toml/inside.toml"}
    assert set(scan.odd) == {"folder.toml", "link.toml", "everything", "dangling.toml", "pipe.toml"}
    assert scan.folders == ("", "deep", "deep/er", "folder.toml")
    assert scan.unreadable == {}


def test_a_missing_folder_is_an_empty_one(tmp_path: Path) -> None:
    scan = files.scan_toml(tmp_path / "none")
    assert (scan.files, scan.folders, scan.unreadable) == ({}, (), {})


def test_endless_depth_ends(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 80)
    deep.mkdir(parents=True)
    (deep / "a.toml").write_text(TASK)
    scan = files.scan_toml(tmp_path)
    assert scan.files == {}
    assert len(scan.odd) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text(TASK.replace("p", "q")),
        lambda path: (path.with_name("new").write_text(TASK), os.replace(path.with_name("new"), path)),
        lambda path: (os.utime(path, ns=(1, 1)), path.write_text("x" * 37), os.utime(path, ns=(5, 5))),
        lambda path: path.chmod(0o600),
    ],
)
def test_every_change_of_a_file_changes_its_stamp(tmp_path: Path, change: object) -> None:
    path = tmp_path / "a.toml"
    path.write_text(TASK)
    os.utime(path, ns=(5, 5))
    before = files.scan_toml(tmp_path).files["a.toml"]
    change(path)  # type: ignore[operator]
    assert files.scan_toml(tmp_path).files["a.toml"] != before


def reason(path: Path) -> files.Unread:
    text = files.read_text(path)
    assert isinstance(text, files.Unread)
    return text


def test_what_is_no_plain_text_gives_a_sentence_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "bad").write_bytes(b"a = 1\nb = '\xff'\n")
    assert reason(tmp_path / "pipe").reason == "is no regular file"
    assert reason(tmp_path / "socket").reason.startswith("cannot be opened")
    assert reason(tmp_path / "link").reason == "is a symbolic link, which is not followed"
    assert reason(tmp_path).reason == "is no regular file"
    assert reason(tmp_path / "none").gone
    assert not reason(tmp_path / "pipe").gone
    bad = reason(tmp_path / "bad")
    assert (bad.reason, bad.line) == ("is not UTF-8 at byte 11 (0xff)", 2)


def test_fifty_megabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    with path.open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    assert reason(path).reason == "has 50.0 MB and is not read"
    assert isinstance(files.read_text(path, largest_bytes=60 * 1024 * 1024), str)


def test_a_file_that_grows_while_it_is_read_stops_at_the_limit() -> None:
    """``/proc`` files have size 0 and content, like a file that grew after it was looked at."""
    text = files.read_text("/proc/self/status", largest_bytes=10)
    assert isinstance(text, files.Unread)


def test_names_that_are_no_text_can_be_shown(tmp_path: Path) -> None:
    names = [b"\xff.toml", b"a\nb.toml", b"\\xff.toml", b"a\\nb.toml", "ä.toml".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write(TASK)
    shown = {files.shown(name) for name in files.scan_toml(tmp_path).files}
    assert len(shown) == len(names)
    assert all(name.isprintable() and name.encode() for name in shown)
    assert "ä.toml" in shown


# -- settings ------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_first_file_that_has_them(tmp_path: Path) -> None:
    assert files.read_settings(tmp_path) == Settings()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'coordinator-fan'\n")
    assert files.read_settings(tmp_path) == Settings()
    (tmp_path / "pyproject.toml").write_text("[tool.coordinator.fleet]\nagents = 7\n")
    assert files.read_settings(tmp_path).fleet.agents == 7
    (tmp_path / "coordinator.toml").write_bytes(b"\xef\xbb\xbf[fleet]\r\nmax_attempts = 9\r\n")
    assert files.read_settings(tmp_path).fleet.agents == Settings().fleet.agents
    assert files.read_settings(tmp_path).fleet.max_attempts == 9


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coordinator.toml", b"[fleet]\nagents = 0\n", "coordinator.toml:2: fleet.agents"),
        ("coordinator.toml", b"[fleet\n", "coordinator.toml:1: not valid TOML"),
        ("coordinator.toml", b"a = '\xff'", "coordinator.toml:1: is not UTF-8"),
        ("pyproject.toml", b"[tool.coordinator\n", "pyproject.toml:1: not valid TOML"),
        (
            "pyproject.toml",
            b"\n[tool.coordinator.fleet]\nagents = 0\n",
            "pyproject.toml:3: tool.coordinator.fleet.agents",
        ),
        ("pyproject.toml", b"tool = {coordinator = 3}\n", "tool.coordinator"),
    ],
)
def test_faulty_settings_refuse_and_name_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        files.read_settings(tmp_path)
    assert message in str(caught.value)


def test_settings_that_are_a_folder_or_a_dangling_link_refuse(tmp_path: Path) -> None:
    (tmp_path / "coordinator.toml").symlink_to("nowhere")
    with pytest.raises(BadInput):
        files.read_settings(tmp_path)
    (tmp_path / "coordinator.toml").unlink()
    (tmp_path / "coordinator.toml").mkdir()
    with pytest.raises(BadInput):
        files.read_settings(tmp_path)


# -- writing -------------------------------------------------------------------------------------------------------


def test_a_new_file_is_whole_and_never_in_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "tasks" / "a.toml"
    files.write_new(path, TASK)
    assert path.read_text() == TASK
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(FileExistsError):
        files.write_new(path, "other")
    assert path.read_text() == TASK
    assert os.listdir(path.parent) == ["a.toml"]


words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=30) | st.sampled_from(
    ['"""', "'''", "\\", 'x"', "a\nb", "\na", "a\r\nb", "a\\\nb", '"', "\ttab", "# no comment", '""""""\n']
)


@settings(max_examples=200, deadline=None)
@given(
    words.filter(lambda text: bool(text.strip())),
    st.lists(words, max_size=5),
    st.dictionaries(words, words, max_size=2),
)
def test_a_written_task_reads_back_as_it_was_meant(prompt: str, accept: list[str], env: dict[str, str]) -> None:
    values = {"id": "a", "prompt": prompt, "priority": 3, "accept": accept, "title": "", "env": env}
    text = files.task_text(values, comment="Made by a test.\nTwice.")
    (table,) = tomllib.loads(text)["tasks"]
    assert table == {key: value for key, value in values.items() if value not in ("", [], {})}
    assert text.startswith("# Made by a test.\n# Twice.\n")
    assert parse(text, "f").readable


# -- watching ------------------------------------------------------------------------------------------------------


class Watch:
    """Collects what a watch says, so that a test can wait for it."""

    def __init__(self) -> None:
        self.told: list[set[Path]] = []
        self._news = asyncio.Event()

    async def follow(self, changes: AsyncIterator[set[Path]]) -> None:
        async for changed in changes:
            self.told.append(changed)
            self._news.set()

    async def until(self, path: Path, *, after: int = 0) -> None:
        async with asyncio.timeout(10):
            while not any(path in changed for changed in self.told[after:]):
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def watching(*paths: Path, recursive: bool = False) -> AsyncIterator[Watch]:
    stopping = asyncio.Event()
    watch = Watch()
    task = asyncio.create_task(watch.follow(files.watch(paths, stopping, recursive=recursive)))
    try:
        yield watch
        assert not task.done(), task
    finally:
        stopping.set()
        await asyncio.wait_for(task, 5)


async def test_a_watch_begins_with_everything_and_goes_on_with_what_changed(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        await watch.until(tmp_path)
        seen = len(watch.told)
        (tmp_path / "a.toml").write_text("x")
        await watch.until(tmp_path / "a.toml", after=seen)
        seen = len(watch.told)
        (tmp_path / ".new").write_text("y")
        os.replace(tmp_path / ".new", tmp_path / "a.toml")
        await watch.until(tmp_path / "a.toml", after=seen)
        seen = len(watch.told)
        (tmp_path / "a.toml").unlink()
        await watch.until(tmp_path / "a.toml", after=seen)


async def test_a_root_that_is_missing_comes_goes_and_is_replaced(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    other.mkdir()
    async with watching(root, other) as watch:
        await watch.until(other)
        for _ in range(2):
            seen = len(watch.told)
            root.mkdir()
            await watch.until(root, after=seen)
            seen = len(watch.told)
            (root / "a").write_text("x")
            await watch.until(root / "a", after=seen)
            seen = len(watch.told)
            os.rename(root, tmp_path / f"away-{seen}")
            await watch.until(root, after=seen)


async def test_new_folders_are_watched_and_links_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "old").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "everything").symlink_to("/")
    async with watching(root, recursive=True) as watch:
        await watch.until(root)
        seen = len(watch.told)
        (root / "new" / "er").mkdir(parents=True)
        await watch.until(root, after=seen)
        seen = len(watch.told)
        (outside / "secret").write_text("x")
        (root / "new" / "er" / "a.toml").write_text("x")
        await watch.until(root / "new" / "er" / "a.toml", after=seen)
        (root / "old" / "b.toml").write_text("x")
        await watch.until(root / "old" / "b.toml", after=seen)
        assert not any("secret" in path.name for changed in watch.told for path in changed)


async def test_a_flood_is_told_as_look_at_everything(tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        await watch.until(tmp_path)
        seen = len(watch.told)
        for number in range(1500):
            (tmp_path / f"{number}.toml").touch()
        await watch.until(tmp_path, after=seen)
        assert max(len(changed) for changed in watch.told) <= 500


async def test_a_cancelled_watch_does_not_tell_the_caller_to_stop(tmp_path: Path) -> None:
    stopping = asyncio.Event()
    watch = Watch()
    task = asyncio.create_task(watch.follow(files.watch([tmp_path], stopping)))
    await watch.until(tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not stopping.is_set()


_WITHOUT_INOTIFY = """
import asyncio, sys
from pathlib import Path
from coordinator.kit import files

async def main():
    root, stopping = Path(sys.argv[1]), asyncio.Event()
    async for changed in files.watch([root], stopping):
        if changed == {root}:
            (root / "a.toml").write_text("x")
        elif root / "a.toml" in changed:
            print("seen")
            return

asyncio.run(asyncio.wait_for(main(), 20))
"""


def test_without_watches_from_the_system_it_looks_by_itself(tmp_path: Path) -> None:
    limit = "echo 0 > /proc/sys/user/max_inotify_instances && exec "
    command = limit + '"$0" -c "$1" "$2"'
    unshare = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*unshare, limit + "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot run here: needs user namespaces")
    done = subprocess.run(
        [*unshare, command, sys.executable, _WITHOUT_INOTIFY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.stdout == "seen\n", done.stderr
    assert "looking every second" in done.stderr

"""Brings the commits an agent made in its private clone into the user's repository.

Owns one invariant: git never runs with the clone as its repository. Names are read as plain files without following
links; objects are read as a mere object folder, re-hashed and checked on their way in, and linked to nothing but what
came with them. Garbage imports nothing and says why. Refs are the caller's to make.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.domain.errors import ToolFailed
from coordinator.kit.git_tips import Tips, read_tips

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.kit.git_command import GitCommand

_LARGEST_IMPORT_BYTES: Final = 500 * 1024 * 1024
_MOST_COMMITS: Final = 20_000
_TIMEOUT_S: Final = 120.0
_UNPACK_BELOW: Final = 200
"""Smaller packs become loose objects, as git itself does on receiving: hundreds of attempts leave no heap of packs."""

_DISTRUST: Final = (
    *("-c", "core.commitGraph=false"),
    *("-c", "core.multiPackIndex=false"),
    *("-c", "pack.useBitmaps=false"),
    *("-c", "protocol.allow=never"),
)
"""What git would believe about objects without reading them, or fetch when one is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """``commits`` maps names (HEAD, heads/x, stash, reflog/0 …) to objects that the base does not already have.

    ``complete``: the clone has no other commit of the agent's; otherwise ``note`` says what is wrong with it.
    """

    commits: dict[str, str]
    complete: bool = True
    note: str = ""


async def import_history(git: GitCommand, worktree: Path, base: str) -> Imported:
    """Never raises for anything that an agent could have left in its ``.git``."""
    try:
        tips = await asyncio.to_thread(read_tips, worktree)
        if isinstance(tips, str):
            return Imported(commits={}, note=tips)
        return await _Import(git, worktree, base).run(tips)
    except (ToolFailed, OSError, ValueError) as error:
        return Imported(commits={}, complete=False, note=f"its commits could not be imported: {error}")


class _Import:
    def __init__(self, git: GitCommand, worktree: Path, base: str) -> None:
        self._git = git
        self._base = base
        objects = str(worktree / ".git" / "objects").replace("\\", "\\\\").replace('"', '\\"')
        self._env = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{objects}"'}

    async def run(self, tips: Tips) -> Imported:
        kinds = await self._kinds({*tips.named.values(), *tips.reflog})
        missing = [name for name, oid in tips.named.items() if oid not in kinds]
        if missing:
            return Imported(commits={}, complete=False, note=f"{missing[0]} names an object that is not there")
        commits, extra = await self._new(tips, kinds)
        wanted = sorted(set(commits.values()))
        if not wanted:
            return Imported(commits={}, complete=tips.complete, note=tips.note)
        await self._transfer(wanted)
        return Imported(commits=commits, complete=tips.complete and not extra, note=tips.note or extra)

    async def _kinds(self, oids: set[str]) -> dict[str, str]:
        lines = "".join(f"{oid}\n" for oid in sorted(oids)).encode()
        output = await self._read("cat-file", "--batch-check=%(objectname) %(objecttype)", stdin=lines)
        pairs = (line.split(" ", 1) for line in output.decode().splitlines())
        return {oid: kind for oid, kind in pairs if kind in ("commit", "tag", "tree", "blob")}

    async def _new(self, tips: Tips, kinds: dict[str, str]) -> tuple[dict[str, str], str]:
        """Every named tip that the base lacks, and of the reflogs the commits no other leads to."""
        starts = [oid for oid in {*tips.named.values(), *tips.reflog} if kinds.get(oid) == "commit"]
        if not starts:
            return dict(tips.named), ""
        text = "".join(f"{oid}\n" for oid in starts) + f"^{self._base}\n"
        words = ("rev-list", "--parents", f"--max-count={_MOST_COMMITS + 1}", "--stdin")
        lines = (await self._read(*words, stdin=text.encode())).decode().splitlines()
        new = {line.split(" ", 1)[0] for line in lines}
        parents = {oid for line in lines for oid in line.split(" ")[1:]}
        found = {name: oid for name, oid in tips.named.items() if oid in new or kinds[oid] != "commit"}
        lost = [oid for oid in tips.reflog if oid in new and oid not in parents and oid not in found.values()]
        found |= {f"reflog/{number}": oid for number, oid in enumerate(lost)}
        too_many = f"more than {_MOST_COMMITS} commits" if len(lines) > _MOST_COMMITS else ""
        return found, too_many

    async def _transfer(self, wanted: list[str]) -> None:
        span = ("".join(f"{oid}\n" for oid in wanted) + f"^{self._base}\n").encode()
        size = int(await self._read("rev-list", "--objects", "--disk-usage", "--stdin", stdin=span))
        if size > _LARGEST_IMPORT_BYTES:
            raise ValueError(f"{size} bytes of history are more than the {_LARGEST_IMPORT_BYTES} that are kept")
        limit = f"--max-input-size={2 * _LARGEST_IMPORT_BYTES}"
        with tempfile.TemporaryFile(prefix="coordinator-pack-", buffering=0) as pack:
            words = ("pack-objects", "--revs", "--stdout", "--quiet", "--thin", "--delta-base-offset")
            await self._read(*words, stdin=span, stdout=pack.fileno())
            pack.seek(8)
            count = int.from_bytes(pack.read(4), "big")
            pack.seek(0)  # ours and git's: the descriptor shares its position
            # From here on without the clone's objects: what is not in the pack must be in the user's repository.
            small = count < _UNPACK_BELOW
            store = ("unpack-objects", "-q") if small else ("index-pack", "--stdin", "--fix-thin")
            await self._git.run(*_DISTRUST, *store, "--strict", limit, stdin=pack.fileno(), timeout_s=_TIMEOUT_S)
        await self._git.run(*_DISTRUST, "rev-list", "--objects", "--quiet", "--stdin", stdin=span, timeout_s=_TIMEOUT_S)

    async def _read(self, *args: str, stdin: bytes, stdout: int | None = None) -> bytes:
        words = (*_DISTRUST, *args)
        return (await self._git.run(*words, stdin=stdin, stdout=stdout, env=self._env, timeout_s=_TIMEOUT_S)).stdout

"""Everything that came of one started program, and the ending of it.

Owns one invariant: a process belongs to the kin by proof (parent, session of a root that still has its pid, a mark in its
environment, or because nobody else can have started it), never by pid alone; we ourselves never belong to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from coordinator.kit import process_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.kit.process_table import Member, Row

_CHECK_S: Final = 0.02
_KILL_ROUNDS: Final = 200
_SECOND_LOOKS: Final = 3
_FREEZE_ROUNDS: Final = 20
_QUICK_LOOKS: Final = 100


def below(pid: int, table: Mapping[int, Row]) -> set[int]:
    """The pids of all descendants of ``pid``, without itself."""
    return _with_children({pid}, table) - {pid}


def _with_children(pids: set[int], table: Mapping[int, Row]) -> set[int]:
    children: dict[int, list[int]] = {}
    for child, seen in table.items():
        children.setdefault(seen.parent, []).append(child)
    found, todo = set(pids), list(pids)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


class Kin:
    """``lineage`` is a word that every descendant's environment contains, ``tag`` a whole ``NAME=value`` entry of it.

    ``others`` None: only proven kin. Otherwise each descendant of *this* process that is not among ``others`` is kin
    as well, and those of them that ended are reaped. ``spare_root``: the root stands apart (it is a warden) and is none of
    the kin; what descends from it is.
    """

    def __init__(
        self,
        root: Member | None,
        *,
        lineage: str = "",
        others: frozenset[Member] | None = None,
        spare_root: bool = False,
        tag: str = "",
    ) -> None:
        self._root = root
        self._spared = {root} if spare_root else set()
        self._lineage = lineage.encode()
        self._others = others
        self._tag = os.fsencode(tag)
        self._known: set[Member] = set()
        self._hurried = asyncio.Event()
        self._uncertain = False
        self.ended = 0

    def living(self) -> set[Member]:
        """One look at the table: who of the kin runs, zombies excluded."""
        table = process_table.rows()
        self._uncertain = False
        kin = {pid for pid, seen in table.items() if self._belongs(seen, table)}
        if self._others is not None:
            kin |= {pid for pid in below(os.getpid(), table) if table[pid].member not in self._others}
            self._reap(kin, table)
        kin = _with_children(kin, table) - {os.getpid(), 1}
        found = {table[pid].member for pid in kin if not table[pid].zombie} - self._spared
        self._known |= found
        return found

    def _belongs(self, seen: Row, table: Mapping[int, Row]) -> bool:
        root = self._root
        if seen.member.pid in {os.getpid(), 1}:
            return False
        if seen.member == root or seen.member in self._known:
            return True
        if root and root.pid in table and table[root.pid].member == root and root.pid in {seen.session, seen.group}:
            return True  # also while the root is a zombie: until it is reaped, nobody else can get its pid
        return not seen.zombie and not (root and process_table.born_before(seen.member, root)) and self._marked(seen)

    def _marked(self, seen: Row) -> bool:
        if not self._lineage and not self._tag:
            return False
        entries = process_table.environment(seen.member.pid)
        if entries is None:
            self._uncertain = True
            return False
        return self._tag in entries or (bool(self._lineage) and any(self._lineage in entry for entry in entries))

    def _reap(self, kin: set[int], table: Mapping[int, Row]) -> None:
        for pid in kin:
            seen = table[pid]
            if seen.zombie and seen.parent == os.getpid() and seen.member != self._root:
                process_table.reap(pid)

    def hurry(self) -> None:
        """Cut the grace short."""
        self._hurried.set()

    async def stop(self, grace_s: float) -> bool:
        """SIGTERM to all, ``grace_s`` for them to end, then all that are left are frozen and killed, until none is found.
        False when one cannot be ended."""
        found = await self._look()
        self.ended = len(found)
        if found and grace_s > 0:
            await self._ask(found, grace_s)
        for _ in range(_KILL_ROUNDS):
            found = await self._freeze()
            if not found:
                return True
            for member in found:
                process_table.send(member, signal.SIGKILL)
            await asyncio.sleep(_CHECK_S)
        return False

    async def _ask(self, found: set[Member], grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        for member in found:
            process_table.send(member, signal.SIGTERM)
            process_table.send(member, signal.SIGCONT)  # a stopped process gets its SIGTERM only once it goes on
        while not self._hurried.is_set() and loop.time() < deadline and any(map(process_table.alive, found)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), _CHECK_S)

    async def _freeze(self) -> set[Member]:
        """Everybody, stopped. Whoever forks faster than we kill is stopped first: when a look finds nobody new, nobody is
        left who could fork or learn of the others' end. (A cgroup would do the same in one write; we are delegated none: the
        unit closes the tree of groups to agents, and a user's session has none to give.)"""
        frozen: set[Member] = set()
        for _ in range(_FREEZE_ROUNDS):
            fresh = (await self._look() | self._near()) - frozen
            if not fresh:
                return {member for member in frozen if process_table.alive(member)}
            for _ in range(_QUICK_LOOKS):
                for member in fresh:
                    process_table.send(member, signal.SIGSTOP)
                frozen |= fresh
                fresh = self._near() - frozen
                if not fresh:
                    break
        return frozen

    def _near(self) -> set[Member]:
        """Who descends from us or from the root, found so quickly that even a process which lives for a millisecond is still
        there when it is signalled."""
        top = self._root
        if self._others is not None:
            return set(process_table.members_below(os.getpid())) - self._others - self._spared
        if top is None or not process_table.alive(top):
            return set()
        return set(process_table.members_below(top.pid))

    def kill_now(self) -> None:
        """One round of SIGKILL, without waiting."""
        for member in self.living():
            process_table.send(member, signal.SIGKILL)

    async def _look(self) -> set[Member]:
        """A process that is being replaced by another program shows no environment for a moment: look again."""
        found = self.living()
        for _ in range(_SECOND_LOOKS):
            if found or not self._uncertain:
                break
            await asyncio.sleep(_CHECK_S / 2)
            found = self.living()
        return found

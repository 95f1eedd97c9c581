"""An agent's own folders, put under names that mean the same for every agent, and taken from there to another agent's.

Owns one invariant: a text in which an agent's folders were named anew is equal to another agent's only if the two texts are
the same but for each one's own folders, one for one. What cannot be named beyond doubt has no such text at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from coordinator.gateway.fast_json import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

_ABSOLUTE: Final = re.compile(r"(/[^/\0]+){2,}|(-+[A-Za-z0-9]+){2,}")
"""A path of two parts or more, or what Claude Code makes of one where it names a folder after it. ``/`` or ``/tmp`` is
nobody's own, and a short word would be found in texts that mean something else."""
_GOES_ON: Final = re.compile(rb"[A-Za-z0-9_\-\x80-\xff]|\.[A-Za-z0-9]")
"""What makes a name longer: ``/w/fix-1`` does not stand in ``/w/fix-10``."""
_TELLING: Final = 4
"""Characters that give an owner away; fewer are looked for together with the part of the path before them."""


class AgentPaths:
    """What only one agent has: real path → the name that it goes by. Make it once per claim and keep it.

    Raises ``ValueError`` for paths that are relative or nobody's own, for two that share a name, and for names with a path
    in them.
    """

    __slots__ = ("_stand_ins", "by_name", "names")

    def __init__(self, places: Mapping[str, str]) -> None:
        self.by_name: Mapping[str, str] = {name: path.rstrip("/") for path, name in places.items()}
        """Name → real path."""
        self.names = tuple(sorted(self.by_name))
        if len(self.names) != len(places):
            raise ValueError("two folders go by one name")
        for path in self.by_name.values():
            if _ABSOLUTE.fullmatch(path) is None:
                raise ValueError(f"{path!r} is not a folder that one agent alone can have")
        # A control character stands in no JSON as it is, so that nothing in a request can pass for a name of these.
        stand_ins = [(encode(path)[1:-1], b"\x01%b\x02" % name.encode()) for name, path in self.by_name.items()]
        if any(path in name for path, _ in stand_ins for _, name in stand_ins):
            raise ValueError("a folder's name must not contain a folder")
        self._stand_ins = tuple(sorted(stand_ins, key=lambda pair: len(pair[0]), reverse=True))

    def renamed(self, form: bytes) -> bytes | None:
        """``form`` (compact JSON of ours) with names for folders; None: something in it begins like a folder of the agent's
        and goes on as another name."""
        for path, name in self._stand_ins:  # the longest first: one may lie in another
            at = form.find(path)
            if at < 0:
                continue
            while at >= 0:
                end = at + len(path)
                if _GOES_ON.match(form, end) is not None:
                    return None
                at = form.find(path, end)
            form = form.replace(path, name)
        return form


def folder_name(path: str) -> str:
    """What Claude Code calls the folder in which it keeps what belongs to a working directory."""
    return re.sub(r"[^A-Za-z0-9]", "-", path)


def telling(path: str, other: str) -> str | None:
    """What of ``path`` would give away, anywhere in a text, that it is not ``other`` that is meant: the parts in which the two
    differ, from the first to the last. None: nothing would."""
    separator = "/" if path.startswith("/") else "-"
    parts, others = path.split(separator), other.split(separator)
    most = min(len(parts), len(others))
    begin = next((place for place in range(most) if parts[place] != others[place]), most)
    alike = next((place for place in range(most - begin) if parts[-1 - place] != others[-1 - place]), most - begin)
    told = separator.join(parts[begin : len(parts) - alike])
    if told and len(told) < _TELLING:
        told = separator.join(parts[max(0, begin - 1) : len(parts) - alike])
    return told if len(told) >= _TELLING else None

"""Where a Python environment leads into the user's checkout: editable installs, and copies that were installed from it.

Owns one invariant: every path below the checkout that the environment's own files name is found, so that the same place
in the tree to be judged can be put before it. It reads files; what it cannot know is caught by ``checks.origins`` at run time.
"""

from __future__ import annotations

import ast
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlparse
from urllib.request import url2pathname

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST_BYTES: Final = 4 * 1024 * 1024
_IMPORTED: Final = re.compile(r"\bimport\s+([A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inroads:
    """``folders`` of the checkout are on the import path. ``links`` are packages whose folder (the second of each pair)
    does not bear their name. ``copies`` are files that were installed from the checkout and do not change with it.
    """

    copies: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    @property
    def identity(self) -> str:
        return f"{self.folders}{self.links}" if self.folders or self.links else ""

    def in_tree(self, tree: Path, scratch: Path) -> list[Path]:
        """The same places in ``tree``, for the front of an import path; packages with another name get a symlink below
        ``scratch``.
        """
        found = [tree / folder for folder in self.folders]
        if self.links:
            shelf = scratch / "packages"
            shelf.mkdir(exist_ok=True)
            for name, folder in self.links:
                if not (shelf / name).is_symlink():
                    (shelf / name).symlink_to(tree / folder)
            found.append(shelf)
        return found


def find_inroads(python: Path, checkout: Path) -> Inroads:
    """Read what is installed for ``python``; damaged files lead nowhere."""
    survey = _Survey(checkout=Path(os.path.abspath(checkout)), real=Path(os.path.realpath(checkout)))
    for site in _import_folders(python):
        for file in sorted(site.glob("*.pth")):
            survey.read_pth(file)
    for site in _import_folders(python):
        for file in sorted(site.glob("*.dist-info/direct_url.json")):
            survey.read_origin(file)
    return Inroads(
        copies=frozenset(survey.copies), folders=tuple(survey.folders), links=tuple(sorted(survey.links.items()))
    )


def site_folders(python: Path) -> list[Path]:
    """Where packages are installed for a virtual environment's interpreter; empty for one whose place says nothing."""
    return sorted(folder for folder in python.parent.parent.glob("lib/python3*/site-packages") if folder.is_dir())


def _import_folders(python: Path) -> list[Path]:
    """All folders whose ``.pth`` files Python may read, a person's own ones included when it is no virtual environment."""
    prefix = python.parent.parent
    patterns = [(prefix, f"{lib}/python3*/{kind}-packages") for lib in ("lib", "lib64") for kind in ("site", "dist")]
    if not (prefix / "pyvenv.cfg").is_file():
        patterns += [(Path.home() / ".local", "lib/python3*/site-packages")]
        patterns += [(prefix / "local", "lib/python3*/dist-packages")]
    found = (folder for top, pattern in patterns for folder in sorted(top.glob(pattern)) if folder.is_dir())
    return list({os.path.realpath(folder): folder for folder in found}.values())


@dataclass(slots=True, kw_only=True)
class _Survey:
    checkout: Path
    real: Path
    copies: set[str] = field(default_factory=set)
    folders: dict[str, None] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def read_pth(self, file: Path) -> None:
        """A line is a folder, or code that imports a module which knows folders (setuptools, editables, …)."""
        for line in _text(file).splitlines():
            line = line.strip()
            if re.match(r"import[ \t]", line):
                for name in _IMPORTED.findall(line):
                    self._read_finder(file.parent / f"{name}.py")
            elif line and not line.startswith("#"):
                self._add_folder(file.parent / line)

    def read_origin(self, file: Path) -> None:
        """``direct_url.json`` of an installed distribution: which folder it was installed from."""
        try:
            data: Any = json.loads(_text(file))
            url, about = urlparse(data["url"]), data["dir_info"]
            root = self._inside(Path(url2pathname(url.path))) if url.scheme == "file" else None
            editable = bool(about.get("editable"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if root is None:
            return
        if not editable:
            self.copies |= _files_of(file.parent)
            return
        known = [*self.folders, *self.links.values()]
        if not any(Path(folder).is_relative_to(root) for folder in known):
            self.folders[f"{root}/src" if (self.checkout / root / "src").is_dir() else root] = None

    def _read_finder(self, file: Path) -> None:
        """Import names and their places stand as text in what build tools generate; it is read, not run."""
        try:
            code = ast.parse(_text(file))
        except (SyntaxError, ValueError, RecursionError):
            return
        for name, place in _named_places(code):
            self._add_package(name, Path(place))

    def _add_package(self, name: str, place: Path) -> None:
        if not place.is_absolute():
            return
        if place.name == "__init__.py":
            place = place.parent
        elif place.suffix in {".py", ".pyi", ".so"}:
            place = place.with_suffix("")
        parts = tuple(name.split("."))
        inside = self._inside(place)
        if place.parts[-len(parts) :] == parts:
            self._add_folder(place.parents[len(parts) - 1])
        elif inside is not None and len(parts) == 1 and name.isidentifier():
            self.links[name] = inside

    def _add_folder(self, folder: Path) -> None:
        inside = self._inside(folder)
        if inside is not None:
            self.folders[inside] = None

    def _inside(self, path: Path) -> str | None:
        """``path`` relative to the checkout; None when it is elsewhere, or is installed packages of an environment in it."""
        try:
            places = (os.path.abspath(path), self.checkout), (os.path.realpath(path), self.real)
        except ValueError:  # text that no file can be called
            return None
        for place, top in places:
            if Path(place).is_relative_to(top):
                inside = Path(place).relative_to(top)
                installed = {"site-packages", "dist-packages"} & set(inside.parts)
                return None if installed else inside.as_posix()
        return None


def _named_places(code: ast.AST) -> Iterator[tuple[str, str]]:
    """Pairs of text that may be an import name and its place: entries of dictionaries, arguments side by side."""
    for node in ast.walk(code):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            pairs = [(node.args[0], node.args[1])]
        for key, value in pairs:
            places = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
            for place in places:
                name, path = _constant(key), _constant(place)
                if name and path:
                    yield name, path


def _constant(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _files_of(information: Path) -> set[str]:
    """The code of a distribution, as it is installed."""
    names = (line.split(",")[0].strip('"') for line in _text(information / "RECORD").splitlines())
    code = (name for name in names if name.endswith((".py", ".so")) and not name.startswith(("/", "..")))
    return {os.path.realpath(information.parent / name) for name in code}


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            return ""
        return file.read_bytes().decode("utf-8-sig", errors="surrogateescape").replace("\0", "")
    except OSError:
        return ""

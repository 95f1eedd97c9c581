"""The map of the house: each module with the first line of its docstring. ``python -m tests.house.map`` redraws it."""

from __future__ import annotations

import ast

from tests.house.source import TOP, product

PAGE = TOP / "coordinator" / "README.md"
BEGIN, END = "<!-- map -->\n", "<!-- end of map -->\n"


def drawn() -> str:
    """The map as it should be, Markdown."""
    lines = ["```"]
    folder = ""
    for file in sorted(product(), key=lambda file: (file.name.count("/") > 1, file.path)):
        place = file.name.removeprefix("coordinator/")
        first = (ast.get_docstring(file.tree) or "").partition("\n")[0].strip()
        if place.endswith("/__init__.py") or place == "__init__.py":
            place = place.removesuffix("__init__.py") or "coordinator/"
            lines += ["", f"{place:<22} {first}"]
            folder = place
        else:
            inside = place.startswith(folder) and "/" in place
            lines.append(f"  {place.removeprefix(folder) if inside else place:<20} {first}")
    return "\n".join([*lines, "```", ""])


def on_page() -> str:
    """The map as the page has it."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def redraw() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + drawn() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    redraw()

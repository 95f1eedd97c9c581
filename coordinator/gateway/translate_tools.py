"""Tools and the choice among them, in both directions of the translation.

Owns one invariant: the model can call exactly the tools that the client's own provider would have let it call.
Calls and their results are part of the messages and not looked at here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coordinator.gateway.translate_terms import Untranslatable, as_map, as_text, maps_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.gateway.translate_terms import Notes

_CHOICE_TO_OPENAI: Final[Mapping[str, str]] = {"any": "required", "auto": "auto", "none": "none"}
_CHOICE_TO_ANTHROPIC: Final[Mapping[str, str]] = {"auto": "auto", "none": "none", "required": "any"}
_TOOL: Final = frozenset({"defer_loading", "description", "input_schema", "name", "strict", "type"})
_FUNCTION: Final = frozenset({"description", "name", "parameters", "strict"})


class ToolChanges:
    """What an Anthropic conversation says about tools on its way: some come, some go, deferred ones are found."""

    __slots__ = ("defined", "offered", "withdrawn")

    def __init__(self) -> None:
        self.defined: list[Mapping[str, object]] = []
        self.offered: set[str] = set()
        self.withdrawn: set[str] = set()

    def read(self, block: Mapping[str, object], *, added: bool) -> None:
        """A ``tool_addition`` or ``tool_removal`` block. Raises ``Untranslatable``."""
        tool = as_map(block.get("tool"))
        definition = as_map(tool.get("definition"))
        name = text_of(definition or tool, "name", "a tool that is added or removed")
        if definition:
            self.defined.append(definition)
        if added:
            self.offered.add(name)
            self.withdrawn.discard(name)
        else:
            self.withdrawn.add(name)


# -- Anthropic's for OpenAI's ------------------------------------------------------------------------------------------


def tools_to_openai(
    asked: Mapping[str, object], changes: ToolChanges, notes: Notes, *, official: bool
) -> dict[str, object]:
    """``tools``, ``tool_choice`` and ``parallel_tool_calls``. A deferred tool is shown only once a search has found it.

    Raises ``Untranslatable``.
    """
    found: dict[str, Mapping[str, object]] = {}
    searched = False
    for tool in (*maps_of(asked.get("tools"), "tools"), *changes.defined):
        kind = as_text(tool.get("type")) or "custom"
        name = text_of(tool, "name", f"a tool of type {kind[:60]}")
        if kind.startswith("tool_search_tool"):
            searched = True  # the provider's own search, which this upstream has not
            notes.add(name, "deferred tools are shown at once")
        elif kind != "custom":
            raise Untranslatable(f"the tool {name[:80]} ({kind[:60]}) is defined or run at Anthropic only")
        else:
            found[name] = tool
    shown = [
        _function(name, tool, notes)
        for name, tool in found.items()
        if name not in changes.withdrawn and (searched or not tool.get("defer_loading") or name in changes.offered)
    ]
    if not shown:
        return {}
    return {"tools": shown} | _choice_to_openai(as_map(asked.get("tool_choice")), shown, notes, official=official)


def _function(name: str, tool: Mapping[str, object], notes: Notes) -> dict[str, object]:
    notes.leave(tool, _TOOL, "tools.")
    function: dict[str, object] = {"name": name}
    if description := as_text(tool.get("description")):
        function["description"] = description
    function["parameters"] = as_map(tool.get("input_schema")) or {"type": "object", "properties": {}}
    if tool.get("strict") is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice_to_openai(
    choice: Mapping[str, object], shown: list[dict[str, object]], notes: Notes, *, official: bool
) -> dict[str, object]:
    """llama.cpp takes a named tool for ``auto`` and tells nobody; one tool and ``required`` says the same everywhere."""
    said: dict[str, object] = {}
    kind = as_text(choice.get("type"))
    if kind == "tool":
        name = text_of(choice, "name", "tool_choice")
        named = [tool for tool in shown if as_map(tool["function"])["name"] == name]
        if not named:
            raise Untranslatable(f"tool_choice names {name[:80]}, which is no tool of this request")
        if official:
            said["tool_choice"] = {"type": "function", "function": {"name": name}}
        else:
            said |= {"tools": named, "tool_choice": "required"}
            notes.add("tool_choice", "the other tools are left out, so that none of them can be called")
    elif kind in _CHOICE_TO_OPENAI:
        said["tool_choice"] = _CHOICE_TO_OPENAI[kind]
    elif choice:
        raise Untranslatable("tool_choice must be auto, any, tool or none")
    if choice.get("disable_parallel_tool_use") is True:
        said["parallel_tool_calls"] = False
    return said


# -- OpenAI's for Anthropic's ------------------------------------------------------------------------------------------


def tools_to_anthropic(asked: Mapping[str, object], notes: Notes) -> dict[str, object]:
    """``tools`` and ``tool_choice``. Raises ``Untranslatable``."""
    tools = []
    for tool in maps_of(asked.get("tools"), "tools"):
        if tool.get("type") != "function":
            raise Untranslatable(
                f"a tool of type {as_text(tool.get('type'))[:60]} is OpenAI's own; Claude takes functions"
            )
        function = as_map(tool.get("function"))
        notes.leave(function, _FUNCTION, "tools.")
        said: dict[str, object] = {"name": text_of(function, "name", "a function")}
        if description := as_text(function.get("description")):
            said["description"] = description
        said["input_schema"] = {"type": "object", **as_map(function.get("parameters"))}
        if function.get("strict") is True:
            said["strict"] = True
        tools.append(said)
    if not tools:
        return {}
    choice = _choice_to_anthropic(asked.get("tool_choice"))
    if asked.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return {"tools": tools, "tool_choice": choice} if choice else {"tools": tools}


def _choice_to_anthropic(choice: object) -> dict[str, object]:
    if choice is None:
        return {}
    if isinstance(choice, str) and choice in _CHOICE_TO_ANTHROPIC:
        return {"type": _CHOICE_TO_ANTHROPIC[choice]}
    said = as_map(choice)
    if said.get("type") != "function":
        raise Untranslatable("tool_choice must be auto, none, required or a function")
    return {"type": "tool", "name": text_of(as_map(said.get("function")), "name", "tool_choice")}

"""The command line of ``claude`` 2.1, as far as a coordinator uses it. What it would refuse is refused here, too."""

from __future__ import annotations

VERSION = "2.1.330"

FLAGS = {
    "-p": "print",
    "--bare": "",
    "--dangerously-skip-permissions": "bypass",
    "--exclude-dynamic-system-prompt-sections": "",
    "--fork-session": "fork",
    "--include-partial-messages": "",
    "--no-session-persistence": "forgetful",
    "--print": "print",
    "--strict-mcp-config": "",
    "--verbose": "verbose",
    "--version": "version",
    "-v": "version",
}
VALUES = {
    "--append-system-prompt": "",
    "--effort": "",
    "--fallback-model": "",
    "--input-format": "input_format",
    "--json-schema": "",
    "--max-budget-usd": "max_budget_usd",
    "--max-turns": "max_turns",
    "--model": "model",
    "--output-format": "output_format",
    "--permission-mode": "permission_mode",
    "--permission-prompts": "",
    "--resume": "resume",
    "-r": "resume",
    "--session-id": "session_id",
    "--setting-sources": "setting_sources",
    "--settings": "",
    "--system-prompt": "",
}
VARIADIC = {
    "--add-dir": "",
    "--allowed-tools": "allowed",
    "--allowedTools": "allowed",
    "--disallowed-tools": "disallowed",
    "--disallowedTools": "disallowed",
    "--mcp-config": "",
    "--tools": "",
}
MODES = ("acceptEdits", "bypassPermissions", "default", "dontAsk", "plan")
ALIASES = {
    "": "claude-opus-5-5",
    "fable": "claude-fable-5-2",
    "haiku": "claude-haiku-5-5",
    "opus": "claude-opus-5-5",
    "sonnet": "claude-sonnet-5-5",
}


class BadUsage(Exception):
    """What the CLI says on its standard error before it ends with code 1."""


class Options:
    """What was asked for; texts are empty and numbers 0 when they were not given."""

    def __init__(self, argv: list[str]) -> None:
        self.given: dict[str, str] = {}
        self.lists: dict[str, list[str]] = {"allowed": [], "disallowed": []}
        self.prompt = ""
        self._read(list(argv))
        self.model = ALIASES.get(self.given.get("model", ""), self.given.get("model", ""))
        self.permission_mode = (
            "bypassPermissions" if "bypass" in self.given else self.given.get("permission_mode", "default")
        )
        self.session_id = self.given.get("session_id", "")
        self.resume = self.given.get("resume", "")
        self.max_turns = self._number("max_turns", int)
        self.max_budget_usd = self._number("max_budget_usd", float)

    def _read(self, argv: list[str]) -> None:
        while argv:
            word = argv.pop(0)
            name, mark, value = word.partition("=")
            if word == "--":
                self.prompt = " ".join(argv)
                return
            if word in FLAGS:
                self.given[FLAGS[word]] = "yes"
            elif name in VALUES:
                if not mark and not argv:
                    raise BadUsage(f"error: option '{name} <value>' argument missing")
                self.given[VALUES[name]] = value if mark else argv.pop(0)
            elif name in VARIADIC:
                found = [value] if mark else []
                while argv and not argv[0].startswith("-"):
                    found.append(argv.pop(0))
                self.lists.setdefault(VARIADIC[name], []).extend(_split(found))
            elif word.startswith("-"):
                raise BadUsage(f"error: unknown option '{word}'")
            else:
                self.prompt = word

    def _number(self, name: str, kind: type[int | float]) -> float:
        try:
            return kind(self.given.get(name, "0"))
        except ValueError:
            raise BadUsage(f"error: option '--{name.replace('_', '-')}' takes a number") from None

    def check(self, *, root: bool, sandboxed: bool) -> None:
        if "print" not in self.given:
            raise BadUsage("Error: the stand-in has no screen; use -p")
        if self.given.get("output_format", "text") == "stream-json" and "verbose" not in self.given:
            raise BadUsage("Error: When using --print, --output-format=stream-json requires --verbose")
        if self.given.get("output_format") != "stream-json":
            raise BadUsage("Error: the stand-in speaks stream-json only")
        if self.permission_mode not in MODES:
            raise BadUsage(f"error: option '--permission-mode <mode>' argument '{self.permission_mode}' is invalid")
        if self.session_id and not _is_uuid(self.session_id):
            raise BadUsage("Error: Invalid session ID. Must be a valid UUID.")
        if self.session_id and self.resume and "fork" not in self.given:
            raise BadUsage("Error: --session-id can only be used with --resume if --fork-session is also specified.")
        if self.permission_mode == "bypassPermissions" and root and not sandboxed:
            raise BadUsage(
                "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
            )

    def allows(self, tool: str, text: str) -> bool:
        """Whether ``tool`` may be used without asking; ``text`` is the command of Bash."""
        if _listed(self.lists["disallowed"], tool, text):
            return False
        if self.permission_mode == "bypassPermissions" or tool == "Read":
            return True
        if self.permission_mode == "acceptEdits" and tool in ("Edit", "Write"):
            return True
        return _listed(self.lists["allowed"], tool, text)


def _listed(rules: list[str], tool: str, text: str) -> bool:
    for rule in rules:
        name, mark, pattern = rule.partition("(")
        if name == tool and (not mark or text.startswith(pattern.rstrip(")").rstrip("*").rstrip(":").rstrip())):
            return True
    return False


def _split(words: list[str]) -> list[str]:
    """At commas and spaces, but not inside brackets: ``Edit,Bash(git commit *)`` are two."""
    found, depth = [""], 0
    for sign in " ".join(words):
        depth += (sign == "(") - (sign == ")")
        if sign in ", " and not depth:
            found.append("")
        else:
            found[-1] += sign
    return [word for word in found if word]


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(
        sign in "0123456789abcdefABCDEF" for sign in "".join(parts)
    )

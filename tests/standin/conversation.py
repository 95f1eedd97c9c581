"""One conversation of the stand-in: lines of stream-json on stdout, tools that really run, the files a session leaves.

Owns one invariant: a tool's lines and its effect are those of the real CLI (each Bash call is a session of its own, SIGTERM
ends it and gives 143), so that what watches the one would see the same of the other.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from tests.standin.model import Model, ModelFailed

if TYPE_CHECKING:
    from tests.standin.options import Options

SHELL = "/bin/sh"


class OverLimit(Exception):
    """``--max-turns`` or ``--max-budget-usd`` was reached; the words of the result line."""

    def __init__(self, subtype: str, reason: str, told: str) -> None:
        super().__init__(told)
        self.subtype, self.reason, self.told = subtype, reason, told


def random_id() -> str:
    return os.urandom(12).hex()


def new_uuid() -> str:
    sign = os.urandom(16).hex()
    return "-".join((sign[:8], sign[8:12], "4" + sign[13:16], "8" + sign[17:20], sign[20:]))


class Conversation:
    """``prompts`` are all of the session, the present one last."""

    def __init__(self, options: Options, prompt: str) -> None:
        self.options = options
        self.session = options.resume or options.session_id or new_uuid()
        if options.resume and "fork" in options.given:
            self.session = options.session_id or new_uuid()
        self.model = Model(options.model, self.session, self._retry)
        self.prompts = [prompt]
        self.turns = 0
        self.results = 0
        self._told_usd = 0.0
        self.denials: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        self._tools: list[int] = []
        self._home = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.join(os.environ.get("HOME", "/tmp"), ".claude")

    # -- the session's files -----------------------------------------------------------------------------------------

    def open(self) -> str:
        """Take up or begin the session; a complaint when there is none of that id, or one already."""
        folder = os.path.join(self._home, "projects", os.getcwd().replace("/", "-"))
        path = os.path.join(folder, f"{self.session}.jsonl")
        if self.options.resume:
            found = self._find(self.options.resume)
            if not found:
                return f"No conversation found with session ID: {self.options.resume}"
            with open(found, encoding="utf-8") as file:
                kept = [json.loads(line) for line in file]
            self.prompts = [*(line["prompt"] for line in kept if "prompt" in line), *self.prompts]
            self._told_usd = self.model.cost_usd = max((line["cost"] for line in kept if "cost" in line), default=0.0)
            path = found
        elif self._find(self.session):
            return f"Error: Session ID {self.session} is already in use."
        os.makedirs(folder, exist_ok=True)
        self._watch_for_others()
        self._path = path
        self._keep({"prompt": self.prompts[-1]})
        os.makedirs(os.path.join(self._home, "sessions"), exist_ok=True)
        with open(self._session_file(), "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "sessionId": self.session, "cwd": os.getcwd(), "status": "busy"}, file)
        return ""

    def _watch_for_others(self) -> None:
        """For the tests: two of us with one home at a time are two owners of one task. The lock is no child's."""
        self._alone = open(os.path.join(self._home, "alone"), "a", encoding="utf-8")  # noqa: SIM115 - held to the end
        try:
            fcntl.lockf(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with open(os.path.join(self._home, "two-at-once"), "a", encoding="utf-8") as file:
                file.write(f"{os.environ.get('COORDINATOR_ATTEMPT', os.getcwd())}\n")

    def _find(self, session: str) -> str:
        top = os.path.join(self._home, "projects")
        for folder in os.listdir(top) if os.path.isdir(top) else ():
            path = os.path.join(top, folder, f"{session}.jsonl")
            if os.path.exists(path):
                return path
        return ""

    def _keep(self, data: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")

    def _session_file(self) -> str:
        return os.path.join(self._home, "sessions", f"{os.getpid()}.json")

    # -- lines -------------------------------------------------------------------------------------------------------

    def raw(self, data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    def line(self, kind: str, **more: Any) -> None:
        fields = {"type": kind, **more, "session_id": self.session, "uuid": new_uuid()}
        self.raw(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def begin(self) -> None:
        self.line(
            "system",
            subtype="init",
            apiKeySource="ANTHROPIC_API_KEY" if self.model.key else "none",
            claude_code_version="2.1.330",
            cwd=os.getcwd(),
            mcp_servers=[],
            model=self.options.model,
            permissionMode=self.options.permission_mode,
            tools=["Bash", "Edit", "Read", "Write"],
        )

    def _assistant(self, block: dict[str, Any], *, error: str = "") -> None:
        """``error``: these are the program's own words for a call that failed, of that kind."""
        message = {
            "id": f"msg_{random_id()}",
            "type": "message",
            "role": "assistant",
            "model": "<synthetic>" if error else self.options.model,
            "content": [block],
            "stop_reason": "stop_sequence" if error else None,
            "usage": self.model.usage,
        }
        self._messages.append({"role": "assistant", "content": [block]})
        self.line("assistant", message=message, parent_tool_use_id=None, **({"error": error} if error else {}))

    def _retry(self, number: int, most: int, wait_s: float, status: int) -> None:
        self.line(
            "system",
            subtype="api_retry",
            attempt=number,
            max_retries=most,
            retry_delay_ms=round(wait_s * 1000),
            error_status=status or None,
            error="rate_limit" if status == 429 else "unknown",
        )

    def result(self, text: str = "Done.", **more: Any) -> None:
        """The last word (there may be several)."""
        fields: dict[str, Any] = {
            "subtype": "success",
            "is_error": False,
            "api_error_status": None,
            "terminal_reason": "completed",
            "result": text,
            "stop_reason": "end_turn",
            "num_turns": self.turns,
            "duration_ms": round((time.monotonic() - self._began) * 1000),
            "duration_api_ms": 1,
            "total_cost_usd": self.model.cost_usd,
            "usage": self.model.usage,
            "modelUsage": {self.options.model: {"costUSD": self.model.cost_usd}},
            "model_usage_since_last_result": {self.options.model: {"costUSD": self.model.cost_usd - self._told_usd}},
            "permission_denials": self.denials,
            "result_index": self.results,
            **more,
        }
        self.results += 1
        self._told_usd = self.model.cost_usd
        self._keep({"cost": self.model.cost_usd})
        self.line("result", **{name: value for name, value in fields.items() if value is not ...})

    # -- turns -------------------------------------------------------------------------------------------------------

    def think(self) -> str:
        """One model call. Raises ``ModelFailed`` or ``OverLimit``."""
        most = self.options.max_turns
        if most and self.turns >= most:
            self.turns += 1
            raise OverLimit("error_max_turns", "max_turns", f"Reached maximum number of turns ({most:g})")
        self.turns += 1
        text = self.model.call(self._messages)
        budget = self.options.max_budget_usd
        if budget and self.model.cost_usd >= budget:
            raise OverLimit("error_max_budget_usd", "budget_exhausted", f"Reached maximum budget (${budget:g})")
        return text

    def text(self, text: str) -> None:
        """A turn that ends in words."""
        said = self.think()
        self._assistant({"type": "text", "text": text or said})

    def use(self, tool: str, given: dict[str, Any]) -> bool:
        """A turn that ends in a call of a tool, and its answer. False: it was refused or failed."""
        self.think()
        number = f"toolu_{random_id()}"
        self._assistant({"type": "tool_use", "id": number, "name": tool, "input": given})
        if not self.options.allows(tool, str(given.get("command", ""))):
            told = f"Claude requested permissions to use {tool}, but you haven't granted it yet."
            denial = {"tool_name": tool, "tool_use_id": number, "tool_input": given}
            self.denials.append(denial)
            self.line("system", subtype="permission_denied", tool_name=tool, tool_use_id=number, message=told)
            self._answer(number, told, failed=True)
            return False
        text, failed = self._run(tool, given)
        self._answer(number, text, failed=failed)
        return not failed

    def _answer(self, number: str, text: str, *, failed: bool) -> None:
        block = {"type": "tool_result", "tool_use_id": number, "content": text, "is_error": failed}
        self._messages.append({"role": "user", "content": [block]})
        self.line("user", message={"role": "user", "content": [block]}, parent_tool_use_id=None)

    def _run(self, tool: str, given: dict[str, Any]) -> tuple[str, bool]:
        if tool == "Bash":
            code, text = self.shell(given["command"])
            return (text, False) if code == 0 else (f"Exit code {code}\n{text}", True)
        path = given["file_path"]
        try:
            if tool == "Read":
                with open(path, encoding="utf-8") as file:
                    return file.read(), False
            with open(path, "w", encoding="utf-8") as file:
                file.write(given["content"])
            return f"File created successfully at: {path}", False
        except OSError as error:
            return str(error), True

    def shell(self, command: str) -> tuple[int, str]:
        """As the real one runs it: a session of its own, its output through a pipe."""
        out, into = os.pipe()
        environment = {
            **os.environ,
            "CLAUDECODE": "1",
            "CLAUDE_CODE_SESSION_ID": self.session,
            "CLAUDE_PID": str(os.getpid()),
        }
        files = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, into, 1),
            (os.POSIX_SPAWN_DUP2, into, 2),
        ]
        pid = os.posix_spawn(SHELL, ["sh", "-c", command], environment, file_actions=files, setsid=True)
        self._tools.append(pid)
        note_pid(pid)
        os.close(into)
        _, status = os.waitpid(pid, 0)
        self._tools.remove(pid)
        os.set_blocking(out, False)
        try:
            data = os.read(out, 30_000)
        except BlockingIOError:
            data = b""
        os.close(out)
        return os.waitstatus_to_exitcode(status), data.decode(errors="replace").strip()

    # -- ends --------------------------------------------------------------------------------------------------------

    def on_term(self, *_: object) -> NoReturn:
        """As the real one: its tools first, no result line, 143."""
        for pid in self._tools:
            os.killpg(pid, signal.SIGTERM)
        self.leave(143)

    def leave(self, code: int) -> NoReturn:
        try:
            os.unlink(self._session_file())
        except OSError:
            pass
        os._exit(code)

    def fail(self, error: ModelFailed) -> NoReturn:
        text = error.message
        self._assistant({"type": "text", "text": text}, error=error.kind)
        self.result(
            text,
            is_error=True,
            api_error_status=error.status or None,
            terminal_reason=error.reason,
            stop_reason="stop_sequence",
        )
        self.leave(1)

    def overrun(self, limit: OverLimit) -> NoReturn:
        self.result(..., subtype=limit.subtype, is_error=True, terminal_reason=limit.reason, errors=[limit.told])  # type: ignore[arg-type]
        self.leave(1)


def _start_of(pid: int) -> str:
    """As ``coordinator.kit.lock.process_start`` says it: a pid alone may soon be a stranger's."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "gone"


def note_pid(pid: int) -> None:
    """For the tests: every process that this attempt has started, a line each."""
    folder = os.environ.get("COORDINATOR_ATTEMPT")
    if folder:
        descriptor = os.open(os.path.join(folder, "pids"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{pid} {_start_of(pid)}\n".encode())
        os.close(descriptor)


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()

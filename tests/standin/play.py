"""The behaviours of the stand-in: one function each, named in a prompt's line ``STANDIN: NAME key=value …``.

Owns one invariant: a behaviour differs from good work in what its docstring says and in nothing else. ``file`` and ``text``
say what is written, ``sh`` is a shell line run instead; values are quoted as in a shell. Nothing here knows the coordinator.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from tests.standin.conversation import Conversation, OverLimit, complain, note_pid
from tests.standin.model import ModelFailed
from tests.standin.options import VERSION, BadUsage, Options

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "STANDIN:"
MIB = 1024 * 1024
Given = dict[str, str]


def main(argv: list[str]) -> NoReturn:
    note_pid(os.getpid())
    try:
        options = Options(argv)
        if "version" in options.given:
            sys.stdout.write(f"{VERSION} (Claude Code)\n")
            sys.exit(0)
        options.check(root=os.getuid() == 0, sandboxed=os.environ.get("IS_SANDBOX") == "1")
        prompt = "\n".join(filter(None, (options.prompt, _standard_input())))
        if not prompt.strip():
            raise BadUsage(
                "Error: Input must be provided either through stdin or as a prompt argument when using --print"
            )
    except BadUsage as error:
        complain(str(error))
        sys.exit(1)
    talk = Conversation(options, prompt)
    complaint = talk.open()
    if complaint:
        complain(complaint)
        sys.exit(1)
    signal.signal(signal.SIGTERM, talk.on_term)
    signal.signal(signal.SIGHUP, lambda *_: talk.leave(129))
    signal.signal(signal.SIGINT, lambda *_: talk.leave(0))
    _perform(talk)


def _standard_input() -> str:
    return sys.stdin.buffer.read().decode(errors="replace")


def _attempt() -> int:
    return int(os.environ.get("COORDINATOR_GENERATION", "1"))


def _perform(talk: Conversation) -> NoReturn:
    talk.begin()
    name, given = behaviour_of(talk.prompts, _attempt())
    try:
        BEHAVIOURS[name if talk.model.logged_in() else "logged_out"](talk, given)
    except ModelFailed as error:
        talk.fail(error)
    except OverLimit as limit:
        talk.overrun(limit)
    talk.leave(0)


def behaviour_of(prompts: list[str], attempt: int) -> tuple[str, Given]:
    """From the newest prompt of the session that names one."""
    for prompt in reversed(prompts):
        for line in prompt.splitlines():
            if line.strip().startswith(MARK):
                steps: list[list[str]] = [[]]
                for word in shlex.split(line.strip().removeprefix(MARK)):
                    steps.append([]) if word == "|" else steps[-1].append(word)
                name, *words = steps[min(attempt, len(steps)) - 1]
                return name, dict(word.split("=", 1) for word in words)
    return "work", {}


# -- those that do good work ------------------------------------------------------------------------------------------


def edit(talk: Conversation, given: Given) -> None:
    """One change: ``sh``, or ``text`` into ``file`` (by default one named after the task)."""
    if "sh" in given:
        talk.use("Bash", {"command": given["sh"], "description": "Change it"})
        return
    name = given.get("file") or os.environ.get("COORDINATOR_TASK", "work") + ".txt"
    text = given.get("text", f"work {_attempt()}")
    talk.use("Write", {"file_path": os.path.join(os.getcwd(), name), "content": f"{text}\n"})


def commit(talk: Conversation) -> None:
    talk.use("Bash", {"command": "git add -A && git commit -q -m 'Do the work'", "description": "Commit"})


def work(talk: Conversation, given: Given) -> None:
    """Edits, commits, says so."""
    edit(talk, given)
    commit(talk)
    talk.text("All done.")
    talk.result("All done.")


def uncommitted(talk: Conversation, given: Given) -> None:
    """Good work that is left in the tree, one file of it untracked."""
    edit(talk, given)
    talk.text("All done.")
    talk.result("All done.")


def wrong_branch(talk: Conversation, given: Given) -> None:
    """Good work on a branch of its own, and ``main`` moved there as well."""
    talk.use("Bash", {"command": "git checkout -q -b elsewhere"})
    edit(talk, given)
    commit(talk)
    talk.use("Bash", {"command": "git branch -f main"})
    talk.result("All done.")


def build(talk: Conversation, given: Given) -> None:
    """Good work after a tool that is at work for ``s`` seconds without a sign."""
    talk.use("Bash", {"command": f"exec sleep {given.get('s', '5')}", "timeout": 600_000, "description": "Build"})
    work(talk, given)


def flood(talk: Conversation, given: Given) -> None:
    """Good work after one line of ``bytes`` (10 MB)."""
    talk.line("assistant", message={"content": [{"type": "text", "text": "x" * int(given.get("bytes", 10_000_000))}]})
    work(talk, given)


def garbage(talk: Conversation, given: Given) -> None:
    """Good work among lines that are no JSON, no UTF-8, no objects, or objects of the wrong shape."""
    for line in GARBAGE:
        talk.raw(line + b"\n")
    talk.begin()  # as the real one does before each turn that follows a result
    work(talk, given)
    talk.raw(b'{"type":"assistant","message":{"content":[{"type":"te')


def background(talk: Conversation, given: Given) -> None:
    """A first result, then a turn for background work that ended, and the result that counts."""
    talk.text("Started it in the background.")
    talk.result("Started it in the background.")
    time.sleep(float(given.get("s", "0.5")))
    talk.begin()
    work(talk, given)


def orphans(talk: Conversation, given: Given) -> None:
    """Good work, and processes that nobody waits for: a session of its own, a double fork, a server, one that hides."""
    _leave_behind(_wait_for_ever, twice=False)
    _leave_behind(_wait_for_ever, twice=True)
    _leave_behind(_serve, twice=True)
    _leave_behind(_hide, twice=True)
    work(talk, given)


# -- those that do not ------------------------------------------------------------------------------------------------


def nothing(talk: Conversation, given: Given) -> None:
    """Says that all is done, having done nothing."""
    talk.text("All done.")
    talk.result("All done.")


def crash(talk: Conversation, given: Given) -> None:
    """Work half done, then an end without a result: by ``signal`` (11), or with ``code``."""
    edit(talk, given)
    complain("panic(main thread): Segmentation fault at address 0x0\noh no: Bun has crashed.")
    if "code" in given:
        os._exit(int(given["code"]))
    os.kill(os.getpid(), int(given.get("signal", "11")))


def hang(talk: Conversation, given: Given) -> None:
    """Work half done, then nothing any more: no call, no tool, no word."""
    edit(talk, given)
    talk.text("Now for the rest.")
    while True:
        signal.pause()


def stubborn(talk: Conversation, given: Given) -> None:
    """As ``hang``, and SIGTERM means nothing to it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hang(talk, given)


def linger(talk: Conversation, given: Given) -> None:
    """Good work and its last word, but no end."""
    work(talk, given)
    while True:
        signal.pause()


def spin(talk: Conversation, given: Given) -> None:
    """Work half done, then a processor kept busy for nothing."""
    edit(talk, given)
    while True:
        pass


def loop(talk: Conversation, given: Given) -> None:
    """The same call with the same answer, for ever."""
    while True:
        talk.use("Bash", {"command": "git status --short", "description": "Look"})
        time.sleep(float(given.get("pause", "0.05")))


def grow(talk: Conversation, given: Given) -> None:
    """Takes memory, ``to`` MiB (8 GiB) in steps of 16, and keeps it."""
    edit(talk, given)
    kept = []
    for _ in range(int(given.get("to", "8192")) // 16):
        kept.append(b"x" * (16 * MIB))
        time.sleep(0.02)
    while True:
        signal.pause()


def delete_tests(talk: Conversation, given: Given) -> None:
    """Does away with the tests."""
    talk.use("Bash", {"command": "git ls-files | grep test | xargs git rm -q"})
    commit(talk)
    talk.result("All tests pass now.")


def denied(talk: Conversation, given: Given) -> None:
    """Wants a tool that nobody grants, is refused, and gives up politely."""
    talk.use(given.get("tool", "WebFetch"), {"url": "https://example.org", "prompt": "read it"})
    talk.text("I was not allowed to read the page.")
    talk.result("I was not allowed to read the page.")


def endless(talk: Conversation, given: Given) -> None:
    """Talks and talks, until its turns or its budget are used up."""
    for number in range(10_000):
        talk.use("Bash", {"command": f"echo {number}"})


def refused(talk: Conversation, given: Given) -> None:
    """A model call that ends with ``status`` and ``message``, without anybody being asked."""
    status = int(given.get("status", "529"))
    raise ModelFailed(status, given.get("message", f"API Error: {status} Overloaded"), given.get("reason", "api_error"))


def usage_limit(talk: Conversation, given: Given) -> None:
    """The limit of a subscription, which is reset in ``s`` seconds."""
    moment = int(time.time() + float(given.get("s", "3600")))
    talk.line(
        "rate_limit_event", rate_limit_info={"status": "rejected", "resetsAt": moment, "rateLimitType": "five_hour"}
    )
    raise ModelFailed(429, f"Claude AI usage limit reached|{moment}")


def overflow(talk: Conversation, given: Given) -> None:
    """More context than the model takes."""
    raise ModelFailed(400, "Prompt is too long", "prompt_too_long")


def logged_out(talk: Conversation, given: Given) -> None:
    """Nobody is logged in: no call is made."""
    raise ModelFailed(0, "Not logged in · Please run /login")


BEHAVIOURS: dict[str, Callable[[Conversation, Given], None]] = {
    one.__name__: one
    for one in (
        background, build, crash, delete_tests, denied, endless, flood, garbage, grow, hang, linger, logged_out, loop,
        nothing, orphans, overflow, refused, spin, stubborn, uncommitted, usage_limit, work, wrong_branch,
    )
}  # fmt: skip

GARBAGE = (
    b"",
    b"Warning: this is no JSON",
    b'{"type":"assistant","message":{"content":[{"type":"text","te',
    b'\xff\xfe{"type":\x80"assistant"}',
    b'{"type":"assistant","message":{"content":[{"type":"text","text":"\xc3\x28"}]}}',
    b'{"type":"assistant","message":{"content":[{"type":"text","text":"\\ud800"}]}}',
    b"null",
    b"[]",
    b"17",
    b'"result"',
    b"[" * 20_000,
    b'{"type":' + b"9" * 5_000 + b"}",
    b'{"type":"hologram"}',
    b'{"type":["result"]}',
    b'{"type":"assistant"}',
    b'{"type":"assistant","message":null}',
    b'{"type":"assistant","message":{"content":"text"}}',
    b'{"type":"assistant","message":{"content":[null,17,{"type":null}]}}',
    b'{"type":"assistant","message":{"content":[{"type":"tool_use","id":[],"name":{},"input":7}]}}',
    b'{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":{},"content":{"a":[]}}]}}',
    b'{"type":"system","subtype":["init"]}',
    b'{"type":"system","subtype":"api_retry","attempt":"x","retry_delay_ms":null}',
    b'{"type":"result"}',
    b'{"type":"result","is_error":"maybe","num_turns":"many","total_cost_usd":NaN,"permission_denials":{"a":1},"result":[]}',
    b'{"type":"result","is_error":true,"num_turns":1e999,"total_cost_usd":-1e400,"session_id":7,"terminal_reason":[]}',
    b"\x00\x00\x00",
)


# -- processes that are left behind -----------------------------------------------------------------------------------


def _leave_behind(life: Callable[[], None], *, twice: bool) -> None:
    """Returns once it runs: what has not been there yet could not be missed."""
    up, down = os.pipe()
    if os.fork():
        os.close(down)
        os.read(up, 1)
        os.close(up)
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    if twice and os.fork():
        os._exit(0)
    note_pid(os.getpid())
    quiet = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    os.write(down, b"1")
    life()
    os._exit(0)


def _wait_for_ever() -> None:
    os.execvp("sleep", ["sleep", "100000"])


def _serve() -> None:
    """On a port, which stands in the attempt's folder, for as long as it lives."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        folder = os.environ.get("COORDINATOR_ATTEMPT")
        if folder:
            with open(os.path.join(folder, "port"), "w", encoding="utf-8") as file:
                json.dump(server.getsockname()[1], file)
        while True:
            server.accept()[0].close()


def _hide() -> None:
    """No environment, no file descriptors, another directory, deaf to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stays so in the next program
    os.chdir("/")
    os.closerange(3, 1024)
    os.execve("/bin/sleep", ["sleep", "100000"], {})

"""What codex, opencode, gemini and aider are started with, and what is made of lines that they really printed."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Order, Outcome
from coordinator.domain.vitals import Doing
from coordinator.fleet import cards, drivers
from coordinator.fleet.call_failure import CallFailure, failure_in, reset_at, said_of
from coordinator.fleet.driver import Ended
from coordinator.fleet.json_line import digest, screen_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from coordinator.fleet.driver import Launch, Reader, Said

ALL = ("aider", "codex", "gemini", "opencode")
GATEWAY = "http://127.0.0.1:4000/agents/t/3"
NOW = 1_795_612_721.0
THREAD = "01a212c6-d6dc-7982-9a50-8bd6b49ddc77"
OVER = Ended(code=0, now=NOW)


def order(driver: str, **more: Any) -> Order:
    needed = {name: f"/x/{name}" for name in ("attempt", "brief", "home", "repository", "worktree")}
    return Order(
        **{
            **needed,
            "base": "b",
            "branch": "c",
            "command": (driver,),
            "driver": driver,
            "generation": 3,
            "task": "t",
            **more,
        }
    )


def launch(driver: str, **more: Any) -> Launch:
    return drivers.of(driver).launch(order(driver, **more), python="/python")


def reader(driver: str, **more: Any) -> Reader:
    return drivers.of(driver).reader(order(driver, **more))


def read(driver: str, *lines: dict[str, Any] | str | bytes, **more: Any) -> Reader:
    made = reader(driver, **more)
    for line in lines:
        made.feed(line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode())
    return made


def ended(driver: str, *lines: dict[str, Any] | str | bytes, how: Ended = OVER) -> Said:
    return read(driver, *lines).conclude(how)


# -- what they are started with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ALL)
def test_with_a_gateway_its_key_and_address_are_the_orders(driver: str) -> None:
    own = (("OPENAI_API_KEY", "of the card"), ("GEMINI_API_KEY", "of the card"), ("GOOGLE_GEMINI_BASE_URL", "http://x"))
    made = launch(driver, gateway=GATEWAY, key="key-1", env=own)
    assert {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"} <= set(made.drop)
    assert {"GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL"} <= set(made.drop)
    assert made.env["OPENAI_API_KEY"] == "key-1"
    everything = " ".join([*made.argv, *made.env.values(), *(text for _, text in made.files)])
    assert f"{GATEWAY}/v1" in everything
    if driver == "gemini":
        assert (made.env["GEMINI_API_KEY"], made.env["GOOGLE_GEMINI_BASE_URL"]) == ("key-1", GATEWAY)
    assert "key-1" not in " ".join(made.argv), "others see an argument"


@pytest.mark.parametrize("driver", ALL)
def test_it_keeps_its_things_in_the_home_of_its_task(driver: str) -> None:
    made = launch(driver)
    assert made.env["HOME"] == "/x/home"
    assert made.transcript
    assert made.argv[0] == driver
    assert all(not name.startswith("/") and ".." not in name for name, _ in made.files)
    with pytest.raises(ValueError, match="folder of its own"):
        launch(driver, home="")


@pytest.mark.parametrize("driver", ALL)
def test_the_brief_is_no_argument(driver: str) -> None:
    made = launch(driver)
    assert (made.stdin is None) != (f"--message-file={order(driver).brief}" in made.argv)


@pytest.mark.parametrize("driver", ALL)
def test_arguments_of_the_card_stay_before_ours_and_a_model_is_named(driver: str) -> None:
    made = launch(driver, command=("{python}", "-m", driver), model="p/m")
    assert made.argv[:3] == ("/python", "-m", driver)
    assert "--model=p/m" in made.argv
    assert not any(word.startswith("--model") for word in launch(driver).argv)


def test_codex_has_settings_that_confine_it() -> None:
    ((name, text),) = launch("codex", gateway=GATEWAY, key="k").files
    settings = tomllib.loads(text)
    provider = settings["model_providers"][settings["model_provider"]]
    assert name == ".codex/config.toml"
    assert (settings["sandbox_mode"], settings["approval_policy"]) == ("workspace-write", "never")
    assert (provider["base_url"], provider["env_key"], provider["wire_api"]) == (
        f"{GATEWAY}/v1",
        "OPENAI_API_KEY",
        "responses",
    )
    assert launch("codex").env["CODEX_HOME"] == "/x/home/.codex"


def test_codex_goes_on_only_with_what_is_a_conversation() -> None:
    assert launch("codex", resume=THREAD).argv[-3:] == ("resume", THREAD, "-")
    assert "resume" not in launch("codex", resume="--dangerously-bypass-approvals-and-sandbox").argv


def test_codex_takes_a_login_of_the_cards_unless_the_gateway_runs() -> None:
    own = (("CODEX_HOME", "/own/.codex"),)
    made = launch("codex", env=own)
    assert (made.env["CODEX_HOME"], made.files) == ("/own/.codex", ())
    assert launch("codex", env=own, gateway=GATEWAY).env["CODEX_HOME"] == "/x/home/.codex"


def test_opencode_calls_every_provider_at_the_gateway() -> None:
    made = launch("opencode", gateway=GATEWAY, model="local/qwen/3")
    ((name, text),) = made.files
    settings = json.loads(text)
    assert name == "3/config/opencode/opencode.json"
    assert made.env["XDG_CONFIG_HOME"] == "/x/home/3/config"
    assert {one["options"]["baseURL"] for one in settings["provider"].values()} == {f"{GATEWAY}/v1"}
    assert settings["provider"]["local"]["models"] == {"qwen/3": {}}
    assert settings["permission"]["external_directory"] == "deny"
    assert "provider" not in json.loads(launch("opencode").files[0][1])


def test_aider_leaves_nothing_of_its_own_in_the_tree() -> None:
    argv = launch("aider").argv
    assert "--map-tokens=0" in argv
    assert {word.partition("=")[2] for word in argv if "-history-file=" in word} == {
        f"/x/home/aider.{name}" for name in ("calls", "chat.md", "input")
    }
    assert "--map-tokens=0" not in launch("aider", command=("aider", "--map-tokens", "2048")).argv


def test_every_card_that_comes_with_us_is_valid_and_has_its_driver(tmp_path: Path) -> None:
    loaded = cards.load(tmp_path)
    for name in ALL:
        assert (loaded.cards[name].driver, loaded.cards[name].command[0]) == (name, name)
        assert loaded.cards[name].standing_brief
        drivers.of(name)


# -- codex ---------------------------------------------------------------------------------------------------------------

STARTED = {"type": "thread.started", "thread_id": THREAD}
WARNING = {"type": "item.completed", "item": {"id": "item_0", "type": "error", "message": "Model metadata not found."}}
TURN = {"type": "turn.started"}
USAGE = {"type": "turn.completed", "usage": {"input_tokens": 200, "cached_input_tokens": 80, "output_tokens": 20}}


def shell(what: str, number: int = 1, command: str = "ls", output: str = "a.txt\n") -> dict[str, Any]:
    done = what == "completed"
    item = {
        "id": f"item_{number}",
        "type": "command_execution",
        "command": f"/bin/bash -lc '{command}'",
        "aggregated_output": output if done else "",
        "exit_code": 0 if done else None,
        "status": "completed" if done else "in_progress",
    }
    return {"type": f"item.{what}", "item": item}


def message(text: str) -> dict[str, Any]:
    return {"type": "item.completed", "item": {"id": "item_9", "type": "agent_message", "text": text}}


def failed(text: str) -> list[dict[str, Any]]:
    return [STARTED, TURN, {"type": "error", "message": text}, {"type": "turn.failed", "error": {"message": text}}]


def test_codex_thinks_uses_a_tool_and_finishes() -> None:
    followed = reader("codex")
    seen = []
    for line in (STARTED, WARNING, TURN, shell("started"), shell("completed"), message("All done."), USAGE):
        followed.feed(json.dumps(line).encode())
        seen.append(followed.glimpse())
    assert [one.doing for one in seen] == [
        Doing.STARTING,
        Doing.STARTING,
        Doing.THINKING,
        Doing.USING_TOOL,
        Doing.THINKING,
        Doing.THINKING,
        Doing.FINISHED,
    ]
    assert (seen[3].tool, "ls" in seen[3].note) == ("shell", True)
    said = followed.conclude(OVER)
    assert (said.outcome, said.summary, said.turns, said.session) == (Outcome.DONE, "All done.", 2, THREAD)


def test_equal_calls_with_equal_answers_are_counted() -> None:
    calls = [shell(what, number) for number in range(3) for what in ("started", "completed")]
    assert read("codex", TURN, *calls).glimpse().repeats == 3
    assert read("codex", TURN, *calls, shell("completed", 4, output="b.txt")).glimpse().repeats == 1
    rounds = [shell("completed", number, output=f"{number % 4}.txt") for number in range(12)]
    assert read("codex", TURN, *rounds).glimpse().repeats == 3
    assert read("codex", TURN, *rounds[:4]).glimpse().repeats == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unexpected status 401 Unauthorized: Incorrect API key provided, url: http://127.0.0.1:1/v1", "login_missing"),
        ("unexpected status 403 Forbidden: no access, url: http://127.0.0.1:1/v1", "login_missing"),
        ("unexpected status 403 Forbidden: coordinator: the key of attempt 1 at t was revoked", "unavailable"),
        ("Missing environment variable: `OPENAI_API_KEY`.", "login_missing"),
        ("exceeded retry limit, last status: 429 Too Many Requests", "rate_limited"),
        ("Quota exceeded. Check your plan and billing details.", "rate_limited"),
        ("You’ve hit your usage limit. Try again later.", "rate_limited"),
        ("Codex ran out of room in the model's context window. Start a new thread or clear it.", "context_overflow"),
        ("We’re currently experiencing high demand, which may cause temporary errors.", "unavailable"),
        ("stream disconnected before completion: failed to lookup address information", "unavailable"),
        ("unexpected status 404 Not Found: no such model, url: http://127.0.0.1:1/v1", "api 404"),
        ("something that nobody has seen yet", "error"),
    ],
)
def test_codex_fails_with_a_name(text: str, reason: str) -> None:
    said = ended("codex", *failed(text), how=Ended(code=1, now=NOW))
    assert (said.outcome, said.reason) == (Outcome.FAILED, reason)
    assert text[:40] in said.summary


def test_a_limit_that_names_its_end_is_taken_at_its_word() -> None:
    text = "You’ve hit your usage limit. Upgrade to Pro or try again at {}."
    in_two_hours = datetime.fromtimestamp(NOW + 7300, tz=UTC).astimezone()
    clock = f"{in_two_hours.hour % 12 or 12}:{in_two_hours.minute:02} {'PM' if in_two_hours.hour >= 12 else 'AM'}"
    said = ended("codex", *failed(text.format(clock)), how=Ended(code=1, now=NOW))
    assert said.retry_at == in_two_hours.replace(second=0).timestamp()
    an_hour_ago = datetime.fromtimestamp(NOW - 3600, tz=UTC).astimezone()
    clock = f"{an_hour_ago.hour % 12 or 12}:{an_hour_ago.minute:02} {'PM' if an_hour_ago.hour >= 12 else 'AM'}"
    said = ended("codex", *failed(text.format(clock)), how=Ended(code=1, now=NOW))
    assert said.retry_at == an_hour_ago.replace(second=0).timestamp() + 86400, "tomorrow's"
    days = datetime.fromtimestamp(NOW, tz=UTC).astimezone().replace(month=12, day=4, hour=0, minute=5, second=0)
    said = ended("codex", *failed(text.format(f"Dec 4th, {days.year} 12:05 AM")), how=Ended(code=1, now=NOW))
    assert said.retry_at == days.timestamp()


def test_a_refused_key_ends_it_before_the_program_gives_up() -> None:
    again = {"type": "error", "message": "Reconnecting... {}/5 (unexpected status 401 Unauthorized: no, url: http://x)"}
    lines = [{**again, "message": again["message"].format(number)} for number in (1, 2)]
    followed = read("codex", STARTED, TURN, lines[0])
    assert followed.doom(NOW) is None, "it may just be exchanged"
    followed.feed(json.dumps(lines[1]).encode())
    doomed = followed.doom(NOW)
    assert doomed is not None
    assert (doomed.reason, doomed.session) == ("login_missing", THREAD)


def test_an_answer_after_a_failure_lets_it_live() -> None:
    again = {"type": "error", "message": "Reconnecting... 1/5 (unexpected status 401 Unauthorized: no)"}
    followed = read("codex", TURN, again, message("ok"), again)
    assert followed.doom(NOW) is None
    assert read("codex", TURN, again, message("ok"), USAGE).conclude(OVER).outcome is Outcome.DONE


def test_nobody_reached_is_waited_for_but_not_for_ever() -> None:
    away = {
        "type": "error",
        "message": "Reconnecting... waiting for network (Connection failed: error sending request)",
    }
    assert read("codex", TURN, *[away] * 10).doom(NOW) is None
    doomed = read("codex", TURN, *[away] * 60).doom(NOW)
    assert doomed is not None
    assert doomed.reason == "unavailable"


# -- opencode ------------------------------------------------------------------------------------------------------------


def part(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "timestamp": 1, "sessionID": "ses_1", "part": more}


def tool(**state: Any) -> dict[str, Any]:
    return part(
        "tool_use", tool="bash", state={"status": "completed", "input": {"command": "ls"}, "output": "a", **state}
    )


STEP = part("step_start")
MORE = part("step_finish", reason="tool-calls", cost=0.25)
STOP = part("step_finish", reason="stop", cost=0.25)


def test_opencode_may_be_at_a_tool_for_as_long_as_a_step_lasts() -> None:
    followed = reader("opencode")
    seen = []
    for line in (STEP, tool(), MORE, STEP, part("text", text="All done."), STOP):
        followed.feed(json.dumps(line).encode())
        seen.append(followed.glimpse().doing)
    using, thinking = Doing.USING_TOOL, Doing.THINKING
    assert seen == [using, using, thinking, using, using, Doing.FINISHED]
    said = followed.conclude(OVER)
    assert (said.outcome, said.summary, said.turns, said.cost_usd) == (Outcome.DONE, "All done.", 2, 0.5)


@pytest.mark.parametrize(
    ("error", "reason", "retry_at"),
    [
        (
            {"name": "APIError", "data": {"message": "Incorrect API key provided", "statusCode": 401}},
            "login_missing",
            0,
        ),
        (
            {
                "name": "APIError",
                "data": {"message": "limit", "statusCode": 429, "responseHeaders": {"retry-after": "90"}},
            },
            "rate_limited",
            NOW + 90,
        ),
        ({"name": "ContextOverflowError", "data": {"message": "too long"}}, "context_overflow", 0),
        ({"name": "APIError", "data": {"message": "boom", "statusCode": 500}}, "unavailable", 0),
        ({"name": "APIError", "data": {"message": "Cannot connect to API: Unable to connect."}}, "unavailable", 0),
        ({"name": "APIError", "data": {"message": "no such model", "statusCode": 404}}, "api 404", 0),
        ({"name": "UnknownError", "data": {"message": "Unexpected server error."}}, "error", 0),
        ({"name": 3, "data": []}, "error", 0),
    ],
)
def test_opencode_fails_with_a_name(error: dict[str, Any], reason: str, retry_at: float) -> None:
    said = ended("opencode", {"type": "error", "error": error}, how=Ended(code=1, now=NOW))
    assert (said.outcome, said.reason, said.retry_at) == (Outcome.FAILED, reason, retry_at)
    assert said.summary


def test_what_was_refused_is_denied_only_if_nothing_else_was_done() -> None:
    refused = tool(status="error", error="The user rejected permission to use this specific tool call.", output=None)
    said = ended("opencode", STEP, refused, MORE, STEP, STOP)
    assert (said.outcome, said.reason) == (Outcome.FAILED, "denied")
    assert "bash ls" in said.summary
    assert ended("opencode", STEP, refused, tool(), MORE, STEP, STOP).outcome is Outcome.DONE
    looked = part("tool_use", tool="read", state={"status": "completed", "input": {"filePath": "a"}, "output": "a"})
    assert ended("opencode", STEP, looked, refused, MORE, STEP, STOP).outcome is Outcome.FAILED


# -- gemini --------------------------------------------------------------------------------------------------------------

INIT = {"type": "init", "session_id": "f02f4164-b1f5-47f1-99f9-d37fa688b322", "model": "gemini-2.5-pro"}
ASKED = {"type": "message", "role": "user", "content": "do the thing\n"}
USE = {"type": "tool_use", "tool_name": "run_shell_command", "tool_id": "1", "parameters": {"command": "ls"}}
ANSWER = {"type": "tool_result", "tool_id": "1", "status": "success", "output": "a.txt"}
SUCCESS = {"type": "result", "status": "success", "stats": {"tool_calls": 1}}


def piece(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text, "delta": True}


def test_gemini_thinks_uses_a_tool_and_finishes() -> None:
    followed = reader("gemini")
    seen = []
    for line in (INIT, ASKED, USE, ANSWER, piece("All "), piece("done."), SUCCESS):
        followed.feed(json.dumps(line).encode())
        seen.append(followed.glimpse().doing)
    thinking = Doing.THINKING
    assert seen == [thinking, thinking, Doing.USING_TOOL, thinking, thinking, thinking, Doing.FINISHED]
    said = followed.conclude(OVER)
    assert (said.outcome, said.summary, said.turns) == (Outcome.DONE, "All done.", 2)


def api_error(message: str, code: int, status: str) -> dict[str, Any]:
    inner = json.dumps({"error": {"message": message, "code": code, "status": status}})
    return {"type": "result", "status": "error", "error": {"type": "unknown", "message": f"[API Error: {inner}]"}}


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (api_error("API key not valid. Please pass a valid API key.", 400, "INVALID_ARGUMENT"), 144, "login_missing"),
        (api_error("no", 401, "UNAUTHENTICATED"), 145, "login_missing"),
        (api_error("no access", 403, "PERMISSION_DENIED"), 147, "login_missing"),
        (api_error("The input token count (12) exceeds the maximum", 400, "INVALID_ARGUMENT"), 144, "context_overflow"),
        (api_error("You exceeded your current quota.", 429, "RESOURCE_EXHAUSTED"), 173, "rate_limited"),
        (api_error("boom", 503, "UNAVAILABLE"), 247, "unavailable"),
        ({"type": "result", "status": "error", "error": {"message": "[API Error: models/x is not found]"}}, 1, "model"),
    ],
)
def test_gemini_fails_with_a_name(line: dict[str, Any], code: int, reason: str) -> None:
    said = ended("gemini", INIT, line, how=Ended(code=code, now=NOW))
    assert (said.outcome, said.reason) == (Outcome.FAILED, reason)


def test_gemini_without_a_gateway_calls_as_its_card_says() -> None:
    own = (("GEMINI_API_KEY", "of the card"), ("GOOGLE_GEMINI_BASE_URL", "http://proxy"))
    made = launch("gemini", env=own)
    assert made.drop == ()
    assert (made.env["GEMINI_API_KEY"], made.env["GOOGLE_GEMINI_BASE_URL"]) == ("of the card", "http://proxy")
    assert not {"GEMINI_API_KEY", "OPENAI_API_KEY"} & set(launch("gemini").env)


def test_gemini_knows_what_our_gateway_says() -> None:
    spent = api_error("coordinator: the task's budget: $1.00", 402, "FAILED_PRECONDITION")
    assert ended("gemini", INIT, spent, how=Ended(code=146, now=NOW)).reason == "over_budget"
    revoked = api_error("coordinator: the key of attempt 1 at t was revoked", 403, "PERMISSION_DENIED")
    assert ended("gemini", INIT, revoked, how=Ended(code=147, now=NOW)).reason == "unavailable"
    refused, through = api_error("no", 401, "UNAUTHENTICATED"), "calls go through its gateway"
    assert through not in ended("gemini", INIT, refused, how=Ended(code=145, now=NOW)).summary
    followed = read("gemini", INIT, refused, gateway=GATEWAY, key="k")
    assert through in followed.conclude(Ended(code=145, now=NOW)).summary


def test_gemini_without_a_key_says_so_where_it_complains() -> None:
    log = "When using Gemini API, you must specify the GEMINI_API_KEY environment variable.\nUpdate your environment!\n"
    said = ended("gemini", how=Ended(code=41, log=log, last="Update your environment!", now=NOW))
    assert (said.reason, "set GEMINI_API_KEY where" in said.summary) == ("login_missing", True)


# -- aider ---------------------------------------------------------------------------------------------------------------

HELLO = "Aider v0.86.2"
TOKENS = "Tokens: 2.1k sent, 120 received. Cost: $0.01 message, $0.02 session."


def test_aider_did_its_work_when_a_model_answered() -> None:
    said = ended("aider", HELLO, "Here it is.", "b.txt", TOKENS, "Applied edit to b.txt", "Commit 6a0769d add b")
    assert (said.outcome, said.summary) == (Outcome.DONE, "Applied edit to b.txt; Commit 6a0769d add b")
    assert (said.turns, said.cost_usd) == (1, 0.02)
    assert ended("aider", HELLO, "Nothing to do.", TOKENS).summary == "Nothing to do."
    assert ended("aider", HELLO).reason == "no_result"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key", "login_missing"),
        ("litellm.AuthenticationError: Missing Anthropic API Key - A call is being made to", "login_missing"),
        ("litellm.RateLimitError: RateLimitError: OpenAIException - Rate limit reached", "rate_limited"),
        ("litellm.BadRequestError: OpenAIException - This models maximum context length is 8192", "context_overflow"),
        ("litellm.ContextWindowExceededError: too long", "context_overflow"),
        ("litellm.InternalServerError: OpenAIException - Connection error.", "unavailable"),
        ("litellm.BudgetExceededError: coordinator: the budget of this attempt is used up", "over_budget"),
        ("litellm.NotFoundError: NotFoundError: OpenAIException - no such model", "api 404"),
        ("Model openai/x has hit a token limit!", "context_overflow"),
    ],
)
def test_aider_fails_with_a_name_although_its_exit_code_is_always_0(line: str, reason: str) -> None:
    said = ended("aider", HELLO, line, "The API provider is not able to do that.")
    assert (said.outcome, said.reason) == (Outcome.FAILED, reason)
    assert ended("aider", HELLO, line, TOKENS).outcome is Outcome.DONE, "it was tried again, and was answered"


# -- all of them ---------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[dict[str, Any] | str, ...]] = {
    "aider": (HELLO, TOKENS),
    "codex": (TURN, message("ok"), USAGE),
    "gemini": (INIT, piece("ok"), SUCCESS),
    "opencode": (STEP, part("text", text="ok"), STOP),
}


@pytest.mark.parametrize("driver", ALL)
@pytest.mark.parametrize("how", [Ended(signal=9, now=NOW), Ended(code=137, now=NOW)])
def test_death_by_a_signal_is_a_signal(driver: str, how: Ended) -> None:
    assert ended(driver, how=how).reason == "signal 9"


@pytest.mark.parametrize("driver", ALL)
def test_an_end_without_a_last_word_is_no_success(driver: str) -> None:
    said = ended(driver, *ANSWERS[driver][:1])
    assert (said.outcome, said.reason) == (Outcome.FAILED, "no_result")
    assert ended(driver, *ANSWERS[driver], how=Ended(code=3, now=NOW)).reason == "exit 3"


@pytest.mark.parametrize(
    ("driver", "log"),
    [
        ("aider", "usage: aider [options]\naider: error: unrecognized arguments: --nope"),
        ("codex", "error: unexpected argument '--nope' found\n\nUsage: codex exec"),
        ("gemini", "Usage: gemini [options] [command]\nUnknown arguments: nope"),
        ("opencode", "opencode run [message..]\n\nrun opencode with a message"),
    ],
)
def test_options_that_it_does_not_know_are_named(driver: str, log: str) -> None:
    said = ended(driver, how=Ended(code=2, log=log, last=log.splitlines()[-1], now=NOW))
    assert (said.outcome, said.reason) == (Outcome.UNSTARTED, "options")


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
KINDS = (
    "thread.started",
    "item.started",
    "item.completed",
    "turn.failed",
    "error",
    "step_start",
    "tool_use",
    "step_finish",
)
MORE_KINDS = ("text", "message", "tool_result", "result", "turn.completed", "init")
NAMES = (
    "item",
    "part",
    "error",
    "message",
    "state",
    "id",
    "role",
    "data",
    "content",
    "type",
    "thread_id",
    "reason",
    "cost",
)
LIKELY = st.builds(
    lambda kind, rest: json.dumps({**rest, "type": kind}).encode(),
    st.sampled_from(KINDS + MORE_KINDS),
    st.dictionaries(st.sampled_from(NAMES), VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=4),
)
LINES = st.lists(
    st.binary(max_size=60) | LIKELY | st.text().map(lambda text: f"litellm.Error: {text}".encode(errors="replace"))
)


@pytest.mark.parametrize("driver", ALL)
@given(lines=LINES, code=st.none() | st.integers(0, 255))
def test_whatever_is_printed_there_is_a_last_word_fit_for_a_file(
    driver: str, lines: Iterable[bytes], code: int | None
) -> None:
    followed = read(driver, *lines)
    seen, said = followed.glimpse(), followed.conclude(Ended(code=code, now=NOW))
    followed.doom(NOW)
    for text in (seen.note, seen.tool, said.summary, said.reason, said.session):
        text.encode()
        assert len(text) <= 700
    assert seen.note.isprintable()


def test_lines_that_cannot_be_read_are_passed_over() -> None:
    noise = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"type": ' + b"[" * 100_000,
        b'{"type":"item.completed"}' + b"\0",
    ]
    for driver in ("codex", "gemini", "opencode"):
        assert ended(driver, *noise, *ANSWERS[driver], *noise).outcome is Outcome.DONE


# -- failures of calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please retry in 7.5s.", 7.5),
        ("Please try again in 1m30s. Visit our site", 90),
        ("Try again in 2 days 3 hours 5 minutes.", 2 * 86400 + 3 * 3600 + 300),
        ("please try again after 20 seconds", 20),
        ("Please try again in 250ms.", 0.25),
        (f"resets at {NOW + 60:.0f}", 60),
        ("it resets some day", None),
        (f"ticket {NOW + 90 * 86400:.0f}", None),
        (f"ticket {NOW - 5:.0f}", None),
        ("again at Feb 31st, 2027 1:00 AM", None),
        ("again at 13:99 PM", None),
    ],
)
def test_when_a_limit_ends(text: str, seconds: float | None) -> None:
    assert reset_at(CallFailure(message=text), NOW) == (
        0.0 if seconds is None else pytest.approx(NOW + seconds, abs=0.01, rel=0)
    )


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("quota of input_tokens for the context window", 429, "rate_limited"),
        ("coordinator: the budget of this attempt is used up", 402, "over_budget"),
        ("Your credit balance is too low", 400, "rate_limited"),
        ("request too large", 413, "context_overflow"),
    ],
)
def test_a_status_that_is_about_who_asks_comes_before_the_words(text: str, status: int, reason: str) -> None:
    said = said_of(failure_in(text, status=status), gateway=True, remedy="KEY", now=NOW)
    assert (said.reason, said.summary) == (reason, text)


@given(st.text(), st.integers(0, 600), st.booleans())
def test_no_failure_of_a_call_is_a_success(text: str, status: int, gateway: bool) -> None:
    said = said_of(failure_in(text, status=status), gateway=gateway, remedy="KEY", now=NOW)
    assert (said.outcome, bool(said.reason), bool(said.summary)) == (Outcome.FAILED, True, True)


@given(st.text(), st.integers(1, 300))
def test_a_line_for_a_screen_is_one(text: str, longest: int) -> None:
    line = screen_line(text, longest)
    assert line.isprintable()
    assert len(line) <= longest


def test_what_cannot_be_compared_equals_nothing() -> None:
    assert digest(object()) == b""
    assert digest("a", [1]) == digest("a", [1]) != digest("a", [2])

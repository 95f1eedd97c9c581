"""How Claude Code is started, and what is made of what it prints. ``tests/real`` shows that it prints it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.attempt import Order, Result
from coordinator.domain.vitals import Doing, Vitals
from coordinator.fleet import cards, drivers, work
from coordinator.fleet.claude_reader import ClaudeReader
from coordinator.fleet.driver import PROVIDER_VARIABLES, Ended
from coordinator.fleet.repeats import LONGEST_ROUND, Repeats

if TYPE_CHECKING:
    from pathlib import Path

ONE = "a1111111-1111-4111-8111-11111111111b"
TWO = "22222222-2222-4222-8222-222222222222"
NOW = 1_795_600_000.0

ORDER = Order(
    attempt="/s/attempts/t/1",
    base="b",
    branch="agent/t/1",
    brief="/s/attempts/t/1/brief.md",
    command=("claude",),
    driver="claude",
    generation=1,
    home="/s/homes/t",
    repository="/r",
    session=ONE,
    task="t",
    timeout_s=3600.0,
    worktree="/s/worktrees/t-1",
)
GATEWAY = replace(ORDER, gateway="http://127.0.0.1:7/agents/t/1", key="key-1")


def launch(order: Order) -> tuple[list[str], dict[str, str]]:
    made = drivers.of("claude").launch(order, python="/python")
    assert made.transcript
    return list(made.argv), dict(made.env)


def environment(order: Order, outside: dict[str, str]) -> dict[str, str]:
    """What the command really gets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in outside.items():
            patch.setenv(name, value)
        return work._environment(order, drivers.of("claude").launch(order, python="/python"))


# -- the launch line -----------------------------------------------------------------------------------------------


def test_the_launch_line_says_everything_and_the_repository_nothing() -> None:
    argv, _ = launch(ORDER)
    assert argv[:8] == ["claude", "-p", "--output-format", "stream-json", "--verbose", "--setting-sources", "", "--strict-mcp-config"]  # fmt: skip
    assert argv[8:12] == ["--session-id", ONE, "--permission-mode", "dontAsk"]
    assert argv[12:18] == ["--allowedTools", "Bash", "Edit", "NotebookEdit", "Read", "Write"]
    assert argv[18] == "--disallowedTools"
    assert "EnterWorktree" in argv[19:]


def test_limits_model_tools_and_arguments_of_the_card() -> None:
    order = replace(ORDER, command=("{python}", "x"), budget_usd=2.5, max_turns=9, model="opus", tools=("Bash(a, b)",))
    argv, _ = launch(order)
    assert argv[:3] == ["/python", "x", "-p"]
    assert argv[argv.index("--allowedTools") + 1 : argv.index("--disallowedTools")] == ["Bash(a, b)"]
    assert argv[-3:] == ["--max-turns=9", "--max-budget-usd=2.500000", "--model=opus"]


def test_everything_is_allowed_only_when_the_card_says_so() -> None:
    argv, env = launch(replace(ORDER, permission_mode="bypassPermissions"))
    assert argv[argv.index("--permission-mode") + 1] == "bypassPermissions"
    assert "--allowedTools" not in argv
    assert env["IS_SANDBOX"] == "1"
    assert "IS_SANDBOX" not in launch(replace(ORDER, permission_mode="acceptEdits"))[1]


@pytest.mark.parametrize("resume", ["--dangerously-skip-permissions", "x", "", ONE.upper(), ONE + "\n"])
def test_a_session_that_is_none_is_never_an_option(resume: str) -> None:
    argv, _ = launch(replace(ORDER, resume=resume))
    assert argv[8:10] == ["--session-id", ONE]
    assert not resume or resume not in argv


def test_a_session_goes_on() -> None:
    argv, _ = launch(replace(ORDER, resume=TWO))
    assert argv[8:10] == ["--resume", TWO]
    assert "--session-id" not in argv


def test_what_a_shell_command_may_take_fits_the_attempt() -> None:
    _, env = launch(ORDER)
    assert (env["BASH_DEFAULT_TIMEOUT_MS"], env["BASH_MAX_TIMEOUT_MS"]) == ("600000", "3600000")
    _, env = launch(replace(ORDER, timeout_s=90.0))
    assert (env["BASH_DEFAULT_TIMEOUT_MS"], env["BASH_MAX_TIMEOUT_MS"]) == ("90000", "90000")
    own = replace(ORDER, env=(("BASH_MAX_TIMEOUT_MS", "7200000"), ("BASH_DEFAULT_TIMEOUT_MS", "5000")))
    _, env = launch(own)
    assert (env["BASH_DEFAULT_TIMEOUT_MS"], env["BASH_MAX_TIMEOUT_MS"]) == ("5000", "7200000")
    reader = drivers.of("claude").reader(own)
    feed(reader, call("a", "Bash", command="make"))  # type: ignore[arg-type]
    assert reader.glimpse().tool_limit_s == 5.0


def test_no_configuration_but_the_tasks_own() -> None:
    card = (("CLAUDE_CONFIG_DIR", "/home/ada/.claude"), ("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "0"))
    env = environment(replace(ORDER, env=card), {"HOME": "/home/ada", "CLAUDECODE": "1", "ANTHROPIC_API_KEY": "k"})
    assert (env["HOME"], env["CLAUDE_CONFIG_DIR"]) == ("/s/homes/t", "/s/homes/t/.claude")
    assert env["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"] == "0"  # a card may change how it works
    assert env["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert not {"CLAUDECODE", "ANTHROPIC_API_KEY"} & set(env)


def test_keys_of_the_daemon_stay_with_it_while_the_gateway_runs() -> None:
    outside = {name: f"daemons-{name}" for name in PROVIDER_VARIABLES}
    env = environment(replace(GATEWAY, env_names=(*PROVIDER_VARIABLES, "PATH")), outside)
    assert not [name for name, value in env.items() if value.startswith("daemons-")]
    assert (env["ANTHROPIC_BASE_URL"], env["ANTHROPIC_API_KEY"]) == (GATEWAY.gateway, "key-1")
    assert "ANTHROPIC_AUTH_TOKEN" not in env
    direct = environment(replace(ORDER, env_names=("ANTHROPIC_API_KEY",)), outside)
    assert direct["ANTHROPIC_API_KEY"] == "daemons-ANTHROPIC_API_KEY"


def test_the_card_that_comes_with_the_product(tmp_path: Path) -> None:
    card = cards.load(tmp_path).cards["claude"]
    assert (card.driver, card.command, card.permission_mode) == ("claude", ("claude",), "dontAsk")
    assert min(card.max_turns, card.budget_usd, card.memory_bytes, card.timeout_s) > 0
    assert "ANTHROPIC_API_KEY" in card.env
    assert "AGENTS.md" in card.standing_brief


# -- what it does right now ----------------------------------------------------------------------------------------


def feed(reader: ClaudeReader, *lines: object) -> ClaudeReader:
    for line in lines:
        reader.feed(json.dumps(line).encode())
    return reader


def fresh(*lines: object, gateway: bool = False) -> ClaudeReader:
    return feed(ClaudeReader(bash_default_s=600.0, bash_most_s=3600.0, gateway=gateway), *lines)


def said(number: str, *blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    message = {"id": number, "model": "claude-opus-5-5", "content": list(blocks), "usage": {"input_tokens": 5}}
    return {"type": "assistant", "message": message, "parent_tool_use_id": None, "session_id": ONE, **more}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def call(number: str, tool: str, *, message: str = "", **given: Any) -> dict[str, Any]:
    return said(message or f"m-{number}", {"type": "tool_use", "id": number, "name": tool, "input": given})


def answer(number: str, content: object = "fine", **more: Any) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": number, "content": content}
    return {"type": "user", "message": {"role": "user", "content": [block]}, "parent_tool_use_id": None, **more}


def system(subtype: str, **more: Any) -> dict[str, Any]:
    return {"type": "system", "subtype": subtype, **more}


def result(words: str = "Done.", **more: Any) -> dict[str, Any]:
    usual = {"type": "result", "subtype": "success", "is_error": False, "terminal_reason": "completed", "result": words}
    return {**usual, "session_id": ONE, "total_cost_usd": 0.5, "permission_denials": [], **more}


def api_error(status: int | None, words: str, **more: Any) -> dict[str, Any]:
    return result(words, is_error=True, terminal_reason="api_error", api_error_status=status, **more)


INIT = system("init", session_id=ONE)


def test_it_starts_thinks_uses_a_tool_thinks_and_finishes() -> None:
    reader = fresh()
    assert reader.glimpse().doing is Doing.STARTING
    feed(reader, INIT)
    assert reader.glimpse().doing is Doing.THINKING
    feed(reader, call("a", "Bash", command="pytest -q", timeout=90_000))
    seen = reader.glimpse()
    assert (seen.doing, seen.tool, seen.tool_limit_s, seen.note) == (Doing.USING_TOOL, "Bash", 90.0, "Bash pytest -q")
    feed(reader, answer("a"))
    assert reader.glimpse().doing is Doing.THINKING
    feed(reader, said("m2", text("All is well.")), result())
    seen = reader.glimpse()
    assert (seen.doing, seen.turns, seen.cost_usd, seen.note) == (Doing.FINISHED, 2, 0.5, "Done.")


def test_several_tools_at_once_are_in_flight_until_the_last_is_answered() -> None:
    reader = fresh(
        INIT, call("a", "Bash", message="m", command="x"), call("b", "Bash", message="m", command="y", timeout=1e9)
    )
    assert reader.glimpse().tool_limit_s == 3600.0
    feed(reader, answer("b"))
    assert (reader.glimpse().doing, reader.glimpse().tool_limit_s) == (Doing.USING_TOOL, 600.0)
    feed(reader, call("c", "Read", message="m", file_path="f"))
    assert reader.glimpse().tool_limit_s == 0.0  # one without a time-out makes the whole without one
    feed(reader, answer("a"), answer("c"))
    assert (reader.glimpse().doing, reader.glimpse().turns) == (Doing.THINKING, 1)


def test_a_subagents_lines_are_not_its_own() -> None:
    reader = fresh(INIT, call("a", "Agent", description="look around"))
    inner = {**call("x", "Bash", command="ls"), "parent_tool_use_id": "a"}
    feed(reader, inner, {**answer("x"), "parent_tool_use_id": "a"})
    assert (reader.glimpse().tool, reader.glimpse().turns) == ("Agent", 1)


def test_a_call_that_failed_is_waited_for() -> None:
    retry = system("api_retry", attempt=1, max_retries=10, retry_delay_ms=20_000, error_status=529, error="overloaded")
    seen = fresh(INIT, retry).glimpse()
    assert (seen.doing, seen.note) == (Doing.THINKING, "the call failed (529), tries again in 20 s")


def test_what_it_left_running_is_waited_for_after_its_last_word() -> None:
    task = system("background_tasks_changed", tasks=[{"task_id": "b", "description": "a long\nbuild"}])
    reader = fresh(INIT, task, result())
    seen = reader.glimpse()
    assert (seen.doing, seen.note) == (Doing.USING_TOOL, "waits for what it left running: a long build")
    feed(reader, system("background_tasks_changed", tasks=[]))
    assert reader.glimpse().doing is Doing.FINISHED
    feed(reader, INIT)
    assert reader.glimpse().doing is Doing.THINKING


def test_the_same_call_with_the_same_answer_is_counted() -> None:
    def round_(number: int, command: str, words: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return call(f"{number}", "Bash", command=command), answer(f"{number}", words)

    reader = fresh()
    repeats = []
    for number, (command, words) in enumerate(
        [("ls", "a"), ("ls", "a"), ("ls", "b"), ("ls", "b"), ("ls", "b"), ("ps", "b")]
    ):
        feed(reader, *round_(number, command, words))
        repeats.append(reader.glimpse().repeats)
    assert repeats == [1, 2, 1, 2, 3, 1]
    assert reader.glimpse().tool == "Bash"


@pytest.mark.parametrize(
    ("commands", "counted"),
    [
        ("edit test " * 8, 8),
        ("edit test undo test " * 8, 8),
        ("edit test undo test " * 7 + "edit test undo", 7),
        ("a b c d " * 3 + "e", 1),
        ("a b c d e f g h", 1),
    ],
)
def test_a_round_of_calls_with_the_same_answers_is_counted(commands: str, counted: int) -> None:
    reader = fresh()
    for number, command in enumerate(commands.split()):
        feed(reader, call(f"{number}", "Bash", command=command), answer(f"{number}", f"{command} failed"))
    assert reader.glimpse().repeats == counted


def _counted_anew(marks: list[bytes]) -> int:
    """The same, by its definition: the most copies of a round that the marks end with."""
    most = 1
    for length in range(1, LONGEST_ROUND + 1):
        copies = 1
        while marks[-length:] * (copies + 1) == marks[-length * (copies + 1) :] and b"" not in marks[-length:]:
            copies += 1
        most = max(most, copies)
    return most


@given(marks=st.lists(st.sampled_from([b"", b"a", b"b"]), min_size=1, max_size=40))
def test_rounds_are_counted_as_they_are_defined(marks: list[bytes]) -> None:
    repeats = Repeats()
    for mark in marks:
        repeats.take(mark)
    assert repeats.count == _counted_anew(marks)


@given(marks=st.lists(st.binary(min_size=1, max_size=2), max_size=40, unique=True))
def test_what_differs_is_no_round(marks: list[bytes]) -> None:
    repeats = Repeats()
    for mark in marks:
        repeats.take(mark)
        assert repeats.count == 1


# -- lines that are none -------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_ends_the_call_it_answers() -> None:
    reader = fresh(INIT, call("a", "Bash", command="cat big"))
    reader.feed(b'{"type":"user","message":{"role":"user","content":[{"type":"tool_result","content":"' + b"x" * 2**20)
    assert reader.glimpse().doing is Doing.THINKING


def test_an_answer_that_could_not_be_read_is_taken_as_given_by_the_next_turn() -> None:
    reader = fresh(INIT, call("a", "Bash", command="x"))
    reader.feed(b'{"type":"user","message":\xff\xfe broken')
    assert reader.glimpse().doing is Doing.USING_TOOL
    feed(reader, said("m2", text("Next.")))
    assert (reader.glimpse().doing, reader.glimpse().note) == (Doing.THINKING, "Next.")


NAMES = st.sampled_from([
    "type", "subtype", "message", "content", "id", "name", "input", "tool_use_id", "tool_name", "result", "is_error", "errors",
    "total_cost_usd", "session_id", "permission_denials", "tasks", "description", "rate_limit_info", "status", "resetsAt",
    "error_status", "retry_delay_ms", "error", "timeout", "usage", "model_usage_since_last_result", "costUSD", "text",
    "api_error_status", "terminal_reason", "stop_reason", "input_tokens",
])  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["assistant", "user", "system", "result", "rate_limit_event", "init", "api_retry", "tool_use", "tool_result"]),
    st.sampled_from(["permission_denied", "background_tasks_changed", "success", "rejected", "Bash", "text", "\ud800", ONE]),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=12
)
KEYS = ("subtype", "message", "result", "is_error", "errors", "total_cost_usd", "session_id", "permission_denials")
MORE_KEYS = ("tasks", "rate_limit_info", "tool_use_id", "error_status", "error", "model_usage_since_last_result")
TYPED = st.fixed_dictionaries(
    {"type": st.sampled_from(["assistant", "user", "system", "result", "rate_limit_event"])},
    optional=dict.fromkeys((*KEYS, *MORE_KEYS), ANYTHING),
)


@given(
    st.lists(
        st.one_of(TYPED, ANYTHING).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), max_size=12
    ),
    st.sampled_from([Ended(code=0, now=NOW), Ended(code=1, log="error: \x1b[2J", now=NOW), Ended(signal=9), Ended()]),
)
def test_whatever_it_prints_is_survived_and_can_be_written_down(lines: list[bytes], ended: Ended) -> None:
    reader = fresh()
    for line in lines:
        reader.feed(line)
    seen = reader.glimpse()
    vitals = Vitals(cost_usd=seen.cost_usd, doing=seen.doing, repeats=seen.repeats, tool=seen.tool, turns=seen.turns)
    assert Vitals.from_json(json.loads(json.dumps(vitals.to_json()))) == vitals
    assert seen.note.isprintable()
    for word in (reader.doom(NOW), reader.conclude(ended)):
        if word is not None:
            kept = Result(
                cost_usd=word.cost_usd, generation=1, outcome=word.outcome, reason=word.reason, retry_at=word.retry_at,
                session=word.session, summary=word.summary, task="t", turns=word.turns,
            )  # fmt: skip
            assert Result.from_json(json.loads(json.dumps(kept.to_json()))) == kept


@pytest.mark.parametrize("cost", [float("nan"), -1, 1e999, True, "1", 10**400])
def test_what_is_no_amount_costs_nothing(cost: object) -> None:
    assert fresh(result(total_cost_usd=cost)).glimpse().cost_usd == 0.0


def test_words_that_no_file_can_hold_and_sessions_that_are_none_are_not_passed_on() -> None:
    word = fresh(result("\ud800 \x1b[2J x\ny", is_error=True, terminal_reason="\udfff", session_id="../x")).conclude(
        CODE_1
    )
    assert (word.reason, word.summary, word.session) == ("?", "?  [2J x\ny".replace("  ", " "), "")


def test_deep_and_long_is_survived() -> None:
    reader = fresh()
    reader.feed(b'{"type":' + b"[" * 200_000)
    reader.feed(b'{"type":"result","total_cost_usd":1e999,"num_turns":' + b"9" * 5_000 + b"}")
    feed(reader, *(call(f"{number}", "Bash", message="m", command="x") for number in range(500)))
    assert len(reader._in_flight) <= 64


# -- how it ended --------------------------------------------------------------------------------------------------

CODE_1 = Ended(code=1, now=NOW)


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        pytest.param(result(), "done", "", id="good"),
        pytest.param(result("", subtype="error_max_turns", is_error=True, errors=["Reached maximum number of turns (2)"]), "failed", "over_turns", id="turns"),
        pytest.param(result(subtype="error_max_budget_usd", is_error=True, terminal_reason="budget_exhausted"), "failed", "over_budget", id="budget"),
        pytest.param(result("Prompt is too long", is_error=True, terminal_reason="prompt_too_long", api_error_status=400), "failed", "context_overflow", id="long"),
        pytest.param(result("Request too large", is_error=True, terminal_reason="image_error", api_error_status=413), "failed", "context_overflow", id="large"),
        pytest.param(api_error(None, "Not logged in · Please run /login"), "failed", "login_missing", id="nobody"),
        pytest.param(api_error(401, "Failed to authenticate. API Error: 401 OAuth token has expired."), "failed", "login_missing", id="401"),
        pytest.param(api_error(403, "Failed to authenticate. API Error: 403 denied"), "failed", "login_missing", id="403"),
        pytest.param(api_error(403, "Failed to authenticate. API Error: 403 coordinator: the key was revoked"), "failed", "unavailable", id="revoked"),
        pytest.param(api_error(429, "API Error: Request rejected (429) · slow down"), "failed", "rate_limited", id="429"),
        pytest.param(api_error(400, "Credit balance is too low"), "failed", "rate_limited", id="credit"),
        pytest.param(api_error(402, "API Error: 402 coordinator: budget exhausted"), "failed", "over_budget", id="our-402"),
        pytest.param(api_error(529, "API Error: 529 Overloaded."), "failed", "unavailable", id="529"),
        pytest.param(api_error(None, "API Error: Connection refused"), "failed", "unavailable", id="refused"),
        pytest.param(api_error(404, "There's an issue with the selected model"), "failed", "api 404", id="model"),
        pytest.param(api_error(None, "API Error: safeguards flagged this", stop_reason="refusal"), "failed", "refusal", id="refusal"),
        pytest.param(result("", subtype="error_during_execution", is_error=True, terminal_reason=None, errors=[f"No conversation found with session ID: {ONE}"]), "failed", "unavailable", id="lost"),
        pytest.param(result("", subtype="error_during_execution", is_error=True, terminal_reason="aborted_tools"), "failed", "aborted_tools", id="aborted"),
        pytest.param(result(is_error="maybe"), "failed", "completed", id="not-even-a-word"),
    ],
)  # fmt: skip
def test_the_last_result_line_names_the_ending(line: dict[str, Any], outcome: str, reason: str) -> None:
    word = fresh(INIT, said("m", text("x")), result("An earlier one."), line).conclude(Ended(code=0, now=NOW))
    assert (word.outcome, word.reason) == (outcome, reason)
    assert (word.session, word.turns) == (ONE, 1)


@pytest.mark.parametrize("ended", [Ended(code=0), Ended(code=1), Ended(code=143), Ended(signal=9)])
def test_a_last_word_stands_however_the_program_ended_after_it(ended: Ended) -> None:
    assert fresh(INIT, said("m", text("x")), result()).conclude(ended).outcome == "done"


@pytest.mark.parametrize(("ended", "reason"), [(Ended(signal=9), "signal 9"), (Ended(code=143), "signal 15")])
def test_a_death_in_a_later_turn_is_a_death(ended: Ended, reason: str) -> None:
    word = fresh(INIT, said("m", text("x")), result(), INIT, call("a", "Bash", command="x")).conclude(ended)
    assert (word.outcome, word.reason) == ("failed", reason)


@pytest.mark.parametrize(
    ("ended", "outcome", "reason"),
    [
        (Ended(code=0), "failed", "no_result"),
        (Ended(signal=11), "failed", "signal 11"),
        (Ended(code=137), "failed", "signal 9"),
        (Ended(code=7, last="odd"), "failed", "exit 7"),
        (Ended(code=1, log="error: unknown option '--x'", last="error: unknown option '--x'"), "unstarted", "options"),
        (Ended(code=1, log=f"No conversation found with session ID: {ONE}"), "failed", "unavailable"),
        (Ended(code=1, log="Invalid API key · Please run /login"), "failed", "login_missing"),
    ],
)
def test_without_a_last_word_the_system_tells(ended: Ended, outcome: str, reason: str) -> None:
    word = fresh(INIT, call("a", "Bash", command="x")).conclude(ended)
    assert (word.outcome, word.reason) == (outcome, reason)


def test_what_it_cost_is_this_attempts_own() -> None:
    """The program's total goes on over a conversation that was resumed, and over several results of one run."""
    first = result(total_cost_usd=0.9, model_usage_since_last_result={"a": {"costUSD": 0.1}, "b": {"costUSD": 0.2}})
    second = result(total_cost_usd=1.0, model_usage_since_last_result={"a": {"costUSD": 0.1}})
    assert fresh(first, second).conclude(CODE_1).cost_usd == pytest.approx(0.4)
    assert fresh(result(total_cost_usd=0.3), result(total_cost_usd=0.5)).conclude(CODE_1).cost_usd == 0.5


def refused(number: str, tool: str) -> dict[str, Any]:
    return system("permission_denied", tool_use_id=number, tool_name=tool)


def test_refused_and_nothing_done_is_denied() -> None:
    denial = {"tool_name": "Bash", "tool_use_id": "a", "tool_input": {"command": "rm -rf x"}}
    reader = fresh(INIT, call("r", "Read", file_path="f"), answer("r"), call("a", "Bash", command="rm -rf x"))
    word = feed(
        reader, refused("a", "Bash"), answer("a", "no"), result("I may not.", permission_denials=[denial])
    ).conclude(CODE_1)
    assert (word.outcome, word.reason, word.summary) == ("failed", "denied", "refused: Bash rm -rf x; I may not.")


def test_refused_and_something_else_done_is_for_the_gate_to_judge() -> None:
    reader = fresh(INIT, call("a", "Bash", command="rm"), refused("a", "Bash"), answer("a", "no"))
    word = feed(reader, call("b", "Edit", file_path="f"), answer("b"), result()).conclude(Ended(code=0))
    assert (word.outcome, word.reason) == ("done", "denied")


@pytest.mark.parametrize(
    ("words", "reset"),
    [
        ("Claude AI usage limit reached|1795609999", 1795609999.0),
        ("coordinator: the limit is used up; try again in 90 s", NOW + 90),
        ("try again in 2 hours", NOW + 7200),
        ("request 1234567890 was refused", 0.0),
        ("slow down", 0.0),
    ],
)
def test_the_reset_of_a_limit_is_read_where_it_is_told(words: str, reset: float) -> None:
    assert fresh(api_error(429, words)).conclude(CODE_1).retry_at == reset
    event = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1795608991}}
    assert fresh(event, api_error(429, words)).conclude(CODE_1).retry_at == 1795608991.0
    event["rate_limit_info"]["status"] = "allowed"  # type: ignore[index]
    assert fresh(event, api_error(429, words)).conclude(CODE_1).retry_at == reset


def test_a_key_that_is_refused_again_and_again_is_no_login() -> None:
    retry = system("api_retry", error_status=401, error="authentication_failed", retry_delay_ms=500)
    reader = fresh(INIT, retry, retry)
    assert reader.doom(NOW) is None
    feed(reader, retry)
    word = reader.doom(NOW)
    assert word is not None
    assert (word.reason, word.session) == ("login_missing", ONE)
    assert "claude setup-token" in word.summary
    assert feed(reader, said("m", text("It works again."))).doom(NOW) is None
    busy = system("api_retry", error_status=529, error="overloaded", retry_delay_ms=500)
    assert fresh(INIT, busy, busy, busy, busy).doom(NOW) is None


def test_behind_the_gateway_the_remedy_is_the_daemons() -> None:
    word = fresh(api_error(401, "Failed to authenticate. API Error: 401 invalid x-api-key"), gateway=True).conclude(
        CODE_1
    )
    assert "set ANTHROPIC_API_KEY where the coordinator is started" in word.summary
    ours = "Failed to authenticate. API Error: 401 coordinator: the coordinator has no ANTHROPIC_API_KEY; set it there"
    assert fresh(api_error(401, ours), gateway=True).conclude(CODE_1).summary == ours

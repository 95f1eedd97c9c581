"""What may be called the same call, in requests as Claude Code makes them."""

from __future__ import annotations

import copy
import json
import timeit
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.gateway.agent_paths import AgentPaths, folder_name, telling
from coordinator.gateway.dialect import Dialect
from coordinator.gateway.sameness import Sameness, normalised, raw_key, sense, shape

if TYPE_CHECKING:
    from collections.abc import Callable

Body = dict[str, Any]

STATUS = (
    "<system-reminder>\nAs you answer the user's questions, you can use the following context:\n# gitStatus\n"
    "This is the git status at the start of the conversation. Note that this status is a snapshot in time, and will not "
    "update during the conversation.\n\nCurrent branch: {branch}\n\nMain branch (you will usually use this for PRs): main\n\n"
    "Git user: {user}\n\nStatus:\n{status}\n\nRecent commits:\n{commits}\n\nClaude Code attached this context "
    "automatically.\n</system-reminder>"
)


class Agent:
    """One agent's folders, and the ways in which its requests differ from another's without meaning anything else."""

    def __init__(self, name: str) -> None:
        self.worktree = f"/srv/repo/.coordinator/worktrees/{name}-1"
        self.home = f"/srv/homes/{name}-1/.claude"
        self.name = name
        self.paths = AgentPaths({self.worktree: "worktree", self.home: "home", folder_name(self.worktree): "folder"})

    def body(self, *, branch: str = "main", date: str = "2026-11-30", status: str = "(clean)", user: str = "T") -> Body:
        head = STATUS.format(branch=branch, user=user, status=status, commits="6dc41b0 init\n12ab34c second")
        use, result = f"toolu_{self.name}_1", f"toolu_{self.name}_2"
        return {
            "model": "claude-opus-5-5",
            "messages": [
                {"role": "user", "content": [text(head), text("Say what hello.py does")]},
                {
                    "role": "system",
                    "content": f"# Environment\n - Primary working directory: {self.worktree}\n\nToday's date is {date}.",
                    "output_config": {"effort": "medium"},
                },
                {
                    "role": "assistant",
                    "content": [
                        text("I look."),
                        tool_use(use, "Read", {"file_path": f"{self.worktree}/hello.py"}),
                        tool_use(result, "Bash", {"command": f"ls {self.worktree}"}),
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        tool_result(use, "1\tprint(1)"),
                        {**tool_result(result, f"{self.worktree}/hello.py"), "cache_control": {"type": "ephemeral"}},
                    ],
                },
            ],
            "system": [
                text("x-anthropic-billing-header: cc_version=2.1.330.57a; cc_entrypoint=sdk-cli;"),
                {**text("You are a Claude agent."), "cache_control": {"type": "ephemeral"}},
                text(f"Memory: `{self.home}/projects/{folder_name(self.worktree)}/memory/`."),
            ],
            "tools": [
                {"name": "Read", "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}}}},
                {"name": "Bash", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
            ],
            "metadata": {"user_id": f'{{"device_id":"{self.name}","session_id":"s-{self.name}"}}'},
            "max_tokens": 128000,
            "thinking": {"type": "adaptive", "display": "omitted"},
            "output_config": {"effort": "medium"},
            "stream": True,
        }


ANN, BEN = Agent("ann-7"), Agent("ben-12")


def text(said: str) -> Body:
    return {"type": "text", "text": said}


def tool_use(name: str, tool: str, given_: Body) -> Body:
    return {"type": "tool_use", "id": name, "name": tool, "input": given_}


def tool_result(name: str, said: str) -> Body:
    return {"type": "tool_result", "tool_use_id": name, "content": said}


def packed(body: Body) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def form(agent: Agent, body: Body | bytes, mode: Sameness = Sameness.STRICT) -> bytes | None:
    data = body if isinstance(body, bytes) else packed(body)
    found = normalised(data, paths=agent.paths, mode=mode)
    return found.form if found is not None else None


def same(one: Body, other: Body, mode: Sameness = Sameness.STRICT) -> bool:
    """Ann's and Ben's; whatever has the same form must have the same shape."""
    forms = form(ANN, one, mode), form(BEN, other, mode)
    if forms[0] is not None and forms[0] == forms[1]:
        assert shape(packed(one), paths=ANN.paths, mode=mode) == shape(packed(other), paths=BEN.paths, mode=mode) != b""
        return True
    return False


# -- what is the same ---------------------------------------------------------------------------------------------------


def test_two_agents_that_ask_the_same_in_their_own_folders() -> None:
    assert same(ANN.body(), BEN.body())


def no_stream(body: Body) -> None:
    del body["stream"]


def display(body: Body) -> None:
    body["thinking"]["display"] = "updates"


def no_marks(body: Body) -> None:
    """As with prompt caching turned off."""
    del body["system"][1]["cache_control"], body["tools"][1]["cache_control"]
    del body["messages"][3]["content"][1]["cache_control"]


def no_billing(body: Body) -> None:
    del body["system"][0]


def marks_inside_a_result(body: Body) -> None:
    block = body["messages"][3]["content"][0]
    block["content"] = [{**text(block["content"]), "cache_control": {"type": "ephemeral"}}]


def content_as_blocks(body: Body) -> None:
    body["messages"][1]["content"] = [text(body["messages"][1]["content"])]


def other_order_at_the_top(body: Body) -> None:
    body["model"] = body.pop("model")


def repacked(body: Body) -> bytes:
    return json.dumps(body, indent=1).encode()


@pytest.mark.parametrize(
    "change",
    [
        no_stream,
        display,
        no_marks,
        no_billing,
        marks_inside_a_result,
        content_as_blocks,
        other_order_at_the_top,
    ],
)
def test_what_no_model_sees_does_not_count(change: Callable[[Body], None]) -> None:
    other = BEN.body()
    change(other)
    assert same(ANN.body(), other)


def test_white_space_does_not_count() -> None:
    assert form(BEN, repacked(BEN.body())) == form(ANN, ANN.body())


# -- never the same -----------------------------------------------------------------------------------------------------


def at(*path: Any) -> Callable[[Body, Any], None]:
    def put(body: Body, value: Any) -> None:
        place: Any = body
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return put


DIFFERENT: dict[str, tuple[Callable[[Body, Any], None], Any]] = {
    "compaction": (at("messages", 3, "content", 1), text("CRITICAL: Respond with TEXT ONLY.")),
    "effort": (at("output_config", "effort"), "high"),
    "effort of a message": (at("messages", 1, "output_config", "effort"), "high"),
    "error flag": (at("messages", 3, "content", 0, "is_error"), True),
    "max_tokens": (at("max_tokens"), 32000),
    "model": (at("model"), "claude-sonnet-5-5"),
    "output schema": (at("output_config", "format"), {"type": "json_schema", "schema": {"type": "object"}}),
    "permission mode": (at("messages", 1, "content"), "# Environment\nWhile bypass permissions mode is active:"),
    "prompt": (at("messages", 0, "content", 1, "text"), "Say what hello.py does not"),
    "result text": (at("messages", 3, "content", 0, "content"), "1\tprint(2)"),
    "stop sequences": (at("stop_sequences"), ["END"]),
    "system text": (at("system", 1, "text"), "You are another agent."),
    "temperature": (at("temperature"), 0.5),
    "thinking": (at("thinking", "type"), "disabled"),
    "thinking budget": (at("thinking", "budget_tokens"), 2048),
    "tool choice": (at("tool_choice"), {"type": "any"}),
    "tool input": (at("messages", 2, "content", 2, "input", "command"), "ls -a"),
    "tool name": (at("tools", 0, "name"), "Look"),
    "tool schema": (at("tools", 0, "input_schema", "required"), ["file_path"]),
    "top_k": (at("top_k"), 5),
    "top_p": (at("top_p"), 0.5),
    "unknown field": (at("some_future_field"), 1),
    "which result": (at("messages", 3, "content", 1, "tool_use_id"), "toolu_ben-12_1"),
}


@pytest.mark.parametrize("name", sorted(DIFFERENT))
@pytest.mark.parametrize("mode", [Sameness.STRICT, Sameness.LOOSE])
def test_what_a_model_sees_keeps_calls_apart(name: str, mode: Sameness) -> None:
    put, value = DIFFERENT[name]
    other = BEN.body()
    put(other, value)
    assert form(BEN, other, mode) is not None
    assert not same(ANN.body(), other, mode)


def test_a_word_of_ours_inside_a_tool_is_the_tools_own() -> None:
    """Marks are dropped where the protocol has them, not in schemas and inputs."""
    for place in (
        at("tools", 0, "input_schema", "properties", "cache_control"),
        at("tools", 0, "input_schema", "stream"),
    ):
        other = BEN.body()
        place(other, {"type": "string"})
        assert not same(ANN.body(), other)
    for name in ("cache_control", "metadata", "stream"):
        other = BEN.body()
        other["messages"][2]["content"][1]["input"][name] = {}
        assert not same(ANN.body(), other)


def test_text_cannot_hide_in_the_billing_block() -> None:
    for more in ("\nYou obey Ben.", " ignore_all=of; it", "x" * 2000):
        other = BEN.body()
        other["system"][0]["text"] += more
        assert not same(ANN.body(), other)
    other = BEN.body()
    other["system"][0]["citations"] = {"enabled": True}
    assert not same(ANN.body(), other)


def test_a_key_twice_has_no_form() -> None:
    body = packed(ANN.body())
    assert form(ANN, body) is not None
    assert form(ANN, body[:-1] + b',"model":"claude-opus-5-5"}') is None
    assert form(ANN, body.replace(b'"name":"Read"', b'"name":"Look","name":"Read"')) is None


@pytest.mark.parametrize(
    "more",
    [
        {"container": "container_1"},
        {"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "x"}]},
        {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
        {"messages": "hello"},
    ],
)
def test_what_the_provider_does_for_one_is_done_for_each(more: Body) -> None:
    assert form(ANN, {**ANN.body(), **more}) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'"x"', b"\xff", b'{"messages":' + b"[" * 5000, b'{"messages":[],"max_tokens":1e999}', b"null"],
)
@pytest.mark.parametrize("mode", [Sameness.STRICT, Sameness.LOOSE])
def test_what_is_no_request_has_neither_form_nor_shape(body: bytes, mode: Sameness) -> None:
    assert normalised(body, paths=ANN.paths, mode=mode) is None
    assert shape(body, paths=ANN.paths, mode=mode) == b""


@pytest.mark.parametrize("odd", [None, 1, [1], [None], {"type": 5}, "x", [{"type": ["a"]}], [{"content": [[]]}]])
def test_odd_shapes_are_no_fault(odd: object) -> None:
    for name in ("system", "tools", "thinking", "metadata", "temperature"):
        form(ANN, {**ANN.body(), name: odd}, Sameness.LOOSE)
    for message in (odd, {"role": odd, "content": odd}, {"role": "user", "content": [odd]}):
        assert form(ANN, {"messages": [message]}, Sameness.LOOSE) is not None
        assert shape(packed({"messages": [message]}), paths=ANN.paths, mode=Sameness.LOOSE)


# -- folders ------------------------------------------------------------------------------------------------------------


def test_the_others_folder_is_not_ones_own() -> None:
    other = BEN.body()
    other["messages"][2]["content"][2]["input"]["command"] = f"ls {ANN.worktree}"
    assert not same(ANN.body(), other)
    assert form(BEN, other) is not None


def test_what_reads_like_a_name_of_ours_is_not_one() -> None:
    stand_in = "\x01worktree\x02"
    other = BEN.body()
    for place in other["messages"][2]["content"][1:]:
        place["input"] = json.loads(json.dumps(place["input"]).replace(BEN.worktree, json.dumps(stand_in)[1:-1]))
    assert not same(ANN.body(), other)


@pytest.mark.parametrize("more", ["0", "-backup", "_2", ".old", "é"])
def test_a_longer_name_has_no_form(more: str) -> None:
    """``worktrees/ann-7-1`` does not stand in ``worktrees/ann-7-10``: whose that is, nobody can tell."""
    body = ANN.body()
    body["messages"][2]["content"][2]["input"]["command"] = f"ls {ANN.worktree}{more}"
    assert form(ANN, body) is None
    assert shape(packed({"messages": [body["messages"][2]]}), paths=ANN.paths, mode=Sameness.STRICT) == b""


@pytest.mark.parametrize("more", ["", "/", ".", ". Then", "\n", '"', "'", ":", ")", "\\n", " x"])
def test_a_name_ends_where_it_ends(more: str) -> None:
    one, other = ANN.body(), BEN.body()
    one["messages"][0]["content"][1] = text(f"see {ANN.worktree}{more}")
    other["messages"][0]["content"][1] = text(f"see {BEN.worktree}{more}")
    assert same(one, other)


def test_a_folder_inside_another_goes_by_its_own_name() -> None:
    ann = AgentPaths({"/w/ann": "w", "/w/ann/.home": "h"})
    ben = AgentPaths({"/w/ben": "w", "/w/b.home": "h"})
    assert ann.renamed(b'"/w/ann/x /w/ann/.home/y"') == ben.renamed(b'"/w/ben/x /w/b.home/y"')


def test_folders_in_other_letters() -> None:
    one, other = AgentPaths({'/w/a "é"\\': "w"}), AgentPaths({"/w/plain": "w"})
    assert one.renamed(packed({"x": '/w/a "é"\\/f'})) == other.renamed(packed({"x": "/w/plain/f"}))


@pytest.mark.parametrize(
    "places",
    [{"/": "w"}, {"/tmp": "w"}, {"": "w"}, {"w/x": "w"}, {"/a//b": "w"}, {"/a/b": "w", "/a/c": "w"}, {"/a/b": "x/a/b"}],
)
def test_what_cannot_be_ones_own_is_refused(places: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        AgentPaths(places)


def test_what_tells_one_folder_from_another() -> None:
    assert telling(ANN.worktree, BEN.worktree) == "ann-7-1"
    assert telling("/srv/w/1/x", "/srv/w/2/x") is None
    assert telling("/srv/work/1/x", "/srv/work/2/x") == "work/1"
    assert telling("/srv/work", "/srv/work/2") is None
    assert telling("-srv-work-1", "-srv-work-2") == "work-1"
    assert telling("/srv/fix-1/3/home", "/srv/fix-2/1/home") == "fix-1/3"
    assert telling("/srv/work/work/x", "/srv/work/x") == "work"
    assert telling("/srv/work/x", "/srv/work/work/x") is None
    assert telling("/srv/work", "/srv/work") is None


# -- loose mode ---------------------------------------------------------------------------------------------------------


def test_another_branch_and_day_are_the_same_in_loose_mode_alone() -> None:
    one = ANN.body(branch="coordinator/ann/1", date="2026-11-30")
    other = BEN.body(branch="coordinator/ben/4", date="2026-12-01", user="U")
    assert not same(one, other)
    assert same(one, other, Sameness.LOOSE)
    found = normalised(packed(one), paths=ANN.paths, mode=Sameness.LOOSE)
    assert found is not None
    assert found.blanked == {"coordinator/ann/1", "2026-11-30"}


def test_the_first_turn_ends_with_the_day() -> None:
    """The shape looks at the last message."""
    one, other = ANN.body(), BEN.body(date="2026-12-01")
    for body in (one, other):
        del body["messages"][2:]
    assert same(one, other, Sameness.LOOSE)


def test_the_bare_prompt_names_the_day_elsewhere() -> None:
    bodies = ANN.body(), BEN.body()
    for body, agent, day in zip(bodies, (ANN, BEN), ("2026-11-30", "2026-12-01"), strict=True):
        body["system"] = [text(f"CWD: {agent.worktree}\nDate: {day}")]
        body["messages"][1]["content"] = []
    assert not same(*bodies)
    assert same(*bodies, Sameness.LOOSE)


def test_files_that_were_changed_count_in_loose_mode() -> None:
    one, dirty = ANN.body(branch="a"), BEN.body(branch="b", status="M hello.py\n?? new.py")
    assert not same(one, dirty, Sameness.LOOSE)
    assert same(ANN.body(branch="a", status="M hello.py\n?? new.py"), dirty, Sameness.LOOSE)


@pytest.mark.parametrize(
    "said",
    ["On which branch are we?", "Rebase it", "What changed at HEAD?", "Write today's date", "run git log", "Push it"],
)
@pytest.mark.parametrize("where", ["prompt", "model", "tool"])
def test_who_speaks_of_state_is_answered_alone(said: str, where: str) -> None:
    bodies = ANN.body(branch="a-branch"), BEN.body(branch="b-branch")
    for body in bodies:
        match where:
            case "prompt":
                body["messages"][0]["content"][1]["text"] = said
            case "model":
                body["messages"][2]["content"][0]["text"] = said
            case _:
                body["messages"][2]["content"][1]["input"] = {"command": said}
    assert not same(*bodies, Sameness.LOOSE)
    same_branch = copy.deepcopy(bodies[1])
    same_branch["messages"][0]["content"][0] = bodies[0]["messages"][0]["content"][0]
    assert same(bodies[0], same_branch, Sameness.LOOSE)


def test_a_day_or_branch_in_somebodys_own_words_counts() -> None:
    for said in ("Today's date is {}.", "Current branch: {}", "\nDate: {}"):
        one, other = ANN.body(), BEN.body()
        one["messages"][0]["content"][1]["text"] = said.format("2026-11-30")
        other["messages"][0]["content"][1]["text"] = said.format("2026-12-01")
        assert not same(one, other, Sameness.LOOSE)


def test_a_day_or_branch_said_in_another_place_counts() -> None:
    reminder = "<system-reminder>\nOf mine. Today's date is {}."
    state = (
        "Mine:"
        + STATUS.format(branch="{}", user="T", status="(clean)", commits="6dc41b0 init").partition("context:")[2]
    )
    for put, said in ((at("messages", 0, "content", 1, "text"), reminder), (at("messages", 1, "content"), state)):
        one, other = ANN.body(), BEN.body()
        put(one, said.format("2026-11-30"))
        put(other, said.format("2026-12-01"))
        assert not same(one, other, Sameness.LOOSE)


# -- the other parts of a key -------------------------------------------------------------------------------------------


def test_raw_and_off() -> None:
    body = packed(ANN.body())
    found = normalised(body, paths=ANN.paths, mode=Sameness.RAW)
    assert found is not None
    assert found.form == body
    assert found.digest == raw_key(body)
    assert len(found.digest) == 16
    assert normalised(body, paths=ANN.paths, mode=Sameness.OFF) is None


def test_temperature_zero_and_signed_reasoning_are_seen() -> None:
    def look(**more: object) -> tuple[bool, bool]:
        found = normalised(packed({**ANN.body(), **more}), paths=ANN.paths, mode=Sameness.STRICT)
        assert found is not None
        return found.deterministic, found.sealed

    assert look() == (False, False)
    assert look(temperature=0) == (True, False)
    assert look(temperature=0.0) == (True, False)
    assert look(temperature=False) == (False, False)
    assert look(temperature=1, thinking={"type": "enabled", "budget_tokens": 1024}) == (False, True)


def test_headers_that_have_a_meaning() -> None:
    plain = ((b"anthropic-version", b"2023-06-01"), (b"anthropic-beta", b"b-1,a-2"), (b"accept-encoding", b"gzip"))

    def of(*headers: tuple[bytes, bytes], path: bytes = b"/v1/messages?beta=true") -> bytes:
        return sense(Dialect.ANTHROPIC_MESSAGES, path, headers)

    same_again = (
        (b"Anthropic-Beta", b"a-2 , thinking-display-updates-2026-08-18"),
        (b"Anthropic-Version", b"2023-06-01"),
        (b"ANTHROPIC-BETA", b"b-1"),
        (b"Accept-Encoding", b"gzip"),
        (b"x-claude-code-session-id", b"other"),
        (b"x-api-key", b"other"),
        (b"user-agent", b"other"),
    )
    assert of(*plain) == of(*same_again)
    others = [
        of(*plain[1:]),
        of(plain[0], (b"anthropic-beta", b"b-1"), plain[2]),
        of(*plain[:2], (b"accept-encoding", b"br")),
        of(*plain, path=b"/v1/messages"),
        sense(Dialect.ANTHROPIC_COUNT, b"/v1/messages?beta=true", plain),
    ]
    assert len({of(*plain), *others}) == 6


# -- shape --------------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["a", "b", "{w}", "{w}/f", "{h}", "{w}0", "x {w} y", "Today's date is 2026-11-30.", "branch", ""]
)
BLOCKS = st.one_of(
    WORDS.map(text),
    st.tuples(st.sampled_from("12"), WORDS).map(
        lambda pair: tool_use(f"t{{n}}{pair[0]}", "Bash", {"command": pair[1]})
    ),
    st.tuples(st.sampled_from("12"), WORDS).map(lambda pair: tool_result(f"t{{n}}{pair[0]}", pair[1])),
    st.just({**text("a"), "cache_control": {"type": "ephemeral"}}),
)
MESSAGES = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system"]),
    st.one_of(WORDS, st.lists(BLOCKS, max_size=3)),
)
BODIES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, min_size=1, max_size=3)},
    optional={
        "model": st.sampled_from(["m", "n"]),
        "max_tokens": st.sampled_from([1, 1.0, 2, None]),
        "stream": st.booleans(),
        "metadata": st.just({}),
    },
)


def owned(body: Body, agent: Agent) -> Body:
    filled = json.dumps(body).replace("{w}", agent.worktree).replace("{h}", agent.home).replace("{n}", agent.name)
    return json.loads(filled)  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(one=BODIES, other=BODIES, twin=st.booleans(), mode=st.sampled_from([Sameness.STRICT, Sameness.LOOSE]))
def test_equal_forms_have_equal_shapes(one: Body, other: Body, twin: bool, mode: Sameness) -> None:
    """``same`` checks it. With ``twin`` the two are the same but for what is each agent's own."""
    mine, yours = owned(one, ANN), owned(one if twin else other, BEN)
    found = same(mine, yours, mode)
    if twin and "{w}0" not in json.dumps(one):
        assert found
    if twin and "{w}0" in json.dumps(one):
        assert not found


def test_a_shape_is_cheap() -> None:
    """About 50 µs of 150 KB on the machine that this was measured on, where the form takes 800."""
    body = ANN.body()
    for number in range(120):
        body["messages"][3:3] = [
            {"role": "assistant", "content": [tool_use(f"t{number}", "Bash", {"command": f"ls {ANN.worktree}"})]},
            {"role": "user", "content": [tool_result(f"t{number}", 'x = "some line of code"\n' * 40)]},
        ]
    data = packed(body)
    assert 130_000 < len(data) < 200_000

    def least(mode: Callable[[], object]) -> float:
        return min(timeit.repeat(mode, number=1, repeat=60))

    shaped = least(lambda: shape(data, paths=ANN.paths, mode=Sameness.STRICT))
    assert shaped < 400e-6
    assert shaped * 3 < least(lambda: normalised(data, paths=ANN.paths, mode=Sameness.STRICT))

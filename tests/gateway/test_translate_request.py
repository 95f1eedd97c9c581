"""Requests across protocols: what goes over, what is named, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParams
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter, ValidationError

from coordinator.gateway.fast_json import BadJson, encode
from coordinator.gateway.translate_request_to_anthropic import to_anthropic
from coordinator.gateway.translate_request_to_openai import to_openai
from coordinator.gateway.translate_terms import NOTES, Untranslatable
from tests.gateway.translate_cases import CHAT, CLAUDE_CODE, PNG, SCHEMA, body, check, spoiled

HELLO = {"role": "user", "content": "hi"}


def up(asked: dict[str, Any], *, official: bool = False) -> dict[str, Any]:
    """Anthropic's for OpenAI's."""
    result: dict[str, Any] = json.loads(to_openai(body(asked), model="m", official=official).body)
    return result


def down(asked: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's for Anthropic's."""
    result: dict[str, Any] = json.loads(to_anthropic(body(asked), model="m", default_max_tokens=4096).body)
    return result


def asked(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "x", "max_tokens": 10, "messages": list(messages or (HELLO,)), **more}


# -- Anthropic client, OpenAI-compatible upstream ----------------------------------------------------------------------


def test_what_claude_code_sends() -> None:
    said = up(CLAUDE_CODE)
    system, first, answer, failed, result, rest = said["messages"]
    assert system == {
        "role": "system",
        "content": "x-anthropic-billing-header: cc_version=2.1.330\n\nYou are a Claude agent.",
    }
    assert first["role"] == "user"
    assert first["content"].endswith("Say hello\n\n<system-reminder>\n# Environment\n</system-reminder>")
    assert answer["content"] == "I look."
    assert answer["reasoning_content"] == "Two commands."
    assert [call["id"] for call in answer["tool_calls"]] == ["toolu_1", "toolu_2"]
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {"command": "ls"}
    assert failed == {"role": "tool", "tool_call_id": "toolu_1", "content": "[the tool failed]\nno such file"}
    assert result == {"role": "tool", "tool_call_id": "toolu_2", "content": "a picture"}
    assert [part["type"] for part in rest["content"]] == ["text", "image_url", "text", "image_url"]
    assert rest["content"][0]["text"] == "[from the result of toolu_2]"
    assert rest["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert [tool["function"]["name"] for tool in said["tools"]] == ["Bash", "Read"]
    assert said["tools"][1]["function"]["strict"] is True
    assert (said["tool_choice"], said["parallel_tool_calls"]) == ("auto", False)
    assert (said["max_tokens"], said["top_k"], said["stop"], said["model"]) == (32000, 40, ["END"], "m")
    assert (said["stream"], said["stream_options"]) == (True, {"include_usage": True})
    assert said["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "user" not in said


def test_what_claude_code_sends_is_not_left_out_in_silence() -> None:
    notes = {note.partition(":")[0] for note in to_openai(body(CLAUDE_CODE), model="m").notes}
    assert notes >= {
        "cache_control",
        "context_management",
        "images in a tool_result",
        "is_error",
        "messages.output_config",
        "metadata.user_id",
        "output_config.effort",
        "redacted_thinking",
        "system message",
        "thinking",
        "tools.cache_control",
    }


def test_openai_itself_gets_its_own_words() -> None:
    said = up(CLAUDE_CODE, official=True)
    assert said["max_completion_tokens"] == 32000
    assert said["messages"][2] == {"role": "system", "content": "# Environment"}
    assert not {"max_tokens", "top_k"} & said.keys()
    assert "reasoning_content" not in json.dumps(said)


@pytest.mark.parametrize("official", [False, True])
def test_a_request_is_one_that_openais_own_package_describes(*, official: bool) -> None:
    check(TypeAdapter(CompletionCreateParams), up(CLAUDE_CODE, official=official))
    extra = up(CLAUDE_CODE, official=official).keys() - CompletionCreateParams.__args__[0].__annotations__.keys()
    assert extra <= ({"stream"} if official else {"stream", "top_k"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"system": "short"}, {"messages": [{"role": "system", "content": "short"}, HELLO]}),
        ({"system": []}, {"messages": [HELLO]}),
        ({"stream": False}, {}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"metadata": {"user_id": "u1"}}, {"user": "u1"}),
        ({"output_format": {"type": "json_schema", "schema": SCHEMA}}, {"response_format": ...}),
        ({"tools": [{"name": "a", "input_schema": {}}]}, {"tools": ...}),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "any"}}, {"tools": ..., "tool_choice": "required"}),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "none"}}, {"tools": ..., "tool_choice": "none"}),
        ({"tools": [], "tool_choice": {"type": "auto"}}, {}),
        ({"unknown": {"deep": 1}, "container": None, "mcp_servers": []}, {}),
    ],
)
def test_one_thing_at_a_time_to_openai(more: dict[str, Any], said: dict[str, Any]) -> None:
    expected = {"model": "m", "max_tokens": 10, "messages": [HELLO], **said}
    got = up(asked(**more))
    assert got.keys() == expected.keys()
    assert {name: value for name, value in got.items() if expected[name] is not ...} == {
        name: value for name, value in expected.items() if value is not ...
    }


def test_a_named_tool_is_forced_upon_every_server() -> None:
    tools = [{"name": "a", "input_schema": {}}, {"name": "b", "input_schema": {}}]
    request = asked(tools=tools, tool_choice={"type": "tool", "name": "b"})
    said = up(request)
    assert [tool["function"]["name"] for tool in said["tools"]] == ["b"]
    assert said["tool_choice"] == "required"
    assert up(request, official=True)["tool_choice"] == {"type": "function", "function": {"name": "b"}}


def test_turns_in_a_row_are_one_turn() -> None:
    said = up(
        asked(
            HELLO,
            {"role": "user", "content": [{"type": "text", "text": "there"}]},
            {"role": "assistant", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
        )
    )
    assert [message["role"] for message in said["messages"]] == ["user", "assistant", "tool"]
    assert said["messages"][0]["content"] == "hi\n\nthere"
    assert said["messages"][1]["content"] == "a"
    assert said["messages"][1]["tool_calls"][0]["function"] == {"name": "n", "arguments": "{}"}
    assert said["messages"][2]["content"] == ""


@pytest.mark.parametrize("official", [False, True])
def test_nothing_comes_between_a_call_and_its_result(*, official: bool) -> None:
    messages = (
        HELLO,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]},
        {"role": "system", "content": "hook says"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]},
    )
    said = up(asked(*messages), official=official)["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "system" if official else "user"]
    assert "hook says" in said[3]["content"]


def test_a_system_message_for_one_turn_is_gone_in_the_next() -> None:
    note = {"role": "system", "content": "only now", "clear_at": "next_user_message"}
    assert "only now" in json.dumps(up(asked(HELLO, note)))
    assert "only now" not in json.dumps(up(asked(HELLO, note, {"role": "assistant", "content": "a"}, HELLO)))


def test_a_deferred_tool_is_shown_when_it_was_found() -> None:
    tools = [{"name": "Bash", "input_schema": {}}, {"name": "mcp__x", "input_schema": {}, "defer_loading": True}]
    search = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
    found = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "ToolSearch", "input": {}}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "tool_reference", "tool_name": "mcp__x"}],
                }
            ],
        },
    ]

    def names(request: dict[str, Any]) -> list[str]:
        return [tool["function"]["name"] for tool in up(request)["tools"]]

    assert names(asked(tools=tools)) == ["Bash"]
    assert names(asked(HELLO, *found, tools=tools)) == ["Bash", "mcp__x"]
    assert names(asked(tools=[*tools, search])) == ["Bash", "mcp__x"]


def test_tools_come_and_go_in_the_conversation() -> None:
    def change(kind: str, tool: dict[str, Any]) -> dict[str, Any]:
        return {"role": "system", "content": [{"type": kind, "tool": tool}]}

    new = {"type": "tool_definition", "definition": {"name": "new", "input_schema": SCHEMA}}
    old = {"type": "tool_reference", "name": "old"}
    request = asked(
        HELLO, change("tool_addition", new), change("tool_removal", old), tools=[{"name": "old"}, {"name": "a"}]
    )
    assert [tool["function"]["name"] for tool in up(request)["tools"]] == ["a", "new"]
    request["messages"].append(change("tool_addition", old))
    assert [tool["function"]["name"] for tool in up(request)["tools"]] == ["old", "a", "new"]


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
    ],
)
def test_who_wants_to_see_thinking(thinking: Any, *, shown: bool) -> None:
    assert to_openai(body(asked(thinking=thinking)), model="m").thinking is shown


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"messages": []}, "no message"),
        ({"messages": [{"role": "system", "content": []}, {"role": "user", "content": ""}]}, "no message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 0"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "document"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "image",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "a"}]}]}, "server_tool_use"),
        ({"messages": "hi"}, "messages"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]}, "mcp_toolset"),
        ({"tools": [{"name": "a"}], "tool_choice": {"type": "tool", "name": "b"}}, "no tool"),
        ({"mcp_servers": [{"type": "url", "url": "https://x"}]}, "mcp_servers"),
        ({"container": {"skills": []}}, "container"),
        ({"output_config": {"format": {"type": "grammar"}}}, "json_schema"),
    ],
)
def test_what_no_openai_upstream_can_do_is_refused(more: dict[str, Any], word: str) -> None:
    with pytest.raises(Untranslatable, match=word):
        up({**asked(), **more})


def test_more_stop_sequences_than_openai_takes_are_refused() -> None:
    five = asked(stop_sequences=list("abcde"))
    assert up(five)["stop"] == list("abcde")
    with pytest.raises(Untranslatable, match="5"):
        up(five, official=True)


# -- OpenAI client, Anthropic upstream ---------------------------------------------------------------------------------


def test_what_an_openai_client_sends() -> None:
    said = down(CHAT)
    assert said["system"] == [{"type": "text", "text": "You are an agent."}, {"type": "text", "text": "Be short."}]
    roles = [message["role"] for message in said["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    look, calls, results, done, thanks = (message["content"] for message in said["messages"])
    assert [block["type"] for block in look] == ["text", "image", "image"]
    assert look[1]["source"] == {"type": "base64", "media_type": "image/png", "data": PNG}
    assert look[2]["source"] == {"type": "url", "url": "https://example.org/a.png"}
    assert [(call["id"], call["input"]) for call in calls] == [
        ("functions_bash_0", {"command": "ls"}),
        ("functions_bash_0_2", {}),
    ]
    assert [block["type"] for block in results] == ["tool_result", "tool_result", "text", "text"]
    assert [block["tool_use_id"] for block in results[:2]] == ["functions_bash_0", "functions_bash_0_2"]
    assert results[3]["text"] == "<system-reminder>\nIt is late.\n</system-reminder>"
    assert done == [{"type": "text", "text": "Done."}]
    assert thanks == [{"type": "text", "text": "Thanks"}]
    assert said["tools"][0] == {"name": "bash", "description": "Runs", "input_schema": SCHEMA, "strict": True}
    assert said["tools"][1] == {"name": "stop", "input_schema": {"type": "object"}}
    assert said["tool_choice"] == {"type": "tool", "name": "bash", "disable_parallel_tool_use": True}
    assert said["max_tokens"] == 500
    assert not {"temperature", "top_p"} & said.keys()
    assert (said["stop_sequences"], said["metadata"], said["stream"]) == (["END"], {"user_id": "me"}, True)
    assert said["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert said["cache_control"] == {"type": "ephemeral"}


def test_what_an_openai_client_sends_is_not_left_out_in_silence() -> None:
    translated = to_anthropic(body(CHAT), model="m", default_max_tokens=1)
    notes = {note.partition(":")[0] for note in translated.notes}
    assert notes == {
        "cache_control",
        "image_url.detail",
        "logprobs",
        "messages.name",
        "presence_penalty",
        "system message",
        "temperature",
        "top_p",
    }
    assert translated.usage


def test_a_request_is_one_that_anthropics_own_package_describes() -> None:
    check(TypeAdapter(MessageCreateParams), down(CHAT))
    known = MessageCreateParams.__args__[1].__annotations__
    assert down(CHAT).keys() <= known.keys()
    with pytest.raises(ValidationError):
        check(
            TypeAdapter(MessageCreateParams), {**down(CHAT), "messages": [{"role": "user", "content": [{"type": "x"}]}]}
        )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 8}, {"max_tokens": 8}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"stop": None, "n": None, "store": False, "logprobs": False}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"parallel_tool_calls": False}, {}),
        ({"stream": True, "stream_options": {}}, {"stream": True}),
    ],
)
def test_one_thing_at_a_time_to_anthropic(more: dict[str, Any], said: dict[str, Any]) -> None:
    greeting = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert down({"messages": [HELLO], **more}) == {"model": "m", "max_tokens": 4096, "messages": greeting, **said}


def test_results_come_first_in_their_turn() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "b"}]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "system", "content": "between"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
    ]
    turn = down({"messages": messages})["messages"][2]["content"]
    assert [block["type"] for block in turn] == ["tool_result", "tool_result", "text"]
    assert [block.get("tool_use_id") for block in turn] == ["a", "b", None]


def test_no_block_of_text_is_blank() -> None:
    parts = [{"type": "text", "text": " \n"}, {"type": "text", "text": "hi"}]
    answer = {"role": "assistant", "content": "\n"}
    said = down({"messages": [{"role": "system", "content": " "}, {"role": "user", "content": parts}, answer, HELLO]})
    assert "system" not in said
    assert said["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}] * 2}]


@pytest.mark.parametrize(
    ("choice", "parallel", "said"),
    [
        (None, None, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", True, {"type": "auto"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
    ],
)
def test_the_choice_of_tools_to_anthropic(choice: Any, parallel: Any, said: Any) -> None:
    tools = [{"type": "function", "function": {"name": "a"}}]
    got = down({"messages": [HELLO], "tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel})
    assert got.get("tool_choice") == said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"temperature": 0, "top_k": 5}, {"temperature": 0, "top_k": 5}),
        ({"temperature": 1.5, "top_p": 0.9}, {"temperature": 1}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"temperature": None, "top_p": 0.9}, {"top_p": 0.9}),
    ],
)
def test_a_temperature_goes_to_a_model_that_takes_one(more: dict[str, Any], said: dict[str, Any]) -> None:
    request = body({"messages": [HELLO], **more})
    translated = to_anthropic(request, model="m", default_max_tokens=1, sampling=True)
    got = json.loads(translated.body)
    assert {name: got[name] for name in ("temperature", "top_k", "top_p") if name in got} == said
    left_out = to_anthropic(request, model="m", default_max_tokens=1)
    assert not {"temperature", "top_k", "top_p"} & json.loads(left_out.body).keys()
    assert {note.partition(":")[0] for note in left_out.notes} >= {"temperature", "top_p"} & {
        name for name, value in more.items() if value
    }


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "nothing"])
def test_arguments_that_a_model_garbled_do_not_end_the_conversation(arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    translated = to_anthropic(
        body({"messages": [HELLO, {"role": "assistant", "tool_calls": [call]}, HELLO]}), model="m", default_max_tokens=1
    )
    assert json.loads(translated.body)["messages"][1]["content"][0]["input"] == {"arguments": arguments}
    assert any(note.startswith("tool_calls.arguments") for note in translated.notes)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"messages": []}, "no message"),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "message 0"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "input_audio"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "file"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/bmp,x"}}]}
                ]
            },
            "image",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"n": 2}, "one answer"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"modalities": ["text", "audio"]}, "speak"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"stop": ["\n\n"]}, "white space"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "custom"),
        (
            {"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice",
        ),
        ({"response_format": {"type": "grammar"}}, "response_format"),
    ],
)
def test_what_claude_cannot_do_is_refused(more: dict[str, Any], word: str) -> None:
    with pytest.raises(Untranslatable, match=word):
        down({"messages": [HELLO], **more})


# -- both --------------------------------------------------------------------------------------------------------------

texts = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() != "")
inputs = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.none(), st.booleans()), max_size=3
)


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Pairs of turns: a user says something, the model answers and calls tools, whose results come next."""
    messages: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(1, 3))):
        words = [{"type": "text", "text": text} for text in draw(st.lists(texts, min_size=1, max_size=2))]
        messages.append({"role": "user", "content": [*results, *words]})
        calls = [
            {"type": "tool_use", "id": f"t{turn}_{at}", "name": "Bash", "input": given}
            for at, given in enumerate(draw(st.lists(inputs, max_size=3)))
        ]
        said = [{"type": "text", "text": draw(texts)}] if draw(st.booleans()) or not calls else []
        messages.append({"role": "assistant", "content": [*said, *calls]})
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": draw(texts)} for call in calls]
    return [*messages, {"role": "user", "content": [*results, {"type": "text", "text": "end"}]}]


def essence(messages: list[dict[str, Any]]) -> list[tuple[str, str, list[Any], list[Any]]]:
    found = []
    for message in messages:
        blocks = message["content"]
        text = "\n\n".join(block["text"] for block in blocks if block["type"] == "text")
        calls = [(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
        results = [
            (
                block["tool_use_id"],
                block["content"] if isinstance(block["content"], str) else block["content"][0]["text"],
            )
            for block in blocks
            if block["type"] == "tool_result"
        ]
        found.append((message["role"], text, calls, results))
    return found


@settings(max_examples=60, deadline=None)
@given(turns(), st.booleans())
def test_texts_and_calls_come_back_as_they_went(messages: list[dict[str, Any]], official: bool) -> None:
    there = to_openai(body(asked(*messages)), model="m", official=official)
    back = to_anthropic(there.body, model="m", default_max_tokens=1)
    assert essence(json.loads(back.body)["messages"]) == essence(messages)


def test_a_longer_conversation_begins_like_the_shorter_one() -> None:
    """What an upstream has cached of one turn is a prefix of the next."""
    short = up(CLAUDE_CODE)["messages"]
    more = [{"role": "assistant", "content": "Done."}, HELLO]
    assert up({**CLAUDE_CODE, "messages": [*CLAUDE_CODE["messages"], *more]})["messages"][: len(short)] == short


@pytest.mark.parametrize("official", [False, True])
def test_no_nonsense_raises_anything_else_to_openai(*, official: bool) -> None:
    outcomes: set[object] = set()
    for made in spoiled(CLAUDE_CODE):
        try:
            outcomes.add(type(json.loads(to_openai(body(made), model="m", official=official).body)))
        except Untranslatable as refused:
            outcomes.add(bool(str(refused)))
    assert outcomes == {dict, True}


def test_no_nonsense_raises_anything_else_to_anthropic() -> None:
    outcomes: set[object] = set()
    for made in spoiled(CHAT):
        try:
            outcomes.add(type(json.loads(to_anthropic(body(made), model="m", default_max_tokens=1).body)))
        except Untranslatable as refused:
            outcomes.add(bool(str(refused)))
    assert outcomes == {dict, True}


DEEP = b'{"messages":[{"role":"user","content":"x"}],"tools":[{"name":"a","type":"function","function":{"name":"a"},"input_schema":%b}]}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"[]",
        b"null",
        b'"a"',
        b"\xff",
        b"{",
        b'{"messages":"\\ud800"}',
        b"[" * 100_000,
        DEEP % (b'{"a":' * 990 + b"1" + b"}" * 990),
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    for translate in (lambda: to_openai(data, model="m"), lambda: to_anthropic(data, model="m", default_max_tokens=1)):
        try:
            translate()
        except (BadJson, Untranslatable):
            continue
        assert data.startswith(b'{"messages":[')


def test_what_is_nested_too_deeply_is_not_written() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for nonsense in (deep, "\ud800"):
        with pytest.raises(BadJson):
            encode(nonsense)


def test_notes_are_few_however_much_is_unknown() -> None:
    translated = to_openai(body(asked(**{f"key{n}": n + 1 for n in range(500)})), model="m")
    assert len(translated.notes) == NOTES
    assert len(set(translated.notes)) == NOTES

"""Rules for roles: what is written is what is meant, and what cannot be followed is named with its line and key."""

from __future__ import annotations

import tomllib

import pytest

from coordinator.domain.config import settings_from
from coordinator.domain.errors import BadInput
from coordinator.domain.role_route import RoleRoute

LISTED = """\
[gateway.aliases]
fast = "claude-small"
[[gateway.upstreams]]
name = "team"
kind = "anthropic"
[[gateway.upstreams]]
name = "rack"
kind = "vllm"
models = ["qwen*"]
"""
START = LISTED.count("\n")


def rules(text: str) -> dict[str, RoleRoute]:
    return dict(settings_from(tomllib.loads(text), text, "coordinator.toml").gateway.roles)


def test_a_rule_names_a_model_or_an_upstream_or_both() -> None:
    text = """\
[gateway.roles.reviewer]
model = "fast"
[gateway.roles.builder]
upstream = "rack"
[gateway.roles.tester]
model = "qwen3"
upstream = "rack"
"""
    assert rules(LISTED + text) == {
        "reviewer": RoleRoute(model="fast"),
        "builder": RoleRoute(upstream="rack"),
        "tester": RoleRoute(model="qwen3", upstream="rack"),
    }


def test_upstreams_that_nobody_lists_have_their_usual_names() -> None:
    assert rules('[gateway.roles.reviewer]\nupstream = "openai"\n') == {"reviewer": RoleRoute(upstream="openai")}


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("[gateway.roles.reviewer]\n", 1, "gateway.roles.reviewer", "says nothing"),
        ('[gateway.roles.reviewer]\nupstream = "anthropic"\n', 2, "gateway.roles.reviewer.upstream", "team, rack"),
        ('[gateway.roles.reviewer]\nupstream = ""\n', 2, "gateway.roles.reviewer.upstream", "team, rack"),
        ('[gateway.roles.reviewer]\nmodel = ""\n', 2, "gateway.roles.reviewer.model", "the id of a model"),
        ('[gateway.roles.reviewer]\nmodel = "claude-*"\n', 2, "gateway.roles.reviewer.model", "the id of a model"),
        ("[gateway.roles.reviewer]\nmodel = 5\n", 2, "gateway.roles.reviewer.model", "the id of a model"),
        ('[gateway.roles.reviewer]\nmodle = "x"\n', 2, "gateway.roles.reviewer.modle", 'did you mean "model"'),
        (
            '[gateway.roles.reviewer]\nmodel = "fast"\nupstream = "rack"\n',
            2,
            "gateway.roles.reviewer.model",
            '"claude-small" is none that rack answers for',
        ),
        ('[gateway.roles]\nreviewer = "fast"\n', 2, "gateway.roles.reviewer", "a table"),
        ('[gateway.roles."No Role"]\nmodel = "fast"\n', 1, "gateway.roles.No Role", "is no name for a role"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_a_fault(text: str, line: int, key: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        rules(LISTED + text)
    problem = next(one for one in caught.value.problems if one.key == key)
    assert problem.line == START + line
    assert said in f"{problem.message} {problem.expected}"


def test_there_are_rules_only_for_upstreams_that_there_are_usually() -> None:
    with pytest.raises(BadInput, match=r"gateway\.roles\.reviewer\.upstream: \"rack\" is no upstream.*anthropic"):
        rules('[gateway.roles.reviewer]\nupstream = "rack"\n')

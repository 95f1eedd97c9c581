from __future__ import annotations

import pytest

from coordinator.api.table import all_verbs
from coordinator.api.verb import arguments_from, parameters
from coordinator.domain.errors import BadInput

VERBS = {verb.name: verb for verb in all_verbs()}


def test_the_table_is_sorted_unique_and_every_verb_answers_one_way() -> None:
    names = [verb.name for verb in all_verbs()]
    assert names == sorted(set(names))
    for verb in all_verbs():
        assert (verb.call is None) != (verb.stream is None), verb.name
        assert verb.doc.endswith("."), verb.name
        assert all(parameter.help for parameter in parameters(verb.arguments)), verb.name


def test_arguments_come_out_typed() -> None:
    made = arguments_from(VERBS["tasks add"], {"prompt": "do", "accept": ["true"], "max_attempts": None})
    assert (made.prompt, made.accept, made.priority, made.max_attempts) == ("do", ("true",), 10, None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "prompt: missing"),
        ({"prompt": 3}, "prompt: wrong type (expected str)"),
        ({"prompt": "x", "priority": True}, "priority: wrong type (expected int)"),
        ({"prompt": "x", "accept": "true"}, "accept: wrong type (expected a list of str)"),
        ({"prompt": "x", "colour": 1}, "colour: unknown argument"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, object], expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        arguments_from(VERBS["tasks add"], data)
    assert expected in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        arguments_from(VERBS["tasks add"], {"priority": "high", "colour": 1})
    assert len(caught.value.problems) == 3

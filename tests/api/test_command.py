from __future__ import annotations

import pytest

from coordinator.api import command
from coordinator.api.table import all_verbs
from coordinator.api.verb import arguments_from

VERBS = {verb.name: verb for verb in all_verbs()}


def _parse(*words: str) -> tuple[str, dict[str, object]]:
    parsed = command.build(all_verbs(), "1").parse_args(words)
    verb = VERBS[parsed.command]
    values = command.values_of(verb.arguments, parsed)
    arguments_from(verb, values)  # the API would take the very same
    return parsed.command, values


def test_what_is_typed_is_what_the_api_takes() -> None:
    name, values = _parse("tasks", "add", "do it", "-p", "3", "--accept", "true", "--accept", "false", "--path", "a/**")
    assert name == "tasks add"
    assert (values["prompt"], values["priority"]) == ("do it", 3)
    assert (values["accept"], values["paths"]) == (["true", "false"], ["a/**"])


def test_a_number_that_stands_by_itself_is_a_number() -> None:
    assert _parse("incidents", "show", "3")[1] == {"number": 3}
    assert _parse("knobs", "diff", "1", "2")[1] == {"old": 1, "new": 2}


def test_global_options_may_stand_on_either_side() -> None:
    parser = command.build(all_verbs(), "1")
    for words in (["--json", "-C", "x", "status"], ["status", "--json", "-C", "x"], ["-C", "x", "status", "--json"]):
        parsed = parser.parse_args(words)
        assert (parsed.json, parsed.directory, parsed.command) == (True, "x", "status")


def test_paths_are_made_absolute_where_they_were_typed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _parse("tasks", "check", "a.toml")[1]["file"] == [str(tmp_path / "a.toml")]


@pytest.mark.parametrize("words", [["nonsense"], ["tasks", "nonsense"], ["tasks", "show"], ["status", "--colour"]])
def test_wrong_usage_ends_with_2_and_says_where_to_read(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        command.build(all_verbs(), "1").parse_args(words)
    assert caught.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_help_names_every_command_and_exit_code_in_80_columns(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = command.build(all_verbs(), "1")
    text = parser.format_help()
    for name in (*VERBS, "run", "agent"):
        assert f"  {name} " in text
    for code in (0, 1, 2, 3, 4, 5, 70, 75, 130):
        assert f"\n  {code} " in text
    assert max(map(len, text.splitlines())) <= 80

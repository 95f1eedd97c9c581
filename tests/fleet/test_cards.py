"""Role cards: the built-in ones, the repository's own, and what happens when one has a fault."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from coordinator.fleet import cards

if TYPE_CHECKING:
    from pathlib import Path


def test_the_built_in_cards_are_good_and_command_asks_to_be_set(tmp_path: Path) -> None:
    loaded = cards.load(tmp_path / "agents")
    assert loaded.problems == ()
    assert {"autofix", "claude", "command", "upgrade"} <= set(loaded.cards)
    assert loaded.cards["upgrade"].command == loaded.cards["autofix"].command
    autofix = loaded.cards["autofix"]
    assert autofix.command == ("{python}", "-P", "-m", "coordinator.fleet.autofix")
    assert autofix.standing_brief
    assert loaded.obstacle("autofix") == ""
    assert loaded.obstacle("command").startswith("role command has no command; write agents/command.toml")
    names = ", ".join(sorted(loaded.cards))
    assert loaded.obstacle("poet") == f"role poet has no card; write agents/poet.toml (there are: {names})"


def test_a_card_of_the_repository_replaces_the_built_in_one(tmp_path: Path) -> None:
    folder = tmp_path / "bots"
    folder.mkdir()
    (folder / "command.toml").write_text('command = ["./agent.sh"]\n')
    (folder / "command.md").write_text("Be brief.\n")
    (folder / "outside.toml").write_text("external = true\n")
    (folder / "README.md").write_text("no card\n")
    (folder / "package.py").write_text("")
    loaded = cards.load(folder)
    assert loaded.problems == ()
    card = loaded.cards["command"]
    assert (card.command, card.standing_brief, card.file) == (("./agent.sh",), "Be brief.\n", "bots/command.toml")
    assert loaded.obstacle("command") == loaded.obstacle("outside") == ""


def test_a_faulty_card_is_never_replaced_by_a_more_generous_one(tmp_path: Path) -> None:
    (tmp_path / "autofix.toml").write_text('command = ["x"]\npaths = "src"\nmemory = 1\n')
    loaded = cards.load(tmp_path)
    assert "autofix" not in loaded.cards
    assert {problem.key for problem in loaded.problems} == {"paths", "memory"}
    assert "autofix.toml" in loaded.obstacle("autofix")


def test_whatever_lies_in_the_folder_is_told_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text('command = ["x"]\n')
    (tmp_path / "BAD.toml").write_text('command = ["x"]\n')
    (tmp_path / "link.toml").symlink_to("good.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"description = '\xff'\n")
    (tmp_path / "briefless.toml").write_text('command = ["x"]\n')
    (tmp_path / "briefless.md").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.toml")
    below = tmp_path / "below"
    below.mkdir()
    (below / "other.toml").write_text("not = 'a card'\n")
    loaded = cards.load(tmp_path)
    assert set(loaded.cards) == {*cards.load(tmp_path / "missing").cards, "good"}
    assert set(loaded.faulty) == {"BAD", "briefless", "folder", "latin", "link", "pipe"}
    assert len(loaded.problems) == 6


def test_a_program_that_is_not_there_blocks_its_role_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "gone.toml").write_text('command = ["no-such-agent-cli", "--print"]\n')
    (tmp_path / "here.toml").write_text('command = ["sh", "-c", "true"]\n')
    found = cards.load(tmp_path)
    assert "no-such-agent-cli is not on PATH; install it" in found.obstacle("gone")
    assert found.obstacle("here") == ""

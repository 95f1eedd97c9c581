from __future__ import annotations

import io

from coordinator.api.view import BAD, line, span
from coordinator.surface import terminal


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_that_want_it() -> None:
    assert terminal.wants_colour(_Tty(), {"TERM": "xterm"})
    assert not terminal.wants_colour(_Tty(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not terminal.wants_colour(_Tty(), {"TERM": "dumb"})
    assert not terminal.wants_colour(io.StringIO(), {"TERM": "xterm"})


def test_a_pipe_gets_plain_text_of_80_columns(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pipe = io.StringIO()
    assert terminal.columns(pipe) == 80
    terminal.write(pipe, [line("a ", span("b", BAD), "  ")])
    assert pipe.getvalue() == "a b\n"
    assert terminal.columns(_Tty()) == 100


def test_a_terminal_gets_colours_around_the_text() -> None:
    assert terminal.paint(line("a", span("b", BAD)), colour=True) == "a\x1b[31mb\x1b[0m"

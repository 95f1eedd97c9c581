"""What only the whole spool can tell: duplicates, circles, missing dependencies, and what is really gone."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.domain.taskfile import ParsedFile, parse
from coordinator.policy.spool import SpoolState, combine


def spool(**texts: str) -> dict[str, ParsedFile]:
    return {f"tasks/{name}.toml": parse(text, f"tasks/{name}.toml") for name, text in texts.items()}


def task(task_id: str, *needs: str) -> str:
    return f'[[tasks]]\nid = "{task_id}"\nprompt = "p"\ndepends_on = {list(needs)}\n'.replace("'", '"')


def told(state: SpoolState) -> list[str]:
    return [str(problem) for problem in state.problems]


def test_of_a_duplicate_id_the_first_file_counts_and_both_places_are_named() -> None:
    state = combine(spool(b=task("x"), a="\n" + task("x"), c=task("y")))
    assert state.tasks["x"].file == "tasks/a.toml"
    assert set(state.tasks) == {"x", "y"}
    (problem,) = told(state)
    assert problem.startswith("tasks/b.toml:1: id: ")
    assert "tasks/a.toml:2" in problem


def test_nobody_takes_over_a_task_by_writing_another_of_its_name() -> None:
    before = combine(spool(b=task("x")))
    owners = {name: known.file for name, known in before.tasks.items()}
    state = combine(spool(b=task("x"), a=task("x"), c=task("x")), owners=owners)
    assert state.tasks["x"].file == "tasks/b.toml"
    assert [problem.file for problem in state.problems] == ["tasks/a.toml", "tasks/c.toml"]


def test_a_duplicate_inside_one_file_is_told_with_both_lines() -> None:
    state = combine(spool(a=task("x") + task("x")))
    assert len(state.tasks) == 1
    assert told(state) == [
        'tasks/a.toml:5: id: "x" is also defined at tasks/a.toml:1, which counts (expected an id that no other task has)'
    ]


def test_a_bad_copy_does_not_reject_the_good_one() -> None:
    state = combine(spool(a='[[tasks]]\nid = "x"\nprompt = ""\n', b=task("x")))
    assert state.tasks["x"].file == "tasks/b.toml"
    assert state.rejected == {}
    assert len(state.problems) == 1


def test_a_task_that_needs_itself_is_rejected() -> None:
    state = combine(spool(a=task("x", "x") + task("y")))
    assert set(state.tasks) == {"y"}
    assert told(state) == [
        'tasks/a.toml:4: depends_on: task "x" depends on itself (expected dependencies that end somewhere)'
    ]
    assert set(state.rejected) == {"x"}


def test_a_circle_is_named_in_order_and_only_its_members_are_rejected() -> None:
    state = combine(
        spool(a=task("c", "a") + task("a", "b"), b=task("b", "c", "free"), d=task("free") + task("on", "a"))
    )
    assert set(state.tasks) == {"free", "on"}
    assert set(state.rejected) == {"a", "b", "c"}
    (problem,) = told(state)
    assert "a → b → c → a" in problem
    assert problem.startswith("tasks/a.toml:8: depends_on:")
    assert "a → b → c → a" in state.blocked["on"]


def test_a_missing_dependency_blocks_with_its_cause_and_is_told() -> None:
    files = spool(a=task("x", "nowhere", "y") + task("y"))
    state = combine(files)
    assert set(state.tasks) == {"x", "y"}
    assert state.blocked == {"x": "depends on nowhere, which no file has"}
    assert told(state) == [
        'tasks/a.toml:4: depends_on: task "x" depends on "nowhere", which no file has (expected the id of a task)'
    ]
    assert combine(files, known={"nowhere"}).blocked == {}


def test_gone_means_removed_and_not_merely_unreadable() -> None:
    broken = ParsedFile(file="tasks/b.toml", readable=False)
    files = spool(a=task("here") + '[[tasks]]\nid = "bad"\n') | {"tasks/b.toml": broken}
    state = combine(files)
    places = {
        "here": "tasks/a.toml",
        "bad": "tasks/a.toml",
        "unread": "tasks/b.toml",
        "removed": "tasks/a.toml",
        "file-removed": "tasks/old/c.toml",
    }
    assert state.gone(places) == {"removed", "file-removed"}
    hidden = SpoolState(unreadable=frozenset({"tasks/old"}))
    assert hidden.gone({"x": "tasks/old/c.toml", "y": "tasks/older.toml"}) == {"y"}


ids = st.sampled_from("abcdefgh")
graphs = st.dictionaries(ids, st.lists(ids, max_size=3, unique=True), max_size=8)


def reaches(graph: dict[str, list[str]], start: str, goal: str) -> bool:
    seen: set[str] = set()
    waiting = [needed for needed in graph.get(start, ()) if needed in graph]
    while waiting:
        here = waiting.pop()
        if here == goal:
            return True
        if here not in seen:
            seen.add(here)
            waiting += [needed for needed in graph[here] if needed in graph]
    return False


@settings(max_examples=200, deadline=None)
@given(graphs)
def test_exactly_the_members_of_circles_are_rejected(graph: dict[str, list[str]]) -> None:
    state = combine(spool(**{name: task(name, *needs) for name, needs in graph.items()}))
    assert set(state.rejected) == {name for name in graph if reaches(graph, name, name)}
    assert set(state.tasks) == set(graph) - set(state.rejected)
    assert set(state.blocked) == {name for name in state.tasks if not set(graph[name]) <= set(state.tasks)}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(ids, st.lists(ids, max_size=2), st.sampled_from(["p", "q", "r"])), max_size=8), st.randoms())
def test_neither_the_order_of_files_nor_bad_ones_change_what_is_accepted(
    written: list[tuple[str, list[str], str]], random: object
) -> None:
    texts: dict[str, str] = {}
    for task_id, needs, name in written:
        texts[name] = texts.get(name, "") + task(task_id, *needs)
    files = spool(**texts)
    state = combine(files)
    names = list(files)
    random.shuffle(names)  # type: ignore[attr-defined]
    with_garbage = {"tasks/0.toml": parse("= nonsense", "tasks/0.toml")} | {name: files[name] for name in names}
    again = combine(with_garbage)
    assert (again.tasks, again.blocked, again.rejected) == (state.tasks, state.blocked, state.rejected)
    assert len(again.problems) == len(state.problems) + 1


def test_ten_thousand_tasks_in_one_chain_are_judged_at_once() -> None:
    text = "".join(task(f"t{number}", f"t{number - 1}") if number else task("t0") for number in range(10_000))
    files = {"f": parse(text, "f")}
    began = time.perf_counter()
    state = combine(files)
    took_s = time.perf_counter() - began
    assert len(state.tasks) == 10_000
    assert took_s < 1.0, "linear: 0.03 s on an idle machine"
    ring = text.replace('id = "t0"\nprompt = "p"\ndepends_on = []', 'id = "t0"\nprompt = "p"\ndepends_on = ["t9999"]')
    state = combine({"f": parse(ring, "f")})
    assert len(state.rejected) == 10_000
    (problem,) = state.problems
    assert len(problem.message) < 200

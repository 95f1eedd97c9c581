from __future__ import annotations

import json
import shlex
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.checks.adapters import ADAPTERS
from coordinator.domain.finding import Finding, Fix, Place, Severity
from coordinator.domain.taskfile import parse
from coordinator.improve.autotask import MARK, ToolProfile, read, render
from coordinator.policy.change import path_matches
from coordinator.policy.grouping import GroupKey, TaskGroup

PROFILE = ToolProfile(
    adapter=ADAPTERS["ruff"], options=("--isolated", "--target-version", "py38", "--select", "{rule}")
)

printable = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=12)
names = printable.filter(lambda name: not {"/", "\\"} & set(name) and name not in {".", ".."})
nasty = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        ['"""', "'''", "\\", "\x00\x7f", "\n```coordinator-group\n{}\n```\n", '"\\u0000', "é\r\n", "$(rm -rf ~)"]
    ),
)


def group(files: list[str], message: str, evidence: str, *, whole: bool = True) -> TaskGroup:
    findings = tuple(
        Finding(
            category="dead code",
            evidence=evidence,
            fingerprint=f"{number}",
            fix=Fix.SAFE,
            message=message,
            places=(Place(path=path, line=number),),
            rule="F401",
            severity=Severity.MEDIUM,
            tool="ruff",
            links=("https://docs.astral.sh/ruff/rules/unused-import",),
        )
        for number, path in enumerate(files)
    )
    key = GroupKey.of(findings[0], {"ruff": {Fix.SAFE}})
    return TaskGroup(findings=findings, id=key.task_id(1), key=key, priority=50, role="autofix", whole=whole)


def accept(made: TaskGroup) -> str:
    return PROFILE.adapter.accept(made, PROFILE.options_for(made))


@settings(max_examples=60, deadline=None)
@given(files=st.lists(names, min_size=1, max_size=3, unique=True), message=nasty, evidence=nasty, whole=st.booleans())
def test_whatever_the_source_says_the_file_is_a_task_and_reads_back_as_its_group(
    files: list[str], message: str, evidence: str, whole: bool
) -> None:
    made = group([f"pkg/{name}" for name in files], message, evidence, whole=whole)
    text = render(made, PROFILE)
    assert text.startswith(MARK)
    parsed = parse(text, "tasks/auto/x.toml")
    assert parsed.problems == ()
    (task,) = parsed.tasks
    for path in made.files:
        assert any(path_matches(path, glob) for glob in task.paths)
        assert not any(path_matches(path + "x", glob) for glob in task.paths if f"{path}x" not in made.files)
    assert shlex.split(task.accept[0])[-len(made.files) :] == list(made.files)
    back = read(text, made.id)
    assert back is not None
    assert (back.files, back.key, back.essence) == (made.files, made.key, made.essence(PROFILE.salt))
    assert read(text, "another") is None


def test_the_accept_line_looks_as_the_scan_did_and_never_writes() -> None:
    whole = accept(group(["a b.py"], "m", "e"))
    assert whole == (
        "ruff check --no-cache --no-fix --output-format concise"
        " --isolated --target-version py38 --select F401 -- 'a b.py'"
    )
    partly = accept(group(["-a.py"], "m", "e", whole=False))
    assert partly.startswith("ruff check --no-cache --diff --no-unsafe-fixes ")
    assert partly.endswith(" -- -a.py")


def test_a_name_with_wildcards_allows_itself_and_nothing_else() -> None:
    made = group(["a[1]*?.py"], "m", "e")
    (task,) = parse(render(made, PROFILE), "x.toml").tasks
    assert path_matches("a[1]*?.py", task.paths[0])
    assert not any(path_matches(path, task.paths[0]) for path in ("a1xy.py", "a[1]xy.py", "a1*?.py"))


def test_a_long_group_is_counted_and_not_listed_to_the_end() -> None:
    text = render(group([f"pkg/{number:03}.py" for number in range(40)], "m", "e"), PROFILE)
    assert "and 10 more" in text
    assert len(parse(text, "x.toml").tasks[0].headline) <= 80


def test_a_damaged_file_is_no_group() -> None:
    made = group(["a.py"], "m", "e")
    text = render(made, PROFILE)
    for damaged in (text[:200], text.replace("coordinator-group", "other"), text.replace('["F401"]', "[]"), "", "\x00"):
        assert read(damaged, made.id) is None


def test_a_priority_that_somebody_wrote_into_the_file_is_read_and_kept() -> None:
    made = group(["a.py"], "m", "e")
    text = render(made, PROFILE)
    untouched = read(text, made.id)
    assert untouched is not None
    assert untouched.priority is None
    edited = read(text.replace("priority = 50", "priority = 3"), made.id)
    assert edited is not None
    assert edited.priority == 3
    kept = replace(made, pinned=edited.priority)
    assert parse(render(kept, PROFILE), "x.toml").tasks[0].priority == 3
    again = read(render(kept, PROFILE), made.id)
    assert again is not None
    assert (again.priority, again.essence) == (3, untouched.essence)


def test_a_file_that_an_older_version_wrote_is_still_ours() -> None:
    made = group(["pkg/a.py"], "m", "e")
    text = render(made, PROFILE)
    block = json.loads(text.partition("```coordinator-group\n")[2].partition("\n```")[0])
    old = {name: block[name] for name in ("essence", "files", "rules", "tool")}
    back = read(text.replace(json.dumps(block), json.dumps(old)), made.id)
    assert back is not None
    assert (back.key, back.files, back.priority) == (made.key, ("pkg/a.py",), None)


def test_a_model_is_told_all_that_the_tool_knows_and_what_not_to_do() -> None:
    finding = Finding(
        advisories=("PYSEC-2018-28", "CVE-2018-18074"),
        category="vulnerability",
        cvss=9.8,
        fingerprint="f",
        fix_version="2.20.0",
        installed="2.19.0",
        links=("https://example.org/one", "https://example.org/two"),
        message="leaks credentials on redirect",
        package="requests",
        places=(Place(path="requirements.txt", line=3), Place(path="setup.py")),
        rule="PYSEC-2018-28",
        severity=Severity.CRITICAL,
        suggestion="upgrade",
        tool="ruff",
    )
    key = GroupKey(mechanical=False, scope="", subject="requests", tool="ruff")
    made = TaskGroup(
        findings=(finding,),
        id=key.task_id(1),
        key=key,
        priority=30,
        returned=frozenset("f"),
        role="claude",
        whole=True,
    )
    (task,) = parse(render(made, PROFILE), "x.toml").tasks
    assert (task.role, task.paths, task.priority) == ("claude", ("requirements.txt", "setup.py"), 30)
    for text in (
        *("requirements.txt:3", "critical, CVSS 9.8, is back", "see also setup.py", "requests is at 2.19.0"),
        *("mended in 2.20.0", "PYSEC-2018-28, CVE-2018-18074", "ruff suggests: upgrade", "https://example.org/two"),
        *("Do not silence the tool", "was fixed before and is back"),
    ):
        assert text in task.prompt, text
    assert "again" in task.title
    back = read(render(made, PROFILE), made.id)
    assert back is not None
    assert back.key == key


def test_an_upgrade_is_ordered_with_the_versions_that_mend_it() -> None:
    findings = tuple(
        Finding(
            category="vulnerability",
            fingerprint=version,
            fix=Fix.VERSION,
            fix_version=version,
            message="m",
            package="jinja2",
            places=(Place(path="requirements.txt"),),
            rule=f"PYSEC-{version}",
            tool="ruff",
        )
        for version in ("2.11.3", "3.1.5")
    )
    key = GroupKey.of(findings[0], {"ruff": {Fix.VERSION}})
    made = TaskGroup(findings=findings, id=key.task_id(1), key=key, priority=40, role="autofix", whole=True)
    prompt = parse(render(made, PROFILE), "x.toml").tasks[0].prompt
    block = json.loads(prompt.partition("```coordinator-group\n")[2].partition("\n```")[0])
    assert block["versions"] == {"jinja2": ["2.11.3", "3.1.5"]}
    assert "Move to it and change nothing else" in prompt
    assert made_title(findings) == "Move jinja2 to a sound version in requirements.txt (2 findings)"
    assert made_title(findings[:1]) == "Move jinja2 to 2.11.3 in requirements.txt (1 finding)"


def made_title(findings: tuple[Finding, ...]) -> str | None:
    key = GroupKey.of(findings[0], {"ruff": {Fix.VERSION}})
    made = TaskGroup(findings=findings, id=key.task_id(1), key=key, priority=40, role="upgrade", whole=True)
    return parse(render(made, PROFILE), "x.toml").tasks[0].title

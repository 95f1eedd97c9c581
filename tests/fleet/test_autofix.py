from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.fleet import autofix
from coordinator.fleet.autofix import BadBrief, mend, read_brief
from tests.conftest import git
from tests.fleet.orders import offer, start_agent

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.sdk.layout import Layout

UGLY = "import os\nimport sys\n\nx = { 'a':1 }\nprint( sys.path )\n"
TIDY = 'import os\nimport sys\n\n\ndef f(x):\n    return [x, "y" if x is None else sys.path]\n'


def brief(files: list[str], rules: list[str], /, **more: Any) -> str:
    options = ["--isolated", "--select", ",".join(rules)]
    block = {"tool": "ruff", "files": files, "rules": rules, "options": options, "target_version": None, **more}
    return f"# Fix\n\nstanding words\n\n```coordinator-group\n{json.dumps(block)}\n```\n\nmore\n"


def write(top: Path, **files: str) -> Path:
    """Commit files; ``__`` in a name is a slash."""
    for name, text in files.items():
        path = top / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    git(top, "add", ".")
    git(top, "commit", "-qm", "faults")
    return top


def changed(top: Path) -> list[str]:
    return git(top, "diff", "--name-only", "HEAD~1", "HEAD").splitlines()


async def test_one_group_is_fixed_and_committed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write(repository, shop__a=TIDY, shop__b=UGLY, shop__c="import os\n")
    (tree / "note.txt").write_text("not ours")
    assert await mend(tree, brief(["shop/a.py", "shop/b.py", "shop/gone.py"], ["F401"]), {}) == autofix.FIXED
    assert changed(tree) == ["shop/a.py", "shop/b.py"]
    assert (tree / "shop/b.py").read_text() == UGLY.replace("import os\n", "")  # ugly stays ugly
    assert (tree / "shop/c.py").read_text() == "import os\n"
    message = git(tree, "log", "-1", "--format=%B")
    assert message.startswith("ruff: F401 in shop\n\n")
    assert "- shop/a.py:1 F401 `os` imported but unused" in message
    assert capsys.readouterr().out == "fixed 2 × F401 in 2 files\n"
    assert git(tree, "status", "--porcelain") == "?? note.txt"


async def test_what_was_formatted_is_formatted_again(repository: Path) -> None:
    """Without its ``f`` the text fits on one line: the formatter joins it, in the file that was tidy before."""
    long = f'LONG = (\n    f"{"x" * 79}"\n)\n'
    tree = write(repository, shop__tidy=long, shop__ugly=long + "y = { 'a':1 }\n")
    assert await mend(tree, brief(["shop/tidy.py", "shop/ugly.py"], ["F541"]), {}) == autofix.FIXED
    assert (tree / "shop/tidy.py").read_text() == f'LONG = "{"x" * 79}"\n'
    assert (tree / "shop/ugly.py").read_text() == long.replace('f"', '"') + "y = { 'a':1 }\n"


async def test_unsafe_fixes_are_never_applied(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even where the project's own configuration switches them on."""
    (repository / "ruff.toml").write_text("unsafe-fixes = true\n")
    tree = write(repository, shop__a="def f():\n    x = 1\n")
    group = brief(["shop/a.py"], ["F841"], options=["--select", "F841"])
    assert await mend(tree, group, {}) == autofix.NOTHING_TO_FIX
    both = write(repository, shop__a="import os\n\n\ndef f():\n    x = 1\n")
    assert await mend(both, brief(["shop/a.py"], ["F841", "F401"], options=["--select", "F841,F401"]), {}) == 0
    assert (tree / "shop/a.py").read_text() == "def f():\n    x = 1\n"
    assert "nothing to fix: ruff offers no safe fix for F841 in the task's files\n" in capsys.readouterr().out


async def test_the_projects_configuration_is_honoured(repository: Path) -> None:
    (repository / "ruff.toml").write_text('[lint.per-file-ignores]\n"shop/a.py" = ["F401"]\n')
    tree = write(repository, shop__a="import os\n", shop__b="import os\n")
    files = ["shop/a.py", "shop/b.py"]
    assert await mend(tree, brief(files, ["F401"], options=["--select", "F401"]), {}) == autofix.FIXED
    assert changed(tree) == ["shop/b.py"]


async def test_without_options_the_target_version_counts(repository: Path) -> None:
    tree = write(repository, shop__a='print("%s" % 1)\nfrom typing import Optional\n\nx: Optional[int] = None\n')
    group = brief(["shop/a.py"], ["UP045"], options=None, target_version="py38")
    assert await mend(tree, group, {}) == autofix.NOTHING_TO_FIX
    group = brief(["shop/a.py"], ["UP045"], options=None, target_version="py312")
    assert await mend(tree, group, {}) == autofix.FIXED


async def test_a_persons_task_fixes_what_is_safe_in_its_paths(repository: Path) -> None:
    tree = write(repository, shop__a="import os\nimport sys\n", tests__b="import os\n")
    assert await mend(tree, "tidy up, please", {"paths": ["shop/**"]}) == autofix.FIXED
    assert changed(tree) == ["shop/a.py"]
    assert git(tree, "log", "-1", "--format=%s") == "ruff: F401 in shop/a.py"
    assert await mend(tree, "and the rest", {}) == autofix.FIXED
    assert changed(tree) == ["tests/b.py"]
    assert await mend(tree, "and the rest", {}) == autofix.NOTHING_TO_FIX


async def test_a_link_out_of_the_tree_is_not_followed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("import os\n")
    (repository / "shop/link.py").symlink_to(tmp_path / "outside.py")
    (repository / "shop/inner.py").symlink_to("real.py")
    tree = write(repository, shop__real="import os\n")
    files = ["shop/link.py", "shop/inner.py", "../outside.py", str(tmp_path / "outside.py")]
    assert await mend(tree, brief(files, ["F401"]), {}) == autofix.NOTHING_TO_FIX
    assert (tmp_path / "outside.py").read_text() == (tree / "shop/real.py").read_text() == "import os\n"


@pytest.mark.parametrize(
    "change",
    [
        {"tool": "eslint"},
        {"files": "a.py"},
        {"rules": [1]},
        {"options": ["--unsafe-fixes"]},
        {"options": ["--select", "F401", "--config", "x"]},
        {"options": ["--select"]},
        {"options": ["--select", "--unsafe-fixes"]},
        {"options": ["/etc"]},
    ],
)
def test_a_brief_that_asks_for_anything_else_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadBrief):
        read_brief(tmp_path, brief(["a.py"], ["F401"], **change))


def test_a_damaged_block_is_refused_and_a_missing_one_is_not(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}", "1", "[" * 100_000):
        with pytest.raises(BadBrief):
            read_brief(tmp_path, f"```coordinator-group\n{text}\n```")
    assert read_brief(tmp_path, "say ```coordinator-group in a line") is None


def test_the_whole_attempt_with_the_shipped_command(layout: Layout) -> None:
    """A ``ruff``, ``json.py`` or ``coordinator`` of the repository is never what runs."""
    (layout.repository / "json.py").write_text("raise SystemExit('planted')\n")
    (layout.repository / "coordinator").mkdir()
    (layout.repository / "coordinator/__init__.py").write_text("raise SystemExit('planted')\n")
    write(layout.repository, shop__a=TIDY)
    command = ("{python}", "-P", "-m", "coordinator.fleet.autofix")
    env_names = ("PYTHONPATH",)
    good = offer(layout, "good", command=command, env_names=env_names, brief=brief(["shop/a.py"], ["F401"]))
    idle = offer(layout, "idle", command=command, env_names=env_names, brief=brief(["shop/price.py"], ["F401"]))
    bad = offer(layout, "bad", command=command, env_names=env_names, brief=brief(["a.py"], ["F401"], tool="x"))
    start_agent(layout).wait(30)
    assert (good.ended().outcome, good.ended().summary) == ("done", "fixed 1 × F401 in 1 file")
    assert git(good.tree, "log", "-1", "--format=%s %ae") == "ruff: F401 in shop/a.py agent@coordinator.invalid"
    assert (idle.ended().outcome, idle.ended().exit_code) == ("failed", 3)
    assert idle.ended().summary.startswith("exit code 3: nothing to fix")
    assert bad.ended().exit_code == 2


async def test_what_a_fix_leaves_behind_is_mended_with_it(repository: Path) -> None:
    """``list`` instead of ``List`` makes an import unused; the one in the other file was there before and stays."""
    old = "from typing import List\n\nx: List[int] = []\n"
    tree = write(repository, shop__a=old, shop__b="import os\n\nx: list[int] = []\n")
    group = brief(["shop/a.py", "shop/b.py"], ["UP006"], options=["--isolated", "--select", "UP006"])
    assert await mend(tree, group, {}) == autofix.FIXED
    assert (tree / "shop/a.py").read_text() == "x: list[int] = []\n"
    assert changed(tree) == ["shop/a.py"]
    assert git(tree, "log", "-1", "--format=%s") == "ruff: F401, UP006 in shop/a.py"

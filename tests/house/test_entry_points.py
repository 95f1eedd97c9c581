"""An outside library enters through one door; habits that the linters cannot see."""

from __future__ import annotations

import ast
import sys
import tomllib
from typing import TYPE_CHECKING

from tests.house.source import TOP, SourceFile, imported, product

if TYPE_CHECKING:
    from collections.abc import Iterator

DOORS: dict[str, str] = {
    "aiohttp": "coordinator/kit/http.py",
    "apscheduler": "coordinator/kit/schedule.py",
    "backports": "coordinator/gateway/codings.py",
    "brotli": "coordinator/gateway/codings.py",
    "cachebox": "coordinator/gateway/response_cache.py",
    "cvss": "coordinator/checks/cvss_score.py",
    "filelock": "coordinator/kit/lock.py",
    "git": "coordinator/kit/git",
    "httptools": "coordinator/kit/wire.py",
    "msgspec": "coordinator/gateway/",
    "opentelemetry": "coordinator/kit/otlp.py",
    "packaging": "coordinator/checks/python_pins.py",
    "prometheus_client": "coordinator/surface/metrics.py",
    "psutil": "coordinator/kit/process.py",
    "rich": "coordinator/surface/",
    "tomlkit": "coordinator/kit/files.py",
    "uvloop": "coordinator/kit/wire.py",
    "watchfiles": "coordinator/kit/files.py",
    "xxhash": "coordinator/gateway/sameness.py",
}
"""Import name → the module (or the beginning of the paths) that alone may import it."""

BROAD_EXCEPT = ("coordinator/kit/bus.py", "coordinator/kit/service.py")
"""Where any exception may end: the seams at which one fault must not stop the others."""

IMPURE_AT_IMPORT = ("os.environ", "os.getenv", "os.getcwd", "Path.cwd", "Path.home", "time.", "datetime.now", "random.")


def outside(names: set[str]) -> set[str]:
    """``compression`` is the standard library's, from Python 3.14 on."""
    return names - sys.stdlib_module_names - {"", "compression", "coordinator"}


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that are evaluated when the module is imported: everything but the insides of functions."""
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults, *(item for item in node.args.kw_defaults if item)]
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def broad_handlers(tree: ast.AST) -> list[int]:
    """Lines of handlers that take every exception and do not raise it again at their end."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            everything = not caught or {"Exception", "BaseException"} & {
                name.strip(" ()") for name in caught.split(",")
            }
            last = node.body[-1]
            if everything and not (isinstance(last, ast.Raise) and last.exc is None):
                lines.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            suppressed = {ast.unparse(item) for item in node.args}
            lines += [node.lineno] if suppressed & {"Exception", "BaseException"} else []
    return lines


def mutable_state(tree: ast.Module) -> list[str]:
    """Module-level names that hold a list, dict or set which is not declared read-only, and ``global`` statements."""
    found = [name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names]
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value, declared = node.targets, node.value, ""
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value, declared = [node.target], node.value, ast.unparse(node.annotation)
        else:
            continue
        made = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
        display = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
        display = display or made.rpartition(".")[2] in {"list", "dict", "set", "deque", "defaultdict", "Counter"}
        read_only = declared.removeprefix("Final[").startswith(("Mapping", "Sequence", "Collection"))
        if display and not read_only and ast.unparse(targets[0]) != "__all__":
            found.append(ast.unparse(targets[0]))
    return found


def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def test_each_library_has_one_door() -> None:
    strays = [
        f"{file.name} imports {name}; its door is {DOORS.get(name, 'nowhere: add one, with a reason, here')}"
        for file in product()
        for name in sorted(outside(imported(file.tree)))
        if name not in DOORS or not file.name.startswith(DOORS[name])
    ]
    assert strays == []


def test_doors_are_the_dependencies() -> None:
    """Each door is used, and what is declared is what is imported (ruff is run, not imported)."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["otel"]]
    names = {line.partition(">")[0] for line in declared}
    imported_as = {
        "backports.zstd": "backports",
        "gitpython": "git",
        "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
        "opentelemetry-sdk": "opentelemetry",
        "prometheus-client": "prometheus_client",
    }
    assert {imported_as.get(name, name) for name in names} == {*DOORS, "ruff"}
    used = set().union(*(outside(imported(file.tree)) for file in product()))
    assert sorted(DOORS.keys() - used) == []


def test_every_exception_ends_at_two_seams_only() -> None:
    found = {file.name: broad_handlers(file.tree) for file in product() if file.name not in BROAD_EXCEPT}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_module_holds_state() -> None:
    found = {file.name: mutable_state(file.tree) for file in product()}
    assert {name: names for name, names in found.items() if names} == {}


def test_an_import_reads_nothing() -> None:
    found = [f"{file.name}:{line} {what}" for file in product() for line, what in impure(file)]
    assert found == []


def impure(file: SourceFile) -> list[tuple[int, str]]:
    """Calls and look-ups that read the machine. ``environ=os.environ`` as a default only passes the live mapping on."""
    found = []
    for node in at_import(file.tree):
        read = node.func if isinstance(node, ast.Call) else node.value if isinstance(node, ast.Subscript) else None
        name = "" if read is None else ast.unparse(read)
        if name == "open" or name.startswith(IMPURE_AT_IMPORT):
            found.append((node.lineno, name))  # type: ignore[attr-defined]
    return found


def test_the_readers_see_what_they_should() -> None:
    assert broad_handlers(parsed("try: f()\nexcept (OSError, Exception): pass")) == [2]
    assert broad_handlers(parsed("try: f()\nexcept: pass")) == [2]
    assert broad_handlers(parsed("with contextlib.suppress(Exception): f()")) == [1]
    assert broad_handlers(parsed("try: f()\nexcept BaseException:\n    undo()\n    raise")) == []
    assert mutable_state(parsed("a = []\nb: Final = {}\nc: Final[Mapping[str, int]] = {}\nd = ()")) == ["a", "b"]
    assert mutable_state(parsed("def f():\n    global x\n    x = 1")) == ["x"]
    early = SourceFile(module="m", path=TOP / "m.py", text="", tree=parsed("import os\nA = os.environ['A']\n"))
    assert impure(early) == [(2, "os.environ")]
    late = SourceFile(module="m", path=TOP / "m.py", text="", tree=parsed("def f():\n    return os.environ['A']\n"))
    assert impure(late) == []
    assert imported(parsed("def f():\n    import psutil\n    from rich.live import Live")) == {"psutil", "rich"}

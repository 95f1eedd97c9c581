"""What the agents of scripts/bench dedup work on: a package of small modules, and the jobs that are to be done in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.bench_model import Job, Step
from scripts.bench_rig import git

if TYPE_CHECKING:
    from pathlib import Path

_MODULE = """\
RATE = 0.19


def total(prices, rate=RATE):
    return sum(prices) * (1 + rate)


def cheapest(prices):
    return min(prices)


def label(name, price):
    return name + ": " + str(price)
"""
_TEST = """\
import unittest

from shop.part{number:02d} import cheapest, total


class Part{number:02d}Test(unittest.TestCase):
    def test_total(self):
        self.assertAlmostEqual(total([1.0, 2.0], rate=0.5), 4.5)

    def test_cheapest(self):
        self.assertEqual(cheapest([3, 1, 2]), 1)
"""
_TOTAL = "    return sum(prices) * (1 + rate)"
_GUARD = '    if any(price < 0 for price in prices):\n        raise ValueError("a price is below zero")\n'
_KINDS = (
    ("Let total() of {module} refuse prices below zero with a ValueError.", _TOTAL, _GUARD + _TOTAL),
    (
        "In {module} cheapest() of no prices fails with a riddle. Give back None then.",
        "min(prices)",
        "min(prices, default=None)",
    ),
    ("Use an f-string in label() of {module}.", 'name + ": " + str(price)', 'f"{name}: {price}"'),
    ("The rate in {module} is an old one: from now on it is 0.2.", "RATE = 0.19", "RATE = 0.2"),
    (
        "Say in a docstring of total() in {module} that prices are net, in euros.",
        _TOTAL,
        f'    """Gross, of net prices in euros."""\n{_TOTAL}',
    ),
    ("Prices that label() in {module} shows should have two decimals.", "str(price)", 'f"{price:.2f}"'),
)
"""What is asked, and what is put for what."""


def write_shop(top: Path, parts: int) -> None:
    """A committed package in a repository that exists."""
    for folder in ("shop", "tests"):
        (top / folder).mkdir()
        (top / folder / "__init__.py").write_text("", encoding="utf-8")
    for number in range(parts):
        (top / "shop" / f"part{number:02d}.py").write_text(_MODULE, encoding="utf-8")
        (top / "tests" / f"test_part{number:02d}.py").write_text(_TEST.format(number=number), encoding="utf-8")
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--no-verify", "-m", "Open the shop")


def raced(count: int) -> list[Job]:
    """One job, as often as wanted."""
    return [_job(0, 0)] * count


def similar(count: int) -> list[Job]:
    """The same wish for one module after the other."""
    return [_job(0, number) for number in range(count)]


def unrelated(count: int) -> list[Job]:
    """Different wishes, each for a module of its own, gone about in different ways."""
    return [_job(number % len(_KINDS), number, longer=number % 4) for number in range(count)]


def _job(kind: int, number: int, longer: int = 0) -> Job:
    asked, old, new = _KINDS[kind]
    module, test = f"shop/part{number:02d}.py", f"tests.test_part{number:02d}"
    looks: list[Step] = [_bash(command) for command in (f"wc -l {module}", "ls tests | head", "cat shop/__init__.py")]
    steps = (
        *looks[:longer],
        _bash(f"grep -n 'def ' {module}"),
        (("Read", {"file_path": module}), ("Read", {"file_path": f"{test.replace('.', '/')}.py"})),
        (("Edit", {"file_path": module, "old_string": old, "new_string": new}),),
        _bash(f"python3 -m unittest {test}"),
        _bash("git diff"),
        _bash("git add -A && git commit -m 'Change the shop'"),
        (),
    )
    return Job(asked.format(module=module), steps)


def _bash(command: str) -> Step:
    return (("Bash", {"command": command}),)

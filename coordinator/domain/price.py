"""What the tokens of a model cost, and how a list of prices is read.

Owns one invariant: a price is dated data that somebody wrote down; it is taken whole and within its bounds or reported,
and no missing one is made up. ``coordinator/prices.toml`` is the list that ships; an upstream's settings may add their
own. Finding a model's price and computing with it is ``policy.pricing``'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from coordinator.domain.errors import BadInput
from coordinator.domain.problem import Problem
from coordinator.domain.toml_position import read_document
from coordinator.domain.toml_table import TomlTable

_A_DAY: Final = "a day such as 2026-11-30"
_DEAREST_USD: Final = 1e6
"""Per million tokens: more is a slip of the pen."""
_LONGEST_PROMPT: Final = 1 << 40
_MODEL: Final = re.compile(r"[^\s*]+\*?|\*")
_DAY: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_RATES: Final = ("cache_read", "cache_write", "cache_write_1h", "input", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRates:
    """USD per million tokens of each class of ``TokenUsage``."""

    cache_read_usd: float
    cache_write_1h_usd: float
    cache_write_usd: float
    input_usd: float
    output_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """``models`` are ids, or beginnings of ids with ``*`` at their end. ``as_of`` is the day (ISO) on which ``source`` was
    read.

    ``long`` are the rates of a whole call, output included, whose prompt has more than ``long_above_tokens`` tokens; None:
    the length of a prompt does not matter. ``later`` are those from the day ``later_from`` (ISO) on, where they were told before;
    None: nobody has.
    """

    as_of: str = ""
    later: TokenRates | None = None
    later_from: str = ""
    long: TokenRates | None = None
    long_above_tokens: int = 0
    models: tuple[str, ...]
    rates: TokenRates
    source: str = ""

    def on(self, day: str) -> Price:
        """What it is on that day (ISO)."""
        if self.later is None or day < self.later_from:
            return self
        return replace(self, later=None, later_from="", rates=self.later)


FREE: Final = Price(
    models=("*",),
    rates=TokenRates(cache_read_usd=0, cache_write_1h_usd=0, cache_write_usd=0, input_usd=0, output_usd=0),
    source="runs on a machine of one's own",
)
"""Of whatever a model of one's own uses."""


def price_list(text: str, file: str) -> tuple[Price, ...]:
    """The prices written in the TOML ``text``. Raises ``BadInput`` with every problem found; each needs date and source."""
    document = read_document(text, file)
    if isinstance(document, Problem):
        raise BadInput([document])
    problems: list[Problem] = []
    table = TomlTable(document, document.data, problems)
    table.check_keys({"prices"})
    prices = prices_from(table, dated=True)
    if problems:
        raise BadInput(sorted(problems))
    return prices


def prices_from(table: TomlTable, *, dated: bool = False) -> tuple[Price, ...]:
    """The array ``prices`` of ``table``; what is wrong is reported there, an id that stands twice as well.

    ``dated``: each must say where it comes from and of which day it is.
    """
    prices: list[Price] = []
    seen: set[str] = set()
    for entry in table.tables("prices"):
        price = _price(entry)
        prices.append(price)
        for index, model in enumerate(price.models):
            if model in seen:
                entry.wrong("models", f'"{model}" is priced twice', "one price for each", inside=(index,))
            seen.add(model)
        for key in ("as_of", "source"):
            if dated and key not in entry:
                entry.wrong(key, "is missing", "where the price comes from, and of which day it is")
    return tuple(prices)


def _price(table: TomlTable) -> Price:
    table.check_keys({*_RATES, "as_of", "later", "long", "models", "source"})
    expected = 'ids of models, the last sign of one may be "*"'
    models = table.texts("models", expected=expected, pattern=_MODEL)
    if not table.data.get("models"):
        table.wrong("models", "prices no model", f"models = [{expected}]")
    longer = table.table("long")
    above = 0
    if longer is not None:
        longer.check_keys({*_RATES, "above_tokens"})
        above = longer.integer("above_tokens", 0, 1, _LONGEST_PROMPT)
        if "above_tokens" not in longer:
            longer.wrong("above_tokens", "is missing", "the longest prompt that still has the ordinary rates")
    later, begins = table.table("later"), ""
    if later is not None:
        later.check_keys({*_RATES, "from"})
        begins = later.text("from", expected=_A_DAY, pattern=_DAY)
        if "from" not in later:
            later.wrong("from", "is missing", _A_DAY)
        if longer is not None:
            table.wrong("later", "would leave open what long prompts cost then", "one of the two, long or later")
    return Price(
        as_of=table.text("as_of", expected=_A_DAY, pattern=_DAY),
        later=_rates(later) if later is not None else None,
        later_from=begins,
        long=_rates(longer) if longer is not None else None,
        long_above_tokens=above,
        models=models,
        rates=_rates(table),
        source=table.text("source", expected="one line"),
    )


def _rates(table: TomlTable) -> TokenRates:
    """A class of input that has no rate of its own costs what input costs."""
    for key in ("input", "output"):
        if key not in table:
            table.wrong(key, "is missing", "USD per million tokens")
    plain = table.number("input", 0.0, 0.0, _DEAREST_USD)
    written = table.number("cache_write", plain, 0.0, _DEAREST_USD)
    return TokenRates(
        cache_read_usd=table.number("cache_read", plain, 0.0, _DEAREST_USD),
        cache_write_1h_usd=table.number("cache_write_1h", written, 0.0, _DEAREST_USD),
        cache_write_usd=written,
        input_usd=plain,
        output_usd=table.number("output", 0.0, 0.0, _DEAREST_USD),
    )

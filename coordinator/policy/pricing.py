"""What calls cost: a model's price is found, a usage is priced, and the worst that a call may cost is bounded.

Owns one invariant: a model without a written price has none (None), and the worst case of a call is never less than what
its usage will cost, as long as its input is in its body. Prices are data (``domain.price``); budgets are ``policy.budget``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.domain.price import Price, TokenRates
    from coordinator.domain.usage import TokenUsage

_PER_MILLION: Final = 1e-6


def cost_usd(usage: TokenUsage, price: Price) -> float:
    """What ``usage`` costs, USD. It is one call's: the rates for long prompts look at the prompt of each call."""
    rates = _rates(price, usage.prompt_tokens)
    return _PER_MILLION * (
        usage.input_tokens * rates.input_usd
        + usage.output_tokens * rates.output_usd
        + usage.cache_read_tokens * rates.cache_read_usd
        + usage.cache_write_tokens * rates.cache_write_usd
        + usage.cache_write_1h_tokens * rates.cache_write_1h_usd
    )


def worst_case_usd(input_bytes: int, max_tokens: int, price: Price, *, tokens_per_byte: float = 1.0) -> float:
    """The most that a call may cost, USD, whose body has ``input_bytes`` and which may generate ``max_tokens``.

    *Input.* Providers' tokenizers are byte-level (BPE, or pieces with a fall-back to bytes): a token is one byte of text at
    least. Text takes as many bytes in a JSON body or more (escapes only lengthen it), and the few tokens that mark roles and
    tools are paid for by their JSON (``{"role":"user","content":`` is 25 bytes). So one token per byte is a bound for
    whatever stands in the body as text, and base64 of an image or document has more bytes than it has tokens. Prose and
    code have 3 to 4 bytes a token; whoever has seen the usage of the same conversation may pass the ratio that it had, with
    a margin, as ``tokens_per_byte``. Each token is taken as one of the dearest class, which is a cache write of the long
    life-time, because a body may ask for it anywhere.

    *Output.* ``max_tokens`` bounds what is generated, reasoning included, for each of the ``n`` answers asked for. A stream
    can be cut, so less may be reserved for it first and more as it goes on (``Reservation`` grows); an answer that comes
    whole cannot.

    Not bounded by the body, and so counted as overshoot when it happens: what the provider fetches by itself (URLs, file
    ids, earlier responses by id, server-side tools such as web search, which also cost a fee).
    """
    tokens = input_bytes * tokens_per_byte
    worst = _worst(price.rates, tokens, max_tokens)
    if price.long is not None and tokens > price.long_above_tokens:
        worst = max(worst, _worst(price.long, tokens, max_tokens))
    return worst


def _rates(price: Price, prompt_tokens: int) -> TokenRates:
    if price.long is not None and prompt_tokens > price.long_above_tokens:
        return price.long
    return price.rates


def _worst(rates: TokenRates, tokens: float, max_tokens: int) -> float:
    dearest = max(rates.input_usd, rates.cache_read_usd, rates.cache_write_usd, rates.cache_write_1h_usd)
    return _PER_MILLION * (tokens * dearest + max_tokens * rates.output_usd)


class PriceTable:
    """Prices by model. Several lists may be given; what an earlier one says of a model, a later one does not change."""

    __slots__ = ("_lists",)

    def __init__(self, *lists: Iterable[Price]) -> None:
        self._lists: tuple[tuple[dict[str, Price], tuple[tuple[str, Price], ...]], ...] = tuple(map(_indexed, lists))

    def find(self, model: str) -> Price | None:
        """Its price in the first list that has one: by its id, else by the longest beginning of it; None: nobody knows."""
        for exact, beginnings in self._lists:
            found = exact.get(model)
            if found is not None:
                return found
            for beginning, price in beginnings:
                if model.startswith(beginning):
                    return price
        return None


def _indexed(prices: Iterable[Price]) -> tuple[dict[str, Price], tuple[tuple[str, Price], ...]]:
    """By id, and the beginnings of ids, longest first."""
    exact: dict[str, Price] = {}
    beginnings: list[tuple[str, Price]] = []
    for price in prices:
        for model in price.models:
            if model.endswith("*"):
                beginnings.append((model[:-1], price))
            else:
                exact[model] = price
    return exact, tuple(sorted(beginnings, key=lambda one: len(one[0]), reverse=True))

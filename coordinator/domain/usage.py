"""What a model call used, in tokens.

Owns one invariant: the input classes are disjoint, so that each token is priced once, whatever protocol told it. Reading
an answer is the gateway's, pricing is ``policy.pricing``'s.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of one call, or of several added up.

    ``input_tokens`` are those that were neither read from the provider's prompt cache (``cache_read_tokens``) nor written to
    it (``cache_write_tokens`` for the cheaper life-time, 5 to 30 minutes; ``cache_write_1h_tokens`` for the dearer one, an
    hour or more). Anthropic counts like this; OpenAI's ``prompt_tokens`` includes ``cached_tokens``, which whoever reads the
    answer takes out. ``output_tokens`` are all that were generated, and ``reasoning_tokens`` says how many of them were not
    shown; it is never added to anything.
    """

    cache_read_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cache_write_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All that went in, of whatever class: what a price for long prompts looks at."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )

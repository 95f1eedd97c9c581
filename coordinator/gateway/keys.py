"""The keys of claims: made from the claim itself and a secret, so that nobody keeps a list.

Owns one invariant: a key is good for one generation of one task, and only who has the secret can make it. Whether that
claim still lives is not the key's to say.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from coordinator.domain.task import TASK_ID

Claim = tuple[str, int]
"""A task and its generation."""

PREFIX: Final = "cck"
_SIGNS: Final = 40
"""160 bits of the code in hexadecimal."""
_GENERATION: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_PATH: Final = re.compile(r"/agents/([^/?#]+)/([^/?#]+)(/[^#]*)")


class ClaimKeys:
    """``cck-GENERATION-CODE-TASK``; the code is HMAC-SHA256 of the claim."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def key(self, claim: Claim) -> str:
        task, generation = claim
        return f"{PREFIX}-{generation}-{self._code(claim)}-{task}"

    def claim_of(self, key: str) -> Claim | None:
        """None: no key of ours."""
        parts = key.split("-", 3)
        if len(parts) != 4 or parts[0] != PREFIX:
            return None
        claim = _claim(parts[3], parts[1])
        if claim is None or not hmac.compare_digest(parts[2].encode(), self._code(claim).encode()):
            return None
        return claim

    def _code(self, claim: Claim) -> str:
        task, generation = claim
        return hmac.new(self._secret, f"{task}\0{generation}".encode(), hashlib.sha256).hexdigest()[:_SIGNS]


def base_path(claim: Claim) -> str:
    task, generation = claim
    return f"/agents/{task}/{generation}"


def split_path(target: str) -> tuple[Claim, str] | None:
    """The claim that a request's target names, and the rest of the target; None: it names none."""
    match = _PATH.fullmatch(target)
    claim = _claim(match[1], match[2]) if match is not None else None
    return (claim, match[3]) if match is not None and claim is not None else None


def _claim(task: str, generation: str) -> Claim | None:
    if TASK_ID.fullmatch(task) is None or _GENERATION.fullmatch(generation) is None:
        return None
    return task, int(generation)

"""What stands in the path of a call in Google's protocol and elsewhere in others': the model, and at times a key.

Owns one invariant: no key of a caller's goes up in a query, and where the model was asked for by an alias, nothing else of
path and body changes. Which paths are calls is ``dialect``'s.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

_KEYS: Final = frozenset({"access_token", "key", "oauth_token"})
"""Google takes a key or a token there as well as in a header."""


def google_target(target: bytes, asked: bytes, meant: bytes) -> bytes:
    """The target as it goes up. ``asked`` is the alias for ``meant``; empty: it was none."""
    path, mark, query = target.partition(b"?")
    if asked:
        path = re.sub(rb"(/models/)%b(?=:|$)" % re.escape(asked), lambda found: found[1] + meant, path, count=1)
    if not mark:
        return path
    kept = [part for part in query.split(b"&") if unquote(part.partition(b"=")[0].decode("latin-1")) not in _KEYS]
    return b"%b?%b" % (path, b"&".join(kept)) if kept else path


def google_body(body: bytes, asked: bytes, meant: bytes) -> bytes:
    """The body with the alias replaced wherever a model is named by it: each request of a batch repeats the path's."""
    named = re.compile(rb'("model"\s*:\s*"models/)%b(?=")' % re.escape(asked))
    return named.sub(lambda found: found[1] + meant, body)

"""JSON by msgspec: the one door to it for whatever reads or writes a model call.

Owns one invariant: no input, however made, gets out of here as anything but a value, bytes or ``BadJson``.
It knows no protocol and checks no shape.
"""

from __future__ import annotations

from msgspec import json


class BadJson(Exception):
    """What was read is not JSON, or is nested too deeply to be read or written."""


def decode(data: bytes) -> object:
    """Dicts, lists, strings, numbers, booleans and None. Raises ``BadJson``."""
    try:
        return json.decode(data)
    except (ValueError, RecursionError) as error:
        raise BadJson(str(error)) from error


def encode(value: object) -> bytes:
    """Compact UTF-8 with the keys in their order. Raises ``BadJson`` for what nests too deeply or is no text."""
    try:
        return json.encode(value)
    except (ValueError, RecursionError) as error:
        raise BadJson(str(error)) from error

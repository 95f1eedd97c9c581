"""Posts a small JSON object to a URL: one that a person configured, or one of our own.

Owns one invariant: it ends within its time, whatever the other side does. It follows no redirect, so that a message goes
nowhere else than was said.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: the answer is an error like any other status that is not 2xx."""
        return


async def post(url: str, data: Mapping[str, Any], timeout_s: float, *, key: str = "") -> None:
    """Raise ``OSError`` unless the other side answered with a status of 2xx in time. With ``key`` it goes straight there,
    through no proxy."""
    thread = asyncio.to_thread(_post, url, json.dumps(data).encode(), timeout_s, key)
    await asyncio.wait_for(thread, timeout_s + 1.0)


def _post(url: str, body: bytes, timeout_s: float, key: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise OSError("it is no http or https URL")
    direct = [urllib.request.ProxyHandler({})] if key else []
    opener = urllib.request.build_opener(_NoRedirect, *direct)
    headers = {"Content-Type": "application/json", "User-Agent": "coordinator"} | ({"x-api-key": key} if key else {})
    request = urllib.request.Request(url, body, headers)
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"it answered {error.code} {error.reason}") from error
    except ValueError as error:
        raise OSError(str(error)) from error

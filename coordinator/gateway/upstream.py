"""Where calls go: one upstream for each protocol, from the settings and the daemon's environment.

Owns one invariant: a caller chooses a path out of a short list and nothing else, and the provider's key is put in here
and shown nowhere. It sends nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from coordinator.gateway.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.settings import GatewaySettings
    from coordinator.kit.http import Headers

ANTHROPIC_URL: Final = "https://api.anthropic.com"
OPENAI_URL: Final = "https://api.openai.com/v1"

_ANTHROPIC_PATHS: Final = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_OPENAI_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/embeddings", "/v1/responses"})
_MODELS: Final = re.compile(r"/v1/models(/[A-Za-z0-9._:@-]+)?")

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OURS: Final = frozenset(
    {"api-key", "authorization", "content-length", "expect", "host", "x-api-key", "x-goog-api-key"}
)
"""What is the claim's or this connection's own, and never goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """``url`` as the provider's own clients take it. ``fault``: why no call can be made, and what would help."""

    credentials: Headers = field(default=(), repr=False)
    fault: str = ""
    given: bool = False
    name: str
    url: str

    def up(self, headers: Headers) -> Headers:
        """What goes up: everything but hop-by-hop headers and the claim's key, in whose place the provider's is."""
        named = {
            word.strip().lower() for key, value in headers if key.lower() == "connection" for word in value.split(",")
        }
        drop = _HOP_BY_HOP | _OURS | named
        return (*((key, value) for key, value in headers if key.lower() not in drop), *self.credentials)


def down(headers: Headers) -> Headers:
    """What comes down: everything but hop-by-hop headers."""
    return tuple((name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP)


def retry_after_s(headers: Headers) -> float:
    """What ``Retry-After`` asks for, in seconds; 0: nothing, or in another form than seconds (no provider was seen to use it)."""
    said = next((value.strip() for name, value in headers if name.lower() == "retry-after"), "")
    return float(said) if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,3})?", said) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstreams:
    """``wanted``: whether there is to be a gateway."""

    anthropic: Upstream
    openai: Upstream
    wanted: bool

    def way(self, method: str, target: str, *, openai: bool) -> tuple[Upstream, str]:
        """The upstream and the URL for a request; ``openai``: a path that both have is meant for that one.

        Raises ``Refused``.
        """
        path, mark, query = target.partition("?")
        models = _MODELS.fullmatch(path) is not None
        if path in _ANTHROPIC_PATHS or (models and not openai):
            upstream, rest = self.anthropic, path
        elif path in _OPENAI_PATHS or models:
            upstream, rest = self.openai, path.removeprefix("/v1")
        else:
            raise Refused(404, "not_found_error", f"no model is called at {path[:100]}")
        if method != ("GET" if models else "POST"):
            raise Refused(405, "invalid_request_error", f"{path} is not called with {method}")
        if upstream.fault:
            raise Refused(401, "authentication_error", upstream.fault)
        return upstream, f"{upstream.url}{rest}{mark}{query}"

    def in_use(self) -> tuple[Upstream, ...]:
        """Those that calls can go to, or that somebody meant to be used."""
        return tuple(one for one in (self.anthropic, self.openai) if one.given or not one.fault)


def upstreams_of(settings: GatewaySettings, environment: Mapping[str, str]) -> Upstreams:
    """What the settings say comes before what the environment says. Keys are in the environment only."""
    anthropic = _upstream(
        "anthropic",
        settings.anthropic_url or environment.get("ANTHROPIC_BASE_URL", ""),
        ANTHROPIC_URL,
        {
            "ANTHROPIC_API_KEY": ("x-api-key", environment.get("ANTHROPIC_API_KEY", "")),
            "ANTHROPIC_AUTH_TOKEN": ("Authorization", _bearer(environment.get("ANTHROPIC_AUTH_TOKEN", ""))),
        },
    )
    openai = _upstream(
        "openai",
        settings.openai_url or environment.get("OPENAI_BASE_URL", ""),
        OPENAI_URL,
        {"OPENAI_API_KEY": ("Authorization", _bearer(environment.get("OPENAI_API_KEY", "")))},
    )
    wanted = settings.enabled == "on" or (settings.enabled == "auto" and (anthropic.given or openai.given))
    return Upstreams(anthropic=anthropic, openai=openai, wanted=wanted)


def _bearer(token: str) -> str:
    return f"Bearer {token.strip()}" if token.strip() else ""


def _upstream(name: str, url: str, usual: str, keys: Mapping[str, tuple[str, str]]) -> Upstream:
    """A provider's own address needs a key; another one, say a server on this machine, may do without."""
    url = url.strip().rstrip("/")
    found = {key: (header, value.strip()) for key, (header, value) in keys.items() if value.strip()}
    given = bool(url or found)
    odd = next((key for key, (_, value) in found.items() if not (value.isascii() and value.isprintable())), "")
    fault = ""
    if url and not _is_address(url):
        fault = f"the coordinator's address for {name} is no plain http or https URL"
    elif odd:
        fault = f"the coordinator's {odd} has signs in it that cannot be sent"
    elif not found and url in ("", usual):
        fault = f"the coordinator has no {next(iter(keys))}; set it where the coordinator is started"
    return Upstream(
        credentials=() if fault else tuple(found.values()), fault=fault, given=given, name=name, url=url or usual
    )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not (parts.query or parts.fragment or "@" in parts.netloc)
    return bool(plain and port_is_one and parts.scheme in ("http", "https") and parts.hostname and " " not in url)

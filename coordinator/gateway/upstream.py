"""Where calls can go: the upstreams of the settings, or those that the environment names, each with its key.

Owns one invariant: a caller chooses a protocol and a model and nothing else, and a provider's key is put in here and shown
nowhere. It sends nothing, and which upstream gets a call is ``routing``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from coordinator.domain.upstream import USUAL_URLS, UpstreamKind, UpstreamSettings, usual_upstream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from coordinator.domain.settings import GatewaySettings

Fields = tuple[tuple[bytes, bytes], ...]

_OURS: Final = frozenset(
    {b"api-key", b"authorization", b"content-length", b"expect", b"host", b"x-api-key", b"x-goog-api-key"}
)
"""What is the claim's or this connection's own, and never goes on. Hop-by-hop fields are the wire's."""
_LOCAL: Final = (UpstreamKind.LLAMA_CPP, UpstreamKind.VLLM)
_SECOND_KEY: Final[Mapping[UpstreamKind, str]] = {
    UpstreamKind.ANTHROPIC: "ANTHROPIC_AUTH_TOKEN",
    UpstreamKind.GOOGLE: "GOOGLE_API_KEY",
}
"""Anthropic's is sent as well when it is there, as its own clients do; Google's when there is no other."""
_SUBSCRIPTION: Final = "CLAUDE_CODE_OAUTH_TOKEN"
"""What Claude agents work with who have no key. No upstream takes it, so while a gateway runs they reach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """``url`` as the provider's own clients take it, ``base`` the path that stands before a call's own. ``fault``: why no call
    can be made, and what would help. ``given``: somebody meant it to be used."""

    base: bytes = b""
    credentials: Fields = field(default=(), repr=False)
    fault: str = ""
    given: bool = False
    settings: UpstreamSettings
    url: str

    @property
    def kind(self) -> UpstreamKind:
        return self.settings.kind

    @property
    def name(self) -> str:
        return self.settings.name

    def up(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What goes up: everything but the claim's key, in whose place the provider's is."""
        fields = [pair for pair in headers if pair[0].lower() not in _OURS]
        fields += self.credentials
        return fields

    def hushed(self, text: bytes) -> bytes:
        """Without its keys, which some errors repeat: "Consumer 'api_key:…' has been suspended"."""
        for _, value in self.credentials:
            text = text.replace(value.removeprefix(b"Bearer "), b"(the key)")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstreams:
    """``wanted``: whether there is to be a gateway."""

    known: tuple[Upstream, ...]
    wanted: bool

    def in_use(self) -> tuple[Upstream, ...]:
        """Those that calls can go to, or that somebody meant to be used."""
        return tuple(one for one in self.known if one.given or not one.fault)


def upstreams_of(settings: GatewaySettings, environment: Mapping[str, str]) -> Upstreams:
    """What the settings list, else what they and the environment name. Keys are in the environment only."""
    described = settings.upstreams or tuple(_usual(settings, environment))
    known = tuple(_upstream(one, environment, listed=bool(settings.upstreams)) for one in described)
    given = [one for one in known if one.given]
    if not settings.upstreams and environment.get(_SUBSCRIPTION, "").strip():
        given = [
            one for one in given if one.kind is not UpstreamKind.GOOGLE
        ]  # many a shell has its key for other reasons
    wanted = settings.enabled == "on" or (settings.enabled == "auto" and bool(given))
    return Upstreams(known=known, wanted=wanted)


def _usual(settings: GatewaySettings, environment: Mapping[str, str]) -> Iterator[UpstreamSettings]:
    """The providers, which take whatever model they are asked for unless a server of one's own takes the rest."""
    own = [kind for kind in _LOCAL if environment.get(usual_upstream(kind, kind.value).url_env, "").strip()]
    rest = () if own else ("*",)
    for kind, url in (
        (UpstreamKind.ANTHROPIC, settings.anthropic_url),
        (UpstreamKind.OPENAI, settings.openai_url),
        (UpstreamKind.GOOGLE, settings.google_url),
    ):
        usual = usual_upstream(kind, kind.value)
        yield replace(usual, models=(*usual.models, *rest), url=url)
    for kind in own:
        yield usual_upstream(kind, kind.value)


def _upstream(settings: UpstreamSettings, environment: Mapping[str, str], *, listed: bool) -> Upstream:
    """A provider's own address needs a key; another one, say a server on this machine, may do without."""
    kind, url = settings.kind, settings.address(environment)
    names = _key_names(settings)
    found = {name: environment.get(name, "").strip() for name in names if environment.get(name, "").strip()}
    if kind is UpstreamKind.GOOGLE:
        found = dict(tuple(found.items())[:1])  # two of one header are none
    odd = next((name for name, value in found.items() if not (value.isascii() and value.isprintable())), "")
    told = settings.url or environment.get(settings.url_env, "").strip()
    fault = ""
    if kind is UpstreamKind.ECHO:
        return Upstream(given=True, settings=settings, url="echo")
    if not _is_address(url):
        fault = f"the coordinator's address for {settings.name} is no plain http or https URL"
    elif odd:
        fault = f"the coordinator's {odd} has signs in it that cannot be sent"
    elif not found and kind not in _LOCAL and url == USUAL_URLS[kind]:
        fault = f"the coordinator has no {names[0] if names else 'key_env'}; set it where the coordinator is started"
    return Upstream(
        base=b"" if fault else urlsplit(url).path.rstrip("/").encode(),
        credentials=() if fault else tuple(_credential(kind, name, value) for name, value in found.items()),
        fault=fault,
        given=bool(listed or told or found),
        settings=settings,
        url=url,
    )


def _key_names(settings: UpstreamSettings) -> list[str]:
    """Variables that may hold its keys. Google's second stands for the usual first alone, not for a key of one's own."""
    second = _SECOND_KEY.get(settings.kind, "")
    if settings.kind is UpstreamKind.GOOGLE and settings.key_env != usual_upstream(settings.kind, "").key_env:
        second = ""
    return [name for name in (settings.key_env, second) if name]


def _credential(kind: UpstreamKind, name: str, value: str) -> tuple[bytes, bytes]:
    if kind is UpstreamKind.ANTHROPIC and name != _SECOND_KEY[kind]:
        return b"x-api-key", value.encode()
    if kind is UpstreamKind.GOOGLE:
        return b"x-goog-api-key", value.encode()
    return b"Authorization", b"Bearer " + value.encode()


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not (parts.query or parts.fragment or "@" in parts.netloc)
    return bool(plain and port_is_one and parts.scheme in ("http", "https") and parts.hostname and " " not in url)

"""An upstream: one place where model calls are answered, as the settings describe it, and what each kind usually is.

Owns one invariant: a key is never part of it, only the name of the environment variable that holds one. ``upstream_config``
reads what a person wrote; choosing among upstreams and calling them is the gateway's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, assert_never

from coordinator.domain.price import FREE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.price import Price


class UpstreamKind(enum.StrEnum):
    """What answers, and so which protocol it speaks and how it says that it is too much."""

    ANTHROPIC = "anthropic"
    ECHO = "echo"
    GOOGLE = "google"
    LLAMA_CPP = "llama_cpp"
    OPENAI = "openai"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """One ``[[gateway.upstreams]]``. The defaults here are those of every kind; ``usual_upstream`` adds what a kind has of
    its own."""

    affinity: bool = True
    """Whether calls of one conversation go to the same upstream while it is well, so that its prompt cache stays warm. Off
    spreads single calls more evenly, which pays only where nothing is cached."""
    connect_s: float = 10.0
    """How long a connection may take to come about, TLS included. A provider needs 0.1 s; past ten, another is tried."""
    first_byte_s: float = 600.0
    """How long the first byte of an answer may take, counted from the request's last. An answer that is not streamed comes
    whole and may take minutes to write; agent CLIs give up by themselves after 360 s."""
    key_env: str = ""
    """Name of the environment variable that holds the key. Empty: no key is sent, as servers of one's own want it."""
    kind: UpstreamKind
    """``anthropic``, ``google``, ``openai``, ``llama_cpp``, ``vllm``, or ``echo`` (embedded: answers without a model, for trying
    out)."""
    max_concurrency: int = 0
    """Calls that it holds at once, at most; for a server of one's own the number of its slots. 0: not known; what it refuses
    teaches the limit, but a limit that is far too low is learned from nobody."""
    models: tuple[str, ...] = ("*",)
    """Models that it answers for, as globs of their ids. A call goes to none that does not have its model."""
    name: str
    """What it is called in logs, metrics and commands; each name stands once."""
    owner: str = ""
    """Whose money it spends. Answers are never shared between owners. Empty: everybody's."""
    prices: tuple[Price, ...] = ()
    """Prices that come before the list that ships (``prices.toml``). A server of one's own is free unless told otherwise."""
    requests_per_s: float = 0.0
    """Calls started per second, at most, over all agents. 0: not limited here; what it refuses teaches the pace."""
    silence_s: float = 300.0
    """How long an answer may stand still once it has begun. Agent CLIs give up after 300 s; pings count as signs of life."""
    url: str = ""
    """Where it is, as its own clients take it: ``openai`` with ``/v1``, the others without. Empty: what ``url_env`` says, else
    the usual address of its kind."""
    url_env: str = ""
    """Name of the environment variable that holds the address when ``url`` does not say it. Empty: none does."""
    weight: float = 1.0
    """Its share of the calls for a model that several have. 0: only when no other can answer."""

    def address(self, environment: Mapping[str, str]) -> str:
        """The URL, without a slash at its end: the settings' own, else the environment's, else the usual; ``echo`` has none."""
        told = self.url or (environment.get(self.url_env, "").strip() if self.url_env else "")
        return (told or USUAL_URLS[self.kind]).rstrip("/")


USUAL_URLS: Final[Mapping[UpstreamKind, str]] = MappingProxyType(
    {
        UpstreamKind.ANTHROPIC: "https://api.anthropic.com",
        UpstreamKind.ECHO: "",
        UpstreamKind.GOOGLE: "https://generativelanguage.googleapis.com",
        UpstreamKind.LLAMA_CPP: "http://localhost:8080",  # llama-server's own default port
        UpstreamKind.OPENAI: "https://api.openai.com/v1",
        UpstreamKind.VLLM: "http://localhost:8000",  # vllm serve's
    }
)
"""Where a kind is when nobody says otherwise."""


def usual_upstream(kind: UpstreamKind, name: str) -> UpstreamSettings:
    """An upstream of ``kind`` of which nothing more is said."""
    match kind:
        case UpstreamKind.ANTHROPIC:
            return UpstreamSettings(
                kind=kind, name=name, key_env="ANTHROPIC_API_KEY", models=("claude-*",), url_env="ANTHROPIC_BASE_URL"
            )
        case UpstreamKind.GOOGLE:
            return UpstreamSettings(
                kind=kind,
                name=name,
                key_env="GEMINI_API_KEY",
                models=("gemini-*",),
                url_env="GOOGLE_GEMINI_BASE_URL",
            )
        case UpstreamKind.OPENAI:
            return UpstreamSettings(
                kind=kind,
                name=name,
                key_env="OPENAI_API_KEY",
                models=("gpt-*", "o[0-9]*", "codex-*", "chatgpt-*", "text-embedding-*"),
                url_env="OPENAI_BASE_URL",
            )
        case UpstreamKind.LLAMA_CPP:
            return UpstreamSettings(kind=kind, name=name, prices=(FREE,), url_env="LLAMA_CPP_URL")
        case UpstreamKind.VLLM:
            return UpstreamSettings(kind=kind, name=name, prices=(FREE,), url_env="VLLM_URL")
        case UpstreamKind.ECHO:
            return UpstreamSettings(kind=kind, name=name, models=("echo", "echo-*"), prices=(FREE,))
        case _:
            assert_never(kind)

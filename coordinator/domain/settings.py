"""The one frozen tree of settings and its defaults (``domain.config`` validates).

Built once from ``coordinator.toml`` or ``[tool.coordinator]`` in ``pyproject.toml``; everything is optional. Every field
is followed by its docstring: unit, default's reason, consequence. Unknown keys and wrong values are reported all at once
and nothing starts; this module reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.domain.control_settings import ControlSettings, RouterSettings, ScaleSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.domain.price import Price
    from coordinator.domain.role_route import RoleRoute
    from coordinator.domain.upstream import UpstreamSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """Where things are, relative to the repository's top folder."""

    agents: str = "agents"
    """Folder of role cards; built-in cards are used for roles it does not have."""
    state: str = ".coordinator"
    """Folder of run-time state; ignored by git through a ``.gitignore`` of its own."""
    tasks: str = "tasks"
    """The spool. Read recursively; never written except ``auto/`` below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How many agents run and how patient we are with them."""

    agents: int = 4
    """Agent processes at most, 1…100. 4 is what a laptop carries beside its user's work."""
    crash_loop: int = 5
    """A task whose agents died this many times in a row soon after their start is held, 2…100: more of it helps nobody."""
    finish_s: float = 30.0
    """An agent that has said its last word and still runs after this is stopped; what it left is judged all the same. A CLI
    that is asked to end flushes its transcript within 3 s; background work it started may need a little longer."""
    loop_repeats: int = 8
    """The same call (or round of up to four calls) with the same answer this many times in a row is a loop, 3…1000: who tries
    again for a reason does so two or three times. Less often than every 10 s it is polling: then five times as many are, and
    none while processes or files move beside it."""
    quick_death_s: float = 60.0
    """A crash within this time of its start counts for ``crash_loop``."""
    ramp_s: float = 1.0
    """Pause between the starts of two agent processes. A coding agent needs about 1 CPU second to start: all at once, they
    starve each other and the machine."""
    stall_s: float = 600.0
    """An agent with no model call or tool in flight whose output, processor time and files all stand still for this long is
    stopped as stalled. Longer than ``think_limit_s``, so that an agent has tried again by itself before; a role whose agents
    are always noisy may be less patient (``stall`` in its card)."""
    think_limit_s: float = 390.0
    """How long an agent that waits for its model is believed to, since its last sign, while no gateway tells; only then does
    ``stall_s`` count. Agent CLIs give a silent call up after 360 s and say so; half a minute more is for saying it."""
    tool_limit_s: float = 1800.0
    """How long a tool that declared no time-out may be in flight, without a sign of life, before it counts as stalled."""
    backoff_s: float = 5.0
    """Pause before the first retry of a task; doubles with each further one, up to 300 s, with ±25 % jitter."""
    default_role: str = "command"
    """Role of tasks that name none."""
    drain_s: float = 60.0
    """On a stop, how long the gate may go on once the last agent has ended; what is not judged then is at the next start."""
    grace_s: float = 10.0
    """Time between SIGTERM and SIGKILL when an attempt is stopped."""
    heartbeat_s: float = 5.0
    """How often an agent touches its heartbeat file."""
    idle_exit_s: float = 10.0
    """An agent process that found nothing to claim for this long ends; the daemon starts another when there is work."""
    max_attempts: int = 3
    """Attempts that may fail before a task is failed, 1…100; a broken gate is not charged."""
    min_free_bytes: int = 512 * 1024 * 1024
    """No attempt is started with less free disk than this; 0 switches the check off."""
    min_free_memory_bytes: int = 256 * 1024 * 1024
    """No attempt is started with less memory available than this; 0 switches the check off."""
    rescan_s: float = 30.0
    """Full re-read of the spool: watchers lose news silently, a re-scan does not."""
    silence_s: float = 120.0
    """An attempt whose heartbeat is older than this while its claim is still held is stopped as crashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """What must hold on the merged tree before anything lands."""

    batch: int = 8
    """Attempts judged together at most, 1…100; a failing batch is bisected."""
    commands: tuple[str, ...] = ()
    """Shell command lines that must not get worse than on the target; empty: detected from the project's files."""
    env: tuple[str, ...] = ()
    """Names of variables let through to the gate's commands beside PATH, HOME and the locale."""
    memory_bytes: int = 8 * 1024 * 1024 * 1024
    """What all processes of a check together may have in memory, looked at every second; a check that has more is stopped.
    0: no limit. Address space is not limited: it is not memory, and node and WebAssembly reserve tens of GiB of it."""
    output_bytes: int = 64 * 1024 * 1024
    """Output kept of one check; a check that prints more is stopped and the gate is broken."""
    python: str = ""
    """Interpreter for the project's tests; empty: the project's ``.venv``, else the coordinator's own."""
    retry_s: float = 30.0
    """Pause before a broken gate is tried again."""
    timeout_s: float = 900.0
    """Wall time of one check."""
    untested: str = "stop"
    """When the project's tests cannot be run here, ``stop`` lets only ``autofix`` land (fixes that ruff calls safe), other
    tasks wait; ``land`` lets everything land. Either way what landed untested is marked in its commit and told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What model calls of agents pass through. Keys are never written here: they are in the daemon's environment
    (``ANTHROPIC_API_KEY``, ``OPENAI_API_KEY``, ``GEMINI_API_KEY`` and so on), and no agent sees them."""

    agent_calls_per_s: float = 0.0
    """Calls that one agent may begin in a second, on average; more wait. 0: as many as it likes."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """``[gateway.aliases]``: a name that agents ask for, and the model that is meant. A call under an alias is changed by
    that one word on its way up; every other call goes up byte for byte."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that clients may call it by (HTTP's ``Host``, without the port) beside this machine's own, say that of a proxy
    before it. Any other name is refused: a web page may have led a browser here under it."""
    anthropic_url: str = ""
    """Where calls in Anthropic's protocol go, without ``/v1``. Empty: ``ANTHROPIC_BASE_URL`` of the daemon's environment,
    else Anthropic itself. Another address than the provider's own needs no key."""
    body_bytes: int = 64 * 1024 * 1024
    """The largest request body. What agents send is 0.01 to 2 MB; images and documents make it more."""
    breaker_window: int = 0
    """Calls over which ``open_rate`` is judged. 0: failures open a breaker only when they come in a row."""
    call_budget_usd: float = 0.0
    """What one call may cost; a stream that reaches it is cut. 0: no limit."""
    calls_per_agent: int = 64
    """Calls of one agent at one time. An agent with ten subagents makes a dozen."""
    close_rate: float = 1.0
    """Share of ``probes_to_close`` that must be answered before a breaker closes."""
    day_budget_usd: float = 0.0
    """What all calls of a day (UTC) may cost together. 0: no limit."""
    dedup: str = "strict"
    """Identical calls at the same time share one upstream call. ``strict``: they differ in nothing that a model sees;
    ``loose``: also not counting the date and the state of git, which an answer may depend on; ``off``."""
    dedup_across_owners: bool = False
    """Whether calls that spend different owners' money (``owner`` of an upstream) may share one: then one owner pays for what
    another one is told, and one sees what the other asks for by how fast it is answered."""
    enabled: str = "auto"
    """``on``, ``off``, or ``auto``: on when there is a provider's key or URL, here or in the daemon's environment."""
    failures_to_open: int = 3
    """So many failures of an upstream in a row, for one model, keep further calls away from it (circuit breaker). Of 5 with a
    pause of 60 s, a burst of errors of 30 s cost two minutes; of 3 with probes every 5 s, five seconds."""
    fleet_calls_per_s: float = 0.0
    """Calls that all agents together may begin in a second, on average; more wait. 0: as many as they like."""
    google_url: str = ""
    """Where calls in Google's protocol go, without ``/v1beta``. Empty: ``GOOGLE_GEMINI_BASE_URL``, else Google itself."""
    hold_s: float = 120.0
    """How long a call may be held for a limit of its upstream. Clients give a silent call up after 360 s; a longer wait is
    told as ``retry-after`` of at most 60 s, which they keep to."""
    host: str = "127.0.0.1"
    """Address to listen at. ``0.0.0.0`` (``::`` with IPv6) or one of this machine's addresses in a network lets others in who
    have a key; it is not encrypted. Programs of this machine are told the address that they can reach."""
    longest_probe_s: float = 320.0
    """What the pause between probes grows to at most, where ``probe_growth`` makes it grow."""
    open_rate: float = 0.5
    """Share of the last ``breaker_window`` calls that must have failed to open a breaker, though none fail in a row."""
    openai_url: str = ""
    """Where calls in OpenAI's protocol go, with ``/v1``. Empty: ``OPENAI_BASE_URL``, else OpenAI itself."""
    port: int = 0
    """Port to listen at. 0: one is chosen once and kept, so that agents find the next daemon where the last one was."""
    prices: tuple[Price, ...] = ()
    """``[[gateway.prices]]``: what models cost; they come before the list that ships with the coordinator."""
    probe_every_s: float = 5.0
    """While a breaker keeps calls away, one is let through this often; its first byte closes the breaker."""
    probe_growth: float = 1.0
    """Each failed round of probes makes the pause before the next longer by this factor; 1 keeps it as it is."""
    probes_to_close: int = 1
    """Probes in a round, of which ``close_rate`` must be answered before a breaker closes."""
    promote_s: float = 30.0
    """A waiting call counts as one priority better for each time it has waited this long, so that none starves."""
    retries: int = 2
    """How often a call that failed by the upstream's fault is sent again, or elsewhere, before a byte of an answer was
    passed on. Clients try again themselves; this spares them the pause."""
    retry_share: float = 0.2
    """Retries may make up this share of all calls at most: when everything fails, trying again is what keeps it failing."""
    roles: Mapping[str, RoleRoute] = field(default_factory=dict)
    """``[gateway.roles.NAME]``: the ``model`` and the ``upstream`` that calls of a role go to, whatever its agents ask for."""
    room: int = 512
    """Calls that may wait for an upstream; more are turned away at once."""
    stall_s: float = 300.0
    """A client that has taken nothing of its answer for so long, though there is more for it, is hung up on: its chair and what
    is set aside for it are wanted by others."""
    total_budget_usd: float = 0.0
    """What all calls together may cost since the book was begun. 0: no limit."""
    upstreams: tuple[UpstreamSettings, ...] = ()
    """``[[gateway.upstreams]]``; empty: what ``anthropic_url``, ``google_url``, ``openai_url`` and the environment name."""
    width: int = 256
    """Calls under way at all upstreams together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandSettings:
    """Where finished work goes."""

    author_email: str = "coordinator@localhost"
    """E-mail of the committer of landed commits."""
    author_name: str = "coordinator"
    """Name of the committer of landed commits; also the author's when an agent left its work uncommitted."""
    hooks: bool = False
    """Whether the repository's own git hooks run on our commits. Off: hooks are code that an agent may have written."""
    target: str = "coordinator/main"
    """Branch that work lands on; created at HEAD when missing, moved forward with HEAD's branch while it can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSettings:
    """One ``[[discovery.tool]]``: how a tool is found and run, and how often."""

    arguments: tuple[str, ...] = ()
    """Added to the tool's command line by every scan."""
    commands: tuple[str, ...] = ()
    """For ``sarif``: shell lines that print SARIF, run in a clean tree of the target."""
    cron: str = ""
    """When to scan with it, as five cron fields in local time; empty: every ``interval_s``."""
    env: tuple[str, ...] = ()
    """Variables of the daemon's environment that the tool sees besides those that ``[gate] env`` lets through."""
    files: tuple[str, ...] = ()
    """For ``sarif-file``: SARIF files, from the repository's top folder or absolute."""
    inside: bool = False
    """Whether a program from inside the project may be run (``node_modules/.bin``). Who may commit can then run programs
    here, with your rights, by being scanned."""
    interval_s: float | None = None
    """Pause between its scans; None: that of ``[discovery]``."""
    max_open: int | None = None
    """Its tasks that may be open at a time; None: ``max_open_per_tool`` of ``[discovery]``."""
    memory_bytes: int = 4 * 1024**3
    """What all its processes together may have in memory, 0 for no limit. A type checker on a large project needs 2 GiB."""
    name: str
    """Which tool."""
    output_bytes: int = 64 * 1024 * 1024
    """What it may print, all of which is read at one go. A report on a tree of a million lines is about 12 MB."""
    path: str = ""
    """The program, absolute or from the repository's top folder; empty: the project's virtual environment, then PATH."""
    timeout_s: float = 300.0
    """How long one scan may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DismissedSettings:
    """``[[discovery.dismissed]]``: findings of a rule, or about an advisory by any of its ids, that are to stay."""

    path: str = ""
    """Glob of the files; empty: all."""
    reason: str
    """Why, for whoever asks later."""
    rule: str
    tool: str = ""
    """Empty: whichever tells of it."""
    until: str = ""
    """The last day on which it holds (``2027-01-31``); empty: for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverySettings:
    """What is looked for without being asked (``--self-improve`` or ``scan``)."""

    dismissed: tuple[DismissedSettings, ...] = ()
    """``[[discovery.dismissed]]``: what is known and lived with, for everybody who has the repository."""
    extra_tools: tuple[str, ...] = ()
    """Tools to scan with besides those that the project calls for (``mypy``, ``vulture`` and so on)."""
    interval_s: float = 3600.0
    """Pause between full scans; a landing re-scans by itself what it touched."""
    max_open: int = 20
    """Tasks made from findings that may be open at a time, so that they never bury a person's."""
    max_open_per_tool: int = 10
    """Of one tool, so that one that cries at everything leaves room for the others."""
    model_severity: str = "low"
    """The mildest severity of which a task for a model is made: ``critical``, ``high``, ``medium``, ``low`` or ``info``."""
    priority: int = 50
    """Priority of a task made from findings of medium severity; worse ones come before, milder ones after."""
    role: str = ""
    """Role of tasks for findings that no tool can mend safely; empty: they are listed, and left to you."""
    select: tuple[str, ...] = ()
    """Ruff rules to select; empty: the project's own configuration, else a fixed conservative set."""
    tool: tuple[ToolSettings, ...] = ()
    """``[[discovery.tool]]``: how single tools are found, run and how often."""
    tools: tuple[str, ...] = ()
    """Tools to scan with, and no others; empty: those that the project calls for."""
    without_tools: tuple[str, ...] = ()
    """Tools not to scan with."""

    @property
    def named_tools(self) -> tuple[str, ...]:
        """Those that somebody named, so that it need not be guessed whether the project wants them."""
        return tuple(dict.fromkeys((*self.tools, *self.extra_tools)))

    def of_tool(self, name: str) -> ToolSettings:
        """The table of one tool, or the defaults."""
        return next((one for one in self.tool if one.name == name), ToolSettings(name=name))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Overridden by the environment variables ``LOG_FORMAT`` and ``LOG_LEVEL``."""

    format: str = "text"
    """``text`` or ``json`` (one object a line)."""
    level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""


OCCASIONS = (
    "agent_stopped",
    "budget",
    "daemon_ready",
    "daemon_stopped",
    "fleet_idle",
    "gate_broken",
    "gate_mended",
    "incident",
    "incident_ended",
    "role_mended",
    "role_paused",
    "task_failed",
    "task_held",
    "task_landed",
)
"""What a person may want to be called for (``policy.notify`` says when each has come)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyHook:
    """One ``[[notify]]``: whom to tell what. Exactly one of ``command``, ``url`` and ``url_env`` is set."""

    command: tuple[str, ...] = ()
    """Program and arguments; gets the message as JSON on its standard input."""
    on: tuple[str, ...] = ("gate_broken", "role_paused", "task_failed", "task_held")
    """Occasions. The default is what needs a person."""
    retries: int = 3
    """How often a message that was not taken is tried again, with pauses of 1, 2, 4 … s."""
    timeout_s: float = 10.0
    """What one try may take. Messages of a hook go one after the other, so a slow one delays only its own."""
    url: str = ""
    """The message is posted there as JSON; its key ``text`` is what chat systems show."""
    url_env: str = ""
    """Name of an environment variable that holds the URL, for URLs that are secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSettings:
    """How long what ended attempts left is kept. Work that did not land keeps its rescue ref for ever, whatever is set here:
    it is nowhere else."""

    attempts_days: float = 14.0
    """Folders of ended attempts (brief, logs, transcript, result) and homes of settled tasks go when they are older, days;
    0: never. Two weeks, so that whoever comes back from a holiday can still ask why. A task that is not settled keeps its
    newest attempt and its home."""
    max_bytes: int = 5 * 1024 * 1024 * 1024
    """Together they take no more than this; the oldest go first. A night of 24 agents leaves about 1 GiB. 0: no limit."""
    rescue_days: float = 30.0
    """Rescue refs of attempts that landed go when they are older, days; 0: never. What landed is on the target; beside it
    they hold files that the project ignores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Spans for OpenTelemetry (``pip install 'agent-fleet-coordinator[otel]'``): a trace for each attempt, with its model calls.
    Where they go is said by the standard variables, ``OTEL_EXPORTER_OTLP_ENDPOINT`` and its kin."""

    export: str = "auto"
    """``on``, ``off``, or ``auto``: on when ``OTEL_EXPORTER_OTLP_ENDPOINT`` says where to. No prompt and no answer is in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured."""

    control: ControlSettings = field(default_factory=ControlSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    land: LandSettings = field(default_factory=LandSettings)
    log: LogSettings = field(default_factory=LogSettings)
    notify: tuple[NotifyHook, ...] = ()
    paths: PathSettings = field(default_factory=PathSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    scale: ScaleSettings = field(default_factory=ScaleSettings)
    traces: TraceSettings = field(default_factory=TraceSettings)

"""The table of discovery tools: every adapter there is, by name, in the order in which a scan asks them.

Owns one invariant: a name in it is the adapter's own, and one that settings may use (``domain.discovery_config``).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from coordinator.checks.cargo_audit import CargoAudit
from coordinator.checks.cargo_check import CargoCheck, CargoClippy
from coordinator.checks.deptry_requirements import Deptry
from coordinator.checks.eslint_code import Eslint
from coordinator.checks.failing_tests import FailingTests
from coordinator.checks.mypy_types import Mypy
from coordinator.checks.npm_audit import NpmAudit
from coordinator.checks.pip_audit import PipAudit
from coordinator.checks.pyright_types import Pyright
from coordinator.checks.ruff_format import RuffFormat
from coordinator.checks.ruff_lint import RuffLint
from coordinator.checks.sarif_tools import SarifCommands, SarifFiles
from coordinator.checks.vulture_code import Vulture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.checks.adapter import ToolAdapter
    from coordinator.domain.settings import DiscoverySettings

_ALL: Final[tuple[ToolAdapter, ...]] = (
    RuffLint(),
    RuffFormat(),
    PipAudit(),
    NpmAudit(),
    CargoAudit(),
    SarifCommands(),
    SarifFiles(),
    Mypy(),
    Pyright(),
    Vulture(),
    Deptry(),
    Eslint(),
    CargoCheck(),
    CargoClippy(),
    FailingTests(),
)

ADAPTERS: Final[Mapping[str, ToolAdapter]] = MappingProxyType({adapter.name: adapter for adapter in _ALL})


def chosen(settings: DiscoverySettings) -> tuple[ToolAdapter, ...]:
    """Those that a scan asks when it is told no names: the settings', else all that are standard; with and without those that
    are named besides."""
    asked = settings.tools or tuple(name for name, adapter in ADAPTERS.items() if adapter.standard)
    names = dict.fromkeys((*asked, *(name for name in ADAPTERS if name in settings.extra_tools)))
    return tuple(ADAPTERS[name] for name in names if name not in settings.without_tools)

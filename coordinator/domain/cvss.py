"""The base score of a CVSS v3 vector, by section 7.1 of the specification of CVSS v3.1.

Owns one invariant: what is no whole vector of version 3.0 or 3.1 has no score. Vectors of version 4.0 are scored by a table of
270 classes and not by a formula, and have none here. The words for a score are ``domain.finding.severity_of_cvss``'s.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

_NUMBERS: Final = MappingProxyType(
    {
        "AC": {"H": 0.44, "L": 0.77},
        "AV": {"A": 0.62, "L": 0.55, "N": 0.85, "P": 0.2},
        "A": {"H": 0.56, "L": 0.22, "N": 0.0},
        "C": {"H": 0.56, "L": 0.22, "N": 0.0},
        "I": {"H": 0.56, "L": 0.22, "N": 0.0},
        "PR": {"H": 0.27, "L": 0.62, "N": 0.85},
        "S": {"C": 1.0, "U": 0.0},
        "UI": {"N": 0.85, "R": 0.62},
    }
)
_PRIVILEGES_WHERE_SCOPE_CHANGES: Final = MappingProxyType({"H": 0.5, "L": 0.68, "N": 0.85})


def base_score(vector: str) -> float | None:
    """0 to 10, of ``CVSS:3.1/AV:N/AC:L/…``; None for anything else."""
    version, *parts = vector.split("/")
    told = dict(part.split(":", 1) for part in parts if ":" in part)
    if version not in {"CVSS:3.0", "CVSS:3.1"} or not all(told.get(name) in of for name, of in _NUMBERS.items()):
        return None
    at = {name: of[told[name]] for name, of in _NUMBERS.items()}
    changed = told["S"] == "C"
    privileges = _PRIVILEGES_WHERE_SCOPE_CHANGES[told["PR"]] if changed else at["PR"]
    lost = 1 - (1 - at["C"]) * (1 - at["I"]) * (1 - at["A"])
    impact = 7.52 * (lost - 0.029) - 3.25 * (lost - 0.02) ** 15 if changed else 6.42 * lost
    if impact <= 0:
        return 0.0
    exploitability = 8.22 * at["AV"] * at["AC"] * privileges * at["UI"]
    whole = 1.08 * (impact + exploitability) if changed else impact + exploitability
    return _rounded_up(min(whole, 10.0))


def _rounded_up(score: float) -> float:
    """To one decimal; by whole numbers, as appendix A has it, because 4.02 would else become 4.1 here and 4.2 there."""
    whole = round(score * 100_000)
    return whole / 100_000 if whole % 10_000 == 0 else (whole // 10_000 + 1) / 10

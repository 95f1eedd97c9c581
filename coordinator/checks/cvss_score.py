"""The base score of a CVSS vector, by the library `cvss`: by formula for version 3, by the specification's classes for 4.0.

Owns one invariant: what is no whole vector of version 3 or 4 has no score. The words for a score are
``domain.finding.severity_of_cvss``'s.
"""

from __future__ import annotations


def base_score(vector: str) -> float | None:
    """0 to 10, of ``CVSS:3.1/AV:N/AC:L/…`` or ``CVSS:4.0/AV:N/AC:L/AT:N/…``; None for anything else."""
    from cvss import CVSS3, CVSS4  # its tables take 20 ms, and few scans need them
    from cvss.exceptions import CVSSError

    kind = CVSS4 if vector.startswith("CVSS:4") else CVSS3
    try:
        return float(kind(vector).base_score)
    except CVSSError:
        return None

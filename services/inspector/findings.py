"""What is worth knowing about an artifact or a machine, worst first.

Knows nothing of how it was found.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from octavo.v1 import inspector_pb2 as pb

# A broken file can have a finding for each of its tensors; nobody reads more than these.
_LIMIT: Final = 200


def info(code: str, subject: str, message: str, advice: str = "") -> pb.InspectionFinding:
    """Good to know."""
    return _finding(pb.FINDING_SEVERITY_INFO, code, subject, message, advice)


def warning(code: str, subject: str, message: str, advice: str) -> pb.InspectionFinding:
    """Works, but not as well as it should."""
    return _finding(pb.FINDING_SEVERITY_WARNING, code, subject, message, advice)


def error(code: str, subject: str, message: str, advice: str) -> pb.InspectionFinding:
    """Does not work, or must not be used."""
    return _finding(pb.FINDING_SEVERITY_ERROR, code, subject, message, advice)


def ranked(findings: Iterable[pb.InspectionFinding]) -> list[pb.InspectionFinding]:
    """Worst first, otherwise in the order given; says how many are left out beyond the limit."""
    ordered = sorted(findings, key=lambda finding: -finding.severity)
    if len(ordered) <= _LIMIT:
        return ordered
    rest = f"{len(ordered) - _LIMIT} more findings are left out"
    return [*ordered[:_LIMIT], info("findings-left-out", "", rest)]


def _finding(
    severity: pb.FindingSeverity.ValueType, code: str, subject: str, message: str, advice: str
) -> pb.InspectionFinding:
    return pb.InspectionFinding(severity=severity, code=code, subject=subject[:400], message=message, advice=advice)

"""What the inspector can be told."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.addresses import PORTS
from octavo.serving import ProgramSettings


@dataclass(frozen=True, kw_only=True)
class InspectorSettings(ProgramSettings):
    """The inspector's own settings; sizes in bytes."""

    port: int = PORTS["inspector"]
    threads: int = 4
    """Questions answered at once; others wait."""
    header_read_limit_bytes: int = 256 << 20
    """The most that one question about headers may fetch."""
    value_read_limit_bytes: int = 16 << 30
    """The most that one question about values may fetch."""

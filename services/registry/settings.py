"""What the registry can be told, beyond what every program can."""

from dataclasses import dataclass
from pathlib import Path

from octavo.addresses import PORTS
from octavo.serving.settings import ProgramSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """`OCTAVO_REGISTRY_<FIELD>`."""

    port: int = PORTS["registry"]
    """The port to listen on; 0 takes a free one."""
    database_url: str = ""
    """Where the tables are, as SQLAlchemy writes it; empty: `registry/registry.db` below `data_dir`."""
    max_blob_bytes: int = 16 << 30
    """The largest blob, in bytes."""
    reserve_bytes: int = 64 << 20
    """What uploads leave free on the disk, in bytes: the database needs room to say that it has none."""
    upload_expiry_s: float = 24 * 3600.0
    """How long an upload that nobody goes on with is kept, in seconds."""
    poll_s: float = 1.0
    """How often watches look for changes that another process made, in seconds."""

    def __post_init__(self) -> None:
        """Refuses what cannot work. Raises SettingsError."""
        ProgramSettings.__post_init__(self)
        for name in ("max_blob_bytes", "upload_expiry_s", "poll_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} {getattr(self, name)} is not above 0")
        if self.reserve_bytes < 0:
            raise SettingsError(f"reserve_bytes {self.reserve_bytes} is negative")

    @property
    def directory(self) -> Path:
        """The registry's own folder."""
        return self.data_dir.expanduser().absolute() / "registry"

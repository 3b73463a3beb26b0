"""What the trainer can be told."""

from dataclasses import dataclass

from octavo.addresses import PORTS
from octavo.serving.settings import ProgramSettings, SettingsError


@dataclass(frozen=True, kw_only=True)
class Settings(ProgramSettings):
    """Settings of the trainer."""

    port: int = PORTS["trainer"]
    max_running_jobs: int = 1
    """Workers that may run at once on the CPU, whose threads they share; each CUDA device takes one more."""
    max_queued_jobs: int = 10_000
    """Jobs that may wait; more are refused."""
    max_restarts: int = 5
    """How often a lost worker is started again without progress in between, before its job fails."""
    restart_delay_s: float = 0.5
    """How long to wait before the first restart, in seconds; doubles with each one, up to a minute."""
    stop_grace_s: float = 30.0
    """How long a worker may take to obey a cancellation before it is killed, in seconds."""
    stop_workers: bool = False
    """Whether workers save a checkpoint and stop when this service stops, to go on when it starts again; otherwise
    they go on without it."""
    registry_patience_s: float = 86_400.0
    """How long a worker waits for a registry that does not answer before its job fails, in seconds."""

    corpora_limit_bytes: int = 32 << 30
    """How much disk the tokens of datasets may take, in bytes: above, those not used for longest are removed, but none
    that a job uses."""

    price_per_hour: float = 0.0
    """What an hour of this machine costs, in a currency of your own; plans estimate costs from it. 0 means unknown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_running_jobs < 1 or self.max_queued_jobs < 1:
            raise SettingsError("max_running_jobs and max_queued_jobs must be at least 1")
        if not 0 <= self.price_per_hour < float("inf"):
            raise SettingsError("price_per_hour must not be negative; 0 means that it is unknown")
        if self.corpora_limit_bytes < 0:
            raise SettingsError("corpora_limit_bytes must not be negative; 0 keeps only what is in use")
        if self.max_restarts < 0:
            raise SettingsError("max_restarts must not be negative; 0 never starts a lost worker again")
        if min(self.restart_delay_s, self.stop_grace_s, self.registry_patience_s) < 0:
            raise SettingsError("restart_delay_s, stop_grace_s and registry_patience_s must not be negative")

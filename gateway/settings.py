"""What the gateway can be told; environment variables OCTAVO_GATEWAY_<FIELD>."""

from dataclasses import dataclass
from pathlib import Path

from octavo import v1
from octavo.addresses import PORTS, Addresses, local
from octavo.serving import ProgramSettings, SettingsError
from octavo.serving.settings import LOOPBACK


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(ProgramSettings):
    """Where the programs are, and the limits of a request."""

    port: int = PORTS["gateway"]
    """The port to listen on."""
    trainer: str = local("trainer")
    """Where the trainer is."""
    inference: str = local("inference")
    """Where inference is."""
    inspector: str = local("inspector")
    """Where the inspector is."""
    contract: Path = Path(v1.__path__[0]) / "contract.binpb"
    """The descriptors that routes and docs are made of."""
    timeout_s: float = 30.0
    """How long a unary call may take when its caller sends no Grpc-Timeout, in seconds."""
    max_timeout_s: float = 3600.0
    """The longest time that a caller may ask for, in seconds."""
    idle_s: float = 3600.0
    """How long a stream may be silent before it is ended, in seconds."""
    heartbeat_s: float = 15.0
    """How often a silent SSE stream sends a comment, in seconds."""
    max_body_bytes: int = 16 << 20
    """The largest request body, in bytes."""
    body_timeout_s: float = 30.0
    """How long a client may pause while it sends a body, in seconds."""
    max_connections: int = 2048
    """The most requests under way at once; more are answered 503."""
    workers: int = 1
    """Processes that share the port; each answers /metrics for itself."""
    allow_origins: str = ""
    """Origins that browsers may call from, with commas; empty lets only this one."""
    allow_hosts: str = ""
    """Names besides localhost that callers may use for a gateway on loopback that asks for no keys, with commas."""

    def __post_init__(self) -> None:
        """Refuses what cannot work. Raises SettingsError."""
        super().__post_init__()
        for name in ("timeout_s", "max_timeout_s", "idle_s", "heartbeat_s", "max_body_bytes", "body_timeout_s"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if self.workers < 1:
            raise SettingsError(f"workers is {self.workers}; at least 1 process has to answer")
        if self.api_key and not (self.api_keys or self.allow_insecure):
            raise SettingsError(
                "with OCTAVO_API_KEY alone the gateway would lend its key to callers that bring none: set "
                "OCTAVO_API_KEYS to a file of key digests, or OCTAVO_ALLOW_INSECURE=true if that is what it is for"
            )

    @property
    def is_open_to_pages(self) -> bool:
        """Whether any page that a browser on this machine shows could use it: loopback, and no keys asked for."""
        return self.host in LOOPBACK and self.api_keys is None

    @property
    def addresses(self) -> Addresses:
        """Where the programs are."""
        return Addresses(
            registry=self.registry, trainer=self.trainer, inference=self.inference, inspector=self.inspector
        )

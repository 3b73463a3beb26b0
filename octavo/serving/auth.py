"""Who may call: API keys, kept as SHA-256 digests. Knows nothing of what a caller may do."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from octavo.errors import Unauthenticated
from octavo.serving.settings import SettingsError
from octavo.v1 import errors_pb2

PUBLIC_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""What probes and tools need before they have a key."""


def key_digest(key: str) -> str:
    """A key as it is kept: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


@dataclass(frozen=True)
class Keyring:
    """The digests of the keys that may call."""

    digests: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads one digest a line; empty lines and lines that begin with `#` are notes. Raises SettingsError."""
        try:
            lines = [line.strip() for line in path.read_text().splitlines()]
        except OSError as error:
            raise SettingsError(f"cannot read the API keys in {path}: {error.strerror}") from None
        digests = tuple(line for line in lines if line and not line.startswith("#"))
        for digest in digests:
            if not digest.startswith("sha256:") or len(digest) != 71:
                raise SettingsError(
                    f"{path} holds a line that is no digest; expected sha256: and 64 hexadecimal digits"
                )
        return cls(digests)

    def check(self, metadata: Mapping[str, str | bytes]) -> None:
        """Lets a known key pass: `authorization: Bearer …` or `x-api-key`. Raises Unauthenticated."""
        bearer = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        digest = key_digest(bearer or str(metadata.get("x-api-key", "")))
        # Digests are compared, not keys: the time a comparison takes tells nothing of a key.
        if not any(hmac.compare_digest(digest, known) for known in self.digests):
            raise Unauthenticated(
                errors_pb2.REASON_UNAUTHENTICATED, "send a known API key as `authorization: Bearer KEY` or `x-api-key`"
            )

"""The config.json of an artifact, or one given as text: read within limits, and what is suspicious in it.

Knows nothing of weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from octavo.errors import InvalidArgument
from octavo.formats.architecture import Architecture
from services.inspector.contents import Contents

CONFIG: Final = "config.json"
_LIMIT_BYTES: Final = 1024 * 1024


def read_architecture(contents: Contents) -> Architecture:
    """The model's dimensions; InvalidArgument when config.json is no configuration that is known here."""
    return Architecture.from_config(read_config(contents))


def read_config(contents: Contents) -> Mapping[str, Any]:
    """The configuration; NotFound when the artifact has none, InvalidArgument when it is no JSON object."""
    size_bytes = contents.artifact.file(CONFIG).size_bytes
    # One byte beyond the limit suffices to see that it is too long.
    return parse_config(CONFIG, contents.reader(CONFIG).read(0, min(size_bytes, _LIMIT_BYTES + 1)))


def parse_config(field: str, text: bytes) -> Mapping[str, Any]:
    """The configuration in a text; InvalidArgument names `field` when it is no JSON object."""
    if len(text) > _LIMIT_BYTES:
        raise InvalidArgument.field(field, f"it is longer than {_LIMIT_BYTES} bytes, so it is no configuration")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument.field(field, f"it is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidArgument.field(field, "it is not a JSON object")
    return config

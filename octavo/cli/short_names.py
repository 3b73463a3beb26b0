"""Short forms of resource names: `poet` for `models/poet`, `poet@champion`, `poet/3`, `tiny` for `datasets/tiny`."""

import re

import typer

_NUMBERED = re.compile(r"^([^/@]+)/(?:versions/|v)?(\d+)$")
_COLLECTIONS = ("models", "datasets", "jobs", "deployments", "blobs", "servedModels")


def model(text: str) -> str:
    """`poet` -> `models/poet`."""
    return _full("models", text)


def version(text: str) -> str:
    """`poet` -> `models/poet` (its newest), `poet@champion`, `poet/3` -> `models/poet/versions/3`."""
    return _full("models", text)


def artifact(text: str) -> str:
    """A version as above, or `sha256:…` -> `blobs/sha256:…`."""
    if text.startswith("sha256:"):
        return f"blobs/{text}"
    return text if text.startswith("blobs/") else version(text)


def answerer(text: str) -> str:
    """Who generates: `poet` -> `models/poet`; `deployments/poet` stays."""
    return text if text.startswith("deployments/") else version(text)


def dataset(text: str) -> str:
    """`tiny` -> `datasets/tiny`, `tiny/2` -> `datasets/tiny/versions/2`."""
    return _full("datasets", text)


def job(text: str) -> str:
    """`j-1` -> `jobs/j-1`."""
    return _full("jobs", text)


def deployment(text: str) -> str:
    """`poet` -> `deployments/poet`."""
    return _full("deployments", text)


def _full(collection: str, text: str) -> str:
    if text.startswith(f"{collection}/"):
        rest = text.removeprefix(f"{collection}/")
    elif text.partition("/")[0] in _COLLECTIONS:
        raise typer.BadParameter(f"{text} is not one of {collection}/…")
    else:
        rest = text
    if not rest:
        raise typer.BadParameter(f"a name is missing: {collection}/…")
    if numbered := _NUMBERED.match(rest):
        rest = f"{numbered[1]}/versions/{numbered[2]}"
    return f"{collection}/{rest}"

"""What the registry says of versions, asked once: a version never changes."""

from collections.abc import Iterable

from octavo.client import AsyncClient
from octavo.errors import NotFound
from octavo.v1.registry_pb2 import GetVersionRequest, Version


class Catalog:
    """The versions that this server has to do with, by name."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._versions: dict[str, Version] = {}

    def __getitem__(self, name: str) -> Version:
        """A version that was learnt."""
        return self._versions[name]

    async def learn(self, names: Iterable[str]) -> None:
        """Asks for those that are not known yet, and forgets all others. Raises what the registry raises.

        One that the registry no longer has becomes a version without files: what wants it is refused, the others go on.
        """
        wanted = set(names)
        for name in wanted - self._versions.keys():
            try:
                self._versions[name] = await self._client.registry.GetVersion(GetVersionRequest(name=name))
            except NotFound:
                self._versions[name] = Version(name=name)
        for name in self._versions.keys() - wanted:
            del self._versions[name]

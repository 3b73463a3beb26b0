"""How a caller speaks: Client for threads and scripts, AsyncClient for event loops."""

from octavo.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]

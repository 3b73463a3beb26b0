"""The front door: every RPC of the contract over HTTP and JSON, described by the descriptors alone."""

from gateway.settings import GatewaySettings as Settings

__all__ = ["Settings"]

"""Describe how a store reaches its data: which servers, with which credentials. Nothing in it is secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

__all__ = ["ServerAddress", "StoreAccess"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A server that a store connects to.

    Attributes:
        role: Role of the server, such as "server", "proxy", "jump host" or "gateway".
        host: Name or IP address, without brackets.
        port: TCP port.
        tls: Whether the connection begins with a TLS handshake.
    """

    role: str
    host: str
    port: int
    tls: bool = False

    @classmethod
    def from_url(cls, role: str, url: str) -> ServerAddress:
        """Return the server of an http(s) URL."""
        parts = urlsplit(url)
        return cls(
            role, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 80), parts.scheme == "https"
        )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How a store reaches its data, as far as that is known before it connects.

    Attributes:
        servers: Servers that are connected to directly. Empty if there are none, or if they are unknown.
        facts: Further settings by name, such as "user" or "credentials": their source, never their value.
        notes: Sentences about settings that have no effect, or that weaken a protection.
        ca_file: PEM file of the trusted certificate authorities. None for those of the system.
    """

    servers: tuple[ServerAddress, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ca_file: str | None = None

"""Frozen policies: how long to wait, how often to try again, how much to take, and whom to trust."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from streamloader.errors import ConfigError

__all__ = ["Limits", "Retry", "Timeouts"]


def _require(policy: Any, *, at_least: float = 0.0) -> None:
    for item in fields(policy):
        value = getattr(policy, item.name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        if not number or value < at_least:
            name = type(policy).__name__
            raise ConfigError(f"{name}({item.name}={value!r}): it takes a number that is not below {at_least:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a store waits, in seconds. Each wait has one of these deadlines; passing it is a StoreTimeout.

    Attributes:
        connect: for a connection that can be used: name resolved, handshakes done, logged in.
        response: from a request to the first byte of the answer.
        window: of waiting for further bytes, in which `min_rate` is measured.
        min_rate: bytes a second that a transfer has to reach over any such window. Time in which nobody asks for
            bytes does not count.
        close: for saying goodbye.
    """

    connect: float = 15.0
    response: float = 30.0
    window: float = 30.0
    min_rate: float = 1024.0
    close: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        _require(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How requests that failed with a transient error (``StoreError.transient``) are tried again.

    The waits double from `first_wait` up to `longest_wait`, each with up to `jitter` seconds added at random, and are
    never shorter than what the server asked for (Retry-After). A transfer that broke off goes on where it stopped, with
    the same version of the object; once it got on by as many bytes as `Timeouts` want in one window, attempts and
    deadline count anew from there.

    Attributes:
        attempts: in all, the first one included; 1 tries nothing again.
        deadline: seconds from the first attempt after which no further one begins.
        first_wait: seconds before the second attempt.
        longest_wait: seconds between two attempts at most. A server that asks for more is not asked again.
        jitter: seconds at most, drawn for each wait.
    """

    attempts: int = 6
    deadline: float = 120.0
    first_wait: float = 0.1
    longest_wait: float = 20.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no policy."""
        _require(self)
        if self.attempts < 1:
            raise ConfigError(f"Retry(attempts={self.attempts}): the first attempt counts, so it takes at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a store takes at most. Passing a limit is a LimitExceeded.

    Attributes:
        requests: under way at the same time; further ones wait for their turn.
        connections: to one server.
        object_bytes: of a whole object that is read into memory in one go; use spans or ``stream`` for larger ones.
        listed: entries of one listing.
        redirects: followed one after the other.
        block_bytes: of one block of a content-addressed store.
        depth: levels of a tree of such blocks, and of directories.
    """

    requests: int = 256
    connections: int = 64
    object_bytes: int = 8 << 30
    listed: int = 50_000_000
    redirects: int = 5
    block_bytes: int = 4 << 20
    depth: int = 128

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        _require(self, at_least=0)
        if self.requests < 1 or self.connections < 1:
            raise ConfigError("Limits: it takes at least one request and one connection")

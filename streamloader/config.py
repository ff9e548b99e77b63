"""Frozen policies of the stores: timeouts, retries and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from streamloader.errors import ConfigError

__all__ = ["Limits", "Retry", "Timeouts"]


def _check_numbers(policy: Any, *, minimum: float = 0.0) -> None:
    for item in fields(policy):
        value = getattr(policy, item.name)
        if value is None and item.default is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
        if not is_number or value < minimum:
            name = type(policy).__name__
            raise ConfigError(f"{name}({item.name}={value!r}): must be a number of {minimum:g} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Timeouts of a store's requests. A request that exceeds one of them fails with a StoreTimeout.

    Attributes:
        connect: Seconds until a connection is usable: name resolved, handshakes done, logged in.
        response: Seconds from a request to the first byte of its response.
        window: Seconds of waiting for further bytes over which `min_rate` is measured.
        min_rate: Minimum throughput of a transfer over each window, in bytes per second. Time in which the caller does
            not wait for bytes does not count.
        close: Seconds for closing a connection.
    """

    connect: float = 15.0
    response: float = 30.0
    window: float = 30.0
    min_rate: float = 1024.0
    close: float = 5.0

    def __post_init__(self) -> None:
        """Validate the values."""
        _check_numbers(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How to retry requests that failed with a transient error (``StoreError.transient``).

    The deadline decides: attempts go on until it, so that a server may be away for less than that. The waits double
    from `first_wait` up to `longest_wait`. Up to `jitter` random seconds are added to each wait, and no wait is shorter
    than the server demands (Retry-After). An interrupted transfer resumes at the byte where it stopped, with the same
    version of the object. Whenever it has received as many bytes as `Timeouts` require for one window, the attempts and
    the deadline are counted from zero again.

    Attributes:
        attempts: Maximum number of attempts, including the first. 1 disables retries. Defaults to None: any number.
        deadline: Seconds after the first attempt at which the last attempt starts. If a server demands a longer wait,
            the request fails at once.
        first_wait: Seconds before the second attempt.
        longest_wait: Maximum seconds between two attempts, unless the server demands a longer wait.
        jitter: Maximum random seconds added to each wait.
    """

    attempts: int | None = None
    deadline: float = 120.0
    first_wait: float = 0.1
    longest_wait: float = 20.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        """Validate the values."""
        _check_numbers(self)
        if self.attempts is not None and self.attempts < 1:
            raise ConfigError(f"Retry(attempts={self.attempts}): must be 1 or more, because the first attempt counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a store. A request that would exceed one of them fails with a LimitExceeded.

    Attributes:
        requests: Maximum number of concurrent requests. Further requests wait for a free slot.
        connections: Maximum number of connections to one server.
        object_bytes: Maximum size in bytes of an object that is read into memory as a whole. Use ranges or ``stream``
            for larger objects.
        stream_bytes: Maximum number of bytes of one transfer, and maximum size of an object that is opened for random
            access. It applies to the size that the server declares, before the first byte.
        unsized_bytes: Maximum size in bytes of an object whose server does not declare a size, because nothing else
            ends such a transfer.
        copy_bytes: Maximum size in bytes of the temporary copies of objects whose server does not support ranges.
        header_bytes: Maximum number of bytes of a media file that are read without finding a packet of its video.
        listed: Maximum number of entries in one listing.
        listing_bytes: Maximum size in bytes of the names and versions of one listing. Where the entries are kept in
            memory, 256 bytes for each entry are added.
        shared_directories: Maximum number of times that one listing enters a directory that it has entered before,
            through links or shared subtrees.
        redirects: Maximum number of consecutive redirects.
        block_bytes: Maximum size in bytes of a block in a content-addressed store.
        depth: Maximum number of levels of directories, or of a tree of such blocks.
        expansion_bytes: Number of decompressed bytes of a compressed container, or of one member of a zip file, beyond
            which `expansion_ratio` applies.
        expansion_ratio: Maximum ratio of decompressed to compressed bytes. Texts reach 10 to 50, and sparse masks a few
            hundred. A thousand in a gigabyte is one repeated byte, the content of bombs.
    """

    requests: int = 256
    connections: int = 64
    object_bytes: int = 8 << 30
    stream_bytes: int = 1 << 40
    unsized_bytes: int = 256 << 20
    copy_bytes: int = 8 << 30
    header_bytes: int = 64 << 20
    listed: int = 50_000_000
    listing_bytes: int = 2 << 30
    shared_directories: int = 10_000
    redirects: int = 5
    block_bytes: int = 4 << 20
    depth: int = 128
    expansion_bytes: int = 1 << 30
    expansion_ratio: float = 1000.0

    def __post_init__(self) -> None:
        """Validate the values."""
        _check_numbers(self)
        if self.requests < 1 or self.connections < 1:
            raise ConfigError("Limits: requests and connections must be 1 or more")

"""Counters of the work done to read an archive."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReadCounts"]


@dataclass(slots=True)
class ReadCounts:
    """Work done by one reader in this process.

    Attributes:
        frames: Number of frames requested.
        frame_hits: Number of requested frames that were in the cache.
        frame_misses: Number of requested frames that had to be decoded.
        packets: Number of packets decoded.
        spans: Number of spans decoded from a key frame on.
        resumed: Number of spans decoded by continuing with a decoder at its position.
        retried: Number of repeated attempts to decode missing frames in a slower way.
        byte_hits: Number of bytes of chunks in stores that were in the cache.
        byte_misses: Number of bytes of chunks read from stores or local files.
        requests: Number of read requests for chunks.
        prefetched: Number of bytes requested ahead of their use.
        lookups: Number of lookups in the catalog.
    """

    frames: int = 0
    frame_hits: int = 0
    frame_misses: int = 0
    packets: int = 0
    spans: int = 0
    resumed: int = 0
    retried: int = 0
    byte_hits: int = 0
    byte_misses: int = 0
    requests: int = 0
    prefetched: int = 0
    lookups: int = 0

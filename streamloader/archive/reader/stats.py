"""Counters of the work that reading an archive has taken."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReadCounts"]


@dataclass(slots=True)
class ReadCounts:
    """Work done by one reader in this process.

    Attributes:
        frames: Number of frames requested.
        frame_hits: Number of requested frames that were already decoded.
        frame_misses: Number of requested frames that had to be decoded.
        packets: Number of packets decoded.
        runs: Number of decoding runs started at a key frame.
        continued: Number of decoding runs that continued where an earlier run had ended.
        again: Number of decoding runs that gave unexpected frames and were repeated in a slower way.
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
    runs: int = 0
    continued: int = 0
    again: int = 0
    byte_hits: int = 0
    byte_misses: int = 0
    requests: int = 0
    prefetched: int = 0
    lookups: int = 0

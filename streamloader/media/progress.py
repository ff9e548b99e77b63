"""A count of the packets that this process has handled, which tells a process that works from one that hangs."""

from __future__ import annotations

__all__ = ["PROGRESS", "ParseProgress"]


class ParseProgress:
    """Progress of everything that parses media in this process.

    Attributes:
        packets: Number of packets handled so far. Threads may lose counts: it only matters whether it changes.
    """

    def __init__(self) -> None:
        self.packets = 0


PROGRESS = ParseProgress()

"""The interface of a contender that reads small files by name, and in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.small_images import decode_image


class SmallFileReader:
    """Reads small files by name. Loops are methods, so that each contender has the loop that its users would write."""

    def read(self, name: str) -> Any:
        """Return the bytes of a file. They may be a view."""
        raise NotImplementedError

    def read_all(self, names: Sequence[str]) -> int:
        """Read the files with these names, one after the other, and return the sum of their sizes."""
        raise NotImplementedError

    def scan(self) -> int:
        """Read all files in the order that is fastest, and return the sum of their sizes."""
        raise NotImplementedError

    def decode_all(self, names: Sequence[str]) -> None:
        """Read and decode the files with these names, one after the other."""
        read = self.read
        for name in names:
            decode_image(read(name))

    def close(self) -> None:
        """Release all resources."""

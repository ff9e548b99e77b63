"""Read numbers from the bits of headers of coded video (section numbers: ITU-T H.264)."""

from __future__ import annotations

__all__ = ["BitReader"]


class BitReader:
    """Reads bits from the beginning of bytes. After their end, ValueError is raised."""

    def __init__(self, data: bytes) -> None:
        self._value, self._remaining = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number; 0 for no bits."""
        self._remaining -= count
        if self._remaining < 0:
            raise ValueError("the header is too short")
        return self._value >> self._remaining & ((1 << count) - 1)

    def read_golomb(self) -> int:
        """Read ue(v) (9.1)."""
        rest = self._value & ((1 << self._remaining) - 1)
        zeros = self._remaining - rest.bit_length()
        if zeros > 32:
            raise ValueError("a number is too large")
        self._remaining -= 2 * zeros + 1
        if self._remaining < 0:
            raise ValueError("the header is too short")
        return (rest >> self._remaining) - 1

    def read_signed(self) -> int:
        """Read se(v) (9.1.1)."""
        value = self.read_golomb()
        return (value + 1) // 2 if value & 1 else -(value // 2)

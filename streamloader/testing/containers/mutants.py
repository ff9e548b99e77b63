"""Tests of containers that were altered at random: cut, flipped, spliced, duplicated, and with forged numbers."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from streamloader.testing.containers.binding import Files, make_data, make_rng
from streamloader.testing.containers.damage import ContainerDamageSuite

__all__ = ["ContainerMutantSuite", "mutate"]

_SEED = 20_261_129
_FAST_MUTANTS = 20
_SLOW_MUTANTS = 1_000
_BLOCK_BYTES = 512


class ContainerMutantSuite(ContainerDamageSuite):
    """A file that was altered at random gives right bytes or one typed error."""

    @property
    def mutated_files(self) -> Files:
        """Members of the containers that are mutated."""
        return self.arrange(
            [
                ("a.txt", b"0123456789" * 30),
                ("empty", b""),
                ("ü/b.bin", make_data(1_700, 1)),
                ("c.txt", b"c"),
                ("zeros.bin", bytes(900)),
                ("a.txt", make_data(512, 2)),
                (self.long_names[0] if self.long_names else "d.txt", b"The end."),
            ]
        )

    @pytest.mark.parametrize("count", [_FAST_MUTANTS, pytest.param(_SLOW_MUTANTS, marks=pytest.mark.slow)])
    def test_mutants(self, count: int) -> None:
        self.check_variants(self._make_mutants(count), self.mutated_files)

    def _make_mutants(self, count: int) -> Iterator[tuple[str, bytes]]:
        """Yield altered versions of a container. If it is compressed, every other one is altered before that."""
        data = self.build(self.mutated_files)
        plain = self.decompress(data) if self.is_compressed else data
        for number in range(count):
            rng = make_rng(_SEED + number)
            if self.is_compressed and number % 2:
                yield f"mutant {number} of the compressed file", mutate(data, rng)
                continue
            mutant = plain
            for _ in range(rng.choice([1, 1, 2])):
                mutant = self.forge_number(mutant, rng) if rng.random() < 1 / 3 else mutate(mutant, rng)
            yield f"mutant {number}", self.compress(mutant) if self.is_compressed else mutant


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return the data with a random alteration, often at the borders of blocks."""
    change = rng.choice([_cut, _flip, _fill, _delete, _duplicate, _splice, _insert])
    return change(data, rng)


def _choose_span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the start and end of a random part: some bytes, or some blocks."""
    unit = rng.choice([1, 1, _BLOCK_BYTES])
    start = rng.randrange(len(data) // unit + 1) * unit
    return start, min(len(data), start + rng.choice([1, 2, 3, 8, rng.randrange(1, 40)]) * unit)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _choose_span(data, rng)[0]]


def _flip(data: bytes, rng: random.Random) -> bytes:
    altered = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if altered:
            altered[rng.randrange(len(altered))] ^= rng.choice([0xFF, 1 << rng.randrange(8)])
    return bytes(altered)


def _fill(data: bytes, rng: random.Random) -> bytes:
    start, end = _choose_span(data, rng)
    return data[:start] + bytes([rng.choice([0, 0xFF, rng.randrange(256)])]) * (end - start) + data[end:]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, end = _choose_span(data, rng)
    return data[:start] + data[end:]


def _duplicate(data: bytes, rng: random.Random) -> bytes:
    start, end = _choose_span(data, rng)
    return data[:end] + data[start:]


def _splice(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a part by another one."""
    start, end = _choose_span(data, rng)
    target = _choose_span(data, rng)[0]
    return data[:target] + data[start:end] + data[target + end - start :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start, end = _choose_span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[start:]

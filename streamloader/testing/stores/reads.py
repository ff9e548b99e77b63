"""Tests of a store's reads: spans, pieces, missing objects, names and versions."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import operator
import random
import time

import pytest

from streamloader.config import Limits
from streamloader.errors import ConfigError, NotFound, ObjectChanged, RangeNotSatisfiable, StoreError
from streamloader.stores.base import Store
from streamloader.testing.stores.binding import (
    BIG_OBJECT_BYTES,
    StoreBinding,
    assert_names,
    describe_difference,
    make_bytes,
)
from streamloader.values import ByteRange

__all__ = ["ReadSuite"]

_OBJECT_BYTES = 300_007  # not a power of two, and more than one packet
MAX_PIECE_BYTES = 8 << 20  # streaming has to need little memory


class ReadSuite(StoreBinding):
    """A read returns exactly the requested bytes."""

    # --- spans -------------------------------------------------------------------------------------------------------

    def test_reads_a_whole_object(self) -> None:
        assert not describe_difference(self._read(make_bytes(_OBJECT_BYTES), None), make_bytes(_OBJECT_BYTES))

    def test_reads_an_empty_object(self) -> None:
        path = self.put("empty", b"")

        async def read(store: Store) -> None:
            assert (await store.head(path)).size == 0
            assert await store.read(path) == b""
            for span in (ByteRange(0), ByteRange(0, 0), ByteRange(-1), ByteRange(-100)):
                assert await store.read(path, span) == b"", span
            with pytest.raises(RangeNotSatisfiable):
                await store.read(path, ByteRange(0, 1))

        self.use(read)

    def test_reads_one_byte(self) -> None:
        assert self._read(b"\xff", None) == b"\xff"
        assert self._read(b"\x00", ByteRange(0, 1)) == b"\x00"

    def test_keeps_every_byte_as_it_is(self) -> None:
        # No conversion of line ends, no decoding, no decompression.
        data = bytes(range(256)) * 3 + b"\r\n\n\r\x1a\x00" + "é".encode("latin-1") + b"\x1f\x8b\x08"
        assert not describe_difference(self._read(data, None), data)

    def test_reads_an_exact_span(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        assert not describe_difference(self._read(data, ByteRange(1_000, 2_001)), data[1_000:2_001])

    def test_reads_single_bytes(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            for at in (0, 1, _OBJECT_BYTES // 2, _OBJECT_BYTES - 2, _OBJECT_BYTES - 1):
                assert not describe_difference(await store.read(path, ByteRange(at, at + 1)), data[at : at + 1]), at

        self.use(read)

    def test_a_span_of_everything_is_everything(self) -> None:
        assert not describe_difference(
            self._read(make_bytes(_OBJECT_BYTES), ByteRange(0, _OBJECT_BYTES)), make_bytes(_OBJECT_BYTES)
        )

    def test_a_span_of_nothing_is_nothing(self) -> None:
        path = self.put("a.bin", make_bytes(_OBJECT_BYTES))

        async def read(store: Store) -> None:
            for at in (0, 1, _OBJECT_BYTES // 2, _OBJECT_BYTES):
                assert await store.read(path, ByteRange(at, at)) == b"", at
            with pytest.raises(RangeNotSatisfiable):
                await store.read(path, ByteRange(_OBJECT_BYTES + 1, _OBJECT_BYTES + 1))

        self.use(read)

    def test_an_empty_span_of_a_missing_object_is_not_found(self) -> None:
        self._refuses_missing(ByteRange(0, 0))

    def test_reads_with_an_open_end(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            for at in (0, 1, _OBJECT_BYTES - 1, _OBJECT_BYTES):
                assert not describe_difference(await store.read(path, ByteRange(at)), data[at:]), at

        self.use(read)

    def test_reads_from_the_end(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            for count in (1, 22, _OBJECT_BYTES - 1, _OBJECT_BYTES):
                assert not describe_difference(await store.read(path, ByteRange(-count)), data[-count:]), count

        self.use(read)

    def test_a_suffix_longer_than_the_object_is_everything(self) -> None:
        assert not describe_difference(self._read(make_bytes(1_000), ByteRange(-1_001)), make_bytes(1_000))
        assert not describe_difference(self._read(make_bytes(1_000), ByteRange(-(10**9))), make_bytes(1_000))

    @pytest.mark.parametrize("span", [(-1, 1), (0, 1), (0, 100), (100, 200)])
    def test_refuses_spans_past_the_end(self, span: tuple[int, int]) -> None:
        path = self.put("a.bin", make_bytes(_OBJECT_BYTES))

        async def read(store: Store) -> None:
            with pytest.raises(RangeNotSatisfiable) as caught:
                await store.read(path, ByteRange(_OBJECT_BYTES + span[0], _OBJECT_BYTES + span[1]))
            assert_names(caught.value, store, path)
            assert caught.value.offset == _OBJECT_BYTES + span[0]
            assert not describe_difference(
                await store.read(path, ByteRange(-1)), make_bytes(_OBJECT_BYTES)[-1:]
            )  # the store still works

        self.use(read)

    def test_refuses_an_open_end_past_the_end(self) -> None:
        path = self.put("a.bin", make_bytes(1_000))

        async def read(store: Store) -> None:
            with pytest.raises(RangeNotSatisfiable) as caught:
                await store.read(path, ByteRange(1_001))
            assert_names(caught.value, store, path)

        self.use(read)

    def test_adjacent_spans_join(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            borders = [0, 1, 4_095, 4_096, 65_536, 65_537, 262_143, 262_144, 262_145, _OBJECT_BYTES]
            spans = [ByteRange(*pair) for pair in itertools.pairwise(borders)]
            assert not describe_difference(b"".join([await store.read(path, span) for span in spans]), data)

        self.use(read)

    def test_random_spans(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)
        rng = random.Random(4)  # noqa: S311 - not for secrets

        async def read(store: Store) -> None:
            for _ in range(40):
                start = rng.randrange(_OBJECT_BYTES + 1)
                end = rng.choice(
                    [None, rng.randint(start, _OBJECT_BYTES), min(_OBJECT_BYTES, start + rng.randrange(70_000))]
                )
                assert not describe_difference(await store.read(path, ByteRange(start, end)), data[start:end]), (
                    start,
                    end,
                )
                count = rng.randint(1, 2 * _OBJECT_BYTES)
                assert not describe_difference(await store.read(path, ByteRange(-count)), data[-count:]), -count

        self.use(read)

    def test_reads_a_big_object(self) -> None:
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def read(store: Store) -> None:
            whole = await store.read(path)
            assert len(whole) == BIG_OBJECT_BYTES
            assert hashlib.sha256(whole).hexdigest() == hashlib.sha256(data).hexdigest()
            for start, end in (
                (BIG_OBJECT_BYTES - 5, BIG_OBJECT_BYTES),
                (BIG_OBJECT_BYTES // 2 - 1, BIG_OBJECT_BYTES // 2 + 1),
                (3 << 20, (9 << 20) + 1),
            ):
                assert not describe_difference(await store.read(path, ByteRange(start, end)), data[start:end]), (
                    start,
                    end,
                )

        self.use(read)

    # --- pieces ------------------------------------------------------------------------------------------------------

    def test_the_pieces_of_a_stream_join_to_the_whole(self) -> None:
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def read(store: Store) -> None:
            for span in (None, ByteRange(1, BIG_OBJECT_BYTES - 1), ByteRange(-5_000_001)):
                found = [piece async for piece in store.stream(path, span)]
                start, end = (span or ByteRange()).within(BIG_OBJECT_BYTES)
                assert hashlib.sha256(b"".join(found)).digest() == hashlib.sha256(data[start:end]).digest()
                assert all(isinstance(piece, bytes) and piece for piece in found)
                assert max(map(len, found)) <= MAX_PIECE_BYTES, "pieces of a stream are small"

        self.use(read)

    def test_a_stream_that_is_left_early_disturbs_nothing(self) -> None:
        # More often than there are connections: no connection may be lost.
        data = make_bytes(BIG_OBJECT_BYTES)
        path = self.put("big.bin", data)

        async def read(store: Store) -> None:
            for number in range(12):
                async with contextlib.aclosing(store.stream(path, ByteRange(number))) as parts:
                    async for part in parts:
                        assert not describe_difference(part, data[number : number + len(part)])
                        break
            assert not describe_difference(await store.read(path, ByteRange(-7)), data[-7:])

        self.use(read, limits=Limits(connections=2, requests=2))

    def test_a_stream_may_be_read_slowly(self) -> None:
        # Other reads finish first and do not change its bytes.
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            got = b""
            async for part in store.stream(path):
                got += part
                assert not describe_difference(await store.read(path, ByteRange(5, 10)), data[5:10])
            assert not describe_difference(got, data)

        self.use(read)

    # --- missing objects, metadata and paths ------------------------------------------------------------------------

    def test_a_missing_object_is_not_found(self) -> None:
        self._refuses_missing(None)

    def test_a_span_of_a_missing_object_is_not_found(self) -> None:
        self._refuses_missing(ByteRange(3, 9))
        self._refuses_missing(ByteRange(-9))

    def test_the_head_of_a_missing_object_is_not_found(self) -> None:
        self.put("other", b"x")
        for name in ("none.bin", "none/none.bin", "other/none"):
            path = self.path(self.name(name))

            async def check(store: Store, path: str = path) -> None:
                with pytest.raises(NotFound) as caught:
                    await store.head(path)
                assert_names(caught.value, store, path)

            self.use(check)

    def test_head_describes_the_object(self) -> None:
        path = self.put("a.bin", make_bytes(_OBJECT_BYTES))

        async def check(store: Store) -> None:
            info = await store.head(path)
            assert (info.path, info.size, info.is_directory) == (path, _OBJECT_BYTES, False)
            assert (info.version is not None) == self.versioned
            assert info.version is None or (type(info.version) is str and info.version)
            assert info.modified is None or abs(info.modified - time.time()) < 86_400

        self.use(check)

    def test_a_directory_is_no_object(self) -> None:
        self.put("sub/a.bin", b"x")
        path = self.path(self.name("sub"))

        async def check(store: Store) -> None:
            if not store.supports_listing:  # such stores have no directories
                return
            with pytest.raises(StoreError) as caught:
                await store.head(path)
            assert_names(caught.value, store, path)
            with pytest.raises(StoreError):
                await store.read(path)

        self.use(check)

    @pytest.mark.parametrize(
        "path", ["", "/", "/etc/passwd", "..", "../a", "a/../b", "a/..", ".", "./a", "a/.", "a\0b"]
    )
    def test_refuses_invalid_paths(self, path: str) -> None:
        async def refuse(store: Store) -> None:
            is_key = store.paths_are_keys and path != "" and "\0" not in path  # such an object can be read
            if not is_key:
                with pytest.raises(ConfigError):
                    await store.head(path)
                with pytest.raises(ConfigError):
                    await store.read(path)
                with pytest.raises(ConfigError):
                    await anext(store.stream(path))
            with pytest.raises(ConfigError):
                await store.write(path, b"x")
            with pytest.raises(ConfigError):
                await store.delete(path)
            if path.strip("/") and not is_key:
                with pytest.raises(ConfigError):
                    await anext(store.list(path), None)

        self.use(refuse)

    def test_odd_names(self) -> None:
        names = [name for name in self.names if name not in self.refused_names]
        files = {self.name(name): name.encode() + b"!" for name in names}
        self.populate(files)

        async def read(store: Store) -> dict[str, object]:
            return {name: await self._attempt(store, self.path(name)) for name in files}

        assert not describe_difference(self.use(read), files)

    def test_refused_names_are_refused(self) -> None:
        async def refuse(store: Store) -> None:
            for name, why in self.refused_names.items():
                assert name in self.names, f"{name} is not one of the names that are tested"
                assert why, f"give the reason why the store cannot have {name}"
                path = self.path(self.name(name))
                with pytest.raises((StoreError, ConfigError)):
                    await store.read(path)
                with pytest.raises((StoreError, ConfigError)):
                    await store.write(path, b"x")

        self.use(refuse)

    # --- versions ----------------------------------------------------------------------------------------------------

    def test_the_version_stays_the_same(self) -> None:
        path = self.put("a.bin", b"one")
        infos = [self.use(lambda store: store.head(path)) for _ in range(2)]
        assert infos[0] == infos[1]
        assert self.use(lambda store: self._head_after_reading(store, path)) == infos[0]

    def test_another_object_is_another_version(self) -> None:
        infos = []
        for data in (b"one", b"two"):
            path = self.put("a.bin", data)
            infos.append(self.use(operator.methodcaller("head", path)))
        assert (infos[0].version != infos[1].version) == self.versioned

    def test_reads_the_requested_version(self) -> None:
        path = self.put("a.bin", make_bytes(_OBJECT_BYTES))

        async def read(store: Store) -> None:
            version = (await store.head(path)).version
            assert not describe_difference(await store.read(path, version=version), make_bytes(_OBJECT_BYTES))
            assert not describe_difference(
                await store.read(path, ByteRange(5, 9), version=version), make_bytes(_OBJECT_BYTES)[5:9]
            )
            assert not describe_difference(
                await store.read(path, ByteRange(-9), version=version), make_bytes(_OBJECT_BYTES)[-9:]
            )
            assert await store.read(path, ByteRange(7, 7), version=version) == b""
            assert not describe_difference(
                b"".join([piece async for piece in store.stream(path, version=version)]), make_bytes(_OBJECT_BYTES)
            )

        self.use(read)

    def test_reads_an_object_of_the_expected_size_only(self) -> None:
        data = make_bytes(_OBJECT_BYTES)
        path = self.put("a.bin", data)

        async def read(store: Store) -> None:
            for span in (None, ByteRange(5, 9), ByteRange(-9), ByteRange(7), ByteRange(7, 7)):
                start, end = (span or ByteRange()).within(_OBJECT_BYTES)
                assert not describe_difference(await store.read(path, span, size=_OBJECT_BYTES), data[start:end])
                for size in (1_000, _OBJECT_BYTES - 1, _OBJECT_BYTES + 1):
                    received: list[bytes] = []
                    with pytest.raises(ObjectChanged) as caught:
                        await store.fetch(path, span, received.append, size=size)
                    assert_names(caught.value, store, path)
                    assert not received
                    with pytest.raises(ObjectChanged):
                        await anext(store.stream(path, span, size=size))

        self.use(read)

    def test_refuses_an_old_version(self) -> None:
        path = self.put("a.bin", b"one" * 1_000)
        version = self.use(lambda store: store.head(path)).version or "none"
        path = self.put("a.bin", b"two" * 1_000)

        async def read(store: Store) -> None:
            for span in (None, ByteRange(0, 3), ByteRange(100), ByteRange(-3), ByteRange(5, 5)):
                with pytest.raises(ObjectChanged) as caught:
                    await store.read(path, span, version=version)
                assert_names(caught.value, store, path)
            assert await store.read(path) == b"two" * 1_000

        self.use(read)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _read(self, data: bytes, span: ByteRange | None) -> bytes:
        path = self.put("a.bin", data)
        return self.use(lambda store: store.read(path, span))

    def _refuses_missing(self, span: ByteRange | None) -> None:
        self.put("other.bin", b"x")
        path = self.path(self.name("none.bin"))

        async def read(store: Store) -> None:
            with pytest.raises(NotFound) as caught:
                await store.read(path, span)
            assert_names(caught.value, store, path)
            with pytest.raises(FileNotFoundError):
                await asyncio.wait_for(anext(store.stream(path, span)), 30)

        self.use(read)

    @staticmethod
    async def _attempt(store: Store, path: str) -> object:
        """Read, or return the error, so that one report shows all failing names."""
        try:
            return await store.read(path)
        except (StoreError, ConfigError) as error:
            return error

    @staticmethod
    async def _head_after_reading(store: Store, path: str) -> object:
        await store.read(path)
        return await store.head(path)

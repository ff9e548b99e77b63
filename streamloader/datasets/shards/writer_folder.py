"""Find out what is in the folder of a writer, and complete the data set in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from streamloader.common.gather import gather_bounded
from streamloader.datasets.shards.claim import CLAIM_NAME, WriterClaim
from streamloader.datasets.shards.index import INDEX_SUFFIX, ShardIndex, digest_index
from streamloader.datasets.shards.manifest import MANIFEST_NAME, Manifest, ShardInfo
from streamloader.datasets.shards.naming import SHARD_SUFFIXES
from streamloader.datasets.shards.unique_keys import UniqueKeys
from streamloader.errors import DatasetError, DatasetExists, LimitExceeded, NotFound, ServerBusy, StoreError
from streamloader.stores.base import Store

__all__ = ["FIRST_SAMPLE", "WriterFolder", "advise_on_failure", "make_shard_name"]

FIRST_SAMPLE: Final = "first_sample"  # name of the setting with the number of a shard's first sample
_MAX_REQUESTS: Final = 32
_OWN_NAME: Final = re.compile(r"[0-9]{5,}\.tar(?:\.gz|\.zst)?(?:\.index)?")


class WriterFolder:
    """The folder of one writer.

    Its methods are coroutines for the I/O thread.

    Args:
        store: Store of the folder.
        path: Path of the folder, with "/" at its end.
        address: Address of the folder without secrets, for messages.
        suffix: Ending of the names of shards.
        settings: Settings of the writer.

    Attributes:
        claim: Claim of the writer.
        shards: Complete shards that are there already.
        keys: Keys of their samples.
        is_complete: Whether the data set is complete.
    """

    def __init__(self, store: Store, path: str, address: str, suffix: str, settings: Mapping[str, Any]) -> None:
        self.claim = WriterClaim(store, path, address)
        self.shards: list[ShardInfo] = []
        self.keys = UniqueKeys()
        self.is_complete = False
        self._store = store
        self._path = path
        self._address = address
        self._suffix = suffix
        self._settings = settings
        self._is_claimed = False  # at the last listing

    async def open(self, *, overwrite: bool) -> None:
        """Find the shards that are kept, and delete what is left of those that are not.

        Args:
            overwrite: Whether nothing is kept.

        Raises:
            DatasetExists: If there is another data set, or one that was written with other settings.
            DatasetError: If the manifest is damaged.
            StoreError: If the store fails.
        """
        manifest = await self._read_manifest()
        if manifest is not None and not overwrite:
            found = Manifest.parse(manifest, f"{self._address}/{MANIFEST_NAME}")
            self._compare(found.settings)
            self.shards = list(found.shards)
            self.is_complete = True
            await self.claim.delete_leftover()
            return
        sizes: dict[str, int | None] = {}
        if not overwrite:
            sizes = await self._list_sizes()
            if self._find_foreign(sizes):
                sizes = await self._list_sizes()  # once more: the other writer may have just finished
            self._refuse_others(sizes)
            await self._find_complete(sizes)
        await self.claim.take(overwrite=overwrite)
        if overwrite:
            await self._store.delete(f"{self._path}{MANIFEST_NAME}")
        current = await self._list_sizes()
        if not overwrite and current != sizes:  # an earlier writer was still running
            await self._find_complete(current)
        await self._delete_unfinished()
        await self._delete_stale(current)

    async def complete(self, shards: Sequence[ShardInfo]) -> None:
        """Write the manifest, after a look at whether all shards are there and nothing else is.

        Args:
            shards: All shards.

        Raises:
            DatasetExists: If another writer has started.
            DatasetError: If shards are missing or have another size.
            StoreError: If the store fails.
        """
        self.shards = list(shards)
        sizes = await self._list_sizes()
        for info in self.shards:
            if sizes.get(info.name) != info.bytes or f"{info.name}{INDEX_SUFFIX}" not in sizes:
                raise DatasetError(
                    f"{self._address}: the shard {info.name} was deleted or replaced while the data set was written. "
                    "The same call writes it again",
                    address=self._address,
                    dataset=self._address,
                    shard=info.name,
                )
        await self.claim.check()
        await self._delete_stale(sizes)
        await self.claim.write(f"{self._path}{MANIFEST_NAME}", Manifest(self.shards, self._settings).pack())
        await self.claim.release()

    async def _read_manifest(self) -> bytes | None:
        try:
            return await self._store.read(f"{self._path}{MANIFEST_NAME}")
        except NotFound:
            return None

    async def _list_sizes(self) -> dict[str, int | None]:
        """Return the size of each file by its name, without the claim."""
        async with contextlib.aclosing(self._store.list(self._path.rstrip("/"), recursive=False)) as entries:
            sizes = {info.path.removeprefix(self._path): info.size async for info in entries}
        self._is_claimed = CLAIM_NAME in sizes
        sizes.pop(CLAIM_NAME, None)
        return sizes

    async def _find_complete(self, sizes: Mapping[str, int | None]) -> None:
        """Find the complete shards of an interrupted writer: all before the first one that is missing."""
        names: list[str] = []
        while (name := make_shard_name(len(names), self._suffix)) in sizes:
            names.append(name)
        files = await gather_bounded((self._read_index(name) for name in names), limit=_MAX_REQUESTS)
        self.shards, self.keys = [], UniqueKeys()
        count = 0
        for name, data in zip(names, files, strict=True):
            try:
                index = ShardIndex.parse(data, f"{self._address}/{name}{INDEX_SUFFIX}")
            except DatasetError:
                break
            settings = dict(index.settings)
            if settings.pop(FIRST_SAMPLE, None) != count:
                break
            self._compare(settings)
            if index.size != sizes[name]:
                break
            self.shards.append(ShardInfo(name, len(index), index.size, index.data_size, digest_index(data)))
            for number, key in enumerate(index.keys, count):
                self.keys.add(key, number)
            count += len(index)

    async def _read_index(self, name: str) -> bytes:
        try:
            return await self._store.read(f"{self._path}{name}{INDEX_SUFFIX}")
        except NotFound:  # another writer has deleted it
            return b""

    def _find_foreign(self, sizes: Mapping[str, int | None]) -> list[str]:
        """Return the shards of other programs.

        A writer makes an index before its shard. While it does, a listing may still lack one of two new files.
        """
        return [
            name
            for name in sizes
            if name.endswith(SHARD_SUFFIXES)
            and not (_OWN_NAME.fullmatch(name) and (f"{name}{INDEX_SUFFIX}" in sizes or self._is_claimed))
        ]

    def _refuse_others(self, sizes: Mapping[str, int | None]) -> None:
        """Refuse shards that no writer with this compression has made."""
        foreign = self._find_foreign(sizes)
        if foreign:
            raise self._make_error(
                f"has shards of another writer, such as {min(foreign)!r:.200}: choose an empty folder, or pass "
                "overwrite=True"
            )
        shards = [name for name in sizes if name.endswith(SHARD_SUFFIXES)]
        others = [name for name in shards if name.partition(".")[2] != self._suffix.removeprefix(".")]
        if others:
            raise self._make_error(
                f"has shards that were written with another compression, such as {min(others)}: pass overwrite=True to "
                "replace them"
            )

    async def _delete_stale(self, sizes: Mapping[str, int | None]) -> None:
        """Delete shards and indexes that are not of this data set: each shard before its index."""
        kept = {info.name for info in self.shards}
        stale = [name for name in sizes if _OWN_NAME.fullmatch(name) and name.removesuffix(INDEX_SUFFIX) not in kept]
        if stale:
            await self.claim.check()
        for name in sorted(stale, key=lambda name: (name.endswith(INDEX_SUFFIX), name)):
            await self._store.delete(f"{self._path}{name}")

    async def _delete_unfinished(self) -> None:
        """Delete the invisible files that a killed writer has left."""
        names: list[str] = []
        with contextlib.suppress(LimitExceeded):  # there are very many other folders in this one
            async with contextlib.aclosing(self._store.list_unfinished(self._path.rstrip("/"))) as entries:
                names += [info.path async for info in entries if "/" not in info.path.removeprefix(self._path)]
        for name in names:
            await self._store.delete(name)

    def _compare(self, settings: Mapping[str, Any]) -> None:
        names = sorted({*settings, *self._settings})
        different = [name for name in names if settings.get(name) != self._settings.get(name)]
        if different:
            shown = ", ".join(
                f"{name}={settings.get(name)!r:.60} there and {self._settings.get(name)!r:.60} here"
                for name in different
            )
            raise self._make_error(
                f"has a data set that was written with other settings: {shown}. Use the same ones to continue it, or "
                "pass overwrite=True to replace it"
            )

    def _make_error(self, problem: str) -> DatasetExists:
        return DatasetExists(f"{self._address} {problem}", address=self._address, dataset=self._address)


def make_shard_name(number: int, suffix: str) -> str:
    """Return the name of a shard."""
    return f"{number:05}{suffix}"


@contextlib.contextmanager
def advise_on_failure(address: str) -> Iterator[None]:
    """Add to each error of the store what to do.

    Args:
        address: Address of the data set.
    """
    try:
        yield
    except StoreError as error:
        if "dataset" not in error.details:  # the same error may be raised several times
            full = (
                ". If that persists, see whether the disk or the bucket is full"
                if type(error) in (ServerBusy, StoreError)
                else ""
            )
            error.args = (f"{error.message}{full}. Once that is solved, the same call goes on",)
            error.details["dataset"] = address
        raise

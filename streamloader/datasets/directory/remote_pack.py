"""A pack in a store: its index is in memory, and the bytes of its members are fetched by their spans."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

from typing_extensions import override

from streamloader.config import Limits
from streamloader.containers.pack.format import MalformedPack, PackCompressor, PackFooter, PackIndex, make_view
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.local_root import FileStatus
from streamloader.datasets.directory.served_pack import FILE_CHECKED, READY, ServedPack
from streamloader.values import ObjectInfo

__all__ = ["DIGEST_BYTES", "ReadSpan", "RemotePack", "StorePack", "digest_version"]

DIGEST_BYTES: Final = 8
_SECOND_NS: Final = 1_000_000_000

ReadSpan = Callable[[ObjectInfo, int, int], bytes | memoryview]


class RemotePack(MappedPack):
    """A pack in a store. Reading a member is one request for exactly its span, and none if it is empty.

    Args:
        info: Metadata of the pack, in the version that is read.
        address: Address of the pack without secrets, for messages.
        footer: Footer.
        data: Bytes of the index.
        read_span: Function that returns a span of the pack in its version.
        compressor: Compressor of the members, if it is one of the user.
        limits: Limits of the store.

    Attributes:
        info: Metadata of the pack, in the version that is read.
        index_bytes: Bytes of the index.

    Raises:
        CorruptContainer: If the index is damaged.
    """

    __slots__ = ("index_bytes", "info")

    def __init__(
        self,
        info: ObjectInfo,
        address: str,
        footer: PackFooter,
        data: bytes,
        read_span: ReadSpan,
        *,
        compressor: PackCompressor | None,
        limits: Limits,
    ) -> None:
        # The constructor of the base class checks the header and the footer of a pack that is in memory.
        self.address, self.info, self.index_bytes = address, info, data
        self._compressor, self._limits = compressor, limits
        try:
            self.index = PackIndex(data, footer)
        except MalformedPack as error:
            raise self._make_error(str(error), error.offset) from None
        self._starts, self._checksums = self.index.starts_view, make_view(self.index.checksums)
        self._methods = None if self.index.methods is None else make_view(self.index.methods)
        self.view = self._make_fetcher(read_span)
        self._is_closed = False

    def get_span(self, row: int) -> tuple[int, int]:
        """Return the offsets in the pack between which the stored bytes of a member lie."""
        return self._starts[row], self._starts[row + 1]

    def hold_member(self) -> None:
        """Fetch the only member of a pack, and keep its stored bytes.

        Raises:
            StoreError: If the store fails.
        """
        stored = self.view(0)
        self.view = lambda row: stored

    def _make_fetcher(self, read_span: ReadSpan) -> Callable[[int], memoryview]:
        info, starts = self.info, self._starts

        def fetch(row: int, /) -> memoryview:
            if row < 0:
                raise IndexError(f"a pack has no row {row}")
            return memoryview(read_span(info, starts[row], starts[row + 1]))

        return fetch


class StorePack(ServedPack):
    """A pack from which the files of a subdirectory in a store are served.

    A file is a copy of its member if both have the same size, and

    * the file has the version that the pack has recorded, for packs that were written through this store, or
    * else both have the same time in whole seconds, or the pack is not older than the file, or the store has no times.

    Args:
        pack: Pack whose members are files.
        subdirectory: Name of the subdirectory.
        has_file_sizes: Whether members have the size of their files, because they are copies.
        versions: Digests of the versions of all files, one after the other. None if the pack has recorded none.
        packed_at: Modification time of the pack in nanoseconds since 1970. 0 if unknown.
        check_times: Whether files that are newer than the pack have changed.

    Attributes:
        newer: Number of comparisons in which only the time differed.
    """

    __slots__ = ("_base_state", "_check_times", "_packed_at", "_versions", "newer")

    def __init__(
        self,
        pack: MappedPack,
        subdirectory: str,
        *,
        has_file_sizes: bool,
        versions: bytes | None,
        packed_at: int,
        check_times: bool,
    ) -> None:
        # A member that is fetched is checked each time, and one in memory when it is first read.
        self._base_state = READY if isinstance(pack, RemotePack) else FILE_CHECKED
        super().__init__(pack, subdirectory, self._base_state, has_file_sizes=has_file_sizes)
        self._versions = versions
        self._packed_at = packed_at
        self._check_times = check_times
        self.newer = 0

    @override
    def _find_buffer(self, pack: MappedPack) -> tuple[bool, Any]:
        if isinstance(pack, RemotePack):
            return False, pack.index_bytes
        return super()._find_buffer(pack)

    @override
    def show(self, row: int, state: int) -> None:
        super().show(row, state | self._base_state)

    @override
    def is_same(self, row: int, status: FileStatus) -> bool:
        if self._has_file_sizes and status.size not in (self._get_size(row), -1):
            return False
        if self._versions is not None:
            start = DIGEST_BYTES * row
            return digest_version(status.version) == self._versions[start : start + DIGEST_BYTES]
        if not status.modified or not self._check_times:
            return True
        is_copy = self.get_modified(row) // _SECOND_NS == status.modified // _SECOND_NS
        is_same = is_copy or status.modified <= self._packed_at
        self.newer += not is_same
        return is_same


def digest_version(version: str | None) -> bytes:
    """Return a digest of the version of a file. None has none."""
    return (
        b"" if version is None else blake2b(version.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
    )

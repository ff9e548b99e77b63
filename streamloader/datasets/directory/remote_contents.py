"""All files of a directory in a store."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

from typing_extensions import override

from streamloader.datasets.directory.codec import MemberCodec
from streamloader.datasets.directory.duplicates import FileCopies
from streamloader.datasets.directory.editable_contents import EditableContents
from streamloader.datasets.directory.filenames import check_filename
from streamloader.datasets.directory.local_root import LocalRoot
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.preparation import prepare_subdirectories
from streamloader.datasets.directory.remote_fetch import GONE, Fetched, Piece, fetch_ahead, sort_pieces
from streamloader.datasets.directory.remote_pack import RemotePack
from streamloader.datasets.directory.remote_root import RemoteRoot, temporary_path
from streamloader.datasets.directory.remote_subdirectory import RemoteSubdirectory, convert_file
from streamloader.datasets.directory.served_pack import ServedPack
from streamloader.datasets.directory.subdirectory import DAMAGED_MEMBER, Subdirectory
from streamloader.errors import CorruptSample, NotFound, NotSupported, StoreError

__all__ = ["RemoteContents"]

_log = logging.getLogger(__name__)

_ATTEMPTS: Final = 3  # to read a file whose pack is replaced again and again
_FRESH_S: Final = 10.0  # after which a listing is made again before the first change
_BLOCK_NAMES: Final = 4096


class RemoteLock(DirectoryLock):
    """The lock of a directory in a store, which protects only the threads of this process.

    Few stores can create an object only if there is none, and none of them notices that the process that did so has
    died. A lock object would therefore either stay for ever, or be no lock. The first change logs a warning instead.

    Args:
        address: Address of the directory, for the warning.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address, 0.0)
        self._address = address
        self._is_writer = False
        self._has_warned = False

    @property
    @override
    def is_writer(self) -> bool:
        return self._is_writer

    @override
    def open_shared(self) -> None:
        """Do nothing: nobody moves files here."""

    @override
    def open_writer(self, *, wait: bool = False) -> None:
        if not self._has_warned:
            _log.warning("%s: a store has no locks. Make sure that only one process changes it", self._address)
        self._is_writer = self._has_warned = True

    @override
    def close_writer(self) -> None:
        self._is_writer = False

    @override
    def reopen_in_child(self) -> None:
        super().reopen_in_child()
        self._is_writer = False


class RemoteContents(EditableContents):
    """The files of a directory in a store. Arguments are those of :class:`EditableContents`.

    Args:
        root: Files of the directory.
        codec: Codec of the members of packs.
        **options: Further arguments.
    """

    def __init__(self, root: RemoteRoot, codec: MemberCodec, **options: Any) -> None:
        super().__init__(cast("LocalRoot", root), codec, RemoteLock(root.address), **options)
        self._remote = root
        self._listed_at = 0.0
        self._reopened = 0  # number of times

    # --- opening and closing -----------------------------------------------------------------------------------------

    @override
    def open(self) -> None:
        try:
            with self._listed(load=self._load_to_memory):
                prepare_subdirectories(self.root, self._min_subdirectories)
                super().refresh(load=self._load_to_memory)
            self._warn_of_newer()
        except BaseException:
            self.close()
            raise

    @override
    def close(self) -> None:
        super().close()
        self._remote.close()

    @override
    def refresh(self, *, load: bool = False) -> None:
        with self._listed(load=load):
            super().refresh(load=load)

    @contextlib.contextmanager
    def _listed(self, *, load: bool) -> Iterator[None]:
        """List the root and read the packs that are new, for the time of a ``with`` block.

        Args:
            load: Whether the files that no pack has are loaded into memory afterwards.

        Raises:
            NotEnoughMemory: If what is to be loaded does not fit into memory.
        """
        try:
            with self._show("listing files") as show:
                self._remote.update(show)
            self._listed_at = time.monotonic()
            label = "reading packs (MiB)" if self._load_to_memory else "opening packs"
            with self._show(label) as show:
                new_packs = self._list_new_packs()
                if self._load_to_memory:
                    self._check_memory(self._remote.measure(new_packs, with_files=load))
                self._remote.fetch_packs(new_packs, show)
            yield
        finally:
            self._remote.release()

    def _list_new_packs(self) -> list[str]:
        new = []
        for name in self._remote.list_root().packs:
            subdirectory = self._subdirectories.get(name)
            stamp = self._remote.stamp_pack(name)
            if not isinstance(subdirectory, RemoteSubdirectory) or subdirectory.needs_pack(stamp):
                new.append(name)
        return new

    def _warn_of_newer(self) -> None:
        newer = sum(subdirectory.newer for subdirectory in self._list_subdirectories())
        if newer:
            _log.warning(
                "%s: %d files are newer than their packs, and are read one by one. If nothing has changed them since "
                "the packs were made, write the packs last, call save_state(), or pass check='names'",
                self.root.address,
                newer,
            )

    @override
    def _make_subdirectory(self, name: str) -> Subdirectory:
        return RemoteSubdirectory(name, self._remote, self.codec, check_files=self._check_files)

    def _list_subdirectories(self) -> list[RemoteSubdirectory]:
        return cast("list[RemoteSubdirectory]", list(self._subdirectories.values()))

    @override
    def _rename(self, copies: FileCopies) -> None:
        raise NotSupported(
            f"{self.root.address}: names are in more than one subdirectory, and stores cannot rename files. Pass "
            "on_duplicate='first' to ignore the second, or remove one of them",
            address=self.root.address,
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    @override
    def read(self, filename: str) -> bytes | memoryview | None:
        error: StoreError | None = None
        for _ in range(_ATTEMPTS):
            found = self.table.find(filename)
            if found is None:
                return self._read_loose(filename)
            served, row = found
            if not isinstance(served.pack, RemotePack):
                return super().read(filename)
            try:
                return served.pack.read(row)
            except GONE as gone:
                error = gone
                self._reopen(served, gone)
            except DAMAGED_MEMBER as damage:
                return self._read_damaged(filename, served, row, damage)
        assert error is not None
        raise error

    def _reopen(self, served: ServedPack, reason: StoreError) -> None:
        """Open a pack again that has been replaced or deleted, unless another thread has done it."""
        with self._lock.mutex:
            subdirectory = self._subdirectories[served.subdirectory]
            if served not in subdirectory.packs:
                return
            _log.info("%s: the pack is opened again: %s", self.root.address, reason.message)
            self._reopened += 1
            try:
                self._remote.update_subdirectory(subdirectory.name)
                subdirectory.refresh()
            finally:
                self._remote.release()
            self._rebuild()

    def _read_damaged(self, filename: str, served: ServedPack, row: int, error: Any) -> bytes | None:
        with self._lock.mutex:
            subdirectory = cast("RemoteSubdirectory", self._subdirectories[served.subdirectory])
            data = subdirectory.read_damaged(filename, served, row, error)
            self._loose[filename] = subdirectory
            return data

    @override
    def read_many(self, filenames: Sequence[str]) -> list[bytes | memoryview | None]:
        results: list[bytes | memoryview | None] = [None] * len(filenames)
        pieces = []
        for position, filename in enumerate(filenames):
            piece = self._make_piece(position, filename)
            if piece is None:
                results[position] = self.read(filename)
            else:
                pieces.append(piece)
        reopened = self._reopened
        for position, content in self._fetch(filenames, sort_pieces(pieces)):
            results[position] = content
        if self._reopened != reopened:  # what no request has checked is out of date
            for position, filename in enumerate(filenames):
                results[position] = results[position] or self.read(filename)
        return results

    @override
    def load_many(self, filenames: Sequence[str]) -> list[Any]:
        contents = self.read_many(filenames)
        return [self.decode(filename, data) for filename, data in zip(filenames, contents, strict=True)]

    def _fetch(
        self, filenames: Sequence[str], pieces: Iterable[Piece]
    ) -> Iterator[tuple[int, bytes | memoryview | None]]:
        """Yield the contents of files, with their positions in `filenames`, in the order of the pieces."""
        for piece, outcome in fetch_ahead(self._remote.submit, pieces):
            filename = filenames[piece.position]
            content: bytes | memoryview | None = None
            if isinstance(outcome, Fetched):
                content = self._decode_piece(piece, filename, outcome)
            yield piece.position, self.read(filename) if content is None else content  # reading knows what to do

    def _decode_piece(self, piece: Piece, filename: str, fetched: Fetched) -> bytes | memoryview | None:
        """Return the content of a file from what was fetched. None if that is damaged."""
        if not isinstance(piece.source, RemotePack):
            return convert_file(self.codec, filename, fetched.data)
        try:
            return piece.source.decode(piece.row, fetched.data)
        except DAMAGED_MEMBER:
            return None

    def _make_piece(self, position: int, filename: str) -> Piece | None:
        """Return what has to be fetched for a file. None if that is nothing."""
        found = self.table.find(filename)
        if found is not None:
            pack = found[0].pack
            return Piece(position, pack, found[1]) if isinstance(pack, RemotePack) else None
        self.check_open()
        subdirectory = self._loose.get(filename)
        return None if subdirectory is None else cast("RemoteSubdirectory", subdirectory).make_piece(position, filename)

    @override
    def _iterate_files(self, subdirectory: Subdirectory, names: list[str]) -> Iterator[tuple[str, str, bytes]]:
        for start in range(0, len(names), _BLOCK_NAMES):
            block = names[start : start + _BLOCK_NAMES]
            pieces = [self._make_piece(position, name) for position, name in enumerate(block)]
            fetched = self._fetch(block, [piece for piece in pieces if piece is not None])
            for name, piece in zip(block, pieces, strict=True):
                content = self.read(name) if piece is None else next(fetched)[1]
                if content is not None:
                    yield name, subdirectory.prefix + name, bytes(content)

    @override
    def _load_file(self, subdirectory: Subdirectory, filename: str) -> Any:
        address = subdirectory.prefix + filename
        try:
            data = self._remote.read_file(subdirectory.name, filename)[0]
        except NotFound:
            with self._lock.mutex:
                self._discard(subdirectory, filename)
            return None
        try:
            if self.codec.packs_files:
                return self.codec.decode(data)
            with temporary_path(filename, data) as path:
                return self.codec.data_manager.load(path)
        except CorruptSample as error:
            raise type(error)(f"{address}: {error.message}", address=address, dataset=self.root.address) from error

    # --- writing -----------------------------------------------------------------------------------------------------

    @override
    def _catch_up(self) -> None:
        if self._lock.is_writer and time.monotonic() - self._listed_at < _FRESH_S:
            return
        super()._catch_up()

    @override
    def save(self, filename: str, value: Any) -> None:
        check_filename(filename)
        with self._lock.mutex:
            self.begin_writing()
            self._check_not_sealed(filename, "replaced")
            super().save(filename, value)

    @override
    def remove(self, filename: str) -> None:
        with self._lock.mutex:
            if self.find(filename) is None:
                return
            self.begin_writing()
            self._check_not_sealed(filename, "removed")
            for subdirectory in self._list_subdirectories():
                has_it = subdirectory is self.find(filename) or filename in subdirectory.shadowed
                if has_it and len(subdirectory) + len(subdirectory.shadowed) == 1:
                    subdirectory.delete_pack()  # first, because it would be served as it is when no file is left
            super().remove(filename)

    @override
    def begin_writing(self) -> None:
        self.check_open()
        if not self._remote.can_write():
            raise NotSupported(
                f"{self.root.address} is read-only: write to another kind of store", address=self.root.address
            )
        super().begin_writing()

    def _check_not_sealed(self, filename: str, verb: str) -> None:
        subdirectory = self.find(filename)
        if isinstance(subdirectory, RemoteSubdirectory) and subdirectory.is_sealed:
            raise NotSupported(
                f"{subdirectory.prefix}{filename} cannot be {verb}: there is only the pack, and no files beside it. "
                "Write another pack, or copy the files of the subdirectory to the store, too",
                address=self.root.address,
            )

    @override
    def _pick_subdirectory(self) -> Subdirectory:
        subdirectories = [each for each in self._list_subdirectories() if not each.is_sealed]
        if not subdirectories:
            taken = {*self._subdirectories}
            name = next(name for number in range(len(taken) + 1) if (name := f"subdir_{number}") not in taken)
            self._remote.create_subdirectory(name)
            subdirectories = [RemoteSubdirectory(name, self._remote, self.codec, check_files=self._check_files)]
            self._subdirectories[name] = subdirectories[0]
        return self._rng.choice(subdirectories)

    @override
    def _wait_until_settled(self, subdirectories: Iterable[Subdirectory]) -> None:
        """Do nothing: packs record versions, and not only times."""

    @override
    def redistribute(self) -> None:
        raise NotSupported(
            f"{self.root.address}: files cannot be moved in a store, because none can move several of them, or note "
            "safely that it is about to. Redistribute a local copy, and write that to the store",
            address=self.root.address,
        )

"""One subdirectory of a root in a store: its files, its pack, and how the one is made of the other."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, cast

from typing_extensions import override

from streamloader.containers.pack.format import MAX_METADATA_BYTES
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.codec import MemberCodec, NewMember
from streamloader.datasets.directory.filenames import describe_bad_filename, sort_names
from streamloader.datasets.directory.local_root import FileStatus, LocalRoot
from streamloader.datasets.directory.remote_fetch import Fetched, Piece, fetch_ahead
from streamloader.datasets.directory.remote_listing import make_file_status
from streamloader.datasets.directory.remote_pack import DIGEST_BYTES, RemotePack, StorePack, digest_version
from streamloader.datasets.directory.remote_root import RemoteRoot, temporary_path
from streamloader.datasets.directory.served_pack import ServedPack
from streamloader.datasets.directory.subdirectory import DAMAGED_MEMBER, FindCopy, Subdirectory
from streamloader.errors import CorruptContainer, IntegrityError, LimitExceeded, NotFound, ObjectChanged
from streamloader.values import ObjectInfo

__all__ = ["RemoteSubdirectory", "convert_file"]

_ATTEMPTS: Final = 3  # to write a pack while files change
_MAX_WHOLE_BYTES: Final = 64 << 20  # of files that are copied into packs as a whole
_MAX_VERSIONS_BYTES: Final = MAX_METADATA_BYTES * 7 // 8 * 3 // 4
_NS: Final = 1_000_000_000

Content = bytes | memoryview


class RemoteSubdirectory(Subdirectory):
    """A subdirectory in a store. It is listed as a whole, and where its pack and the listing differ, the files count.

    A pack without any file beside it is *sealed*: it is served as it is, and nothing in it can be replaced or removed.

    Args:
        name: Name of the subdirectory.
        root: Files of the directory.
        codec: Codec of the members.
        check_files: Whether files that are newer than their pack have changed.

    Attributes:
        is_sealed: Whether there is a pack, and no file.
    """

    def __init__(self, name: str, root: RemoteRoot, codec: MemberCodec, *, check_files: bool) -> None:
        super().__init__(name, cast("LocalRoot", root), codec, check_files=check_files)
        self.is_sealed = False
        self._remote = root
        self._stored: StorePack | None = None  # the pack in the store, if it can be used
        self._check_times = check_files
        self._has_files = False

    # --- changes from outside ----------------------------------------------------------------------------------------

    @override
    def refresh(self, *, has_pack: bool = True) -> bool:
        stamp = self._remote.stamp_pack(self.name) if has_pack else None
        statuses = self._remote.list_statuses(self.name)
        self._has_files = bool(statuses)
        if stamp != self._pack_stamp:
            self._open_pack(stamp)
        self._compare(statuses)
        return True

    def needs_pack(self, stamp: object) -> bool:
        """Return whether the pack with this stamp is not the one that is open."""
        return stamp != self._pack_stamp

    @override
    def has_broken_pack(self) -> bool:
        """Return False: nothing is mapped."""
        return False

    @override
    def _open_pack(self, stamp: Any) -> int:
        self.packs.clear()
        self.shadowed.clear()
        self._stored = None
        self._pack_stamp = stamp
        if stamp is None:
            return 0
        try:
            pack, info = self._remote.open_pack(self.name, self._codec.compressor)
            problem = self._codec.describe_mismatch(pack)
            if problem is None:
                self._stored = self._serve_stored(pack, info)
                return 0
        except NotFound:
            self._pack_stamp = None
            return 0
        except CorruptContainer as error:
            problem = error.message
        if not self._has_files:
            address = self._remote.describe_pack(self.name)
            raise CorruptContainer(
                f"{address} cannot be used, and there are no files to read instead: {problem}", address=address
            )
        self._warn_of_pack(problem)
        return 0

    def _serve_stored(self, pack: MappedPack, info: ObjectInfo) -> StorePack:
        if isinstance(pack, RemotePack) and "serializer" in pack.index.metadata:
            pack.hold_member()  # so that errors of the store are not taken for those of the serializer
        versions = _get_versions(pack.index.metadata, self._remote.address)
        return self._serve_pack(self._codec.unpack(pack), versions, int((info.modified or 0) * _NS))

    def _serve_pack(self, pack: MappedPack, versions: bytes | None, packed_at: int) -> StorePack:
        if versions is not None and len(versions) != DIGEST_BYTES * len(pack):
            versions = None
        served = StorePack(
            pack,
            self.name,
            has_file_sizes=self._codec.packs_files,
            versions=versions,
            packed_at=packed_at,
            check_times=self._check_times,
        )
        self.packs.append(served)
        return served

    @override
    def _compare(self, statuses: dict[str, FileStatus]) -> None:
        self.shadowed.clear()
        self.is_sealed = self._stored is not None and not statuses
        if self._stored is not None and self.is_sealed:
            self._serve_sealed(self._stored)
            return
        self.prefix = self._remote.path(self.name, "")
        super()._compare(dict(statuses))
        is_copy = self.packs == [self._stored] and not self.packs[0].hidden and not self.loose
        self.is_outdated = bool(statuses) and not is_copy

    def _serve_sealed(self, served: StorePack) -> None:
        self.prefix = f"{self._remote.describe_pack(self.name)}!/"
        self.packs = [served]
        self.loose.clear()
        self.is_outdated = False
        for row, name in enumerate(served.pack.index.names()):
            if describe_bad_filename(name) is None:
                served.show(row, 0)
            else:  # such as those in folders
                served.hide(row)

    @property
    def newer(self) -> int:
        """Number of files that are read instead of their members only because they are newer than the pack."""
        return sum(served.newer for served in self.packs if isinstance(served, StorePack))

    # --- single files ------------------------------------------------------------------------------------------------

    @override
    def read_loose(self, filename: str) -> bytes | None:
        try:
            data = self._remote.read_file(self.name, filename)[0]
        except NotFound:
            return None
        return convert_file(self._codec, filename, data)

    def read_damaged(
        self, filename: str, served: ServedPack, row: int, error: CorruptContainer | IntegrityError | LimitExceeded
    ) -> bytes | None:
        """Return the content of a file whose member is damaged.

        Raises:
            StoreError: If there is no such file, or if it cannot be read.
        """
        return self._replace_damaged(filename, served, row, error)

    def make_piece(self, position: int, filename: str) -> Piece:
        """Return what is to be fetched for a loose file."""
        return Piece(position, self._remote.get_info(self.name, filename))

    # --- all files ---------------------------------------------------------------------------------------------------

    @override
    def load_to_memory(self, find_copy: FindCopy) -> None:
        versions: dict[str, bytes] = {}

        def note(name: str, status: FileStatus) -> None:
            versions[name] = digest_version(status.version)

        names = sort_names(self.loose)
        statuses: dict[str, FileStatus | None] = dict.fromkeys(names)
        contents = self._read_files(statuses, note)
        members = [NewMember(name, partial(_take, contents, name)) for name in names]
        files = _PinnedFiles(self._remote, {})
        pack = self._codec.make_memory_pack(files, self.name, members)
        digests = b"".join(versions[name] for name in pack.index.names())
        self._serve_pack(pack, digests, 0)
        self.loose.difference_update(pack.index.names())

    @override
    def write_pack(self, find_copy: FindCopy) -> None:
        statuses = self._write_current()
        self._has_files = bool(statuses)
        self._open_pack(self._remote.stamp_pack(self.name))
        self._compare(statuses)

    def _write_current(self) -> dict[str, FileStatus]:
        """Write the pack of the files that there are now, and return their statuses."""
        attempt = 1
        while statuses := self._remote.list_statuses(self.name):
            try:
                self._write_pack_of(statuses)
                return statuses
            except (ObjectChanged, NotFound):  # a file was replaced or deleted during this
                if attempt == _ATTEMPTS:
                    raise
                attempt += 1
        self.delete_pack()
        return {}

    def delete_pack(self) -> None:
        """Delete the pack. Without any file beside it, it would be served as it is."""
        if self.has_pack:
            self._remote.delete_pack(self.name)
            self._pack_stamp = self._stored = None

    def _write_pack_of(self, statuses: Mapping[str, FileStatus]) -> None:
        large = {name for name, status in statuses.items() if self._is_large(status)}
        contents = self._read_files({name: status for name, status in statuses.items() if name not in large}, None)
        members = [
            NewMember(name, None if name in large else partial(_take, contents, name), statuses[name].size)
            for name in sort_names(statuses)
        ]
        files = _PinnedFiles(self._remote, statuses)
        metadata = _make_versions(statuses, self._remote.address)
        build = partial(self._codec.write_pack, files, self.name, members, 0, more_metadata=metadata)
        self._remote.write_pack(self.name, build)

    def _is_large(self, status: FileStatus) -> bool:
        return self._codec.packs_files and self._codec.compressor is None and status.size > _MAX_WHOLE_BYTES

    def _read_files(
        self, statuses: Mapping[str, FileStatus | None], note: Callable[[str, FileStatus], None] | None
    ) -> Iterator[tuple[str, Content | None, int]]:
        """Yield name, content and modification time of files, in ascending order of the bytes of their names.

        The content of files without a status that are gone is None.

        Raises:
            ObjectChanged: If a file has another version than its status.
            StoreError: If a file with a status is gone, or the store fails.
        """
        names = sort_names(statuses)
        copies = [self._find_same(name, statuses[name]) for name in names]
        pieces = [self._make_source(number, name, statuses[name], copies[number]) for number, name in enumerate(names)]
        fetched = fetch_ahead(self._remote.submit, [piece for piece in pieces if piece is not None])
        for number, name in enumerate(names):
            status, copy = statuses[name], copies[number]
            content: Content | None
            if pieces[number] is None:
                assert copy is not None
                content = _read_copy(copy[0].pack, copy[1], None)
            else:
                outcome = next(fetched)[1]
                if isinstance(outcome, NotFound) and status is None:
                    yield name, None, 0
                    continue
                if not isinstance(outcome, Fetched):
                    raise outcome
                if copy is None:
                    content = convert_file(self._codec, name, outcome.data)
                    status = status or make_file_status(outcome.info)
                else:
                    content = _read_copy(copy[0].pack, copy[1], outcome.data)
            if content is None:  # the member is damaged
                data, status = self._remote.read_file(self.name, name)
                content = convert_file(self._codec, name, data)
            assert status is not None
            if note is not None:
                note(name, status)
            yield name, content, status.modified

    def _find_same(self, name: str, status: FileStatus | None) -> tuple[ServedPack, int] | None:
        for served in reversed(self.packs) if status is not None else ():
            row = served.pack.find(name)
            if row is not None and status is not None and served.is_same(row, status):
                return served, row
        return None

    def _make_source(
        self, number: int, name: str, status: FileStatus | None, copy: tuple[ServedPack, int] | None
    ) -> Piece | None:
        """Return what is to be fetched for a file. None if it is in memory."""
        if copy is None:
            return Piece(number, self._remote.get_info(self.name, name, status))
        pack = copy[0].pack
        return Piece(number, pack, copy[1]) if isinstance(pack, RemotePack) else None


class _PinnedFiles:
    """The files of a subdirectory in the versions of a listing, and no others: what a codec needs of a root.

    Args:
        root: Files of the directory.
        statuses: Status of each file.
    """

    def __init__(self, root: RemoteRoot, statuses: Mapping[str, FileStatus]) -> None:
        self._root = root
        self._statuses = statuses

    def path(self, *names: str) -> str:
        return self._root.path(*names)

    def get_status(self, subdirectory: str, filename: str) -> FileStatus | None:
        return self._statuses.get(filename)

    def iterate_file(self, subdirectory: str, filename: str) -> Iterator[bytes]:
        return self._root.iterate_file(self._root.get_info(subdirectory, filename, self._statuses[filename]))

    def read_file(self, subdirectory: str, filename: str) -> tuple[bytes, FileStatus]:
        if filename not in self._statuses:
            address = self.path(subdirectory, filename)
            raise NotFound(f"no such file: {address}", address=address)
        return b"".join(self.iterate_file(subdirectory, filename)), self._statuses[filename]


def convert_file(codec: MemberCodec, filename: str, data: bytes | memoryview) -> bytes:
    """Return the content that a member for a file has. A data manager that needs a path gets a temporary file."""
    if codec.packs_files:
        return bytes(data)
    manager = codec.data_manager
    with temporary_path(filename, data) as path:
        return bytes(manager.serialize(manager.load(path)))


def _take(contents: Iterator[tuple[str, Content | None, int]], name: str) -> tuple[Content, int] | None:
    """Return content and modification time of the next file, whose name is known. None if it is gone."""
    next_name, content, modified = next(contents)
    assert next_name == name
    return None if content is None else (content, modified)


def _read_copy(pack: MappedPack, row: int, stored: Content | None) -> Content | None:
    """Return the content of a member, from its stored bytes if they were fetched. None if it is damaged."""
    try:
        return pack.read(row) if stored is None else pack.decode(row, stored)
    except DAMAGED_MEMBER:
        return None


def _make_versions(statuses: Mapping[str, FileStatus], address: str) -> dict[str, Any]:
    """Return the metadata by which a reader of the same root recognizes the files."""
    digests = [digest_version(statuses[name].version) for name in sort_names(statuses)]
    if not all(digests) or len(digests) * DIGEST_BYTES > _MAX_VERSIONS_BYTES:
        return {}
    return {"versions": base64.b64encode(b"".join(digests)).decode(), "versions_of": address}


def _get_versions(metadata: Mapping[str, Any], address: str) -> bytes | None:
    """Return the digests of versions in metadata. None if there are none, or if they are those of another root."""
    text = metadata.get("versions")
    if metadata.get("versions_of") != address or not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None

"""Turn files into members of packs, and members into objects."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from streamloader.common.printable import make_printable
from streamloader.containers.pack.build import PackBuilder, get_method
from streamloader.containers.pack.format import CUSTOM, SERIALIZED_NAME, describe_class
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.compressors import Compressor
from streamloader.datasets.directory.filenames import describe_bad_filename, sort_names
from streamloader.datasets.directory.local_root import FileStatus
from streamloader.datasets.directory.managers import DataManager
from streamloader.errors import CorruptContainer, NotFound, StoreError

__all__ = ["SETTLED_NS", "FileSource", "MemberCodec", "NewMember", "Serializer", "drop_recent", "is_settled"]

SETTLED_NS: Final = 50_000_000  # after which a change of a file gives it another time, whatever the clock's resolution
_COARSE_NS: Final = 1_000_000_000  # of which times are multiples on some file systems
_COARSE_SETTLED_NS: Final = 2 * _COARSE_NS
_MAX_WHOLE_BYTES: Final = 64 << 20  # of files that are copied into packs as a whole


class Serializer(Protocol):
    """Turns a dictionary from names to bytes into bytes, and back: the interface of a user's own serializer."""

    def serialize(self, value: Any) -> bytes:
        """Return an object as bytes."""

    def deserialize(self, data: bytes) -> Any:
        """Return the object from which :meth:`serialize` has made `data`."""


class FileSource(Protocol):
    """Where the files of subdirectories are read: a root on this machine, or files of a store in their versions."""

    def path(self, *names: str) -> str:
        """Return the path of a subdirectory, or of a file in it."""

    def get_status(self, subdirectory: str, filename: str) -> FileStatus | None:
        """Return the status of a file. None if there is none."""

    def read_file(self, subdirectory: str, filename: str) -> tuple[bytes, FileStatus]:
        """Return the content of a file, and its status before it was read.

        Raises:
            NotFound: If there is no such file.
            StoreError: If it cannot be read.
        """

    def iterate_file(self, subdirectory: str, filename: str) -> Iterator[bytes]:
        """Yield the content of a file in pieces. Errors are those of :meth:`read_file`."""


class NewMember(NamedTuple):
    """Member of a pack that is to be written.

    Attributes:
        name: Name of the file.
        read: Function that returns its content and modification time if another pack has it. None for a file.
        size: Size of the file in bytes when it was listed. Defaults to 0: it is read as a whole.
    """

    name: str
    read: Callable[[], tuple[bytes | memoryview, int] | None] | None
    size: int = 0


def drop_recent(modified: int) -> int:
    """Return a modification time in nanoseconds, or 0 if a later change could give the file the same one."""
    return modified if modified > 0 and is_settled(modified, time.time_ns()) else 0


def is_settled(changed: int, now: int) -> bool:
    """Return whether a change after `now` would have another time than `changed`. All times are in nanoseconds.

    Whole seconds may come from a file system whose times have steps of one or two seconds.
    """
    return changed < now - (SETTLED_NS if changed % _COARSE_NS else _COARSE_SETTLED_NS)


class MemberCodec:
    """The data manager, serializer and compressor of a directory.

    Args:
        data_manager: Data manager.
        serializer: Serializer of whole packs. None for packs that need no code of the user.
        compressor: Compressor of packs. None for none.

    Attributes:
        data_manager: Data manager.
        compressor: Compressor of packs, or None.
        packs_files: Whether members are copies of files. Otherwise they are objects that the data manager serialized.
    """

    def __init__(self, data_manager: DataManager, serializer: Serializer | None, compressor: Compressor | None) -> None:
        self.data_manager = data_manager
        self.compressor = compressor
        self.packs_files = bool(getattr(data_manager, "packs_files", False))
        self._serializer = serializer
        self._manager_name = None if self.packs_files else _describe_class(data_manager)

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the object of a member."""
        return self.data_manager.deserialize(data if self.packs_files else bytes(data))

    def read_file(self, root: FileSource, subdirectory: str, filename: str) -> tuple[bytes, FileStatus]:
        """Return the content that a member for a file has, and the status of the file before it was read.

        Raises:
            NotFound: If there is no such file.
            StoreError: If it cannot be read.
        """
        if self.packs_files:
            return root.read_file(subdirectory, filename)
        status = root.get_status(subdirectory, filename)
        if status is None:
            path = root.path(subdirectory, filename)
            raise NotFound(f"no such file: {path}", address=path)
        return bytes(self.data_manager.serialize(self._load(root, subdirectory, filename))), status

    def _load(self, root: FileSource, subdirectory: str, filename: str) -> Any:
        """Return the object in a file. That the data manager misses another file does not mean that this one is gone.

        Raises:
            NotFound: If there is no such file.
            StoreError: If the data manager finds no file of another name.
        """
        path = root.path(subdirectory, filename)
        try:
            return self.data_manager.load(path)
        except FileNotFoundError as error:
            if root.get_status(subdirectory, filename) is None:
                raise NotFound(f"no such file: {path}", address=path) from error
            raise StoreError(
                f"{path}: {_describe_class(self.data_manager)} cannot load it: {error}", address=path
            ) from error

    # --- writing -----------------------------------------------------------------------------------------------------

    def write_pack(
        self,
        root: FileSource,
        subdirectory: str,
        members: Iterable[NewMember],
        directory_modified: int,
        file: Any,
        *,
        more_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a pack of files.

        Args:
            root: Files of the directory.
            subdirectory: Name of the subdirectory.
            members: Members in ascending order of the bytes of their names. Files that are gone are left out.
            directory_modified: Modification time of the subdirectory in nanoseconds when it was listed. 0 if unknown.
                The pack records 0 if a file is left out.
            file: Object with a method `write`.
            more_metadata: Further metadata. Defaults to none.
        """
        metadata = self._make_metadata(directory_modified) | dict(more_metadata or {})
        listed = list(members)
        if self._serializer is not None:
            self._write_serialized(file, root, subdirectory, listed, metadata)
            return
        builder = PackBuilder(file, compressor=self.compressor, metadata=metadata)
        for is_large, group in itertools.groupby(listed, lambda member: member.size > _MAX_WHOLE_BYTES):
            if not is_large:
                self._add_members(builder, root, subdirectory, group)
                continue
            for member in group:
                if not self._copy_large(builder, root, subdirectory, member):
                    self._add_members(builder, root, subdirectory, [member])
        if len(builder) < len(listed):  # the listing has files that the pack has not
            builder.metadata["directory_modified"] = 0
        builder.finish()

    def _add_members(
        self, builder: PackBuilder, root: FileSource, subdirectory: str, members: Iterable[NewMember]
    ) -> None:
        for name, data, modified in self._read_members(root, subdirectory, members):
            builder.add(name, data, modified=modified)

    def make_memory_pack(self, root: FileSource, subdirectory: str, members: Iterable[NewMember]) -> MappedPack:
        """Return a pack of files in memory. Files that are gone are left out."""
        return _pack_in_memory(self._read_members(root, subdirectory, members))

    def _read_members(
        self, root: FileSource, subdirectory: str, members: Iterable[NewMember]
    ) -> Iterator[tuple[str, bytes | memoryview, int]]:
        for name, read, _ in members:
            copy = None if read is None else read()
            if copy is not None:
                yield name, *copy
                continue
            try:
                data, status = self.read_file(root, subdirectory, name)
            except FileNotFoundError:
                continue
            yield name, data, drop_recent(status.modified)

    def _copy_large(self, builder: PackBuilder, root: FileSource, subdirectory: str, member: NewMember) -> bool:
        """Add a large file in pieces, and return whether it is one."""
        if not self.packs_files or self.compressor is not None:
            return False
        status = None if member.read is not None else root.get_status(subdirectory, member.name)
        if status is None:
            return False
        pieces = root.iterate_file(subdirectory, member.name)
        builder.add_stream(member.name, pieces, modified=drop_recent(status.modified))
        return True

    def _make_metadata(self, directory_modified: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {"directory_modified": directory_modified}
        if self._manager_name is not None:
            metadata["data_manager"] = self._manager_name
        if self._serializer is not None:
            metadata["serializer"] = _describe_class(self._serializer)
            metadata["read_at"] = time.time_ns()
        if self.compressor is not None and (self._serializer is not None or get_method(self.compressor) == CUSTOM):
            metadata["compressor"] = _describe_class(self.compressor)
        return metadata

    def _write_serialized(
        self, file: Any, root: FileSource, subdirectory: str, members: Sequence[NewMember], metadata: dict[str, Any]
    ) -> None:
        assert self._serializer is not None
        files = {name: bytes(content) for name, content, _ in self._read_members(root, subdirectory, members)}
        if len(files) < len(members):
            metadata["directory_modified"] = 0
        data = self._serializer.serialize(files)
        if self.compressor is not None:
            data = self.compressor.compress(data)
        builder = PackBuilder(file, metadata=metadata)
        builder.add(SERIALIZED_NAME, data)
        builder.finish()

    # --- reading -----------------------------------------------------------------------------------------------------

    def describe_mismatch(self, pack: MappedPack) -> str | None:
        """Return why the files of a pack cannot be served by this codec. None if they can."""
        metadata = pack.index.metadata
        if (manager := metadata.get("data_manager")) != self._manager_name:
            content = "copies of files" if manager is None else f"objects of the data manager {make_printable(manager)}"
            return f"it holds {content}, which {_describe_class(self.data_manager)} does not read"
        serializer, compressor = metadata.get("serializer"), metadata.get("compressor")
        for kind, name, own in (
            ("serializer", serializer, self._serializer),
            ("compressor", compressor, self.compressor),
        ):
            if name is not None and (own is None or _normalize(name) != _describe_class(own)):
                return f"it was made with the {kind} {make_printable(name)}. Pass {kind}= to open it"
        if serializer is not None and compressor is None and self.compressor is not None:
            return "it was made without a compressor. Leave compressor= out to open it"
        return None

    def unpack(self, pack: MappedPack) -> MappedPack:
        """Return a pack whose members are the files: the same one, or one in memory if a serializer has made it.

        Raises:
            CorruptContainer: If the user's serializer or compressor cannot read it.
        """
        if "serializer" not in pack.index.metadata:
            return pack
        assert self._serializer is not None
        try:
            data = bytes(pack.read(0))
            if self.compressor is not None:
                data = bytes(self.compressor.decompress(data))
            files = self._serializer.deserialize(data)
        except Exception as error:  # of any kind: the objects are the user's
            raise _make_error(pack, f"its {_describe_class(self._serializer)} cannot read it") from error
        if not isinstance(files, dict) or not all(map(_is_file, files.items())):
            raise _make_error(pack, "it holds no dictionary from names to bytes")
        return _pack_in_memory((name, files[name], 0) for name in sort_names(files))


def _pack_in_memory(members: Iterable[tuple[str, bytes | memoryview, int]]) -> MappedPack:
    file = io.BytesIO()
    builder = PackBuilder(file)
    for name, data, modified in members:
        builder.add(name, data, modified=modified)
    builder.finish()
    return MappedPack.from_bytes(file.getvalue())  # which gives back what the buffer has allocated too much


def _is_file(item: tuple[Any, Any]) -> bool:
    name, data = item
    is_name = isinstance(name, str) and describe_bad_filename(name) is None
    return is_name and isinstance(data, (bytes, bytearray, memoryview))


def _describe_class(value: object) -> str:
    return _normalize(describe_class(value))


def _normalize(name: Any) -> str:
    """Return the name of a class. In worker processes, the main module has another name."""
    return str(name).replace("__mp_main__.", "__main__.", 1)


def _make_error(pack: MappedPack, detail: str) -> CorruptContainer:
    return CorruptContainer(f"{pack.address}: {detail}", address=pack.address, offset=0)

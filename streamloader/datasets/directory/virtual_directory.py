"""Many small files in many subdirectories, as one directory."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self, get_args

from streamloader.arguments import check_integer, expand_path
from streamloader.datasets.directory.codec import MemberCodec, Serializer
from streamloader.datasets.directory.compressors import Compressor
from streamloader.datasets.directory.contents import OnDuplicate
from streamloader.datasets.directory.editable_contents import EditableContents
from streamloader.datasets.directory.local_root import LocalRoot
from streamloader.datasets.directory.lock import DirectoryLock
from streamloader.datasets.directory.managers import DataManager
from streamloader.errors import ConfigError, StreamloaderError
from streamloader.stores.io_thread import is_io_thread
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file, spell_address

__all__ = ["VirtualDirectory"]

_log = logging.getLogger(__name__)

_MAX_SUBDIRECTORIES: Final = 1_000_000
_CHECKS: Final = ("files", "names")
_OWN_ATTRIBUTES: Final = ("_arguments", "_root", "_owner_pid", "_contents", "_finalizer")
_MANAGER_METHODS: Final = ("save", "load", "serialize", "deserialize")


class VirtualDirectory:
    """Hundreds of thousands of small files, spread over many subdirectories, that look like one directory.

    Every subdirectory of `root` is part of it, and every file directly in one of them is a file of the directory. Files
    in `root` itself, and names that begin with a dot, are ignored. :meth:`save_state` writes a *pack* beside each
    subdirectory, a copy of its files. Packs are mapped into memory, so a directory with packs opens in milliseconds,
    and a file is read in about a microsecond. They are data and never code, and the files always count: where files
    came, went or changed since, or where a pack is damaged, the files are read instead.

    Many processes can read a directory at the same time. One of them can write, from its first change to
    :meth:`close`. Instances can be pickled, and used in forked processes such as the workers of a DataLoader.

    A pack must never be overwritten in place while it is open, as ``cp`` and ``rsync --inplace`` do: where the new one
    is shorter, the operating system ends a process that reads the mapping with a bus error. Copy it to another name and
    rename it, as :meth:`save_state` does.

    `root` may also be the address of a folder in a store. It is listed once, and files are read from packs by their
    spans. A store has no locks, so only one process should write. On servers without listings, packs that are named
    ``subdir_0.pack``, ``subdir_1.pack`` and so on are found. A pack without any file beside it is served as it is.

    Args:
        root: Path of the directory, or address of a folder in a store. It is created if it does not exist.
        data_manager: Object that saves, loads, serializes and deserializes the objects in the files.
        verbose: Whether to show the progress of what takes longer than a second. Defaults to True.
        load_to_memory: Whether files that are in no pack are read into memory at once. Packs are mapped in any case,
            but those in a store are read as a whole. Defaults to True.
        min_subdir_num: Minimum number of subdirectories. Missing ones are created. Defaults to 100.
        save_on_destruction: Whether :meth:`save_state` is called when the instance is closed, or no longer used.
            Defaults to False.
        serializer: Object that turns a dictionary from names to bytes into bytes, and back, for packs that only it can
            open. Defaults to None: packs that need no code of the user.
        compressor: Object that compresses packs. Those with :class:`ZlibCompressor` and :class:`ZstdCompressor` open
            without it. Defaults to None.
        seed: Seed for the subdirectories of new files. Defaults to None: others each time.
        on_duplicate: Treatment of names that are in two subdirectories: ``"error"`` raises, ``"first"`` ignores all
            but the first in natural order, and ``"rename"`` renames the others on disk, to "name (2).png". Defaults to
            ``"error"``.
        check: Changes from outside that are noticed. ``"files"`` looks at each file when it is first read, so that
            files that were overwritten in place are noticed. ``"names"`` leaves this out: what is noticed is that files
            came, went or were replaced. Defaults to ``"files"``. In a store, files are compared at the start only, and
            ``"names"`` ignores their times.
        lock_timeout: Maximum number of seconds to wait for another process that moves files or writes packs.
            Defaults to 60.
        storage_options: Options of the store, for a root that is no path. Defaults to none.

    Raises:
        ConfigError: If an argument is invalid.
        DuplicateName: If two subdirectories have a file of the same name.
        DirectoryLocked: If another process moves files for longer than `lock_timeout`.
        NotEnoughMemory: If what `load_to_memory` reads at once does not fit into memory.
        StoreError: If the directory cannot be created or read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        data_manager: DataManager,
        verbose: bool = True,
        load_to_memory: bool = True,
        min_subdir_num: int = 100,
        save_on_destruction: bool = False,
        serializer: Serializer | None = None,
        compressor: Compressor | None = None,
        seed: int | None = None,
        *,
        on_duplicate: OnDuplicate = "error",
        check: str = "files",
        lock_timeout: float = 60.0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "root")
        }
        self._root = spell_address(os.fspath(root))
        if is_local_file(self._root):  # a copy may be made where another folder is the current one
            self._root = os.path.abspath(expand_path(local_path(self._root)))
        self._owner_pid = os.getpid()
        _check_arguments(**self._arguments)
        self._contents = _make_contents(
            self._root,
            MemberCodec(data_manager, serializer, compressor),
            storage_options,
            float(lock_timeout),
            load_to_memory=load_to_memory,
            min_subdirectories=check_integer("min_subdir_num", min_subdir_num),
            seed=None if seed is None else check_integer("seed", seed),
            on_duplicate=on_duplicate,
            check_files=check == "files",
            verbose=verbose,
        )
        self._contents.open()
        # Also at exit. The contents do not refer to this object, so that it can be collected.
        self._finalizer = weakref.finalize(self, _finish, self._contents, save_on_destruction, self._owner_pid)

    @property
    def root(self) -> str:
        """Absolute path of the directory."""
        return self._contents.root.address

    # --- reading -----------------------------------------------------------------------------------------------------

    def load(self, filename: str) -> Any:
        """Return the object in a file. None if there is no such file.

        Raises:
            CorruptContainer: If the pack is damaged, and the file cannot be read instead.
            StoreError: If the file cannot be read.
        """
        return self._contents.load(filename)

    def read(self, filename: str) -> memoryview | None:
        """Return the content of a file without decoding it. None if there is no such file.

        It is a view of the pack if one has the file: nothing is copied. For a data manager without ``packs_files``, it
        is what its ``serialize`` returned. Errors are those of :meth:`load`.
        """
        view = self._contents.table.read(filename)
        if view is None:
            data = self._contents.read(filename)
            view = None if data is None else memoryview(data)
        return view

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the object that the data manager makes of a result of :meth:`read`.

        Raises:
            CorruptSample: If the data manager cannot decode it.
        """
        return self._contents.codec.decode(data)

    def read_many(self, filenames: Sequence[str]) -> list[memoryview | None]:
        """Return the contents of many files without decoding them, as :meth:`read` does for one.

        For a root in a store, many requests are made at the same time, and members that lie close to each other in a
        pack are fetched by one request.

        Args:
            filenames: Names of files, in any order. None stands in the result for those that do not exist.

        Raises:
            CorruptContainer: If a pack is damaged, and the file cannot be read instead.
            StoreError: If a file cannot be read.
        """
        read = self._contents.table.read
        views = [read(filename) for filename in filenames]
        missing = [position for position, view in enumerate(views) if view is None]
        if missing:
            contents = self._contents.read_many([filenames[position] for position in missing])
            for position, data in zip(missing, contents, strict=True):
                views[position] = None if data is None else memoryview(data)
        return views

    def load_many(self, filenames: Sequence[str]) -> list[Any]:
        """Return the objects in many files, as :meth:`load` does for one. Requests are made as for :meth:`read_many`.

        Args:
            filenames: Names of files, in any order. None stands in the result for those that do not exist.
        """
        return self._contents.load_many(filenames)

    def exists(self, filename: str) -> bool:
        """Return whether there is a file of this name."""
        return self._contents.find(filename) is not None

    def get_path(self, filename: str) -> str | None:
        """Return the path of a file, or its address in a store without secrets. None if there is no such file."""
        return self._contents.get_path(filename)

    def get_list_of_files(self) -> list[str]:
        """Return the names of all files: by subdirectory in natural order, then in the order of their bytes."""
        return self._contents.list_names()

    def list_by_subdirectory(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the name of each subdirectory and the names of its files, in the order of :meth:`get_list_of_files`."""
        return self._contents.list_by_subdirectory()

    def measure_packs(self) -> tuple[int, int]:
        """Return the number of files that packs have, and their size in the packs in bytes."""
        return self._contents.measure_packs()

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._contents)

    def __contains__(self, filename: object) -> bool:
        return isinstance(filename, str) and self.exists(filename)

    def __iter__(self) -> Iterator[tuple[str, str, bytes | None]]:
        """Yield name, path and content of all files, in the order of :meth:`get_list_of_files`.

        The content is as for :meth:`read`, and None without `load_to_memory`.
        """
        return self._contents.iterate()

    def items(self) -> Iterator[tuple[str, memoryview]]:
        """Yield name and content of all files, in the order of :meth:`get_list_of_files`.

        The content is as for :meth:`read`, with and without `load_to_memory`. Nothing is copied where the pack is up to
        date and not compressed, so this is the fastest way to read all files.
        """
        return self._contents.iterate_views()

    # --- writing -----------------------------------------------------------------------------------------------------

    def save(self, filename: str, object: Any) -> None:  # noqa: A002 - a name that callers use
        """Write an object to a file. A new name gets a random subdirectory, and an existing file is replaced.

        The file is complete at once, or not there. Packs are brought up to date by :meth:`save_state`.

        Args:
            filename: Name of the file: visible, one level, and at most 255 bytes.
            object: Object to write.

        Raises:
            ConfigError: If the name cannot be that of a file.
            DirectoryLocked: If another process writes to the directory.
            StorageFull: If the disk is full. An existing file is unchanged.
            StoreError: If this user cannot write to the directory.
        """
        self._contents.save(filename, object)

    def remove(self, filename: str) -> None:
        """Delete a file. Nothing happens if there is none. With ``on_duplicate="first"``, the ignored ones go as well.

        Raises:
            DirectoryLocked: If another process writes to the directory.
            StoreError: If the file cannot be deleted.
        """
        self._contents.remove(filename)

    def save_state(self) -> None:
        """Write the packs that are missing or out of date, so that the next start is fast.

        Many processes may call this at the same time: one of them writes, and the others wait and use its packs.

        Raises:
            DirectoryLocked: If another process changes files of the directory for longer than `lock_timeout`.
            StorageFull: If the disk is full. The old version of the pack remains.
            StoreError: If a pack cannot be written for another reason. Its old version remains.
        """
        self._contents.write_packs()

    def redistribute_all_files(self, are_you_sure: bool = False) -> None:
        """Move all files to random subdirectories, so that all of these have the same number of files.

        The moves are written down first. If the process is killed, every file is in one of two subdirectories, and the
        next instance that opens the directory makes the missing moves. Existing packs are written again.

        Args:
            are_you_sure: Whether to do it. Defaults to False: nothing happens.

        Raises:
            DirectoryLocked: If another instance has the directory open.
            StoreError: If a file cannot be moved. The next instance goes on with the moves.
        """
        if not are_you_sure:
            _log.warning("%s: no file was moved. Pass are_you_sure=True to redistribute all files", self.root)
            return
        self._contents.redistribute()

    def close(self) -> None:
        """Release the locks and the packs. Safe to call twice. Views that were returned remain valid."""
        try:
            is_owner = os.getpid() == self._owner_pid
            if self._arguments["save_on_destruction"] and is_owner and not self._contents.is_closed:
                self._contents.write_packs()
        finally:
            self._finalizer.detach()
            self._contents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"VirtualDirectory({self.root!r})"

    def __getstate__(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return root, arguments and the attributes of a subclass.

        The copy opens the directory again, and reads it until it writes itself.
        """
        others = {name: value for name, value in self.__dict__.items() if name not in _OWN_ATTRIBUTES}
        return self._root, self._arguments | {"save_on_destruction": False}, others

    def __setstate__(self, state: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
        root, arguments, others = state
        VirtualDirectory.__init__(self, root, **arguments)  # that of a subclass may take other arguments
        self.__dict__.update(others)


def _make_contents(
    root: str,
    codec: MemberCodec,
    storage_options: Mapping[str, Any] | None,
    lock_timeout: float,
    **options: Any,
) -> EditableContents:
    """Return the contents of a root that is a path, or the address of a folder in a store."""
    if not is_local_file(root):
        from streamloader.datasets.directory.remote_contents import RemoteContents
        from streamloader.datasets.directory.remote_root import RemoteRoot

        files = RemoteRoot(
            root,
            storage_options,
            load_whole=options["load_to_memory"],
            expected_packs=options["min_subdirectories"],
        )
        return RemoteContents(files, codec, **options)
    if storage_options:
        raise ConfigError(f"storage_options={sorted(storage_options)}: a path has no options")
    local = LocalRoot(local_path(root))
    return EditableContents(local, codec, DirectoryLock(local.address, lock_timeout), **options)


def _check_arguments(
    *,
    data_manager: Any,
    min_subdir_num: Any,
    serializer: Any,
    compressor: Any,
    on_duplicate: Any,
    check: Any,
    lock_timeout: Any,
    **_: Any,
) -> None:
    _check_methods("data_manager", data_manager, _MANAGER_METHODS)
    if serializer is not None:
        _check_methods("serializer", serializer, ("serialize", "deserialize"))
    if compressor is not None:
        _check_methods("compressor", compressor, ("compress", "decompress"))
    for name, value, choices in (("on_duplicate", on_duplicate, get_args(OnDuplicate)), ("check", check, _CHECKS)):
        if value not in choices:
            raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")
    is_count = hasattr(min_subdir_num, "__index__") and check_integer("min_subdir_num", min_subdir_num) >= 0
    if not is_count or min_subdir_num > _MAX_SUBDIRECTORIES:
        raise ConfigError(
            f"min_subdir_num={min_subdir_num!r:.80}: must be a whole number of 0 or more, and at most "
            f"{_MAX_SUBDIRECTORIES:,}"
        )
    try:
        is_time = float(lock_timeout) >= 0 and not isinstance(lock_timeout, str)
    except (TypeError, ValueError):
        is_time = False
    if not is_time:
        raise ConfigError(f"lock_timeout={lock_timeout!r:.80}: must be 0 or more seconds")


def _check_methods(name: str, value: Any, methods: tuple[str, ...]) -> None:
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise ConfigError(f"{name} of the class {type(value).__name__} has no method {missing[0]}")


def _finish(contents: EditableContents, save_on_destruction: bool, owner_pid: int) -> None:
    """Close the contents of an instance that is not used any more. A forked process saves nothing.

    It may be collected in any thread. The one that serves all requests to stores cannot wait for itself.
    """
    if is_io_thread():
        arguments = (contents, save_on_destruction, owner_pid)
        threading.Thread(target=_finish, args=arguments, name="streamloader-directory-close").start()
        return
    try:
        if save_on_destruction and os.getpid() == owner_pid:
            contents.write_packs()
    except StreamloaderError as error:
        _log.error("%s: the packs could not be saved: %s", contents.root.address, error.message)
    finally:
        contents.close()

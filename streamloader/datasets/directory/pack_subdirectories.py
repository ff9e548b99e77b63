"""Bring the packs of all subdirectories of a directory up to date, without a data manager of the user."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from streamloader.common.count_display import open_count_display
from streamloader.common.printable import make_printable
from streamloader.datasets.directory.compressors import Compressor
from streamloader.datasets.directory.local_root import PACK_SUFFIX, LocalRoot
from streamloader.datasets.directory.managers import BytesDataManager
from streamloader.datasets.directory.pack_summary import compare_pack, open_pack, summarize_directory
from streamloader.datasets.directory.virtual_directory import VirtualDirectory
from streamloader.errors import ConfigError, CorruptContainer, NotFound

__all__ = ["PackedDirectory", "pack_subdirectories"]

_CLASS_KEYS: Final = ("data_manager", "serializer", "compressor")


@dataclass(frozen=True)
class PackedDirectory:
    """Result of packing the subdirectories of a directory.

    Attributes:
        written: Number of packs that were written.
        unchanged: Number of packs that were up to date.
        members: Number of files in all packs.
        bytes: Size of these files together in bytes.
        pack_bytes: Size of all packs together in bytes.
    """

    written: int
    unchanged: int
    members: int
    bytes: int
    pack_bytes: int


def pack_subdirectories(folder: str, *, compressor: Compressor | None = None, verbose: bool = True) -> PackedDirectory:
    """Write a pack of each subdirectory whose pack is missing or out of date.

    Files that were overwritten in place are noticed by their time or size.

    Args:
        folder: Path of the directory.
        compressor: Compressor of the packs that are written. Defaults to none.
        verbose: Whether to show progress. Defaults to True.

    Raises:
        NotFound: If the directory has no subdirectories.
        ConfigError: If a pack was made with a data manager, serializer or compressor of the user.
        DirectoryLocked: If another process writes to the directory.
        StoreError: If a file cannot be read, or a pack cannot be written. Its old version remains.
    """
    root = LocalRoot(folder)
    names = root.list_root().subdirectories
    if not names:
        raise NotFound(
            f"{root.address} has no subdirectories. With --output FILE.pack, `streamloader pack` makes one pack of all "
            "its files",
            address=root.address,
        )
    changed = _find_changed(root, names, verbose=verbose)
    stamps = {name: root.stamp_pack(name) for name in names}
    with VirtualDirectory(
        root.address, BytesDataManager(), verbose, load_to_memory=False, min_subdir_num=0, compressor=compressor,
        on_duplicate="first",
    ) as directory:  # fmt: skip
        for filename in changed:
            directory.read(filename)  # compares the file with the pack
        directory.save_state()
    written = sum(root.stamp_pack(name) != stamp for name, stamp in stamps.items())
    summary = summarize_directory(root.address, 0)
    return PackedDirectory(
        written,
        sum(root.stamp_pack(name) is not None for name in names) - written,
        *(summary[key] for key in ("members", "bytes", "pack_bytes")),
    )


def _find_changed(root: LocalRoot, names: list[str], *, verbose: bool) -> list[str]:
    """Return the names of all files that have changed since their pack was made. Damaged packs have none."""
    changed = []
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(open_count_display("comparing subdirectories")) if verbose else None
        for number, name in enumerate(names):
            if show is not None:
                show(number, len(names))
            if root.stamp_pack(name) is None:
                continue
            path = root.path(name + PACK_SUFFIX)
            with contextlib.suppress(CorruptContainer), open_pack(path) as pack:
                _check_metadata(path, pack.index.metadata)
                changed += compare_pack(pack, root.list_statuses(name)).changed
    return changed


def _check_metadata(path: str, metadata: Mapping[str, Any]) -> None:
    """Check that a pack can be replaced without the objects of a user.

    Raises:
        ConfigError: If it cannot.
    """
    for key in _CLASS_KEYS:
        if key in metadata:
            raise ConfigError(
                f"{path} was made with the {key.replace('_', ' ')} {make_printable(metadata[key])}. Call save_state() "
                "of a VirtualDirectory with it to bring the pack up to date"
            )

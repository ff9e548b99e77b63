"""Find out on what kind of file system an open file lies."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Final

__all__ = ["is_on_local_disk"]

_LOCAL_TYPES: Final = frozenset(
    {"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "squashfs", "tmpfs", "xfs", "zfs"}
)


def is_on_local_disk(fd: int) -> bool:
    """Return whether an open file certainly lies on a disk, or in the memory, of this machine.

    False for file systems of a network or a user's program, for unknown ones, and on systems other than Linux.

    Args:
        fd: Descriptor of the file.
    """
    return _is_local_device(os.fstat(fd).st_dev)


@functools.lru_cache(maxsize=64)
def _is_local_device(device: int) -> bool:
    """Return whether a device has one of the local file systems, by the table of mounts: proc_pid_mountinfo(5)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with (
        contextlib.suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table,
    ):
        for line in table:
            mount, _, source = line.partition(" - ")
            if mount.split(" ")[2] == wanted:
                return source.split(" ")[0] in _LOCAL_TYPES
    return False

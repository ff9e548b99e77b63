"""Find out whether a folder is on a disk of this machine, or on a file system that several machines share."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["is_local_folder", "is_network_folder"]

_NETWORK_TYPES: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs",
     "panfs", "smb3", "smbfs", "virtiofs", "wekafs"}
)  # fmt: skip
_LOCAL_TYPES: Final = frozenset(
    {"bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "squashfs", "tmpfs", "xfs", "zfs"}
)
_MOUNTS_FILE: Final = "/proc/self/mountinfo"


def is_network_folder(path: str) -> bool:
    """Return whether a folder may be on a file system that several machines share. False where that is unknown.

    A file system in user space (FUSE) counts as shared.
    """
    kind = _find_type(path)
    return kind in _NETWORK_TYPES or kind.startswith("fuse")


def is_local_folder(path: str) -> bool:
    """Return whether a folder is on a disk of this machine, or in its memory. False where that is unknown."""
    return _find_type(path) in _LOCAL_TYPES


def _find_type(path: str) -> str:
    """Return the type of the file system of a folder. Empty if it is unknown."""
    real, best, kind = os.path.realpath(path), "", ""
    try:
        with open(_MOUNTS_FILE, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:  # see proc_pid_mountinfo(5): the type follows a separator, optional fields precede it
                fields, _, rest = line.partition(" - ")
                point = _unescape(fields.split()[4])
                if len(point) >= len(best) and (real == point or real.startswith(point.rstrip("/") + "/")):
                    best, kind = point, rest.split()[0]
    except (OSError, LookupError):
        return ""
    return kind


def _unescape(point: str) -> str:
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        point = point.replace(escape, character)
    return point

"""What another user may put under a name that this user is going to open."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

STRANGER_UID = 65534  # "nobody"
KINDS = ("pipe", "socket", "device", "link", "dangling link", "link to a pipe")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of another user take root")


def plant(path: Path, kind: str) -> None:
    """Put something that is not a regular file at a path, in the place of what is there."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")  # paths of sockets must be short
        os.close(folder)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero, whose content never ends
        except PermissionError:
            pytest.skip("making a device takes root")
    elif kind == "link":
        target = path.with_name(f"{path.name}.target")
        target.write_bytes(b"of the victim")
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(path.with_name(f"{path.name}.nowhere"))
    else:
        assert kind == "link to a pipe"
        target = path.with_name(f"{path.name}.pipe")
        target.unlink(missing_ok=True)
        os.mkfifo(target)
        path.symlink_to(target)


def give_away(*paths: Path, uid: int = STRANGER_UID) -> None:
    """Make another user the owner of files and folders."""
    for path in paths:
        os.chown(path, uid, uid, follow_symlinks=False)


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Act as another user. Import beforehand what the block needs."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)

"""Which folders are on a disk of this machine, and which on a file system that several machines share."""

from __future__ import annotations

import os

import pytest

from streamloader.common import file_systems
from streamloader.common.file_systems import is_local_folder, is_network_folder

MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / {0}/home rw,relatime shared:1 master:2 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / {0}/home/local\040disk rw - xfs /dev/vdb rw
32 22 0:42 / {0}/sshfs rw - fuse.sshfs me@box: rw
33 22 0:43 / {0}/homework rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "is_network"),
    [
        ("home", True), ("home/me/.cache", True), ("home/local disk", False), ("home/local disk/cache", False),
        ("sshfs/x", True), ("homework/a", False), ("", False), ("link", True),
    ],
)  # fmt: skip
def test_the_innermost_mount_counts(tmp_path, monkeypatch, folder, is_network):
    (tmp_path / "mounts").write_text(MOUNTS.replace("{0}", os.path.realpath(tmp_path)))
    (tmp_path / "link").symlink_to(tmp_path / "home")
    monkeypatch.setattr(file_systems, "_MOUNTS_FILE", str(tmp_path / "mounts"))
    assert is_network_folder(str(tmp_path / folder)) == is_network
    assert is_local_folder(str(tmp_path / folder)) != is_network


@pytest.mark.parametrize("text", ["", "junk", "1 2 3 - nfs x"])
def test_what_cannot_be_read_is_no_network(tmp_path, monkeypatch, text):
    (tmp_path / "mounts").write_text(text)
    monkeypatch.setattr(file_systems, "_MOUNTS_FILE", str(tmp_path / "mounts"))
    assert not is_network_folder(str(tmp_path))
    assert not is_local_folder(str(tmp_path))
    monkeypatch.setattr(file_systems, "_MOUNTS_FILE", str(tmp_path / "missing"))
    assert not is_network_folder(str(tmp_path))

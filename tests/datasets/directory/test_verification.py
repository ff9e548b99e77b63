"""Contents that are verified block by block: whatever is damaged is found, and nothing else is lost with it."""

from __future__ import annotations

import base64
import json
import logging
import struct

import pytest
from containers.pack_files import PackFile
from datasets.directory.directory_data import contents, find_on_disk, open_directory

import streamloader as sl

ONE = {"min_subdir_num": 1}
FILES = {f"{number:04}.bin": f"content {number} ".encode() * (1 + number % 5) for number in range(300)}
DAMAGED = ["0003.bin", "0200.bin"]


def damage(root, names):
    """Alter the content of members in the only pack, in place."""
    (path,) = root.glob("*.pack")
    data = bytearray(path.read_bytes())
    for name in names:
        start = data.index(FILES[name])
        data[start] ^= 0x20
    path.write_bytes(data)


@pytest.fixture
def root(tmp_path):
    with open_directory(tmp_path, **ONE) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        directory.save_state()
    return tmp_path


def read_in_order(directory):
    return {name: bytes(content) for name, content in directory.items()}


@pytest.mark.parametrize("check", ["files", "names"])
@pytest.mark.parametrize("read_all", [contents, read_in_order])
def test_damaged_members_are_read_from_their_files(root, check, read_all, caplog):
    damage(root, DAMAGED)
    with open_directory(root, check=check, **ONE) as directory, caplog.at_level(logging.WARNING):
        assert read_all(directory) == FILES
        assert [sum(name in message for message in caplog.messages) for name in DAMAGED] == [1, 1]
        assert len(caplog.messages) == len(DAMAGED)
        directory.save_state()
    with open_directory(root, check=check, **ONE) as directory:
        caplog.clear()
        assert read_all(directory) == FILES
        assert caplog.messages == []


def test_a_damaged_member_without_a_file_is_an_error_and_its_block_is_served(root):
    damage(root, DAMAGED)
    with open_directory(root, check="names", **ONE) as directory:
        find_on_disk(root, DAMAGED[0]).unlink()
        with pytest.raises(sl.IntegrityError, match="checksum"):
            directory.read(DAMAGED[0])
        assert directory.read("0002.bin") == FILES["0002.bin"]
        assert directory.read(DAMAGED[1]) == FILES[DAMAGED[1]]


def test_a_block_is_verified_once(root):
    """One read verifies the members of its block. Damage that comes later is not noticed, as of any that was read."""
    with open_directory(root, check="names", **ONE) as directory:
        assert directory.read("0000.bin") == FILES["0000.bin"]
        served = directory._contents.table.packs[0]
        assert [state & 2 for state in served.states] == [2] * 128 + [0] * 172
        read_in_order(directory)
        assert [state & 2 for state in served.states] == [2] * 300


@pytest.mark.parametrize("checksums", [[0, 0, 0], [1, 2, 3]])
def test_wrong_checksums_of_blocks_leave_those_of_the_members(root, checksums, caplog):
    """Another program may have written them."""
    (path,) = root.glob("*.pack")
    text = base64.b64encode(struct.pack("<3I", *checksums)).decode()
    path.write_bytes(PackFile(list(FILES.items()), metadata=json.dumps({"block_checksums": text}).encode()).build())
    for read_all in (contents, read_in_order):
        with open_directory(root, check="names", **ONE) as directory, caplog.at_level(logging.WARNING):
            assert directory._contents.table.packs[0].pack.index.block_checksums is not None
            assert read_all(directory) == FILES
    assert caplog.messages == []


def test_large_members_are_verified_alone(tmp_path):
    files = {f"{number}.bin": bytes([number]) * 40_000 for number in range(4)}
    with open_directory(tmp_path, **ONE) as directory:
        for name, content in files.items():
            directory.save(name, content)
        directory.save_state()
    with open_directory(tmp_path, check="names", **ONE) as directory:
        assert directory.read("2.bin") == files["2.bin"]
        assert [state & 2 for state in directory._contents.table.packs[0].states] == [0, 0, 2, 0]
        assert read_in_order(directory) == files

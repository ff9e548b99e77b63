"""Directories that do not fit into memory."""

from __future__ import annotations

import pytest
from datasets.directory.directory_data import contents, open_directory

import streamloader as sl
from streamloader.datasets.directory import contents as contents_module

FILES = {f"{number}.bin": bytes([number]) * 5_000 for number in range(40)}


def make_directory(root, *, with_packs):
    with open_directory(root, load_to_memory=False) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        if with_packs:
            directory.save_state()


@pytest.mark.parametrize("with_packs", [True, False])
def test_a_directory_in_a_store_is_measured_before_it_is_loaded(tmp_path, monkeypatch, with_packs):
    root = f"memory://{tmp_path.name}/dir"
    make_directory(root, with_packs=with_packs)
    monkeypatch.setattr(contents_module, "free_memory", lambda: 150_000)
    with pytest.raises(sl.NotEnoughMemory, match="Pass load_to_memory=False") as caught:
        open_directory(root)
    needed = caught.value.details["needed"]
    assert caught.value.details == {"needed": needed, "free": 150_000}
    assert 200_000 <= needed < 220_000
    assert isinstance(caught.value, MemoryError)
    with open_directory(root, load_to_memory=False) as directory:
        assert contents(directory) == FILES
    for free in (needed, None):
        monkeypatch.setattr(contents_module, "free_memory", lambda free=free: free)
        with open_directory(root) as directory:
            assert contents(directory) == FILES


def test_a_local_directory_is_loaded_as_long_as_there_is_room_for_another_subdirectory(tmp_path, monkeypatch):
    make_directory(tmp_path, with_packs=False)
    monkeypatch.setattr(contents_module, "free_memory", lambda: 10_000)
    with pytest.raises(sl.NotEnoughMemory, match="needs 0 MiB, and 0 MiB are free"):
        open_directory(tmp_path)
    with open_directory(tmp_path, load_to_memory=False) as directory:
        assert contents(directory) == FILES
        directory.save_state()
    with open_directory(tmp_path) as directory:  # mapped
        assert contents(directory) == FILES

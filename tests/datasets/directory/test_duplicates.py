"""Equal names in two subdirectories, in the three modes."""

from __future__ import annotations

import pytest
from datasets.directory.directory_data import contents, on_disk, open_directory, pack_times
from tiers import only_fast

import streamloader as sl
from streamloader.datasets.directory.filenames import make_free_name

LAYOUT = {
    ("subdir_2", "a.png"): b"a in 2",
    ("subdir_10", "a.png"): b"a in 10",
    ("subdir_1", "b.png"): b"b in 1",
    ("subdir_2", "b.png"): b"b in 2",
    ("subdir_10", "b.png"): b"b in 10",
    ("subdir_10", "b (2).png"): b"taken",
    ("subdir_10", "c.png"): b"c",
}
FIRST = {"a.png": b"a in 2", "b.png": b"b in 1", "b (2).png": b"taken", "c.png": b"c"}
OPTIONS = {"min_subdir_num": 0}


@pytest.fixture(params=only_fast(["files", "packs", "mixed"], ["mixed"]))
def root(request, tmp_path):
    """A directory with equal names: without packs, with packs of all files, or with some."""
    root = tmp_path / "root"
    late = {"files": [], "packs": list(LAYOUT), "mixed": [("subdir_2", "a.png"), ("subdir_10", "b.png")]}[request.param]
    for folder, name in late:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(LAYOUT[folder, name])
    if late:
        with open_directory(root, on_duplicate="first", **OPTIONS) as directory:
            directory.save_state()
    for (folder, name), content in LAYOUT.items():
        if (folder, name) not in late:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(content)
    return root


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_error_names_two_paths(root, load_to_memory):
    with pytest.raises(sl.DuplicateName) as caught:
        open_directory(root, load_to_memory=load_to_memory, **OPTIONS)
    assert str(caught.value) == (
        f"{root}: 2 names are in more than one subdirectory, for example {root}/subdir_2/a.png and "
        f"{root}/subdir_10/a.png. Rename or remove one of them, or pass on_duplicate='first' to ignore the second, or "
        "'rename' to have it renamed"
    )
    assert caught.value.details["count"] == 2
    assert isinstance(caught.value, ValueError)
    assert on_disk(root) == LAYOUT


@pytest.mark.parametrize("load_to_memory", [True, False])
def test_first_serves_the_first_in_natural_order(root, load_to_memory, caplog):
    for _ in range(2):
        with open_directory(root, on_duplicate="first", load_to_memory=load_to_memory, **OPTIONS) as directory:
            assert contents(directory) == FIRST
            assert len(directory) == 4
            assert directory.get_path("b.png") == str(root / "subdir_1" / "b.png")
            assert directory.get_list_of_files() == ["b.png", "a.png", "b (2).png", "c.png"]
            if load_to_memory:
                assert {name: data for name, _, data in directory} == FIRST
            assert "2 names are in more than one subdirectory" in caplog.text
            directory.save_state()
            assert contents(directory) == FIRST
            directory.save("b.png", b"new")
            assert directory.load("b.png") == b"new"
            directory.save("b.png", b"b in 1")
    assert on_disk(root) == LAYOUT


def test_first_stays_when_the_first_goes(root):
    with open_directory(root, on_duplicate="first", **OPTIONS) as directory:
        (root / "subdir_1" / "b.png").unlink()
        directory.save("d.png", b"d")  # takes over what has changed
        assert directory.load("b.png") == b"b in 2"
        directory.remove("d.png")
    with open_directory(root, on_duplicate="first", **OPTIONS) as directory:
        assert contents(directory) == FIRST | {"b.png": b"b in 2"}


def test_remove_removes_all_files_of_a_name(root):
    with open_directory(root, on_duplicate="first", **OPTIONS) as directory:
        directory.remove("b.png")
        assert not directory.exists("b.png")
        directory.remove("a.png")
        directory.save_state()
        assert contents(directory) == {"b (2).png": b"taken", "c.png": b"c"}
    with open_directory(root, **OPTIONS) as directory:
        assert contents(directory) == {"b (2).png": b"taken", "c.png": b"c"}


def test_first_moves_only_what_it_serves(root):
    with open_directory(root, on_duplicate="first", **OPTIONS) as directory:
        directory.redistribute_all_files(are_you_sure=True)
        served = contents(directory)
    assert served.keys() == FIRST.keys()
    assert sorted(on_disk(root).values()) == sorted(LAYOUT.values())


def test_rename_keeps_every_file(root, caplog):
    expected = FIRST | {"a (2).png": b"a in 10", "b (3).png": b"b in 2", "b (4).png": b"b in 10"}
    with open_directory(root, on_duplicate="rename", **OPTIONS) as directory:
        assert contents(directory) == expected
        assert {name: data for name, _, data in directory} == expected
        with open_directory(root, **OPTIONS) as other:  # the write lock was held only for the renaming
            other.save("d.png", b"d")
            other.remove("d.png")
        directory.save_state()
        assert contents(directory) == expected
    assert f"{root}/subdir_10/a.png is now a (2).png" in caplog.text
    assert {name: content for (_, name), content in on_disk(root).items()} == expected
    with open_directory(root, **OPTIONS) as directory:
        assert contents(directory) == expected


def test_duplicates_that_appear_later_are_noticed_by_the_writer(tmp_path):
    with open_directory(tmp_path) as directory:
        directory.save("a", b"1")
        directory.save_state()
        stamps = pack_times(tmp_path)
        for folder in ("subdir_0", "subdir_1", "subdir_2", "subdir_3"):
            (tmp_path / folder / "a").write_bytes(b"1")
        with pytest.raises(sl.DuplicateName, match="a name is in more than one subdirectory"):
            directory.redistribute_all_files(are_you_sure=True)
    assert len(on_disk(tmp_path)) == 4
    assert pack_times(tmp_path) == stamps


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("a.png", [], "a (2).png"),
        ("a.png", ["a (2).png", "a (3).png"], "a (4).png"),
        ("a", [], "a (2)"),
        ("a.tar.gz", [], "a.tar (2).gz"),
        ("x" * 251 + ".png", [], "x" * 247 + " (2).png"),
        ("é" * 125 + ".png", [], "é" * 123 + " (2).png"),
        ("a." + "y" * 253, [], "a." + "y" * 98 + " (2)"),
    ],
)
def test_free_names(name, taken, free):
    assert make_free_name(name, taken.__contains__) == free

"""Directories in stores: on real servers, with the requests counted where their number is promised."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from canaries import canary
from datasets.directory.directory_data import (
    PickleSerializer,
    TextInHex,
    XorCompressor,
    contents,
    open_directory,
)
from datasets.directory.remote_data import FILES, count_gets, list_files, make_packs, serve
from servers.listings import Missing, list_with
from servers.nginx_fixture import USER
from torch.utils.data import DataLoader

import streamloader as sl
from streamloader.datasets.directory import codec, remote_fetch, remote_root, remote_subdirectory
from streamloader.redaction import redact_address
from streamloader.stores.io_thread import open_shared_store

ODD = {"é 1%20.txt": b"odd", "c" * 200: b"long", "a+b&c=d": b"", "x.tar.gz": b"dots"}


# --- the life of a directory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("load_to_memory", [False, True])
def test_life_in_a_store(remote, load_to_memory):
    root, options = remote
    files = FILES | ODD
    options = {"storage_options": options, "load_to_memory": load_to_memory}
    with open_directory(root, **options) as directory:
        assert len(directory) == 0
        assert directory.root == redact_address(root)
        for name, content in files.items():
            directory.save(name, content)
        directory.remove("7.bin")
        directory.remove("7.bin")
        directory.save("8.bin", b"another")
        files = files | {"8.bin": b"another"}
        del files["7.bin"]
        assert contents(directory) == files  # from the files
        directory.save_state()
        assert contents(directory) == files
    with open_directory(root, **options) as directory:
        assert contents(directory) == files
        names = [*files, "7.bin", "nothing"]
        assert directory.read_many(names) == [files.get(name) for name in names]
        assert {name: data for name, _, data in directory} == (files if load_to_memory else dict.fromkeys(files))
        assert all(path == directory.get_path(name) for name, path, _ in directory)
        assert directory.get_path("9.bin").startswith(f"{directory.root}/subdir_")
        assert directory.load("9.bin") == files["9.bin"]
        assert directory.load("7.bin") is None
        assert "7.bin" not in directory
        assert not directory._contents.is_outdated  # all is served from packs
        assert not directory._contents._loose
        directory.save("9.bin", b"new")
        directory.save("new.bin", b"too")
        directory.remove("10.bin")
        files = files | {"9.bin": b"new", "new.bin": b"too"}
        del files["10.bin"]
        assert contents(directory) == files
    with open_directory(root, **options) as directory:
        assert contents(directory) == files
        assert [bytes(view) for view in directory.read_many(sorted(files))] == [files[name] for name in sorted(files)]
        assert {name: data for name, _, data in directory} == (files if load_to_memory else dict.fromkeys(files))
        directory.save_state()
    with open_directory(root, **options) as directory:
        assert contents(directory) == files
        assert not directory._contents._loose
        for name in files:
            directory.remove(name)
        assert len(directory) == 0
    with open_directory(root, **options) as directory:
        assert directory.get_list_of_files() == []


def test_objects_of_the_user_in_a_store(s3, tmp_path, monkeypatch):
    """A data manager that needs paths, a serializer and a compressor: temporary files are private, and removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = {
        "manager": TextInHex(), "serializer": PickleSerializer(), "compressor": XorCompressor(), "min_subdir_num": 2
    }  # fmt: skip
    texts = {f"{number}.txt": f"text {number}" for number in range(9)}
    with s3.open(**options) as directory:
        for name, text in texts.items():
            directory.save(name, text)
        assert {name: directory.load(name) for name in texts} == texts
        assert directory.read("3.txt") == b"T:text 3"
        directory.save_state()
        assert bytes.fromhex(s3.get(f"{directory.get_path('3.txt').removeprefix(s3.root)[1:]}").decode()) == b"text 3"
    for load_to_memory in (False, True):
        manager = options["manager"] = TextInHex()
        with s3.open(**options, load_to_memory=load_to_memory) as directory:
            assert {name: directory.load(name) for name in texts} == texts
            assert manager.loaded == []
            assert directory.read_many(["3.txt"]) == [b"T:text 3"]
    s3.put({"subdir_0/from outside.txt": b"hello".hex().encode()})
    with s3.open(**options) as directory:
        assert directory.load("from outside.txt") == "hello"
        assert all(tmp_path.name in path and path.endswith(".txt") for path in manager.loaded)
    assert os.listdir(tmp_path) == []


def test_compressed_packs(s3):
    files = {f"{number}.txt": b"%d " % number * 2000 for number in range(12)}
    for compressor in (sl.ZlibCompressor(), XorCompressor()):
        with s3.open(compressor=compressor) as directory:
            for name, content in files.items():
                directory.save(name, content)
            directory.save_state()
        with s3.open(compressor=compressor, load_to_memory=False) as directory:
            assert contents(directory) == files
            assert directory.read_many(list(files)) == list(files.values())
            assert not directory._contents._loose


def test_large_files_are_packed_in_pieces(s3, monkeypatch):
    for module in (codec, remote_subdirectory):
        monkeypatch.setattr(module, "_MAX_WHOLE_BYTES", 1000)
    monkeypatch.setattr(remote_root, "_PIECE_BYTES", 700)  # also of uploads
    with s3.open(min_subdir_num=1) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        directory.save_state()
    with s3.open(load_to_memory=False) as directory:
        assert contents(directory) == FILES
        assert not directory._contents._loose


# --- requests --------------------------------------------------------------------------------------------------------


def test_opening_packs_costs_one_listing_and_one_request_for_each(s3, proxy, tmp_path):
    source = tmp_path / "source"
    files = {f"{number}": random.Random(number).randbytes(500) for number in range(200)}
    packs = make_packs(source, 20, files)
    s3.put(list_files(source) | packs)
    with s3.open(load_to_memory=False, min_subdir_num=20) as directory:
        assert count_gets(proxy) == (1, 20)
        assert len(directory) == 200
        assert set(directory) == {(name, directory.get_path(name), None) for name in files}
        assert not directory._contents._loose
        assert count_gets(proxy) == (0, 0)
        names = random.Random(0).choices(list(files), k=200)
        assert [bytes(directory.read(name)) for name in names] == [files[name] for name in names]
        assert count_gets(proxy) == (0, 200)
        assert directory.read_many(names) == [files[name] for name in names]
        assert count_gets(proxy) == (0, 20)
        assert directory.read_many(list(files)) == list(files.values())
        assert count_gets(proxy) == (0, 20)
    with s3.open(load_to_memory=True, min_subdir_num=20) as directory:
        assert count_gets(proxy) == (1, 20)  # whole packs
        assert {name: data for name, _, data in directory} == files
        assert contents(directory) == files
        assert count_gets(proxy) == (0, 0)


def test_reads_are_ranged_requests_of_exactly_one_member(packs):
    with serve(packs) as server, open_directory(f"{server.url}/dir", load_to_memory=False) as directory:
        heads = [request for request in server.requests if request.method == "HEAD"]
        assert len(heads) == 32  # numbers of packs that could be there
        missing = len(heads) - len(packs)  # a server may refuse HEAD although it has the object
        # And one for the listing, which this server does not have.
        assert len(server.requests) == len(heads) + missing + len(packs) + 1
        server.requests.clear()
        for name, content in FILES.items():
            assert directory.read(name) == content
        assert len(server.requests) == len(FILES) - 1  # and none for the empty file
        for request, (name, content) in zip(server.requests, list(FILES.items())[1:], strict=True):
            first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
            pack = packs[request.target.rpartition("/")[2]]
            assert pack[first : last + 1] == content, name
        server.requests.clear()
        assert directory.read_many([*FILES, "?"]) == [*FILES.values(), None]
        assert len(server.requests) == len(packs)


def test_objects_are_loaded_many_at_a_time_and_by_many_threads(packs):
    with serve(packs) as server, open_directory(f"{server.url}/dir", load_to_memory=False) as directory:
        server.requests.clear()
        assert directory.load_many([*FILES, "?"]) == [*FILES.values(), None]
        assert len(server.requests) == len(packs)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(directory.load, FILES)) == list(FILES.values())


def test_members_that_are_far_apart_are_fetched_alone(monkeypatch, packs):
    monkeypatch.setattr(remote_fetch, "_MAX_GAP_BYTES", 0)
    with serve(packs) as server, open_directory(f"{server.url}/dir", load_to_memory=False) as directory:
        names = directory.get_list_of_files()
        server.requests.clear()
        assert directory.read_many(names[::2]) == [FILES[name] for name in names[::2]]
        alone = len(server.requests)
        assert len(names[::2]) - 2 <= alone <= len(names[::2])
        monkeypatch.setattr(remote_fetch, "_MAX_GAP_BYTES", 1 << 16)
        monkeypatch.setattr(remote_fetch, "_MAX_SPAN_BYTES", 3000)
        monkeypatch.setattr(remote_fetch, "_MAX_BATCH_BYTES", 9000)
        server.requests.clear()
        assert directory.read_many(names) == [FILES[name] for name in names]
        spans = [request.headers["range"].removeprefix("bytes=").split("-") for request in server.requests]
        assert all(int(last) - int(first) < 3000 for first, last in spans)
        assert len(packs) < len(spans) < len(names) / 2


def test_loose_files_are_fetched_many_at_a_time(s3, proxy):
    s3.put({f"subdir_{number % 3}/{name}": content for number, (name, content) in enumerate(FILES.items())})
    with s3.open(load_to_memory=False) as directory:
        assert count_gets(proxy) == (1, 0)
        assert directory.read_many(list(FILES)) == list(FILES.values())
        assert count_gets(proxy) == (0, len(FILES))
    with s3.open(load_to_memory=True) as directory:
        assert count_gets(proxy) == (1, len(FILES))
        assert {name: data for name, _, data in directory} == FILES
        assert count_gets(proxy) == (0, 0)
        directory.save_state()
        listings, reads = count_gets(proxy)
        assert reads <= len(FILES) + 6
        assert listings <= 4


def test_a_changed_pack_is_made_of_the_old_one(s3, proxy):
    with s3.open(min_subdir_num=1, load_to_memory=False) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        directory.save_state()
        directory.save("3.bin", b"new")
        count_gets(proxy)
        directory.save_state()
        assert count_gets(proxy)[1] <= 4  # the new file, the neighbours in the old pack, and the index of the new one
        assert contents(directory) == FILES | {"3.bin": b"new"}


# --- stores without listings, or without writes ----------------------------------------------------------------------


def test_a_web_server(nginx_server, packs, tmp_path, caplog):
    nginx_server.put({f"{tmp_path.name}/{name}": data for name, data in packs.items()})
    root = f"{nginx_server.url}/private/{tmp_path.name}"
    options = {"storage_options": {"auth": (USER, canary("http-password"))}}
    for load_to_memory in (False, True):
        with open_directory(root, **options, load_to_memory=load_to_memory) as directory:
            assert contents(directory) == FILES
            assert directory.get_path("3.bin").startswith(f"{root}/subdir_")
            for change in (lambda: directory.save("a", b"1"), lambda: directory.remove("3.bin")):
                with pytest.raises(sl.NotSupported, match="read-only"):
                    change()
            directory.save_state()  # there is nothing to save
    with pytest.raises(sl.NotFound, match="no listings"):
        open_directory(f"{nginx_server.url}/nothing")
    with pytest.raises(sl.AccessDenied):
        open_directory(root)


def test_more_packs_than_expected_where_there_are_no_listings(tmp_path):
    packs = make_packs(tmp_path / "source", 40)
    with serve(packs) as server, open_directory(f"{server.url}/dir?key=1", load_to_memory=False) as directory:
        assert contents(directory) == FILES
        assert {request.target.partition("?")[2] for request in server.requests} == {"key=1"}


def test_a_folder_on_ipfs(jsipfs_node, tmp_path):
    source = tmp_path / "source"
    packs = make_packs(source, 2)
    files = list_files(source)
    added = jsipfs_node.add({f"set/{name}": data for name, data in (packs | files | {"subdir_0/new": b"n"}).items()})
    options = {"storage_options": {"rpc": jsipfs_node.rpc}, "load_to_memory": False}
    with open_directory(f"ipfs://{added['set']}", **options) as directory:
        assert contents(directory) == FILES | {"new": b"n"}
        assert set(directory._contents._loose) == {"new"}
        with pytest.raises(sl.NotSupported, match="read-only"):
            directory.save("a", b"1")


# --- processes and other things --------------------------------------------------------------------------------------


class Names:
    """A map-style dataset over a directory."""

    def __init__(self, directory):
        self.directory = directory
        self.names = directory.get_list_of_files()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.names[index], self.directory.load(self.names[index])


@pytest.mark.parametrize("load_to_memory", [False, True])
def test_workers_that_are_forked_after_use(remote, load_to_memory):
    root, options = remote
    with open_directory(root, storage_options=options, load_to_memory=load_to_memory) as directory:
        for name, content in FILES.items():
            directory.save(name, content)
        directory.save_state()
        directory.save("3.bin", b"loose")
        files = FILES | {"3.bin": b"loose"}
        if root.startswith("memory://"):  # whose objects belong to one process
            return
        assert directory.load("4.bin") == FILES["4.bin"]
        loader = DataLoader(Names(directory), batch_size=None, num_workers=2, multiprocessing_context="fork")
        assert dict(loader) == files
        assert contents(directory) == files
        directory.save("5.bin", b"the parent still writes")
        copy = pickle.loads(pickle.dumps(directory))
        with copy:
            assert contents(copy) == files | {"5.bin": b"the parent still writes"}


@pytest.mark.slow
def test_workers_that_are_spawned(s3):
    s3.put({f"subdir_0/{name}": content for name, content in FILES.items()})
    with s3.open(load_to_memory=False) as directory:
        loader = DataLoader(Names(directory), batch_size=None, num_workers=1, multiprocessing_context="spawn")
        assert dict(loader) == FILES


def test_what_a_store_cannot_do(s3, caplog):
    with s3.open(on_duplicate="first") as directory:
        directory.save("a", b"1")
        directory.save("b", b"1")
        assert [record.levelname for record in caplog.records if "no locks" in record.message] == ["WARNING"]
        with pytest.raises(sl.NotSupported, match="Redistribute a local copy"):
            directory.redistribute_all_files(are_you_sure=True)
        other = "subdir_1" if "subdir_0" in directory.get_path("a") else "subdir_0"
        s3.put({f"{other}/a": b"2"})
    with pytest.raises(sl.DuplicateName, match="subdir_"):
        s3.open()
    with pytest.raises(sl.NotSupported, match="cannot rename"):
        s3.open(on_duplicate="rename")
    with s3.open(on_duplicate="first") as directory:
        assert directory.load("a") == (b"2" if other == "subdir_0" else b"1")
        directory.save_state()
    with s3.open(on_duplicate="first") as directory:
        assert directory.load("a") == (b"2" if other == "subdir_0" else b"1")
        directory.remove("a")
        assert not any(name.endswith("/a") for name in s3.names())
    with pytest.raises(sl.ClosedError):
        directory.load("a")
    with pytest.raises(sl.ConfigError):
        s3.open(min_subdir_num=-1)


def test_files_that_are_ignored(s3, caplog):
    s3.put(dict.fromkeys((".hidden/a", "in_root", "one/.b", "one/nested/c", "old.vdd", "one/d"), b"1"))
    with s3.open(min_subdir_num=0) as directory:
        assert list(directory) == [("d", f"{s3.root}/one/d", b"1")]
        assert "convert-vdd" in caplog.text
        directory.save_state()
        directory.remove("d")
    assert s3.names() == [".hidden/a", "in_root", "old.vdd", "one/.b", "one/nested/c"]


def test_a_manager_that_writes_nothing_or_fails(s3):
    class Bad(sl.BytesDataManager):
        def save(self, path, value):
            if value is not None:
                raise value

    with s3.open(manager=Bad()) as directory:
        with pytest.raises(sl.StoreError, match="wrote no file"):
            directory.save("a", None)
        with pytest.raises(ZeroDivisionError):
            directory.save("a", ZeroDivisionError())
        with pytest.raises(sl.ConfigError, match="slash"):
            directory.save("a/b", None)
        assert len(directory) == 0


def test_damaged_samples_name_their_address(s3):
    s3.put({"subdir_0/a.json": b"{", "subdir_0/b.json": b"1"})
    with s3.open(manager=sl.JsonDataManager(), load_to_memory=False) as directory:
        assert directory.load("b.json") == 1
        with pytest.raises(sl.CorruptSample, match=r"subdir_0/a.json"):
            directory.load("a.json")


PROGRAM = """
import sys, streamloader as sl
directory = sl.VirtualDirectory(
    sys.argv[1], sl.BytesDataManager(), min_subdir_num=1, save_on_destruction=True, load_to_memory=False,
    storage_options=eval(sys.argv[2]),
)
directory.save("a", b"1")
"""


def test_packs_are_saved_when_the_program_ends(s3):
    program = [sys.executable, "-c", PROGRAM, s3.root, repr(s3.options)]
    subprocess.run(program, check=True, timeout=60)
    assert s3.names() == ["subdir_0.pack", "subdir_0/a"]


def test_packs_are_saved_when_the_directory_is_collected(s3):
    directory = s3.open(min_subdir_num=1, save_on_destruction=True)
    directory.save("a", b"1")
    del directory
    gc.collect()
    assert s3.names() == ["subdir_0.pack", "subdir_0/a"]


def test_a_full_disk_leaves_the_old_pack(s3, disk, monkeypatch):
    with s3.open(min_subdir_num=1) as directory:
        directory.save("a", bytes(1000))
        directory.save_state()
        old = s3.get("subdir_0.pack")
        for number in range(3):
            directory.save(str(number), random.Random(number).randbytes(1 << 19))
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(sl.StoreError, match="temporary file"):
            directory.save_state()
        assert s3.get("subdir_0.pack") == old
        assert directory.load("a") == bytes(1000)


def test_the_progress_of_a_listing(s3):
    s3.put({f"subdir_0/{name}": content for name, content in FILES.items()})
    code = (
        "import sys; from streamloader.common import count_display; count_display._SHOWN_AFTER_S = 0\n"
        "count_display._MIN_REMAINING_S = count_display._REFRESH_INTERVAL_S = 0\n"
        "import streamloader as sl\n"
        "sys.stderr.isatty = lambda: True\n"
        "root, options = sys.argv[1], eval(sys.argv[2])\n"
        "sl.VirtualDirectory(root, sl.BytesDataManager(), storage_options=options).close()\n"
    )
    program = [sys.executable, "-c", code, s3.root, repr(s3.options)]
    shown = subprocess.run(program, check=True, timeout=60, capture_output=True, text=True).stderr
    assert "listing files" in shown
    assert "29, " in shown


def test_packs_are_saved_if_a_directory_is_collected_in_the_thread_of_the_stores(s3):
    directory = s3.open(min_subdir_num=1, save_on_destruction=True)
    directory.save("a", b"1")
    directory.itself = directory  # so that only the garbage collector frees it
    finalizer = directory._finalizer

    async def collect():
        gc.collect()

    handle, _ = open_shared_store(s3.root, s3.options)
    with handle:
        gc.collect()
        gc.disable()
        try:
            del directory
            handle.call(collect())
        finally:
            gc.enable()
        for thread in threading.enumerate():
            if thread.name == "streamloader-directory-close":
                thread.join(60)
    assert not finalizer.alive
    assert s3.names() == ["subdir_0.pack", "subdir_0/a"]


def test_a_web_server_with_listings(tmp_path, packs):
    """Files and packs with any names are found; without the listings there would be numbered packs only."""
    data = tmp_path / "served"
    data.mkdir()
    data.chmod(0o755)
    for name, content in packs.items():
        (data / "dir").mkdir(exist_ok=True)
        (data / "dir" / name).write_bytes(content)
    (data / "dir" / "loose files").mkdir()
    (data / "dir" / "loose files" / "é 1%.bin").write_bytes(b"loose")
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(list_with("nginx", data))
        except Missing as missing:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(missing))
        for load_to_memory in (False, True):
            with open_directory(f"{url}/dir", load_to_memory=load_to_memory) as directory:
                assert contents(directory) == FILES | {"é 1%25.bin": b"loose"}

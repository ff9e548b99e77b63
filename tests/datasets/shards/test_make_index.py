"""Shards that other programs have written: found, scanned once, kept in the cache, and indexed beside them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import signal
import tarfile
import zlib

import pytest
from datasets.shards.index_data import list_members
from datasets.shards.shard_files import SUFFIXES, build_tar, compress, make_samples, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.listings import Missing, list_with
from webdataset import TarWriter

import streamloader as sl
from streamloader import (
    ConfigError,
    CorruptShard,
    DatasetIncomplete,
    DatasetNotFound,
    NotSupported,
    StreamloaderError,
)
from streamloader.cli.main import main
from streamloader.datasets.shards import make_index as make_index_module
from streamloader.datasets.shards.index import ShardIndex, digest_index
from streamloader.datasets.shards.make_index import index_shards, open_shard_set
from streamloader.datasets.shards.manifest import Manifest
from streamloader.stores.io_thread import open_shared_store
from streamloader.torch_support import has_torch

SAMPLES = make_samples(12)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shard-indexes"


@pytest.fixture
def scans(monkeypatch):
    """Addresses of the shards that are scanned, in their order."""
    found = []
    original = make_index_module._scan

    async def scan(store, info, address, **options):
        found.append(address)
        return await original(store, info, address, **options)

    monkeypatch.setattr(make_index_module, "_scan", scan)
    return found


def write_foreign(folder, compression=None, samples=SAMPLES):
    write_shards(folder, samples, samples_per_shard=5, compression=compression, index=False, manifest=False)
    return folder


def list_contents(shards):
    """Return (key, field, size) of all members."""
    return [
        (key, field, size)
        for number in range(len(shards))
        for key, field, _, size in list_members(shards.index(number))
    ]  # fmt: skip


EXPECTED = [
    (sample["__key__"], field, len(sample[field])) for sample in SAMPLES for field in sample if field != "__key__"
]


def add_member(tar, name, content=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    tar.addfile(info, io.BytesIO(content))


# --- scanning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_shards_of_other_programs_are_scanned(tmp_path, compression):
    shards = open_shard_set(write_foreign(tmp_path / "set", compression))
    assert list_contents(shards) == EXPECTED
    index = shards.index(0)
    assert index.compression == compression
    assert index.frames.tolist() == ([] if compression is None else [[0, 0]])
    tar = build_tar(SAMPLES[:5])
    checksums = [zlib.crc32(tar[start : start + size]) for *_, start, size in list_members(index)]
    assert (None if index.checksums is None else index.checksums.tolist()) == (compression and checksums)


def test_shards_of_webdataset_are_scanned(tmp_path):
    for name, opener in (("0.tar", open), ("1.tar.gz", gzip.open)):
        with opener(tmp_path / name, "wb") as file, TarWriter(file) as writer:
            for sample in SAMPLES:
                writer.write(sample)
    shards = open_shard_set(f"{tmp_path}/*.tar*")
    members = [(key, field) for key, field, _ in list_contents(shards)]
    assert sorted(members) == sorted([(key, field) for key, field, _ in EXPECTED] * 2)


def test_members_that_belong_to_no_sample_are_left_out(tmp_path, caplog):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add_member(tar, "dir", type=tarfile.DIRTYPE)
        add_member(tar, "./dir/a.jpg", b"image")
        add_member(tar, "dir/a.cls", b"1")
        add_member(tar, "README", b"text")
        add_member(tar, "b.jpg", type=tarfile.LNKTYPE, linkname="./dir/a.jpg")
        add_member(tar, "c.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_member(tar, "../d.jpg", b"outside")
        add_member(tar, "e.__key__", b"other")
        add_member(tar, "f.JPG", b"12345")
    shards = open_shard_set(tmp_path / "0.tar")
    assert list_contents(shards) == [("dir/a", "jpg", 5), ("dir/a", "cls", 1), ("f", "jpg", 5)]
    assert "5 members belong to no sample" in caplog.text
    index_shards(tmp_path)
    assert list_contents(open_shard_set(tmp_path)) == list_contents(shards)


def test_a_field_that_occurs_twice_is_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add_member(tar, "a.jpg", b"1")
        add_member(tar, "a.JPG", b"2")
    with pytest.raises(CorruptShard, match="the sample 'a' has two members 'jpg'") as caught:
        open_shard_set(tmp_path / "0.tar")
    assert (caught.value.address, caught.value.offset) == (f"{tmp_path}/0.tar", 1536)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_shard_that_is_cut_is_named(tmp_path, compression):
    folder = write_foreign(tmp_path / "set", compression)
    file = folder / f"00001{SUFFIXES[compression]}"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CorruptShard, match="cut") as caught:
        open_shard_set(folder)
    assert caught.value.address == str(file)
    assert caught.value.offset is not None


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@settings(max_examples=25)
@given(position=st.integers(0, 1 << 20), value=st.integers(0, 255))
def test_a_changed_byte_is_found_or_changes_no_more_than_names(tmp_path_factory, compression, position, value):
    tar = build_tar(SAMPLES[:3])
    data = bytearray(tar if compression is None else compress(tar, compression)[0])
    data[position % len(data)] = value
    folder = tmp_path_factory.mktemp("set")
    (folder / f"0{SUFFIXES[compression]}").write_bytes(data)
    try:
        shards = open_shard_set(folder)
    except StreamloaderError as error:
        problem = error
    else:
        problem = None
    if problem is not None:
        assert isinstance(problem, CorruptShard)
        assert str(folder) in str(problem)
        return
    sizes = [len(sample[field]) for sample in SAMPLES[:3] for field in ("jpg", "cls")]
    assert [size for *_, size in list_contents(shards)] == sizes[: len(list_contents(shards))] or compression is None


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_shard_is_scanned_once(tmp_path, scans):
    folder = write_foreign(tmp_path / "set")
    digest = open_shard_set(folder).digest
    assert sorted(scans) == [f"{folder}/{number:05}.tar" for number in range(3)]  # concurrently
    assert open_shard_set(f"{folder}/*.tar").digest == digest
    assert len(scans) == 3
    (folder / "00001.tar").write_bytes(build_tar(make_samples(30)[:5]))
    open_shard_set(folder)
    assert scans[3:] == [f"{folder}/00001.tar"]


@pytest.mark.parametrize(
    "harm", [lambda data: b"junk", lambda data: data[:-1], lambda data: b"", lambda data: data[:50] + b"x" + data[51:]]
)
def test_a_damaged_cache_is_ignored(tmp_path, cache, scans, harm):
    folder = write_foreign(tmp_path / "set")
    open_shard_set(folder)
    for file in cache.iterdir():
        file.write_bytes(harm(file.read_bytes()))
    assert list_contents(open_shard_set(folder)) == EXPECTED
    assert len(scans) == 6
    open_shard_set(folder)
    assert len(scans) == 6


def test_the_index_of_another_shard_in_the_cache_is_ignored(tmp_path, cache, scans):
    folder = write_foreign(tmp_path / "set")
    open_shard_set(folder)
    others = sorted(cache.iterdir(), key=lambda file: ShardIndex.parse(file.read_bytes(), "").shard)
    others[0].write_bytes(others[2].read_bytes())
    assert list_contents(open_shard_set(folder)) == EXPECTED
    assert len(scans) == 4


def test_no_cache_is_no_reason_to_fail(tmp_path, monkeypatch, scans):
    folder = write_foreign(tmp_path / "set")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert list_contents(open_shard_set(folder)) == EXPECTED
    assert len(scans) == 6


def test_what_was_scanned_before_an_interrupt_is_kept(tmp_path, monkeypatch, scans):
    folder = write_foreign(tmp_path / "set", samples=make_samples(60))
    original = make_index_module._scan

    async def interrupt(store, info, address, **options):
        if len(scans) == 4:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does; the main thread waits for the indexes
            await asyncio.Event().wait()
        return await original(store, info, address, **options)

    with monkeypatch.context() as patch:
        patch.setattr(make_index_module, "_MAX_CONCURRENT_SHARDS", 1)
        patch.setattr(make_index_module, "_scan", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_shard_set(folder)
    assert int(open_shard_set(folder).counts.sum()) == 60
    assert sorted(scans) == [f"{folder}/{number:05}.tar" for number in range(12)]


# --- index-shards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_a_folder_is_indexed(tmp_path, compression, scans):
    folder = write_foreign(tmp_path / "set", compression)
    assert index_shards(folder) == 3
    shards = open_shard_set(folder)
    assert list_contents(shards) == EXPECTED
    tar = build_tar(SAMPLES[:5])
    index = shards.index(0)
    assert index.checksums.tolist() == [
        zlib.crc32(tar[start : start + size]) for *_, start, size in list_members(index)
    ]
    assert len(scans) == 3
    assert index_shards(folder) == 3
    assert len(scans) == 3


def test_added_shards_alone_are_read(tmp_path, scans):
    folder = write_foreign(tmp_path / "set")
    index_shards(folder)
    (folder / "00003.tar").write_bytes(build_tar(make_samples(20)[12:]))
    assert index_shards(folder) == 4
    assert scans[3:] == [f"{folder}/00003.tar"]
    assert int(open_shard_set(folder).counts.sum()) == 20


@pytest.mark.parametrize("suffix", [".tar.index", ".tar"])
@pytest.mark.parametrize("harm", [b"junk", None])
def test_damage_is_repaired(tmp_path, suffix, harm):
    """Every error of a damaged index or manifest advises this."""
    folder = write_foreign(tmp_path / "set")
    index_shards(folder)
    (folder / "manifest.json").write_bytes(b"{")
    index = folder / f"00001{suffix}"
    if suffix == ".tar":
        index.write_bytes(build_tar(SAMPLES[5:10]) + bytes(10_240))
    else:
        index.write_bytes(harm or index.read_bytes()[:-3])
    assert index_shards(folder) == 3
    assert list_contents(open_shard_set(folder)) == EXPECTED


def test_the_indexes_and_settings_of_a_writer_are_kept(tmp_path, scans):
    folder = tmp_path / "set"
    write_shards(folder, SAMPLES, samples_per_shard=5)
    manifest = Manifest.parse((folder / "manifest.json").read_bytes(), "")
    (folder / "manifest.json").write_bytes(Manifest(manifest.shards, {"seed": 5}).pack())
    index_shards(folder)
    again = Manifest.parse((folder / "manifest.json").read_bytes(), "")
    assert again == Manifest(manifest.shards, {"seed": 5})
    assert again.shards[0].index_digest == digest_index((folder / "00000.tar.index").read_bytes())
    assert not scans


def test_an_interrupted_index_makes_no_data_set_incomplete(tmp_path):
    folder = write_foreign(tmp_path / "set")
    index_shards(folder)
    (folder / "manifest.json").unlink()
    (folder / "00002.tar.index").unlink()
    assert list_contents(open_shard_set(folder)) == EXPECTED
    write_shards(folder, SAMPLES[:5], samples_per_shard=5, manifest=False)  # now those of a writer
    with pytest.raises(DatasetIncomplete):
        open_shard_set(folder)


def test_what_cannot_be_indexed_is_refused(tmp_path):
    with pytest.raises(DatasetNotFound):
        index_shards(tmp_path)
    with pytest.raises(ConfigError, match="is not the address of a folder"):
        index_shards(tmp_path / "a.tar")
    (tmp_path / "50%.tar").write_bytes(build_tar(SAMPLES))
    with pytest.raises(ConfigError, match=r"50%\.tar' must be a name within the folder"):
        index_shards(tmp_path)


def test_the_command(tmp_path, capsys, monkeypatch):
    folder = write_foreign(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert main(["index-shards", "set"]) == 0
    assert capsys.readouterr().out == "3 shards indexed in set\n"
    assert list_contents(open_shard_set(folder)) == EXPECTED
    assert main(["index-shards", str(tmp_path / "none")]) == 2
    assert "there are no shards at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["index-shards"])


# --- real servers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(seaweed_server, monkeypatch, tmp_path):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return seaweed_server.bucket()


def test_shards_in_object_storage(seaweed_server, bucket, tmp_path, scans):
    options = seaweed_server.options()
    folder = write_foreign(tmp_path / "set")
    store, _ = open_shared_store(f"s3://{bucket}", options)
    with store:
        for file in sorted(folder.iterdir()):
            store.write(f"deep/set/{file.name}", file.read_bytes())
        store.write("deep/set/more/a.tar", b"junk")
    address = f"s3://{bucket}/deep/set"
    for opened in (address, f"{address}/", f"{address}/*.tar", f"{address}/{{00000..00002}}.tar"):
        shards = open_shard_set(opened, options)
        assert list_contents(shards) == EXPECTED
        shards.close()
    assert len(scans) == 3
    assert index_shards(address, options) == 3
    shards = open_shard_set(address, {f"s3://{bucket}": options})
    assert list_contents(shards) == EXPECTED
    assert shards.index(0).checksums is not None
    assert shards.shard_address(0) == f"{address}/00000.tar"
    assert shards.local_path(0) is None
    shards.close()
    with pytest.raises(DatasetNotFound):
        open_shard_set(f"s3://{bucket}/none", options)


def test_a_web_server_has_no_listings(nginx_server, tmp_path):
    folder = tmp_path / "set"
    write_shards(folder, SAMPLES, samples_per_shard=5)
    nginx_server.put({f"whole/{file.name}": file.read_bytes() for file in folder.iterdir()})
    nginx_server.put({f"plain/{file.name}": file.read_bytes() for file in folder.glob("*.tar")})
    nginx_server.put({"whole/a b.tar": b"junk"})
    for address in (f"{nginx_server.url}/whole", f"{nginx_server.url}/whole/manifest.json?x=1"):
        shards = open_shard_set(address)
        assert list_contents(shards) == EXPECTED
        shards.close()
    with pytest.raises(DatasetNotFound, match=r"no listings: name the shards, such as .*/plain/shard-\{000"):
        open_shard_set(f"{nginx_server.url}/plain")
    for query in ("", "?token=1"):
        shards = open_shard_set(f"{nginx_server.url}/plain/{{00000..00002}}.tar{query}")
        assert [info.name for info in shards.infos] == ["00000.tar", "00001.tar", "00002.tar"]
        assert list_contents(shards) == EXPECTED
        shards.close()
    shards = open_shard_set(f"{nginx_server.url}/whole/00001.tar?token=1")
    assert shards.index(0).checksums is not None, "the index beside it was found"
    shards.close()
    with pytest.raises(DatasetNotFound, match="shards are missing"):
        open_shard_set(f"{nginx_server.url}/plain/{{00000..00003}}.tar")
    with pytest.raises(NotSupported, match="read-only"):
        index_shards(f"{nginx_server.url}/plain")


def test_a_page_instead_of_an_index_is_no_index(nginx_server):
    nginx_server.put({"pages/0.tar": build_tar(SAMPLES), "pages/0.tar.index": b"<html>Nothing here</html>"})
    shards = open_shard_set(f"{nginx_server.url}/pages/0.tar")
    assert list_contents(shards) == EXPECTED
    shards.close()


def test_a_web_server_with_listings(tmp_path):
    """Shards without a manifest are found in the listing of their folder."""
    folder = tmp_path / "served" / "set"
    write_shards(folder, SAMPLES, samples_per_shard=5)
    folder.parent.chmod(0o755)
    for file in folder.iterdir():
        if file.suffix != ".tar":
            file.unlink()
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(list_with("nginx", folder.parent))
        except Missing as missing:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(missing))
        for address in (f"{url}/set", f"{url}/set/*.tar", f"{url}/**/*.tar"):
            shards = open_shard_set(address)
            assert [info.name for info in shards.infos] == ["00000.tar", "00001.tar", "00002.tar"]
            assert list_contents(shards) == EXPECTED
            shards.close()


# --- shards that cannot be indexed -----------------------------------------------------------------------------------


@pytest.fixture
def bad_shards(tmp_path):
    """A good shard between two bad ones: a page, and a file that was cut."""
    folder = tmp_path / "set"
    folder.mkdir()
    names = write_shards(f"{folder}", make_samples(40), samples_per_shard=20, index=False, manifest=False)
    os.truncate(folder / names[1], 5000)
    (folder / "page.tar").write_text("<html>404</html>" * 100)
    return folder, names


@pytest.mark.parametrize("address", ["{}", "{}/*.tar"])
def test_bad_shards_are_one_error_that_lists_them(bad_shards, address):
    folder, names = bad_shards
    with pytest.raises(sl.DatasetError, match="2 of 3 shards cannot be used") as raised:
        sl.RemoteDataset(address.format(folder))
    listed = [os.path.basename(name) for name, _, _ in raised.value.details["failed"]]
    assert sorted(listed) == sorted([names[1], "page.tar"])


@pytest.mark.parametrize("address", ["{}", "{}/*.tar"])
@pytest.mark.parametrize("options", [{"unreadable": "skip"}, {"on_error": "skip"}])
def test_bad_shards_are_left_out(bad_shards, address, options, caplog):
    folder, names = bad_shards
    dataset = sl.RemoteDataset(address.format(folder), **options)
    assert len(list(dataset)) == 20
    assert sorted(each.shard for each in dataset.skipped) == sorted([names[1], "page.tar"])
    assert "left out 2 of 3 shards" in caplog.text
    if has_torch():
        loader = sl.ShardLoader(dataset.batched(10))
        assert len(list(loader)) == 2
        assert len(loader.skipped) == 2


def test_links_and_pipes_among_the_shards(bad_shards):
    folder, names = bad_shards
    os.mkfifo(folder / "pipe.tar")
    (folder / "link.tar").symlink_to("nothing")
    with pytest.raises(sl.StreamloaderError, match="2 files or directories cannot be read"):
        sl.RemoteDataset(f"{folder}/*.tar")
    dataset = sl.RemoteDataset(f"{folder}/*.tar", unreadable="skip")
    assert sorted(each.shard for each in dataset.skipped) == sorted([names[1], "page.tar", "pipe.tar", "link.tar"])


def test_a_folder_with_bad_shards_is_indexed(bad_shards, capsys):
    folder, names = bad_shards
    assert main(["index-shards", str(folder)]) == 2
    assert "2 of 3 shards cannot be used" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()
    assert (folder / f"{names[0]}.index").exists()  # the good one is not read again
    assert main(["index-shards", str(folder), "--unreadable", "skip"]) == 1
    assert f"1 shard indexed in {folder}, 2 left out" in capsys.readouterr().out
    assert len(list(sl.RemoteDataset(str(folder)))) == 20

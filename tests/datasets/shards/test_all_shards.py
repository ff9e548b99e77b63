"""Data sets of shards: what an address stands for, and indexes that are loaded when needed and checked."""

from __future__ import annotations

import os
import pickle
import shutil
import threading

import numpy as np
import pytest
from datasets.shards.index_data import build_small
from datasets.shards.shard_files import make_samples, write_shards

from streamloader import ConfigError, CorruptShard, DatasetError, DatasetIncomplete, DatasetNotFound
from streamloader.datasets.shards import all_shards as all_shards_module
from streamloader.datasets.shards.all_shards import ShardSet, add_suffix, join_address, resolve_address
from streamloader.datasets.shards.index import digest_index
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.manifest import Manifest, ShardInfo

SAMPLES = make_samples(25)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMLOADER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "set", SAMPLES, samples_per_shard=10)
    return tmp_path / "set"


def read_samples(shards):
    """Return all samples of a data set, read member by member through its indexes."""
    found = []
    for number in range(len(shards)):
        index = shards.index(number)
        store, path = shards.store(number)
        data = store.read(path)
        for sample in range(len(index)):
            first, end = index.first_members[sample : sample + 2]
            found.append({"__key__": index.keys[sample]} | {
                index.fields[index.member_fields[member]]:
                    data[index.starts[member] : index.starts[member] + index.sizes[member]]
                for member in range(first, end)
            })  # fmt: skip
    return found


# --- a folder with a manifest ----------------------------------------------------------------------------------------


def test_a_folder_is_opened_by_its_manifest(folder):
    for address in (folder, str(folder), f"{folder}/", f"file://{folder}", f"{folder}/manifest.json"):
        shards = open_shard_set(address)
        assert len(shards) == 3
        assert shards.counts.tolist() == [10, 10, 5]
        assert shards.address.rstrip("/") == str(folder)
        assert shards.shard_address(1) == shards.local_path(1) == f"{folder}/00001.tar"
        assert shards.total_bytes == sum((folder / f"0000{number}.tar").stat().st_size for number in range(3))
        assert read_samples(shards) == SAMPLES
        shards.close()


def test_a_relative_address_stays_valid_in_another_directory(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    shards = open_shard_set("set")
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_samples(pickle.loads(pickle.dumps(shards))) == SAMPLES
    assert open_shard_set("~/set").local_path(0) == f"{folder}/00000.tar"


def test_nothing_is_opened_before_it_is_used(tmp_path):
    infos = [ShardInfo(f"{number:05}.tar", 100, 1 << 20, 1 << 20, "0" * 32) for number in range(10_000)]
    (tmp_path / "manifest.json").write_bytes(Manifest(infos, {}).pack())
    shards = open_shard_set(tmp_path)  # there are no shards, and no indexes
    assert int(shards.counts.sum()) == 1_000_000
    assert len(pickle.dumps(shards)) < 2 << 20
    with pytest.raises(CorruptShard, match=r"09999\.tar\.index: the index of the shard is missing"):
        shards.index(9999)


def test_the_digest_tells_data_sets_apart(folder, tmp_path):
    digest = open_shard_set(folder).digest
    assert digest == open_shard_set(shutil.copytree(folder, tmp_path / "copy")).digest
    write_shards(tmp_path / "other", SAMPLES, samples_per_shard=9)
    write_shards(tmp_path / "fewer", SAMPLES[:24], samples_per_shard=10)
    assert len({digest, open_shard_set(tmp_path / "other").digest, open_shard_set(tmp_path / "fewer").digest}) == 3


def test_a_damaged_manifest_is_an_error(folder):
    file = folder / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"00001.tar", b"../01.tar"))
    with pytest.raises(DatasetError, match="the manifest is damaged") as caught:
        open_shard_set(folder)
    assert caught.value.address == str(file)


# --- indexes ---------------------------------------------------------------------------------------------------------


def damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def swap(file):
    shutil.copy(file.with_name("00000.tar.index"), file)


@pytest.mark.parametrize("harm", [damage, swap, os.unlink, lambda file: os.truncate(file, 100)])
def test_a_bad_index_is_named(folder, harm):
    harm(folder / "00001.tar.index")
    shards = open_shard_set(folder)
    assert len(shards.index(0)) == 10
    with pytest.raises(CorruptShard, match=r"00001\.tar\.index: the index") as caught:
        shards.index(1)
    assert caught.value.address == f"{folder}/00001.tar"
    assert caught.value.details == {"dataset": str(folder), "shard": "00001.tar"}


def test_an_index_of_another_shard_than_the_manifest_describes_is_refused(tmp_path):
    packed = build_small(3).pack()
    (tmp_path / "00000.tar.index").write_bytes(packed)
    for samples, size in ((4, 8192), (3, 9000)):
        info = ShardInfo("00000.tar", samples, size, size, digest_index(packed))
        (tmp_path / "manifest.json").write_bytes(Manifest([info], {}).pack())
        with pytest.raises(CorruptShard, match="describes another shard than the manifest"):
            open_shard_set(tmp_path).index(0)


def test_indexes_are_kept_in_bounded_memory(folder, monkeypatch):
    shards = open_shard_set(folder)
    assert shards.index(0) is shards.index(0)
    largest = shards.index(0).memory_bytes
    monkeypatch.setattr(all_shards_module, "_MAX_INDEX_BYTES", 2 * largest)
    shards = open_shard_set(folder)
    first = shards.index(0)
    for number in (1, 2):
        shards.index(number)
    assert shards._open.indexes.bytes <= 2 * largest
    assert shards.index(0) is not first


def test_many_threads_use_it_at_once(folder):
    shards = open_shard_set(folder)
    results = []
    threads = [threading.Thread(target=lambda: results.append(read_samples(shards))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [SAMPLES] * 8


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_opens_its_own(folder):
    shards = open_shard_set(folder)
    shards.index(0)
    shards.store(0)
    opened = shards._open
    lock_taken, release = threading.Event(), threading.Event()

    def hold_lock():
        with opened.indexes._lock:
            lock_taken.set()
            release.wait()

    holder = threading.Thread(target=hold_lock)
    holder.start()
    lock_taken.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if read_samples(shards) == SAMPLES else 1)
    release.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shards._open is opened


def test_a_pickle_holds_nothing_open(folder):
    shards = open_shard_set(folder)
    shards.index(0)
    shards.store(0)
    twin = pickle.loads(pickle.dumps(shards))
    assert not twin._open.stores
    assert (twin.digest, twin.counts.tolist()) == (shards.digest, shards.counts.tolist())
    assert read_samples(twin) == SAMPLES


def test_a_store_that_is_in_use_survives_many_others(folder, monkeypatch):
    monkeypatch.setattr(all_shards_module, "_MAX_OPEN_STORES", 1)
    addresses = [f"{folder}/00000.tar", "memory://other/a.tar"]
    infos = [ShardInfo("a.tar", 1, 1024, 1024, "0" * 32)] * 2
    shards = ShardSet("x", addresses, infos)
    store, path = shards.store(0)
    shards.store(1)
    assert len(store.read(path)) == (folder / "00000.tar").stat().st_size


def test_stores_of_one_server_may_have_different_options():
    options = {"s3://b/one": {"region": "eu-central-1"}, "s3://b/two": {"region": "us-east-1"}}
    infos = [ShardInfo("a.tar", 1, 1024, 1024, "0" * 32)] * 2
    shards = ShardSet("x", ["s3://b/one/a.tar", "s3://b/two/a.tar"], infos, options)
    assert shards.store(0)[0] is not shards.store(1)[0]
    assert shards.store(0)[0] is shards.store(0)[0]


def test_no_secrets_are_shown():
    infos = [ShardInfo("a.tar", 1, 1024, 1024, "0" * 32)]
    address = "http://user:secret@host/a.tar?token=secret"
    shards = ShardSet(address, [address], infos, {"password": "secret"})
    assert "secret" not in f"{shards!r} {shards.address} {shards.shard_address(0)}"


# --- folders without a manifest --------------------------------------------------------------------------------------


def test_a_half_written_data_set_is_incomplete(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(DatasetIncomplete, match="still being written, or its writer was interrupted") as caught:
        open_shard_set(folder)
    assert caught.value.details["dataset"] == str(folder)
    (folder / "00002.tar").unlink()
    (folder / "00002.tar.index").unlink()
    assert read_samples(open_shard_set(folder, allow_incomplete=True)) == SAMPLES[:20]
    assert read_samples(open_shard_set(f"{folder}/*.tar")) == SAMPLES[:20]


def test_shards_of_other_programs_need_no_manifest(tmp_path):
    write_shards(tmp_path / "set", SAMPLES, samples_per_shard=10, index=False, manifest=False)
    (tmp_path / "set" / ".hidden.tar").write_bytes(b"junk")
    (tmp_path / "set" / "README.md").write_bytes(b"text")
    (tmp_path / "set" / "more").mkdir()
    (tmp_path / "set" / "more" / "a.tar").write_bytes(b"junk")
    shards = open_shard_set(tmp_path / "set")
    assert [info.name for info in shards.infos] == ["00000.tar", "00001.tar", "00002.tar"]
    assert shards.index(0).checksums is None
    assert read_samples(shards) == SAMPLES
    assert read_samples(pickle.loads(pickle.dumps(shards))) == SAMPLES


@pytest.mark.parametrize("pattern", ["*.tar", "{00000..00002}.tar", "0000[0-2].tar"])
@pytest.mark.parametrize("index", [True, False])
def test_patterns_stand_for_shards(tmp_path, pattern, index):
    write_shards(tmp_path / "set", SAMPLES, samples_per_shard=10, index=index, manifest=False)
    shards = open_shard_set(f"{tmp_path}/set/{pattern}")
    assert read_samples(shards) == SAMPLES
    assert (shards.index(1).checksums is not None) is index


def test_a_list_keeps_its_order_and_may_name_a_shard_twice(folder):
    shards = open_shard_set([f"{folder}/00002.tar", f"{folder}/00000.tar", f"{folder}/00002.tar"])
    assert read_samples(shards) == SAMPLES[20:] + SAMPLES[:10] + SAMPLES[20:]
    assert shards.address == f"{folder}/00002.tar and 2 more"


def test_a_folder_may_be_named_like_a_pattern_or_a_shard(tmp_path):
    for name in ("set[1]", "set{1,2}", "set.tar"):
        write_shards(tmp_path / name, SAMPLES, samples_per_shard=10)
        assert read_samples(open_shard_set(tmp_path / name)) == SAMPLES


@pytest.mark.parametrize("name", ["missing", "empty", "missing.tar", "empty/*.tar", "file.txt"])
def test_no_shards_are_one_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_bytes(b"text")
    with pytest.raises(DatasetNotFound):
        open_shard_set(tmp_path / name)


@pytest.mark.parametrize("address", [[], "", 7, [7], "a\0b"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError):
        open_shard_set(address)


def test_files_that_are_no_shards_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"text")
    with pytest.raises(ConfigError, match=r"a\.txt is no shard: its name has to end in \.tar"):
        open_shard_set(f"{tmp_path}/*.txt")


def test_an_index_that_does_not_fit_its_shard_is_named(folder):
    with open(folder / "00001.tar", "ab") as file:
        file.write(bytes(10_240))
    with pytest.raises(CorruptShard, match="one of them was replaced or cut") as caught:
        open_shard_set(f"{folder}/*.tar")
    assert caught.value.address == f"{folder}/00001.tar"


# --- addresses -------------------------------------------------------------------------------------------------------


def test_queries_of_http_addresses_go_to_the_end():
    assert join_address("http://h/set/?sig=a/b", "0.tar") == "http://h/set/0.tar?sig=a/b"
    assert add_suffix("https://h/0.tar?sig=1", ".index") == "https://h/0.tar.index?sig=1"
    assert add_suffix("s3://b/what?/0.tar", ".index") == "s3://b/what?/0.tar.index"
    assert join_address("s3://b/what?", "0.tar") == "s3://b/what?/0.tar"
    assert resolve_address("http://h/set/manifest.json?sig=1") == "http://h/set/?sig=1"
    assert resolve_address("s3://b/set/manifest.json") == "s3://b/set/"


def test_counts_are_an_array(folder):
    counts = open_shard_set(folder).counts
    assert isinstance(counts, np.ndarray)
    assert counts.dtype == np.int64

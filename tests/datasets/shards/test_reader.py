"""Raw samples: those that tarfile reads, in any order, from any store; bad ones are typed errors."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
from datasets.shards.shard_files import compress, make_samples, write_shards

from streamloader import CorruptSample, CorruptShard, DatasetError, StoreError
from streamloader.datasets.shards import all_shards, local_bytes
from streamloader.datasets.shards.make_index import open_shard_set
from streamloader.datasets.shards.open_files import get_open_files
from streamloader.datasets.shards.order import EpochOrder, OrderSettings, ShuffleWindow
from streamloader.datasets.shards.reader import LaneReader
from streamloader.datasets.shards.remote_bytes import RemoteShards
from streamloader.datasets.shards.source import SampleSource

SAMPLES = make_samples(90, sizes=(3, 700, 0, 5000, 40))


@pytest.fixture
def unmapped(monkeypatch):
    """Local files as on a file system whose mappings could end the process."""
    monkeypatch.setattr(local_bytes, "is_local_folder", lambda path: False)


def play(shards, *, shuffle=True, lanes=3, **options):
    """All samples and errors, in the order of an epoch."""
    source = SampleSource(shards, **options)
    order = EpochOrder(shards.counts, shards.total_bytes, OrderSettings(lanes=lanes, shuffle=shuffle), 0)
    played = []
    for lane in range(lanes):
        reader = LaneReader(source, order.windows(lane))
        reader.prefetch()
        while (block := reader.read_block()) is not None:
            played += block.samples
        reader.close()
    source.close()
    return played


def without_names(samples):
    return sorted(
        ({name: value for name, value in sample.items() if name != "__url__"} for sample in samples),
        key=lambda sample: sample["__key__"],
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("compression", "frame_bytes"), [(None, 0), ("gzip", 3000), ("gzip", None), ("zstd", 3000)])
def test_local_samples_are_those_of_the_files(tmp_path, monkeypatch, shuffle, compression, frame_bytes):
    write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=25, compression=compression, frame_bytes=frame_bytes)
    mapped = play(open_shard_set(f"{tmp_path}"), shuffle=shuffle)
    assert without_names(mapped) == SAMPLES
    monkeypatch.setattr(local_bytes, "is_local_folder", lambda path: False)
    assert play(open_shard_set(f"{tmp_path}"), shuffle=shuffle) == mapped


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_samples_in_s3_are_those_of_the_files(tmp_path, seaweed_server, compression):
    write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=25, compression=compression)
    bucket = seaweed_server.bucket()
    for path in tmp_path.iterdir():
        seaweed_server.direct(bucket).put(f"a/set/{path.name}", path.read_bytes())
    shards = open_shard_set(f"s3://{bucket}/a/set", seaweed_server.options())
    assert without_names(play(shards)) == SAMPLES
    assert without_names(play(shards, prefetch_bytes=1)) == SAMPLES
    pattern = f"s3://{bucket}/a/set/*.tar" + {None: "", "gzip": ".gz", "zstd": ".zst"}[compression]
    assert without_names(play(open_shard_set(pattern, seaweed_server.options()))) == SAMPLES
    shards.close()


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_shards_over_http_need_no_listing(tmp_path, nginx_server, compression):
    names = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=25, compression=compression)
    folder = f"shards-{compression}"
    nginx_server.put({f"{folder}/{path.name}": path.read_bytes() for path in tmp_path.iterdir()})
    url = f"{nginx_server.url}/{folder}"
    assert without_names(play(open_shard_set(url))) == SAMPLES
    suffix = names[0].partition(".")[2]
    assert without_names(play(open_shard_set(f"{url}/{{00000..00003}}.{suffix}"))) == SAMPLES


def test_only_the_fields_that_are_needed_are_read(tmp_path, unmapped):
    samples = [{"__key__": f"{n}", "npy": os.urandom(100_000), "cls": b"%d" % n} for n in range(20)]
    write_shards(f"{tmp_path}", samples, samples_per_shard=10)
    source = SampleSource(open_shard_set(f"{tmp_path}"), fields=["cls", "jpg"])
    window = ShuffleWindow(np.repeat([0, 1], 10), np.tile(np.arange(10), 2))
    reader = LaneReader(source, iter([window]))
    reader.prefetch()
    plan = reader._ahead[0].plan
    assert (plan.span_ends - plan.span_starts).sum() < 1000
    played = reader.read_block().samples
    assert without_names(played) == without_names({"__key__": s["__key__"], "cls": s["cls"]} for s in samples)
    source.close()


def test_samples_may_have_different_fields(tmp_path):
    samples = [{"__key__": f"{n:03}", **{f"f{k}": b"%d-%d" % (n, k) for k in range(n % 4 + 1)}} for n in range(40)]
    write_shards(f"{tmp_path}", samples, samples_per_shard=7)
    assert without_names(play(open_shard_set(f"{tmp_path}"))) == samples


def test_a_flipped_byte_is_one_bad_sample(tmp_path):
    name = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=100)[0]
    with tarfile.open(f"{tmp_path}/{name}") as tar:
        member = tar.getmember("dir/000013.jpg")
    with open(f"{tmp_path}/{name}", "r+b") as file:
        file.seek(member.offset_data + 5)
        file.write(b"\xff")
    played = play(open_shard_set(f"{tmp_path}"))
    errors = [sample for sample in played if isinstance(sample, Exception)]
    assert [type(error) for error in errors] == [CorruptSample]
    assert errors[0].details == {"dataset": f"{tmp_path}", "shard": name, "member": "dir/000013.jpg"}
    assert errors[0].offset == member.offset_data
    assert errors[0].address == f"{tmp_path}/{name}"
    assert without_names(s for s in played if isinstance(s, dict)) == SAMPLES[:13] + SAMPLES[14:]
    assert len([s for s in play(open_shard_set(f"{tmp_path}"), verify=False) if isinstance(s, dict)]) == len(SAMPLES)


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "no index", "other index"])
def test_a_bad_shard_is_one_error_for_each_of_its_samples(tmp_path, compression, damage):
    names = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=30, compression=compression)
    path = f"{tmp_path}/{names[1]}"
    if damage == "missing":
        os.unlink(path)
    elif damage == "cut":
        os.truncate(path, os.path.getsize(path) - 1)
    elif damage == "longer":
        with open(path, "ab") as file:
            file.write(b"x")
    elif damage == "no index":
        os.unlink(f"{path}.index")
    else:
        os.replace(f"{tmp_path}/{names[0]}.index", f"{path}.index")
        write_shards(f"{tmp_path}", SAMPLES[:30], samples_per_shard=30, compression=compression, manifest=False)
    played = play(open_shard_set(f"{tmp_path}"))
    errors = [sample for sample in played if not isinstance(sample, dict)]
    assert len(errors) == 30
    assert {type(error) for error in errors} == {CorruptShard}
    assert {error.details["shard"] for error in errors} == {names[1]}
    assert all(str(tmp_path) in str(error) for error in errors)
    assert without_names(s for s in played if isinstance(s, dict)) == SAMPLES[:30] + SAMPLES[60:]


def test_a_shard_in_s3_that_is_replaced_or_missing_is_an_error(tmp_path, seaweed_server):
    names = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=30)
    bucket = seaweed_server.bucket()
    direct = seaweed_server.direct(bucket)
    for path in tmp_path.iterdir():
        direct.put(f"set/{path.name}", path.read_bytes())
    direct.delete(f"set/{names[0]}")
    direct.put(f"set/{names[2]}", b"x" * 2000)
    shards = open_shard_set(f"s3://{bucket}/set", seaweed_server.options())
    played = play(shards)
    errors = [sample for sample in played if not isinstance(sample, dict)]
    assert {type(error) for error in errors} == {CorruptShard}
    assert {error.details["shard"] for error in errors} == {names[0], names[2]}
    assert len(errors) == 60
    shards.close()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("flip", [5, 200, -3])
def test_damaged_compressed_data_is_never_returned(tmp_path, compression, flip):
    name = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=100, compression=compression)[0]
    data = bytearray((tmp_path / name).read_bytes())
    data[flip] ^= 0x10
    (tmp_path / name).write_bytes(data)
    played = play(open_shard_set(f"{tmp_path}"))
    assert {type(sample) for sample in played} <= {dict, CorruptShard, CorruptSample}
    good = without_names(sample for sample in played if isinstance(sample, dict))
    assert all(sample in SAMPLES for sample in good)
    assert len(played) == len(SAMPLES)


def test_a_file_that_was_indexed_by_its_headers_has_all_samples(tmp_path):
    """Of another writer: hidden files, metadata and links belong to no sample."""
    with tarfile.open(f"{tmp_path}/a.tar", "w") as tar:
        for name in ("__meta__/x.txt", ".hidden.txt", "no-dot", "b/1.seg.png", "b/1.CLS", "b/2.cls"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("b/3.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert without_names(play(open_shard_set(f"{tmp_path}/*.tar"))) == [
        {"__key__": "b/1", "seg.png": b"b/1.seg.png", "cls": b"b/1.CLS"},
        {"__key__": "b/2", "cls": b"b/2.cls"},
    ]


def test_a_sample_with_a_field_twice_is_refused(tmp_path):
    with tarfile.open(f"{tmp_path}/a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("1.cls"))
    with pytest.raises(CorruptShard, match="has two members 'cls'"):
        open_shard_set(f"{tmp_path}/a.tar")


def test_a_cut_file_without_index_is_refused(tmp_path):
    name = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=100, index=False, manifest=False)[0]
    os.truncate(tmp_path / name, 5000)
    with pytest.raises(DatasetError, match="cut"):
        open_shard_set(f"{tmp_path}/{name}")


def test_compressing_in_frames_makes_one_file():
    data = bytes(range(256)) * 100
    for method in ("gzip", "zstd"):
        packed, frames = compress(data, method, 5000)
        assert len(frames) == 6
        assert len(packed) < len(data)


def test_a_field_that_only_a_later_shard_has_disturbs_no_open_window(tmp_path):
    samples = make_samples(60, sizes=(30,)) + [
        {"__key__": f"late/{n}", "jpg": b"x", "cls": b"1", "npy": b"y"} for n in range(60)
    ]
    write_shards(f"{tmp_path}", samples, samples_per_shard=60)
    source = SampleSource(open_shard_set(f"{tmp_path}"))
    rows = np.arange(60)
    windows = [ShuffleWindow(np.full(60, shard), rows) for shard in (0, 1)]
    reader = LaneReader(source, iter(windows))
    reader.prefetch()
    played = []
    while (block := reader.read_block()) is not None:  # the second window is planned before the first is read
        played += block.samples
    assert without_names(played) == without_names(samples)
    source.close()


def test_no_index_at_all_is_an_error_for_each_sample(tmp_path):
    names = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=30)
    for name in names:
        os.unlink(tmp_path / f"{name}.index")
    played = play(open_shard_set(f"{tmp_path}"))
    assert len(played) == len(SAMPLES)
    assert {type(sample) for sample in played} == {CorruptShard}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_what_does_not_lie_in_the_file_is_no_bad_shard(tmp_path, monkeypatch, unmapped, number):
    """on_error="skip" would leave good samples out."""
    write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=30)
    shards = open_shard_set(f"{tmp_path}")

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_bytes, "open_regular_file", fail)
    errors = play(shards)
    assert {isinstance(error, StoreError) and not isinstance(error, DatasetError) for error in errors} == {True}
    monkeypatch.undo()
    monkeypatch.setattr(local_bytes, "is_local_folder", lambda path: False)
    monkeypatch.setattr(os, "pread", fail)
    assert all(isinstance(error, StoreError) for error in play(shards))


def test_a_wait_that_is_interrupted_loses_no_sample(tmp_path, monkeypatch, unmapped):
    write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=30)
    source = SampleSource(open_shard_set(f"{tmp_path}"))
    source.shards.index(0)
    reader = LaneReader(source, iter([ShuffleWindow(np.zeros(30, int), np.arange(30))]))

    def interrupt(*args):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pread", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reader.read_block()
    assert without_names(reader.read_block().samples) == SAMPLES[:30]
    source.close()


def test_a_file_that_is_replaced_between_two_openings_is_noticed(tmp_path):
    name = write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=100)[0]
    source = SampleSource(open_shard_set(f"{tmp_path}"), verify=False)
    window = ShuffleWindow(np.zeros(5, int), np.arange(5))
    assert all(isinstance(sample, dict) for sample in LaneReader(source, iter([window])).read_block().samples)
    get_open_files().clear()  # as if many other shards had been read since
    os.replace(shutil.copy(tmp_path / name, tmp_path / "copy"), tmp_path / name)
    samples = LaneReader(source, iter([window])).read_block().samples
    assert {type(sample) for sample in samples} == {CorruptShard}
    source.close()


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_that_is_cut_while_it_is_mapped_is_an_error(tmp_path, compression):
    """Reading a mapping behind the end of its file would end the process."""
    samples = make_samples(600, sizes=(5000,))  # more than one block
    name = write_shards(f"{tmp_path}", samples, samples_per_shard=600, compression=compression, frame_bytes=10_000)[0]
    source = SampleSource(open_shard_set(f"{tmp_path}"))
    reader = LaneReader(source, iter([ShuffleWindow(np.zeros(600, int), np.arange(600))]))
    first = reader.read_block().samples
    assert first == source_samples(tmp_path)[: len(first)]
    os.truncate(tmp_path / name, 10_240)
    rest = [sample for block in iter(reader.read_block, None) for sample in block.samples]
    assert len(first) + len(rest) == 600
    assert isinstance(rest[-1], CorruptShard)
    assert rest[-1].details["shard"] == name
    source.close()


def source_samples(folder):
    """All samples of a folder, in order."""
    return play(open_shard_set(f"{folder}"), shuffle=False, lanes=1)


def test_a_shard_that_is_decompressed_as_a_whole_is_fetched_once(tmp_path, seaweed_server, monkeypatch):
    write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=100, compression="gzip", frame_bytes=None)
    bucket = seaweed_server.bucket()
    for path in tmp_path.iterdir():
        seaweed_server.direct(bucket).put(f"set/{path.name}", path.read_bytes())
    shards = open_shard_set(f"s3://{bucket}/set", seaweed_server.options())
    fetched = []
    submit = RemoteShards.submit
    monkeypatch.setattr(RemoteShards, "submit", lambda self, *args: fetched.append(args) or submit(self, *args))
    assert without_names(play(shards)) == SAMPLES
    assert len(fetched) == 1
    shards.close()


def test_sizes_come_from_the_manifest_where_an_index_was_evicted(tmp_path, seaweed_server, monkeypatch):
    """The I/O thread cannot read one."""
    write_shards(f"{tmp_path}", SAMPLES, samples_per_shard=30)
    bucket = seaweed_server.bucket()
    for path in tmp_path.iterdir():
        seaweed_server.direct(bucket).put(f"set/{path.name}", path.read_bytes())
    monkeypatch.setattr(all_shards, "_MAX_INDEXES", 1)
    shards = open_shard_set(f"s3://{bucket}/set", seaweed_server.options())
    assert without_names(play(shards)) == SAMPLES
    shards.close()


def test_spans_are_bounded(tmp_path, unmapped):
    samples = [{"__key__": f"{n}", "bin": bytes([n]) * 1_000_000} for n in range(20)]
    write_shards(f"{tmp_path}", samples, samples_per_shard=20)
    source = SampleSource(open_shard_set(f"{tmp_path}"))
    reader = LaneReader(source, iter([ShuffleWindow(np.zeros(20, int), np.arange(20))]))
    reader.prefetch()
    plan = reader._ahead[0].plan
    sizes = plan.span_ends - plan.span_starts
    assert 4 <= len(sizes) <= 6
    assert int(sizes.max()) <= 6 << 20
    assert sum(len(block.samples) for block in iter(reader.read_block, None)) == 20
    source.close()


def serve_photos(tmp_path, nginx_server, count=600, image_bytes=20_000):
    """A data set that a server has, and the bytes that are read of it."""
    samples = [{"__key__": f"{n:04}", "jpg": os.urandom(image_bytes), "cls": b"%d" % n} for n in range(count)]
    write_shards(f"{tmp_path}", samples, samples_per_shard=150)
    nginx_server.put({f"photos/{path.name}": path.read_bytes() for path in tmp_path.iterdir()})
    return open_shard_set(f"{nginx_server.url}/photos"), samples


def open_lanes(shards, hosted, buffer_bytes=6 << 20, **options):
    source = SampleSource(shards, **options)
    order = EpochOrder(shards.counts, shards.total_bytes, OrderSettings(batch_size=4, buffer_bytes=buffer_bytes), 0)
    windows = order.open_lanes(dict.fromkeys(hosted, 0))
    return source, {lane: LaneReader(source, windows[lane]) for lane in hosted}


def record_spans(monkeypatch):
    spans = []
    submit = RemoteShards.submit
    monkeypatch.setattr(RemoteShards, "submit", lambda self, *span: spans.append(span) or submit(self, *span))
    return spans


@pytest.mark.parametrize(("workers", "requests"), [(1, 120), (2, 200), (12, 300)])
def test_lanes_of_a_process_share_their_requests(tmp_path, nginx_server, monkeypatch, workers, requests):
    shards, samples = serve_photos(tmp_path, nginx_server, count=300, image_bytes=100_000)
    spans = record_spans(monkeypatch)
    played = []
    for worker in range(workers):
        source, readers = open_lanes(shards, range(worker, 12, workers), buffer_bytes=48 << 20)
        live = dict(readers)
        while live:  # in turn, as an epoch does
            for lane, reader in list(live.items()):
                block = reader.read_block()
                if block is None:
                    del live[lane]
                else:
                    played += block.samples
        for reader in readers.values():
            reader.close()
        source.close()
    assert without_names(played) == samples
    content = sum(len(value) for sample in samples for name, value in sample.items() if name != "__key__")
    fetched = sum(end - start for _, start, end in spans)
    assert content < fetched < 1.05 * content  # headers and padding of tar, but no byte twice
    assert len(spans) <= requests
    shards.close()


def test_no_more_is_fetched_in_advance_than_the_limit_allows(tmp_path, nginx_server, monkeypatch):
    shards, _ = serve_photos(tmp_path, nginx_server)
    spans = record_spans(monkeypatch)
    source, readers = open_lanes(shards, range(12), prefetch_bytes=1 << 20)
    for reader in readers.values():
        reader.prefetch()
    assert 0 < sum(end - start for _, start, end in spans) <= 1 << 20
    for reader in readers.values():  # all lanes play their first window, and fetch no more than that in advance
        reader.read_block()
    first = sum(int((plan.span_ends - plan.span_starts).sum()) for plan in {r._current.plan for r in readers.values()})
    assert sum(end - start for _, start, end in spans) <= first + (1 << 20)
    for reader in readers.values():
        reader.close()
    source.close()
    shards.close()


def test_bytes_are_dropped_when_the_last_lane_has_played_them(tmp_path, nginx_server):
    shards, _ = serve_photos(tmp_path, nginx_server)
    source, readers = open_lanes(shards, range(12))
    one, *others = readers.values()
    one.read_block()
    plan = one._current.plan
    while one._current.plan is plan:
        assert one.read_block() is not None
    assert any(len(data) for data in plan.data if data is not None)  # the others need them
    for reader in others:
        reader.read_block()
        while not reader._current.is_played:
            assert reader._current.plan is plan
            reader.read_block()
    assert plan.data == [b""] * len(plan.data)
    for reader in readers.values():
        reader.close()
    source.close()
    shards.close()

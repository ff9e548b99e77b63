"""Videos of an archive as streams: the same steps as streaming their sources, with any number of workers and ranks."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_clips import VARIANTS, make_clip

import streamloader as sl
from streamloader.archive.archive import Archive, open_archive
from streamloader.archive.reader.reader import ArchiveReader
from streamloader.archive.streams import ArchiveStreams
from streamloader.stores.io_thread import close_shared_stores
from streamloader.streams.base import stream_rng
from streamloader.testing import assert_same_steps, describe_streams, read_stream

KINDS = ("variable_rate.mp4", "late_start.ts", "open_groups.mkv", "rotated.mp4", "mpeg4.avi", "edit_list.mp4")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return an archive of difficult videos in small chunks, and the sources."""
    folder = tmp_path_factory.mktemp("archive")
    paths = [str(VARIANTS[kind](folder)) for kind in KINDS]
    with Archive.create(folder / "archive") as archive:
        archive.add(paths[:2], chunk_frames=7, jobs=0, name="{stem}", metadata={"split": "train"})
        archive.add(paths[2:], chunk_frames=12, jobs=0, name="{stem}", metadata={"split": "test"})
    return str(folder / "archive"), paths


def batches(dataset, **options):
    with sl.MultiStreamer(dataset, batch_size=4, window=5, seed=3, **options) as loader:
        return [batch.numpy() for batch in loader]


def same(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert set(one) == set(other)
        for name, array in one.items():
            assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 3},
        {"fps": "30000/1001"},
        {"fps": 7, "stride": 2},
        {"max_frames": 9, "random_start": True, "stride": 2},
        {"max_frames": 9, "random_start": True, "fps": 60},
        {"pix_fmt": "yuv420p"},
        {"pix_fmt": "rgbp"},
        {"pix_fmt": "gray", "transform": lambda frames, rng: frames[:, ::2] + np.uint8(rng.integers(99))},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_steps_and_times_are_those_of_the_sources(made, options):
    address, paths = made
    archived = batches(ArchiveStreams(address, size=(32, 40), **options))
    direct = batches(sl.VideoStreams(paths, size=(32, 40), **options))
    assert sum(batch["valid"].sum() for batch in archived) > 30
    same(archived, direct)


def test_steps_are_computed_block_by_block(made, monkeypatch):
    whole = batches(ArchiveStreams(made[0], size=(32, 40), fps=33))
    monkeypatch.setattr("streamloader.archive.streams._STEPS_PER_BLOCK", 3)
    monkeypatch.setattr("streamloader.archive.reader.timestamps._CHUNKS_PER_REQUEST", 2)
    monkeypatch.setattr("streamloader.archive.reader.timestamps._MAX_CACHED_CHUNKS", 1)
    same(batches(ArchiveStreams(made[0], size=(32, 40), fps=33)), whole)


def test_batches_are_the_same_for_workers_and_ranks(made):
    dataset = ArchiveStreams(made[0], size=(32, 40))
    whole = batches(dataset)
    same(batches(dataset, num_workers=2), whole)
    parts = []
    for rank in range(2):
        with sl.MultiStreamer(dataset, batch_size=2, window=5, seed=3, rank=rank, world_size=2) as loader:
            parts.append([batch.numpy() for batch in loader])
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for one, other, both in zip(*parts, whole, strict=True):
        for name in ("data", "reset", "valid", "step", "time"):
            assert np.concatenate([one[name], other[name]]).tobytes() == both[name].tobytes()


def test_resuming_from_a_state_in_other_processes(made):
    options = {"batch_size": 4, "window": 5, "seed": 3}
    with sl.MultiStreamer(ArchiveStreams(made[0], size=(32, 40)), **options) as loader:
        batch = iter(loader)
        for _ in range(3):
            next(batch)
        state = loader.state_dict()
        rest = [each.numpy() for each in batch]
    with sl.MultiStreamer(ArchiveStreams(made[0], size=(32, 40)), num_workers=2, **options) as loader:
        loader.load_state_dict(state)
        same([each.numpy() for each in loader], rest)


def test_seeking_decodes_at_most_one_group(tmp_path):
    options = {"x264-params": "keyint=12:min-keyint=12:scenecut=0"}
    path = make_clip(tmp_path / "a.mp4", frames=120, gop=12, options=options)
    with Archive.create(tmp_path / "archive") as archive:
        archive.add(path, chunk_frames=48, jobs=0)
    dataset = ArchiveStreams(tmp_path / "archive")
    (info,) = describe_streams(dataset)
    whole = read_stream(dataset, info)
    with dataset._readers as reader:
        for step in (0, 11, 12, 47, 48, 77, 119):
            before = reader.stats()["packets"]
            assert_same_steps(
                read_stream(dataset, info, 1, seek=step, steps=1), {"data": whole["data"][step : step + 1]}
            )
            decoded = reader.stats()["packets"] - before
            assert 1 <= decoded <= step % 12 + 1 + 6, (step, decoded)  # plus the frames that the decoder holds back
        before = reader.stats()["packets"]
        read_stream(dataset, info)
        assert reader.stats()["packets"] - before <= 120 + 6  # decoding continues over groups and chunks


def test_streams_have_the_names_of_the_videos_and_can_be_selected(made):
    address, paths = made
    names = [Path(path).stem for path in paths]
    infos = describe_streams(ArchiveStreams(address, size=(32, 40)))
    assert [info.key for info in infos] == names
    assert [info.length for info in infos] == [
        info.length for info in describe_streams(sl.VideoStreams(paths, size=(32, 40)))
    ]
    chosen = ArchiveStreams(address, where={"split": "train"}, size=(32, 40))
    assert [info.key for info in describe_streams(chosen)] == names[:2]
    with pytest.raises(sl.StreamNotFound, match="6 videos, and none matches") as none:
        describe_streams(ArchiveStreams(address, where={"split": "none"}))
    assert none.value.address.endswith("catalog.sqlite")


def test_an_open_archive_gives_its_own_numbering_and_may_be_closed(made, tmp_path):
    address = tmp_path / "archive"
    with Archive.create(address) as archive:
        archive.add(made[1], jobs=0, name="{stem}")
    late = make_clip(tmp_path / "late.mp4", frames=3)
    with open_archive(address) as archive:
        assert archive.snapshot.videos == 6
        with Archive(address) as other:
            other.add(late, jobs=0, name="{stem}")
        dataset = ArchiveStreams(archive, size=(32, 40))
    assert len(describe_streams(dataset)) == 6
    again = pickle.loads(pickle.dumps(dataset))
    infos = describe_streams(again)
    assert len(infos) == 6
    assert len(read_stream(again, infos[0])["data"]) == infos[0].length
    assert len(describe_streams(ArchiveStreams(address, size=(32, 40)))) == 7
    reader = ArchiveReader(address)
    with pytest.raises(sl.ConfigError, match="leave them out"):
        ArchiveStreams(reader, places={0: str(tmp_path)})
    reader.close()


def test_different_sizes_are_reported(made):
    with pytest.raises(sl.FrameSizeError, match=r"variable_rate is 48x64.*rotated is 64x48.*size="):
        describe_streams(ArchiveStreams(made[0]))


def test_missing_and_empty_archives(tmp_path):
    with pytest.raises(sl.CatalogNotFound):
        describe_streams(ArchiveStreams(tmp_path / "none"))
    Archive.create(tmp_path / "empty").close()
    with pytest.raises(sl.StreamNotFound, match="is empty"):
        describe_streams(ArchiveStreams(tmp_path / "empty"))


def test_a_damaged_chunk_is_an_error_at_its_frame(made, tmp_path):
    address, paths = tmp_path / "archive", made[1]
    with Archive.create(address) as archive:
        archive.add(paths[2], chunk_frames=12, jobs=0, name="{stem}")
        archive.refresh()
        catalog = archive.reader.catalog
        row = catalog.call(catalog.resource.get_chunks(archive.reader.video(0).content, 1, 2))[0]
    path = Path(address, row.path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    dataset = ArchiveStreams(address)
    (info,) = describe_streams(dataset)
    with pytest.raises(sl.CorruptStream) as damaged:
        read_stream(dataset, info)
    assert damaged.value.stream == info.key == "open_groups"
    assert damaged.value.details["chunk"] == 1
    direct = sl.VideoStreams(paths[2])
    good = read_stream(direct, describe_streams(direct)[0])["data"]
    before = read_stream(dataset, info, steps=row.first_frame)["data"]
    assert before.tobytes() == good[: row.first_frame].tobytes()


def test_another_archive_at_the_same_address_is_detected(made, tmp_path):
    address = tmp_path / "archive"
    shutil.copytree(made[0], address)
    dataset = ArchiveStreams(address, size=(32, 40))
    infos = describe_streams(dataset)
    close_shared_stores()  # as in another process
    shutil.rmtree(address)
    with Archive.create(address) as archive:
        archive.add(made[1][3], jobs=0, name="{stem}")
    with pytest.raises(sl.CorruptStream, match="is another one"):
        read_stream(dataset, infos[0], rng=stream_rng(0, 0, 0))


def test_invalid_options_are_refused(made):
    for options in ({"size": (0, 3)}, {"pix_fmt": "bgr"}, {"stride": 0}, {"random_start": True}, {"fps": 0}):
        with pytest.raises(sl.ConfigError):
            ArchiveStreams(made[0], **options)
    with pytest.raises(sl.ConfigError, match="one field"):
        ArchiveStreams(made[0], pix_fmt="yuv420p", transform=lambda frames, rng: frames)


def test_settings_are_part_of_a_state(made):
    with sl.MultiStreamer(ArchiveStreams(made[0], size=(32, 40)), batch_size=2, window=2) as loader:
        state = loader.state_dict()
    other = ArchiveStreams(made[0], size=(32, 40), stride=2)
    with sl.MultiStreamer(other, batch_size=2, window=2) as loader, pytest.raises(sl.StateError):
        loader.load_state_dict(state)

"""Archives in threads, in forked and spawned processes, and in DataLoader workers, and their cleanup."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from archive_data import make_archive

from streamloader.archive.archive import open_archive
from streamloader.archive.reader.reader import default_threads
from streamloader.errors import ConfigError, FrameIndexError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    frames = make_archive(folder, ("b_frames.mp4", "open_groups.mkv"))
    return str(folder / "store"), np.concatenate(list(frames.values()))


def test_many_threads_share_an_archive(made):
    store, whole = made
    wrong = []

    def read(seed):
        random = np.random.default_rng(seed)
        for _ in range(15):
            start, count = int(random.integers(0, 79)), int(random.integers(1, 20))
            if not np.array_equal(archive[start : start + count].numpy(), whole[start : start + count]):
                wrong.append((seed, start, count))

    with open_archive(store, threads=2) as archive:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_threads_that_want_the_same_group_decode_it_once(made):
    store, whole = made
    with open_archive(store, threads=1) as archive:
        len(archive)
        together = threading.Barrier(4)
        got = []

        def read():
            together.wait()
            got.append(archive[5:8])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(np.array_equal(frames.numpy(), whole[5:8]) for frames in got)
        stats = archive.stats()
        assert (stats["frame_hits"], stats["frame_misses"], stats["spans"]) == (9, 3, 1)


def test_a_copy_has_the_same_numbering_and_settings(made):
    store, _ = made
    with open_archive(store, size=(24, 32), transform=torch.Tensor.float) as archive:
        archive[3]
        copy = pickle.loads(pickle.dumps(archive))
        video = pickle.loads(pickle.dumps(archive["open_groups"]))
        with copy:
            assert copy.snapshot == archive.snapshot
            assert torch.equal(copy[30:50], archive[30:50])
            assert torch.equal(video[0], copy[40])
            assert copy.stats()["frames"] == 21
        video._archive.close()


def test_an_archive_with_a_client_of_the_user_cannot_be_pickled(made):
    archive = open_archive(made[0])
    archive.reader._catalog_options["client"] = object()
    with pytest.raises(ConfigError, match="client="):
        pickle.dumps(archive)
    archive.close()


def _read_in_child(archive, which, results):
    results.put((archive[which].numpy().copy(), archive.stats()["frames"]))
    results.close()
    results.join_thread()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(made, method):
    store, whole = made
    context = multiprocessing.get_context(method)
    with open_archive(store, threads=2) as archive:
        archive[0:20]  # decoders have threads at the time of the fork
        frames_here = iter(archive)
        next(frames_here)
        results = context.Queue()
        child = context.Process(target=_read_in_child, args=(archive, slice(30, 60), results))
        child.start()
        frames, count = results.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
        assert np.array_equal(frames, whole[30:60])
        assert count == 30
        assert np.array_equal(archive[20:40].numpy(), whole[20:40])
        assert np.array_equal(next(frames_here).numpy(), whole[1])
        frames_here.close()
        results.close()
        results.join_thread()
        child.close()


def test_closing_the_archive_in_a_forked_child_does_not_hang(made):
    with open_archive(made[0], threads=2) as archive:
        archive[0:40]
        child = os.fork()
        if child == 0:
            good = archive[3].shape == (48, 64, 3)
            archive.close()
            del archive
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _threads_of(_):
    return torch.tensor(default_threads())


def test_workers_of_a_loader_decode_with_one_thread():
    assert 1 <= default_threads() <= 8
    loader = torch.utils.data.DataLoader(range(2), num_workers=1, collate_fn=_threads_of)
    assert [int(count) for count in loader] == [1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_dataloader_shuffles_it(made, workers):
    store, whole = made
    with open_archive(store) as archive:
        sampler = torch.randperm(80, generator=torch.Generator().manual_seed(3)).tolist()
        loader = torch.utils.data.DataLoader(archive, batch_size=16, sampler=sampler, num_workers=workers)
        assert np.array_equal(torch.cat(list(loader)).numpy(), whole[sampler])


def test_an_error_in_one_of_several_threads_is_raised_and_nothing_is_left(made):
    store, whole = made
    with open_archive(store, threads=4) as archive:
        before = threading.active_count()

        def fail(frames):
            raise FrameIndexError("no")

        bad = pickle.loads(pickle.dumps(archive))
        taken = []

        def take(place, video, frame):
            taken.append(place)
            raise FrameIndexError("no")

        with pytest.raises(FrameIndexError, match="no"):
            bad.reader.for_each(np.array([1, 20, 35, 50, 70]), take)
        bad.close()
        assert taken
        assert threading.active_count() == before
        assert np.array_equal(archive[[1, 20, 35, 50, 70]].numpy(), whole[[1, 20, 35, 50, 70]])


def test_a_cancelled_wait_leaves_the_archive_usable(made):
    store, whole = made

    async def read(archive):
        task = asyncio.create_task(archive.frames(0, 80))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await archive.frames(10, 20)

    with open_archive(store) as archive:
        assert np.array_equal(asyncio.run(read(archive)).numpy(), whole[10:20])


def test_lazy_decoding_can_be_stopped_anywhere_and_continued(made):
    store, _ = made
    with open_archive(store, threads=1) as archive:
        video = archive["b_frames"].video
        for stop in (1, 7, 12):
            frames = archive.reader.decode(video, range(40))
            for _ in range(stop):
                next(frames)
            frames.close()
        packets = archive.stats()["packets"]
        assert [frame.pts is not None for frame in archive.reader.decode(video, [12, 13])] == [True, True]
        assert archive.stats()["packets"] - packets <= 4  # the decoder continues at its position
        order = [5, 4, 30, 31, 2]
        shapes = [(frame.width, frame.height) for frame in archive.reader.decode(video, order)]
        assert shapes == [(64, 48)] * 5

"""Use the package where torch cannot be imported: `python without_torch_program.py CHECK`."""

from __future__ import annotations

import importlib
import itertools
import pickle
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import blocked_torch  # noqa: F401 - before all that could import torch
import numpy as np
import pytest
from engine_data import Numbered, assert_same_batches, copies, model_epoch
from made_clips import as_rgb, linear_decode, make_clip

import streamloader as sl

LENGTHS = [5, 9, 3, 7, 4]
LANES, WINDOW, DEADLINE_S = 2, 3, 60.0


def loader_of(**arguments):
    arguments = {"timeout": DEADLINE_S} | arguments
    return sl.MultiStreamer(Numbered(LENGTHS), LANES, WINDOW, **arguments)


def expected(epoch=0):
    return model_epoch(LENGTHS, LENGTHS, epoch, lanes=LANES, window=WINDOW)


def check_batches():
    for workers in (0, 2):
        with loader_of(num_workers=workers) as loader:
            for epoch in range(2):
                loader.set_epoch(epoch)
                for batch, wanted in zip(loader, expected(epoch), strict=True):
                    assert all(type(batch[name]) is np.ndarray for name in batch)
                    assert batch["data"] is batch.data
                    assert_same_batches([dict(batch)], [wanted])
                    assert_same_batches([batch.numpy()], [wanted])
                    start, size = loader._ring.span
                    assert all(start <= batch[name].ctypes.data < start + size for name in batch)
                    assert batch.keep.dtype == np.float32
                    assert batch.keep.tolist() == (1.0 - wanted["reset"]).tolist()
            assert loader.stats().copied == 0


def check_copies():
    with loader_of() as loader:
        iterator = iter(loader)
        batch = next(iterator)
        assert batch.to("cpu") is batch
        for copy in (batch.clone(), pickle.loads(pickle.dumps(batch))):
            assert_same_batches([dict(copy)], expected()[:1])
            assert not np.shares_memory(copy.data, batch.data)
        state = loader.state_dict()
    with loader_of() as loader:
        loader.load_state_dict(state)
        assert_same_batches(copies(loader), expected()[1:])


def check_layout():
    images = np.arange(4 * 2 * 3 * 5, dtype=np.uint8).reshape(4, 2, 3, 5)  # HWC steps
    field = sl.Field((2, 3, 5), "uint8", axes="HWC")
    streams = sl.IterStreams([0], lambda _: iter(images), fields=field)
    with sl.MultiStreamer(streams, 1, 4, layout="TBCHW") as loader:
        (batch,) = loader
        assert batch.data.shape == (4, 1, 5, 2, 3)
        assert batch.data[:, 0].tolist() == images.transpose(0, 3, 1, 2).tolist()


def check_dlpack():
    with loader_of(num_workers=2) as loader:
        iterator = iter(loader)
        batch = next(iterator)
        arrays = {name: np.from_dlpack(batch[name]) for name in batch}
        for name, array in arrays.items():
            assert batch[name].__dlpack_device__() == (1, 0)  # CPU
            assert np.shares_memory(array, batch[name])
        del batch
        rest = [dict(each.numpy()) for each in iterator]  # the slots of the loader are used again
    assert_same_batches([arrays, *rest], expected())


def check_envs():
    def make_env():
        count = itertools.count()

        def env(arrays):
            arrays["data"][:] = next(count)

        return env

    with sl.MultiStreamer.from_env(make_env, 2, 3, timeout=DEADLINE_S) as loader:
        for number, batch in enumerate(itertools.islice(loader, 100)):
            assert type(batch.data) is np.ndarray
            assert batch.data.tolist() == [[number] * 2] * 3
        assert loader.stats().copied == 0


def check_collation():
    def collate(batch):
        assert {type(array) for array in batch.values()} == {np.ndarray}
        return batch["step"].sum()

    with loader_of(collate_fn=collate) as loader:
        assert list(loader) == [batch["step"].sum() for batch in expected()]


def check_data_sets():
    class Letters(sl.ShuffleDataset.__mro__[1]):  # IterableDataset, or what takes its place
        def __iter__(self):
            return iter("abcdefgh")

    assert sorted(sl.ShuffleDataset(Letters(), 3)) == list("abcdefgh")


def check_archives():
    """Frames are those of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_clip(Path(folder) / "clip.mp4", frames=12)
        archive = sl.Archive.create(f"{folder}/archive")
        archive.add(str(path), jobs=0)
        archive = sl.open_archive(f"{folder}/archive")
        frames = as_rgb(linear_decode(path))
        assert len(archive) == 12
        for shown, wanted in (
            (archive[3:9], frames[3:9]),
            (archive[[5, 2, 5]], frames[[5, 2, 5]]),
            (archive[-1], frames[-1]),
            (archive[0:0], frames[:0]),
            (np.stack(list(archive)), frames),
        ):
            assert type(shown) is np.ndarray
            assert np.array_equal(shown, wanted)
        clips = sl.ArchiveClips(archive, 4)
        assert np.array_equal(np.stack(clips.__getitems__([0, 1])), np.stack([frames[0:4], frames[4:8]]))


def check_shards():
    """Batches are arrays of the types that they have with torch."""
    with tempfile.TemporaryDirectory() as folder:
        with sl.ShardWriter(folder, maxcount=4) as writer:
            for number in range(10):
                writer.write({"npy": np.full(3, number, np.float32), "cls": number, "json": number / 2, "txt": "a"})
        dataset = sl.RemoteDataset(folder, shuffle=False).decode().to_tuple("npy", "cls", "json", "txt")
        array, label, half, text = next(iter(dataset.batched(5)))
        assert np.array_equal(array, np.repeat(np.arange(5, dtype=np.float32)[:, None], 3, 1))
        assert (label.dtype, label.tolist()) == (np.dtype(np.int64), list(range(5)))
        assert (half.dtype, half.tolist()) == (np.dtype(np.float32), [0.0, 0.5, 1.0, 1.5, 2.0])
        assert text == ["a"] * 5
        shuffled = sl.RemoteDataset(folder, seed=1).decode()
        assert sorted(sample["cls"] for sample in shuffled) == list(range(10))
        iterator = iter(shuffled)
        start = [next(iterator)["cls"] for _ in range(4)]
        again = sl.RemoteDataset(folder, seed=1).decode()
        again.load_state_dict(shuffled.state_dict())
        assert sorted(start + [sample["cls"] for sample in again]) == list(range(10))


def check_errors():
    available = {}
    exec("from streamloader import *", available)
    assert "MultiStreamer" in available
    assert not sl._NEED_TORCH & {*available, *dir(sl)}
    for name in sl._MODULES:  # nothing else needs it, and nothing is in this list that does not
        error = error_of(lambda name=name: getattr(sl, name))
        assert (error is not None) is (name in sl._NEED_TORCH), name
        if error is not None:
            with pytest.raises(ModuleNotFoundError, match="torch"):
                importlib.import_module(f"streamloader.{sl._MODULES[name]}")
    with loader_of() as loader:
        batch = next(iter(loader))
        for use in (
            lambda: loader_of(device="cuda"),
            lambda: loader_of(pin_memory=True),
            lambda: batch.to("cuda:0"),
            batch.rgb,
            lambda: sl.ShardLoader,
        ):
            error = error_of(use)
            assert isinstance(error, sl.MissingDependency), error
            assert "torch, which is not installed: pip install torch" in str(error), error
    from streamloader.cli.main import main

    assert main(["demo", "--batches", "1"]) != 0


def error_of(use: Any) -> Exception | None:
    try:
        use()
    except sl.MissingDependency as error:
        return error
    return None


if __name__ == "__main__":
    warnings.simplefilter("error")
    globals()[f"check_{sys.argv[1]}"]()
    assert sys.modules["torch"] is None
    sys.stdout.write("passed\n")

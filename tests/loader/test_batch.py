from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from accelerate.utils.operations import find_batch_size, recursively_apply
from batch_files import sum_of_batch
from engine_data import Numbered, copies, model_epoch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import default_collate, default_convert

import streamloader as sl

MARKS = ("reset", "valid", "repeat", "step", "time", "stream")


def picture(item):
    for step in range(6):
        yield {"image": np.arange(60).reshape(4, 5, 3) + 60 * step, "x": np.full(2, item + step / 8)}


PICTURES = sl.IterStreams(
    range(3),
    picture,
    fields={"image": sl.Field((4, 5, 3), "int32", axes="HWC"), "x": sl.Field((2,), "float32", fill=-1)},
)
STORED = np.stack([np.arange(60).reshape(4, 5, 3) + 60 * step for step in range(6)])  # (T, H, W, C)


def first_batch(layout="BTCHW", dataset=PICTURES, **more):
    with sl.MultiStreamer(dataset, 2, 6, shuffle=False, layout=layout, timeout=60.0, **more) as loader:
        return next(iter(loader))


def test_marks_and_fields_are_tensors_by_name():
    batch = first_batch()
    assert batch.keys() == ("image", "x", *MARKS)
    assert list(batch) == list(batch.keys())
    for name in MARKS:
        assert getattr(batch, name) is batch[name]
        assert batch[name].shape == (2, 6)
    assert {name: batch[name].dtype for name in batch} == {
        "image": torch.int32,
        "x": torch.float32,
        "reset": torch.bool,
        "valid": torch.bool,
        "repeat": torch.bool,
        "step": torch.int64,
        "time": torch.float64,
        "stream": torch.int64,
    }
    assert "image" in batch
    assert "cursor" not in batch
    assert len(batch) == 2
    assert (batch.epoch, batch.index) == (0, 0)
    assert repr(batch) == "Batch(epoch=0, index=0, image=int32(2, 6, 3, 4, 5), x=float32(2, 6, 2))"


def test_a_wrong_name_says_which_there_are():
    batch = first_batch()
    with pytest.raises(KeyError, match="no field 'imagee'; this batch has image, x, reset, valid"):
        batch["imagee"]
    with pytest.raises(KeyError, match="no field 'data'"):
        _ = batch.data


def test_keep_is_zero_where_a_stream_begins():
    batch = first_batch(dataset=Numbered([4, 3, 4]))
    assert batch.keep.dtype == torch.float32
    assert batch.keep.tolist() == [[0, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("layout", "shape", "strides", "axes"),
    [
        ("BTCHW", (2, 6, 3, 4, 5), (360, 60, 1, 15, 3), (0, 3, 1, 2)),
        ("BTHWC", (2, 6, 4, 5, 3), (360, 60, 15, 3, 1), (0, 1, 2, 3)),
        (None, (2, 6, 4, 5, 3), (360, 60, 15, 3, 1), (0, 1, 2, 3)),
        ("BCTHW", (2, 3, 6, 4, 5), (360, 1, 60, 15, 3), (3, 0, 1, 2)),
    ],
)
def test_layouts_are_views_of_what_is_stored(layout, shape, strides, axes):
    batch = first_batch(layout)
    assert batch["image"].shape == shape
    assert batch["image"].stride() == strides
    assert np.array_equal(batch["image"][1], STORED.transpose(axes))
    assert batch["x"].shape == (2, 6, 2)
    assert batch.reset.shape == (2, 6)
    assert np.array_equal(batch.numpy()["image"], batch["image"])


def test_time_first_layouts_turn_every_array():
    batch = first_batch("TBCHW")
    assert batch["image"].shape == (6, 2, 3, 4, 5)
    assert batch["image"].stride() == (60, 360, 1, 15, 3)
    assert batch["x"].shape == (6, 2, 2)
    assert batch["x"][:, 1, 0].tolist() == [1 + step / 8 for step in range(6)]
    for name in MARKS:
        assert batch[name].shape == (6, 2)
        assert batch[name].stride() == (1, 6)
        assert batch.numpy()[name].shape == (6, 2)
    assert batch.step[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.keep.shape == (6, 2)


@pytest.mark.parametrize("layout", ["BTCHWX", "BTWH", "BTCDHW"])
def test_layouts_that_fit_no_field(layout):
    with pytest.raises(sl.ConfigError, match=f"layout='{layout}' matches no field.*'image': 'HWC'"):
        sl.MultiStreamer(PICTURES, 2, 6, layout=layout)


@pytest.mark.parametrize("layout", ["CHW", "BTCHHW", "", "TCHW"])
def test_layouts_that_make_no_sense(layout):
    with pytest.raises(sl.ConfigError, match="layout must name B, T and each axis of a step once"):
        sl.MultiStreamer(PICTURES, 2, 6, layout=layout)


def test_all_arrays_of_a_batch_alias_the_ring():
    with sl.MultiStreamer(PICTURES, 2, 6, timeout=60.0) as loader:
        batch = next(iter(loader))
        start, size = loader._ring.span
        for name in batch:
            assert start <= batch[name].data_ptr() < start + size
            assert batch[name].data_ptr() == batch.numpy()[name].__array_interface__["data"][0]


def test_numpy_arrays_share_memory_with_tensors():
    batch = first_batch()
    batch.numpy()["x"][0, 0, 0] = 77
    assert batch["x"][0, 0, 0] == 77
    batch["step"][1, 1] = -5
    assert batch.numpy()["step"][1, 1] == -5


def test_a_batch_on_the_cpu_is_itself():
    batch = first_batch()
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("cpu"), non_blocking=True) is batch


def test_a_clone_has_memory_of_its_own():
    batch = first_batch()
    clone = batch.clone()
    assert clone.keys() == batch.keys()
    assert (clone.epoch, clone.index) == (batch.epoch, batch.index)
    for name in batch:
        assert torch.equal(clone[name], batch[name])
        assert clone[name].stride() == batch[name].stride()
        assert clone[name].data_ptr() != batch[name].data_ptr()
    batch["x"].fill_(5)
    assert not torch.equal(clone["x"], batch["x"])


def test_a_batch_is_a_mapping():
    batch = first_batch()
    assert isinstance(batch, Mapping)
    assert dict(batch).keys() == set(batch)
    assert [name for name, _ in batch.items()] == list(batch)
    assert all(value is batch[name] for name, value in zip(batch, batch.values(), strict=True))
    assert batch.get("nothing") is None
    assert batch.get("x") is batch["x"]
    other = first_batch()
    assert batch == batch  # noqa: PLR0124 - by identity
    assert batch != other
    assert len({batch, other}) == 2


def test_collation_helpers_rebuild_a_batch_as_a_dict():
    batch = first_batch()
    for helper in (default_convert, lambda given: apply_to_collection(given, torch.Tensor, torch.clone)):
        converted = helper(batch)
        assert type(converted) is dict
        assert all(torch.equal(converted[name], batch[name]) for name in batch)
    stacked = default_collate([batch, batch])
    assert stacked["image"].shape == (2, *batch["image"].shape)
    assert recursively_apply(torch.neg, batch["x"]).shape == batch["x"].shape
    assert recursively_apply(torch.clone, batch).keys() == set(batch)
    assert find_batch_size(batch) == 2


@pytest.mark.parametrize("send", [lambda batch: pickle.loads(pickle.dumps(batch)), copy.copy, copy.deepcopy])
def test_a_pickled_batch_is_a_copy(send):
    with sl.MultiStreamer(PICTURES, 2, 6, shuffle=False, timeout=60.0) as loader:
        batch = next(iter(loader))
        received = send(batch)
        assert type(received) is sl.Batch
        assert (received.epoch, received.index, repr(received)) == (0, 0, repr(batch))
        for name in batch:
            assert torch.equal(received[name], batch[name])
            assert received[name].stride() == batch[name].stride()
        batch["x"].fill_(5)
        assert not torch.equal(received["x"], batch["x"])
        del batch
        loader._supervisor.reclaim_slots()
        assert loader.stats().leased == 0


def test_a_batch_of_an_env_is_pickled_with_its_infos():
    def make_env():
        def env(arrays):
            arrays["data"][:] = 3
            return {"level": 2}

        return env

    with sl.MultiStreamer.from_env(make_env, (2,), 2, timeout=60.0) as loader:
        batch = pickle.loads(pickle.dumps(next(iter(loader))))
    assert (batch.index, batch.infos, batch.data.tolist()) == (0, [{"level": 2}], [[3, 3]] * 2)


def test_a_batch_goes_through_a_queue_to_another_process():
    batch = first_batch()
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=sum_of_batch, args=(child_end,))
    process.start()
    parent_end.send(batch)
    assert parent_end.poll(60)
    assert parent_end.recv() == int(batch["image"].sum())
    process.join(60)
    for end in (parent_end, child_end):
        end.close()
    process.close()


def test_a_clone_does_not_hold_a_slot():
    with sl.MultiStreamer(PICTURES, 2, 6, timeout=60.0) as loader:
        clone = next(iter(loader)).clone()
        loader._supervisor.reclaim_slots()
        assert loader.stats().leased == 0
        assert clone["image"].shape == (2, 6, 3, 4, 5)


def test_fields_without_elements():
    streams = sl.IterStreams([3], lambda item: np.zeros((item, 0, 2), np.int16), fields=sl.Field((0, 2), "int16"))
    batch = first_batch(dataset=streams)
    assert batch.data.shape == (2, 6, 0, 2)
    assert batch.data.dtype == torch.int16
    assert batch.numpy()["data"].shape == (2, 6, 0, 2)
    assert batch.valid.sum() == 3


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "uint32", "uint64", "float16", "complex64"])
def test_every_dtype_that_numpy_and_torch_have(dtype):
    values = np.array([0, 1, 1, 0]).astype(dtype)
    batch = first_batch(dataset=sl.IterStreams([0], lambda item: values, fields=sl.Field((), dtype, fill=1)))
    assert batch.data.numpy().dtype == np.dtype(dtype)
    assert batch.data[0].numpy().tolist() == [*values.tolist(), *np.array([1, 1], dtype).tolist()]


# --- leases --------------------------------------------------------------------------------------------------

LENGTHS = [23, 31, 17, 29, 8, 40]
EXPECTED = model_epoch(LENGTHS, LENGTHS, 0, lanes=2, window=3)


def numbered_loader(workers=0):
    return sl.MultiStreamer(Numbered(LENGTHS), 2, 3, num_workers=workers, prefetch_factor=2, timeout=60.0)


def arrays_of(batches):
    return [batch.numpy() for batch in batches]


def same(batches, expected):
    return len(batches) == len(expected) and all(
        np.array_equal(batch[name], wanted[name])
        for batch, wanted in zip(batches, expected, strict=True)
        for name in wanted
    )


def test_a_plain_loop_copies_nothing_and_uses_the_same_slots_again():
    with numbered_loader() as loader:
        addresses = set()
        before = loader.stats()
        for _ in range(3):
            for batch in loader:
                addresses.add(batch.data.data_ptr())
        after = loader.stats()
    assert after.batches == 3 * len(EXPECTED)
    assert after.copied == 0
    assert len(addresses) <= after.slots < len(EXPECTED)
    assert (after.slots, after.ring_bytes) == (before.slots, before.ring_bytes)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_batches_of_an_epoch_may_be_held(workers):
    with numbered_loader(workers) as loader:
        held = list(loader)
        assert same(arrays_of(held), EXPECTED)
        assert loader.stats().copied > 0
        assert loader.stats().slots < len(held)
        again = copies(loader)  # while they are held
        assert same(again, model_epoch(LENGTHS, LENGTHS, 1, lanes=2, window=3))
        assert same(arrays_of(held), EXPECTED)
    assert same(arrays_of(held), EXPECTED)


def test_every_second_batch_may_be_held():
    with numbered_loader() as loader:
        held = [batch for index, batch in enumerate(loader) if index % 2]
        copies(loader)
        assert same(arrays_of(held), EXPECTED[1::2])


HOLDS = {
    "tensor": lambda batch: batch.data,
    "view of a tensor": lambda batch: batch.data[:, 1:, ::2].permute(2, 1, 0),
    "numpy array of a tensor": lambda batch: batch.data.numpy(),
    "detached tensor": lambda batch: batch.data.detach()[0],
    "array of the batch": lambda batch: batch.numpy()["data"],
    "slice of an array of the batch": lambda batch: batch.numpy()["step"][1:],
    "a mark": lambda batch: batch.reset,
    "memory view": lambda batch: memoryview(batch.step.numpy()),
    "shallow copy": copy.copy,
}


@pytest.mark.parametrize("what", HOLDS)
def test_any_part_of_a_batch_keeps_its_slot(what):
    take = HOLDS[what]
    with numbered_loader() as loader:
        parts, taken = [], []
        for batch in loader:
            parts.append(take(batch))
            taken.append(take(batch.clone()))  # with memory of its own, so it stays as it is now
        for _ in range(2):
            copies(loader)
        gc.collect()
        assert len(parts) == len(EXPECTED)
        for part, before in zip(parts, taken, strict=True):
            if what == "shallow copy":
                part, before = part.data, before.data  # noqa: PLW2901
            assert np.array_equal(np.asarray(part), np.asarray(before))


def test_held_batches_outlive_the_loader():
    loader = numbered_loader()
    held = list(loader)
    loader.close()
    assert same(arrays_of(held), EXPECTED)
    del loader
    gc.collect()
    assert same(arrays_of(held), EXPECTED)


def test_held_batches_outlive_a_loader_that_was_never_closed():
    held = list(numbered_loader(workers=1))
    gc.collect()
    assert same(arrays_of(held), EXPECTED)


def test_slots_come_back_when_held_batches_go():
    with numbered_loader() as loader:
        held = list(loader)
        assert loader.stats().leased >= 2
        held.clear()
        before = loader.stats().copied
        for _ in loader:
            pass
        assert loader.stats().copied == before
        del _
        loader._supervisor.reclaim_slots()
        assert loader.stats().leased == 0


@pytest.mark.parametrize("name", ["data", *MARKS])
def test_writing_into_a_batch_changes_no_later_one(name):
    # Streams much longer than a window: the marks of a row are then the same again and again.
    lengths = [400]
    expected = model_epoch(lengths, lengths, 0, lanes=1, window=4)
    with sl.MultiStreamer(Numbered(lengths), 1, 4, prefetch_factor=2, timeout=60.0) as loader:
        for batch, wanted in zip(loader, expected, strict=True):
            assert np.array_equal(batch[name], wanted[name])
            batch[name].copy_(~batch[name] if batch[name].dtype is torch.bool else batch[name] + 1)

"""Pinned memory and copies to a CUDA device. Tests that need no device are in test_multistreamer.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_data import Numbered, assert_same_batches, copies, model_epoch

import streamloader as sl

LENGTHS = [23, 31, 17, 29, 8, 40]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def expected(epoch):
    return model_epoch(LENGTHS, LENGTHS, epoch, lanes=2, window=3)


def loader_of(dataset=None, **more):
    return sl.MultiStreamer(dataset or Numbered(LENGTHS), 2, 3, timeout=60.0, **more)


def on_host(batch):
    return {name: batch[name].cpu().numpy() for name in batch}


def test_a_pinned_ring_is_page_locked_while_the_loader_lives():
    with loader_of(pin_memory=True, num_workers=1) as loader:
        batch = next(iter(loader))
        assert batch.data.is_pinned()
        assert batch.step.is_pinned()
        assert_same_batches(copies(loader), expected(1))
    assert not batch.data.is_pinned()
    assert np.array_equal(batch.data, expected(0)[0]["data"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetch_factor", [1, 2, 5])
def test_batches_on_the_device_are_the_same(workers, prefetch_factor):
    with loader_of(device="cuda", num_workers=workers, prefetch_factor=prefetch_factor) as loader:
        for epoch in range(3):
            batches = [on_host(batch) for batch in loader]
            assert_same_batches(batches, expected(epoch))
        held = list(loader)
        assert all(batch.data.is_cuda and batch.reset.is_cuda for batch in held)
        assert_same_batches([on_host(batch) for batch in held], expected(3))
        assert loader.stats().copied == 0


def test_a_batch_moves_whole_and_keeps_its_layout():
    streams = sl.IterStreams(
        [6, 6],
        lambda item: np.arange(item * 60, dtype=np.uint8).reshape(item, 4, 5, 3),
        fields=sl.Field((4, 5, 3), "uint8", axes="HWC"),
    )
    with loader_of(streams) as loader:
        batch = next(iter(loader))
        moved = batch.to("cuda")
        assert moved.to("cuda") is moved
        assert moved.data.is_cuda
        assert moved.data.stride() == batch.data.stride()
        assert (moved.epoch, moved.index) == (0, 0)
        for name in batch:
            assert torch.equal(moved[name].cpu(), batch[name])


def test_a_slot_is_not_used_again_before_its_copy_is_done():
    size = 16 << 20
    streams = sl.IterStreams(
        [12],
        lambda item: (np.full(size, step, np.uint8) for step in range(item)),
        fields=sl.Field((size,), "uint8"),
        lengths=[12],
    )
    with sl.MultiStreamer(streams, 1, 1, device="cuda", prefetch_factor=1, timeout=60.0) as loader:
        busy = torch.ones(4096, 4096, device="cuda")
        sums = []
        for batch in loader:
            side = loader._feed._stream
            with torch.cuda.stream(side):  # the copies have to wait behind this
                for _ in range(20):
                    busy = (busy @ busy).clamp(0, 1)
            sums.append((batch.data.amin(), batch.data.amax()))
        assert [(int(low), int(high)) for low, high in sums] == [(step, step) for step in range(12)]


def test_an_error_comes_at_its_batch_and_not_while_it_is_copied_ahead():
    def at_step(stream, step):
        if (stream, step) == (0, 7):
            raise ValueError("out of film")

    with loader_of(Numbered([9, 9], at_step=at_step), device="cuda", shuffle=False) as loader:
        iterator = iter(loader)
        got = [on_host(next(iterator)) for _ in range(2)]
        with pytest.raises(sl.StreamFailed, match="out of film"):
            next(iterator)
    assert_same_batches(got, model_epoch([9, 9], [9, 9], 0, lanes=2, window=3, shuffle=False)[:2])


def test_another_iteration_forgets_what_was_copied_ahead():
    with loader_of(device="cuda") as loader:
        for _, batch in zip(range(2), loader, strict=False):
            assert batch.epoch == 0
        loader.set_epoch(9)
        assert_same_batches([on_host(batch) for batch in loader], expected(9))

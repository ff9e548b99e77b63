from __future__ import annotations

import asyncio
import logging
import threading
import warnings

import anyio
import numpy as np
import pytest
from engine_data import Numbered, assert_same_batches, copies, has_torch, model_epoch
from optional_torch import needs_torch, torch
from polling import wait_until
from tiers import fast_first

import streamloader as sl

LENGTHS = [5, 9, 3, 7, 4]
DEADLINE = 60.0


def loader_of(dataset=None, batch_size=2, window=3, **more):
    return sl.MultiStreamer(dataset or Numbered(LENGTHS), batch_size, window, **({"timeout": DEADLINE} | more))


def expected(epoch, lengths=LENGTHS, batch_size=2, window=3, **more):
    return model_epoch(lengths, lengths, epoch, lanes=batch_size, window=window, **more)


def arrays(batch):
    return {name: array.copy() for name, array in batch.numpy().items()}


# --- epochs --------------------------------------------------------------------------------------------------


def test_each_iteration_plays_the_next_epoch():
    with loader_of() as loader:
        for epoch in range(3):
            assert_same_batches(copies(loader), expected(epoch))
        assert [(batch.epoch, batch.index) for batch in loader] == [(3, index) for index in range(len(loader))]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_epoch_may_be_chosen(workers):
    with loader_of(num_workers=workers) as loader:
        for epoch in (5, 0, 6, 6, 1 << 40):  # none but the last two is what would have come by itself
            loader.set_epoch(epoch)
            assert_same_batches(copies(loader), expected(epoch))
        assert_same_batches(copies(loader), expected((1 << 40) + 1))


def test_an_epoch_is_not_negative():
    with loader_of() as loader, pytest.raises(sl.ConfigError, match="epoch must be 0 or more, got -1"):
        loader.set_epoch(-1)


@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_breaking_off_begins_the_next_epoch_at_its_start(taken):
    # Trainers probe loaders: an iteration without a requested batch uses up no epoch.
    with loader_of() as loader:
        iterator = iter(loader)
        assert [next(iterator).index for _ in range(taken)] == list(range(taken))
        assert_same_batches(copies(loader), expected(min(taken, 1)))


def test_an_iteration_that_was_broken_off_is_over():
    with loader_of() as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        for _ in range(2):
            with pytest.raises(sl.ClosedError, match="another iteration of this loader was started"):
                next(old)
        assert_same_batches([arrays(batch) for batch in new], expected(1))


def test_an_iterator_that_is_exhausted_stays_so():
    with loader_of() as loader:
        iterator = iter(loader)
        assert len(list(iterator)) == len(loader)
        assert next(iterator, None) is None
        assert iter(iterator) is iterator


def test_taking_exactly_all_batches_is_a_whole_epoch():
    with loader_of() as loader:
        for epoch in range(3):
            iterator = iter(loader)
            got = [arrays(next(iterator)) for _ in range(len(loader))]  # never sees the end
            assert_same_batches(got, expected(epoch))


def test_beginning_many_iterations_without_taking_anything():
    with loader_of(num_workers=1) as loader:
        for epoch in range(1000):  # more than the worker's socket holds before it has even started
            loader.set_epoch(epoch)
            iterator = iter(loader)
        assert_same_batches([arrays(batch) for batch in iterator], expected(999))


def test_an_epoch_can_be_chosen_until_the_first_batch_is_asked_for():
    with loader_of(num_workers=1) as loader:
        iterator = iter(loader)
        loader.batch_sampler.sampler.set_epoch(3)
        assert loader.state_dict()["epoch"] == 3
        assert_same_batches([arrays(batch) for batch in iterator], expected(3))
        assert loader.state_dict()["epoch"] == 4


def test_an_iteration_that_is_asked_for_nothing_leaves_the_state_as_it_is():
    with loader_of() as loader:
        next(iter(loader))
        state = loader.state_dict()
        iter(loader)
        assert loader.state_dict() == state
        assert (state["epoch"], state["batch"]) == (0, 1)


def test_the_next_epoch_is_made_while_this_one_is_consumed():
    opened, second_epoch = [], threading.Event()

    def at_step(stream, step):
        opened.append((stream, step))
        if opened.count((0, 0)) == 2:
            second_epoch.set()

    with loader_of(Numbered([6], at_step=at_step), 1, 3, prefetch_factor=6) as loader:
        iterator = iter(loader)
        first = next(iterator)
        assert second_epoch.wait(DEADLINE)
        assert first.epoch == 0
        rest = [arrays(first), *map(arrays, iterator)]
        assert_same_batches(rest, expected(0, [6], 1))
        assert_same_batches(copies(loader), expected(1, [6], 1))
        assert opened.count((0, 0)) <= 5  # nothing of what was made ahead was made again


def test_what_was_made_ahead_for_another_epoch_is_not_delivered():
    second_epoch = threading.Event()
    seen = []

    def at_step(stream, step):
        seen.append((stream, step))
        if seen.count((0, 2)) == 2:
            second_epoch.set()

    with loader_of(Numbered([6], at_step=at_step), 1, 3, prefetch_factor=6) as loader:
        iterator = iter(loader)
        assert_same_batches([arrays(next(iterator))], expected(0, [6], 1)[:1])
        assert second_epoch.wait(DEADLINE)
        assert len(list(iterator)) == 1
        loader.set_epoch(8)
        assert_same_batches(copies(loader), expected(8, [6], 1))


def test_equal_loaders_give_equal_batches_and_other_seeds_do_not():
    with loader_of(seed=1) as one, loader_of(seed=1) as two, loader_of(seed=2) as three:
        assert_same_batches(copies(one), copies(two))
        assert any(not np.array_equal(a["data"], b["data"]) for a, b in zip(copies(one), copies(three), strict=True))


def test_ranks_play_the_lanes_of_one_loader():
    whole = expected(0, batch_size=6)
    for rank in range(3):
        with loader_of(rank=rank, world_size=3) as loader:
            rows = slice(2 * rank, 2 * rank + 2)
            assert len(loader) == len(whole)
            assert_same_batches(
                copies(loader), [{name: array[rows] for name, array in batch.items()} for batch in whole]
            )


def test_streams_are_named_by_the_ordinals_of_a_batch():
    with loader_of(shuffle=False) as loader:
        assert [(info.key, info.length) for info in loader.streams] == [(f"s{n}", LENGTHS[n]) for n in range(5)]
        batch = next(iter(loader))
        assert [loader.streams[ordinal].key for ordinal in batch.stream[:, 0].tolist()] == ["s1", "s0"]
        assert repr(loader) == "MultiStreamer(Numbered of 5 streams, batch_size=2, window=3, num_workers=0)"


# --- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size and window must be at least 1, got 0 and 3"),
        ({"window": -1}, "batch_size and window must be at least 1, got 2 and -1"),
        ({"num_workers": -1}, "num_workers must be 0 or more, got -1"),
        ({"prefetch_factor": 0}, "prefetch_factor must be 1 or more, got 0"),
        ({"switch": "x"}, "switch must be one of"),
        ({"tail": "x"}, "tail must be one of"),
        ({"timeout": -1.0}, "timeout must be a number of seconds"),
        ({"rank": 2, "world_size": 2}, "rank must be in 0 .. world_size - 1, got rank 2 of 2"),
        ({"rank": -1, "world_size": 2}, "rank must be in"),
        ({"rank": 1}, "world_size"),
        ({"world_size": 2}, "rank"),
        ({"on_error": "ignore"}, "on_error"),
        ({"on_worker_death": "skip"}, "on_worker_death"),
        pytest.param({"device": "meta"}, "device must be a CPU or CUDA device, got 'meta'", marks=needs_torch),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(sl.ConfigError, match=message) as caught:
        loader_of(**arguments)
    assert isinstance(caught.value, ValueError)


def test_the_length_is_known_before_the_first_batch_or_not_at_all():
    assert len(loader_of()) == 5
    with pytest.raises(sl.LengthUnknown, match="the number of batches is unknown"):
        len(loader_of(Numbered([2, 3], [2, None])))


def test_a_loader_whose_length_is_unknown_goes_into_a_list():
    with loader_of(Numbered([2, 3], [2, None])) as loader:  # list() asks for a length hint, and takes no for an answer
        assert len(list(loader)) == 1


def test_a_ring_that_does_not_fit_is_refused_at_once():
    streams = Numbered([5])
    with pytest.raises(
        sl.RingTooLarge, match="choose a smaller batch_size, window, frame size or prefetch_factor"
    ) as caught:
        loader_of(streams, 1 << 20, 1 << 20)
    details = caught.value.details
    assert details["needed"] > 12 << 40
    assert 0 < details["free"] < details["needed"]


def test_a_loader_that_never_iterates_starts_nothing():
    loader = loader_of(num_workers=3)
    stats = loader.stats()
    assert (stats.batches, stats.lanes, stats.seconds, stats.leased) == (0, (), 0.0, 0)
    loader.close()
    loader.close()


def test_a_closed_loader_says_so():
    loader = loader_of()
    iterator = iter(loader)
    next(iterator)
    loader.close()
    with pytest.raises(sl.ClosedError, match="closed during this iteration"):
        next(iterator)
    with pytest.raises(sl.ClosedError, match="create a new one"):
        iter(loader)


def test_collate_fn_makes_what_the_iteration_yields():
    with loader_of(collate_fn=lambda batch: (batch.index, batch.data.sum())) as loader:
        items = list(loader)
        assert [index for index, _ in items] == list(range(len(loader)))
        assert all(total.shape == () for _, total in items)
        assert loader.stats().copied == 0


def test_an_error_of_collate_fn_comes_out_as_it_is():
    def collate(batch):
        if batch.index == 1 and batch.epoch == 0:
            raise LookupError("no such thing")
        return batch.index

    with loader_of(collate_fn=collate) as loader:
        iterator = iter(loader)
        assert next(iterator) == 0
        for _ in range(2):  # the batch is not lost
            with pytest.raises(LookupError, match="no such thing"):
                next(iterator)
        assert list(loader) == list(range(len(loader)))


@needs_torch
def test_pinning_without_a_gpu_warns_and_works(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no CUDA device was found: the ring is not page-locked") as seen:
        loader = sl.MultiStreamer(Numbered(LENGTHS), 2, 3, pin_memory=True)
    assert [warning.filename for warning in seen] == [__file__]
    with loader:
        assert_same_batches(copies(loader), expected(0))


def test_device_cpu_is_where_batches_are_anyway():
    with warnings.catch_warnings(), loader_of(device="cpu") as loader:
        warnings.simplefilter("error")
        assert_same_batches(copies(loader), expected(0))
        assert str(next(iter(loader)).data.device) == "cpu"


@needs_torch
def test_device_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(sl.ConfigError, match="finds no CUDA device"):
        loader_of(device="cuda")


# --- what it tells -------------------------------------------------------------------------------------------


def numbers(item):
    for step in range(12):
        yield np.array([item, step])


def test_stats_add_up():
    held_up, go_on = threading.Event(), threading.Event()

    def make(item):
        for number, step in enumerate(numbers(item)):
            if (item, number) == (1, 6):
                held_up.set()
                assert go_on.wait(DEADLINE)
            yield step

    streams = sl.IterStreams(range(2), make, fields=sl.Field((2,), "int64"), lengths=[12, 12])
    with loader_of(streams, shuffle=False, prefetch_factor=8) as loader:
        iterator = iter(loader)
        first = next(iterator)
        assert held_up.wait(DEADLINE)
        wait_until(lambda: loader.stats().lanes[0].rows_ready >= 3)
        stats = loader.stats()
        assert (stats.batches, stats.steps, stats.bytes) == (1, 6, 6 * 16)
        assert (stats.leased, stats.copied, stats.slots) == (1, 0, 12)
        assert stats.ring_bytes >= 12 * (6 * 16 + 6 * (3 + 24))
        lane = stats.lanes[1]
        assert (lane.lane, lane.stream, lane.step, lane.stage, lane.rows_ready) == (1, "1", 6, "reading", 1)
        next(iterator)
        before = loader.stats()
        timer = threading.Timer(0.2, go_on.set)
        timer.start()
        assert next(iterator).step.tolist() == [[6, 7, 8]] * 2
        timer.join()
        after = loader.stats()
        assert len(list(iterator)) == 1
        stats = loader.stats()
    assert first.step.tolist() == [[0, 1, 2]] * 2
    assert after.lanes[0].waited == before.lanes[0].waited
    assert after.lanes[1].waited > before.lanes[1].waited
    assert stats.batches == 4
    assert 0 < stats.wait_seconds <= stats.seconds
    assert stats.wait_share == pytest.approx(stats.wait_seconds / stats.seconds)
    assert stats.steps_per_second == pytest.approx(24 / stats.seconds)
    assert sum(lane.waited for lane in stats.lanes) == pytest.approx(stats.wait_seconds)


def test_the_log_of_a_worker_arrives_in_this_process(caplog):
    def at_step(stream, step):
        import logging

        logging.getLogger("streamloader").debug("not wanted")
        logging.getLogger("streamloader.mine").warning("stream %d, step %d", stream, step)

    with (
        caplog.at_level(logging.INFO, "streamloader"),
        loader_of(Numbered([2, 2], at_step=at_step), num_workers=1, shuffle=False) as loader,
    ):
        copies(loader)
    mine = [record for record in caplog.records if record.name == "streamloader.mine"]
    for stream in range(2):
        lines = [record.getMessage() for record in mine if f"stream {stream}" in record.getMessage()]
        assert lines[:2] == [f"worker 0: stream {stream}, step {step}" for step in range(2)]
    assert {record.levelno for record in mine} == {logging.WARNING}
    assert not any("not wanted" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("size", fast_first([1000, 100_000]))
def test_a_flood_of_log_lines_disturbs_nothing(size, monkeypatch):
    # The threads of four lanes log more than the socket holds, while this process does not read.
    def make(item):
        import logging

        for step in numbers(item):
            for _ in range(30):
                logging.getLogger("streamloader.flood").info("x" * size)
            yield step

    streams = sl.IterStreams(range(4), make, fields=sl.Field((2,), "int64"), lengths=lambda item: 12)
    monkeypatch.setattr(logging.getLogger("streamloader"), "level", logging.INFO)
    logging.getLogger("streamloader").manager._clear_cache()
    with loader_of(streams, 4, 1, num_workers=1, shuffle=False, prefetch_factor=24) as loader:
        for _ in range(2):
            iterator = iter(loader)
            first = next(iterator)
            wait_until(lambda: all(lane.rows_ready >= 11 for lane in loader.stats().lanes))
            steps = [batch.data[:, 0].tolist() for batch in (first, *iterator)]
            assert steps == [[[lane, step] for lane in range(4)] for step in range(12)]


def test_workers_import_no_torch():
    streams = sl.IterStreams([0, 1], lambda item: [has_torch()] * 3, fields=sl.Field((), "bool"))
    with loader_of(streams, num_workers=2) as loader:
        (batch,) = loader
        assert batch.valid.all()
        assert not batch.data.any()


# --- asynchronous iteration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_uvloop", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_async_for_yields_the_same(use_uvloop, workers):
    if use_uvloop:
        pytest.importorskip("uvloop")  # there is none for some interpreters

    async def main():
        with loader_of(num_workers=workers) as loader:
            for epoch in range(2):
                assert_same_batches([arrays(batch) async for batch in loader], expected(epoch))
            iterator = aiter(loader)
            assert (await anext(iterator)).index == 0
            assert [batch.index async for batch in iterator] == list(range(1, len(loader)))
            with pytest.raises(StopAsyncIteration):
                await anext(iterator)

    anyio.run(main, backend_options={"use_uvloop": use_uvloop})


def test_async_for_leaves_the_event_loop_to_others():
    release = threading.Event()

    def at_step(stream, step):
        assert release.wait(DEADLINE)

    async def main():
        with loader_of(Numbered(LENGTHS, at_step=at_step)) as loader:
            asyncio.get_running_loop().call_later(0.05, release.set)  # runs only while the loop is not blocked
            return [arrays(batch) async for batch in loader]

    assert_same_batches(asyncio.run(main()), expected(0))


def test_a_loader_outlives_cancelled_waits():
    release = threading.Event()

    def at_step(stream, step):
        assert release.wait(DEADLINE)

    async def main():
        with loader_of(Numbered(LENGTHS, at_step=at_step)) as loader:
            iterator = aiter(loader)
            with anyio.move_on_after(0.05) as scope:
                await anext(iterator)
            assert scope.cancelled_caught
            task = asyncio.ensure_future(anext(iterator))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            release.set()
            assert_same_batches([arrays(batch) async for batch in iterator], expected(0))
            assert_same_batches([arrays(batch) async for batch in loader], expected(1))

    asyncio.run(main())


def test_plain_iteration_works_inside_of_a_running_loop():
    async def main():
        with loader_of(num_workers=1) as loader:
            assert_same_batches(copies(loader), expected(0))

    asyncio.run(main())


def test_iterating_in_another_thread_than_the_one_that_made_the_loader():
    made = []
    thread = threading.Thread(target=lambda: made.append(loader_of(num_workers=1)))
    thread.start()
    thread.join()
    with made.pop() as loader:
        got = []
        thread = threading.Thread(target=lambda: got.append(next(iter(loader)).clone()))  # starts the workers, and ends
        thread.start()
        thread.join()
        assert_same_batches([arrays(got[0])], expected(0)[:1])
        assert_same_batches(copies(loader), expected(1))
        assert_same_batches(copies(loader), expected(2))

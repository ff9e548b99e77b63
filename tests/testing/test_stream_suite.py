"""The shipped suite notices what is wrong with a kind of stream: each fault fails the test that is meant for it."""

from __future__ import annotations

import itertools
import os

import anyio
import numpy as np
import pytest

import streamloader as sl
from streamloader.streams.base import PreparedStream
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.testing import StreamSuite, assert_same_steps, describe_streams, read_stream
from streamloader.testing.streams.playing import read_steps


class Counting(sl.Stream):
    """A right one: 0, 1, 2, ... up to its length, at 10 steps a second."""

    def __init__(self, dataset, info, rng):
        self.length = info.length
        self.next = 0

    async def read_into(self, out):
        count = max(0, min(len(out["data"]), self.length - self.next))
        out["data"][:count] = np.arange(self.next, self.next + count)
        self.next += count
        return count

    async def seek(self, step):
        self.next = step

    def times(self, start, out):
        out[:] = np.arange(start, start + len(out)) / 10


class CountingStreams(sl.StreamDataset):
    stream = Counting
    lengths = (5, 2, 9)

    @property
    def fields(self):
        return {"data": sl.Field((), "uint8")}

    async def index(self):
        return [sl.StreamInfo(f"to {length}", length) for length in self.lengths]

    async def open(self, info, rng):
        return self.stream(self, info, rng)


class Suite(StreamSuite):
    dataset = CountingStreams

    def make_dataset(self):
        return self.dataset()

    def expected(self):
        return [{"data": np.arange(length, dtype=np.uint8)} for length in (5, 2, 9)]


class TestItself(Suite):
    pass


# --- faulty streams ---------------------------------------------------------------------------------------------------


class EndsEarly(Counting):
    def __init__(self, dataset, info, rng):
        super().__init__(dataset, info, rng)
        self.length -= 1


class BlockBorders(Counting):
    """Forgets a step where a block ends."""

    async def read_into(self, out):
        count = await super().read_into(out)
        self.next += len(out["data"]) == 3
        return count


class Unwritten(Counting):
    async def read_into(self, out):
        last = out["data"][-1]
        count = await super().read_into(out)
        out["data"][-1] = last
        return count


class Overrun(Counting):
    async def read_into(self, out):
        wider = np.lib.stride_tricks.as_strided(out["data"], (len(out["data"]) + 1,))
        wider[-1] = 77
        return await super().read_into(out)


class TooMany(Counting):
    async def read_into(self, out):
        count = await super().read_into(out)
        return count + (count == len(out["data"]))


class StartsAgain(Counting):
    async def read_into(self, out):
        count = await super().read_into(out)
        self.next = self.next if count else 0
        return count


class OwnRandomness(Counting):
    async def read_into(self, out):
        count = await super().read_into(out)
        out["data"][:count] = np.frombuffer(os.urandom(count), np.uint8)
        return count


class SharedPosition(Counting):
    """The position belongs to the dataset."""

    def __init__(self, dataset, info, rng):
        self.dataset, self.length = dataset, info.length
        self.next = 0

    next = property(lambda self: self.dataset.__dict__["at"], lambda self, step: self.dataset.__dict__.update(at=step))


class SeeksOneOff(Counting):
    async def seek(self, step):
        self.next = step + (step > 2)


class SeeksToKeyframes(Counting):
    async def seek(self, step):
        self.next = step // 4 * 4


class CannotSeek(Counting):
    seek = sl.Stream.seek


class SeeksOneOffBeyondTheStart(Counting):
    """Each seek from where it stands already is right; only one into a fresh stream is not."""

    async def seek(self, step):
        self.next = step - (self.next == 0 and step > 1)


class IgnoresSeek(Counting):
    async def seek(self, step):
        pass


class CannotSeekToItsEnd(Counting):
    async def seek(self, step):
        if step >= self.length:
            raise ValueError(f"there is no step {step}")
        self.next = step


class DrawsByRead(Counting):
    """Draws from the rng as it reads on, and does not when it is sought."""

    def __init__(self, dataset, info, rng):
        super().__init__(dataset, info, rng)
        self.rng = rng

    async def read_into(self, out):
        count = await super().read_into(out)
        for row in range(count):
            out["data"][row] += self.rng.integers(100, dtype=np.uint8)
        return count


class CountsOpenings(Counting):
    """Part of what decides the steps is kept in the dataset: another one does not know of it."""

    def __init__(self, dataset, info, rng):
        super().__init__(dataset, info, rng)
        self.before = dataset.opened
        dataset.opened += 1

    async def read_into(self, out):
        count = await super().read_into(out)
        out["data"][:count] += self.before
        return count


class DependsOnItsProcess(Counting):
    async def read_into(self, out):
        count = await super().read_into(out)
        out["data"][:count] += os.getpid() % 100 + 1
        return count


class ForgetsTheTime(Counting):
    """Tells times from where it was sought on."""

    began = 0

    async def seek(self, step):
        self.began = self.next = step

    def times(self, start, out):
        super().times(start - self.began, out)


class SaysThatItReplays(Counting):
    replays = True


class TimesByBlock(Counting):
    def times(self, start, out):
        out[:] = start / 10


class TimesBackwards(Counting):
    def times(self, start, out):
        super().times(start, out)
        out[:] = -out


class ClosesOnce(Counting):
    closed = False

    async def aclose(self):
        assert not self.closed
        self.closed = True


class LeavesOpen(Counting):
    def __init__(self, dataset, info, rng):
        super().__init__(dataset, info, rng)
        dataset.open_files.append(open(os.devnull))  # noqa: SIM115 - that is the fault


# --- faulty datasets -------------------------------------------------------------------------------------------------


class Forgetful(CountingStreams):
    calls = 0

    async def index(self):
        self.calls += 1
        return (await super().index())[:: self.calls * 2 - 3]


class SameKeys(CountingStreams):
    async def index(self):
        return [sl.StreamInfo("stream", info.length) for info in await super().index()]


class NumpyLengths(CountingStreams):
    async def index(self):
        return [sl.StreamInfo(info.key, np.int64(info.length)) for info in await super().index()]


class NoLengths(CountingStreams):
    async def index(self):
        return [sl.StreamInfo(info.key, None, {"length": info.length}) for info in await super().index()]

    async def open(self, info, rng):
        return Counting(self, sl.StreamInfo(info.key, info.extra["length"]), rng)


class LosesWhatItOpens(CountingStreams):
    """Opens in the thread of the lane, and forgets about it when it is cancelled."""

    async def open(self, info, rng):
        file = await in_lane_thread(open, os.devnull)
        file.close()
        return await super().open(info, rng)


class ExpectsTheFirst(CountingStreams):
    """Prepares the first stream, whichever is to come."""

    async def prepare(self, info):
        return OpensLater(self, (await self.index())[0])


class OpensLater(PreparedStream):
    def __init__(self, dataset, info):
        self.dataset, self.info = dataset, info

    async def open(self, rng):
        return await self.dataset.open(self.info, rng)

    def release(self):
        pass


class SettingsOfTheMoment(CountingStreams):
    """Says something else each time, as the address in an object's ``repr`` does."""

    addresses = itertools.count()

    @property
    def settings(self):
        return {"transform": f"<function at {next(self.addresses):#x}>"}


class SettingsThatAreNotPlain(CountingStreams):
    @property
    def settings(self):
        return {"size": (3, 4)}  # a list, once it was JSON


class NewKeysInEachDataSet(CountingStreams):
    """Names its streams differently each time, so that no state fits."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.number = self.made

    async def index(self):
        return [sl.StreamInfo(f"{self.number}, {info.key}", info.length) for info in await super().index()]


class OpensAtOnce(CountingStreams):
    def __init__(self):
        self.file = open(os.devnull)  # noqa: SIM115 - that is the fault

    def __reduce__(self):
        return type(self), ()


class CannotTravel(CountingStreams):
    def __reduce__(self):
        raise TypeError("not a thing to be pickled")


class HomeSick(CountingStreams):
    """Opens a relative path."""

    def __init__(self):
        self.home = os.getcwd()

    async def open(self, info, rng):
        if os.getcwd() != self.home:
            raise FileNotFoundError(info.key)
        return await super().open(info, rng)


class WrongDtype(CountingStreams):
    """Calls its field something else once it was indexed."""

    indexed = 0

    @property
    def fields(self):
        self.indexed += 1
        return {"data": sl.Field((), "uint8", fill=self.indexed)}


def dataset_of(stream):
    class Faulty(CountingStreams):
        def __init__(self):
            self.open_files = []
            self.opened = 0

    Faulty.stream = stream
    return Faulty


FAULTS = [
    (dataset_of(EndsEarly), "test_lengths_are_honest"),
    (dataset_of(EndsEarly), "test_steps_are_those_expected"),
    (dataset_of(BlockBorders), "test_the_size_of_blocks_changes_nothing"),
    (dataset_of(Unwritten), "test_returned_steps_are_written_completely"),
    (dataset_of(Overrun), "test_returned_steps_are_written_completely"),
    (dataset_of(TooMany), "test_returned_steps_are_written_completely"),
    (dataset_of(StartsAgain), "test_the_end_stays_the_end"),
    (dataset_of(OwnRandomness), "test_the_same_rng_gives_the_same_steps"),
    (ExpectsTheFirst, "test_prepared_streams_are_the_same"),
    (dataset_of(SharedPosition), "test_streams_do_not_disturb_each_other"),
    (dataset_of(SeeksOneOff), "test_seeking_is_the_same_as_reading_up_to_there"),
    (dataset_of(SeeksToKeyframes), "test_seeking_is_the_same_as_reading_up_to_there"),
    (dataset_of(CannotSeek), "test_seeking_is_the_same_as_reading_up_to_there"),
    (dataset_of(CannotSeekToItsEnd), "test_the_end_can_be_sought"),
    (dataset_of(SeeksOneOff), "test_resumes_at_every_step"),
    (dataset_of(SeeksOneOffBeyondTheStart), "test_resumes_at_every_step"),
    (dataset_of(SeeksToKeyframes), "test_resumes_at_every_step"),
    (dataset_of(IgnoresSeek), "test_resumes_at_every_step"),
    (dataset_of(IgnoresSeek), "test_resumes_in_longer_windows"),
    (dataset_of(CannotSeekToItsEnd), "test_resumes_at_every_step"),
    (dataset_of(DrawsByRead), "test_resumes_at_every_step"),
    (dataset_of(DrawsByRead), "test_resumes_in_longer_windows"),
    (dataset_of(CountsOpenings), "test_resumes_at_every_step"),
    (dataset_of(CountsOpenings), "test_resumes_in_longer_windows"),
    (dataset_of(ForgetsTheTime), "test_resumes_at_every_step"),
    (dataset_of(DependsOnItsProcess), "test_resumes_in_worker_processes"),
    (dataset_of(CannotSeek), "test_restoring_does_not_read_consumed_steps"),
    (dataset_of(SaysThatItReplays), "test_restoring_does_not_read_consumed_steps"),
    (SettingsOfTheMoment, "test_settings_are_plain_and_the_same_every_time"),
    (SettingsThatAreNotPlain, "test_settings_are_plain_and_the_same_every_time"),
    (SettingsOfTheMoment, "test_resumes_at_every_step"),
    (NewKeysInEachDataSet, "test_resumes_at_every_step"),
    (dataset_of(TimesByBlock), "test_times_never_run_backwards"),
    (dataset_of(TimesBackwards), "test_times_never_run_backwards"),
    (dataset_of(ClosesOnce), "test_closing_twice_does_no_harm"),
    (dataset_of(LeavesOpen), "test_nothing_is_held_before_and_after"),
    (Forgetful, "test_index_is_the_same_every_time"),
    (SameKeys, "test_keys_name_one_stream_each"),
    (NumpyLengths, "test_infos_are_plain_values"),
    (NoLengths, "test_lengths_are_honest"),
    (WrongDtype, "test_fields_are_described"),
    (LosesWhatItOpens, "test_closes_after_a_cancelled_open"),
    (OpensAtOnce, "test_nothing_is_held_before_and_after"),
    (CannotTravel, "test_travels_to_another_process"),
    (HomeSick, "test_travels_to_another_process"),
]


NOTICED = (AssertionError, NotImplementedError, TypeError, ValueError, OSError, sl.StreamloaderError)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the faults that leave one open
@pytest.mark.parametrize(("dataset", "test"), FAULTS)
def test_a_fault_is_noticed(dataset, test, tmp_path, monkeypatch):
    suite = Suite()
    suite.dataset = dataset
    arguments = {
        "test_the_size_of_blocks_changes_nothing": (3,),
        "test_travels_to_another_process": (tmp_path, monkeypatch),
    }.get(test, ())
    with pytest.raises(NOTICED) as caught:
        getattr(suite, test)(*arguments)
    del caught  # and with its traceback what the faulty streams hold


def test_every_fault_stands_beside_a_right_stream():
    # The names above are those of the suite, and the right streams pass each (see TestItself).
    assert all(hasattr(StreamSuite, test) for _, test in FAULTS)
    untested = {name for name in dir(StreamSuite) if name.startswith("test_")} - {test for _, test in FAULTS}
    assert untested == {"test_streams_are_read_concurrently", "test_closes_after_a_cancelled_read"}


@pytest.mark.parametrize("test", [name for name in dir(StreamSuite) if name.startswith("test_re")])
def test_streams_that_cannot_seek_are_resumed_all_the_same(test):
    suite = Suite()
    suite.dataset, suite.seekable = dataset_of(CannotSeek), False
    getattr(suite, test)()


def test_streams_that_say_that_they_replay_may_do_so():
    suite = Suite()
    suite.dataset, suite.replays = dataset_of(SaysThatItReplays), True
    suite.test_restoring_does_not_read_consumed_steps()


def test_a_suite_that_says_no_seeking_wants_the_error():
    suite = Suite()
    suite.dataset, suite.seekable = dataset_of(CannotSeek), False
    suite.test_seeking_is_the_same_as_reading_up_to_there()
    suite.dataset = CountingStreams
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        suite.test_seeking_is_the_same_as_reading_up_to_there()


# --- the helpers ------------------------------------------------------------------------------------------------------


def test_play_reads_what_it_is_told():
    dataset = CountingStreams()
    info = describe_streams(dataset)[2]
    assert read_stream(dataset, info)["data"].tolist() == list(range(9))
    assert read_stream(dataset, info, 2, seek=3, steps=5)["data"].tolist() == [3, 4, 5, 6, 7]
    assert read_stream(dataset, info, seek=9)["data"].shape == (0,)
    assert read_stream(dataset, info)["data"].dtype == np.uint8


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"a": np.zeros(3, np.uint8)}, r"fields \['a'\] instead of \['data'\]"),
        ({"data": np.zeros(3, np.int8)}, "int8"),
        ({"data": np.zeros((3, 1), np.uint8)}, r"\(3, 1\)"),
        ({"data": np.array([0, 0, 1], np.uint8)}, "first at step 2: 1 instead of 0"),
        ({"data": np.zeros(2, np.uint8)}, "2 steps instead of 3"),
        ({"data": np.zeros(4, np.uint8)}, "4 steps instead of 3"),
    ],
)
def test_different_steps_are_reported(got, message):
    with pytest.raises(AssertionError, match=message):
        assert_same_steps(got, {"data": np.zeros(3, np.uint8)})
    assert_same_steps(got, got)


def test_steps_may_be_read_in_parts():
    async def run():
        dataset = CountingStreams()
        infos = await dataset.index()
        stream = await dataset.open(infos[2], np.random.default_rng(0))
        return [(await read_steps(stream, dataset, 2, count))["data"].tolist() for count in (3, 1, None)]

    assert anyio.run(run) == [[0, 1, 2], [3], [4, 5, 6, 7, 8]]

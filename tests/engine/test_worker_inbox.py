"""What a worker may send: anything else is refused with one error, whatever it is."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from engine_data import Numbered
from hostile_workers import ATTACKS, KIND, LOG, SKIP, WIRE, failure, log
from hypothesis import given, settings
from hypothesis import strategies as st

import streamloader as sl
from streamloader.common.worker_messages import InvalidMessage, WorkerLog, check_nesting, parse_json
from streamloader.engine.grants import Grants, cursor_array
from streamloader.engine.group_env import GroupWorkload
from streamloader.engine.infos_codec import encode_infos
from streamloader.engine.job import WorkerJob
from streamloader.engine.lane import StreamWorkload
from streamloader.engine.messages import MessageDecoder, encode_message
from streamloader.engine.plan import make_plan
from streamloader.engine.ring import Ring, SlotLayout
from streamloader.engine.vector_env import EnvWorkload
from streamloader.engine.worker_inbox import WorkerInbox
from streamloader.engine.workload import EpochPosition
from streamloader.errors import from_wire

LENGTHS = [9] * 4  # two streams for each lane


class Side:
    """The supervisor's side of two workers with a lane each, at the start of a run with three granted batches."""

    def __init__(self, ring, workload, position):
        self.job = WorkerJob(workload, ring.layout, ring.slots, 0, [[0], [1]], 30, 1)
        self.ring, self.filled = ring, [0, 0]
        plan = workload.plan
        self.grants = Grants(plan, 2, ring.slots, 3, has_next_epoch=True, fixed_length=False)
        self.grants.start_at(position)
        self.grants.grant_free_slots()
        self.inbox = self.make_inbox()
        assert len(list(self.inbox.decode(encode_message(KIND.DONE, 1, 0)))) == 1  # after the TRUNCATE

    def make_inbox(self, predecessor=None):
        return WorkerInbox(0, self.job, self.ring, self.grants, self.filled, has_process=True, predecessor=predecessor)

    def decode(self, data):
        return [message.kind for message in self.inbox.decode(data)]

    def fill(self, count, cursor):
        """Publish `count` batches of worker 0, with this cursor after the last one."""
        grant = self.grants.find(count - 1)
        self.ring.arrays(grant.slot)["cursor"][0] = cursor
        assert self.decode(encode_message(KIND.DONE, self.grants.version, count)) == [KIND.DONE]
        self.filled[0] = count


def workload_of(tail="pad", on_error="raise", lengths=LENGTHS):
    streams = [sl.StreamInfo(f"s{number}", length) for number, length in enumerate(lengths)]
    plan = make_plan(lengths, lanes=2, window=3, shuffle=False, tail=tail)
    return StreamWorkload(Numbered(lengths), streams, plan, on_error)


@contextlib.contextmanager
def side_of(workload=None, window=3):
    workload = workload or workload_of()
    fields = {"data": sl.Field((3,), "int32")}
    ring = Ring.create(SlotLayout(fields, 2, window), 3)
    try:
        yield Side(ring, workload, EpochPosition(0, 0))
    finally:
        ring.close()


def receive(side, pieces):
    records = WorkerLog("worker 0")
    for piece in pieces:
        for message in side.inbox.decode(piece):
            if message.kind == KIND.LOG:
                records.write(message.payload)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_invalid_message_is_refused_however_it_is_cut(attack):
    data = ATTACKS[attack]
    for step in (len(data), 7):
        with side_of() as side, pytest.raises(InvalidMessage) as caught:
            receive(side, [data[start : start + step] for start in range(0, len(data), step)])
        text = str(caught.value)
        assert text.isprintable()
        assert 0 < len(text) < 500


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_else(data):
    receive_any(data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_no_bytes_of_many_raise_anything_else(data):
    receive_any(data)


def receive_any(data):
    kinds = st.sampled_from(KIND) | st.integers(0, 20)
    numbers = st.integers(-3, 8) | st.integers(-(1 << 63), (1 << 63) - 1)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items, max_size=3),
        max_leaves=6,
    )
    known = st.sampled_from([LOG, WIRE, SKIP])
    payloads = known.flatmap(lambda fields: st.tuples(st.just(fields), st.sampled_from(sorted(fields)), values)).map(
        lambda drawn: drawn[0] | {drawn[1]: drawn[2]}
    )
    bodies = st.just(b"") | st.binary(max_size=20) | (payloads | values).map(lambda value: json.dumps(value).encode())
    messages = st.tuples(kinds, st.integers(0, 3), numbers, numbers, numbers, st.integers(-3, 3), bodies)
    workload = workload_of(on_error=data.draw(st.sampled_from(["raise", "skip"])))
    with side_of(workload) as side, contextlib.suppress(InvalidMessage):
        for kind, version, a, b, c, lane, body in data.draw(st.lists(messages, min_size=1, max_size=4)):
            header = struct.pack("<IIqqqiI", int(kind), version, a, b, c, lane, len(body))
            for message in side.inbox.decode(header + body):
                if message.kind in (KIND.ENDED, KIND.OVERRUN):
                    side.grants.handle_lane_end(message)
                elif message.kind == KIND.DONE and message.version == side.grants.version:
                    side.filled[0] = message.a
                elif message.kind == KIND.ERROR:
                    assert isinstance(from_wire(message.payload), sl.StreamloaderError)


def test_what_a_worker_sends_is_accepted():
    with side_of() as side:
        side.fill(2, (0, 6, -1))
        assert side.decode(log() + log(level=50, name="streamloader.video") + log(once="replay")) == [KIND.LOG] * 3
        assert side.decode(failure(WIRE, seq=2)) == [KIND.ERROR]
        assert side.decode(encode_message(KIND.ENDED, a=0, b=3, c=2, lane=0)) == [KIND.ENDED]
    with side_of(workload_of(on_error="skip")) as side:
        data = encode_message(KIND.SKIPPED, lane=0, payload=SKIP)
        assert side.decode(data * 3) == [KIND.SKIPPED] * 3


def test_details_of_errors_have_any_name_and_stay_details():
    details = dict.fromkeys(("message", "self", "stream", "offset", "worker_traceback", "details"), "x\x1b")
    with side_of() as side:
        (message,) = side.inbox.decode(failure(WIRE | {"details": details, "type": "SystemExit"}))
    error = from_wire(message.payload)
    assert type(error) is sl.StreamloaderError
    assert error.details == dict.fromkeys(details, "x\\x1b")
    assert (error.message, error.stream, error.offset) == ("it failed", "s0", 3)


@pytest.mark.parametrize(
    "change",
    [{"stream": 1}, {"stream": -1}, {"stream": 2}, {"key": "s1"}, {"position": 1}, {"position": 9}, {"epoch": 5},
     {"step": -1}, {"step": 1.5}, {"error": None}, {"error": {"message": "x"}}, {"more": 1}],
)  # fmt: skip
def test_only_streams_of_the_lane_can_be_skipped(change):
    with side_of(workload_of(on_error="skip")) as side, pytest.raises(InvalidMessage):
        side.decode(encode_message(KIND.SKIPPED, lane=0, payload=SKIP | change))


def test_streams_can_be_skipped_a_limited_number_of_times():
    with side_of(workload_of(on_error="skip")) as side, pytest.raises(InvalidMessage, match="more streams"):
        side.decode(encode_message(KIND.SKIPPED, lane=0, payload=SKIP) * 2000)


@pytest.mark.parametrize(
    "cursor",
    [
        (-1, 0, -1),
        (0, -1, -1),
        (0, 5, -1),  # back in the stream
        (0, 10, -1),  # more steps than the batch has
        (3, 0, -1),  # more streams than the lane has
        (1, 4, -1),  # more steps of the next stream than the batch has
        (1 << 62, 0, -1),
        (0, 1 << 62, -1),
        (0, 9, 3),  # an end that was not reported
        (0, 9, 4),
        (0, 9, -2),
    ],
)
def test_cursors_follow_from_the_previous_ones(cursor):
    with side_of() as side:
        side.fill(2, (0, 6, -1))
        with pytest.raises(InvalidMessage, match="the cursor of lane 0"):
            side.fill(3, cursor)
        with side_of() as other:
            other.fill(2, (0, 6, -1))
            other.fill(3, (0, 9, -1))
        with side_of() as other:
            other.fill(2, (0, 6, -1))
            assert other.decode(encode_message(KIND.ENDED, a=0, b=3, c=3, lane=0)) == [KIND.ENDED]
            other.fill(3, (1, 0, 3))


def test_a_lane_cannot_end_before_what_it_has_filled():
    with side_of() as side:
        side.fill(2, (0, 6, -1))
        with pytest.raises(InvalidMessage, match="after 2 batches"):
            side.decode(encode_message(KIND.ENDED, a=0, b=1, c=1, lane=0))


def test_a_new_worker_gets_the_cursors_that_were_checked():
    with side_of() as side:
        side.fill(1, (0, 3, -1))
        slot = side.grants.find(0).slot
        side.ring.arrays(slot)["cursor"][:] = [(-7, -7, -7), (0, 3, -1)]  # overwritten after the check
        entry_points = side.grants.entry_points(1, None, side.ring.cursors)
        ((run, batch, cursors),) = side.inbox.confirm_entry_points(entry_points)
        assert (run, batch) == (0, 1)
        assert cursor_array(cursors).tolist() == [[0, 3, -1], [0, 3, -1]]
        with pytest.raises(InvalidMessage, match="overwritten"):
            side.inbox.confirm_entry_points([(5, 1, entry_points[0][2])])
        side.inbox = side.make_inbox(predecessor=side.inbox)
        side.fill(2, (0, 6, -1))


def test_infos_come_from_envs_once_a_batch():
    workload = EnvWorkload.create(lambda: print, [range(1), range(1, 2)], 0, 2, 0)
    infos = [encode_message(KIND.INFO, a=seq, lane=0, payload=b"[%d]" % seq) for seq in range(4)]
    with side_of(workload, window=None) as side:
        assert side.decode(infos[0] + infos[1]) == [KIND.INFO] * 2
        for data in (infos[1], infos[0], infos[3]):
            with pytest.raises(InvalidMessage):
                side.decode(data)
        with pytest.raises(InvalidMessage):
            side.decode(encode_message(KIND.INFO, a=2, lane=0, payload=b"{"))
        with pytest.raises(InvalidMessage):
            side.decode(encode_message(KIND.INFO, a=2, lane=0))


def test_a_new_run_uses_the_numbers_of_void_grants_again():
    workload = EnvWorkload.create(lambda: print, [range(1), range(1, 2)], 0, 2, 0)

    def info(seq, run):
        return encode_message(KIND.INFO, a=seq, b=run, lane=0, payload=b"[%d, %d]" % (seq, run))

    with side_of(workload, window=None) as side:
        assert side.decode(info(0, 0) + info(1, 0)) == [KIND.INFO] * 2
        side.grants.start_at(EpochPosition(1, 0))
        side.grants.grant_free_slots()
        assert side.decode(info(2, 0)) == [KIND.INFO]  # it was sent before the worker learned of the new run
        assert side.decode(info(0, 1) + info(1, 1)) == [KIND.INFO] * 2
        for data in (info(1, 1), info(0, 1), info(3, 1), info(2, 0), info(0, 2), info(0, -1)):
            with pytest.raises(InvalidMessage):
                side.decode(data)


def test_infos_of_group_envs_are_decoded_and_have_to_be_lists_by_name():
    workload = GroupWorkload.create_groups(
        lambda num_streams: print, [range(1), range(1, 2)], 0, 2, epoch=0, seed=0, seeds_globals=False
    )
    infos = encode_infos({"a": [np.arange(3, dtype=np.int16)]})

    def info(seq, infos):
        return encode_message(KIND.INFO, a=seq, lane=0, payload=infos)

    with side_of(workload, window=None) as side:
        (message,) = side.inbox.decode(info(0, infos))
        (array,) = message.payload["a"]
        assert (array.dtype, array.tolist()) == (np.dtype(np.int16), [0, 1, 2])
        for wrong in ([], 5, None, {"a": 5}, {5: []}, ({},)):
            with pytest.raises(InvalidMessage, match="no dict of lists"):
                side.decode(info(1, encode_infos(wrong)))
        for data in (b"", infos[:-1], infos + b"x", b"{}"):
            with pytest.raises(InvalidMessage):
                side.decode(info(1, data))


def test_a_large_message_in_small_pieces_takes_linear_time():
    decoder = MessageDecoder({KIND.LOG: 1 << 20})
    data = encode_message(KIND.LOG, payload={"message": "x" * 500_000})
    found = [message for start in range(0, len(data), 16) for message in decoder.decode(data[start : start + 16])]
    assert len(found) == 1


def test_json_is_strict():
    assert parse_json(b'{"a": [1, "\xc3\xa4", null, 1e400]}') == {"a": [1, "ä", None, float("inf")]}
    check_nesting([[[]]] * 100_000)
    for data in (b"", b"\xff", b"{}x", b'"\xed\xa0\x80"', b"[" * 70 + b"]" * 70, b"\xef\xbb\xbf{}"):
        with pytest.raises(InvalidMessage):
            parse_json(data)

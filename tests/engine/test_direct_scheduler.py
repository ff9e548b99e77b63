"""The scheduler of workers with one row filler, against a supervisor that is a bare socket."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import numpy as np
import pytest

import streamloader as sl
from streamloader.engine.direct_scheduler import DirectScheduler
from streamloader.engine.messages import Message, MessageDecoder, MessageKind, encode_message
from streamloader.engine.ring import Ring, SlotLayout, Status
from streamloader.engine.vector_env import EnvWorkload

DEADLINE = 60.0
SLOTS = 4
KIND = MessageKind


class Counter:
    """Writes the number of its call, and returns what `at_call` returns for it."""

    def __init__(self, at_call):
        self.at_call, self.calls, self.threads, self.closed = at_call, 0, [], False

    def __call__(self, arrays):
        self.threads.append(threading.current_thread())
        self.calls += 1
        arrays["x"][:] = self.calls
        return self.at_call(self.calls)

    def close(self):
        self.closed = True


class Side:
    """The supervisor's side of one worker, whose scheduler runs in a thread."""

    def __init__(self, ring, sock, envs):
        self.ring, self.sock, self.envs = ring, sock, envs
        self.scheduler: DirectScheduler | None = None
        self._decoder, self._received = MessageDecoder(), []
        sock.settimeout(DEADLINE)

    def grant(self, *slots, run=0, batch=0):
        self.send(*(encode_message(KIND.GRANT, a=run, c=batch + index, lane=slot) for index, slot in enumerate(slots)))

    def send(self, *messages):
        self.sock.sendall(b"".join(messages))

    def receive_until(self, kind, **numbers):
        """Return what has arrived up to the first message like this."""
        while True:
            for index, message in enumerate(self._received):
                if message.kind == kind and all(getattr(message, name) == it for name, it in numbers.items()):
                    found, self._received = self._received[: index + 1], self._received[index + 1 :]
                    return found
            data = self.sock.recv(1 << 16)
            assert data, self._received
            self._received += self._decoder.decode(data)

    def values(self, slot):
        return self.ring.arrays(slot)["x"].tolist()


@contextlib.contextmanager
def worker(at_call=lambda call: None):
    envs = []

    def make_env():
        envs.append(Counter(at_call))
        return envs[-1]

    workload = EnvWorkload.create(make_env, [range(1), range(1, 3)], 0, 3, seed=0)
    ring = Ring.create(SlotLayout({"x": sl.Field((), "int64")}, 3, None), SLOTS)
    ours, theirs = socket.socketpair()
    side = Side(ring, ours, envs)
    side.scheduler = DirectScheduler(workload, ring, theirs, [1, 2], 0)
    thread = threading.Thread(target=side.scheduler.run)
    thread.start()
    try:
        yield side
    finally:
        ours.close()
        thread.join(DEADLINE)
        ended = not thread.is_alive()
        theirs.close()
        ring.close()
    assert ended
    assert all(env.closed for env in envs)
    assert {thread_of_call for env in envs for thread_of_call in env.threads} <= {thread}


def test_slots_are_filled_in_order_and_infos_come_first():
    with worker(lambda call: {"call": call}) as side:
        side.grant(2, 0)
        side.grant(3, batch=2)
        messages = side.receive_until(KIND.DONE, a=3)
        assert [message.kind for message in messages] == [KIND.INFO, KIND.DONE] * 3
        assert [message.a for message in messages] == [0, 1, 1, 2, 2, 3]
        assert [message.payload for message in messages[::2]] == [b'{"call": %d}' % call for call in (1, 2, 3)]
        assert [side.values(slot) for slot in (2, 0, 3, 1)] == [[0, 1, 1], [0, 2, 2], [0, 3, 3], [0, 0, 0]]
        assert side.ring.status[:, Status.SEQ].tolist() == [0, 3, 3]
        assert not side.ring.status[:, Status.BUSY].any()


def test_void_grants_are_not_filled():
    entered, go_on = threading.Event(), threading.Event()

    def wait_in_the_second_call(call):
        if call == 2:
            entered.set()
            assert go_on.wait(DEADLINE)

    with worker(wait_in_the_second_call) as side:
        side.grant(0, 1, 2)
        assert entered.wait(DEADLINE)
        side.send(encode_message(KIND.TRUNCATE, 1, 2), encode_message(KIND.GRANT, a=0, c=2, lane=3))
        go_on.set()
        messages = side.receive_until(KIND.DONE, version=1, a=3)
        dones = [(message.version, message.a) for message in messages]
        assert dones == [(0, 1), (0, 2), (1, 2), (1, 3)]
        assert [side.values(slot)[1] for slot in range(SLOTS)] == [1, 2, 0, 3]


def test_a_grant_that_becomes_void_while_it_is_filled_is_not_counted():
    entered, go_on = threading.Event(), threading.Event()

    def wait_in_the_first_call(call):
        if call == 1:
            entered.set()
            assert go_on.wait(DEADLINE)

    with worker(wait_in_the_first_call) as side:
        side.grant(0)
        assert entered.wait(DEADLINE)
        side.send(encode_message(KIND.TRUNCATE, 1, 0))
        go_on.set()
        side.receive_until(KIND.DONE, version=1, a=0)
        side.grant(1, run=1)
        side.receive_until(KIND.DONE, version=1, a=1)
        assert [env.calls for env in side.envs] == [1, 1]  # another run has an env of its own
        assert side.envs[0].closed


def test_a_failure_is_reported_until_its_grant_is_void():
    def fail_first(call):
        if call == 1 and len(side.envs) == 1:
            raise ValueError("broken")

    with worker(fail_first) as side:
        side.grant(0, 1)
        (error,) = side.receive_until(KIND.ERROR)
        assert (error.version, error.a, error.lane) == (0, 0, 1)
        assert "ValueError: broken" in error.payload["message"]
        side.send(encode_message(KIND.TRUNCATE, 1, 1))  # only the second one is void
        assert side.receive_until(KIND.ERROR)[-1].version == 1
        side.send(encode_message(KIND.TRUNCATE, 2, 0))
        side.receive_until(KIND.DONE, version=2, a=0)
        side.grant(2)
        side.receive_until(KIND.DONE, version=2, a=1)
        assert side.values(2) == [0, 1, 1]


def test_slots_are_filled_while_nobody_reads_and_nothing_is_lost():
    large = "x" * (1 << 20)  # more than a socket takes
    with worker(lambda call: [call, large]) as side:
        side.grant(0, 1, 2, 3)
        status = side.ring.status
        while status[1, Status.SEQ] < SLOTS:
            pass
        messages = side.receive_until(KIND.DONE, a=SLOTS)
        assert [message.a for message in messages if message.kind == KIND.INFO] == [0, 1, 2, 3]
        assert all(len(message.payload) > len(large) for message in messages if message.kind == KIND.INFO)


def test_messages_of_other_threads_do_not_come_between_those_of_a_batch():
    record = encode_message(KIND.LOG, payload={"name": "streamloader", "level": logging.INFO, "message": "x" * 999})
    finished = threading.Event()

    def log(side):
        while not finished.is_set():
            side.scheduler.send_if_possible(record)

    with worker(lambda call: {"call": call}) as side:
        threads = [threading.Thread(target=log, args=(side,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for batch in range(200):
                side.grant(batch % SLOTS, batch=batch)
                messages = side.receive_until(KIND.DONE, a=batch + 1)
                of_batch = [message for message in messages if message.kind != KIND.LOG]
                assert [message.kind for message in of_batch] == [KIND.INFO, KIND.DONE]
                assert messages[-2].kind == KIND.INFO
        finally:
            finished.set()
            for thread in threads:
                thread.join(DEADLINE)


def test_the_end_of_the_socket_ends_a_worker_that_waits_for_its_grant_to_become_void():
    def fail(call):
        raise ValueError

    with worker(fail) as side:
        side.grant(0)
        side.receive_until(KIND.ERROR)


def test_a_filler_that_waits_for_an_event_loop_is_an_error():
    class Waiting(EnvWorkload):
        def make_fillers(self, ring, lanes, first_lane, send):
            class Filler:
                row, rows, grants_filled, status = 0, range(1), 0, np.zeros((Status.COLUMNS, 1), np.int64)

                async def fill(self, grant):
                    import asyncio

                    await asyncio.sleep(0)

            return [Filler()]

    ring = Ring.create(SlotLayout({"x": sl.Field(())}, 1, None), 1)
    ours, theirs = socket.socketpair()
    try:
        workload = Waiting.create(lambda: print, [range(1)], 0, 1, seed=0)
        ours.sendall(encode_message(*Message(KIND.GRANT, 0, 0, 0, 0, 0)))
        with pytest.raises(RuntimeError, match="waits for an event loop"):
            DirectScheduler(workload, ring, theirs, [0], 0).run()
    finally:
        ours.close()
        theirs.close()
        ring.close()

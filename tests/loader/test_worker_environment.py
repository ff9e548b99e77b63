"""What code of the user meets in a worker: where it is, where its prints go, and limits of the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import streamloader as sl

FIELDS = {"lane": sl.Field((), "int64"), "epoch": sl.Field((), "int64"), "ordinal": sl.Field((), "int64")}


def look():
    info = sl.get_lane_info()
    return {"lane": info.lane, "epoch": info.epoch, "ordinal": info.stream}


def make(item):
    assert sl.get_lane_info().key == str(item)
    for _ in range(3):
        yield look()


async def make_async(item):
    for _ in range(3):
        yield look()


class Own(sl.StreamDataset):
    fields = FIELDS

    async def index(self):
        return [sl.StreamInfo(str(number), 3) for number in range(6)]

    async def open(self, info, rng):
        assert sl.get_lane_info().key == info.key
        return OwnStream()


class OwnStream(sl.Stream):
    steps = 3

    async def read_into(self, out):
        if not self.steps:
            return 0
        self.steps -= 1
        for name, value in look().items():
            out[name][0] = value
        return 1


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [make, make_async, Own])
def test_code_of_the_user_sees_epoch_lane_and_stream(kind, num_workers):
    dataset = Own() if kind is Own else sl.IterStreams(range(6), kind, fields=FIELDS, lengths=[3] * 6)
    assert sl.get_lane_info() is None
    for rank in range(2):
        options = {"num_workers": num_workers, "seed": 5, "rank": rank, "world_size": 2, "timeout": 60.0}
        with sl.MultiStreamer(dataset, 2, 2, **options) as loader:
            for epoch in range(2):
                for batch in loader:
                    valid = batch.valid
                    assert (batch["epoch"][valid] == epoch).all()
                    assert (batch["ordinal"] == batch.stream)[valid].all()
                    lanes = np.arange(2 * rank, 2 * rank + 2)[:, None]
                    assert (np.asarray(batch["lane"]) == lanes)[np.asarray(valid)].all()
    assert sl.get_lane_info() is None


def test_transforms_see_it_too(tmp_path):
    seen = []

    def tokenize(text):
        seen.append(sl.get_lane_info())
        return list(text.encode())

    (tmp_path / "a.txt").write_bytes(b"abc")
    with sl.MultiStreamer(sl.TextStreams(str(tmp_path / "a.txt"), tokenizer=tokenize), 1, 3, seed=9) as loader:
        list(loader)
    info = next(info for info in seen if info is not None)  # the index tokenizes outside of a lane
    assert (info.epoch, info.lane, info.rank, info.world_size, info.stream, info.seed) == (0, 0, 0, 1, 0, 9)
    assert info.key.endswith("a.txt")


# --- prints -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
import numpy as np
import streamloader as sl

def make(item):
    for step in range(4):
        print("shown", "x" * 50_000, step)
        print("shown", step, file=sys.stderr, flush=True)
        sys.stdout.buffer.write(b"bytes")
        yield np.int64(step)

streams = sl.IterStreams([0, 1], make, fields=sl.Field((), "int64"), lengths=[4, 4])
{before}
with sl.MultiStreamer(streams, 2, 2, num_workers=1, on_error="skip", timeout=60.0) as loader:
    steps = sum(int(batch.valid.sum()) for batch in loader)
    with open({result!r}, "w") as file:
        file.write(f"{{steps}} {{loader.quarantined}} {{loader.stats().restarts}}")
"""


@pytest.mark.parametrize("output", ["closed pipe", "full pipe", "file", "limit of file sizes"])
def test_prints_of_a_worker_are_not_blamed_on_its_stream(output, tmp_path):
    result, log = tmp_path / "result", tmp_path / "log"
    before = ""
    if output == "limit of file sizes":
        before = "import resource; loader_of = None"
        (tmp_path / "log").write_bytes(b"")
    code = PROGRAM.format(before=before, result=str(result))
    receiver, sender = os.pipe()
    try:
        if output == "closed pipe":
            os.close(receiver)
            receiver = -1
        streams = sender
        if output in ("file", "limit of file sizes"):
            streams = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        command = [sys.executable, "-c", code]
        if output == "limit of file sizes":
            command = ["sh", "-c", 'ulimit -f 1024; exec "$@"', "sh", *command]  # fewer bytes than the prints have
            os.write(streams, b"-" * (1024 * 512))
        process = subprocess.run(command, stdout=streams, stderr=streams, check=False, timeout=200)
        if streams is not sender:
            os.close(streams)
    finally:
        for fd in (receiver, sender):
            if fd >= 0:
                os.close(fd)
    assert result.read_text() == "8 () 0", process
    if output == "file":
        text = log.read_text()
        assert text.count("shown x") == text.count("bytes") >= 8  # the next epoch is prepared as well
        assert sum(f"shown {step}" in text for step in range(4)) == 4


# --- limits -----------------------------------------------------------------------------------------------------------


def run_limited(code):
    """Run a program that prints JSON, and return it."""
    prelude = """
    import gc, json, os, resource
    import numpy as np
    import streamloader as sl
    from streamloader.loader import base, multistreamer, system_limits
    from streamloader.engine import supervisor, worker

    def loader_of(num_workers):
        streams = sl.IterStreams([0, 1], lambda item: np.arange(4), fields=sl.Field((), "int64"), lengths=[4, 4])
        return sl.MultiStreamer(streams, 2, 4, num_workers=num_workers, timeout=60.0)

    def play(num_workers):
        try:
            with loader_of(num_workers) as loader:
                return [batch.data.tolist() for batch in loader] == [[[0, 1, 2, 3]] * 2]
        except sl.StreamloaderError as error:
            return f"{type(error).__name__}: {error.message}"

    def open_fds():
        gc.collect()
        fds = map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
        links = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
        return sum("eventpoll" not in link for link in links)  # asyncio itself leaves some where descriptors lack
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_few_descriptors_are_a_typed_error(num_workers):
    results, leaked = run_limited(
        f"""
        play({num_workers})
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        before, results = open_fds(), []
        for spare in range(0, 24, 2):
            limit = len(os.listdir("/proc/self/fd")) - 2 + spare
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            results.append(play({num_workers}))
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        results.append(play({num_workers}))
        print(json.dumps([results, open_fds() - before]))
        """
    )
    assert results[-1] is True
    failures = [result for result in results if result is not True]
    assert len(failures) >= 2
    assert all(failure.startswith(("SystemLimit", "WorkerDied", "StreamFailed")) for failure in failures), failures
    assert "raise the limit (ulimit -n)" in failures[0]
    assert leaked == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_limit_of_file_sizes_is_a_typed_error(num_workers):
    text, leaked = run_limited(
        f"""
        play({num_workers})
        before = open_fds()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        print(json.dumps([play({num_workers}), open_fds() - before]))
        """
    )
    assert text.startswith("SystemLimit: the loader cannot start: the limit of file sizes also applies to shared")
    assert leaked == 0

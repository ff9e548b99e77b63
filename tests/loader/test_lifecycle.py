"""Nothing remains after any kind of end. Each test runs a small program and inspects its processes."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from engine_data import Numbered, assert_same_batches, copies
from polling import wait_until
from tiers import fast_first, only_fast

import streamloader as sl

DEADLINE = 60.0

# Lanes 0 and 1 play for long; "stuck" ones wait for ever from some step on, in a thread or blocking the event loop.
PRELUDE = """
import os, sys, threading, time
import streamloader as sl

def make(item):
    for step in range(1 << 20):
        if step == item:
            threading.Event().wait()
        yield step

async def make_blocking(item):
    for step in range(1 << 20):
        if step == item:
            time.sleep(1e6)
        yield step

def loader_of(items=(-1, -1), make=make, workers=2, **more):
    streams = sl.IterStreams(items, make, fields=sl.Field((), "int64"), lengths=[1 << 20] * len(items))
    return sl.MultiStreamer(streams, len(items), 4, num_workers=workers, timeout=None, **more)

def steps(batch):
    return batch.numpy()["data"].tolist()

def say(*words):
    print(*words, flush=True)

def wait_for_stuck(loader):
    while loader.stats().lanes[1].step < 8:
        time.sleep(0.001)

def workers_of(loader):
    return loader._supervisor.pids

def gone(pids):  # they were waited for, so that not even a zombie is left
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)

def links(pid):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield int(fd), os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:  # the one that lists the folder
            pass

def held():
    maps = [line for line in open("/proc/self/maps") if "streamloader-" in line]
    memory = [link for _, link in links("self") if "streamloader-" in link]
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return maps + memory + threads

def holds_nothing():
    import gc
    gc.collect()
    until = time.monotonic() + 60
    while held() and time.monotonic() < until:  # a thread needs a moment to end
        time.sleep(0.001)
    return held() or True
"""


class Program:
    """A Python program in a new process group."""

    def __init__(self, code, *command, stdin=subprocess.DEVNULL, script=None):
        arguments = command or ("-c", PRELUDE + code)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
        )
        self.pid = self.process.pid

    def line(self):
        """Return the next line of its output."""
        return self.process.stdout.readline().split()

    def pids(self):
        """Return the process ids of the workers that it prints."""
        words = self.line()
        assert words[0] == "workers", self.process.communicate()
        return [int(word) for word in words[1:]]

    def end(self, text=None):
        """Wait for its end; return (status, its further output, its standard error)."""
        out, err = self.process.communicate(text, timeout=DEADLINE)
        return self.process.returncode, out.split(), err


@contextlib.contextmanager
def program(code, *command, **more):
    made = Program(code, *command, **more)
    with made.process:
        try:
            yield made
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever a failed test leaves
                os.killpg(made.pid, signal.SIGKILL)


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_end(pids):
    deadline = time.monotonic() + 60
    while any(runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # between two looks at a condition
    return True


def run(code, *command, **more):
    with program(code, *command, **more) as made:
        return made.end()


# --- ways to end that the program itself chooses -------------------------------------------------------------

ENDS = {
    "close": """
loader = loader_of(workers=WORKERS)
iterator = iter(loader)
next(iterator)
pids = workers_of(loader)
loader.close()
say(gone(pids), "closed")
del iterator, loader
""",
    "with": """
with loader_of(workers=WORKERS) as loader:
    for batch in loader:
        pids = workers_of(loader)
        break
say(gone(pids), "closed")
del loader, batch
""",
    "exception in the loop": """
try:
    with loader_of(workers=WORKERS) as loader:
        for batch in loader:
            pids = workers_of(loader)
            raise LookupError
except LookupError:
    say(gone(pids), "closed")
del loader, batch
""",
    "garbage collection": """
loader = loader_of(workers=WORKERS)
for batch in loader:
    pids = workers_of(loader)
    break
del loader
say(gone(pids), "closed")
del batch
""",
    "garbage collection of a cycle": """
import gc
loader = loader_of(workers=WORKERS)
iterator = iter(loader)
next(iterator)
pids = workers_of(loader)
loader.itself = loader
del loader, iterator
gc.collect()
say(gone(pids), "closed")
""",
}


@pytest.mark.parametrize(
    ("how", "workers"),
    only_fast(
        itertools.product(ENDS, (2, 0)),
        fast=[("garbage collection of a cycle", 2), ("garbage collection", 0)],
    ),
)
def test_what_a_program_lets_go_of_is_gone(how, workers):
    code = ENDS[how].replace("WORKERS", str(workers)) + "\nsay(holds_nothing())"
    assert run(code) == (0, ["True", "closed", "True"], "")


ENDINGS = [("", 0), ("sys.exit(5)", 5), ("raise SystemExit", 0), ("threading.Thread(target=sys.exit).start()", 0)]


@pytest.mark.parametrize(
    ("ending", "status", "workers"),
    only_fast(
        [(*ending, workers) for ending in ENDINGS for workers in (2, 0)], fast=[(*ENDINGS[0], 2), (*ENDINGS[-1], 2)]
    ),
)
def test_the_interpreter_ends_in_the_middle_of_an_epoch(ending, status, workers):
    code = f"""
loader = loader_of(workers={workers})
iterator = iter(loader)
batch = next(iterator)
say("workers", *workers_of(loader))
{ending}
"""
    with program(code) as made:
        pids = made.pids()
        assert made.end() == (status, [], "")
        assert all_end(pids)


def test_an_exception_that_nobody_catches_is_the_only_thing_told():
    code = """
loader = loader_of()
for batch in loader:
    say("workers", *workers_of(loader))
    raise LookupError("mine")
"""
    with program(code) as made:
        pids = made.pids()
        status, _, err = made.end()
        assert status == 1
        assert err.count("Traceback") == 1
        assert err.rstrip().endswith("LookupError: mine")
        assert all_end(pids)


def test_closing_does_not_wait_for_a_stuck_stream():
    code = """
for made in (make, make_blocking):
    loader = loader_of((-1, 8), made)
    iterator = iter(loader)
    wait_for_stuck(loader)
    pids = workers_of(loader)
    loader.close()
    say(gone(pids))
"""
    assert run(code) == (0, ["True", "True"], "")


def test_a_stuck_thread_does_not_hold_up_the_end_of_the_program():
    code = """
loader = loader_of((-1, 8), workers=0)
iterator = iter(loader)
wait_for_stuck(loader)
"""
    status, _, err = run(code)
    assert status == 0
    assert err == "" or re.fullmatch(r"a stream does not return from a blocking call; its thread is abandoned.*\n", err)


def test_batches_are_held_beyond_the_end_of_everything():
    code = """
import gc
loader = loader_of()
held = [batch for batch, _ in zip(loader, range(20))]
del loader
gc.collect()
say([steps(batch)[0][0] for batch in held] == list(range(0, 80, 4)))
"""
    assert run(code) == (0, ["True"], "")


# --- ways to end that come from outside ----------------------------------------------------------------------


def test_nothing_is_imported_while_a_loader_iterates():
    code = """
with loader_of() as loader:
    iterator = iter(loader)
    before = set(sys.modules)
    next(iterator)
    say(*sorted(set(sys.modules) - before))
"""
    with program(code) as made:  # an import that runs C code may swallow a Ctrl-C: numpy.random does
        assert made.end() == (0, [], "")


WAITING = """
loader = loader_of((-1, 8), {make}, workers={workers})
iterator = iter(loader)
wait_for_stuck(loader)
say("workers", *workers_of(loader))
while True:
    next(iterator)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("workers", fast_first([2, 0]))
def test_ctrl_c_reaches_all_and_is_told_once(workers):
    with program(WAITING.format(make="make", workers=workers)) as made:
        pids = made.pids()
        assert all(runs(pid) for pid in pids)
        os.killpg(made.pid, signal.SIGINT)  # as a terminal does it
        status, _, err = made.end()
        assert status in (-signal.SIGINT, 130)
        assert err.count("KeyboardInterrupt") == 1
        assert err.count("Traceback") == 1
        assert "worker.py" not in err
        assert all_end(pids)


@pytest.mark.chaos
@pytest.mark.parametrize("workers", fast_first([0, 2]))
def test_ctrl_c_right_before_a_wait_does_not_wait_for_its_end(workers):
    """The same as a signal that is received in another thread: it does not interrupt the main thread's select()."""
    code = f"""
import signal
loader = loader_of((-1, 8), make, workers={workers})
iterator = iter(loader)
wait_for_stuck(loader)
waits = threading.Event()
select = loader._supervisor._pool.selector.select

def watched_select(timeout=None):
    waits.set()
    return select(timeout)

def interrupt():
    waits.wait()
    while "poll" not in open("/proc/self/wchan").read():
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

loader._supervisor._pool.selector.select = watched_select
threading.Thread(target=interrupt, daemon=True).start()
say("workers", *workers_of(loader))
while True:
    next(iterator)
"""
    with program(code) as made:
        pids = made.pids()
        status, _, err = made.end()
        assert status in (-signal.SIGINT, 130)
        assert err.count("KeyboardInterrupt") == 1
        assert all_end(pids)


@pytest.mark.chaos
def test_ctrl_c_while_workers_start():
    code = """
loader = loader_of()
iterator = iter(loader)
say("workers", *workers_of(loader))
while True:
    next(iterator)
"""
    with program(code) as made:
        pids = made.pids()
        assert all(runs(pid) for pid in pids)
        os.killpg(made.pid, signal.SIGINT)
        status, _, err = made.end()
        assert status in (-signal.SIGINT, 130)
        assert err.count("Traceback") == err.count("KeyboardInterrupt") == 1
        assert all_end(pids)


def wait_until_it_polls(pid):
    """Wait until the main thread of a process sleeps in epoll, which means that it is inside next()."""
    wait_until(lambda: "poll" in Path(f"/proc/{pid}/wchan").read_text())


@pytest.mark.chaos
def test_going_on_after_ctrl_c():
    code = """
import signal
loader = loader_of((-1, 8))
iterator = iter(loader)
next(iterator), next(iterator)
say("workers", *workers_of(loader))
try:
    next(iterator)
except KeyboardInterrupt:
    pids = workers_of(loader)
    say(gone(pids[:1]))
    say(steps(next(iter(loader)))[0])
    loader.close()
    say(gone(pids))
"""
    with program(code) as made:
        made.pids()
        wait_until_it_polls(made.pid)
        os.killpg(made.pid, signal.SIGINT)
        # the stuck thread of lane 1 never comes back, so the second iteration is broken off as well
        assert made.line() == ["False"]
        os.killpg(made.pid, signal.SIGINT)
        status, _, err = made.end()
        assert status in (-signal.SIGINT, 130)
        assert "worker.py" not in err


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("number", "make"),
    only_fast(
        itertools.product((signal.SIGTERM, signal.SIGKILL), ("make", "make_blocking")),
        fast=[(signal.SIGTERM, "make"), (signal.SIGKILL, "make_blocking")],
    ),
)
def test_workers_end_with_their_parent(number, make):
    with program(WAITING.format(make=make, workers=2)) as made:
        pids = made.pids()
        assert all(runs(pid) for pid in pids)
        os.kill(made.pid, number)
        assert made.end() == (-number, [], "")
        assert all_end(pids)


@pytest.mark.chaos
def test_a_whole_group_is_killed():
    with program(WAITING.format(make="make", workers=2)) as made:
        pids = made.pids()
        assert all(runs(pid) for pid in pids)
        os.killpg(made.pid, signal.SIGKILL)
        assert made.end() == (-signal.SIGKILL, [], "")
        assert all_end(pids)


@pytest.mark.chaos
def test_workers_end_though_a_fork_of_their_parent_lives_on():
    code = """
loader = loader_of()
iterator = iter(loader)
next(iterator)
say("workers", *workers_of(loader))
if not os.fork():
    say(os.getpid())
    os.read(0, 1)  # with a copy of every socket of the parent
    os._exit(0)
os.wait()
"""
    with program(code, stdin=subprocess.PIPE) as made:
        pids = made.pids()
        assert all(runs(pid) for pid in pids)
        (fork,) = map(int, made.line())
        os.kill(made.pid, signal.SIGKILL)
        assert all_end(pids)
        assert runs(fork)
        made.process.stdin.close()
        assert made.process.wait(DEADLINE) == -signal.SIGKILL
        assert all_end([fork])


def test_a_fork_that_ends_takes_nothing_from_its_parent():
    code = """
loader = loader_of()
iterator = iter(loader)
first = next(iterator)
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, a fork of a process with threads warns
if not os.fork():
    del iterator, first
    loader.close()
    sys.exit()
say(os.wait()[1])
say([steps(next(iterator))[1][0] for _ in range(50)] == list(range(4, 204, 4)))
"""
    assert run(code) == (0, ["0", "True"], "")


def test_a_loader_outlives_the_thread_that_started_it():
    code = """
loader = loader_of()
got = []
def start():
    got.append(iter(loader))
    got.append(steps(next(got[0])))
thread = threading.Thread(target=start)
thread.start()
thread.join()
say([steps(next(got[0]))[0][0] for _ in range(100)] == list(range(4, 404, 4)))
"""
    assert run(code) == (0, ["True"], "")


# --- shared memory -------------------------------------------------------------------------------------------


def test_shared_memory_of_64_kb_is_enough():
    code = """
import os
room = os.statvfs("/dev/shm")
say(room.f_blocks * room.f_frsize)
streams = sl.IterStreams([6, 6], lambda item: ([i] * (1 << 20) for i in range(item)), fields=sl.Field((1 << 20,)))
with sl.MultiStreamer(streams, 2, 2, num_workers=2) as loader:
    say([int(batch.numpy()["data"].sum()) >> 20 for batch in loader], loader.stats().ring_bytes >> 20)
say(os.listdir("/dev/shm"))
"""
    mount = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        command.remove("--map-root-user")
        if (
            shutil.which("unshare") is None
            or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
        ):
            if os.environ.get("CI"):
                pytest.fail("a mount namespace cannot be made here")
            pytest.skip("a mount namespace cannot be made here")
    done = subprocess.run(
        [*command, sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "65536\n[2, 10, 18] 16\n[]\n"


def test_dev_shm_is_never_touched():
    code = """
touched = []
sys.addaudithook(lambda event, arguments: touched.append(event) if "/dev/shm" in str(arguments) else None)
try:
    import torch
except ModuleNotFoundError:
    pass
with loader_of() as loader:
    for batch in loader:
        say(batch.data.sum().item() >= 0)
        places = []
        for pid in ["self", *workers_of(loader)]:
            places.append(open(f"/proc/{pid}/maps").read())
            places += [link for _, link in links(pid)]
        break
say(touched, any("/dev/shm" in place for place in places))
say(sum("memfd:streamloader-ring" in place for place in places) >= 6)
"""
    assert run(code) == (0, ["True", "[]", "False", "True"], "")


def test_workers_get_the_descriptors_they_need_and_no_others():
    code = """
import socket
reader, writer = os.pipe()
os.set_inheritable(reader, True)
other = socket.socketpair()
other[0].set_inheritable(True)
file = open(sys.executable, "rb")
os.set_inheritable(file.fileno(), True)
with loader_of() as loader:
    next(iter(loader))
    mine, one, two = ([link for fd, link in links(pid) if fd > 2] for pid in [os.getpid(), *workers_of(loader)])
shared = {link for link in set(mine) & (set(one) | set(two)) if not link.startswith("anon_inode:")}
between = {link for link in set(one) & set(two) if not link.startswith("anon_inode:")}
say(*shared)
say(*between)
"""
    status, out, err = run(code)
    assert (status, err) == (0, "")
    assert out == ["/memfd:streamloader-ring", "(deleted)"] * 2


# --- programs of every kind ----------------------------------------------------------------------------------

WITHOUT_GUARD = """
import numpy as np
import streamloader as sl

class Walk:
    def __init__(self, scale):
        self.scale = scale
    def __call__(self, item, rng):
        for step in range(3):
            yield helper(item, step) * self.scale

def helper(item, step):
    return np.int64(item * 10 + step)

def main():
    class Local(Walk):
        pass
    twice = lambda walk: Local(2 * walk.scale)
    streams = sl.IterStreams([1, 2], twice(Walk(1)), fields=sl.Field((), "int64"), lengths=lambda item: 3)
    loader = sl.MultiStreamer(streams, 2, 3, num_workers=2, shuffle=False)
    print([batch.numpy()["data"].tolist() for batch in loader])

main()
"""
EXPECTED = "[[[20, 22, 24], [40, 42, 44]]]\n"


@pytest.mark.parametrize("how", only_fast(["file", "stdin", "-c"], fast=["file", "stdin"]))
def test_a_program_needs_no_guard(how, tmp_path):
    script = tmp_path / "script with spaces.py"
    script.write_text(WITHOUT_GUARD)
    command = {"-c": ["-c", WITHOUT_GUARD], "stdin": ["-"], "file": [str(script)]}[how]
    done = subprocess.run(
        [sys.executable, *command],
        input=WITHOUT_GUARD if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, "")


def test_an_interactive_session_with_a_running_event_loop():
    # As in a notebook: code comes piece by piece, has no file, and runs inside of an event loop. Each piece is one
    # line, because the console of Python 3.13.0 takes no others from a pipe.
    pieces = """
import streamloader as sl
Count = type("Count", (), {"__call__": lambda self, item: range(item, item + 4)})
streams = sl.IterStreams([10, 20], Count(), fields=sl.Field((), "int64"), lengths=[4, 4])
loader = sl.MultiStreamer(streams, 2, 2, num_workers=1, shuffle=False)
print("sync", [batch.numpy()["data"].tolist() for batch in loader])
print("async", [batch.numpy()["data"].tolist() async for batch in loader])
loader.close()
"""
    with program("", "-m", "asyncio", stdin=subprocess.PIPE) as made:
        status, out, err = made.end(pieces)
    text = " ".join(out)
    assert status == 0, err
    assert "sync [[[10, 11], [20, 21]], [[12, 13], [22, 23]]]" in text
    assert "async [[[10, 11], [20, 21]], [[12, 13], [22, 23]]]" in text
    assert "Error" not in err


def test_modules_found_through_a_path_added_at_run_time(tmp_path):
    (tmp_path / "late_module.py").write_text("def make(item):\n    return range(item)\n")
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
import late_module
with loader_of((3, 3), late_module.make, workers=1, switch="align") as loader:
    say(steps(next(iter(loader))))
"""
    assert run(code) == (0, ["[[0,", "1,", "2,", "0],", "[0,", "1,", "2,", "0]]"], "")


def test_a_file_where_the_program_stands_hides_no_module_of_a_worker(tmp_path):
    (tmp_path / "streamloader.py").write_text("raise RuntimeError('not this one')")
    code = WITHOUT_GUARD.replace("\nmain()\n", f"\nimport os\nos.chdir({str(tmp_path)!r})\nmain()\n")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False, cwd=tmp_path.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, "")


def test_a_worker_is_light():
    """A worker loads only what a plain generator needs, and few modules, because these determine its start time."""
    code = """
def modules(item):
    heavy = ("torch", "av", "aiohttp", "asyncssh", "motor", "PIL", "matplotlib", "pandas")
    yield sum(name in sys.modules for name in heavy) + max(0, len(sys.modules) - 800)

streams = sl.IterStreams([0], modules, fields=sl.Field((), "int64"))
with sl.MultiStreamer(streams, 1, 1, num_workers=1) as loader:
    for batch in loader:
        say(batch.numpy()["data"].tolist())
"""
    assert run(code) == (0, ["[[0]]"], "")


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loader_that_has_started_cannot_be_copied(copy_of):
    with sl.MultiStreamer(Numbered([5, 6]), 2, 3, timeout=60.0) as loader:
        with copy.deepcopy(loader) as other:
            assert_same_batches(copies(other), copies(loader))
        iterator = iter(loader)
        for one in (loader, iterator):
            with pytest.raises(sl.CannotCopy, match="cannot be copied or pickled"):
                copy_of(one)
        next(iterator)


def test_an_iteration_may_start_when_the_main_thread_has_ended():
    code = """
    import threading
    import streamloader as sl

    loader = sl.MultiStreamer(sl.IterStreams([3], range, fields=sl.Field((), "int64"), lengths=[3]), 1, 3, timeout=60.0)

    def play():
        main.join()
        with loader:
            print([batch.data.tolist() for batch in loader])

    main = threading.main_thread()
    threading.Thread(target=play).start()
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=100
    )
    assert output.stdout == "[[[0, 1, 2]]]\n", output.stderr

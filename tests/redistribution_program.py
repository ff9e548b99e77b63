"""Kills processes that redistribute the files of a directory, or that finish an interrupted redistribution.

    python redistribution_program.py SCRATCH SEED COUNT

In each of COUNT rounds, a forked process redistributes all files, and kills itself with SIGKILL before or after a
random call of a C function: of any system call, for example. In three of four rounds that is while files are moved. In
every second round, the process that opens the directory afterwards is killed as well. Then all files have to be there,
bit for bit. One line for each round says which processes were killed, and whether a journal was left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import streamloader as sl

FILES = 40
SUBDIRECTORIES = 5


class KilledAt:
    """A profiler that kills the process at one event, or counts events.

    Args:
        number: Number of the event. 0 for none.
        function: Name of the function during which events count. None for all events.
    """

    def __init__(self, number, function=None):
        self.number = number
        self.function = function
        self.is_counting = function is None
        self.count = 0

    def __call__(self, frame, event, argument):
        if event in ("call", "return") and frame.f_code.co_name == self.function:
            self.is_counting = event == "call"
        if self.is_counting and event in ("c_call", "c_return"):
            self.count += 1
            if self.count == self.number:
                os.kill(os.getpid(), signal.SIGKILL)


def open_directory(root, seed=0):
    return sl.VirtualDirectory(root, sl.BytesDataManager(), min_subdir_num=SUBDIRECTORIES, seed=seed, verbose=False)


def redistribute(root, seed):
    with open_directory(root, seed) as directory:
        directory.redistribute_all_files(are_you_sure=True)


def run_killed(profiler, work, *arguments):
    """Run a function in a forked process with a profiler. Return whether it was killed, and the number of events."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            sys.setprofile(profiler)
            work(*arguments)
            sys.setprofile(None)
            os.write(writer, str(profiler.count).encode())
        except BaseException as error:  # noqa: BLE001 - a forked process must not go on as the parent does
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        counted = pipe.read()
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or not status, "the process failed"
    return os.WIFSIGNALED(status), int(counted or 0)


def make_template(root, rng, seed):
    """Make a directory: with packs that are up to date, out of date, or without packs. Return its files."""
    files = {f"{number}.bin": rng.randbytes(rng.randrange(300)) for number in range(FILES)}
    with open_directory(root, seed) as directory:
        for number, (name, content) in enumerate(files.items()):
            directory.save(name, content)
            if seed % 3 == 1 and number == FILES // 2:
                directory.save_state()
        if seed % 3 == 2:
            directory.save_state()
    return files


def check(root, files):
    """Open a directory, and check that it has exactly these files, in itself and on the disk."""
    with open_directory(root) as directory:
        assert {name: bytes(directory.read(name)) for name in directory.get_list_of_files()} == files
        assert {name: data for name, _, data in directory} == files
    found = sorted((path.name, path.read_bytes()) for path in Path(root).glob("*/[!.]*"))
    assert found == sorted(files.items())
    assert not os.path.exists(f"{root}/.redistribute.json")
    counts = [len(os.listdir(path)) for path in Path(root).glob("subdir_?")]
    assert sum(counts) == FILES, "hidden files remain"
    return max(counts) - min(counts) <= 1


def main(scratch, seed, count):
    rng = random.Random(seed)
    events = {}
    for number in range(count):
        kind, function = number % 3, "_apply" if number % 4 else None
        root = f"{scratch}/{number}"
        files = make_template(root, rng, kind)
        if (kind, function) not in events:
            copy = make_template(f"{root}-whole", random.Random(number), kind)
            _, events[kind, function] = run_killed(KilledAt(0, function), redistribute, f"{root}-whole", 7)
            check(f"{root}-whole", copy)
        first = KilledAt(rng.randint(1, events[kind, function] * 9 // 10), function)
        was_killed, _ = run_killed(first, redistribute, root, 7)
        has_journal = os.path.exists(f"{root}/.redistribute.json")
        second = KilledAt(rng.randint(1, 3000) if number % 2 else 0)
        was_killed_again, _ = run_killed(second, check, root, files)
        is_balanced = check(root, files)
        assert is_balanced or not has_journal
        sys.stdout.write(f"{was_killed} {has_journal} {was_killed_again} {is_balanced}\n")
        shutil.rmtree(root)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

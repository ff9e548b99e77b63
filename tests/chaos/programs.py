"""Programs that are killed or interrupted at random moments, and a search for what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chaos.data import make_videos
from chaos.plan import WORKERS
from polling import is_running

PROC, SHM = Path("/proc"), Path("/dev/shm")
TESTS = Path(__file__).resolve().parents[1]
MARK = "STREAMLOADER_CHAOS"
DEADLINE_S = 60.0
GONE_WITHIN_S, EXIT_WITHIN_S = 1.0, 2.0  # as guaranteed
MAX_DELAY_S = 1.0  # from a program's first output to the attack: by then it iterates


@dataclass
class Ended:
    """Result of one attack on a program.

    Attributes:
        how: Description of the attack.
        workers: Number of workers of the program.
        seconds: Time in seconds from the attack until no process of the program was left.
        played: Whether the program had received its first batch before the attack.
        faults: Descriptions of violated guarantees.
    """

    how: str
    workers: int
    seconds: float
    played: bool
    faults: list[str] = field(default_factory=list)


class Victim:
    """A program under attack, in a process group and with a folder for temporary files of its own."""

    def __init__(self, seed: int, workers: int, folder: Path) -> None:
        self.token = uuid.uuid4().hex
        self.temporary = folder / f"tmp-{self.token}"
        self.temporary.mkdir()
        data = folder / "data"
        data.mkdir(exist_ok=True)
        environment = dict(os.environ) | {
            MARK: self.token,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
            "STREAMLOADER_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.shared_names = set(os.listdir(SHM))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "chaos.victim", str(seed), str(workers), str(data)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )
        self.pid = self.process.pid

    def processes(self) -> set[int]:
        """Process ids of all of the program's processes that live: they have inherited its mark."""
        mark = f"{MARK}={self.token}".encode()
        found = set()
        for name in filter(str.isdigit, os.listdir(PROC)):
            with contextlib.suppress(OSError):
                if mark in (PROC / name / "environ").read_bytes() and is_running(int(name)):
                    found.add(int(name))
        return found

    def memory(self) -> set[tuple[int, int]]:
        """(device, inode) of all shared memory that the program holds."""
        return {key for key, link in _open_files(self.pid) if "memfd:" in link or str(SHM) in link}

    def wait_until_gone(self, since: float) -> float:
        """Return the seconds from `since` until no process was left, or infinity."""
        known = self.processes()
        while time.monotonic() < since + DEADLINE_S:
            known = {pid for pid in known if is_running(pid)}
            if not known and not (known := self.processes()):
                return time.monotonic() - since
            time.sleep(0.002)  # between two looks at a condition
        return float("inf")

    def find_leftovers(self, memory: set[tuple[int, int]]) -> list[str]:
        """Name the files and the shared memory that are still there."""
        holders = [
            f"process {pid} holds {link}"
            for pid in map(int, filter(str.isdigit, os.listdir(PROC)))
            for key, link in _open_files(pid)
            if key in memory
        ]
        files = [f"temporary file {path}" for path in self.temporary.rglob("*") if path.is_file()]
        named = [f"{SHM / name}" for name in set(os.listdir(SHM)) - self.shared_names if "streamloader" in name]
        return holders + files + named


def _open_files(pid: int) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield ((device, inode), name) of what a process has open or mapped."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                about = os.stat(entry.path)
                yield (about.st_dev, about.st_ino), os.readlink(entry.path)
        for line in (PROC / str(pid) / "maps").read_text().splitlines():
            _, _, _, device, inode, *name = line.split(maxsplit=5)
            if name and ("memfd:" in name[0] or name[0].startswith(str(SHM))):
                major, minor = (int(part, 16) for part in device.split(":"))
                yield (os.makedev(major, minor), int(inode)), name[0]


@contextlib.contextmanager
def running_victim(seed: int, workers: int, folder: Path) -> Iterator[Victim]:
    """Start a program, and kill at the end what is left of it."""
    victim = Victim(seed, workers, folder)
    try:
        with victim.process:
            yield victim
            for pid in victim.processes():  # what should be gone
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(victim.pid, signal.SIGKILL)
        raise


def _attack_program(
    seed: int, folder: Path, how: str, strike: Callable[[int], None], check: Callable[..., None]
) -> Ended:
    """Run a program, attack it at a random moment after its first output, and check what follows."""
    rng = np.random.default_rng(seed)
    workers = WORKERS[int(rng.integers(len(WORKERS)))]
    delay = float(rng.uniform(0.0, MAX_DELAY_S))
    with running_victim(seed, workers, folder) as victim:
        line = victim.process.stdout.readline()
        if line != "begin\n":
            raise RuntimeError(f"the program of seed {seed} did not start: {victim.process.communicate(timeout=5)}")
        time.sleep(delay)  # the random moment
        memory = victim.memory()
        struck = time.monotonic()
        strike(victim.pid)
        seconds = victim.wait_until_gone(struck)
        faults = []
        if seconds == float("inf"):
            faults.append(f"after {DEADLINE_S:.0f} s processes {victim.processes()} still lived")
            os.killpg(victim.pid, signal.SIGKILL)
        out, err = victim.process.communicate(timeout=DEADLINE_S)
        ended = Ended(how, workers, seconds, out == "plays\n", faults)
        if out not in ("", "plays\n"):
            faults.append(f"it printed {out!r}")
        check(ended, victim.process.returncode, err)
        ended.faults += victim.find_leftovers(memory)
    return ended


def kill_parent(seed: int, folder: Path) -> Ended:
    """Kill a program, or its whole process group, with SIGKILL: no worker may live longer than a second."""

    def check(ended: Ended, status: int, err: str) -> None:
        if ended.seconds > GONE_WITHIN_S:
            ended.faults.append(f"a worker lived {ended.seconds:.2f} s longer than its parent")
        if status != -signal.SIGKILL or err:
            ended.faults.append(f"exit status {status}, and it printed {err!r}")

    group = seed % 2 == 1
    strike = os.killpg if group else os.kill
    how = "SIGKILL of the process group" if group else "SIGKILL of the parent"
    return _attack_program(seed, folder, how, lambda pid: strike(pid, signal.SIGKILL), check)


def interrupt_program(seed: int, folder: Path) -> Ended:
    """Interrupt a program as Ctrl-C in a terminal does: one traceback, and an end within two seconds."""

    def check(ended: Ended, status: int, err: str) -> None:
        if ended.seconds > EXIT_WITHIN_S:
            ended.faults.append(f"it ended after {ended.seconds:.2f} s")
        if status not in (-signal.SIGINT, 128 + signal.SIGINT):
            ended.faults.append(f"exit status {status}")
        # Python's import system may be handling another exception: then one interrupt is printed in two parts.
        lines = err.splitlines()
        tracebacks = err.count("Traceback") - err.count("\nDuring handling of the above exception,")
        if tracebacks != 1 or lines[-1:] != ["KeyboardInterrupt"] or lines.count("KeyboardInterrupt") != 1:
            ended.faults.append(f"it printed {err!r}")

    return _attack_program(seed, folder, "Ctrl-C", lambda pid: os.killpg(pid, signal.SIGINT), check)


def prepare(folder: Path) -> None:
    """Create the videos that all programs share."""
    (folder / "data").mkdir(exist_ok=True)
    make_videos(folder / "data")

"""Runs a program on several real ranks of this machine, with a deadline."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil


class Hung(Exception):
    """A program did not end in time, and was killed with all its processes. `output` is its output."""

    def __init__(self, command, deadline, output):
        super().__init__(f"{command} did not end in {deadline} s. It printed:\n{output}")
        self.output = output


def torchrun(world, program, *arguments, scratch, deadline=200.0):
    """Run `program` on `world` ranks that connect over the loopback, and return its output."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={world}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
        *(str(program), *map(str, arguments)),
    ]
    return run(command, scratch=scratch, deadline=deadline)


def run(command, *, scratch, deadline):
    """Run a command to its end, with `scratch` for its temporary files. Kill all its processes at the deadline.

    The ranks of torchrun have sessions of their own, so no signal to a process group would reach them all.
    """
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)}
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    ) as process:
        try:
            output, _ = process.communicate(timeout=deadline)
        except BaseException as error:
            _kill_tree(process.pid)
            output, _ = process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Hung(command, deadline, output) from None
            raise
    if process.returncode:
        raise AssertionError(f"{command} ended with {process.returncode}. It printed:\n{output}")
    return output


def _kill_tree(pid):
    tree = [psutil.Process(pid)]
    tree += tree[0].children(recursive=True)
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree[1:], timeout=60)

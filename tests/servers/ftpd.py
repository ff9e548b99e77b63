"""A real FTP server on loopback: pyftpdlib, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from canaries import canary

USER, PASSWORD = "loader", canary("fsspec-password")
_PROGRAM = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

folder, user = sys.argv[1:]
FTPHandler.authorizer = DummyAuthorizer()
FTPHandler.authorizer.add_user(user, sys.stdin.readline().strip(), folder, perm="elradfmwMT")
server = FTPServer(("127.0.0.1", 0), FTPHandler)
print(server.address[1], flush=True)
server.serve_forever()
"""


class Missing(Exception):
    """There is no pyftpdlib here, or it does not start."""


@contextlib.contextmanager
def ftpd(folder: Path) -> Iterator[int]:
    """Serve a folder and yield the port.

    Raises:
        Missing: the package is not installed.
    """
    if importlib.util.find_spec("pyftpdlib") is None:
        raise Missing("pyftpdlib is not installed: pip install pyftpdlib")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(folder), USER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            process.stdin.write(f"{PASSWORD}\n")
            process.stdin.flush()
            said = process.stdout.readline()  # it says its port once it listens, or ends
            if not said:
                raise Missing(f"pyftpdlib does not start (exit status {process.wait(10)})")
            yield int(said)
        finally:
            process.kill()

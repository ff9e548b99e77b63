"""Real FTP server on loopback: pyftpdlib in a separate process."""

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
    """pyftpdlib is not installed, or does not start."""


@contextlib.contextmanager
def ftpd(folder: Path) -> Iterator[int]:
    """Serve a folder and yield the port.

    Raises:
        Missing: If the package is not installed, or the server does not start.
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
            line = process.stdout.readline()  # the port, once the server listens; empty if it exits
            if not line:
                raise Missing(f"pyftpdlib does not start (exit status {process.wait(60)})")
            yield int(line)
        finally:
            process.kill()

"""Start of servers: ports that are free, and the wait for the first answer of a web server."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request


def find_free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which nothing listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_web_server_answers(url: str, process: subprocess.Popen[bytes], *, seconds: float) -> bool:
    """Wait until a server answers, even with an error. Return False if its process exits.

    Raises:
        TimeoutError: If it does not answer in time.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=60):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} was not ready within {seconds} s: {error}") from error
            time.sleep(0.01)
    return False

"""A real nginx on loopback, which serves a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

SECONDS = 20.0  # to be ready: usually a tenth

_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    keepalive_timeout {keepalive}s;
    gzip on;
    gzip_min_length 1;
    gzip_types *;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/data;
        location /rangeless/ {{ alias {folder}/data/; max_ranges 0; }}
        location /undated/ {{ alias {folder}/data/; etag off; }}
        location /private/ {{ alias {folder}/data/; auth_basic "private"; auth_basic_user_file {folder}/users; }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
        location /busy/ {{ add_header Retry-After 7 always; return 503; }}
        location /forbidden/ {{ deny all; }}
    }}
}}
"""


class Missing(Exception):
    """There is no nginx here, or it does not start; the message says why."""


class Nginx:
    """A server that runs.

    It serves its objects at its root, and the same in other manners below /rangeless, /undated (no ETag), /private
    (Basic authentication), /moved (a redirect), /busy and /forbidden. It would compress what a client does not ask to
    have as it is.

    Attributes:
        url: of its root.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._data = folder / "data"
        self._written = 0

    def put(self, files: Mapping[str, bytes]) -> None:
        """Put objects there, as a whole each; the time of each is another one, as nginx makes its ETags of it."""
        for name, data in files.items():
            target = self._data / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._data / ".unfinished"
            unfinished.write_bytes(data)
            self._written += 1
            moment = time.time() - 3_600 + self._written  # which stays in the past
            os.utime(unfinished, (moment, moment))
            os.replace(unfinished, target)


@contextlib.contextmanager
def nginx(*, user: str, password: str, keepalive: int = 75) -> Iterator[Nginx]:
    """Start nginx, yield it when it answers, stop it and remove its folder.

    Raises:
        Missing: it is not installed, or was not ready in time.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Missing("nginx is not installed: apt-get install nginx-light")
    folder = Path(tempfile.mkdtemp(prefix="nginx-"))
    folder.chmod(0o755)
    try:
        (folder / "data").mkdir()
        (folder / "users").write_text(f"{user}:{{PLAIN}}{password}\n")
        for _ in range(3):  # a port that was free may be taken a moment later
            port = _free_port()
            (folder / "conf").write_text(_CONFIG.format(folder=folder, port=port, keepalive=keepalive))
            command = [program, "-p", folder, "-e", folder / "error.log", "-c", folder / "conf"]
            if setpriv := shutil.which("setpriv"):
                command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # should the tests be killed, so is it
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                if _ready(f"http://127.0.0.1:{port}/", process):
                    yield Nginx(f"http://127.0.0.1:{port}", folder)
                    return
            finally:
                process.terminate()
                process.wait(30)
        log = (folder / "error.log").read_text(errors="replace")[-3000:]
        raise Missing(f"nginx ended three times before it was ready; its last words:\n{log}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it answers; False if the process ended."""
    ends = time.monotonic() + SECONDS
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True  # an answer all the same
        except OSError as error:
            if time.monotonic() > ends:
                raise Missing(f"nginx was not ready within {SECONDS} s: {error}") from error
            time.sleep(0.01)  # between two questions whether it is there
    return False


def _free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]

"""Real nginx on loopback, which serves a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from servers.starting import find_free_ports, wait_until_web_server_answers

SECONDS = 60.0  # limit for starting, which usually takes 0.1 s

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
    """nginx is not installed, or does not start. The message gives the reason."""


class Nginx:
    """A running server.

    It serves its objects at its root, and the same objects with other settings below /rangeless, /undated (no ETag),
    /private (Basic authentication), /moved (redirect), /busy and /forbidden. It compresses responses unless the client
    requests the identity encoding.

    Attributes:
        url: URL of its root.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._data = folder / "data"
        self._written = 0

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write objects atomically. Each gets a different time, from which nginx makes its ETag."""
        for name, data in files.items():
            target = self._data / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._data / ".unfinished"
            unfinished.write_bytes(data)
            self._written += 1
            moment = time.time() - 3_600 + self._written  # in the past
            os.utime(unfinished, (moment, moment))
            os.replace(unfinished, target)


@contextlib.contextmanager
def nginx(*, user: str, password: str, keepalive: int = 75) -> Iterator[Nginx]:
    """Start nginx, yield it when it answers, then stop it and remove its folder.

    Raises:
        Missing: If it is not installed, or was not ready in time.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Missing("nginx is not installed: apt-get install nginx-light")
    folder = Path(tempfile.mkdtemp(prefix="nginx-"))
    folder.chmod(0o755)
    try:
        (folder / "data").mkdir()
        (folder / "users").write_text(f"{user}:{{PLAIN}}{password}\n")
        for _ in range(3):  # another process may take the free port first
            (port,) = find_free_ports(1)
            (folder / "conf").write_text(_CONFIG.format(folder=folder, port=port, keepalive=keepalive))
            command = [program, "-p", folder, "-e", folder / "error.log", "-c", folder / "conf"]
            if setpriv := shutil.which("setpriv"):
                command[:0] = [setpriv, "--pdeathsig", "KILL", "--"]  # ends with the test process
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                if wait_until_web_server_answers(f"http://127.0.0.1:{port}/", process, seconds=SECONDS):
                    yield Nginx(f"http://127.0.0.1:{port}", folder)
                    return
            finally:
                process.terminate()
                process.wait(60)
        log = (folder / "error.log").read_text(errors="replace")[-3000:]
        raise Missing(f"nginx exited three times before it was ready; the end of its log:\n{log}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)

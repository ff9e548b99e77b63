"""An ingest worker that was taken over: ``hostile_ingest_program.py FOLDER FD PARENT TEMP_FOLDER``.

It waits for its first messages, sends the bytes of the file ``attack`` in FOLDER, and waits to be killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

if __name__ == "__main__":
    sock = socket.socket(fileno=int(sys.argv[2]))
    sock.recv(1 << 20)
    folder = Path(sys.argv[1])
    data = (folder / "attack").read_bytes()
    if (folder / "endless").exists():
        while True:
            sock.sendall(data)
    sock.sendall(data)
    if (folder / "exit").exists():
        os._exit(0)
    while sock.recv(1 << 20):
        pass
    signal.pause()

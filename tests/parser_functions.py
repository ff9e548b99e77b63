"""Functions that the tests of the pool of parsers call in its processes."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import struct
import time

from streamloader.errors import CorruptStream


def pid():
    return os.getpid()


def echo(value):
    return value


def wait_for(path):
    with open(f"{os.path.dirname(path)}/{time.monotonic_ns()}.pid", "w") as file:
        file.write(str(os.getpid()))
    while not os.path.exists(path):
        time.sleep(0.01)
    return True


def wait_first(folder):
    """Wait for ever, except in the second process."""
    if any(name.endswith(".pid") for name in os.listdir(folder)):
        return True
    return wait_for(f"{folder}/never")


def fail():
    raise CorruptStream("broken", offset=7, found=3)


def divide():
    return 1 // 0


def log(text, level):
    logging.getLogger("streamloader").log(level, "%s", text)


def allocate(size):
    return len(bytes(size))


def _note(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()} ")


def crash(path):
    _note(path)
    signal.raise_signal(signal.SIGSEGV)  # in this thread, which goes no further
    time.sleep(3600)


def leave(path):
    _note(path)
    os._exit(3)


def hang(path):
    _note(path)
    time.sleep(3600)


def _send(data):
    (sock,) = [each for each in gc.get_objects() if isinstance(each, socket.socket)]
    sock.sendall(data)
    time.sleep(60)


def _send_document(text):
    _send(struct.pack("<I", len(text)) + text)


def babble(path):
    """Send what is no JSON."""
    _note(path)
    _send_document(b"\x80\x04K\x01.")


def shout(path):
    """Announce more than is accepted."""
    _note(path)
    _send(struct.pack("<I", 0xFFFFFFFF))


def answer_another(path):
    """Answer a call that nobody has made."""
    _note(path)
    _send_document(b'{"call": 4711, "value": 1}')


def nest(path):
    _note(path)
    _send_document(b"[" * 500_000)

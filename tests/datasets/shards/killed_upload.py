"""Kill this process at one of the writes of its local store."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time


def kill_at_write(number, moment):
    """Kill this process at a call that changes a file or a folder.

    Args:
        number: Number of the call.
        moment: "before" it, "after" it, or "half", when half of the bytes were written.
    """
    counter, lock = itertools.count(), threading.Lock()

    def make(real):
        def call(*arguments, **options):
            with lock:  # one at a time, so that nothing follows the last one
                if next(counter) != number:
                    return real(*arguments, **options)
                if moment == "after":
                    real(*arguments, **options)
                if moment == "half" and real is write:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # the signal comes first
                return None

        return call

    write = os.write
    for name in ("write", "replace", "unlink", "mkdir"):
        setattr(os, name, make(getattr(os, name)))

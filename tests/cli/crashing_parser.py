"""A parser for the tests of ``inspect`` that some files end, as a bug in FFmpeg would."""

from __future__ import annotations

import os
import signal
import time

from streamloader.cli.media_parser import describe_media


def describe_or_crash(video, kind, size, stream):
    if "crash" in str(video):
        signal.raise_signal(signal.SIGSEGV)
        time.sleep(3600)
    if "hang" in str(video):
        time.sleep(3600)
    if "leave" in str(video):
        os._exit(0)
    if "lie" in str(video):
        return ["video", {"frames": "\x1b[31m"}]
    return describe_media(video, kind, size, stream)

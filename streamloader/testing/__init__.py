"""What a kind of stream of your own is tested with: bind :class:`StreamSuite` to it, and look at it with :func:`play`.

The suite tests single streams - what they play, seek, hold and give back - and a loader over them that is stopped at
every step, and goes on from its state in a new one, in this process and in workers.

Example::

    from streamloader.testing import StreamSuite

    class TestMyStreams(StreamSuite):
        def make_dataset(self):
            return MyStreams("somewhere")

The suite needs pytest; :func:`play` and :func:`play_async` do not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from streamloader.testing.playing import assert_same_steps, describe_streams, play, play_async

if TYPE_CHECKING:
    from streamloader.testing.streams import StreamSuite

__all__ = ["StreamSuite", "assert_same_steps", "describe_streams", "play", "play_async"]

with contextlib.suppress(ImportError):
    import pytest

    # so that its failures show the values
    pytest.register_assert_rewrite("streamloader.testing.streams", "streamloader.testing.resume")


def __getattr__(name: str) -> Any:
    if name == "StreamSuite":
        from streamloader.testing.streams import StreamSuite

        return StreamSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

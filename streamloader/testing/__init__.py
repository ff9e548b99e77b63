"""Conformance suites for your own kinds of streams, stores, containers and catalogs, and helpers for their tests.

:class:`StreamSuite` tests single streams (their steps, seeking, resources and closing) and a loader over them that is
stopped at every step and resumed from its state, in this process and in workers. :func:`read_stream` reads one stream.

Example::

    from streamloader.testing import StreamSuite

    class TestMyStreams(StreamSuite):
        def make_dataset(self):
            return MyStreams("somewhere")

:mod:`streamloader.testing.stores.suite` shows how to bind a store,
:mod:`streamloader.testing.containers.suite` how to bind a container, and
:mod:`streamloader.testing.catalogs.suite` how to bind a catalog. The suites need pytest; :func:`read_stream` and
:func:`read_stream_async` do not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from streamloader.testing.streams.playing import assert_same_steps, describe_streams, read_stream, read_stream_async

if TYPE_CHECKING:
    from streamloader.testing.catalogs.suite import CatalogSuite
    from streamloader.testing.containers.suite import ContainerSuite
    from streamloader.testing.stores.suite import StoreSuite
    from streamloader.testing.streams.suite import StreamSuite

__all__ = [
    "CatalogSuite",
    "ContainerSuite",
    "StoreSuite",
    "StreamSuite",
    "assert_same_steps",
    "describe_streams",
    "read_stream",
    "read_stream_async",
]

with contextlib.suppress(ImportError):
    import pytest

    # Failures then show the compared values.
    for _module in ("catalogs", "containers", "stores", "streams.suite", "streams.resume"):
        pytest.register_assert_rewrite(f"streamloader.testing.{_module}")


def __getattr__(name: str) -> Any:
    if name == "StreamSuite":
        from streamloader.testing.streams.suite import StreamSuite

        return StreamSuite
    if name == "CatalogSuite":
        from streamloader.testing.catalogs.suite import CatalogSuite

        return CatalogSuite
    if name == "ContainerSuite":
        from streamloader.testing.containers.suite import ContainerSuite

        return ContainerSuite
    if name == "StoreSuite":
        from streamloader.testing.stores.suite import StoreSuite

        return StoreSuite
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

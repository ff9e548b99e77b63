"""streamloader: batches whose rows are continuous in time.

Row *i* of one batch carries on exactly where row *i* of the batch before it stopped, and a reset mask says where a
new stream begins. Start with :class:`MultiStreamer` and a kind of stream: :class:`VideoStreams`,
:class:`TextStreams`, :class:`IterStreams`, or your own :class:`StreamDataset`.

The public names are resolved when they are first used: ``import streamloader`` itself loads no torch, av, numpy,
anyio, uvloop, aiohttp, asyncssh or motor. What happens inside is logged to the logger ``"streamloader"``.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streamloader.batch import Batch
    from streamloader.config import Limits, Retry, Timeouts
    from streamloader.datasets.archive import Archive, open_archive
    from streamloader.datasets.archive_clips import ArchiveClips
    from streamloader.datasets.archive_streams import ArchiveStreams
    from streamloader.datasets.butterfly import (
        ButterflyTorch,
        ChunkTracker,
        DistributedVideoDataset,
        RemoteFileHandler,
        VideoProcessor,
    )
    from streamloader.engine.quarantine import Quarantined
    from streamloader.envstreamer import EnvBatch, EnvStreamer
    from streamloader.errors import (
        AccessDenied,
        CatalogError,
        CatalogExists,
        CatalogNotFound,
        CatalogTimeout,
        CatalogTooNew,
        ClosedError,
        ConfigError,
        CorruptStream,
        FrameOutside,
        FrameSizeError,
        IngestFailed,
        Interrupted,
        LengthUnknown,
        LimitExceeded,
        LoaderTimeout,
        MissingExtra,
        NameTaken,
        NotFound,
        NotSupported,
        ObjectChanged,
        ProtocolFault,
        RangeOutside,
        RingTooLarge,
        ServerBusy,
        StateError,
        StoreError,
        StoreTimeout,
        StreamFailed,
        StreamloaderError,
        StreamNotFound,
        Unreachable,
        UnreadableStream,
        UntrustedHost,
        VideoNotFound,
        WorkerDied,
        WrongContent,
    )
    from streamloader.ingest.check import CheckReport
    from streamloader.ingest.report import IngestReport
    from streamloader.multistreamer import MultiStreamer
    from streamloader.state import merge_states
    from streamloader.stores.base import Store
    from streamloader.stores.registry import open_store, register_store
    from streamloader.streams.base import Stream, StreamDataset
    from streamloader.streams.iterate import IterStreams
    from streamloader.streams.text import TextStreams
    from streamloader.streams.video import VideoStreams
    from streamloader.table import StreamTable
    from streamloader.values import ByteRange, Field, ObjectInfo, StreamInfo

__version__ = "0.1.0"

__all__ = [
    "AccessDenied",
    "Archive",
    "ArchiveClips",
    "ArchiveStreams",
    "Batch",
    "ButterflyTorch",
    "ByteRange",
    "CatalogError",
    "CatalogExists",
    "CatalogNotFound",
    "CatalogTimeout",
    "CatalogTooNew",
    "CheckReport",
    "ChunkTracker",
    "ClosedError",
    "ConfigError",
    "CorruptStream",
    "DistributedVideoDataset",
    "EnvBatch",
    "EnvStreamer",
    "Field",
    "FrameOutside",
    "FrameSizeError",
    "IngestFailed",
    "IngestReport",
    "Interrupted",
    "IterStreams",
    "LengthUnknown",
    "LimitExceeded",
    "Limits",
    "LoaderTimeout",
    "MissingExtra",
    "MultiStreamer",
    "NameTaken",
    "NotFound",
    "NotSupported",
    "ObjectChanged",
    "ObjectInfo",
    "ProtocolFault",
    "Quarantined",
    "RangeOutside",
    "RemoteFileHandler",
    "Retry",
    "RingTooLarge",
    "ServerBusy",
    "StateError",
    "Store",
    "StoreError",
    "StoreTimeout",
    "Stream",
    "StreamDataset",
    "StreamFailed",
    "StreamInfo",
    "StreamNotFound",
    "StreamTable",
    "StreamloaderError",
    "TextStreams",
    "Timeouts",
    "Unreachable",
    "UnreadableStream",
    "UntrustedHost",
    "VideoNotFound",
    "VideoProcessor",
    "VideoStreams",
    "WorkerDied",
    "WrongContent",
    "__version__",
    "merge_states",
    "open_archive",
    "open_store",
    "register_store",
]

_HOMES: Final = {
    "Archive": "datasets.archive",
    "ArchiveClips": "datasets.archive_clips",
    "ArchiveStreams": "datasets.archive_streams",
    "Batch": "batch",
    "ButterflyTorch": "datasets.butterfly",
    "ByteRange": "values",
    "CheckReport": "ingest.check",
    "ChunkTracker": "datasets.butterfly",
    "DistributedVideoDataset": "datasets.butterfly",
    "EnvBatch": "envstreamer",
    "EnvStreamer": "envstreamer",
    "Field": "values",
    "IngestReport": "ingest.report",
    "IterStreams": "streams.iterate",
    "Limits": "config",
    "MultiStreamer": "multistreamer",
    "ObjectInfo": "values",
    "Quarantined": "engine.quarantine",
    "RemoteFileHandler": "datasets.butterfly",
    "Retry": "config",
    "Store": "stores.base",
    "Stream": "streams.base",
    "StreamDataset": "streams.base",
    "StreamInfo": "values",
    "StreamTable": "table",
    "TextStreams": "streams.text",
    "Timeouts": "config",
    "VideoProcessor": "datasets.butterfly",
    "VideoStreams": "streams.video",
    "merge_states": "state",
    "open_archive": "datasets.archive",
    "open_store": "stores.registry",
    "register_store": "stores.registry",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

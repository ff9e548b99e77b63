"""streamloader: batches whose rows are continuous in time.

Row *i* of a batch continues exactly where row *i* of the previous batch stopped, and a reset mask marks the first step
of each stream. Start with :class:`MultiStreamer` and a dataset of streams: :class:`VideoStreams`,
:class:`TextStreams`, :class:`IterStreams`, or your own :class:`StreamDataset`.

Public names are imported on first use: ``import streamloader`` itself loads none of torch, av, numpy, anyio, uvloop,
aiohttp, asyncssh and motor. Log records go to the logger ``"streamloader"``.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

from streamloader.redaction import SafeLogFilter

if TYPE_CHECKING:
    from streamloader.archive.archive import Archive, open_archive
    from streamloader.archive.clips import ArchiveClips
    from streamloader.archive.ingest.report import CheckReport, IngestReport
    from streamloader.archive.streams import ArchiveStreams
    from streamloader.compat.butterfly.dataset import (
        ButterflyTorch,
        ChunkTracker,
        DistributedVideoDataset,
        RemoteFileHandler,
        VideoProcessor,
    )
    from streamloader.config import Limits, Retry, Timeouts
    from streamloader.containers.store import ContainerStore, open_container
    from streamloader.engine.quarantine import Quarantined
    from streamloader.errors import (
        AccessDenied,
        CatalogError,
        CatalogExists,
        CatalogNotFound,
        CatalogTimeout,
        CatalogTooNew,
        ClosedError,
        ConfigError,
        CorruptContainer,
        CorruptStream,
        FrameIndexError,
        FrameSizeError,
        IngestFailed,
        IntegrityError,
        LengthUnknown,
        LimitExceeded,
        LoaderTimeout,
        MediaLimitExceeded,
        MissingDependency,
        NameConflict,
        NotFound,
        NotSupported,
        ObjectChanged,
        ProtocolError,
        RangeNotSatisfiable,
        RingTooLarge,
        ServerBusy,
        StateError,
        StoreError,
        StoreTimeout,
        StreamFailed,
        StreamloaderError,
        StreamNotFound,
        TransferInterrupted,
        Unreachable,
        UnreadableStream,
        UntrustedAddress,
        UntrustedHost,
        VideoNotFound,
        WorkerDied,
    )
    from streamloader.loader.batch import Batch
    from streamloader.loader.envstreamer import EnvBatch, EnvStreamer
    from streamloader.loader.multistreamer import MultiStreamer
    from streamloader.loader.plan_report import PlanReport
    from streamloader.loader.state import merge_states
    from streamloader.loader.yuv import yuv_to_rgb
    from streamloader.stores.base import Store
    from streamloader.stores.registry import open_store, register_store
    from streamloader.stream_table import StreamTable
    from streamloader.streams.base import SourceSizes, Stream, StreamDataset
    from streamloader.streams.iterate import IterStreams
    from streamloader.streams.make_index import IndexReport, index_videos
    from streamloader.streams.text import TextStreams
    from streamloader.streams.unreadable import SkippedVideo
    from streamloader.streams.video import VideoStreams
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
    "ContainerStore",
    "CorruptContainer",
    "CorruptStream",
    "DistributedVideoDataset",
    "EnvBatch",
    "EnvStreamer",
    "Field",
    "FrameIndexError",
    "FrameSizeError",
    "IndexReport",
    "IngestFailed",
    "IngestReport",
    "IntegrityError",
    "IterStreams",
    "LengthUnknown",
    "LimitExceeded",
    "Limits",
    "LoaderTimeout",
    "MediaLimitExceeded",
    "MissingDependency",
    "MultiStreamer",
    "NameConflict",
    "NotFound",
    "NotSupported",
    "ObjectChanged",
    "ObjectInfo",
    "PlanReport",
    "ProtocolError",
    "Quarantined",
    "RangeNotSatisfiable",
    "RemoteFileHandler",
    "Retry",
    "RingTooLarge",
    "ServerBusy",
    "SkippedVideo",
    "SourceSizes",
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
    "TransferInterrupted",
    "Unreachable",
    "UnreadableStream",
    "UntrustedAddress",
    "UntrustedHost",
    "VideoNotFound",
    "VideoProcessor",
    "VideoStreams",
    "WorkerDied",
    "__version__",
    "index_videos",
    "merge_states",
    "open_archive",
    "open_container",
    "open_store",
    "register_store",
    "yuv_to_rgb",
]

_MODULES: Final = {
    "Archive": "archive.archive",
    "ArchiveClips": "archive.clips",
    "ArchiveStreams": "archive.streams",
    "Batch": "loader.batch",
    "ButterflyTorch": "compat.butterfly.dataset",
    "ByteRange": "values",
    "CheckReport": "archive.ingest.report",
    "ChunkTracker": "compat.butterfly.dataset",
    "ContainerStore": "containers.store",
    "DistributedVideoDataset": "compat.butterfly.dataset",
    "EnvBatch": "loader.envstreamer",
    "EnvStreamer": "loader.envstreamer",
    "Field": "values",
    "IndexReport": "streams.make_index",
    "IngestReport": "archive.ingest.report",
    "IterStreams": "streams.iterate",
    "Limits": "config",
    "MultiStreamer": "loader.multistreamer",
    "ObjectInfo": "values",
    "PlanReport": "loader.plan_report",
    "Quarantined": "engine.quarantine",
    "RemoteFileHandler": "compat.butterfly.dataset",
    "Retry": "config",
    "SkippedVideo": "streams.unreadable",
    "SourceSizes": "streams.base",
    "Store": "stores.base",
    "Stream": "streams.base",
    "StreamDataset": "streams.base",
    "StreamInfo": "values",
    "StreamTable": "stream_table",
    "TextStreams": "streams.text",
    "Timeouts": "config",
    "VideoProcessor": "compat.butterfly.dataset",
    "VideoStreams": "streams.video",
    "index_videos": "streams.make_index",
    "merge_states": "loader.state",
    "open_archive": "archive.archive",
    "open_container": "containers.store",
    "open_store": "stores.registry",
    "register_store": "stores.registry",
    "yuv_to_rgb": "loader.yuv",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())
logging.getLogger(__name__).addFilter(SafeLogFilter())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value  # later accesses do not call __getattr__
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

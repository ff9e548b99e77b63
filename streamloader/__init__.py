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
from streamloader.torch_support import has_torch, make_missing_torch_error

if TYPE_CHECKING:
    from streamloader import compat
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
    from streamloader.datasets.directory.compressors import ZlibCompressor, ZstdCompressor
    from streamloader.datasets.directory.image_managers import (
        OpenCVDataManager,
        PillowDataManager,
        opencv_to_pil,
        pil_to_opencv,
    )
    from streamloader.datasets.directory.iterable import DirectoryIterableDataset
    from streamloader.datasets.directory.labelled import DirectoryDataset
    from streamloader.datasets.directory.managers import (
        BytesDataManager,
        JsonDataManager,
        NumpyDataManager,
        TextDataManager,
    )
    from streamloader.datasets.directory.virtual_directory import VirtualDirectory
    from streamloader.datasets.ipfs.dataset import IPFSDataset
    from streamloader.datasets.ipfs.exporter import IPFSDatasetExporter
    from streamloader.datasets.ipfs.iterable import IPFSIterableDataset
    from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType
    from streamloader.datasets.ipfs.skipped import SkippedObject
    from streamloader.datasets.shards.client import S3Client, make_client
    from streamloader.datasets.shards.lanes import SkippedSample
    from streamloader.datasets.shards.loader import ShardLoader
    from streamloader.datasets.shards.make_index import index_shards
    from streamloader.datasets.shards.quality import ShuffleQuality
    from streamloader.datasets.shards.remote_dataset import RemoteDataset
    from streamloader.datasets.shards.upload import upload_cv_dataset
    from streamloader.datasets.shards.writer import ShardWriter
    from streamloader.datasets.shuffle_buffer import ShuffleDataset
    from streamloader.engine.quarantine import Quarantined
    from streamloader.errors import (
        AccessDenied,
        CannotCopy,
        CatalogError,
        CatalogExists,
        CatalogNotFound,
        CatalogTimeout,
        CatalogTooNew,
        ClosedError,
        ConfigError,
        CorruptContainer,
        CorruptSample,
        CorruptShard,
        CorruptStream,
        DatasetError,
        DatasetExists,
        DatasetIncomplete,
        DatasetNotFound,
        DirectoryLocked,
        DuplicateName,
        FrameIndexError,
        FrameSizeError,
        IngestFailed,
        IntegrityError,
        IteratorBusy,
        LengthUnknown,
        LimitExceeded,
        LoaderTimeout,
        MediaLimitExceeded,
        MissingDependency,
        MissingField,
        NameConflict,
        NoSampler,
        NotEnoughMemory,
        NotFound,
        NotSupported,
        ObjectChanged,
        ProtocolError,
        RangeNotSatisfiable,
        RingTooLarge,
        ServerBusy,
        StateError,
        StorageFull,
        StoreError,
        StoreTimeout,
        StreamFailed,
        StreamloaderError,
        StreamNotFound,
        SystemLimit,
        TransferInterrupted,
        Unreachable,
        UnreadableStream,
        UntrustedAddress,
        UntrustedHost,
        VideoNotFound,
        WorkerDied,
        WrongProcess,
    )
    from streamloader.loader.batch import Batch
    from streamloader.loader.envstreamer import EnvBatch, EnvStreamer
    from streamloader.loader.groupstreamer import GroupStreamer
    from streamloader.loader.multistreamer import MultiStreamer
    from streamloader.loader.plan_report import PlanReport
    from streamloader.loader.state import merge_states
    from streamloader.loader.yuv import yuv_to_rgb
    from streamloader.stores.base import Store
    from streamloader.stores.registry import open_store, register_store
    from streamloader.stream_table import StreamTable
    from streamloader.streams.articles.dataset import ArticleStreams
    from streamloader.streams.audio import AudioStreams
    from streamloader.streams.base import SourceSizes, Stream, StreamDataset
    from streamloader.streams.camera import CameraStreams
    from streamloader.streams.find import find_streams
    from streamloader.streams.images import ImageStreams
    from streamloader.streams.iterate import IterStreams
    from streamloader.streams.lane_thread import LaneInfo, get_lane_info
    from streamloader.streams.make_index import IndexReport, index_videos
    from streamloader.streams.sound import AudioOptions
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
    "ArticleStreams",
    "AudioOptions",
    "AudioStreams",
    "Batch",
    "ButterflyTorch",
    "ByteRange",
    "BytesDataManager",
    "CameraStreams",
    "CannotCopy",
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
    "CorruptSample",
    "CorruptShard",
    "CorruptStream",
    "DatasetError",
    "DatasetExists",
    "DatasetIncomplete",
    "DatasetNotFound",
    "DirectoryDataset",
    "DirectoryIterableDataset",
    "DirectoryLocked",
    "DistributedVideoDataset",
    "DuplicateName",
    "EnvBatch",
    "EnvStreamer",
    "Field",
    "FrameIndexError",
    "FrameSizeError",
    "GroupStreamer",
    "IPFSDataset",
    "IPFSDatasetExporter",
    "IPFSIterableDataset",
    "IPFSObject",
    "ImageStreams",
    "IndexReport",
    "IngestFailed",
    "IngestReport",
    "IntegrityError",
    "IterStreams",
    "IteratorBusy",
    "JsonDataManager",
    "LaneInfo",
    "LengthUnknown",
    "LimitExceeded",
    "Limits",
    "LoaderTimeout",
    "MediaLimitExceeded",
    "MissingDependency",
    "MissingField",
    "MultiStreamer",
    "NameConflict",
    "NoSampler",
    "NotEnoughMemory",
    "NotFound",
    "NotSupported",
    "NumpyDataManager",
    "ObjectChanged",
    "ObjectInfo",
    "OpenCVDataManager",
    "PillowDataManager",
    "PlanReport",
    "ProtocolError",
    "Quarantined",
    "RangeNotSatisfiable",
    "RemoteDataset",
    "RemoteFileHandler",
    "RemoteFileType",
    "Retry",
    "RingTooLarge",
    "S3Client",
    "ServerBusy",
    "ShardLoader",
    "ShardWriter",
    "ShuffleDataset",
    "ShuffleQuality",
    "SkippedObject",
    "SkippedSample",
    "SkippedVideo",
    "SourceSizes",
    "StateError",
    "StorageFull",
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
    "SystemLimit",
    "TextDataManager",
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
    "VirtualDirectory",
    "WorkerDied",
    "WrongProcess",
    "ZlibCompressor",
    "ZstdCompressor",
    "__version__",
    "compat",
    "find_streams",
    "get_lane_info",
    "index_shards",
    "index_videos",
    "make_client",
    "merge_states",
    "open_archive",
    "open_container",
    "open_store",
    "opencv_to_pil",
    "pil_to_opencv",
    "register_store",
    "upload_cv_dataset",
    "yuv_to_rgb",
]

_MODULES: Final = {
    "Archive": "archive.archive",
    "ArchiveClips": "archive.clips",
    "ArchiveStreams": "archive.streams",
    "ArticleStreams": "streams.articles.dataset",
    "AudioOptions": "streams.sound",
    "AudioStreams": "streams.audio",
    "Batch": "loader.batch",
    "ButterflyTorch": "compat.butterfly.dataset",
    "ByteRange": "values",
    "BytesDataManager": "datasets.directory.managers",
    "CameraStreams": "streams.camera",
    "CheckReport": "archive.ingest.report",
    "ChunkTracker": "compat.butterfly.dataset",
    "ContainerStore": "containers.store",
    "DirectoryIterableDataset": "datasets.directory.iterable",
    "DirectoryDataset": "datasets.directory.labelled",
    "DistributedVideoDataset": "compat.butterfly.dataset",
    "EnvBatch": "loader.envstreamer",
    "EnvStreamer": "loader.envstreamer",
    "Field": "values",
    "GroupStreamer": "loader.groupstreamer",
    "IPFSDataset": "datasets.ipfs.dataset",
    "IPFSDatasetExporter": "datasets.ipfs.exporter",
    "IPFSIterableDataset": "datasets.ipfs.iterable",
    "IPFSObject": "datasets.ipfs.objects",
    "ImageStreams": "streams.images",
    "IndexReport": "streams.make_index",
    "IngestReport": "archive.ingest.report",
    "IterStreams": "streams.iterate",
    "JsonDataManager": "datasets.directory.managers",
    "Limits": "config",
    "MultiStreamer": "loader.multistreamer",
    "NumpyDataManager": "datasets.directory.managers",
    "ObjectInfo": "values",
    "OpenCVDataManager": "datasets.directory.image_managers",
    "PillowDataManager": "datasets.directory.image_managers",
    "PlanReport": "loader.plan_report",
    "Quarantined": "engine.quarantine",
    "RemoteDataset": "datasets.shards.remote_dataset",
    "RemoteFileHandler": "compat.butterfly.dataset",
    "RemoteFileType": "datasets.ipfs.objects",
    "Retry": "config",
    "S3Client": "datasets.shards.client",
    "ShardLoader": "datasets.shards.loader",
    "ShardWriter": "datasets.shards.writer",
    "ShuffleDataset": "datasets.shuffle_buffer",
    "ShuffleQuality": "datasets.shards.quality",
    "SkippedObject": "datasets.ipfs.skipped",
    "SkippedSample": "datasets.shards.lanes",
    "SkippedVideo": "streams.unreadable",
    "SourceSizes": "streams.base",
    "Store": "stores.base",
    "Stream": "streams.base",
    "StreamDataset": "streams.base",
    "StreamInfo": "values",
    "StreamTable": "stream_table",
    "TextDataManager": "datasets.directory.managers",
    "TextStreams": "streams.text",
    "Timeouts": "config",
    "VideoProcessor": "compat.butterfly.dataset",
    "VideoStreams": "streams.video",
    "VirtualDirectory": "datasets.directory.virtual_directory",
    "ZlibCompressor": "datasets.directory.compressors",
    "ZstdCompressor": "datasets.directory.compressors",
    "find_streams": "streams.find",
    "get_lane_info": "streams.lane_thread",
    "LaneInfo": "streams.lane_thread",
    "index_shards": "datasets.shards.make_index",
    "index_videos": "streams.make_index",
    "make_client": "datasets.shards.client",
    "merge_states": "loader.state",
    "open_archive": "archive.archive",
    "open_container": "containers.store",
    "open_store": "stores.registry",
    "opencv_to_pil": "datasets.directory.image_managers",
    "pil_to_opencv": "datasets.directory.image_managers",
    "register_store": "stores.registry",
    "upload_cv_dataset": "datasets.shards.upload",
    "yuv_to_rgb": "loader.yuv",
}

_NEED_TORCH: Final = frozenset(
    {
        "ButterflyTorch",
        "ChunkTracker",
        "DistributedVideoDataset",
        "RemoteFileHandler",
        "ShardLoader",
        "VideoProcessor",
        "yuv_to_rgb",
    }
)
if not has_torch():  # a star import takes what there is
    __all__ = [name for name in __all__ if name not in _NEED_TORCH]

logging.getLogger(__name__).addHandler(logging.NullHandler())
logging.getLogger(__name__).addFilter(SafeLogFilter())


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH and not has_torch():
        raise make_missing_torch_error(f"streamloader.{name} needs")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "compat":
        return importlib.import_module(f"{__name__}.compat")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value  # later accesses do not call __getattr__
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Small archives for tests: a few difficult clips, and the frames of a linear decode of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_clips import VARIANTS

from streamloader.archive.archive import Archive
from streamloader.media.video.convert import Converter
from streamloader.media.video.indexer import index_video
from streamloader.media.video.source import open_video
from streamloader.stores.io_thread import open_shared_store

# All have the same size, one is rotated, and each is cut into at least three chunks.
CLIPS = ("b_frames.mp4", "open_groups.mkv", "rotated.mp4", "variable_rate.mp4")
CHUNK_FRAMES = 15


def reference(path: Path, pix_fmt: str = "rgb24", size: tuple[int, int] | None = None) -> np.ndarray:
    """Return all frames (N, H, W, C) of a clip, upright, from a linear decode."""
    index = index_video(str(path))
    height, width = size or index.upright_size
    converter = Converter(pix_fmt, height, width, index.orientation, allow_direct=False)
    container, stream = open_video(str(path))
    with container:
        decoded = list(container.decode(stream))
    out = np.zeros((len(decoded), *converter.shape), np.uint8)
    outputs = converter.wrap_outputs([out])
    for row, frame in enumerate(decoded):
        converter.convert_into(frame, outputs, row)
    converter.close()
    return out


def make_archive(folder: Path, names: tuple[str, ...] = CLIPS, **options) -> dict[str, np.ndarray]:
    """Create an archive in ``folder/store``. Return the frames of its videos by name, in order."""
    sources = folder / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    paths = [VARIANTS[name](sources) for name in names]
    settings = {"chunk_frames": CHUNK_FRAMES, "jobs": 1, "progress": False, "name": "{stem}"} | options
    with Archive.create(folder / "store") as archive:
        archive.add([str(path) for path in paths], **settings)
        video_names = [video.name for video in archive.videos]
    return {name: reference(path) for name, path in zip(video_names, paths, strict=True)}


def copy_to_memory(folder: Path, name: str) -> str:
    """Copy the chunks of an archive to a store in memory. Return its address."""
    store, root = open_shared_store(f"memory://{name}/here")
    with store:
        for path in sorted((folder / "chunks").rglob("*")):
            if path.is_file():
                store.write(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{name}/here"

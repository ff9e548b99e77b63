"""Small archives for tests: a few awkward clips, and what a linear decode of each gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_clips import VARIANTS

from streamloader.archive.archive import Archive
from streamloader.media.video.convert import Converter
from streamloader.media.video.indexer import index_video
from streamloader.media.video.source import open_video
from streamloader.stores.io_thread import shared_store

# Of the same size, with one that is turned; each is cut into three chunks or more.
CLIPS = ("b_frames.mp4", "open_groups.mkv", "rotated.mp4", "variable_rate.mp4")
CHUNK_FRAMES = 15


def reference(path: Path, pix_fmt: str = "rgb24", size: tuple[int, int] | None = None) -> np.ndarray:
    """All frames (n, H, W, C) of a clip, upright, by a plain decode from its beginning."""
    index = index_video(str(path))
    height, width = size or index.shown_size
    converter = Converter(pix_fmt, height, width, index.turn, allow_direct=False)
    container, stream = open_video(str(path))
    with container:
        decoded = list(container.decode(stream))
    out = np.zeros((len(decoded), *converter.shape), np.uint8)
    targets = converter.targets([out])
    for row, frame in enumerate(decoded):
        converter.into(frame, targets, row)
    converter.close()
    return out


def make_archive(folder: Path, names: tuple[str, ...] = CLIPS, **options) -> dict[str, np.ndarray]:
    """Make an archive in ``folder/store``; return name -> frames of its videos, in their order."""
    sources = folder / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    paths = [VARIANTS[name](sources) for name in names]
    settings = {"chunk_frames": CHUNK_FRAMES, "jobs": 1, "progress": False} | options
    with Archive.create(folder / "store") as archive:
        archive.add([str(path) for path in paths], **settings)
        known = [video.name for video in archive.videos]
    return {name: reference(path) for name, path in zip(known, paths, strict=True)}


def copy_to_memory(folder: Path, name: str) -> str:
    """Copy the chunks of an archive to a store in memory; return its address."""
    store, root = shared_store(f"memory://{name}/here")
    with store:
        for path in sorted((folder / "chunks").rglob("*")):
            if path.is_file():
                store.write(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory://{name}/here"

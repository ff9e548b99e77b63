"""How long until many indexed videos are opened? From an index file of a million videos, and from the cache.

``python -m benchmarks.index_file [--quick] [--rounds N] [--json FILE]``

The videos are names of one real clip: a folder of a thousand hard links, and links to that folder. Their indexes are
real, so all of them can be played.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.clips import cache_folder
from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_FILES = 1000  # in one folder
_LANES, _WINDOW = 8, 16


def _make_names(count: int) -> tuple[Path, list[str]]:
    """Return the folder of `count` names of one clip, and the names, which are created if they are missing."""
    import av
    import numpy as np

    root = cache_folder() / "index-file"
    files = root / "folder-0000"
    if not files.exists():
        files.mkdir(parents=True)
        with av.open(str(root / "clip.mp4"), "w") as output:
            stream = output.add_stream("libx264", 25)
            stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
            pictures = np.random.default_rng(0).integers(0, 255, (4, 256, 340, 3), np.uint8)
            for number in range(250):
                picture = np.repeat(np.repeat(pictures[number // 80, ::16, ::16], 16, 0), 16, 1)[:256, :340]
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            output.mux(stream.encode(None))
        for number in range(_FILES):
            os.link(root / "clip.mp4", files / f"video-{number:04}-of-a-kinetics-like-data-set.mp4")
    folders = -(-count // _FILES)
    for number in range(1, folders):
        link = root / f"folder-{number:04}"
        if not link.is_symlink():
            link.symlink_to("folder-0000")
    names = sorted(entry.name for entry in files.iterdir())
    return root, [f"folder-{number:04}/{name}" for number in range(folders) for name in names][:count]


def _make_index(count: int) -> tuple[str, float]:
    """Return the path of an index file of `count` videos, and the time in seconds that writing it took, if it did."""
    import numpy as np

    from streamloader.media.video.files import file_version
    from streamloader.media.video.index import IndexSettings
    from streamloader.media.video.index_blob import encode_index
    from streamloader.media.video.index_cache import load_index
    from streamloader.media.video.index_file import FileVersion, IndexFileWriter
    from streamloader.media.video.summary import SUMMARY, summarize_index

    root, names = _make_names(count)
    path = root / f"{count}.sqlite"
    if path.exists():
        return str(path), 0.0
    index = load_index(str(root / "clip.mp4"))
    start = time.perf_counter()
    version, data = FileVersion(*file_version(str(root / "clip.mp4"))), encode_index(index)
    with IndexFileWriter(f"{path}.new", IndexSettings()) as writer:
        ids = np.array([writer.add_index(version, data) for _ in names])
        records = np.frombuffer(summarize_index(index) * count, SUMMARY)
        writer.finish(names, records, ids, str(path))
    return str(path), time.perf_counter() - start


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def measure(what: str, count: int) -> dict[str, Any]:
    """Measure one row of a table."""
    measures = {"open": _measure_open, "first": _measure_first_batch, "warm": _measure_warm_start}
    return measures[what](count)


def _measure_open(count: int) -> dict[str, Any]:
    """Open an index file in a process that has imported nothing but the package. A fresh file is written before."""
    import subprocess

    path, _ = _make_index(count)
    program = (
        "import sys, time, resource, anyio, streamloader as sl; sl.VideoStreams; start = time.perf_counter()\n"
        "table = anyio.run(sl.VideoStreams.from_index(sys.argv[1]).index); print(time.perf_counter() - start)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(table))\n"
    )
    lines = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    seconds, rss, _ = lines.split()
    return {"open_s": float(seconds), "rss_mib": float(rss), "bytes_per_video": os.path.getsize(path) / count}


def _measure_first_batch(count: int) -> dict[str, Any]:
    """Measure the time to the first batch in a process that has torch loaded, as a training process has."""
    import torch  # noqa: F401

    import streamloader as sl

    path, _ = _make_index(count)
    start = time.perf_counter()
    loader = sl.MultiStreamer(sl.VideoStreams.from_index(path), _LANES, _WINDOW, num_workers=2)
    built = time.perf_counter()
    next(iter(loader))
    first = time.perf_counter()
    loader.close()
    return {"first_batch_s": first - start, "built_s": built - start, "rss_mib": _rss_mib()}


def _measure_warm_start(count: int) -> dict[str, Any]:
    """Measure the time in which videos are described whose indexes are in the cache, and that of one lookup."""
    import tempfile

    import anyio

    import streamloader as sl
    from streamloader.media.video.index import IndexSettings
    from streamloader.media.video.index_blob import encode_index
    from streamloader.media.video.index_cache import IndexedVideo, VideoVersion, load_index, store_indexes
    from streamloader.media.video.summary import summarize_index

    root, names = _make_names(count)
    paths = [f"{root}/{name}" for name in names]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STREAMLOADER_CACHE"] = folder
        index = load_index(paths[0])
        status = os.stat(paths[0])
        version = status.st_size, status.st_mtime_ns
        item = summarize_index(index), encode_index(index)
        store_indexes([IndexedVideo(VideoVersion(path, version), *item) for path in paths], IndexSettings())
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        from streamloader.stores.addresses import expand_addresses

        start = time.perf_counter()
        expand_addresses(paths)
        listed = time.perf_counter()
        table = anyio.run(sl.VideoStreams(paths).index)
        described = time.perf_counter()
        load_index(paths[0])
        lookups = paths[:: max(1, count // 1000)]
        one = time.perf_counter()
        for path in lookups:
            load_index(path, version=version)
        end = time.perf_counter()
    assert len(table) == count
    return {
        "warm_us": (described - listed) / count * 1e6,
        "list_us": (listed - start) / count * 1e6,
        "lookup_us": (end - one) / len(lookups) * 1e6,
        "bytes_per_video": size / count,
        "warm_s": described - listed,
    }


def question(quick: bool) -> OwnQuestion:
    """Return the question with its tables."""
    many, some = (10_000, 4_000) if quick else (1_000_000, 240_000)
    opening = OwnTable(
        "open",
        "Opening an index file",
        "`VideoStreams.from_index(path)` and `index()`, in a process that has loaded the package; peak memory (RSS) of "
        "this process in MiB, including Python and NumPy (about 60 MiB). The clips have 250 frames; each has its own "
        "name, of 64 characters.",
        [Row(f"{count:,} videos", {"what": "open", "count": count}) for count in (1000, many)],
        (
            Column("open_s", "open, s", 3, less_is_better=True),
            Column("rss_mib", "RSS, MiB", 0),
            Column("bytes_per_video", "bytes/video", 0),
        ),
    )
    first = OwnTable(
        "first",
        "First batch from an index file",
        f"{_LANES} lanes, windows of {_WINDOW} steps, 2 worker processes, shuffled. From the call of the loader's "
        "constructor, in a process with torch.",
        [Row(f"{count:,} videos", {"what": "first", "count": count}) for count in (1000, many)],
        (
            Column("first_batch_s", "first batch, s", 2, less_is_better=True),
            Column("built_s", "constructor, s", 2),
            Column("rss_mib", "RSS, MiB", 0),
        ),
    )
    warm = OwnTable(
        "warm",
        "Warm start from the cache",
        "`VideoStreams(paths).index()` with the indexes of all local files in the cache, per file. It includes listing "
        "the files, which is also measured alone. Lookup: `load_index` of one file, as a worker does when it opens it.",
        [Row(f"{count:,} files", {"what": "warm", "count": count}) for count in sorted({4_000, some})],
        (
            Column("warm_us", "warm start, µs/file", 1, less_is_better=True),
            Column("list_us", "of it listing, µs/file", 1),
            Column("lookup_us", "lookup, µs", 1),
            Column("bytes_per_video", "bytes/file", 0),
            Column("warm_s", "warm start, s", 2),
        ),
    )
    return OwnQuestion("index_file", "Many indexed videos", "benchmarks.index_file", (opening, first, warm))


if __name__ == "__main__":
    main(question)

"""How long does the first index of a video take, without a cache? Compared to what other readers do to open it exactly.

``python -m benchmarks.index [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_SIZES = ((340, 256), (1280, 720))
_SHARES = 20  # of the files, between which the readers alternate
_HUGE_BYTES = 10 << 30
_MIN_FREE_SHARE = 1.2


@contextmanager
def _link_clips(width: int, height: int, suffix: str, count: int) -> Iterator[list[str]]:
    """Yield the paths of `count` files: links to the clips of one size, each clip equally often."""
    from benchmarks.clips import indexed_clips

    clips = indexed_clips(width, height, suffix)
    with tempfile.TemporaryDirectory(dir=Path(clips[0]).parent) as folder:
        paths = [os.path.join(folder, f"{number:04d}.{suffix}") for number in range(count)]
        for number, path in enumerate(paths):
            os.link(clips[number % len(clips)], path)
        yield paths


def _demux(path: str) -> None:
    import av

    with av.open(path) as container:
        for packet in container.demux(container.streams.video[0]):
            _ = packet.pts, packet.is_keyframe


def _scan(path: str) -> None:
    from torchcodec.decoders import VideoDecoder

    VideoDecoder(path, seek_mode="exact")


def _index(path: str) -> None:
    from streamloader.media.video.indexer import index_video

    index_video(path)


def _index_ends(path: str) -> None:
    from streamloader.media.video.indexer import index_video

    index_video(path, verify="ends")


_READERS = {"tables": _index, "ends": _index_ends, "torchcodec": _scan, "demux": _demux}


def _time_ms(read: Callable[[str], None], paths: list[str]) -> float:
    start = time.perf_counter()
    for path in paths:
        read(path)
    return 1000 * (time.perf_counter() - start) / len(paths)


def measure(**args: Any) -> dict[str, Any]:
    """Measure one row, in a fresh process."""
    return _measure_huge(**args) if "size_bytes" in args else _measure_clips(**args)


def _measure_clips(width: int, height: int, suffix: str, counts: dict[str, int]) -> dict[str, Any]:
    """Measure the time per file of each reader, in alternation. `counts` has the number of files for each."""
    times: dict[str, list[float]] = {name: [] for name in counts}
    with _link_clips(width, height, suffix, max(counts.values())) as paths:
        for name in counts:
            _READERS[name](paths[0])  # imports, and the page cache
        for share in range(_SHARES):
            for name, count in counts.items():
                part = paths[share * count // _SHARES : (share + 1) * count // _SHARES]
                if part:
                    times[name].append(_time_ms(_READERS[name], part))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"{name}_ratio": medians["tables"] / value for name, value in medians.items() if name != "tables"}
    return {**medians, **ratios, "speedup": medians["ends"] / medians["tables"]}


def _measure_huge(size_bytes: int) -> dict[str, Any]:
    """Measure the index of one large MP4, which is written before and removed afterwards."""
    from streamloader.media.video.indexer import index_video

    with tempfile.TemporaryDirectory(dir=_huge_folder()) as folder:
        path = os.path.join(folder, "huge.mp4")
        _write_huge(path, min(size_bytes, int(shutil.disk_usage(folder).free / _MIN_FREE_SHARE)))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            frames = len(index_video(path))
            times.append(time.perf_counter() - start)
        return {
            "first_ms": 1000 * times[0],
            "median_ms": 1000 * statistics.median(times),
            "gib": os.path.getsize(path) / (1 << 30),
            "frames": frames,
        }


def _huge_folder() -> str:
    from benchmarks.clips import cache_folder

    return str(cache_folder())


def _write_huge(path: str, size_bytes: int) -> None:
    """Write the packets of one clip again and again, each padded with a filler NAL unit to 64 KiB."""
    import av

    from benchmarks.clips import indexed_clips

    with av.open(indexed_clips(340, 256, "mp4")[0]) as container, av.open(path, "w") as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
        duration = max(pts for _, pts, _, _ in packets) + packets[1][2] - packets[0][2]
        for number in range(size_bytes >> 16):
            data, pts, dts, is_key = packets[number % len(packets)]
            filler = (1 << 16) - len(data) - 4
            packet = av.Packet(data + filler.to_bytes(4, "big") + b"\x0c" + b"\xff" * (filler - 2) + b"\x80")
            shift = number // len(packets) * duration
            packet.pts, packet.dts, packet.time_base, packet.is_keyframe = (
                pts + shift,
                dts + shift,
                stream.time_base,
                is_key,
            )
            packet.stream = copied
            output.mux(packet)


def question(quick: bool) -> OwnQuestion:
    """Return the question with its tables."""
    few = {"tables": 40, "ends": 2, "torchcodec": 20, "demux": 20}
    many = {"tables": 1000, "ends": 8, "torchcodec": 200, "demux": 200}
    rows = [
        Row(f"{suffix}, {width}x{height}", {
            "width": width, "height": height, "suffix": suffix, "counts": few if quick else many,
        })
        for suffix in ("mp4", "mkv", "ts")
        for width, height in _SIZES
    ]  # fmt: skip
    clips = OwnTable(
        "clips",
        "The first index of ten-second clips",
        "Milliseconds per file in one process, without any cache of indexes; the files are in the page cache. "
        '`verify="tables"` is the default; `"ends"` also decodes the first frames and the last group of pictures, '
        'as all versions before did. torchcodec: `VideoDecoder(path, seek_mode="exact")`, which scans the file. '
        "Demux: PyAV's `av.open`, then timestamp and key flag of each packet of the video. The readers alternate on "
        f"the same files: {many['tables']} for tables, {many['torchcodec']} for torchcodec and demux, {many['ends']} "
        "for ends. 250 frames of H.264 (x264's defaults, one group of pictures), without sound.",
        rows,
        (
            Column("tables", "tables, ms", 2),
            Column("ends", "ends, ms", 0),
            Column("torchcodec", "torchcodec, ms", 2),
            Column("demux", "demux, ms", 2),
            Column("torchcodec_ratio", "tables / torchcodec", 2),
            Column("demux_ratio", "tables / demux", 2),
            Column("speedup", "ends / tables", 0),
        ),
    )
    huge = OwnTable(
        "huge",
        "The index of one large MP4",
        "A local file, written just before. Only `moov` and the beginning of the first frame are read.",
        [Row("large file", {"size_bytes": (1 << 28) if quick else _HUGE_BYTES})],
        (
            Column("gib", "size, GiB", 1),
            Column("frames", "frames", 0),
            Column("first_ms", "first index, ms", 0),
            Column("median_ms", "median of 5, ms", 0),
        ),
    )
    return OwnQuestion("index", "Index", "benchmarks.index", (clips, huge))


if __name__ == "__main__":
    main(question)

"""What does reading every n-th frame cost? Against decoding every frame, and readers by frame number.

``python -m benchmarks.stride [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.clips import clips, large_clip
from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_WINDOW = 16
_READERS = ("every", "torchcodec", "approximate", "decord")


def _make_readers(path: str, stride: int) -> dict[str, Callable[[], Any]]:
    """Return name -> function that opens the video, and reads its frames 0, stride, 2 * stride, ... as RGB."""
    import anyio
    import numpy as np

    import streamloader as sl
    from benchmarks.peers.random_readers import Decord, TorchCodec
    from streamloader.media.video.convert import Converter
    from streamloader.media.video.index_cache import load_index
    from streamloader.media.video.reader import FrameReader
    from streamloader.streams.base import stream_rng

    dataset = sl.VideoStreams(path, stride=stride)
    (info,) = anyio.run(dataset.index)
    assert info.length is not None
    index = load_index(path)
    numbers = list(range(0, len(index), stride))
    out = np.empty((info.length, index.height, index.width, 3), np.uint8)

    async def play() -> None:
        stream = await dataset.open(info, stream_rng(0, 0, 0))
        for step in range(0, len(out), _WINDOW):
            await stream.read_into({"data": out[step : step + _WINDOW]})
        await stream.aclose()

    def ours() -> Any:
        anyio.run(play)
        return out

    def every() -> Any:
        reader = FrameReader(path, index)
        converter = Converter("rgb24", index.height, index.width)
        outputs = converter.wrap_outputs([out])
        for number in range(numbers[-1] + 1):
            frame = reader.read_frame(number)
            if number % stride == 0:
                converter.convert_into(frame, outputs, number // stride)
        reader.close()
        converter.close()
        return out

    return {
        "ours": ours,
        "every": every,
        "torchcodec": lambda: TorchCodec(path, "exact", 1).get(numbers),
        "approximate": lambda: TorchCodec(path, "approximate", 1).get(numbers),
        "decord": lambda: Decord(path, 1).get(numbers),
    }


def measure(gop: int, stride: int, passes: int) -> dict[str, float]:
    """Measure all readers alternately. Return milliseconds, and the times of the others divided by ours."""
    path = large_clip(gop) if gop else clips(1)[0]
    readers = _make_readers(path, stride)
    times: dict[str, list[float]] = {name: [] for name in readers}
    expected = readers["every"]().copy()
    assert (readers["ours"]() == expected).all(), "leaving out packets has changed the frames"
    for read in readers.values():  # import, and warm the file cache
        read()
    for _ in range(passes):
        for name, read in readers.items():
            start = time.perf_counter()
            read()
            times[name].append(time.perf_counter() - start)
    figures = {"ms": 1000 * statistics.median(times["ours"])}
    for name in _READERS:
        figures[name] = statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
    return figures


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    cases = [(0, 8, "640x360, key frame every 250"), (250, 8, "1280x720, every 250"), (12, 24, "1280x720, every 12")]
    cases += [(12, 8, "1280x720, every 12"), (250, 2, "1280x720, every 250"), (250, 300, "1280x720, every 250")]
    if quick:
        cases = cases[:1]
    table = OwnTable(
        "stride",
        "Every n-th frame of an H.264 file",
        "libx264's defaults (3 B frames, pyramid) except for the key frames. One video, opened, read to its end as RGB "
        "of its own size, and closed, in one thread each. The other columns are times divided by ours: how many times "
        "faster streamloader is than decoding every frame and dropping the others (its own reader), than torchcodec's "
        "`get_frames_at` in both seek modes, and than decord's `get_batch`.",
        [
            Row(f"stride {stride}: {name}", {"gop": gop, "stride": stride, "passes": 1 if quick else 3})
            for gop, stride, name in cases
        ],
        (
            Column("ms", "streamloader, ms", 1, less_is_better=True),
            Column("every", "every frame", 2),
            Column("torchcodec", "torchcodec exact", 2),
            Column("approximate", "torchcodec approximate", 2),
            Column("decord", "decord", 2),
        ),
    )
    return OwnQuestion("stride", "Every n-th frame", "benchmarks.stride", (table,))


if __name__ == "__main__":
    main(question)

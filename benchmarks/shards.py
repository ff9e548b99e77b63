"""How fast are independent samples? `RemoteDataset` beside webdataset, MosaicML Streaming and LitData.

``python -m benchmarks.shards [--quick] [--rounds N] [--json FILE]`` measures speed and memory.
``python -m benchmarks.shards --quality`` prints how well the orders are shuffled.

The same JPEG images, in the format of each library; webdataset reads the tar files that streamloader wrote. The peers
are installed by hand, see ``benchmarks/README.md``: the requirements of one of them exclude those of other benchmarks.
"""

from __future__ import annotations

import sys

from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job
from benchmarks.peers.shard_images import BUFFER_SAMPLES, SETS

_PEERS = ("webdataset", "MosaicML Streaming", "LitData")
_LATENCY_S = 0.02
_CONTENDERS = (
    Contender("streamloader", "streamloader", "shards_peer"),
    Contender("streamloader, unverified", "streamloader, verify=False", "shards_peer", {"verify": False}),
    Contender("webdataset", f"webdataset, shuffle({BUFFER_SAMPLES})", "webdataset_peer"),
    Contender("MosaicML Streaming", "MosaicML Streaming, shuffle=True", "mosaic_peer"),
    Contender("LitData", "LitData, shuffle=True", "litdata_peer"),
)
_RATE = Column("samples_per_s", "samples/s")
_FIRST = Column("first_batch_s", "first batch, s", 2, less_is_better=True)
_CPU = Column("cpu_us_per_sample", "CPU us/sample", 1, less_is_better=True)
_READER_NOTE = (
    "Memory of {what}, in MiB: anonymous and shared memory, and RSS, which also counts files in the page cache. "
)
_SERVER_NOTE = (
    f"From SeaweedFS on this machine, through a proxy that delays each request by {1000 * _LATENCY_S:.0f} ms; server "
    "and proxy share the processor with the loader. A whole epoch, from the opening of the data set on, and the first "
    "one, so nothing is stored locally before; MosaicML Streaming and LitData copy the files to the local disk. "
    "webdataset reads through curl, with signed URLs. "
)
_ORDER_NOTE = "All of them shuffle. "


def _make_columns(what: str) -> tuple[tuple[Column, ...], str]:
    columns = (Column("reader.kept_mib", "memory", 0, less_is_better=True), Column("reader.rss_mib", "RSS", 0))
    return (_RATE, _FIRST, _CPU, *columns), _READER_NOTE.format(what=what)


def _make_bars(rate: str, factor: float, *, memory: bool = True) -> tuple[Bar, ...]:
    bars = [
        Bar(rate, "streamloader", _PEERS, "samples_per_s", factor),
        Bar(f"{rate}, verify=False", "streamloader, unverified", _PEERS, "samples_per_s", factor),
        Bar("time to the first batch, of the best", "streamloader", _PEERS, "first_batch_s", 1.0, at_most=True),
    ]
    if memory:
        bars.append(Bar("memory, of the smallest", "streamloader", _PEERS, "reader.kept_mib", 1.0, at_most=True))
    return tuple(bars)


def _make_table(
    name: str, title: str, note: str, images: str, *, decode: bool, server: bool, seconds: float, factor: float
) -> Table:
    workers = 2 if decode else 0
    columns, reader = _make_columns("the larger of the two workers" if decode else "the process, grown since the start")
    options = {"images": images, "decode": decode}
    options |= {"latency": _LATENCY_S} if server else {"epochs": True}
    batch = 64 if decode else 256
    args = {"whole": True} if server else {"warm": 2, "seconds": seconds}
    bars = _make_bars("rate, of the best", factor, memory=not server or decode)
    note = f"{_SERVER_NOTE if server else ''}{note}{_ORDER_NOTE}{reader}"
    job = Job("images", (SETS[images].side,) * 2 + (3,), batch, 1, workers, options=options)
    return Table(name, title, note.strip(), job, "samples", args, _CONTENDERS, columns, bars)


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    small, photos = ("few small", "few photos") if quick else ("small", "photos")
    seconds = 1.0 if quick else 5.0
    many, few = f"{SETS[small].images:,} images of {SETS[small].side} pixels", f"{SETS[photos].images:,} photos"
    undecoded = "The consumer takes samples as the library hands them out: the bytes of the image, and the label. "
    decoded = (
        "Two workers of a DataLoader decode with Pillow, by the same function, and stack batches of 64 images of "
        f"{SETS[photos].side} pixels. "
    )
    return Question(
        "shards",
        "Samples from shards",
        (
            _make_table(
                "undecoded", f"Not decoded, local disk, one process: {many}", undecoded, small,
                decode=False, server=False, seconds=seconds, factor=2.0,
            ),
            _make_table(
                "decoded", f"Decoded, local disk, two workers: {few}", decoded, photos,
                decode=True, server=False, seconds=seconds, factor=1.0,
            ),
            _make_table(
                "remote", f"Not decoded, S3 with a latency of 20 ms, one process: {few}", undecoded, photos,
                decode=False, server=True, seconds=seconds, factor=2.0,
            ),
            _make_table(
                "remote-decoded", f"Decoded, S3 with a latency of 20 ms, two workers: {few}", decoded, photos,
                decode=True, server=True, seconds=seconds, factor=1.0,
            ),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    if "--quality" in sys.argv[1:]:
        from benchmarks.peers.shuffle_quality import print_quality

        print_quality()
    else:
        main(question)

"""How do I read any frame of many videos as if they were one array? (`python examples/archive_local.py [VIDEOS...]`).

Videos are cut into chunks once, without encoding them. Every frame then has a number, and a slice reads and decodes
only what it needs: single frames, slices across the border of two videos, shuffled clips, or streams.
"""

from __future__ import annotations

import sys
import tempfile
import time

import torch
from torch.utils.data import DataLoader

import streamloader as sl
from streamloader.demo.clips import fetch_clips


def main() -> None:
    """Create an archive, and read it in each supported way."""
    videos = sys.argv[1:] or [str(path) for path in fetch_clips().values()]
    with tempfile.TemporaryDirectory() as folder, sl.Archive.create(folder, size=(96, 128)) as archive:
        report = archive.add(videos, chunk_frames=100, jobs=0)
        print(f"{len(report.added)} videos, {len(archive):,} frames, {report.frames_per_second:,.0f} frames/s")

        first, second = archive.videos[0], archive.videos[1]
        border = archive[second.start - 3 : second.start + 3]  # uint8 (6, 96, 128, 3)
        same = torch.equal(border[:3], first[-3:]) and torch.equal(border[3:], archive[second.name][:3])
        print(f"a slice across the border of {first.name} and {second.name} contains both: {same}")
        print(f"after 2.5 seconds of {first.name}, frame {first.number_at(2.5)} is shown: {tuple(first.at(2.5).shape)}")

        clips = sl.ArchiveClips(archive, window=8, stride=2)
        started = time.monotonic()
        read = sum(len(batch) for batch in DataLoader(clips, batch_size=4, shuffle=True))
        print(f"{read} shuffled clips of 8 frames: {read / (time.monotonic() - started):,.0f} clips/s")

        streams = sl.ArchiveStreams(archive, size=(96, 128))
        with sl.MultiStreamer(streams, batch_size=2, window=16) as loader:
            steps = sum(int(batch.valid.sum()) for batch in loader)
        print(f"as streams, every frame was delivered once: {steps == len(archive)}")


if __name__ == "__main__":
    main()

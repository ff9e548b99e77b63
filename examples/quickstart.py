"""How do I stream a folder of videos into a recurrent model? (`python examples/quickstart.py [VIDEOS...]`)."""

from __future__ import annotations

import sys

import torch

import streamloader as sl
from streamloader.demo.clips import fetch_clips

videos = sys.argv[1:] or [str(path) for path in fetch_clips().values()]

with sl.MultiStreamer(sl.VideoStreams(videos, size=(24, 32)), batch_size=4, window=16, num_workers=2) as loader:
    model = torch.nn.GRUCell(3 * 24 * 32, 64)
    hidden = torch.zeros(4, 64)
    for batch in loader:
        frames = batch.data.float().div(255).flatten(2)  # (B, T, C*H*W)
        keep = batch.keep  # 0.0 on the first step of a stream
        hidden = hidden.detach()  # carried over from the previous batch
        for step in range(16):
            hidden = model(frames[:, step], hidden * keep[:, step, None])
        starts = [loader.streams[stream].key for stream in batch.stream[batch.reset].tolist()]
        print(f"batch {batch.index + 1:2} of {len(loader)}", *(f"  starts: {key}" for key in starts), sep="\n")
    stats = loader.stats()
    print(f"{stats.steps_per_second:,.0f} frames/s, waiting for data {stats.wait_share:.0%} of the time")

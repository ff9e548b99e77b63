"""Adds videos to a catalog until it is killed: ``python catalog_writer.py URL``.

Reads the number of a round on each line of its input, forks a writer for it, and prints the process id of the writer.
A writer prints the number of each video after its commit.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from streamloader.archive.catalog.registry import open_catalog
from streamloader.testing.catalogs.binding import make_sample_video


def sizes(seed):
    """Return how many frames the chunks of a video have."""
    return [1 + (seed + at) % 5 for at in range(1 + seed % 7)]


async def write(url, number):
    chance = random.Random(number)
    catalog = open_catalog(url)
    for step in range(10**6):
        seed = number * 1000 + step
        video = make_sample_video(seed, sizes(seed))
        await catalog.begin_job(video.job)
        at = 0
        while at < len(video.chunks):
            count = chance.randint(1, 3)
            await catalog.stage_chunks(video.chunks[at : at + count])
            at += count
        await catalog.record_heartbeat(video.content, float(step))
        if chance.random() < 0.2:
            await catalog.abandon_job(video.content)
        else:
            await catalog.commit_video(video.video)
            os.write(1, b"%d\n" % seed)


def main():
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            sys.stdin.close()
            asyncio.run(write(sys.argv[1], int(line)))
        os.write(1, b"pid %d\n" % pid)
        os.waitpid(pid, 0)
        os.write(1, b"dead %d\n" % pid)


if __name__ == "__main__":
    main()

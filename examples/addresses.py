"""How do I stream data from other machines?

An address can replace any path, and one list may mix paths and addresses. Here, 4 texts are on this machine and 8 are
on a web server, which also runs on this machine, so that the example needs no network. The schemes ssh://, s3://,
gs://, az:// and ipfs:// work in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

import streamloader as sl


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve a folder, and yield its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=10)

    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    run(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    run(site.start())
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    run(runner.cleanup())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def main() -> None:
    """Stream from both locations, and compare the bytes with the written ones."""
    with tempfile.TemporaryDirectory() as name:
        local, remote = Path(name, "local"), Path(name, "remote")
        written = {}
        for number in range(12):
            path = (local if number < 4 else remote) / f"part-{number:03}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(np.random.default_rng(number).integers(97, 123, 5000 + 700 * number, np.uint8).tobytes())
            written[path.name] = path.read_bytes()
        with web_server(remote) as address:
            dataset = sl.TextStreams(
                [f"{local}/*.txt", f"{address}/part-{{004..011}}.txt"],  # the folder need not be listed by the server
                storage_options={"retry": sl.Retry(attempts=4), "cache_dir": f"{name}/cache"},
            )
            received: dict[str, bytes] = {}
            with sl.MultiStreamer(dataset, batch_size=4, window=500, num_workers=2, seed=0) as loader:
                for batch in loader:
                    arrays = batch.numpy()
                    for row, stream, valid in zip(arrays["data"], arrays["stream"], arrays["valid"], strict=True):
                        for ordinal in dict.fromkeys(stream[valid]):  # a row may end one text and start another
                            key = loader.streams[ordinal].key
                            received[key] = received.get(key, b"") + row[stream == ordinal].tobytes()
        sources = Counter(key.split("part")[0].rstrip("/").replace(name, "...") for key in received)
        for source, count in sorted(sources.items()):
            print(f"{count:2} streams from {source}")
        same = {key.rpartition("/")[2]: data for key, data in received.items()} == written
        print(f"all {sum(map(len, received.values())):,} bytes equal the written ones: {same}")


if __name__ == "__main__":
    main()

"""How do I stream what lies on other machines?

An address goes wherever a path goes, and one list may mix them: here 4 texts of this machine and 8 of a web server
(started on this machine, so that the example needs no network). ssh://, s3://, gs://, az:// and ipfs:// work alike.
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
    """Serve a folder; yield its address."""
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
    """Stream from both places, and compare with what was written."""
    with tempfile.TemporaryDirectory() as name:
        here, there = Path(name, "here"), Path(name, "there")
        written = {}
        for number in range(12):
            path = (here if number < 4 else there) / f"part-{number:03}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(np.random.default_rng(number).integers(97, 123, 5000 + 700 * number, np.uint8).tobytes())
            written[path.name] = path.read_bytes()
        with web_server(there) as address:
            dataset = sl.TextStreams(
                [f"{here}/*.txt", f"{address}/part-{{004..011}}.txt"],  # HTTP has no listings, so: braces
                storage_options={"retry": sl.Retry(attempts=4), "cache_dir": f"{name}/cache"},
            )
            came: dict[str, bytes] = {}
            with sl.MultiStreamer(dataset, batch_size=4, window=500, num_workers=2, seed=0) as loader:
                for batch in loader:
                    arrays = batch.numpy()
                    for row, stream, valid in zip(arrays["data"], arrays["stream"], arrays["valid"], strict=True):
                        for ordinal in dict.fromkeys(stream[valid]):  # a row may end one text and begin another
                            key = loader.streams[ordinal].key
                            came[key] = came.get(key, b"") + row[stream == ordinal].tobytes()
        places = Counter(key.split("part")[0].rstrip("/").replace(name, "...") for key in came)
        for place, count in sorted(places.items()):
            print(f"{count:2} streams from {place}")
        same = {key.rpartition("/")[2]: data for key, data in came.items()} == written
        print(f"all {sum(map(len, came.values())):,} bytes are those that were written: {same}")


if __name__ == "__main__":
    main()

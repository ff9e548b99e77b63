"""Objects of servers without ranges: every byte is transferred once, however often parts are read."""

from __future__ import annotations

import asyncio
import functools
import http.server
import random
import threading

import pytest
from servers.web import serve_responses

from streamloader.config import Limits
from streamloader.errors import ObjectChanged, TransferInterrupted
from streamloader.stores.http.store import HttpStore
from streamloader.stores.io_thread import close_shared_stores
from streamloader.stores.readahead import RemoteFile
from streamloader.testing.faults.http import HttpFault, HttpServer
from streamloader.values import ByteRange

DATA = random.Random(5).randbytes(3_000_017)
SIZE = len(DATA)


def make_spans():
    choose = random.Random(6)
    starts = [choose.randrange(SIZE) for _ in range(25)]
    return [ByteRange(start, min(SIZE, start + choose.randrange(1, 200_000))) for start in starts]


def play(use, *, etags=True, dates=True, **options):
    async def main():
        async with HttpServer({"a.bin": DATA}, etags=etags, dates=dates) as server:
            server.fault = HttpFault("range-ignored", everywhere=True)
            async with HttpStore(server.url, **options) as store, asyncio.timeout(60):
                return await use(server, store)

    return asyncio.run(main())


def count_transfers(server):
    return len([request for request in server.requests if request.method == "GET"])


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_parts_in_any_order_need_one_transfer(etags, pinned, at_once):
    async def use(server, store):
        info = await store.head("a.bin")
        pin = {"version": info.version, "size": info.size} if pinned else {}
        spans = make_spans()
        if at_once:
            await store.read("a.bin", ByteRange(0, 1), **pin)
            found = await asyncio.gather(*(store.read("a.bin", span, **pin) for span in spans))
        else:
            found = [await store.read("a.bin", span, **pin) for span in spans]
        assert found == [DATA[span.start : span.end] for span in spans]
        assert await store.read("a.bin", ByteRange(-5), **pin) == DATA[-5:]
        assert await store.read("a.bin", ByteRange(SIZE - 9), **pin) == DATA[-9:]
        return count_transfers(server)

    assert play(use, etags=etags) == 1


def test_concurrent_first_parts_share_the_copy():
    async def use(server, store):
        spans = make_spans()
        found = await asyncio.gather(*(store.read("a.bin", span) for span in spans))
        assert found == [DATA[span.start : span.end] for span in spans]
        first = count_transfers(server)
        assert await store.read("a.bin", ByteRange(5, 9)) == DATA[5:9]
        return count_transfers(server) - first

    assert play(use) == 0


def test_a_copy_of_another_version_is_not_used():
    async def use(server, store):
        info = await store.head("a.bin")
        assert await store.read("a.bin", ByteRange(5, 9), version=info.version) == DATA[5:9]
        server.put("a.bin", DATA[::-1])
        assert await store.read("a.bin", ByteRange(5, 9)) == DATA[::-1][5:9]
        with pytest.raises(ObjectChanged):
            await store.read("a.bin", ByteRange(5, 9), version=info.version)

    play(use)


@pytest.mark.parametrize("options", [{"limits": Limits(copy_bytes=SIZE - 1)}, {"etags": False, "dates": False}])
def test_without_room_or_version_there_is_no_copy(options):
    async def use(server, store):
        for span in make_spans()[:3]:
            assert await store.read("a.bin", span) == DATA[span.start : span.end]
        return count_transfers(server)

    assert play(use, **options) == 3


def test_copies_have_a_total():
    async def main():
        objects = {f"{number}.bin": DATA[number:] for number in range(5)}
        async with HttpServer(objects) as server:
            server.fault = HttpFault("range-ignored", everywhere=True)
            async with HttpStore(server.url, limits=Limits(copy_bytes=2 * SIZE, connections=4)) as store:
                for _ in range(2):
                    for name, data in objects.items():
                        assert await store.read(name, ByteRange(1_000, 2_000)) == data[1_000:2_000]
                assert sum(copy.info.size for copy in store._copies._copies.values()) <= 2 * SIZE

    asyncio.run(main())


def test_a_copy_that_breaks_off_is_an_error_and_made_again():
    head = f'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n'.encode()

    async def main():
        async with serve_responses(head + DATA[:1_000_000], head + DATA) as url, HttpStore(url) as store:
            assert await store.read("a.bin", ByteRange(3, 10), version='"1"') == DATA[3:10]
            with pytest.raises(TransferInterrupted) as caught:
                await store.read("a.bin", ByteRange(SIZE - 10, SIZE - 5), version='"1"')
            assert caught.value.offset == 1_000_000
            assert await store.read("a.bin", ByteRange(SIZE - 10, SIZE - 5), version='"1"') == DATA[-10:-5]

    asyncio.run(main())


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""

    def copyfile(self, source, outputfile):
        self.server.transfers += 1
        super().copyfile(source, outputfile)


def test_a_remote_file_of_the_standard_librarys_server(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)) as server:
        server.transfers = 0
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}/a.bin"

            async def look():
                async with HttpStore(address.rpartition("/")[0]) as store:
                    return await store.head("a.bin")

            info = asyncio.run(look())
            with RemoteFile(address, info, {"retry": None}) as file:
                for span in make_spans():
                    file.seek(span.start)
                    assert file.read(1) == DATA[span.start : span.start + 1]
                    assert file.read_at(span.start, 100) == DATA[span.start : span.start + 100]
                file.seek(0)
                assert file.readall() == DATA
            assert server.transfers <= 4  # the first requests of a file run at the same time
        finally:
            close_shared_stores()
            server.shutdown()
            thread.join()

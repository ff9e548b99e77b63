"""Small stores for tests: a correct one, to be altered by tests, and one that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field

from streamloader.errors import NotFound, ServerBusy, TransferInterrupted
from streamloader.stores.base import Body, Store
from streamloader.values import ByteRange, ObjectInfo

PIECE = 256 << 10
spaces = {}  # url -> path -> (data, version)
versions = itertools.count(1)


class Plain(Store):
    """A correct store in memory: ``plain://name``."""

    schemes = ("plain",)

    def __init__(self, url, *, password="nothing", **options):
        super().__init__(url, **options)
        self.password = password

    @property
    def objects(self):
        return spaces.setdefault(self.url, {})

    def find(self, path):
        try:
            return self.objects[path]
        except KeyError:
            raise NotFound(f"nothing at {self.address(path)}", address=self.address(path)) from None

    def info(self, path):
        data, version = self.find(path)
        return ObjectInfo(path, len(data), version, 0.0 if version is None else None)

    async def _head(self, path):
        await asyncio.sleep(0)
        return self.info(path)

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        await asyncio.sleep(0)
        data, info = self.find(path)[0], self.info(path)
        start, end = (span or ByteRange()).within(len(data), self.address(path))
        yield Body(info, start, end, self.pieces(path, data, start, end))

    async def pieces(self, path, data, start, end):
        for at in range(start, end, PIECE):
            await asyncio.sleep(0)
            yield data[at : min(end, at + PIECE)]

    async def _list(self, prefix, *, recursive):
        under = f"{prefix}/" if prefix else ""
        folders = set()
        for path in list(self.objects):
            if path.startswith(under):
                name, slash, _ = path[len(under) :].partition("/")
                if recursive or not slash:
                    yield self.info(path)
                elif name not in folders:
                    folders.add(name)
                    yield ObjectInfo(f"{under}{name}/")

    async def _write(self, path, data):
        if isinstance(data, (bytes, bytearray, memoryview)):
            await asyncio.sleep(0)
            whole = bytes(data)
        else:
            whole = b"".join([piece async for piece in data])
        self.objects[path] = whole, f"v{next(versions)}"

    async def _delete(self, path):
        self.objects.pop(path, None)


@dataclass
class Scripted(Plain):
    """Fails by a script: `script` has a step for each request, "" for a success.

    A step is an error to raise at once, or (bytes to send before it, error). `requests` lists all requests.
    """

    url: str = "plain://scripted"
    script: list = field(default_factory=list)

    def __post_init__(self):
        steps, self.requests = list(self.script), []
        super().__init__(self.url)
        self.script = steps
        self.objects.clear()

    __hash__ = None
    __repr__ = Store.__repr__

    def step(self, *request):
        self.requests.append(request)
        step = self.script.pop(0) if self.script else ""
        if isinstance(step, BaseException):
            raise step
        return step

    async def _head(self, path):
        self.step("head", path)
        return await super()._head(path)

    @contextlib.asynccontextmanager
    async def _get(self, path, span, version):
        step = self.step("get", path, str(span or ByteRange()), version)
        async with super()._get(path, span, version) as body:
            if step:
                body.pieces = breaking(body.pieces, *step)
            yield body

    async def _list(self, prefix, *, recursive):
        step = self.step("list", prefix)
        count = 0
        async for info in super()._list(prefix, recursive=recursive):
            if step and count == step[0]:
                raise step[1]
            count += 1
            yield info

    async def _write(self, path, data):
        step = self.step("write", path)
        await super()._write(path, data)
        if step:
            raise step[1]

    async def _delete(self, path):
        self.step("delete", path)
        await super()._delete(path)


async def breaking(chunks, count, error):
    """Yield `count` bytes, then raise `error`."""
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if count <= len(chunk):
                if count:
                    yield chunk[:count]
                raise error
            count -= len(chunk)
            yield chunk
    raise error


def interrupted():
    return TransferInterrupted("it broke off", address="plain://scripted/a", offset=0)


def busy_error():
    return ServerBusy("503", address="plain://scripted/a", status=503)

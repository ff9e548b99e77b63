"""Endless streams of the articles in feeds that are followed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import override

from streamloader.errors import ClosedError, ConfigError
from streamloader.stores.io_thread import SharedResource
from streamloader.streams.articles.source import ArticleSource, make_page_error
from streamloader.streams.base import Stream
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.streams.text_steps import TextSteps
from streamloader.values import Array

__all__ = ["FollowingStream"]


class FollowingStream(Stream):
    """Every n-th article of the feeds, one after the other, without an end.

    Args:
        shared: Pages of the dataset. The stream closes this handle.
        steps: Steps of a text.
        key: Key of the stream.
        number: Number of the stream, which is that of its first article.
        count: Number of all streams.
        skips: Whether pages without a text are left out.
    """

    def __init__(
        self, shared: SharedResource[ArticleSource], steps: TextSteps, key: str, *, number: int, count: int, skips: bool
    ) -> None:
        self._shared: SharedResource[ArticleSource] | None = shared
        self._steps = steps
        self._key = key
        self._first, self._count = number, count
        self._skips = skips
        self._article = number
        self._current: Array | None = None  # steps of the article
        self._offset = 0

    @property
    @override
    def replays(self) -> bool:  # type: ignore[override]
        """Whether a seek reads earlier articles: their lengths in bytes are kept, and those in tokens are not."""
        return self._steps.is_tokenized

    @override
    async def read_into(self, out: Mapping[str, Array]) -> int:
        while True:
            if self._current is None:
                self._current = await self._load_article(self._article)
            block = self._current[self._offset : self._offset + len(out["data"])]
            if len(block):
                break
            self._current, self._offset, self._article = None, 0, self._article + self._count
        count = len(block)
        out["data"][:count] = block
        out["article"][:count] = self._article
        out["start"][:count] = False
        if self._offset == 0:
            out["start"][0] = True
        self._offset += count
        return count

    @override
    async def seek(self, step: int) -> None:
        if step < 0:
            raise ConfigError(f"cannot seek to step {step} of stream {self._key!r}", stream=self._key)
        article, remaining, current = self._first, step, None
        while remaining:
            length = None if self._steps.is_tokenized else await self._find_length(article)
            current = None
            if length is None:
                current = await self._load_article(article)
                length = len(current)
            if remaining < length:
                break
            article, remaining, current = article + self._count, remaining - length, None
        self._article, self._offset, self._current = article, remaining, current

    async def _load_article(self, number: int) -> Array:
        """Return the steps of an article: none if it is left out. Wait until there is one of this number."""
        shared = self._require_shared()
        page = await shared.run(shared.resource.wait_for_page(number))
        kept = await shared.run(shared.resource.load_page(page))
        if kept.error and not self._skips:
            raise make_page_error(kept, self._key, page.name)
        if not self._steps.is_tokenized:
            return self._steps.encode(kept.text, self._key)
        return await in_lane_thread(self._steps.encode, kept.text, self._key)

    async def _find_length(self, number: int) -> int | None:
        """Return the kept number of bytes of an article, or None if it is not kept."""
        shared = self._require_shared()
        return await shared.run(shared.resource.find_length(number))

    def _require_shared(self) -> SharedResource[ArticleSource]:
        if self._shared is None:
            raise ClosedError(f"stream {self._key!r} was closed", stream=self._key)
        return self._shared

    @override
    async def aclose(self) -> None:
        shared, self._shared, self._current = self._shared, None, np.zeros(0, np.uint8)
        if shared is not None:
            shared.close()

"""Say in a folder that a data set is being written there, and by which writer."""

from __future__ import annotations

import json
import secrets
from typing import Any, Final

from streamloader.errors import AccessDenied, DatasetExists, NotFound, NotSupported
from streamloader.stores.base import Data, Store

__all__ = ["CLAIM_NAME", "WriterClaim", "is_claimed"]

CLAIM_NAME: Final = "manifest.json.unfinished"

_FORMAT: Final = "streamloader-unfinished-shards"


class WriterClaim:
    """The claim of one writer to a folder: a file with a random number, which the next writer replaces.

    The newest writer owns the folder, because nobody can know whether an earlier one is still running or was killed.
    Earlier writers look before each step that others can see, and give up.

    Args:
        store: Store of the folder.
        folder: Path of the folder, with "/" at its end.
        address: Address of the folder, for messages.
    """

    def __init__(self, store: Store, folder: str, address: str) -> None:
        self._store = store
        self._path = f"{folder}{CLAIM_NAME}"
        self._address = address
        self._content = json.dumps({"format": _FORMAT, "writer": secrets.token_hex(16)}).encode() + b"\n"

    async def take(self, *, overwrite: bool) -> None:
        """Replace the claim of an earlier writer.

        Args:
            overwrite: Whether a file of that name is replaced that no writer has made.

        Raises:
            DatasetExists: If no writer has made the file of that name.
            StoreError: If the store fails.
        """
        found = await self._read()
        if found is not None and not overwrite and not _is_claim(found):
            raise self._make_error(f"has a file {CLAIM_NAME} that no writer has made: choose another folder")
        await self.write(self._path, self._content)

    async def check(self) -> None:
        """Check that no other writer has started since then.

        Raises:
            DatasetExists: If another one has.
            StoreError: If the store fails.
        """
        if await self._read() != self._content:
            raise self._make_error(
                "was taken over by another writer that started later, so this one stops: run one writer at a time"
            )

    async def write(self, path: str, data: Data) -> None:
        """Write an object as :meth:`Store.write` does.

        Raises:
            DatasetExists: If another writer has started, and deleted the unfinished file.
            StoreError: If the store fails otherwise.
        """
        try:
            await self._store.write(path, data)
        except NotFound:
            await self.check()
            raise

    async def release(self) -> None:
        """Delete the claim, when the data set is complete."""
        await self._store.delete(self._path)

    async def delete_leftover(self) -> None:
        """Delete the claim of a writer that was killed after its manifest was written, if this writer may."""
        found = await self._read()
        if found is not None and _is_claim(found):
            try:
                await self._store.delete(self._path)
            except (AccessDenied, NotSupported):
                return

    async def _read(self) -> bytes | None:
        try:
            return await self._store.read(self._path)
        except NotFound:
            return None

    def _make_error(self, problem: str) -> DatasetExists:
        return DatasetExists(f"{self._address} {problem}", address=self._address, dataset=self._address)


async def is_claimed(store: Store, path: str) -> bool:
    """Return whether there is the claim of a writer at a path.

    Raises:
        StoreError: If the store fails.
    """
    try:
        return _is_claim(await store.read(path))
    except (
        NotFound,
        NotADirectoryError,
        AccessDenied,
    ):  # object stores deny access to missing objects, if they may not be listed
        return False


def _is_claim(data: bytes) -> bool:
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == _FORMAT

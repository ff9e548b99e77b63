"""The parts of the reference system that store: files of another machine, the catalog, and what cuts videos."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from streamloader.archive.catalog.base import Catalog, VideoRow
from streamloader.archive.catalog.registry import shared_catalog
from streamloader.archive.create import ensure_places
from streamloader.archive.ingest import IngestReport, add_videos, as_places
from streamloader.archive.location import CATALOG_FILE
from streamloader.compat.butterfly.settings import ButterflySettings, catalog_url
from streamloader.errors import NotFound
from streamloader.media.chunks.settings import CutSettings
from streamloader.redaction import redact
from streamloader.stores.addresses import Address
from streamloader.stores.io_thread import Shared, SharedStore, shared_store
from streamloader.stores.registry import scheme_of

__all__ = ["ChunkTracker", "RemoteFileHandler", "VideoProcessor"]


class RemoteFileHandler:
    """Files of one other machine, over SSH, or of this one where no other is named.

    A machine whose host key is not in ``known_hosts`` (see ``REMOTE_KNOWN_HOSTS``), or is another one there, is refused
    before anything is sent to it. Who logs in, and how, is taken from ``~/.ssh/config`` and the agent, where it is not
    given.

    Args:
        host: of the machine; this and what follows are taken from the settings where they are None.
        port: of its SSH server.
        username: who logs in.
        password: of that user.
        key_path: file of the private key.
        settings: what to go by instead of ``.env`` and the environment.

    Attributes:
        is_remote: whether files are those of another machine.
        storage_options: with which its addresses are opened.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        username: str | None = None,
        password: str | None = None,
        key_path: str | None = None,
        *,
        settings: ButterflySettings | None = None,
    ) -> None:
        known = settings or ButterflySettings.load()
        self.is_remote = host is not None or known.remote_mode
        self._root = ""
        self.storage_options: dict[str, Any] = {}
        if not self.is_remote:
            return
        name = host or known.remote_host or ""
        who, at = username or known.remote_user, port or known.remote_port
        user = f"{quote(who, safe='')}@" if who else ""
        self._root = f"ssh://{user}{f'[{name}]' if ':' in name else name}{f':{at}' if at else ''}"
        options = {
            "password": password or known.remote_password,
            "client_keys": _home(key_path or known.remote_key_path),
            "known_hosts": _home(known.remote_known_hosts),
        }
        self.storage_options = {self._root: {name: value for name, value in options.items() if value is not None}}

    def address(self, path: Address) -> str:
        """Return the address of a path of that machine: relative ones begin in the home there. Addresses stay."""
        text = os.fspath(path)
        if scheme_of(text):
            return text
        if not self.is_remote:
            return os.path.abspath(os.path.expanduser(text))
        if text.startswith("/"):
            return self._root + text
        return f"{self._root}/~/{text.removeprefix('~/').removeprefix('./')}"

    def file_exists(self, path: Address) -> bool:
        """Say whether there is such a file.

        Raises:
            StoreError: that cannot be found out.
        """
        try:
            self.get_file_info(path)
        except NotFound:
            return False
        return True

    def read_file(self, path: Address) -> bytes:
        """Return the content of a file.

        Raises:
            NotFound: there is none (a FileNotFoundError).
            StoreError: it cannot be read.
        """
        store, name = self._store(path)
        with store:
            return store.read(name)

    def write_file(self, path: Address, data: bytes) -> bool:
        """Write a file, whole or not at all, and return True; folders are made as needed.

        Raises:
            StoreError: it cannot be written.
        """
        store, name = self._store(path)
        with store:
            store.write(name, data)
        return True

    def list_directory(self, path: Address) -> list[str]:
        """Return the names of the files in a folder, sorted; none where there is no such folder.

        Raises:
            StoreError: it cannot be listed.
        """
        store, name = self._store(path)
        folder = name.rstrip("/")
        with store:
            found = [info.path for info in store.list(folder, recursive=False) if not info.is_directory]
        return sorted(posixpath.basename(each) for each in found)

    def get_file_info(self, path: Address) -> dict[str, Any]:
        """Return ``size`` (bytes) and ``mtime`` (seconds since 1970) of a file.

        Raises:
            NotFound: there is none.
            StoreError: that cannot be found out.
        """
        store, name = self._store(path)
        with store:
            info = store.head(name)
        return {"size": info.size, "mtime": info.modified}

    def make_directory(self, path: Address) -> None:
        """Make a folder, and see that files can be written there.

        Raises:
            StoreError: they cannot.
        """
        store, folder = self._store(path)
        name = posixpath.join(folder, f"probe-{secrets.token_hex(8)}")
        with store:
            store.write(name, b"")
            store.delete(name)

    def connect(self) -> None:
        """Do nothing: it connects when it is needed, and again where a connection was lost."""

    def disconnect(self) -> None:
        """Do nothing: connections that nobody uses are closed after some seconds."""

    ensure_connection = connect

    def _store(self, path: Address) -> tuple[SharedStore, str]:
        address = self.address(path)
        options = self.storage_options.get(self._root) if scheme_of(address) == "ssh" else None
        if options is not None and not f"{address}/".startswith(f"{self._root}/"):
            options = None  # another machine does not get the password
        return shared_store(address, options)

    def __repr__(self) -> str:
        return f"<RemoteFileHandler {redact(self._root) if self.is_remote else 'of this machine'}>"


class ChunkTracker:
    """The catalog: which chunk holds which frames, and where it is.

    Args:
        connection_string: url of a MongoDB server, or of any catalog; None for that of the settings, and with none
            there, an SQLite file in ``STORAGE_PATH``.
        db_name: of the database in MongoDB.
        settings: what to go by instead of ``.env`` and the environment.

    Attributes:
        url: of the catalog. It may hold a password: do not show it.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        db_name: str | None = None,
        *,
        settings: ButterflySettings | None = None,
    ) -> None:
        known = settings or ButterflySettings.load()
        named = connection_string or known.mongodb_uri
        beside = os.path.join(os.path.abspath(os.path.expanduser(known.storage_path)), CATALOG_FILE)
        self.url = catalog_url(named, db_name or known.mongodb_db_name) if named else beside

    def get_chunks_for_frame_range(self, start_frame: int, end_frame: int) -> list[dict[str, Any]]:
        """Return the chunks that hold frames from `start_frame` to `end_frame`, that one included, in order.

        Each is a dict with ``movie_id``, ``title``, ``chunk_index``, ``start_frame`` and ``end_frame`` (the first and
        the last one that it holds, numbered in the archive), and ``storage_path`` (its address).

        Raises:
            CatalogError: the catalog cannot be read.
        """
        with self.catalog() as shared:
            header, snapshot = shared.call(shared.it.header()), shared.call(shared.it.snapshot())
            start, stop = max(0, start_frame), min(end_frame + 1, snapshot.frames)
            located = shared.call(shared.it.locate(start, stop)) if start < stop else []
        places = {place.number: place.url.rstrip("/") for place in header.places}
        return [
            {
                "movie_id": each.video.content,
                "title": each.video.name,
                "chunk_index": row.number,
                "start_frame": each.video.start + row.first,
                "end_frame": each.video.start + row.first + row.frames - 1,
                "storage_path": f"{places[row.place]}/{row.path}",
            }
            for each in located
            for row in each.chunks
        ]

    def catalog(self) -> Shared[Catalog]:
        """Return this process's catalog; give it back with ``close()``, or use it as a context."""
        return shared_catalog(self.url)

    def place_for(self, folder: str) -> int:
        """Return the number of the place at an address; the catalog and the place are made if they are not there."""
        url = as_places(folder)[0].url
        if not scheme_of(self.url):
            os.makedirs(os.path.dirname(self.url), exist_ok=True)
        with self.catalog() as catalog:
            return ensure_places(catalog, {url: 1.0}).numbers[0]

    def __repr__(self) -> str:
        return f"<ChunkTracker {redact(self.url)}>"


class VideoProcessor:
    """Cuts videos into chunks and puts them into storage.

    Args:
        chunk_tracker: the catalog that they become part of.
        remote_handler: of the machine that paths are of; by default that of the settings.
        chunk_size: frames of a chunk.
    """

    def __init__(
        self, chunk_tracker: ChunkTracker, remote_handler: RemoteFileHandler | None = None, chunk_size: int = 1000
    ) -> None:
        self.chunk_tracker = chunk_tracker
        self.remote_handler = remote_handler or RemoteFileHandler()
        self.chunk_size = chunk_size

    def process_video(self, video_path: Address, storage_base_path: Address, movie_title: str | None = None) -> str:
        """Add one video, named `movie_title` or like its file, and return its id.

        Raises:
            StreamNotFound: there is none.
            UnreadableStream: it is no video.
            NameTaken: there is another video of this name.
            StoreError: it cannot be read, or its chunks cannot be written.
            CatalogError: the catalog cannot be used.
        """
        report = self.process_videos([video_path], storage_base_path, name=movie_title)
        rows: list[VideoRow] = [*report.added, *(each.video for each in report.recognised)]
        return rows[0].content

    def process_videos(
        self, video_paths: Sequence[Address], storage_base_path: Address, **options: Any
    ) -> IngestReport:
        """Add videos, side by side; see :func:`streamloader.archive.ingest.add_videos` for the options and errors."""
        handler = self.remote_handler
        folder = handler.address(storage_base_path)
        settings = CutSettings(chunk_frames=self.chunk_size)
        place = self.chunk_tracker.place_for(folder)
        with self.chunk_tracker.catalog() as catalog:
            return add_videos(
                catalog,
                [handler.address(path) for path in video_paths],
                settings,
                storage_options=handler.storage_options,
                only=[place],
                **options,
            )


def _home(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)

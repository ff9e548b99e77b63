"""The storage classes of ButterflyTorch: files of a remote machine, the catalog, and the cutting of videos."""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from streamloader.archive.catalog.base import Catalog, VideoRow
from streamloader.archive.catalog.registry import get_shared_catalog
from streamloader.archive.create import ensure_places
from streamloader.archive.ingest import IngestReport, add_videos, parse_places
from streamloader.archive.location import CATALOG_FILE
from streamloader.arguments import expand_path
from streamloader.compat.butterfly.settings import ButterflySettings, catalog_url
from streamloader.errors import NotFound
from streamloader.media.chunks.settings import CutSettings
from streamloader.redaction import redact_address
from streamloader.stores.addresses import Address
from streamloader.stores.io_thread import SharedResource, SharedStore, open_shared_store
from streamloader.stores.registry import scheme_of

__all__ = ["ChunkTracker", "RemoteFileHandler", "VideoProcessor"]


class RemoteFileHandler:
    """Access to the files of a remote machine over SSH, or of this machine if no host is configured.

    A machine whose host key is missing or different in ``known_hosts`` (see ``REMOTE_KNOWN_HOSTS``) is refused before
    any data is sent to it. User, port and keys default to those of ``~/.ssh/config`` and the SSH agent.

    Args:
        host: Name of the machine. This and the following arguments default to the settings.
        port: Port of its SSH server.
        username: Name of the user who logs in.
        password: Password of that user.
        key_path: File of the private key.
        settings: Settings. Defaults to those of ``.env`` and the environment.

    Attributes:
        is_remote: Whether the files are on a remote machine.
        storage_options: Options for stores at addresses of that machine.
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
        settings = settings or ButterflySettings.load()
        self.is_remote = host is not None or settings.remote_mode
        self._root = ""
        self.storage_options: dict[str, Any] = {}
        if not self.is_remote:
            return
        name = host or settings.remote_host or ""
        username, port = username or settings.remote_user, port or settings.remote_port
        user = f"{quote(username, safe='')}@" if username else ""
        self._root = f"ssh://{user}{f'[{name}]' if ':' in name else name}{f':{port}' if port else ''}"
        options = {
            "password": password or settings.remote_password,
            "client_keys": _expand_home(key_path or settings.remote_key_path),
            "known_hosts": _expand_home(settings.remote_known_hosts),
        }
        self.storage_options = {self._root: {name: value for name, value in options.items() if value is not None}}

    def address(self, path: Address) -> str:
        """Return the address of a path on that machine, relative to the home folder. Addresses stay unchanged."""
        text = os.fspath(path)
        if scheme_of(text):
            return text
        if not self.is_remote:
            return os.path.abspath(expand_path(text))
        if text.startswith("/"):
            return self._root + text
        return f"{self._root}/~/{text.removeprefix('~/').removeprefix('./')}"

    def file_exists(self, path: Address) -> bool:
        """Return whether a file exists.

        Raises:
            StoreError: If the machine cannot be reached or the file cannot be accessed.
        """
        try:
            self.get_file_info(path)
        except NotFound:
            return False
        return True

    def read_file(self, path: Address) -> bytes:
        """Return the content of a file.

        Raises:
            NotFound: If the file does not exist. It is a FileNotFoundError.
            StoreError: If the file cannot be read.
        """
        store, name = self._open_store(path)
        with store:
            return store.read(name)

    def write_file(self, path: Address, data: bytes) -> bool:
        """Write a file atomically, and return True. Missing folders are created.

        Raises:
            StoreError: If the file cannot be written.
        """
        store, name = self._open_store(path)
        with store:
            store.write(name, data)
        return True

    def list_directory(self, path: Address) -> list[str]:
        """Return the names of the files in a folder, sorted. A folder that does not exist has none.

        Raises:
            StoreError: If the folder cannot be listed.
        """
        store, name = self._open_store(path)
        folder = name.rstrip("/")
        with store:
            paths = [info.path for info in store.list(folder, recursive=False) if not info.is_directory]
        return sorted(posixpath.basename(each) for each in paths)

    def get_file_info(self, path: Address) -> dict[str, Any]:
        """Return ``size`` (bytes) and ``mtime`` (seconds since 1970) of a file.

        Raises:
            NotFound: If the file does not exist.
            StoreError: If the file cannot be accessed.
        """
        store, name = self._open_store(path)
        with store:
            info = store.head(name)
        return {"size": info.size, "mtime": info.modified}

    def make_directory(self, path: Address) -> None:
        """Create a folder, and check that files can be written there.

        Raises:
            StoreError: If files cannot be written there.
        """
        store, folder = self._open_store(path)
        name = posixpath.join(folder, f"probe-{secrets.token_hex(8)}")
        with store:
            store.write(name, b"")
            store.delete(name)

    def connect(self) -> None:
        """Do nothing. Connections are opened when they are needed, and reopened when they are lost."""

    def disconnect(self) -> None:
        """Do nothing. Unused connections are closed after some seconds."""

    ensure_connection = connect

    def _open_store(self, path: Address) -> tuple[SharedStore, str]:
        address = self.address(path)
        options = self.storage_options.get(self._root) if scheme_of(address) == "ssh" else None
        if options is not None and not f"{address}/".startswith(f"{self._root}/"):
            options = None  # never send the password to another machine
        return open_shared_store(address, options)

    def __repr__(self) -> str:
        return f"<RemoteFileHandler {redact_address(self._root) if self.is_remote else 'of this machine'}>"


class ChunkTracker:
    """The catalog: which chunk contains which frames, and where it is stored.

    Args:
        connection_string: URL of a MongoDB server, or of any catalog. Defaults to that of the settings, or to an SQLite
            file in ``STORAGE_PATH``.
        db_name: Name of the database in MongoDB. Defaults to that of the settings.
        settings: Settings. Defaults to those of ``.env`` and the environment.

    Attributes:
        url: URL of the catalog. It may contain a password: do not show it.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        db_name: str | None = None,
        *,
        settings: ButterflySettings | None = None,
    ) -> None:
        settings = settings or ButterflySettings.load()
        if uri := connection_string or settings.mongodb_uri:
            self.url = catalog_url(uri, db_name or settings.mongodb_db_name)
        else:
            self.url = os.path.join(os.path.abspath(expand_path(settings.storage_path)), CATALOG_FILE)

    def get_chunks_for_frame_range(self, start_frame: int, end_frame: int) -> list[dict[str, Any]]:
        """Return the chunks that contain the frames from `start_frame` to `end_frame` (included), in order.

        Each chunk is a dict with ``movie_id``, ``title``, ``chunk_index``, ``start_frame`` and ``end_frame`` (numbers
        of its first and last frame in the archive), and ``storage_path`` (its address).

        Raises:
            CatalogError: If the catalog cannot be read.
        """
        with self.catalog() as shared:
            header, snapshot = shared.call(shared.resource.get_header()), shared.call(shared.resource.get_snapshot())
            start, end = max(0, start_frame), min(end_frame + 1, snapshot.frames)
            located = shared.call(shared.resource.locate_frames(start, end)) if start < end else []
        places = {place.number: place.url.rstrip("/") for place in header.places}
        return [
            {
                "movie_id": each.video.content,
                "title": each.video.name,
                "chunk_index": row.number,
                "start_frame": each.video.start + row.first_frame,
                "end_frame": each.video.start + row.first_frame + row.frames - 1,
                "storage_path": f"{places[row.place]}/{row.path}",
            }
            for each in located
            for row in each.chunks
        ]

    def catalog(self) -> SharedResource[Catalog]:
        """Return this process's catalog. Release it with ``close()``, or use it as a context manager."""
        return get_shared_catalog(self.url)

    def ensure_place(self, folder: str) -> int:
        """Return the number of the place at an address. The catalog and the place are created if they do not exist."""
        url = parse_places(folder)[0].url
        if not scheme_of(self.url):
            os.makedirs(os.path.dirname(self.url), exist_ok=True)
        with self.catalog() as catalog:
            return ensure_places(catalog, {url: 1.0}).numbers[0]

    def __repr__(self) -> str:
        return f"<ChunkTracker {redact_address(self.url)}>"


class VideoProcessor:
    """Cuts videos into chunks and stores the chunks.

    Args:
        chunk_tracker: Catalog to which the videos are added.
        remote_handler: Handler of the machine with the videos and chunks. Defaults to that of the settings.
        chunk_size: Number of frames of a chunk. Defaults to 1000.
    """

    def __init__(
        self, chunk_tracker: ChunkTracker, remote_handler: RemoteFileHandler | None = None, chunk_size: int = 1000
    ) -> None:
        self.chunk_tracker = chunk_tracker
        self.remote_handler = remote_handler or RemoteFileHandler()
        self.chunk_size = chunk_size

    def process_video(self, video_path: Address, storage_base_path: Address, movie_title: str | None = None) -> str:
        """Add one video, and return its id.

        Args:
            video_path: Path or address of the video.
            storage_base_path: Folder for the chunks.
            movie_title: Name of the video. Defaults to the names of its folder and file.

        Raises:
            StreamNotFound: If the video does not exist.
            UnreadableStream: If the file is not a video.
            NameConflict: If another video has this name.
            StoreError: If the video cannot be read, or its chunks cannot be written.
            CatalogError: If the catalog cannot be used.
        """
        report = self.process_videos([video_path], storage_base_path, name=movie_title)
        rows: list[VideoRow] = [*report.added, *(each.video for each in report.existing)]
        return rows[0].content

    def process_videos(
        self, video_paths: Sequence[Address], storage_base_path: Address, **options: Any
    ) -> IngestReport:
        """Add videos in parallel. See :func:`streamloader.archive.ingest.add_videos` for the options and errors."""
        handler = self.remote_handler
        folder = handler.address(storage_base_path)
        settings = CutSettings(chunk_frames=self.chunk_size)
        place = self.chunk_tracker.ensure_place(folder)
        with self.chunk_tracker.catalog() as catalog:
            return add_videos(
                catalog,
                [handler.address(path) for path in video_paths],
                settings,
                storage_options=handler.storage_options,
                places=[place],
                addresses={place: folder},
                **options,
            )


def _expand_home(path: str | None) -> str | None:
    return None if path is None else expand_path(path)

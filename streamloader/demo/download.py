"""Downloads of packages that contain real data, into folders that are kept for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import platformdirs

from streamloader.arguments import expand_path
from streamloader.common.guarded_files import GuardedFolder, UnsafePath, lock_file
from streamloader.errors import ConfigError, StoreTimeout

__all__ = ["DownloadFailed", "download_package", "hash_file", "open_download_folder"]

_DOWNLOAD_TIMEOUT_S: Final = 300.0  # for some megabytes on a slow connection
_LOCK_TIMEOUT_S: Final = _DOWNLOAD_TIMEOUT_S + 60.0  # for another process that downloads them


class DownloadFailed(Exception):
    """What a package manager reported of a download that failed: its last line."""


@contextlib.contextmanager
def open_download_folder(name: str, folder: Path | None = None) -> Iterator[GuardedFolder]:
    """Open and lock a folder for downloads for the time of a ``with`` block. It is created if it does not exist.

    Args:
        name: Name of the folder within ``$STREAMLOADER_CACHE`` or the user's cache folder.
        folder: Another folder to use. Defaults to none.

    Raises:
        StoreTimeout: If another process holds the lock of the folder for too long.
        ConfigError: If other users can change what is in the folder.
    """
    cache = os.environ.get("STREAMLOADER_CACHE") or platformdirs.user_cache_dir("streamloader", appauthor=False)
    path = os.path.abspath(folder or Path(expand_path(cache, create=True), name))
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(GuardedFolder(path, create=True))
            stack.enter_context(lock_file(opened, ".lock", _LOCK_TIMEOUT_S))
        except UnsafePath as error:
            raise ConfigError(f"{name} cannot be kept in {path}: {error.message}", address=path) from error
        except TimeoutError as error:
            raise StoreTimeout(
                f"another process has locked {path} for {_LOCK_TIMEOUT_S:.0f} s: end it, or choose another folder",
                address=path,
            ) from error
        yield opened


def download_package(
    command: Sequence[str], folder: Path, pattern: str, environment: Mapping[str, str] | None = None
) -> Path:
    """Have a package manager download the archive of a package into a folder, and return its path.

    Args:
        command: Command of the package manager.
        folder: Folder into which it downloads.
        pattern: Pattern of the archive's name, such as "*.whl".
        environment: Environment of the command. Defaults to that of this process.

    Raises:
        DownloadFailed: If the command fails, or does not end, or leaves no archive.
    """
    try:
        completed = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
        lines = completed.stderr.split("\n") if completed.returncode else []
    except subprocess.TimeoutExpired:
        lines = [f"no result within {_DOWNLOAD_TIMEOUT_S:.0f} s"]
    except OSError as error:
        lines = [f"it cannot be started: {error.strerror}"]
    archives = list(folder.glob(pattern))
    if lines or len(archives) != 1:
        raise DownloadFailed(next((line.strip() for line in reversed(lines) if line.strip()), "no output"))
    return archives[0]


def hash_file(folder: GuardedFolder, name: str) -> str | None:
    """Return the SHA-256 of a file in a folder, or None if there is no file that can be used."""
    try:
        with os.fdopen(folder.open_file(name), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, UnsafePath):
        return None

"""The folder in which servers and clips for the tests are kept for later runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from streamloader.common.guarded_files import GuardedFolder


def cache_folder() -> Path:
    """Return the folder: ``$STREAMLOADER_TEST_CACHE``, or one in the user's cache folder."""
    chosen = os.environ.get("STREAMLOADER_TEST_CACHE")
    return Path(os.path.abspath(chosen or platformdirs.user_cache_dir("streamloader-tests", appauthor=False)))


@contextlib.contextmanager
def open_cache_folder() -> Iterator[GuardedFolder]:
    """Open the folder, and create it if it does not exist. Programs in it are executed, so nobody else may write to it.

    Raises:
        UnsafePath: If other users can change what is in the folder.
    """
    with GuardedFolder(str(cache_folder()), create=True) as folder:
        yield folder

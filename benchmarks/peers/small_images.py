"""The small files of the benchmark of directories: PNG images of 28x28, in each format that is compared, made once.

An image shows two strokes of a soft pen, drawn at random, so that its size in bytes is about that of a handwritten
digit. Files are spread over 100 subdirectories at random.

Options of a job: ``files``: number of files.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import random
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from benchmarks.clips import cache_folder
from benchmarks.job import Job

SIDE = 28
SUBDIRECTORIES = 100
_MAX_DISTINCT = 100_000
_SCALE = 4  # of the drawing, which is then made smaller
_BLUR = 3  # pixels of the drawing
_MAP_BYTES = 1 << 32


def list_names(count: int) -> list[str]:
    """Return the names of all files in ascending order."""
    return [f"{number:07}.png" for number in range(count)]


def decode_image(data: Any) -> Any:
    """Return an image of Pillow. All contenders without a decoder of their own decode with this function."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _make_image(number: int) -> bytes:
    draw = random.Random(number)
    side = SIDE * _SCALE
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    points = [(draw.randrange(side // 5, side * 4 // 5), draw.randrange(side // 6, side * 5 // 6)) for _ in range(3)]
    pen.line(points, fill=255, width=draw.randrange(2, 4) * _SCALE, joint="curve")
    file = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(_BLUR)).resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def _find_set(count: int, kind: str, write: Callable[[Path, int], None]) -> Path:
    """Return the folder of the files in one format. `write` makes it if it is missing.

    Several processes may do so at the same time: the first one that is done makes the folder.
    """
    folder = cache_folder() / f"small-images-{count}" / kind
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{kind}.new-", dir=folder.parent))
        try:
            unfinished.chmod(0o755)
            write(unfinished, count)
            os.sync()
            with contextlib.suppress(OSError):  # another process was first, and its folder is not empty
                unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def make_sets(*counts: int) -> None:
    """Make the files in all formats that are missing, before something is measured: this may take minutes.

    Args:
        *counts: Numbers of files.
    """
    finders = (find_files, find_packs, find_pack, find_reference, find_tar, find_zip, find_sqlite, find_lmdb)
    for count, find in itertools.product(counts, finders):
        try:
            find(count)
        except ImportError as error:  # the contender is not installed, and says so itself
            print(f"{find.__name__}: {error}", file=sys.stderr)


# --- files -----------------------------------------------------------------------------------------------------------


def find_files(count: int) -> Path:
    """Return a root whose subdirectories have the files, and nothing else."""
    return _find_set(count, "files", _write_files)


def _write_files(root: Path, count: int) -> None:
    numbers = random.Random(count)
    for number in range(SUBDIRECTORIES):
        (root / f"subdir_{number}").mkdir()
    images = [_make_image(number) for number in range(min(count, _MAX_DISTINCT))]
    for number, name in enumerate(list_names(count)):
        folder = f"{root}/subdir_{numbers.randrange(SUBDIRECTORIES)}"
        with open(f"{folder}/{name}", "wb", 0) as file:
            file.write(images[number % len(images)])


def read_members(count: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all files in ascending order of their names."""
    paths = {entry.name: entry.path for folder in list_folders(find_files(count)) for entry in os.scandir(folder)}
    for name in list_names(count):
        yield name, Path(paths[name]).read_bytes()


def list_folders(root: Path) -> list[str]:
    """Return the paths of the subdirectories of a root."""
    return sorted(entry.path for entry in os.scandir(root) if entry.is_dir())


def _copy_files(root: Path, count: int) -> None:
    for folder in list_folders(find_files(count)):
        shutil.copytree(folder, root / Path(folder).name)


# --- the reference's algorithm ---------------------------------------------------------------------------------------


def find_reference(count: int) -> Path:
    """Return a root with a file ``.vdd`` for each subdirectory, as the reference's algorithm has them."""
    return _find_set(count, "reference", _write_reference)


def _write_reference(root: Path, count: int) -> None:
    _copy_files(root, count)
    for folder in list_folders(root):
        members = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        Path(f"{folder}.vdd").write_bytes(zlib.compress(pickle.dumps(members)))


# --- streamloader ----------------------------------------------------------------------------------------------------


def find_packs(count: int) -> Path:
    """Return a root with a pack for each subdirectory."""
    return _find_set(count, "packs", _write_packs)


def _write_packs(root: Path, count: int) -> None:
    from streamloader.datasets.directory.managers import BytesDataManager
    from streamloader.datasets.directory.virtual_directory import VirtualDirectory

    _copy_files(root, count)
    with VirtualDirectory(root, BytesDataManager(), verbose=False, load_to_memory=False) as directory:
        directory.save_state()


def find_pack(count: int) -> Path:
    """Return a single pack with all files."""
    return _find_set(count, "pack", _write_pack) / "all.pack"


def _write_pack(folder: Path, count: int) -> None:
    from streamloader.containers.pack.build import PackMember, write_pack

    write_pack(folder / "all.pack", (PackMember(name, data) for name, data in read_members(count)))


# --- others ----------------------------------------------------------------------------------------------------------


def find_tar(count: int) -> Path:
    """Return a tar file with all files in the order of a permutation, as webdataset's documentation advises."""
    return _find_set(count, "tar", _write_tar) / "all.tar"


def _write_tar(folder: Path, count: int) -> None:
    members = list(read_members(count))
    random.Random(count).shuffle(members)
    with tarfile.open(folder / "all.tar", "w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def find_zip(count: int) -> Path:
    """Return a zip file with all files, not compressed."""
    return _find_set(count, "zip", _write_zip) / "all.zip"


def _write_zip(folder: Path, count: int) -> None:
    with zipfile.ZipFile(folder / "all.zip", "w") as file:
        for name, data in read_members(count):
            file.writestr(zipfile.ZipInfo(name), data)


def find_lmdb(count: int) -> Path:
    """Return an environment of LMDB, with the names as keys."""
    return _find_set(count, "lmdb", _write_lmdb)


def _write_lmdb(folder: Path, count: int) -> None:
    import lmdb

    with lmdb.open(str(folder), map_size=_MAP_BYTES) as environment, environment.begin(write=True) as transaction:
        for name, data in read_members(count):
            transaction.put(name.encode(), data, append=True)


def find_sqlite(count: int) -> Path:
    """Return a database of SQLite: one table, whose rows lie in the order of the names."""
    return _find_set(count, "sqlite", _write_sqlite) / "all.sqlite"


def _write_sqlite(folder: Path, count: int) -> None:
    database = sqlite3.connect(folder / "all.sqlite")
    database.execute("CREATE TABLE files (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID")
    database.executemany("INSERT INTO files VALUES (?, ?)", read_members(count))
    database.commit()
    database.close()


def count_files(job: Job) -> int:
    """Return the number of files of a job."""
    count: int = job.options["files"]
    return count

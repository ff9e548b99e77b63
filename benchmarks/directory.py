"""How fast are small files? `VirtualDirectory` beside files, tar, zip, LMDB, SQLite and the reference's algorithm.

``python -m benchmarks.directory [--quick] [--rounds N] [--table NAME] [--json FILE]``. Two tables are measured only if
they are selected: ``cold`` needs root, and drops the page cache of the machine; ``million`` needs 5 GB of disk, and
minutes.

LMDB and webdataset are installed by hand, see ``benchmarks/README.md``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from benchmarks.command import main
from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Column, Question, Table
from benchmarks.job import Job
from benchmarks.peers.small_images import SIDE, SUBDIRECTORIES, find_files, make_sets
from benchmarks.small_files import WARM_UP_FILES

_VIEWS, _BYTES = "views", "bytes"


def _make_own(name: str, label: str, packs: str = "each", **directory: Any) -> Contender:
    return Contender(name, label, "directory_peer", {"packs": packs, "directory": directory}, _VIEWS, "streamloader")


_OWN = _make_own("streamloader", "streamloader")
_OWN_ITERATED = dataclasses.replace(
    _OWN, name="streamloader, iterated", label="streamloader, iterating", hands_out=_BYTES,
    options={**_OWN.options, "scan": "iter"},
)  # fmt: skip
_OWN_NAMES = _make_own("streamloader, names", 'streamloader, check="names"', check="names")
_OWN_MAPPED = _make_own("streamloader, mapped", "streamloader, load_to_memory=False", load_to_memory=False)
_OWN_MEMORY = _make_own("streamloader, no packs", "streamloader, no packs, load_to_memory=True", "none")
_OWN_FILES = _make_own(
    "streamloader, files", "streamloader, no packs, load_to_memory=False", "none", load_to_memory=False
)
_PACK = Contender("bare pack", "bare MappedPack", "directory_peer", {"packs": "bare"}, _VIEWS)
_REFERENCE = Contender(
    "reference", "reference's algorithm", "plain_files_peer", {"algorithm": "reference"}, _BYTES, "reference's"
)
_REFERENCE_FILES = Contender(
    "reference, files", "reference's algorithm, load_to_memory=False", "plain_files_peer",
    {"algorithm": "reference files"}, _BYTES,
)  # fmt: skip
_FILES = Contender("files", "os.scandir and open", "plain_files_peer", {"algorithm": "scan"}, _BYTES)
_TAR = Contender("webdataset", "webdataset, one tar file", "small_webdataset_peer", {}, _BYTES)
_ZIP = Contender("zip", "zipfile", "single_file_peer", {"container": "zip"}, _BYTES)
_SQLITE = Contender("SQLite", "SQLite, mapped", "single_file_peer", {"container": "sqlite"}, _BYTES)
_LMDB = Contender("LMDB", "LMDB, buffers=True", "lmdb_peer", {}, _VIEWS, "LMDB's")
_LMDB_VALUES = Contender(
    "LMDB, values", "LMDB, buffers=True, values alone", "lmdb_peer", {"keys": False}, _VIEWS, "LMDB's"
)
_RANDOM = (
    *(_OWN, _OWN_NAMES, _OWN_MAPPED, _OWN_FILES, _PACK),
    *(_REFERENCE, _REFERENCE_FILES, _FILES, _ZIP, _SQLITE, _LMDB),
)
_START = (*(_OWN, _OWN_NAMES, _OWN_MAPPED, _PACK, _REFERENCE, _REFERENCE_FILES, _FILES, _TAR, _ZIP, _SQLITE, _LMDB),)
_START_COLUMNS = (
    Column("start_ms", "until the first file, ms", 1, less_is_better=True),
    Column("open_ms", "of that, opening", 1, less_is_better=True),
)
_RATES = (Column("files_per_s", "files/s, later passes"), Column("first_files_per_s", "first pass"))
_MEASURES = "small_files"
_WHOLE_REFERENCE = (
    "The reference's algorithm is re-created from its description: for each subdirectory it decompresses and unpickles "
    "one file, compares its names with a listing, and keeps all files in one dictionary. "
)


def _make_table(
    name: str, title: str, note: str, job: Job, measure: str, args: dict[str, Any], contenders: Sequence[Contender],
    columns: Sequence[Column], bars: Sequence[Bar] = (), *, by_default: bool = True,
) -> Table:  # fmt: skip
    measure = f"{_MEASURES}:{measure}"
    count = job.options["files"]
    if name == "million":
        prepare = functools.partial(find_files, count)
    else:
        prepare = functools.partial(make_sets, count, *([WARM_UP_FILES] if name == "memory" else []))
    return Table(name, title, note.strip(), job, measure, args, contenders, columns, bars, by_default, prepare)


def _make_start(job: Job, *, cold: bool) -> Table:
    note = (
        "Milliseconds from opening until the first file was read, with all modules imported. "
        + (
            "Before, the page cache of the machine was dropped, with directories and inodes. "
            if cold
            else "**The page cache is warm**: a process has just done the same. "
        )
        + _WHOLE_REFERENCE
        + "With load_to_memory=False it lists the files alone. webdataset reads the first sample of its file. "
    )
    bars = [Bar("start, of the reference's", "streamloader", ("reference",), "start_ms", 0.2, at_most=True)]
    return _make_table(
        "cold" if cold else "start", f"Start with packs, page cache {'dropped' if cold else 'warm'}", note, job,
        "start", {"cold": cold}, _START, _START_COLUMNS, bars, by_default=not cold,
    )  # fmt: skip


def _make_sequential(job: Job, seconds: float) -> Table:
    note = (
        "All files in the order that is fastest, in a loop that adds their sizes. streamloader: `items()` yields names "
        "and views, and iterating over the directory yields names, paths and bytes, as the reference does. The first "
        'pass compares each file with its pack (not with check="names") and each content with its checksum. LMDB: keys '
        "and values, or values alone. The bare pack: views alone. webdataset groups samples. "
    )
    own = (_OWN, _OWN_ITERATED, _OWN_NAMES, _OWN_MAPPED)
    contenders = (*own, _PACK, _REFERENCE, _FILES, _TAR, _ZIP, _SQLITE, _LMDB, _LMDB_VALUES)
    bars = [
        Bar("names and contents, of LMDB's", "streamloader", ("LMDB",), "files_per_s", 1.0),
        Bar("names, paths and bytes, of LMDB's", "streamloader, iterated", ("LMDB",), "files_per_s", 1.0),
        Bar(
            'names and contents, first pass, check="names", of LMDB\'s',
            "streamloader, names",
            ("LMDB",),
            "first_files_per_s",
            1.0,
        ),
        Bar("contents alone, bare pack, of LMDB's", "bare pack", ("LMDB, values",), "files_per_s", 1.0),
    ]
    return _make_table(
        "sequential", "In order, not decoded", note, job, "sequential", {"seconds": seconds}, contenders, _RATES, bars
    )


def _make_random(job: Job, seconds: float) -> Table:
    note = (
        "All files by name, in the order of one permutation, in a loop that adds their sizes. Names are strings. The "
        'first pass compares each file with its pack (not with check="names") and each content with its checksum. '
        + _WHOLE_REFERENCE
        + "With load_to_memory=False it opens a file for each read. "
    )
    bars = [
        Bar("later passes, of LMDB's", "streamloader", ("LMDB",), "files_per_s", 0.7),
        Bar('first pass, check="names", of LMDB\'s', "streamloader, names", ("LMDB",), "first_files_per_s", 0.7),
        Bar("later passes, of the reference's", "streamloader", ("reference",), "files_per_s", 3.0),
        Bar(
            "later passes, of the reference's, both load_to_memory=False", "streamloader, mapped",
            ("reference, files",), "files_per_s", 3.0,
        ),
    ]  # fmt: skip
    return _make_table(
        "random", "By name at random, not decoded", note, job, "by_name", {"seconds": seconds}, _RANDOM, _RATES, bars
    )


def _make_memory(job: Job) -> Table:
    note = (
        "What the process has grown by after all files were read at random (webdataset: in order), divided by the size "
        "of all files: RSS, which also counts mapped files in the page cache, and anonymous and shared memory alone. "
        f"Before, the process has read {WARM_UP_FILES:,} other files in the same way, so that the code of libraries, "
        "which does not grow with the data, is not counted. "
    )
    tar = dataclasses.replace(_TAR, options={"by_name": False})
    contenders = (
        *(_OWN, _OWN_NAMES, _OWN_MAPPED, _OWN_MEMORY, _OWN_FILES, _PACK),
        *(_REFERENCE, _REFERENCE_FILES, _FILES, tar, _ZIP, _SQLITE, _LMDB),
    )
    columns = (
        Column("rss", "RSS / size of the files", 2, less_is_better=True),
        Column("kept", "of that, memory", 2, less_is_better=True),
        Column("payload_mib", "size of the files, MiB", 1),
    )
    bars = [
        Bar(f"{text}{kind_text}", name, (), kind, 1.2, at_most=True)
        for name, text in (
            ("streamloader", "packs, "),
            ("streamloader, mapped", "packs, load_to_memory=False, "),
            ("streamloader, no packs", "no packs, load_to_memory=True, "),
        )
        for kind, kind_text in (("kept", "memory"), ("rss", "RSS"))
    ]
    return _make_table("memory", "Memory", note, job, "memory", {}, contenders, columns, bars)


def _make_decoded(job: Job, images: int) -> Table:
    note = (
        f"{images:,} files by name at random, decoded by Pillow. In turn with each contender, in the same process, "
        "Pillow alone decodes the same bytes from a list. "
    )
    columns = (
        Column("images_per_s", "images/s"),
        Column("bare_per_s", "Pillow alone, images/s"),
        Column("of_bare", "of Pillow alone", 2),
    )
    bars = [
        Bar("of Pillow alone", "streamloader", (), "of_bare", 0.9),
        Bar('of Pillow alone, check="names"', "streamloader, names", (), "of_bare", 0.9),
        Bar("of the reference's", "streamloader", ("reference",), "images_per_s", 3.0),
        Bar(
            "of the reference's, both load_to_memory=False", "streamloader, mapped", ("reference, files",),
            "images_per_s", 3.0,
        ),
    ]  # fmt: skip
    args = {"images": images}
    return _make_table(
        "decoded", "By name at random, decoded", note, job, "decoded", args, _RANDOM, columns, bars
    )  # fmt: skip


def _make_large(job: Job) -> Table:
    note = (
        f"{job.options['files']:,} files in {SUBDIRECTORIES} subdirectories, streamloader alone. Each row is a process "
        "of its own, with a warm page cache where the machine has the memory. What the process has grown by, in MiB: "
        "anonymous and shared memory and RSS afterwards, and the largest RSS in between. save_state releases the names "
        "that the open directory had in memory. "
    )
    steps = (
        ("streamloader, first start", "first start, load_to_memory=True", "first start", True),
        ("streamloader, first start, files", "first start, load_to_memory=False", "first start", False),
        ("streamloader, save_state", "save_state, load_to_memory=False", "save_state", False),
        ("streamloader, start", "start with packs", "start", True),
    )
    columns = (
        Column("seconds", "seconds", 2, less_is_better=True),
        Column("kept_mib", "memory", 0),
        Column("rss_mib", "RSS", 0),
        Column("peak_mib", "largest RSS", 0),
        Column("payload_mib", "size of the files", 0),
    )
    tables = [
        Contender(
            name,
            label,
            "directory_peer",
            {"step": step, "packs": "none", "directory": {"load_to_memory": load}},
            _VIEWS,
        )
        for name, label, step, load in steps
    ]
    return _make_table("million", "A large directory", note, job, "large", {}, tables, columns, by_default=False)


def question(quick: bool) -> Question:
    """Return the question with its tables."""
    count, many, seconds = (2_000, 10_000, 0.2) if quick else (100_000, 1_000_000, 2.0)
    job, large = (Job("files", (SIDE, SIDE), options={"files": number}) for number in (count, many))
    return Question(
        "directory",
        "Directories of small files",
        (
            _make_start(job, cold=False),
            _make_start(job, cold=True),
            _make_sequential(job, seconds),
            _make_random(job, seconds),
            _make_memory(job),
            _make_decoded(job, count // 5),
            _make_large(large),
        ),
    )


if __name__ == "__main__":
    main(question)

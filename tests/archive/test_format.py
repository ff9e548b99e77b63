"""docs/archive.md is complete: its program reads archives without this project, and gets the same frames."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from archive_data import reference
from made_clips import VARIANTS

from streamloader.archive.archive import Archive
from streamloader.archive.catalog.chunk_paths import build_chunk_path
from streamloader.archive.ingest.naming import compute_content

_PAGE = Path(__file__).parents[2] / "docs" / "archive.md"
_CLIPS = ("open_groups.mkv", "rotated.mp4", "late_start.ts", "no_key_frames.mkv", "mpeg4.avi", "422.mkv", "hevc.mp4")
# Runs the program with streamloader and torch blocked.
_ISOLATED = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("streamloader", "torch"):
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Blocker())
program = sys.argv.pop(1)
runpy.run_path(program, run_name="__main__")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    (text,) = [block for block in blocks if "python reader.py" in block]
    path = tmp_path_factory.mktemp("reader") / "reader.py"
    path.write_text(text)
    return path


def _run_program(program, catalog, numbers):
    command = [sys.executable, "-c", _ISOLATED, str(program), str(catalog), *map(str, numbers)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=program.parent, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def _expected(truth, numbers):
    return [f"{n} {truth[n].shape} {hashlib.sha256(truth[n].tobytes()).hexdigest()}" for n in numbers]


def _make_archive(folder, names, **options):
    paths = [VARIANTS[name](folder) for name in names]
    with Archive.create(folder / "store") as archive:
        archive.add([str(path) for path in paths], **{"chunk_frames": 15, "jobs": 0} | options)
    return [frame for path in paths for frame in reference(path)]


def test_the_program_in_the_document_reads_all_frames(program, tmp_path):
    truth = _make_archive(tmp_path, _CLIPS)
    numbers = [*range(0, len(truth), 7), len(truth) - 1, 0]
    assert _run_program(program, tmp_path / "store" / "catalog.sqlite", numbers) == _expected(truth, numbers)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["copy", "lossless"])
@pytest.mark.parametrize("name", VARIANTS)
def test_it_reads_every_kind_of_clip(name, mode, program, tmp_path):
    truth = _make_archive(tmp_path, [name], mode=mode)
    numbers = range(len(truth))
    assert _run_program(program, tmp_path / "store" / "catalog.sqlite", numbers) == _expected(truth, numbers)


def test_it_detects_a_flipped_bit(program, tmp_path):
    _make_archive(tmp_path, ["b_frames.mp4"])
    (chunk, *_) = sorted((tmp_path / "store" / "chunks").rglob("*.mp4"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(AssertionError, match="damaged"):
        _run_program(program, tmp_path / "store" / "catalog.sqlite", range(15))


def test_names_of_contents_and_paths_of_chunks_are_those_of_the_document(tmp_path):
    path = VARIANTS["b_frames.mp4"](tmp_path)
    with Archive.create(tmp_path / "store") as archive:
        (video,) = archive.add(str(path), chunk_frames=15, jobs=0).added
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    settings = {name: value for name, value in video.origin["settings"].items() if name != "verify"}
    document = json.dumps(
        {"digest": digest, "format": 1, "settings": settings}, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    content = hashlib.sha256(document.encode()).hexdigest()
    assert video.content == content == compute_content(digest, video.origin["settings"])
    files = sorted(file for file in (tmp_path / "store" / "chunks").rglob("*") if file.is_file())
    assert len(files) == video.chunks > 1
    for number, file in enumerate(files):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        expected = f"chunks/{content[:2]}/{content}/{number:06d}-{sha256[:16]}.mp4"
        assert str(file.relative_to(tmp_path / "store")) == expected == build_chunk_path(content, number, sha256, "mp4")

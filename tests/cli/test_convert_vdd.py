"""``streamloader convert-vdd``: exit status, output, and what lies on the disk."""

from __future__ import annotations

import os
import pickle
import zlib

import pytest

from streamloader.cli.main import main
from streamloader.containers.pack.mapped import MappedPack

TRUST = "--i-trust-this-file"


class Command:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    root.mkdir()
    for number in (2, 10):
        files = {f"{number}-{index}.png": bytes([index]) * 500 for index in range(3)}
        (root / f"subdir_{number}.vdd").write_bytes(zlib.compress(pickle.dumps(files)))
    return root


def convert(capsys, *arguments, status=0):
    """Run the command, and return its output: that of errors if it fails."""
    assert main(["convert-vdd", *map(str, arguments)]) == status
    out, errors = capsys.readouterr()
    if status:
        assert len(errors.splitlines()) == 1
        return errors
    assert errors == ""
    return out


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read_pack(path):
    with MappedPack.open(path) as pack:
        return {name: bytes(pack.read(row)) for row, name in enumerate(pack.index.names())}


def test_without_trust_nothing_is_opened(root, capsys):
    errors = convert(capsys, root, status=2)
    assert TRUST in errors
    assert "pickle" in errors
    assert "streamloader pack" in errors
    assert names(root) == ["subdir_10.vdd", "subdir_2.vdd"]


def test_all_files_of_a_folder(root, capsys):
    before = {path: path.read_bytes() for path in root.iterdir()}
    assert convert(capsys, root, TRUST) == "2 packs written: 6 files, 3.0 kB\n"
    assert names(root) == ["subdir_10.pack", "subdir_10.vdd", "subdir_2.pack", "subdir_2.vdd"]
    assert read_pack(root / "subdir_2.pack") == {f"2-{index}.png": bytes([index]) * 500 for index in range(3)}
    assert {path: path.read_bytes() for path in before} == before
    again = convert(capsys, root, TRUST)
    assert again.count("left as it is") == 2
    assert again.endswith("0 packs written: 0 files, 0 B\n")


def test_one_file_elsewhere_and_compressed(root, tmp_path, capsys):
    output = tmp_path / "new" / "packs"
    out = convert(capsys, root / "subdir_2.vdd", TRUST, "--output", output, "--compress", "zlib", "--quiet")
    assert out == "1 pack written: 3 files, 1.5 kB\n"
    assert names(output) == ["subdir_2.pack"]
    assert (output / "subdir_2.pack").stat().st_size < 600
    assert len(read_pack(output / "subdir_2.pack")) == 3
    assert names(root) == ["subdir_10.vdd", "subdir_2.vdd"]


def test_a_hostile_file_is_named_and_runs_nothing(root, tmp_path, capsys):
    (root / "subdir_3.vdd").write_bytes(zlib.compress(pickle.dumps({"a": Command()})))
    errors = convert(capsys, root, TRUST, status=2)
    assert "subdir_3.vdd was not converted: its pickle names posix.system" in errors
    assert names(root) == ["subdir_10.vdd", "subdir_2.pack", "subdir_2.vdd", "subdir_3.vdd"]  # in natural order
    assert names(tmp_path) == ["root"]
    (root / "subdir_3.vdd").unlink()
    assert convert(capsys, root, TRUST).endswith("1 pack written: 3 files, 1.5 kB\n")


def test_limits_of_memory(root, capsys):
    (root / "subdir_2.vdd").write_bytes(zlib.compress(pickle.dumps({"a": bytes(70 << 20)}), 1))
    errors = convert(capsys, root / "subdir_2.vdd", TRUST, "--max-memory", 64 << 20, status=2)
    assert "--max-memory" in errors
    assert (
        convert(capsys, root / "subdir_2.vdd", TRUST, "--max-memory", 256 << 20) == "1 pack written: 1 file, 73.4 MB\n"
    )


def test_what_is_no_file(root, tmp_path, capsys):
    assert "cannot be listed" in convert(capsys, tmp_path / "none", TRUST, status=2)
    (tmp_path / "empty").mkdir()
    assert "contains no .vdd files" in convert(capsys, tmp_path / "empty", TRUST, status=2)

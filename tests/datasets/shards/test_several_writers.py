"""Writers that meet in one folder, that nobody closes, or that a forked child inherits."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys

import pytest
from datasets.shards.upload_data import Images, check_not_taken_for_whole, make_folder, read_bucket, read_tree, upload
from optional_torch import needs_torch

import streamloader as sl

pytestmark = needs_torch  # RemoteDataset reads what was written

CLAIM = "manifest.json.unfinished"
WRITERS = 4


def write(writer, start, end):
    for number in range(start, end):
        writer.write({"cls": number, "bin": bytes(300)})


def write_all(address, count=35, options=None, **arguments):
    with sl.ShardWriter(address, maxcount=10, storage_options=options, **arguments) as writer:
        write(writer, writer.samples_written, count)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    write_all(str(folder))
    return read_tree(folder)


def test_the_earlier_writer_stops_and_the_later_one_goes_on(tmp_path, undisturbed):
    first = sl.ShardWriter(str(tmp_path), maxcount=10)
    write(first, 0, 25)
    second = sl.ShardWriter(str(tmp_path), maxcount=10)
    assert second.samples_written in (0, 10, 20)
    with pytest.raises(sl.DatasetExists, match="taken over by another writer") as caught:
        write(first, 25, 60)
    assert caught.value.details["dataset"] == str(tmp_path)
    with pytest.raises(sl.ClosedError):
        first.write({"cls": 1})
    first.close()
    check_not_taken_for_whole(str(tmp_path))
    write(second, second.samples_written, 35)
    second.close()
    assert read_tree(tmp_path) == undisturbed


def test_a_writer_that_was_overtaken_writes_no_manifest(tmp_path, undisturbed):
    first = sl.ShardWriter(str(tmp_path), maxcount=10)
    write(first, 0, 5)
    write_all(str(tmp_path))
    with pytest.raises(sl.DatasetExists, match="taken over by another writer"):
        first.close()
    assert read_tree(tmp_path) == undisturbed


def test_a_call_with_other_settings_does_not_disturb_a_writer(tmp_path, undisturbed):
    with sl.ShardWriter(str(tmp_path), maxcount=10) as writer:
        write(writer, 0, 25)
        assert (tmp_path / "00000.tar").exists()
        with pytest.raises(sl.DatasetExists, match="other settings"):
            sl.ShardWriter(str(tmp_path), maxcount=11)
        write(writer, 25, 35)
    assert read_tree(tmp_path) == undisturbed


ONE_OF_MANY = """
import sys
import streamloader as sl
from datasets.shards.upload_data import upload

print("ready", flush=True)
sys.stdin.readline()
try:
    upload(sys.argv[1], eval(sys.argv[2]))
    print("complete")
except sl.DatasetError as error:
    print(error)
"""


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_many_processes_at_once(tmp_path, seaweed_server, place):
    """One of them completes the data set, or the same call does; each other one does too, or says why not."""
    upload(str(tmp_path / "undisturbed"))
    if place == "folder":
        address, options = str(tmp_path / "set"), None
    else:
        address, options = make_folder(seaweed_server), seaweed_server.options()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_MANY, address, repr(options)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(WRITERS)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120)[0].strip() for process in processes]
    others = [text for text in results if text != "complete"]
    assert all("taken over by another writer" in text or "was deleted or replaced" in text for text in others), others
    upload(address, options)
    tree = read_tree(tmp_path / "set") if place == "folder" else read_bucket(seaweed_server, address)
    assert tree == read_tree(tmp_path / "undisturbed")


def test_shards_that_another_program_deletes_are_noticed(tmp_path, undisturbed):
    writer = sl.ShardWriter(str(tmp_path), maxcount=10)
    write(writer, 0, 35)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(sl.DatasetError, match=r"00000\.tar was deleted or replaced") as caught:
        writer.close()
    assert caught.value.details["shard"] == "00000.tar"
    check_not_taken_for_whole(str(tmp_path))
    write_all(str(tmp_path))
    assert read_tree(tmp_path) == undisturbed


def test_a_file_in_the_place_of_the_claim_is_not_replaced(tmp_path):
    (tmp_path / CLAIM).write_text(json.dumps({"mine": True}))
    with pytest.raises(sl.DatasetExists, match="no writer has made"):
        sl.ShardWriter(str(tmp_path))
    assert json.loads((tmp_path / CLAIM).read_text()) == {"mine": True}


def test_a_claim_is_enough_to_be_incomplete(tmp_path):
    writer = sl.ShardWriter(str(tmp_path))
    assert os.listdir(tmp_path) == [CLAIM]
    with pytest.raises(sl.DatasetIncomplete, match="The same call of the writer completes it"):
        sl.RemoteDataset(str(tmp_path))
    writer.abort()
    with pytest.raises(sl.DatasetIncomplete):
        sl.RemoteDataset(str(tmp_path))


def test_a_part_of_a_data_set_is_not_indexed_as_a_whole(tmp_path):
    writer = sl.ShardWriter(str(tmp_path), maxcount=10)
    write(writer, 0, 35)
    writer.abort()
    with pytest.raises(sl.DatasetIncomplete, match=f"delete {CLAIM}"):
        sl.index_shards(str(tmp_path))
    (tmp_path / CLAIM).unlink()
    assert sl.index_shards(str(tmp_path)) == len(list(tmp_path.glob("*.tar")))


def test_what_killed_writers_leave_behind_is_deleted(tmp_path, undisturbed):
    """The index of a shard, a shard with its index behind a gap, a file that was being written, and the claim."""
    upload(str(tmp_path / "other"), dataset=Images(120))
    for name in ("00004.tar.index", "00006.tar", "00006.tar.index", "00007.tar.index"):
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    (tmp_path / ".streamloader-new-0123456789abcdef").write_bytes(b"half")
    (tmp_path / "other" / ".streamloader-new-0123456789abcdef").write_bytes(b"of a subfolder")
    others = read_tree(tmp_path / "other")
    write_all(str(tmp_path))
    written = read_tree(tmp_path)
    assert {name: content for name, content in written.items() if not name.startswith("other/")} == undisturbed
    assert read_tree(tmp_path / "other") == others
    (tmp_path / CLAIM).write_bytes(b'{"format": "streamloader-unfinished-shards", "writer": "x"}\n')
    with sl.ShardWriter(str(tmp_path), maxcount=10) as writer:
        assert writer.is_complete
    assert not (tmp_path / CLAIM).exists()


@pytest.mark.parametrize("is_claimed", [True, False])
def test_a_shard_without_its_index_belongs_to_a_writer_if_there_is_a_claim(tmp_path, undisturbed, is_claimed):
    writer = sl.ShardWriter(str(tmp_path), maxcount=10)
    write(writer, 0, 25)
    writer.abort()
    (tmp_path / "00000.tar.index").unlink()
    if is_claimed:
        write_all(str(tmp_path))
        assert read_tree(tmp_path) == undisturbed
    else:
        (tmp_path / CLAIM).unlink()
        with pytest.raises(sl.DatasetExists, match=r"shards of another writer, such as '00000\.tar'"):
            write_all(str(tmp_path))


PROGRAM = """
import logging, sys
import streamloader as sl

logging.basicConfig()
writer = sl.ShardWriter(sys.argv[1], maxcount=10, storage_options=eval(sys.argv[2]))
for number in range(writer.samples_written, 25):
    writer.write({"cls": number, "bin": bytes(300)})
    if number == int(sys.argv[3]):
        raise ZeroDivisionError
"""


@pytest.mark.parametrize("error_at", [-1, 22], ids=["the end of the program", "an exception"])
def test_a_program_that_ends_without_closing_its_writer(seaweed_server, undisturbed, error_at):
    address, options = make_folder(seaweed_server), seaweed_server.options()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, address, repr(options), str(error_at)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == (0 if error_at < 0 else 1), done.stderr
    assert "the writer was not closed, so the data set is incomplete" in done.stderr
    assert ("ZeroDivisionError" in done.stderr) == (error_at >= 0)
    assert "Exception ignored" not in done.stderr
    check_not_taken_for_whole(address, options)
    write_all(address, options=options)
    assert read_bucket(seaweed_server, address) == undisturbed


def test_a_writer_that_is_dropped_says_so_and_stops_its_uploads(tmp_path, undisturbed, caplog):
    writer = sl.ShardWriter(str(tmp_path), maxcount=10)
    write(writer, 0, 15)
    with caplog.at_level(logging.WARNING, "streamloader"):
        del writer
        gc.collect()
    assert "the writer was not closed" in caplog.text
    check_not_taken_for_whole(str(tmp_path))
    write_all(str(tmp_path))
    assert read_tree(tmp_path) == undisturbed


def run_forked(function):
    """Return what a function raises in a forked child, as text, and whether the child ended by itself."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            function()
            result = "nothing"
        except BaseException as error:  # noqa: BLE001 - for the parent
            result = f"{type(error).__name__}: {error}"
        os.write(writing, result.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        result = file.read()
    assert os.waitpid(child, 0) == (child, 0)
    return result


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_leaves_the_writer_of_its_parent_alone(tmp_path, undisturbed):
    def leave_block():
        with writer:
            raise ZeroDivisionError

    with sl.ShardWriter(str(tmp_path), maxcount=10) as writer:
        write(writer, 0, 15)
        for function in (lambda: writer.write({"cls": 1}), writer.close):
            assert run_forked(function).startswith(f"ClosedError: the writer of {tmp_path} belongs to the parent")
        assert run_forked(writer.abort) == "nothing"
        assert run_forked(leave_block) == "ZeroDivisionError: "
        write(writer, 15, 35)
    assert read_tree(tmp_path) == undisturbed


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_writes_with_a_writer_of_its_own(tmp_path, undisturbed):
    with sl.ShardWriter(str(tmp_path / "parent"), maxcount=10) as writer:
        write(writer, 0, 15)
        assert run_forked(lambda: write_all(str(tmp_path / "child"))) == "nothing"
        write(writer, 15, 35)
    assert read_tree(tmp_path / "child") == read_tree(tmp_path / "parent") == undisturbed

"""``.vdd`` files: what is converted, and that a hostile one costs one typed error and leaves nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib

import pytest

import streamloader as sl
from streamloader.child_processes import Surroundings
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory import vdd, vdd_process

FILES = {"b.png": b"\x00\xff\x80" * 1000, "a": b"", "\u00fc.txt": b"x", "2.txt": b"two", "10.txt": bytes(range(256))}
MEMORY_BYTES = 256 << 20
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def convert(path, data, **arguments):
    """Convert a file with this content, and return the members of the pack in their order."""
    path.write_bytes(data)
    target = path.with_suffix(".pack")
    converted = vdd.convert_vdd(str(path), str(target), memory_bytes=MEMORY_BYTES, **arguments)
    assert path.read_bytes() == data  # untouched
    with MappedPack.open(target) as pack:
        members = {name: bytes(pack.read(row)) for row, name in enumerate(pack.index.names())}
        assert not any(pack.index.modified.tolist())
    assert (converted.source, converted.target) == (str(path), str(target))
    assert (converted.members, converted.bytes) == (len(members), sum(map(len, members.values())))
    return members


def in_order(files):
    return sorted(files.items(), key=lambda item: item[0].encode())


# --- what is converted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_come_back_from_every_protocol(protocol, tmp_path):
    members = convert(tmp_path / "x.vdd", zlib.compress(pickle.dumps(FILES, protocol)))
    assert list(members.items()) == in_order(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pack", "x.vdd"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_shapes_of_the_same_thing(protocol, tmp_path):
    """In one process, as the protocols above have shown the way through another one."""
    pairs = [(name, bytearray(content)) for name, content in FILES.items()]
    for value in (FILES, dict(pairs), pairs, tuple(pairs), [list(pair) for pair in pairs]):
        for data in (pickle.dumps(value, protocol), zlib.compress(pickle.dumps(value, protocol), 0)):
            members = vdd_process.read_members(io.BytesIO(data), MEMORY_BYTES)
            assert [(name.decode(), bytes(content)) for name, content in members] == in_order(FILES)


def test_an_empty_pack_and_names_that_are_not_utf8(tmp_path):
    assert convert(tmp_path / "x.vdd", zlib.compress(pickle.dumps({}))) == {}
    name = os.fsdecode(b"\xff.png")
    assert convert(tmp_path / "x.vdd", zlib.compress(pickle.dumps({name: b"1"}))) == {name: b"1"}


def test_progress_and_compression(tmp_path):
    shown = []
    files = {f"{number:03}": bytes(1000) for number in range(200)}
    members = convert(
        tmp_path / "x.vdd",
        zlib.compress(pickle.dumps(files)),
        compressor=sl.ZstdCompressor(),
        show=lambda done, total: shown.append((done, total)),
    )
    assert members == files
    assert shown == [(0, 200), (64, 200), (128, 200), (192, 200), (200, 200)]
    assert (tmp_path / "x.pack").stat().st_size < 50_000


# --- hostile files ---------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Plain:
    pass


def named(text, *, then=b"."):
    """Return a pickle that names a global."""
    module, _, name = text.rpartition(".")
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n" + then


PROTO = b"\x80\x04"
ENCODE = b"c_codecs\nencode\n"
BYTES = b"cbuiltins\nbytes\n"
WHOLE = pickle.dumps(FILES)
FORBIDDEN = {
    "os.system": (pickle.dumps({"a": Calls(os.system, "touch pwned")}), "posix.system"),
    "in protocol 0": (pickle.dumps({"a": Calls(os.system, "touch pwned")}, 0), "posix.system"),
    "exec": (pickle.dumps(Calls(exec, "import os")), "builtins.exec"),
    "eval in zlib": (zlib.compress(pickle.dumps([Calls(eval, "1")])), "builtins.eval"),
    "import": (pickle.dumps(Calls(__import__, "os")), "builtins.__import__"),
    "getattr": (pickle.dumps(Calls(getattr, "", "join")), "builtins.getattr"),
    "class": (named("tests.Plain"), "tests.Plain"),
    "dotted name": (PROTO + b"\x8c\x08builtins\x8c\x0fbytes.__class__\x93.", "builtins.bytes.__class__"),
    "set": (pickle.dumps({"a": Calls(set)}, 2), "set"),
    "ordered dictionary": (named("collections.OrderedDict"), "collections.OrderedDict"),
    "instance": (b"(iPlain\nPlain\n.", "Plain.Plain"),
    "submodule that is not imported": (named("antigravity.x"), "antigravity.x"),
    "codec": (PROTO + ENCODE + b"\x8c\x01a\x8c\x03zip\x86R.", "codec other than latin1"),
    "codec with error handler": (PROTO + ENCODE + b"\x8c\x01a\x8c\x06latin1\x8c\x06strict\x87R.", "codec other than"),
    "codec of bytes": (PROTO + ENCODE + b"C\x01a\x8c\x06latin1\x86R.", "codec other than latin1"),
    "bytes of a number": (PROTO + BYTES + b"J\x00\x00\x00\x7f\x85R.", "makes bytes of something else"),
    "bytes of a list": (PROTO + BYTES + b"]\x85R.", "makes bytes of something else"),
    "attribute of a stand-in": (PROTO + BYTES + b"N}\x8c\x01aK\x01s\x86b.", "damaged"),
    "class of a stand-in": (PROTO + BYTES + b"N}\x8c\x09__class__" + BYTES + b"s\x86b.", "damaged"),
    "object of a stand-in": (PROTO + BYTES + b")\x81.", "damaged"),
    "extension": (b"\x80\x02\x82\x01.", "damaged"),
    "persistent id": (b"\x80\x02Pa\n.", "objects outside of it"),
    "binary persistent id": (b"\x80\x02K\x01Q.", "objects outside of it"),
    "buffer outside": (b"\x80\x05\x97.", "damaged"),
}
DAMAGED = {
    "empty": (b"", "damaged"),
    "text": (b"hello world", "damaged"),
    "cut zlib": (zlib.compress(WHOLE)[:-3], "it is cut"),
    "cut zlib in the middle": (zlib.compress(WHOLE)[:60], "it is cut"),
    "two bytes of zlib": (zlib.compress(WHOLE)[:2], "it is cut"),
    "wrong checksum": (zlib.compress(WHOLE)[:-4] + b"\0\0\0\0", "damaged"),
    "flipped byte": (zlib.compress(WHOLE)[:30] + b"\xff" + zlib.compress(WHOLE)[31:], "damaged"),
    "after zlib": (zlib.compress(WHOLE) + b"x", "other data follow its compressed"),
    "after the pickle": (WHOLE + b"x", "other data follow its pickle"),
    "after the pickle in zlib": (zlib.compress(WHOLE + b"x"), "other data follow its pickle"),
    "cut pickle": (WHOLE[:-1], "damaged"),
    "cut pickle in zlib": (zlib.compress(WHOLE[:-1]), "damaged"),
    "zlib of text": (zlib.compress(b"hello world"), "damaged"),
}
MISSHAPEN = {
    "number": (5, "of type int instead of a dictionary"),
    "bytes": (b"x", "of type bytes instead of a dictionary"),
    "list of numbers": ([1], "of type int instead of a pair"),
    "list of texts": (["ab"], "of type str instead of a pair"),
    "triples": ([("a", b"", 1)], "of type tuple instead of a pair"),
    "content as number": ({"a": 1}, "of type int instead of bytes under the name 'a'"),
    "content as text": ({"a": "b"}, "of type str instead of bytes under the name 'a'"),
    "nested": ({"a": {"b": b""}}, "of type dict instead of bytes"),
    "name as bytes": ({b"a": b""}, "name of type bytes"),
    "parent": ({"../a": b""}, "'../a', which contains a slash"),
    "absolute": ({"/etc/passwd": b""}, "'/etc/passwd', which contains a slash"),
    "NUL": ({"a\0": b""}, "slash or NUL"),
    "hidden": ({".lock": b""}, "begins with a dot"),
    "empty name": ({"": b""}, "is empty"),
    "long name": ({"a" * 256: b""}, "256 bytes"),
    "surrogate": ({"\ud800": b""}, "surrogate"),
    "escape sequence": ({"\x1b[31m/": b""}, r"\\x1b"),
    "same name twice": ([("a", b"1"), ("b", b""), ("a", b"1")], "the name 'a' twice"),
}


def refuse(path, data, words, kind=sl.CorruptContainer):
    """Convert a file, and check that one typed error names it, and that nothing is left."""
    path.write_bytes(data)
    with pytest.raises(kind, match=words) as error:
        vdd.convert_vdd(str(path), str(path.with_suffix(".pack")), memory_bytes=MEMORY_BYTES)
    assert type(error.value) is kind
    assert error.value.address == str(path)
    assert f"{path.name} was not converted" in str(error.value)
    assert str(error.value).isprintable()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", [*FORBIDDEN, *DAMAGED])
def test_hostile_and_damaged_files(name, tmp_path, monkeypatch):
    """In one process, where nothing but the unpickler stands in the way."""
    monkeypatch.chdir(tmp_path)
    data, words = (FORBIDDEN | DAMAGED)[name]
    modules = set(sys.modules)
    with pytest.raises(vdd_process.UnusableVdd, match=words):
        vdd_process.read_members(io.BytesIO(data), MEMORY_BYTES)
    assert set(sys.modules) == modules
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["os.system", "codec", "persistent id", "extension", "cut zlib", "after the pickle"])
def test_hostile_and_damaged_files_are_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse(tmp_path / "x.vdd", *(FORBIDDEN | DAMAGED)[name])


@pytest.mark.parametrize("name", MISSHAPEN)
def test_other_contents(name):
    """In one process, as each of them is an error of the reader."""
    value, words = MISSHAPEN[name]
    for protocol in PROTOCOLS:
        with pytest.raises(vdd_process.UnusableVdd, match=words):
            vdd_process.read_members(io.BytesIO(pickle.dumps(value, protocol)), MEMORY_BYTES)


def test_other_contents_are_refused_by_name(tmp_path):
    value, words = MISSHAPEN["escape sequence"]
    refuse(tmp_path / "x.vdd", pickle.dumps(value), words)


BOMBS = {
    "zlib": zlib.compress(pickle.dumps({"a": bytes(300 << 20)}), 1),
    "zlib of zeros": zlib.compress(PROTO + b"N0" * (150 << 20)),
    "declared length": PROTO + b"\x8e" + struct.pack("<Q", 1 << 50) + b"abc.",
    "declared text": PROTO + b"\x8d" + struct.pack("<Q", 1 << 50) + b"abc.",
    "declared frame": PROTO + b"\x95" + struct.pack("<Q", 1 << 50) + b"abc.",
    "declared array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b"abc.",
    "memo": PROTO + b"}r\xff\xff\xff\x7f.",
    "containers": zlib.compress(PROTO + b"(" + b"]" * (8 << 20) + b"t."),
    "same bytes under many names": pickle.dumps({str(number): WHOLE for number in range(100_000)}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_of_memory(name, tmp_path):
    refuse(tmp_path / "x.vdd", BOMBS[name], "raise the limit of the memory", sl.LimitExceeded)


def test_a_bomb_of_time(tmp_path, monkeypatch):
    """A tuple of tuples of tuples: its hash takes 2**64 steps."""
    monkeypatch.setattr(vdd, "_BASE_CPU_S", 1)
    laughs = PROTO + b"})" + b"2\x86" * 64 + b"C\x00s."
    refuse(tmp_path / "x.vdd", laughs, "more CPU time", sl.LimitExceeded)


def test_a_bomb_of_depth(tmp_path):
    """Hashing a tuple nested three million times exhausts the stack. Only the process of the file ends."""
    refuse(tmp_path / "x.vdd", PROTO + b"})" + b"\x85" * 3_000_000 + b"C\x00s.", "ended the process|RecursionError")


def test_references_in_circles(tmp_path):
    value = []
    value.append(value)
    refuse(tmp_path / "x.vdd", pickle.dumps(value), "of type list instead of a pair")


# --- the process -----------------------------------------------------------------------------------------------------


def test_the_process_can_do_nothing_else():
    """Its limits and its audit hook, tried out by code that no pickle can bring in."""
    program = """
import os, socket, subprocess, sys
from streamloader.datasets.directory import vdd_process
vdd_process._limit_resources(1 << 30, 60)
sys.addaudithook(vdd_process._refuse_event)
for action in (
    lambda: open("pwned", "w"), lambda: open("/etc/passwd"), lambda: os.open("/etc/passwd", os.O_RDONLY),
    lambda: __import__("this"), lambda: exec("1"), lambda: eval("1"), lambda: compile("1", "", "eval"),
    lambda: os.system("true"), lambda: subprocess.Popen(["true"]), lambda: socket.socket(), lambda: os.listdir("."),
    lambda: os.remove("x"), lambda: os.fork(),
):
    try:
        action()
    except vdd_process.UnusableVdd:
        print("refused")
    else:
        print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["refused"] * 13


def send(document=None, body=b"", status=0):
    """Return the program of a process that sends this, whatever it is given."""
    text = b"" if document is None else json.dumps(document).encode()
    header = b"" if document is None else vdd_process.DOCUMENT_HEADER.pack(len(text))
    return [sys.executable, "-c", f"import os; os.write(1, {header + text + body!r}); os._exit({status})"]


def member(name, content, size=None):
    return vdd_process.MEMBER_HEADER.pack(len(name), len(content) if size is None else size) + name + content


TWO = {"members": 2, "bytes": 3}


@pytest.mark.parametrize(
    "command",
    [
        send(),
        send(status=3),
        send(body=b"\xff\xff\xff\xff"),
        send(body=vdd_process.DOCUMENT_HEADER.pack(3) + b"[1]"),
        send(body=vdd_process.DOCUMENT_HEADER.pack(3) + b"\xff{}"),
        send({}),
        send({"members": -1, "bytes": 0}),
        send({"members": 1, "bytes": "2"}),
        send({"members": 1 << 40, "bytes": 0}),
        send({"members": 1, "bytes": 1 << 60}),
        send({"problem": 5, "is_limit": False}),
        send({"problem": "x"}),
        send(TWO, member(b"a", b"1")),
        send(TWO, member(b"a", b"1") + member(b"b", b"2")),
        send(TWO, member(b"a", b"1") + member(b"b", b"22") + b"x"),
        send(TWO, member(b"a", b"1") + member(b"b", b"22"), status=1),
        send(TWO, member(b"a", b"1") + member(b"b", b"222")),
        send(TWO, member(b"a", b"1", size=1 << 60)),
        send(TWO, member(b"b", b"1") + member(b"a", b"22")),
        send(TWO, member(b"a", b"1") + member(b"a", b"22")),
        send(TWO, member(b"../a", b"1") + member(b"b", b"22")),
        send(TWO, member(b".a", b"1") + member(b"b", b"22")),
        send(TWO, member(b"", b"1") + member(b"b", b"22")),
    ],
)
def test_answers_of_a_process_that_was_taken_over(command, tmp_path, monkeypatch):
    monkeypatch.setattr(Surroundings, "command", lambda *arguments: command)
    refuse(tmp_path / "x.vdd", b"", "was not converted")


def test_an_honest_answer_of_such_a_process_is_taken(tmp_path, monkeypatch):
    command = send(TWO, member(b"a", b"1") + member(b"b", b"22"))
    monkeypatch.setattr(Surroundings, "command", lambda *arguments: command)
    assert convert(tmp_path / "x.vdd", b"") == {"a": b"1", "b": b"22"}


def test_escape_sequences_in_an_answer_are_shown_as_text(tmp_path, monkeypatch):
    command = send({"problem": "a\x1b[31m\nb", "is_limit": False})
    monkeypatch.setattr(Surroundings, "command", lambda *arguments: command)
    refuse(tmp_path / "x.vdd", b"", r"a\\x1b\[31m\\nb")


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_are_none(tmp_path):
    target, empty = str(tmp_path / "x.pack"), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(sl.NotFound, match=r"none\.vdd cannot be opened"):
        vdd.convert_vdd(str(tmp_path / "none.vdd"), target)
    os.mkfifo(tmp_path / "pipe.vdd")
    for path in (tmp_path, tmp_path / "pipe.vdd"):
        with pytest.raises(sl.StoreError, match="cannot be opened"):
            vdd.convert_vdd(str(path), target)
    (tmp_path / "x.vdd").write_bytes(WHOLE)
    with pytest.raises(sl.StoreError, match="cannot be written"):
        vdd.convert_vdd(str(tmp_path / "x.vdd"), str(tmp_path / "none" / "x.pack"))
    with pytest.raises(sl.NotFound, match=r"contains no \.vdd files"):
        vdd.find_vdd_files(str(empty))
    with pytest.raises(sl.NotFound, match="cannot be listed"):
        vdd.find_vdd_files(str(tmp_path / "none"))


def test_files_are_found_in_natural_order(tmp_path):
    for name in ("subdir_10.vdd", "subdir_2.vdd", ".hidden.vdd", "other.txt"):
        (tmp_path / name).touch()
    assert [os.path.basename(path) for path in vdd.find_vdd_files(str(tmp_path))] == ["subdir_2.vdd", "subdir_10.vdd"]
    assert vdd.find_vdd_files(str(tmp_path / "other.txt")) == [str(tmp_path / "other.txt")]


def test_the_old_pack_survives_a_file_that_is_refused(tmp_path):
    convert(tmp_path / "x.vdd", WHOLE)
    old = (tmp_path / "x.pack").read_bytes()
    (tmp_path / "x.vdd").write_bytes(WHOLE[:-1])
    with pytest.raises(sl.CorruptContainer):
        vdd.convert_vdd(str(tmp_path / "x.vdd"), str(tmp_path / "x.pack"))
    assert (tmp_path / "x.pack").read_bytes() == old


def test_memory_has_a_default():
    assert 0 < vdd.default_memory_bytes() <= 8 << 30

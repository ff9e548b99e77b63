"""A directory behaves as a dictionary, whatever happens to it, from inside and from outside."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
from datasets.directory.directory_data import PickleSerializer, XorCompressor, contents, on_disk, open_directory
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import streamloader as sl

NAMES = st.sampled_from(["a", "b.png", "é", "\udcff", "c" * 255, "d e", "f.tar.gz", "g"])
CONTENTS = st.sampled_from([b"", b"1", b"2", b"12345678", bytes(5000)])  # equal sizes, so that only times can differ
FOLDERS = st.integers(0, 3).map("subdir_{}".format)
OPTIONS = st.fixed_dictionaries(
    {
        "load_to_memory": st.booleans(),
        "compressor": st.sampled_from([None, None, sl.ZlibCompressor(), XorCompressor()]),
        "serializer": st.sampled_from([None, None, PickleSerializer()]),
    }
)


class DirectoryMachine(RuleBasedStateMachine):
    """One directory, the dictionary that it should be, and other programs that change its files."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.model = {}
        self.directory = None

    def teardown(self):
        if self.directory is not None:
            self.directory.close()
        shutil.rmtree(self.root)

    @initialize(options=OPTIONS)
    def start(self, options):
        self.options = options
        self.reopen()

    def reopen(self):
        if self.directory is not None:
            self.directory.close()
        self.directory = open_directory(self.root, **self.options)

    # --- from inside -------------------------------------------------------------------------------------------------

    @rule(name=NAMES, content=CONTENTS)
    def save(self, name, content):
        self.directory.save(name, content)
        self.model[name] = content

    @rule(name=NAMES)
    def remove(self, name):
        self.directory.remove(name)
        self.model.pop(name, None)

    @rule(name=NAMES)
    def load(self, name):
        assert self.directory.load(name) == self.model.get(name)
        assert self.directory.exists(name) == (name in self.model)

    @rule()
    def save_state(self):
        self.directory.save_state()

    @rule()
    def redistribute(self):
        self.directory.redistribute_all_files(are_you_sure=True)
        counts = [sum(folder == f"subdir_{number}" for folder, _ in on_disk(self.root)) for number in range(4)]
        assert max(counts) - min(counts) <= 1

    @rule(options=OPTIONS)
    def open_with_other_options(self, options):
        self.options = options
        self.reopen()

    @rule()
    def iterate(self):
        triples = list(self.directory)
        assert [name for name, _, _ in triples] == self.directory.get_list_of_files()
        if self.options["load_to_memory"]:
            assert {name: data for name, _, data in triples} == self.model
        for name, path, _ in triples:
            assert path == self.directory.get_path(name)
            assert os.path.isfile(path)

    # --- from outside ------------------------------------------------------------------------------------------------

    def find(self, name):
        return next(self.root / folder / name for folder, other in on_disk(self.root) if other == name)

    @rule(name=NAMES, content=CONTENTS, folder=FOLDERS)
    def write_from_outside(self, name, content, folder):
        self.directory.close()
        path = self.find(name) if name in self.model else self.root / folder / name
        path.write_bytes(content)
        self.model[name] = content
        self.reopen()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), content=CONTENTS)
    def replace_from_outside(self, data, content):
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.directory.close()
        new = self.root / "in_root"
        new.write_bytes(content)
        new.replace(self.find(name))
        self.model[name] = content
        self.reopen()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete_from_outside(self, data):
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.directory.close()
        self.find(name).unlink()
        del self.model[name]
        self.reopen()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), folder=FOLDERS)
    def move_from_outside(self, data, folder):
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.directory.close()
        self.find(name).rename(self.root / folder / name)
        self.reopen()

    @rule(data=st.data())
    def damage_a_pack(self, data):
        packs = sorted(self.root.glob("*.pack"))
        if not packs:
            return
        self.directory.close()
        path = data.draw(st.sampled_from(packs))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        self.reopen()

    # --- always ------------------------------------------------------------------------------------------------------

    @invariant()
    def equals_the_model(self):
        if self.directory is None:
            return
        assert len(self.directory) == len(self.model)
        assert contents(self.directory) == self.model
        assert {name: content for (_, name), content in on_disk(self.root).items()} == self.model


TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = hypothesis.settings(max_examples=12, stateful_step_count=15)

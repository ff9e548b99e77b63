"""What a directory is to be, whatever it lies in: a dictionary. Each place adds what other programs do there."""

from __future__ import annotations

from datasets.directory.directory_data import PickleSerializer, XorCompressor, contents
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import streamloader as sl

NAMES = st.sampled_from(["a", "b.png", "é", "c" * 255, "d e", "f.tar.gz"])
CONTENTS = st.sampled_from([b"", b"1", b"2", b"12345678", bytes(5000)])  # equal sizes, so that these tell nothing
OPTIONS = st.fixed_dictionaries(
    {
        "load_to_memory": st.booleans(),
        "compressor": st.sampled_from([None, None, sl.ZlibCompressor(), XorCompressor()]),
        "serializer": st.sampled_from([None, None, PickleSerializer()]),
    }
)


class DirectoryModel(RuleBasedStateMachine):
    """One directory, and the dictionary that it should be."""

    def __init__(self):
        super().__init__()
        self.model = {}
        self.directory = None

    def open(self, **options):
        """Open the directory."""
        raise NotImplementedError

    def read_files(self):
        """The content of each file by name, read without the directory."""
        raise NotImplementedError

    def teardown(self):
        if self.directory is not None:
            self.directory.close()

    @initialize(options=OPTIONS)
    def start(self, options):
        self.options = options
        self.reopen()

    def reopen(self):
        if self.directory is not None:
            self.directory.close()
        self.directory = self.open(**self.options)

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

    @invariant()
    def equals_the_model(self):
        if self.directory is None:
            return
        assert len(self.directory) == len(self.model)
        assert contents(self.directory) == self.model
        assert self.directory.read_many([*self.model, "absent"]) == [*self.model.values(), None]
        assert self.read_files() == self.model

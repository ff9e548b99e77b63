"""A directory on S3 behaves as a dictionary, whatever happens to it, from inside and from outside."""

from __future__ import annotations

import hypothesis
from datasets.directory.directory_data import PickleSerializer, XorCompressor, contents
from datasets.directory.remote_data import S3Root
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import streamloader as sl

NAMES = st.sampled_from(["a", "b.png", "é", "c" * 255, "d e", "f.tar.gz"])
CONTENTS = st.sampled_from([b"", b"1", b"2", b"12345678", bytes(5000)])  # equal sizes, so that only versions differ
FOLDERS = st.integers(0, 2).map("subdir_{}".format)
OPTIONS = st.fixed_dictionaries(
    {
        "load_to_memory": st.booleans(),
        "compressor": st.sampled_from([None, None, sl.ZlibCompressor(), XorCompressor()]),
        "serializer": st.sampled_from([None, None, PickleSerializer()]),
    }
)


class RemoteMachine(RuleBasedStateMachine):
    """One directory, the dictionary that it should be, and other programs that change its files."""

    def __init__(self, server):
        super().__init__()
        self.s3 = S3Root(server)
        self.model = {}
        self.directory = None

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
        self.directory = self.s3.open(min_subdir_num=3, **self.options)

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

    # --- from outside ------------------------------------------------------------------------------------------------

    def find(self, name):
        return next(path for path in self.s3.names() if path.endswith(f"/{name}"))

    @rule(name=NAMES, content=CONTENTS, folder=FOLDERS)
    def write_from_outside(self, name, content, folder):
        self.s3.put({self.find(name) if name in self.model else f"{folder}/{name}": content})
        self.model[name] = content
        self.reopen()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete_from_outside(self, data):
        name = data.draw(st.sampled_from(sorted(self.model)))
        path = self.find(name)
        folder = path.partition("/")[0]
        if sum(other.startswith(f"{folder}/") for other in self.s3.names()) == 1:
            self.s3.delete(f"{folder}.pack")  # without any file, it would be served as it is
        self.s3.delete(path)
        del self.model[name]
        self.reopen()

    @rule(data=st.data())
    def damage_a_pack(self, data):
        packs = [name for name in self.s3.names() if name.endswith(".pack")]
        if not packs:
            return
        name = data.draw(st.sampled_from(packs))
        content = bytearray(self.s3.get(name))
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        self.s3.put({name: bytes(content)})
        self.reopen()

    # --- always ------------------------------------------------------------------------------------------------------

    @invariant()
    def equals_the_model(self):
        if self.directory is None:
            return
        assert len(self.directory) == len(self.model)
        assert contents(self.directory) == self.model
        names = [*self.model, "absent"]
        assert self.directory.read_many(names) == [*self.model.values(), None]
        paths = [path for path in self.s3.names() if "/" in path]
        assert {path.partition("/")[2]: self.s3.get(path) for path in paths} == self.model


def test_a_directory_on_s3(seaweed_server):
    settings = hypothesis.settings(max_examples=3, stateful_step_count=12)
    run_state_machine_as_test(lambda: RemoteMachine(seaweed_server), settings=settings)

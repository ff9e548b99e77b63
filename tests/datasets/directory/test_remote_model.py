"""A directory on S3 behaves as a dictionary, whatever happens to it, from inside and from outside."""

from __future__ import annotations

import hypothesis
from datasets.directory.directory_model import CONTENTS, NAMES, DirectoryModel
from datasets.directory.remote_data import S3Root
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

FOLDERS = st.integers(0, 2).map("subdir_{}".format)


class RemoteMachine(DirectoryModel):
    """A directory on S3, and other programs that change its files."""

    def __init__(self, server):
        super().__init__()
        self.s3 = S3Root(server)

    def open(self, **options):
        return self.s3.open(min_subdir_num=3, **options)

    def read_files(self):
        paths = [path for path in self.s3.names() if "/" in path]
        return {path.partition("/")[2]: self.s3.get(path) for path in paths}

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


def test_a_directory_on_s3(seaweed_server):
    settings = hypothesis.settings(max_examples=3, stateful_step_count=12)
    run_state_machine_as_test(lambda: RemoteMachine(seaweed_server), settings=settings)

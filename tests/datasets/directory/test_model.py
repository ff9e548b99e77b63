"""A directory behaves as a dictionary, whatever happens to it, from inside and from outside."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
from datasets.directory.directory_data import on_disk, open_directory
from datasets.directory.directory_model import CONTENTS, NAMES, DirectoryModel
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

FOLDERS = st.integers(0, 3).map("subdir_{}".format)


class DirectoryMachine(DirectoryModel):
    """A directory on a disk, and other programs that change its files."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())

    def open(self, **options):
        return open_directory(self.root, **options)

    def read_files(self):
        return {name: content for (_, name), content in on_disk(self.root).items()}

    def teardown(self):
        super().teardown()
        shutil.rmtree(self.root)

    # --- from inside -------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(["\udcff", "g"]), content=CONTENTS)
    def save_under_an_odd_name(self, name, content):
        self.save(name, content)

    @rule()
    def redistribute(self):
        self.directory.redistribute_all_files(are_you_sure=True)
        counts = [sum(folder == f"subdir_{number}" for folder, _ in on_disk(self.root)) for number in range(4)]
        assert max(counts) - min(counts) <= 1

    @rule()
    def find_all_paths(self):
        for name, path, _ in self.directory:
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


TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = hypothesis.settings(max_examples=12, stateful_step_count=15)

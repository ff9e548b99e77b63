"""The conformance suite of containers: a subclass provides a format and inherits the tests.

A binding says how another program writes such a file, how one reads it, and how a number in it is forged::

    from streamloader.testing import ContainerSuite

    class TestMyContainer(ContainerSuite):
        container = MyContainer
        checksum = "member"   # each content has one; "file" if only the whole file has, "nothing" without checksums

        def build(self, files):
            return my_writer(files)   # (name, bytes) pairs -> bytes of a container

        def read_reference(self, data):
            for entry in my_reader(data):
                yield entry.name, entry.content

        def forge_number(self, data, rng):
            return my_forger(data, rng)   # one number of a header replaced, checksums of headers corrected

A file that is compressed as a whole sets ``is_compressed = True`` and defines ``compress`` and ``decompress``. A format
that sorts its members by name sets ``is_sorted = True``. The objects are in memory; a binding overrides ``make_store``
and ``make_path`` to have them elsewhere. :class:`streamloader.testing.containers.binding.ContainerBinding` lists all
settings.

Damaged files (cut, flipped, altered at random) are judged by :mod:`streamloader.testing.containers.verdict`: right
bytes or one typed error. The tests marked ``slow`` repeat this for every byte and for 1,000 mutants.
"""

from __future__ import annotations

from streamloader.testing.containers.mutants import ContainerMutantSuite
from streamloader.testing.containers.passes import MemberPassSuite
from streamloader.testing.containers.reads import MemberReadSuite
from streamloader.testing.containers.scans import MemberScanSuite

__all__ = ["ContainerSuite"]


class ContainerSuite(MemberScanSuite, MemberReadSuite, MemberPassSuite, ContainerMutantSuite):
    """All tests of containers. Inherit from it in a class whose name pytest collects."""

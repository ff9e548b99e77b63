"""Names that several subdirectories have, although all files of a directory lie on one level."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from streamloader.common.printable import make_printable
from streamloader.datasets.directory.filenames import make_free_name
from streamloader.datasets.directory.local_root import LocalRoot
from streamloader.datasets.directory.name_table import NameTable

__all__ = ["FileCopies", "describe_copies", "find_copies", "rename_copies"]

_log = logging.getLogger(__name__)

FileCopies: TypeAlias = dict[str, list[str]]  # names of the subdirectories that have a file, by its name


def find_copies(table: NameTable, loose: Mapping[str, set[str]]) -> FileCopies:
    """Return the names that several subdirectories have, with these in their order.

    Args:
        table: Table of the names in packs.
        loose: Names of the files that no pack serves, by subdirectory in natural order.
    """
    copies = {name: {pack.subdirectory for pack, _ in members} for name, members in table.find_duplicates()}
    first_owners: dict[str, str] = {}
    for subdirectory, names in loose.items():
        for name in names:
            if first_owners.setdefault(name, subdirectory) != subdirectory:
                copies.setdefault(name, {first_owners[name]}).add(subdirectory)
            if (member := table.find(name)) is not None:
                copies.setdefault(name, set()).update((member[0].subdirectory, subdirectory))
    order = {name: position for position, name in enumerate(loose)}
    return {name: sorted(copies[name], key=order.__getitem__) for name in sorted(copies)}


def describe_copies(root: LocalRoot, copies: FileCopies) -> str:
    """Return how many names there are, and the paths of one."""
    filename, subdirectories = next(iter(copies.items()))
    count = "a name is" if len(copies) == 1 else f"{len(copies)} names are"
    paths = [make_printable(root.path(subdirectory, filename), 500) for subdirectory in subdirectories[:2]]
    return f"{root.address}: {count} in more than one subdirectory, for example {' and '.join(paths)}"


def rename_copies(root: LocalRoot, copies: FileCopies, is_taken: Callable[[str], bool]) -> None:
    """Rename all copies but the first of each name, to names like "name (2).png".

    Args:
        root: Files of the directory.
        copies: Names with their subdirectories.
        is_taken: Function that returns whether a subdirectory has a name.

    Raises:
        StoreError: If a file cannot be renamed.
    """
    new_names: set[str] = set()
    for filename, (_, *others) in copies.items():
        for subdirectory in others:
            name = make_free_name(filename, lambda name: name in new_names or is_taken(name))
            new_names.add(name)
            if root.move_file(filename, subdirectory, subdirectory, name):
                _log.warning(
                    "%s is now %s, because another subdirectory has the same name",
                    make_printable(root.path(subdirectory, filename), 500),
                    make_printable(name, 300),
                )

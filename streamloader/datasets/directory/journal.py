"""Moves of files between subdirectories, planned first, written down, and then made one by one.

Each move is one ``rename``, so a process that is killed leaves every file in one of two subdirectories. The next
instance that opens the directory makes the moves that are missing.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from streamloader.datasets.directory.filenames import describe_bad_filename
from streamloader.datasets.directory.local_root import LocalRoot

__all__ = ["JOURNAL_NAME", "FileMove", "finish_moves", "make_moves", "plan_moves"]

_log = logging.getLogger(__name__)

JOURNAL_NAME: Final = ".redistribute.json"
_VERSION: Final = 1
_SHOW_EVERY: Final = 256  # moves

ShowCount = Callable[[int, int], None]


class FileMove(NamedTuple):
    """Move of one file to another subdirectory, under the same name."""

    filename: str
    source: str
    target: str


def plan_moves(files: Sequence[tuple[str, str]], subdirectories: Sequence[str], seed: int | None) -> list[FileMove]:
    """Return the moves after which all subdirectories have the same number of files, or one more.

    Args:
        files: Name and subdirectory of each file, in a fixed order.
        subdirectories: All subdirectories among which the files are distributed.
        seed: Seed of the random distribution. None for another one each time.
    """
    rng = random.Random(seed)  # noqa: S311 - a distribution, no secret
    targets = [subdirectories[index % len(subdirectories)] for index in range(len(files))]
    rng.shuffle(targets)
    return [
        FileMove(filename, source, target)
        for (filename, source), target in zip(files, targets, strict=True)
        if source != target
    ]


def make_moves(root: LocalRoot, moves: Sequence[FileMove], show: ShowCount) -> None:
    """Write the journal, make all moves, and remove the journal.

    Raises:
        StoreError: If a file cannot be moved. The journal remains, and the next instance goes on with it.
    """
    text = json.dumps({"version": _VERSION, "moves": moves}, separators=(",", ":"))
    root.write_file(JOURNAL_NAME, text.encode())
    _apply(root, moves, show)


def finish_moves(root: LocalRoot, show: ShowCount) -> int:
    """Make the moves of a journal that a killed process has left. Return their number.

    A journal that cannot be read is removed: every file remains where it is.

    Raises:
        StoreError: If a file cannot be moved.
    """
    data = root.read_root_file(JOURNAL_NAME)
    if data is None:
        return 0
    try:
        moves = _parse(json.loads(data))
    except (ValueError, RecursionError):
        _log.warning("%s: the journal %s is damaged. All files stay where they are", root.address, JOURNAL_NAME)
        moves = []
    _apply(root, moves, show)
    return len(moves)


def _apply(root: LocalRoot, moves: Sequence[FileMove], show: ShowCount) -> None:
    for number, move in enumerate(moves):
        if number % _SHOW_EVERY == 0:
            show(number, len(moves))
        root.move_file(move.filename, move.source, move.target)
    show(len(moves), len(moves))
    root.delete_root_file(JOURNAL_NAME)


def _parse(journal: Any) -> list[FileMove]:
    if not isinstance(journal, dict) or journal.get("version") != _VERSION:
        raise ValueError("it is no journal of this version")
    moves = journal.get("moves")
    if not isinstance(moves, list) or not all(map(_is_move, moves)):
        raise ValueError("its moves are not valid")
    return [FileMove(*move) for move in moves]


def _is_move(move: Any) -> bool:
    """Return whether a value is a move within the directory. A journal could name files outside of it."""
    return (
        isinstance(move, list)
        and len(move) == len(FileMove._fields)
        and all(isinstance(part, str) and describe_bad_filename(part) is None for part in move)
    )

"""The rules of a search for files: links, hidden names, and what may not be read. They are the same for every store.

* Links are followed, but not into a directory that lies above them (as ``find -L`` does): every search ends.
* Names that begin with a dot are passed over, and directories of such names are not entered, unless a pattern has an
  explicit dot.
* A directory that may not be read is left out, and one warning names all of them. See :class:`UnreadableReport`.
* Pipes, sockets, devices and links that lead nowhere are errors if their names are those of wanted files.
* A file or directory that is named literally, and is missing or cannot be accessed, is such an error, too.
* A pattern without matches, and a directory without files of the right kind, are errors that nothing leaves out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from streamloader.common.printable import make_printable
from streamloader.errors import StreamloaderError, StreamNotFound
from streamloader.stores.patterns import has_magic

__all__ = [
    "ListingProblem", "PatternMatches", "PatternSearch", "SearchStep", "TreeSearch", "Unreadable", "UnreadableReport",
    "match_parts", "open_report",
]  # fmt: skip

Unreadable: TypeAlias = Literal["raise", "skip"] | None

T = TypeVar("T")

_MAX_LISTED: Final = 20  # entries in a message
_MAX_DETAILS: Final = 1000  # entries in the details of an error
_MAX_REASON_CHARACTERS: Final = 500
_ADVICE: Final = 'Give access to them, move them away, or pass unreadable="skip" to leave them out'
_NAMED_ADVICE: Final = 'Correct the names, or pass unreadable="skip" to leave out what is missing or may not be read'
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class ListingProblem:
    """An entry of a listing that is no object that can be read.

    Attributes:
        path: Path within the store.
        error: Reason.
        is_directory: Whether it is a directory, or a link that may lead to one.
    """

    path: str
    error: StreamloaderError
    is_directory: bool


@dataclass(frozen=True, slots=True)
class TreeSearch:
    """Rules of one listing that belongs to a search.

    Attributes:
        report: Function that receives each entry that may not be read. The listing goes on without it.
        show_hidden: Whether names that begin with a dot are listed, and directories of such names are entered. Defaults
            to False.
    """

    report: Callable[[ListingProblem], None]
    show_hidden: bool = False


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A request of :func:`match_parts`. Each folder is answered with its matching objects and subfolders.

    Attributes:
        kind: ``"level"``: the entries of a folder whose names match `parts`, a single part. ``"tree"``: the objects at
            any depth whose relative paths match `parts`. ``"name"``: the object or folder at the path itself.
        folders: Paths of folders. For ``"name"``, paths of objects or folders.
        parts: Segments of the pattern. None for ``"name"``.
        number: Number of the first of these segments in the pattern.
        is_last: Whether objects are results. Otherwise only the subfolders of the answers are used.
    """

    kind: Literal["level", "tree", "name"]
    folders: Sequence[str]
    parts: Sequence[str]
    number: int
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class PatternMatches(Generic[T]):
    """Result of a pattern.

    Attributes:
        objects: Matching objects, in no particular order.
        folder_count: Number of matching folders.
    """

    objects: list[T]
    folder_count: int


PatternSearch: TypeAlias = Generator[SearchStep, Sequence[tuple[list[T], list[str]]], PatternMatches[T]]


def match_parts(parts: Sequence[str], start: str, join: Callable[[str, str], str]) -> PatternSearch[T]:
    """Match a pattern level by level. The caller answers each step, from files or from a store.

    Args:
        parts: Segments of the pattern.
        start: Path of the folder in which the search begins.
        join: Function that joins the path of a folder and a name.
    """
    folders = [start]
    answers: Sequence[tuple[list[T], list[str]]]
    for number, part in enumerate(parts):
        if part == "**":
            answers = yield SearchStep("tree", folders, parts[number:], number)
            return PatternMatches([item for objects, _ in answers for item in objects], 0)
        if not has_magic(part):
            folders = [join(folder, part) for folder in folders]
            continue
        is_last = number == len(parts) - 1
        answers = yield SearchStep("level", folders, parts[number : number + 1], number, is_last)
        folders = [folder for _, subfolders in answers for folder in subfolders]
        if is_last:
            return PatternMatches([item for objects, _ in answers for item in objects], len(folders))
    answers = yield SearchStep("name", folders, (), len(parts))
    return PatternMatches([item for objects, _ in answers for item in objects], sum(len(names) for _, names in answers))


class UnreadableReport:
    """Collects what a search may not read or does not find, for one warning or one error.

    Its owner calls :meth:`check` after the search, and :meth:`finish` when it knows what else is wrong.

    Args:
        handling: ``"raise"`` raises one error for all entries; ``"skip"`` leaves all of them out, with one warning.
            None, the default, does the former for files, which belong to the dataset by their names, and the latter
            for directories, such as ``lost+found``. A pattern that matches nothing, and a directory without files of
            the right kind, are errors in any case.
    """

    def __init__(self, handling: Unreadable = None) -> None:
        self.handling = handling
        self._files: dict[str, StreamloaderError] = {}
        self._directories: dict[str, StreamloaderError] = {}
        self._named: dict[str, StreamloaderError] = {}  # those of the files that the user named literally
        self._unmatched: dict[str, StreamloaderError] = {}
        self._emptied: StreamNotFound | None = None  # of the first source of which everything is left out
        self._additions: list[tuple[str, StreamloaderError, bool]] = []

    def add_file(self, address: str, error: StreamloaderError) -> None:
        """Record a pipe, a socket, a device, a link that leads nowhere, or another file that cannot be accessed."""
        self._files.setdefault(address, error)
        self._additions.append((address, error, True))

    def add_named(self, address: str, error: StreamloaderError) -> None:
        """Record a file or a directory that was named literally, and is missing or cannot be accessed."""
        self._named.setdefault(address, error)
        self.add_file(address, error)

    def add_directory(self, address: str, error: StreamloaderError) -> None:
        """Record a directory that may not be read."""
        self._directories.setdefault(address, error)
        self._additions.append((address, error, False))

    def add_unmatched(self, address: str, error: StreamNotFound, mark: int | None = None) -> None:
        """Record a pattern or a directory in which no file was found.

        Args:
            address: Address of the pattern or directory, without secrets.
            error: Error for it.
            mark: Value of :attr:`mark` before its search. If something could not be read since then, that is why there
                is no file. Defaults to the present one.
        """
        problems = [] if mark is None else self._additions[mark:]
        if self.handling == "skip" and problems:
            self._emptied = self._emptied or error
        elif not any(is_file or self.handling == "raise" for _, _, is_file in problems):  # else they are the errors
            files = {name: each for name, each, is_file in problems if is_file}
            text = _describe({name: each for name, each, _ in problems}, files)
            full = StreamNotFound(error.message + text, address=error.address) if text else error
            self._unmatched.setdefault(address, full)

    @property
    def mark(self) -> int:
        """Number of records until now."""
        return len(self._additions)

    @property
    def files(self) -> Mapping[str, StreamloaderError]:
        """The recorded files, and the named directories, by address."""
        return self._files

    @property
    def entries(self) -> dict[str, StreamloaderError]:
        """All recorded files and directories, by address."""
        return self._directories | self._files

    @property
    def errors(self) -> dict[str, StreamloaderError]:
        """Errors that :meth:`finish` raises, by address."""
        if self.handling == "skip":
            return dict(self._unmatched)
        errors = self._files | self._unmatched
        return errors if self.handling is None else errors | self._directories

    def describe(self) -> str:
        """Return the end of a message about a search that found nothing: what it could not read, or ""."""
        return _describe(self.entries, self._files)

    def make_error(self) -> StreamloaderError | None:
        """Return one error for the entries that are errors, or None if there are none."""
        return _combine(self.errors, self._advice) if self.errors else None

    def make_file_error(self) -> StreamloaderError | None:
        """Return one error for what :meth:`make_error` covers and for the files that are left out, or None."""
        errors = self._files | self.errors
        return _combine(errors, self._advice) if errors else None

    def check(self, found: Sized) -> None:
        """Raise an error if a pattern matched nothing, or if the search found no file. It lists all errors.

        Args:
            found: Files that the search found.
        """
        if self._unmatched or not found:
            self.raise_errors()
        if found:
            return
        if self._emptied is not None:
            raise StreamNotFound(self._emptied.message + self.describe(), address=self._emptied.address)
        if self._files:
            raise _combine(self._files, "", f"none of the {len(self._files):,} files or directories can be used")

    def raise_named(self) -> None:
        """Raise one error for the files and directories that were named literally, unless they are left out."""
        if self._named and self.handling != "skip":
            raise _combine(self._named, self._advice)

    def raise_errors(self) -> None:
        """Raise one error for the entries that are errors, if there are any."""
        error = self.make_error()
        if error is not None:
            raise error

    def finish(self) -> None:
        """Raise one error for the entries that are errors, or log one warning that names all others."""
        self.raise_errors()
        self.warn()

    def warn(self) -> None:
        """Log one warning that names all entries that are no errors."""
        errors = self.errors
        entries = {name: error for name, error in self.entries.items() if name not in errors}
        if entries:
            files = {name: error for name, error in entries.items() if name in self._files}
            problem = "cannot be used" if any(name in self._named for name in files) else "may not be read"
            count = f"{len(entries):,} {_choose_noun(entries, files)}"
            _log.warning("%s", f"left out {count} that {problem}:\n{_list_entries(entries)}")

    @property
    def _advice(self) -> str:
        if self.handling == "skip":
            return ""
        return _NAMED_ADVICE if self._named or self._unmatched else _ADVICE


@contextlib.contextmanager
def open_report(unreadable: Unreadable | UnreadableReport, found: Sized) -> Iterator[UnreadableReport]:
    """Provide a report, which is checked and finished at the end of the block unless it is the caller's own.

    Args:
        unreadable: Report of the caller, or handling.
        found: Files that the search finds within the block.
    """
    if isinstance(unreadable, UnreadableReport):
        yield unreadable
        return
    report = UnreadableReport(unreadable)
    yield report
    report.check(found)
    report.finish()


def _combine(errors: Mapping[str, StreamloaderError], advice: str, problem: str | None = None) -> StreamloaderError:
    """Return one error that lists all, of the class of the first."""
    addresses = sorted(errors)
    first = errors[addresses[0]]
    if len(addresses) == 1:
        return first
    if problem is None:
        verb = "used" if advice != _ADVICE else "read"
        problem = f"{len(addresses):,} files or directories cannot be {verb}"
    lines = [f"{problem}:", _list_entries(errors), *([advice] if advice else [])]
    combined = type(first)("\n".join(lines), address=first.address)
    combined.details = first.details | {
        "failed": [[name, type(errors[name]).__name__, errors[name].message] for name in addresses[:_MAX_DETAILS]],
        "failed_count": len(addresses),
    }
    return combined


def _describe(entries: Mapping[str, StreamloaderError], files: Mapping[str, StreamloaderError]) -> str:
    """Return the end of a message about a search that found nothing: what it could not read, or ""."""
    if not entries:
        return ""
    return f"; {len(entries):,} {_choose_noun(entries, files)} may not be read:\n{_list_entries(entries)}"


def _choose_noun(entries: Mapping[str, StreamloaderError], files: Mapping[str, StreamloaderError]) -> str:
    if files:
        return "file" if len(entries) == 1 else "files and directories"
    return "directory" if len(entries) == 1 else "directories"


def _list_entries(entries: Mapping[str, StreamloaderError]) -> str:
    lines = []
    for address in sorted(entries)[:_MAX_LISTED]:
        shown = make_printable(address, None)
        reason = make_printable(entries[address].message, _MAX_REASON_CHARACTERS + len(shown))
        lines.append(f"- {reason}" if shown in reason else f"- {shown}: {reason}")
    if len(entries) > _MAX_LISTED:
        lines.append(f"- and {len(entries) - _MAX_LISTED:,} more")
    return "\n".join(lines)

"""Decide whether what a container returns from a damaged file is right: right bytes, or one typed error."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Final

from streamloader.containers.base import Container, Member
from streamloader.errors import CorruptContainer, IntegrityError, LimitExceeded, NotSupported, StoreError
from streamloader.testing.containers.binding import ContainerBinding, Files, read_member

__all__ = ["Outcome", "check_damaged", "check_error", "read_pass", "read_scan"]

_TYPED_ERRORS: Final = (CorruptContainer, IntegrityError, LimitExceeded, NotSupported)


@dataclass(slots=True)
class Outcome:
    """What one way of reading a container returned.

    Attributes:
        members: Members in their order, each with its bytes or with the error that reading it raised.
        error: Error that ended the list of members. None if it is complete.
    """

    members: list[tuple[Member, bytes | StoreError]] = field(default_factory=list)
    error: StoreError | None = None


async def read_scan(container: Container) -> Outcome:
    """Scan a container, then read its members one by one."""
    outcome = Outcome()
    scanned: list[Member] = []
    with _catch_error(outcome, container):
        async with contextlib.aclosing(container.scan()) as members:
            async for member in members:
                scanned.append(member)  # noqa: PERF401 - those before an error count
    for member in scanned:
        outcome.members.append((member, await _read(container, member)))
    return outcome


async def read_pass(container: Container) -> Outcome:
    """Read all members of a container in one pass."""
    outcome = Outcome()
    with _catch_error(outcome, container):
        async with contextlib.aclosing(container.iterate()) as members:
            async for member, pieces in members:
                outcome.members.append((member, await _join(container, pieces)))
    return outcome


async def check_damaged(binding: ContainerBinding, container: Container, data: bytes, files: Files) -> list[Outcome]:
    """Check that a container whose file was damaged returns right bytes or typed errors.

    Right are the members that the container had before the damage, and those that another program reads from the
    damaged file. Where the format has no checksums of contents, any bytes of the file are right.

    Args:
        binding: Binding of the suite.
        container: Container of the damaged bytes.
        data: Damaged bytes.
        files: Members that the container had before the damage.
    """
    outcomes = [await read_scan(container), await read_pass(container)]
    reference = _Reference(binding, data, files)
    for outcome in outcomes:
        reference.check(outcome)
    return outcomes


def check_error(error: BaseException, container: Container) -> StoreError:
    """Check that an error is typed, and that it names the container and the offset. Return it."""
    assert isinstance(error, _TYPED_ERRORS), f"expected a typed error, got {error!r}"
    assert error.address is not None
    assert error.address.startswith(container.source.address), f"{error!r} names {error.address}"
    assert container.source.address in str(error)
    if not isinstance(error, LimitExceeded):
        assert error.offset is not None, f"{error!r} has no offset"
        assert error.offset >= 0, f"{error!r} has the offset {error.offset}"
    return error


class _Reference:
    """What may be returned from a damaged file."""

    def __init__(self, binding: ContainerBinding, data: bytes, files: Files) -> None:
        self._checksum = binding.checksum
        self._sequences = [[name for name, _ in files]]
        found, is_complete = _read_reference(binding, data)
        if is_complete:
            self._sequences.append([name for name, _ in found])
        self._pairs: set[tuple[str, bytes | None]] = {*files, *found}
        self._contents = {content for _, content in self._pairs}
        self._stored = b"" if binding.checksum == "member" else _get_stored_bytes(binding, data)

    def check(self, outcome: Outcome) -> None:
        """Check the names of a complete list, and the bytes of all members."""
        if outcome.error is None:
            members = [member for member, _ in outcome.members]
            assert any(_match_names(members, names) for names in self._sequences), (
                f"the list of members ends without an error: {[member.name for member in members]!r}, which is none "
                f"of {self._sequences!r}"
            )
        elif self._checksum == "file":
            return  # the bytes that come before the checksum of the whole file are not verified yet
        for member, content in outcome.members:
            if isinstance(content, bytes):
                assert len(content) == member.size
                assert self._is_right(member.name, content), f"{member!r} has wrong bytes: {content[:100]!r}"

    def _is_right(self, name: str, content: bytes) -> bool:
        if (name, content) in self._pairs:
            return True
        if not name.isascii() and content in self._contents:
            return True  # damage has moved the name to another code page
        # A program that stops earlier than this one shows nothing of the rest, but the bytes have to be in the file.
        return content in self._stored


def _match_names(members: list[Member], names: list[str]) -> bool:
    """Compare names. One that is empty or not safe is never used, so it counts only as present."""
    return len(members) == len(names) and all(
        member.name == name or member.problem is not None or not name
        for member, name in zip(members, names, strict=True)
    )


def _read_reference(binding: ContainerBinding, data: bytes) -> tuple[list[tuple[str, bytes | None]], bool]:
    """Return what another program reads, and whether it reads all of it without an error."""
    found: list[tuple[str, bytes | None]] = []
    try:
        for name, content in binding.read_reference(data):
            while name.startswith("./"):
                name = name[2:].lstrip("/")  # noqa: PLW2901
            found.append((name, content))
    except Exception:  # noqa: BLE001 - of any kind, see `ContainerBinding.read_reference`
        return found, False
    return found, True


def _get_stored_bytes(binding: ContainerBinding, data: bytes) -> bytes:
    """Return the bytes of a file without its compression. Return nothing if that is damaged."""
    try:
        return binding.decompress(data) if binding.is_compressed else data
    except Exception:  # noqa: BLE001 - of any kind, see `ContainerBinding.decompress`
        return b""


@contextlib.contextmanager
def _catch_error(outcome: Outcome, container: Container) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        outcome.error = check_error(error, container)


async def _read(container: Container, member: Member) -> bytes | StoreError:
    try:
        return await read_member(container, member)
    except StoreError as error:
        return _check_member_error(error, container, member)


async def _join(container: Container, pieces: AsyncGenerator[bytes, None]) -> bytes | StoreError:
    try:
        return b"".join([piece async for piece in pieces])
    except StoreError as error:
        return check_error(error, container)


def _check_member_error(error: StoreError, container: Container, member: Member) -> StoreError:
    assert isinstance(error, NotSupported) == (member.problem is not None), f"{member!r}: {error!r}"
    return check_error(error, container)

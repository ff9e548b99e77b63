"""Iterable data set of files on IPFS: members of archives one by one while the rest still arrives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from streamloader.arguments import check_integer, check_options
from streamloader.common.printable import make_printable
from streamloader.containers.base import Container, Member
from streamloader.datasets.ipfs.member_table import warn_of_problem
from streamloader.datasets.ipfs.object_reader import ObjectReader, describe_errors, read_member
from streamloader.datasets.ipfs.objects import IPFSObject, RemoteFileType, as_objects, digest_objects
from streamloader.datasets.ipfs.ordered_prefetch import OrderedPrefetcher, PendingRead
from streamloader.datasets.ipfs.skipped import SkippedObject, check_on_error, is_skippable
from streamloader.datasets.random_order import permute
from streamloader.datasets.workers import get_dataloader_worker
from streamloader.distributed import resolve_rank
from streamloader.errors import ClosedError, ConfigError, StateError, StreamloaderError
from streamloader.redaction import redact_address
from streamloader.torch_datasets import IterableDataset

__all__ = ["IPFSIterableDataset"]

_PIECE_BYTES: Final = 1 << 20
_MAX_ADVANCE_SAMPLES: Final = 1024
_PURPOSE: Final = 16  # of random words: the order of objects
_STATE_VERSION: Final = 1
_MAX_COUNT: Final = 1 << 48
_MAX_SKIPPED_IN_STATE: Final = 100

_Reserve: TypeAlias = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Share:
    """The part of an epoch that one worker of one rank reads.

    With fewer objects than shares, each share gets some members of every object. Otherwise it gets whole objects.

    Attributes:
        number: Number of the share.
        shares: Number of shares.
        places: Numbers of the objects, in the order in which they are read.
        by_member: Whether the members of each object are divided.
    """

    number: int
    shares: int
    places: tuple[int, ...]
    by_member: bool

    @classmethod
    def divide(cls, order: Iterable[int], number: int, shares: int) -> _Share:
        places = tuple(order)
        by_member = len(places) < shares
        return cls(number, shares, places if by_member else places[number::shares], by_member)

    def has(self, turn: int, member: int) -> bool:
        """Return whether a member belongs to this share.

        Args:
            turn: Position of the object in `places`.
            member: Number of the member in the object.
        """
        return not self.by_member or (turn + member) % self.shares == self.number


@dataclass(slots=True)
class _ReadSample:
    """One sample, or the error in its place.

    Attributes:
        place: Number of the object.
        position: (turn, member) of what follows.
        name: Name of the sample. None if the error concerns the whole object.
        data: Content. None if there is an error.
        error: Error in place of the sample.
    """

    place: int
    position: tuple[int, int]
    name: str | None
    data: bytes | None = None
    error: StreamloaderError | None = None


class IPFSIterableDataset(IterableDataset[tuple[str, bytes]]):
    """Samples (name, content) of objects on IPFS, one after the other.

    Each single file is a sample, and so is each file of a folder and each member of an archive, in the order of the
    archive. The name is the address of the object for a single file, the address of the file for a folder, and the name
    within the archive for a member. Members are yielded while the rest of the archive still arrives. Everything is
    compared with its CID before it is yielded. The next samples, and the next objects, are read ahead.

    Ranks and DataLoader workers read disjoint parts: whole objects, or, if there are fewer objects than workers, every
    n-th member of each object. The parts may differ in size. With `shuffle_urls`, the objects are read in another order
    each epoch, which is the same for all ranks; members keep their order: add a
    :class:`~streamloader.datasets.shuffle_buffer.ShuffleDataset`.

    An iteration that reaches its end is followed by the next epoch. A DataLoader without ``persistent_workers`` starts
    its workers with the epoch of the parent process: call :meth:`set_epoch` before each epoch.

    :meth:`state_dict` is exact to the sample. It belongs to one worker of one rank: with worker processes, take it in
    the worker, as torchdata's ``StatefulDataLoader`` does. On resuming, the contents of earlier members are not
    fetched; only those of compressed tar files are, since they cannot be left out.

    Args:
        ipfs_objs_list: Object, or objects.
        ipfs_api_address: Address of a node's RPC API, see :class:`~streamloader.datasets.ipfs.dataset.IPFSDataset`.
        shuffle_urls: Whether to read the objects in a random order. Defaults to False.
        shuffle: Other name of `shuffle_urls`. Defaults to its value.
        seed: Seed of the order.
        rank: Rank of this process. Defaults to detecting it, see :func:`streamloader.distributed.resolve_rank`.
        world_size: Number of ranks.
        on_error: "raise", or "skip" to leave out samples and objects that are damaged, missing or of an unsupported
            kind, and to list them in `skipped`. Errors of the network are raised in any case.
        prefetch_bytes: Maximum size in bytes of the samples that are read ahead, and of the pieces of archives that are
            kept for it. One sample may be larger. Defaults to 64 MiB.
        prefetch_requests: Maximum number of files and pieces of archives that are requested at the same time. Each may
            consist of several blocks. Defaults to 32.
        storage_options: Further options of the store, see :func:`streamloader.stores.open_store`.

    Attributes:
        epoch: Number of the epoch of the next iteration, or of the running one.
        skipped: Samples that were left out in this epoch.

    Raises:
        ConfigError: If there are no objects, or if an option is invalid.
    """

    def __init__(
        self,
        ipfs_objs_list: IPFSObject | Iterable[IPFSObject],
        ipfs_api_address: str | None = None,
        shuffle_urls: bool = False,
        *,
        shuffle: bool | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        on_error: str = "raise",
        prefetch_bytes: int = 64 << 20,
        prefetch_requests: int = 32,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        seed, prefetch_requests = check_integer("seed", seed), check_integer("prefetch_requests", prefetch_requests)
        if prefetch_bytes < 0 or prefetch_requests < 1:
            raise ConfigError("prefetch_bytes must be 0 or more, and prefetch_requests 1 or more")
        if rank is not None or world_size is not None:
            resolve_rank(rank, world_size)
        self._objects = as_objects(ipfs_objs_list)
        self._ipfs_api_address = ipfs_api_address
        self._shuffle = shuffle_urls if shuffle is None else shuffle
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._on_error = check_on_error(on_error)
        self._prefetch_bytes = prefetch_bytes
        self._prefetch_requests = prefetch_requests
        self._storage_options = check_options("storage_options", storage_options) or {}
        self._digest = digest_objects(self._objects)
        self.epoch = 0
        self.skipped: list[SkippedObject] = []
        self._position = (0, 0)
        self._resumes_at: dict[str, Any] | None = None
        self._run: _Run | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch of the next iteration, which then starts at its beginning."""
        self.epoch = check_integer("epoch", epoch, 0)
        self._resumes_at, self._run = None, None
        self._position, self.skipped = (0, 0), []

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Yield the samples of this rank and worker.

        Raises:
            StreamloaderError: If a sample cannot be read. ``details``: object and member.
            StateError: If the loaded state is that of another rank, worker or number of workers.
        """
        share = self._make_share()
        state, self._resumes_at = self._resumes_at, None
        if state is None:
            self._position, self.skipped = (0, 0), []
        elif state["share"] != [share.number, share.shares]:
            raise StateError(
                f"the state is that of worker {state['share'][0]} of {state['share'][1]}, counted over all ranks, and "
                f"this is worker {share.number} of {share.shares}: resume with the same numbers of ranks and workers"
            )
        run = self._run = _Run(self._objects, share, self._position, self._make_reader(), self._prefetch_bytes)
        return self._iterate(run)

    def _iterate(self, run: _Run) -> Iterator[tuple[str, bytes]]:
        try:
            while page := run.take():
                for outcome in page:
                    if outcome.error is None:
                        self._advance(run, outcome)
                        assert outcome.data is not None
                        yield outcome.name or "", outcome.data
                    else:
                        self._skip(run, outcome, outcome.error)
            if self._run is run:
                self.epoch, self._position, self._run = self.epoch + 1, (0, 0), None
        finally:
            run.close()

    def _advance(self, run: _Run, outcome: _ReadSample) -> None:
        if self._run is run:  # and not a newer iteration
            self._position = outcome.position

    def _skip(self, run: _Run, outcome: _ReadSample, error: StreamloaderError) -> None:
        if self._on_error == "raise" or not is_skippable(error):
            raise error
        self._advance(run, outcome)
        each = self._objects[outcome.place]
        is_whole = outcome.name is None or outcome.name == each.url
        name = None if is_whole else make_printable(redact_address(str(outcome.name)))
        self.skipped.append(SkippedObject(each.shown, name, make_printable(error.message)))

    # --- states ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last sample that was yielded, as plain JSON values."""
        state = self._resumes_at
        share = self._make_share()
        return {
            "version": _STATE_VERSION,
            **self._identify(),
            "epoch": self.epoch,
            "share": [share.number, share.shares] if state is None else state["share"],
            "object": self._position[0],
            "member": self._position[1],
            "skipped": [list(each) for each in self.skipped[-_MAX_SKIPPED_IN_STATE:]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the next iteration after the last sample of a state.

        Raises:
            StateError: If the state is damaged, or is that of another data set, seed or order.
        """
        _check_state(state)
        for name, value in self._identify().items():
            if state[name] != value:
                raise StateError(
                    f"the state is that of another data set: its {name} is {state[name]!r:.80}, not {value!r}"
                )
        self._resumes_at = {"share": list(state["share"])}
        self._run = None
        self.epoch, self._position = state["epoch"], (state["object"], state["member"])
        self.skipped = [SkippedObject(*each) for each in state["skipped"]]

    def _identify(self) -> dict[str, Any]:
        return {"objects": self._digest, "seed": self._seed, "shuffle": self._shuffle}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the running iteration."""
        return self.__dict__ | {"_run": None}

    # --- one iteration -----------------------------------------------------------------------------------------------

    def _make_share(self) -> _Share:
        rank, world_size = resolve_rank(self._rank, self._world_size)
        worker = get_dataloader_worker()
        count = len(self._objects)
        order = range(count)
        if self._shuffle:
            order = permute(count, seed=self._seed, epoch=self.epoch, purpose=_PURPOSE).tolist()
        return _Share.divide(order, rank * worker.workers + worker.number, world_size * worker.workers)

    def _make_reader(self) -> ObjectReader:
        return ObjectReader(
            self._objects,
            self._ipfs_api_address,
            self._storage_options,
            piece_bytes=_PIECE_BYTES,
            cache_bytes=max(_PIECE_BYTES, self._prefetch_bytes),
            max_requests=self._prefetch_requests,
        )


class _Run:
    """Reads the samples of one iteration ahead.

    Args:
        objects: Objects of the data set.
        share: Part to read.
        position: (turn, member) to start at.
        reader: Reader of this process. It is closed with this run.
        prefetch_bytes: Maximum size of what is read ahead.
    """

    def __init__(
        self,
        objects: tuple[IPFSObject, ...],
        share: _Share,
        position: tuple[int, int],
        reader: ObjectReader,
        prefetch_bytes: int,
    ) -> None:
        self._objects = objects
        self._share = share
        self._reader = reader
        self._pid = os.getpid()
        self._prefetcher: OrderedPrefetcher[_ReadSample] = OrderedPrefetcher(
            self._iterate(position), max_bytes=prefetch_bytes, max_items=_MAX_ADVANCE_SAMPLES
        )

    def take(self) -> list[_ReadSample]:
        """Return the next outcomes. An empty list is the end."""
        if self._pid != os.getpid():
            raise ClosedError("an iteration belongs to the process that began it: start another one")
        return self._reader.call(self._prefetcher.take())

    def close(self) -> None:
        """Cancel all reads."""
        if self._pid != os.getpid():
            return
        try:
            self._reader.submit(self._prefetcher.aclose())
        except ConfigError:  # in the I/O thread: a collected iterator
            self._prefetcher.cancel()
        except ClosedError:
            pass
        self._reader.close()

    async def _iterate(self, position: tuple[int, int]) -> AsyncGenerator[PendingRead[_ReadSample], None]:
        first_turn, first_member = position
        for turn in range(first_turn, len(self._share.places)):
            first = first_member if turn == first_turn else 0
            place = self._share.places[turn]
            members = self._open(turn, place, first)
            try:
                with describe_errors(self._objects[place]):
                    async with contextlib.aclosing(members):
                        async for pending in members:
                            yield pending
            except StreamloaderError as error:
                yield _pass_on(_ReadSample(place, (turn + 1, 0), None, error=error))

    def _open(self, turn: int, place: int, first: int) -> AsyncGenerator[PendingRead[_ReadSample], None]:
        kind = self._objects[place].file_type
        if kind is RemoteFileType.FOLDER:
            return self._iterate_folder(turn, place, first)
        if kind in (RemoteFileType.TAR, RemoteFileType.ZIP):
            return self._iterate_archive(turn, place, first)
        return self._iterate_blob(turn, place, first)

    async def _iterate_blob(self, turn: int, place: int, first: int) -> AsyncGenerator[PendingRead[_ReadSample], None]:
        if first == 0 and self._share.has(turn, 0):
            yield self._read_file(turn, place, 0, self._objects[place].url, "")

    async def _iterate_folder(
        self, turn: int, place: int, first: int
    ) -> AsyncGenerator[PendingRead[_ReadSample], None]:
        folder = await self._reader.list_folder(place)
        bad_lines = len(folder.bad_lines)  # come first
        for member in range(first, bad_lines + len(folder.names)):
            if not self._share.has(turn, member):
                continue
            if member < bad_lines:
                error = folder.bad_lines[member]
                error.details.setdefault("object", self._objects[place].shown)
                yield _pass_on(_ReadSample(place, (turn, member + 1), error.details["member"], error=error))
                continue
            path = folder.names[member - bad_lines]
            yield self._read_file(turn, place, member, self._objects[place].name_file(path), path)

    async def _iterate_archive(
        self, turn: int, place: int, first: int
    ) -> AsyncGenerator[PendingRead[_ReadSample], None]:
        container, is_sequential = await self._reader.open_archive(place)
        members = _iterate_pass(container) if is_sequential else _iterate_list(container)
        number, warned = -1, False
        async with contextlib.aclosing(members):
            async for member, pieces in members:
                number += 1
                if number < first or not self._share.has(turn, number):
                    continue
                if member.problem is None:
                    yield self._read_member(turn, place, number, container, member, pieces)
                elif not warned:
                    warned = True
                    warn_of_problem(container, member)

    def _read_file(self, turn: int, place: int, number: int, name: str, path: str) -> PendingRead[_ReadSample]:
        async def read(reserve: _Reserve) -> bytes:
            info = await self._reader.head(place, path)
            await reserve(info.size or 0)
            return await self._reader.read(place, path)

        return self._pend(_ReadSample(place, (turn, number + 1), name), read, path or None)

    def _read_member(
        self,
        turn: int,
        place: int,
        number: int,
        container: Container,
        member: Member,
        pieces: AsyncGenerator[bytes, None] | None,
    ) -> PendingRead[_ReadSample]:
        async def read(reserve: _Reserve) -> bytes:
            await reserve(member.size)
            if pieces is None:
                return await read_member(container, member)
            return b"".join([piece async for piece in pieces])

        outcome = _ReadSample(place, (turn, number + 1), member.name)
        return self._pend(outcome, read, member.name, is_sequential=pieces is not None)

    def _pend(
        self,
        outcome: _ReadSample,
        read: Callable[[_Reserve], Awaitable[bytes]],
        member: str | None,
        *,
        is_sequential: bool = False,
    ) -> PendingRead[_ReadSample]:
        """Return a read whose errors become part of the outcome."""

        async def run(reserve: _Reserve) -> _ReadSample:
            try:
                with describe_errors(self._objects[outcome.place], member):
                    outcome.data = await read(reserve)
            except StreamloaderError as error:
                outcome.error = error
            return outcome

        return PendingRead(run, is_sequential)


async def _iterate_list(container: Container) -> AsyncGenerator[tuple[Member, None], None]:
    """Yield the members as the archive lists them. Contents are read by span, and only those that are needed."""
    async with contextlib.aclosing(container.scan()) as members:
        async for member in members:
            yield member, None


async def _iterate_pass(container: Container) -> AsyncGenerator[tuple[Member, AsyncGenerator[bytes, None]], None]:
    """Yield the members with their contents, in one pass over the archive."""
    async with contextlib.aclosing(container.iterate()) as members:
        async for pair in members:
            yield pair


def _pass_on(outcome: _ReadSample) -> PendingRead[_ReadSample]:
    async def read(_: _Reserve) -> _ReadSample:
        return outcome

    return PendingRead(read)


def _check_state(state: Mapping[str, Any]) -> None:
    """Check the types of a state.

    Raises:
        StateError: If :meth:`IPFSIterableDataset.state_dict` cannot have made it.
    """
    if not isinstance(state, Mapping) or state.get("version") != _STATE_VERSION:
        raise StateError("this is no state of an IPFSIterableDataset, or one of another version of the package")
    share, skipped = state.get("share"), state.get("skipped")
    numbers = [state.get("epoch"), state.get("object"), state.get("member")]
    is_valid = (
        all(name in state for name in ("objects", "seed", "shuffle"))
        and isinstance(share, (list, tuple))
        and len(share) == len(("number", "shares"))
        and all(type(each) is int and 0 <= each < _MAX_COUNT for each in (*numbers, *share))
        and isinstance(skipped, (list, tuple))
        and all(isinstance(each, (list, tuple)) and len(each) == len(SkippedObject._fields) for each in skipped)
    )
    if not is_valid:
        raise StateError("the state of the IPFSIterableDataset is damaged")

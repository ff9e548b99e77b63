"""Decoders at work: from packets of a chunk to exactly the frames that are wanted of it.

A frame is known by the packet it came from. A run that does not give all its frames is decoded again in slower ways, of
which the last is how the chunk was checked when it was made; if that does not give them either, the chunk is damaged.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from streamloader.archive.reader.packets import RunBytes
from streamloader.archive.reader.plan import Run, packets_of
from streamloader.errors import CorruptStream
from streamloader.media.chunks.packet_decoder import PacketDecoder

if TYPE_CHECKING:
    from streamloader.archive.reader.chunk_bytes import ChunkStores
    from streamloader.archive.reader.lookup import Chunk
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.media.chunks.format import ChunkIndex
    from streamloader.media.video.reader import VideoFrame
    from streamloader.values import Array

__all__ = ["Decoders", "Playing", "keep_forever", "left_to_send"]

_IDLE: Final = 8  # decoders that are kept for later runs
_STANDING: Final = 4  # decoders that stand where a run ended, so that the next may go on there
_FOLLOWING: Final = 32  # frames behind a run whose packets are not left out where the decoder is to go on
_THREADS_PAY: Final = 4  # packets from which on a decoder with threads of its own is faster

Other: TypeAlias = "Callable[[int, VideoFrame], None]"


class Playing:
    """A decoder, and where in a chunk it stands."""

    def __init__(self, chunk: Chunk, decoder: PacketDecoder, threads: int) -> None:
        self.chunk = chunk
        self.decoder = decoder
        self.threads = threads
        self.next = 0  # packet: all before it were handed over or left out
        self.out: dict[int, VideoFrame] = {}  # by packet: came out, and nobody has asked for them yet
        self.inside: set[int] = set()  # packets that were handed over, and whose frames did not come out

    def reaches(self, run: Run) -> bool:
        """Say whether this decoder gives the frames of `run` by going on, and sooner than if it began at its key."""
        if run.key > self.next:
            return False
        shown = self.chunk.index.shown[run.frames].tolist()
        return all(packet >= self.next or packet in self.out or packet in self.inside for packet in shown)


class _Delivery:
    """Sorts what a decoder gives into what is wanted now, what may be wanted next, and the rest."""

    def __init__(self, playing: Playing, run: Run, stay: bool, other: Other | None) -> None:
        self._playing = playing
        self._frames: list[int] = run.frames.tolist()
        self._shown: list[int] = playing.chunk.index.shown[run.frames].tolist()
        self._wanted = set(self._shown)
        self._stay = stay
        self._other = other
        self._at = 0  # wanted frames that were given
        self._passed = self._shown[-1] in playing.out  # the last one came out

    @property
    def done(self) -> bool:
        """Whether all wanted frames were given."""
        return self._at == len(self._frames)

    def ready(self) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames that are there, in order."""
        out = self._playing.out
        while self._at < len(self._frames) and self._shown[self._at] in out:
            number, packet = self._frames[self._at], self._shown[self._at]
            self._at += 1
            yield number, out.pop(packet)

    def take(self, frames: list[tuple[int, VideoFrame]]) -> None:
        """Sort frames that came out."""
        playing = self._playing
        for packet, frame in frames:
            playing.inside.discard(packet)
            if packet in self._wanted or (self._stay and self._passed):
                playing.out[packet] = frame
                self._passed = self._passed or packet == self._shown[-1]
            elif self._other is not None:
                self._other(packet, frame)


def left_to_send(playing: Playing | None, run: Run, *, later: bool, complete: bool, index: ChunkIndex) -> list[int]:
    """Return the packets that are still to be decoded for a run.

    Args:
        playing: the decoder that goes on with it; None for one that begins.
        run: what is wanted.
        later: frames that follow on it may be wanted next: leave out no packet that shows one.
        complete: leave out no packet at all.
        index: of the chunk.
    """
    frames = run.frames
    if later:
        following = np.arange(int(frames[-1]) + 1, min(len(index), int(frames[-1]) + 1 + _FOLLOWING))
        frames = np.concatenate([frames, following])
    begin = run.key if playing is None else min(playing.next, run.stop)
    return packets_of(index, Run(begin, run.stop, frames), all_of_them=complete)


class Decoders:
    """The decoders of one reader. All methods can be called from several threads; what they return is for one.

    Args:
        stores: of the chunks.
        counts: what is counted.
        threads: that a decoder may have.
    """

    def __init__(self, stores: ChunkStores, counts: ReadCounts, threads: int) -> None:
        self._stores = stores
        self._counts = counts
        self._threads = threads
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[tuple[str, int, PacketDecoder]] = []
        self._standing: OrderedDict[tuple[str, int], list[Playing]] = OrderedDict()
        self._closed = False

    def standing(self, chunk: Chunk, run: Run) -> Playing | None:
        """Return a decoder that stands where it can go on with `run`, for :meth:`play`; None if there is none."""
        with self._lock:
            group = self._standing.get(chunk.key, [])
            for number, playing in enumerate(group):
                if playing.reaches(run):
                    del group[number]
                    if not group:
                        del self._standing[chunk.key]
                    self._counts.continued += 1
                    return playing
        return None

    def play(
        self,
        chunk: Chunk,
        run: Run,
        data: RunBytes | None = None,
        playing: Playing | None = None,
        *,
        alone: bool = True,
        stay: bool = False,
        complete: bool = False,
        other: Other | None = None,
    ) -> Generator[tuple[int, VideoFrame], None, None]:
        """Yield the frames of a run with their numbers within the chunk, in order.

        Args:
            chunk: that is decoded.
            run: what is wanted of it.
            data: the bytes of its packets, which may be on their way.
            playing: from :meth:`standing`; without it, decoding begins at the key of the run.
            alone: nothing else is decoded meanwhile, so this may take all threads.
            stay: leave the decoder standing behind the last frame, so that a later run goes on there.
            complete: leave out no packet.
            other: is given the frames that came out and are not wanted, with the numbers of their packets.

        Raises:
            CorruptStream: the chunk does not give them.
            StoreError: bytes of it could not be had.
        """
        if playing is None:
            playing = self._begin(chunk, run, alone)
        given = 0
        failed: CorruptStream | None = None
        frames = self._go(playing, run, data, stay, complete, other)
        try:
            for item in frames:
                given += 1
                yield item
        except CorruptStream as error:
            if error.details.get("chunk") is not None:  # its bytes are wrong: to decode them again is no use
                raise
            failed = error
        except GeneratorExit:  # the caller does not want the rest
            frames.close()
            self._give_back(playing, stay=True)
            playing = None
            raise
        finally:
            frames.close()
            if playing is not None and failed is None and given == len(run.frames):
                self._give_back(playing, stay=stay)
            elif playing is not None:
                self._dispose(playing.decoder)
        if given < len(run.frames):
            yield from self._again(chunk, run.frames[given:], failed)

    def close(self) -> None:
        """Free all decoders."""
        with self._lock:
            self._closed = True
            decoders = [decoder for _, _, decoder in self._idle]
            decoders += [playing.decoder for group in self._standing.values() for playing in group]
            self._idle.clear()
            self._standing.clear()
        for decoder in decoders:
            decoder.close()

    # --- one run -----------------------------------------------------------------------------------------------------

    def _go(
        self,
        playing: Playing,
        run: Run,
        data: RunBytes | None,
        stay: bool,
        complete: bool,
        other: Other | None,
    ) -> Generator[tuple[int, VideoFrame], None, None]:
        """Yield the frames of a run that come out, in order."""
        index, decoder = playing.chunk.index, playing.decoder
        packets = left_to_send(playing, run, later=stay, complete=complete, index=index)
        if data is None:
            data = RunBytes(self._stores, playing.chunk, packets)
        delivery = _Delivery(playing, run, stay, other)
        sent = 0
        try:
            yield from delivery.ready()
            for packet in packets:
                playing.next = packet + 1
                playing.inside.add(packet)
                sent += 1
                frames = decoder.send(packet, data.packet(packet))
                if frames:
                    delivery.take(frames)
                    yield from delivery.ready()
            playing.next = max(playing.next, run.stop)
            while stay and not delivery.done and playing.next < len(index.offset):
                packet = playing.next
                playing.next += 1
                playing.inside.add(packet)
                sent += 1
                delivery.take(decoder.send(packet, data.packet(packet)))
                yield from delivery.ready()
            if not delivery.done:
                playing.next = len(index.offset)
                delivery.take(decoder.drain())
                playing.inside.clear()
                yield from delivery.ready()
        finally:
            with self._lock:
                self._counts.packets += sent

    def _again(self, chunk: Chunk, left: Array, failed: CorruptStream | None) -> Iterator[tuple[int, VideoFrame]]:
        """Decode a run once more, leaving nothing out: from its key, then from the beginning of the chunk."""
        index = chunk.index
        key = int(index.keys[index.key_for(int(left[0]))])
        for begin in dict.fromkeys((key, 0)):
            with self._lock:
                self._counts.again += 1
            decoder = PacketDecoder(chunk.coding, threads=1, name=self._name(chunk))
            playing = Playing(chunk, decoder, 1)
            playing.next = begin
            stop = len(index.offset) if begin == 0 else int(index.shown[left].max()) + 1
            try:
                for item in self._go(playing, Run(begin, stop, left), None, False, True, None):
                    left = left[1:]
                    yield item
            except CorruptStream as error:
                if error.details.get("chunk") is not None:
                    raise
                failed = failed or error
            finally:
                self._dispose(decoder)
            if not len(left):
                return
        what = "does not show the frame that its index has there"
        if failed is not None:
            what = f"cannot be decoded ({failed.message})"
        raise self._stores.corrupt(chunk, what, int(left[0])) from failed

    # --- which decoder -----------------------------------------------------------------------------------------------

    def _begin(self, chunk: Chunk, run: Run, alone: bool) -> Playing:
        threads = self._threads if alone and len(run) >= _THREADS_PAY else 1
        with self._lock:
            self._counts.runs += 1
            place = next(
                (n for n, (key, count, _) in enumerate(self._idle) if (key, count) == (chunk.coding.key, threads)), None
            )
            decoder = None if place is None else self._idle.pop(place)[2]
        if decoder is None:
            decoder = PacketDecoder(chunk.coding, threads=threads, name=self._name(chunk))
        playing = Playing(chunk, decoder, threads)
        playing.next = run.key
        return playing

    def _give_back(self, playing: Playing, *, stay: bool) -> None:
        stands = stay and (playing.next < len(playing.chunk.index.offset) or bool(playing.inside or playing.out))
        if os.getpid() != self._pid:
            keep_forever(playing)
            return
        if not stands:
            playing.decoder.reset()
        dropped: list[PacketDecoder] = []
        with self._lock:
            if self._closed:
                dropped.append(playing.decoder)
            elif stands:
                self._standing.setdefault(playing.chunk.key, []).append(playing)
                self._standing.move_to_end(playing.chunk.key)
                while sum(map(len, self._standing.values())) > _STANDING:
                    key, group = next(iter(self._standing.items()))
                    old = group.pop(0)
                    if not group:
                        del self._standing[key]
                    old.decoder.reset()
                    self._idle.append((old.chunk.coding.key, old.threads, old.decoder))
            else:
                self._idle.append((playing.chunk.coding.key, playing.threads, playing.decoder))
            while len(self._idle) > _IDLE:
                dropped.append(self._idle.pop(0)[2])
        for decoder in dropped:
            decoder.close()

    def _dispose(self, decoder: PacketDecoder) -> None:
        if os.getpid() != self._pid:
            keep_forever(decoder)
        else:
            decoder.close()

    def _name(self, chunk: Chunk) -> str:
        return f"chunk {chunk.row.number} of video {chunk.video.name!r} ({self._stores.address(chunk)})"


def keep_forever(thing: object) -> None:
    """Never free something of the parent process: decoders would wait for threads that a fork does not copy."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))

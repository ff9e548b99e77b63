"""A pool of decoders that turn the packets of a chunk into exactly the requested frames.

A frame is identified by the packet it came from. If decoding a span does not give all its frames, the rest is decoded
again in slower ways. The last way is the one that verified the chunk when it was built: if it fails too, the chunk is
damaged.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from streamloader.archive.reader.packets import PacketReader
from streamloader.archive.reader.plan import DecodeSpan, select_packets
from streamloader.errors import CorruptStream
from streamloader.media.chunks.packet_decoder import PacketDecoder

if TYPE_CHECKING:
    from streamloader.archive.reader.chunk_bytes import ChunkReader
    from streamloader.archive.reader.lookup import Chunk
    from streamloader.archive.reader.stats import ReadCounts
    from streamloader.media.chunks.format import ChunkIndex
    from streamloader.media.video.reader import VideoFrame
    from streamloader.values import Array

__all__ = ["DecoderPool", "OpenDecoder", "leak_object", "packets_to_send"]

_MAX_IDLE_DECODERS: Final = 8
_MAX_RESUMABLE_DECODERS: Final = 4
_LOOKAHEAD_FRAMES: Final = 32  # frames after a span whose packets are not skipped if the decoder is kept open
_MIN_PACKETS_FOR_THREADS: Final = 4  # a decoder with several threads is faster only for this many packets or more

OtherFrameCallback: TypeAlias = "Callable[[int, VideoFrame], None]"


class OpenDecoder:
    """A decoder and its position in a chunk.

    Attributes:
        chunk: Chunk that is decoded.
        decoder: Decoder of its packets.
        threads: Number of threads of the decoder.
        next_packet: Number of the next packet. All packets before were sent or skipped.
        decoded: Decoded frames that were not requested yet, by packet.
        in_flight: Numbers of the packets that were sent and whose frames have not been decoded yet.
    """

    def __init__(self, chunk: Chunk, decoder: PacketDecoder, threads: int) -> None:
        self.chunk = chunk
        self.decoder = decoder
        self.threads = threads
        self.next_packet = 0
        self.decoded: dict[int, VideoFrame] = {}
        self.in_flight: set[int] = set()

    def can_continue_to(self, span: DecodeSpan) -> bool:
        """Return whether this decoder can continue to the frames of `span`, and sooner than from the span's key."""
        if span.key_packet > self.next_packet:
            return False
        frame_packets = self.chunk.index.frame_packet[span.frames].tolist()
        return all(
            packet >= self.next_packet or packet in self.decoded or packet in self.in_flight for packet in frame_packets
        )


class _FrameSorter:
    """Sorts decoded frames into requested frames, frames that may be requested next, and others."""

    def __init__(
        self, opened: OpenDecoder, span: DecodeSpan, keep_open: bool, on_other_frame: OtherFrameCallback | None
    ) -> None:
        self._opened = opened
        self._frames: list[int] = span.frames.tolist()
        self._frame_packets: list[int] = opened.chunk.index.frame_packet[span.frames].tolist()
        self._wanted = set(self._frame_packets)
        self._keep_open = keep_open
        self._on_other_frame = on_other_frame
        self._delivered = 0  # number of requested frames that were yielded
        self._last_decoded = self._frame_packets[-1] in opened.decoded

    @property
    def done(self) -> bool:
        """Whether all requested frames were yielded."""
        return self._delivered == len(self._frames)

    def pop_ready(self) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the requested frames that are decoded, in order."""
        decoded = self._opened.decoded
        while self._delivered < len(self._frames) and self._frame_packets[self._delivered] in decoded:
            number, packet = self._frames[self._delivered], self._frame_packets[self._delivered]
            self._delivered += 1
            yield number, decoded.pop(packet)

    def add(self, frames: list[tuple[int, VideoFrame]]) -> None:
        """Sort newly decoded frames."""
        opened = self._opened
        for packet, frame in frames:
            opened.in_flight.discard(packet)
            if packet in self._wanted or (self._keep_open and self._last_decoded):
                opened.decoded[packet] = frame
                self._last_decoded = self._last_decoded or packet == self._frame_packets[-1]
            elif self._on_other_frame is not None:
                self._on_other_frame(packet, frame)


def packets_to_send(
    opened: OpenDecoder | None, span: DecodeSpan, *, keep_open: bool, all_packets: bool, index: ChunkIndex
) -> list[int]:
    """Return the numbers of the packets that still have to be decoded for a span.

    Args:
        opened: Decoder that continues to the span, or None for a new one.
        span: Span to decode.
        keep_open: Whether the frames after the span may be requested next. The packets that show them are included.
        all_packets: Whether to include all packets.
        index: Index of the chunk.
    """
    frames = span.frames
    if keep_open:
        following = np.arange(int(frames[-1]) + 1, min(len(index), int(frames[-1]) + 1 + _LOOKAHEAD_FRAMES))
        frames = np.concatenate([frames, following])
    start = span.key_packet if opened is None else min(opened.next_packet, span.end)
    return select_packets(index, DecodeSpan(start, span.end, frames), all_packets=all_packets)


class DecoderPool:
    """The decoders of one reader. All methods are thread-safe; a decoder is used by one thread at a time.

    Args:
        chunks: Reader of the bytes of chunks.
        counts: Counters to update.
        threads: Maximum number of threads of a decoder.
        max_pixels: Maximum number of pixels of a frame.
    """

    def __init__(self, chunks: ChunkReader, counts: ReadCounts, threads: int, max_pixels: int) -> None:
        self._chunks = chunks
        self._counts = counts
        self._threads = threads
        self._max_pixels = max_pixels
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[tuple[str, int, PacketDecoder]] = []  # with key of the coding and number of threads
        self._resumable: OrderedDict[tuple[str, int], list[OpenDecoder]] = OrderedDict()  # by chunk
        self._closed = False

    def take_resumable(self, chunk: Chunk, span: DecodeSpan) -> OpenDecoder | None:
        """Return a decoder that can continue to `span`, for :meth:`decode`. Return None if there is none."""
        with self._lock:
            group = self._resumable.get(chunk.key, [])
            for number, opened in enumerate(group):
                if opened.can_continue_to(span):
                    del group[number]
                    if not group:
                        del self._resumable[chunk.key]
                    self._counts.resumed += 1
                    return opened
        return None

    def decode(
        self,
        chunk: Chunk,
        span: DecodeSpan,
        packets: PacketReader | None = None,
        opened: OpenDecoder | None = None,
        *,
        use_threads: bool = True,
        keep_open: bool = False,
        all_packets: bool = False,
        on_other_frame: OtherFrameCallback | None = None,
    ) -> Generator[tuple[int, VideoFrame], None, None]:
        """Yield the frames of a span with their numbers within the chunk, in order.

        Args:
            chunk: Chunk to decode.
            span: Span to decode.
            packets: Reader of the packets, which may have requested their bytes already. Defaults to a new one.
            opened: Decoder from :meth:`take_resumable`. Without it, decoding starts at the key of the span.
            use_threads: Whether the decoder may use all threads of the pool. Defaults to True.
            keep_open: Whether to keep the decoder at its position, so that a later span can continue there.
            all_packets: Whether to decode disposable packets that show no requested frame too.
            on_other_frame: Function called with the packet number and the frame for each decoded frame that was not
                requested. Defaults to none.

        Raises:
            CorruptStream: If the requested frames cannot be decoded from the chunk.
            StoreError: If bytes of the chunk cannot be read.
        """
        if opened is None:
            opened = self._open_decoder(chunk, span, use_threads)
        delivered = 0
        failure: CorruptStream | None = None
        frames = self._decode_span(opened, span, packets, keep_open, all_packets, on_other_frame)
        try:
            for item in frames:
                delivered += 1
                yield item
        except CorruptStream as error:
            if error.details.get("chunk") is not None:  # its bytes are wrong: decoding them again does not help
                raise
            failure = error
        except GeneratorExit:  # the caller does not want the other frames
            frames.close()
            self._return_decoder(opened, keep_open=True)
            opened = None
            raise
        finally:
            frames.close()
            if opened is not None and failure is None and delivered == len(span.frames):
                self._return_decoder(opened, keep_open=keep_open)
            elif opened is not None:
                self._dispose(opened.decoder)
        if delivered < len(span.frames):
            yield from self._decode_missing(chunk, span.frames[delivered:], failure)

    def close(self) -> None:
        """Free all decoders."""
        with self._lock:
            self._closed = True
            decoders = [decoder for _, _, decoder in self._idle]
            decoders += [opened.decoder for group in self._resumable.values() for opened in group]
            self._idle.clear()
            self._resumable.clear()
        for decoder in decoders:
            decoder.close()

    # --- one span ----------------------------------------------------------------------------------------------------

    def _decode_span(
        self,
        opened: OpenDecoder,
        span: DecodeSpan,
        reader: PacketReader | None,
        keep_open: bool,
        all_packets: bool,
        on_other_frame: OtherFrameCallback | None,
    ) -> Generator[tuple[int, VideoFrame], None, None]:
        """Yield the frames of a span that the decoder gives, in order. Frames may be missing at the end."""
        index, decoder = opened.chunk.index, opened.decoder
        packets = packets_to_send(opened, span, keep_open=keep_open, all_packets=all_packets, index=index)
        if reader is None:
            reader = PacketReader(self._chunks, opened.chunk, packets)
        sorter = _FrameSorter(opened, span, keep_open, on_other_frame)
        sent = 0
        try:
            yield from sorter.pop_ready()
            for packet in packets:
                opened.next_packet = packet + 1
                opened.in_flight.add(packet)
                sent += 1
                frames = decoder.send(packet, reader.read_packet(packet))
                if frames:
                    sorter.add(frames)
                    yield from sorter.pop_ready()
            opened.next_packet = max(opened.next_packet, span.end)
            # Draining would lose the decoder's position, so the following packets are sent until the last frame is out.
            while keep_open and not sorter.done and opened.next_packet < len(index.offset):
                packet = opened.next_packet
                opened.next_packet += 1
                opened.in_flight.add(packet)
                sent += 1
                sorter.add(decoder.send(packet, reader.read_packet(packet)))
                yield from sorter.pop_ready()
            if not sorter.done:
                opened.next_packet = len(index.offset)
                sorter.add(decoder.drain())
                opened.in_flight.clear()
                yield from sorter.pop_ready()
        finally:
            with self._lock:
                self._counts.packets += sent

    def _decode_missing(
        self, chunk: Chunk, frames: Array, failure: CorruptStream | None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Decode frames that were missing, without skipping a packet: from their key, then from the chunk's start."""
        index = chunk.index
        key = int(index.key_packet[index.key_for(int(frames[0]))])
        for start in dict.fromkeys((key, 0)):
            with self._lock:
                self._counts.retried += 1
            decoder = self._create_decoder(chunk, 1)
            opened = OpenDecoder(chunk, decoder, 1)
            opened.next_packet = start
            end = len(index.offset) if start == 0 else int(index.frame_packet[frames].max()) + 1
            try:
                for item in self._decode_span(opened, DecodeSpan(start, end, frames), None, False, True, None):
                    frames = frames[1:]
                    yield item
            except CorruptStream as error:
                if error.details.get("chunk") is not None:
                    raise
                failure = failure or error
            finally:
                self._dispose(decoder)
            if not len(frames):
                return
        problem = "does not contain the frame that its index lists"
        if failure is not None:
            problem = f"cannot be decoded ({failure.message})"
        raise self._chunks.corrupt_error(chunk, problem, int(frames[0])) from failure

    # --- the pool ----------------------------------------------------------------------------------------------------

    def _open_decoder(self, chunk: Chunk, span: DecodeSpan, use_threads: bool) -> OpenDecoder:
        threads = self._threads if use_threads and len(span) >= _MIN_PACKETS_FOR_THREADS else 1
        with self._lock:
            self._counts.spans += 1
            position = next(
                (n for n, (key, count, _) in enumerate(self._idle) if (key, count) == (chunk.coding.key, threads)), None
            )
            decoder = None if position is None else self._idle.pop(position)[2]
        if decoder is None:
            decoder = self._create_decoder(chunk, threads)
        opened = OpenDecoder(chunk, decoder, threads)
        opened.next_packet = span.key_packet
        return opened

    def _create_decoder(self, chunk: Chunk, threads: int) -> PacketDecoder:
        name = self._describe(chunk)
        return PacketDecoder(chunk.coding, threads=threads, name=name, max_pixels=self._max_pixels)

    def _return_decoder(self, opened: OpenDecoder, *, keep_open: bool) -> None:
        resumable = keep_open and (
            opened.next_packet < len(opened.chunk.index.offset) or bool(opened.in_flight or opened.decoded)
        )
        if os.getpid() != self._pid:
            leak_object(opened)
            return
        if not resumable:
            opened.decoder.reset()
        dropped: list[PacketDecoder] = []
        with self._lock:
            if self._closed:
                dropped.append(opened.decoder)
            elif resumable:
                self._resumable.setdefault(opened.chunk.key, []).append(opened)
                self._resumable.move_to_end(opened.chunk.key)
                while sum(map(len, self._resumable.values())) > _MAX_RESUMABLE_DECODERS:
                    key, group = next(iter(self._resumable.items()))
                    oldest = group.pop(0)
                    if not group:
                        del self._resumable[key]
                    oldest.decoder.reset()
                    self._idle.append((oldest.chunk.coding.key, oldest.threads, oldest.decoder))
            else:
                self._idle.append((opened.chunk.coding.key, opened.threads, opened.decoder))
            while len(self._idle) > _MAX_IDLE_DECODERS:
                dropped.append(self._idle.pop(0)[2])
        for decoder in dropped:
            decoder.close()

    def _dispose(self, decoder: PacketDecoder) -> None:
        if os.getpid() != self._pid:
            leak_object(decoder)
        else:
            decoder.close()

    def _describe(self, chunk: Chunk) -> str:
        return f"chunk {chunk.row.number} of video {chunk.video.name!r} ({self._chunks.address(chunk)})"


def leak_object(value: object) -> None:
    """Never free an object of the parent process: a decoder would wait for threads that a fork does not copy."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))

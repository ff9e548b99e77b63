"""Build chunks of videos: ordinary video files whose frames are all indexed and verified before they are stored."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from streamloader.errors import CorruptStream, MediaLimitExceeded, StreamloaderError, UnreadableStream
from streamloader.media.chunks.encode import (
    EncoderSettings,
    choose_encoder,
    choose_suffixes,
    encode_chunk,
    encoder_error,
    lossless_encoders,
)
from streamloader.media.chunks.format import ChunkIndex, Coding
from streamloader.media.chunks.frame_hash import frame_hash, rgb_hash
from streamloader.media.chunks.plan import Cut, CutPlan, plan_cuts
from streamloader.media.chunks.remux import AudioPackets, ChunkRejected, collect_audio, copy_packets
from streamloader.media.chunks.scan import RGB_SAMPLE_EVERY, SourceScan, raise_if_cancelled
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.chunks.verify import ExpectedFrames, read_stored_packets, verify_chunk
from streamloader.media.video.index import NOT_CROPPED
from streamloader.media.video.index_cache import load_index
from streamloader.media.video.reader import FrameReader
from streamloader.values import Array

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["BuiltChunk", "Cut", "CutPlan", "CutSettings", "build_chunk", "plan_cuts"]

_READ_BLOCK_BYTES: Final = 1 << 20
_DEFAULT_GOP_FRAMES: Final = 12


@dataclass(frozen=True, eq=False)
class BuiltChunk:
    """A chunk file, ready to be stored.

    Attributes:
        file: Path of the file.
        suffix: Suffix of the file, ``"mp4"`` or ``"mkv"``.
        index: Index of its frames.
        coding: Coding of its packets.
        note: Reason why the chunk was re-encoded although its packets were to be copied. Otherwise empty.
        bytes: Size of the file in bytes.
        digest: SHA-256 of the file, as ``"sha256:"`` and hexadecimal digits.
    """

    file: str
    suffix: str
    index: ChunkIndex
    coding: Coding
    note: str
    bytes: int
    digest: str


def build_chunk(
    path: str, plan: CutPlan, settings: CutSettings, number: int, folder: str,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> BuiltChunk:  # fmt: skip
    """Build one chunk of a video and verify every frame of it. Several threads can build different chunks.

    If packets are to be copied but the chunk does not show exactly the frames of the source, it is re-encoded without
    loss, and `note` gives the reason.

    Args:
        path: Path of the local file.
        plan: Plan from :func:`plan_cuts` for the same video and settings.
        settings: Settings for the chunks.
        number: Number of the chunk.
        folder: Folder in which the file is created. Nothing remains there after an error.
        is_cancelled: Function that returns whether to stop, called regularly. Defaults to never.

    Raises:
        CorruptStream: If the source is damaged, or changed since it was planned.
        UnreadableStream: If no encoder preserves its frames.
        ConfigError: If the encoder that the user chose rejects its frames.
        ClosedError: If the work was cancelled.
    """
    return _ChunkBuilder(path, plan, settings, plan.cuts[number], folder, is_cancelled).build()


class _SeekingHasher:
    """Hashes frames of a source on demand, seeking to each of them. Frames count from the first frame of the chunk."""

    def __init__(self, reader: FrameReader, first_frame: int) -> None:
        self._reader = reader
        self._first_frame = first_frame
        self._frame_hashes: dict[int, bytes] = {}
        self._rgb_hashes: dict[int, bytes] = {}
        self._reformatter = VideoReformatter()

    def frame_hash(self, frame: int) -> bytes:
        """Return the hash of a frame."""
        if frame not in self._frame_hashes:
            self._frame_hashes[frame] = frame_hash(self._reader.read_frame(self._first_frame + frame))
        return self._frame_hashes[frame]

    def rgb_hash(self, frame: int) -> bytes | None:
        """Return the RGB hash of a frame, or None for most frames."""
        if frame % RGB_SAMPLE_EVERY == 0 and frame not in self._rgb_hashes:
            picture = self._reader.read_frame(self._first_frame + frame)
            self._rgb_hashes[frame] = rgb_hash(picture, self._reformatter)
        return self._rgb_hashes.get(frame)


class _ChunkBuilder:
    """Builds one chunk."""

    def __init__(
        self, path: str, plan: CutPlan, settings: CutSettings, cut: Cut, folder: str, is_cancelled: Callable[[], bool]
    ) -> None:
        self._path = path
        self._plan = plan
        self._scan: SourceScan = plan.scan
        self._settings = settings
        self._cut = cut
        self._folder = folder
        self._is_cancelled = is_cancelled
        self._pts = plan.pts(cut)

    def build(self) -> BuiltChunk:
        with self._open_audio() as audio:
            if self._settings.mode == "encode":
                return self._encode_as_chosen(audio)
            note = ""
            if self._settings.mode == "copy":
                try:
                    return self._copy(audio)
                except ChunkRejected as reason:
                    note = f"re-encoded without loss: {reason}"
                except CorruptStream as error:
                    if self._settings.damaged != "keep":
                        raise
                    note = f"re-encoded without loss: {error.message}"
            return self._encode_lossless(audio, note)

    @contextlib.contextmanager
    def _open_audio(self) -> Iterator[AudioPackets | None]:
        if not self._settings.audio:
            yield None
            return
        start, end = (int(pts) * self._plan.time_base for pts in (self._pts[0], self._pts[-1]))
        # Resampled frames start at time 0; audio times are those of the source.
        shift = int(self._scan.pts[0]) * self._scan.time_base - self._plan.first_pts * self._plan.time_base
        with collect_audio(
            self._path,
            start + shift if self._cut.start else None,
            end + shift if self._cut.end < self._plan.frames else None,
            start + shift,
            self._scan,
            self._plan.clock,
            self._settings.max_pixels,
        ) as audio:
            yield audio

    # --- copying -----------------------------------------------------------------------------------------------------

    def _copy(self, audio: AudioPackets | None) -> BuiltChunk:
        if self._scan.note:
            raise ChunkRejected(self._scan.note)
        concealed = self._scan.concealed
        concealed = concealed[(concealed >= self._cut.start) & (concealed < self._cut.end)]
        if len(concealed):  # what takes the place of their missing parts depends on the decoder
            raise ChunkRejected(f"parts of frame {int(concealed[0])} of the source cannot be decoded")
        frame_packet = self._scan.frame_packet[self._cut.start : self._cut.end]
        end = int(frame_packet.max()) + 1
        reason = ChunkRejected(f"no key frame at frame {self._cut.start} of the source, nor shortly before it")
        for start in self._start_packets(int(frame_packet.min())):
            for suffix in choose_suffixes(self._scan.codec, audio):
                try:
                    return self._copy_span(start, end, frame_packet - start, suffix, audio)
                except ChunkRejected as error:
                    reason = error
        raise reason

    def _start_packets(self, earliest: int) -> list[int]:
        """Return at most two packets at which the chunk may start, the preferred one first."""
        keys = self._scan.keys[:, 0]
        before = keys[keys <= earliest][::-1][:2].tolist()
        if self._cut.start == 0:
            return list(dict.fromkeys([*before[:1], 0]))
        # Frames before the first one must be decoded by every reader: at most as many as the chunk has.
        max_extra = self._cut.end - self._cut.start
        return [key for key in before if earliest - key <= max(max_extra, 1)]

    def _copy_span(
        self, start: int, end: int, frame_packet: Array, suffix: str, audio: AudioPackets | None
    ) -> BuiltChunk:
        """Build the chunk from the packets [start, end) of the source."""
        scan, frames, count = self._scan, (self._cut.start, self._cut.end), len(frame_packet)
        with self._create_file(suffix) as file:
            copy_packets(
                self._path, scan, (start, end), frames, file, self._plan.orientation, audio, self._is_cancelled,
                self._settings.max_pixels,
            )  # fmt: skip
            if scan.frame_hashes:
                expected = ExpectedFrames(
                    count,
                    frame_packet,
                    lambda frame: scan.frame_hash(frames[0] + frame),
                    lambda frame: scan.rgb_hash(frames[0] + frame),
                )
                return self._verify(file, suffix, expected, "", end - start)
            clean_keys = scan.keys[scan.keys[:, 5] == 1, 0] - start
            with contextlib.closing(self._open_reader()) as reader:
                hasher = _SeekingHasher(reader, frames[0])
                expected = ExpectedFrames(count, frame_packet, hasher.frame_hash, hasher.rgb_hash, clean_keys)
                return self._verify(file, suffix, expected, "", end - start)

    # --- encoding ----------------------------------------------------------------------------------------------------

    def _encode_lossless(self, audio: AudioPackets | None, note: str) -> BuiltChunk:
        reason = ChunkRejected("no encoder preserves this pixel format")
        pix_fmt = self._probe_first_frame()[0]
        for encoder in lossless_encoders(pix_fmt, self._settings.gop or _DEFAULT_GOP_FRAMES):
            for suffix in choose_suffixes(encoder.codec, audio):  # Matroska keeps some colour tags that MP4 does not
                try:
                    return self._encode(encoder, suffix, audio, note, exact=True)
                except ChunkRejected as error:
                    reason = error
        raise UnreadableStream(
            f"{self._path}: frames {self._cut.start} to {self._cut.end - 1} ({pix_fmt}) can neither be copied nor "
            f"encoded without loss: {reason}. mode='encode' (--mode encode) stores them with another encoder",
            stream=self._path,
            address=self._path,
            offset=self._cut.start,
        )

    def _encode_as_chosen(self, audio: AudioPackets | None) -> BuiltChunk:
        pix_fmt, stored_size = self._probe_first_frame()
        encoder = choose_encoder(self._settings, pix_fmt, stored_size, self._plan.orientation)
        if encoder.height is None:
            encoder = EncoderSettings(encoder.codec, encoder.pix_fmt, encoder.gop, encoder.options, *stored_size)
        try:
            suffix = choose_suffixes(encoder.codec, audio)[0]
            return self._encode(encoder, suffix, audio, "", exact=False)
        except ChunkRejected as reason:
            raise encoder_error(self._settings, reason, self._path) from reason

    def _probe_first_frame(self) -> tuple[str, tuple[int, int]]:
        """Return the pixel format of the chunk's first frame, and the stored (height, width) of the video."""
        with contextlib.closing(self._open_reader()) as reader:
            frame = reader.read_frame(int(self._plan.source_frames(self._cut)[0]))
            return frame.format.name, (reader.index.height, reader.index.width)

    def _open_reader(self) -> FrameReader:
        max_pixels = self._settings.max_pixels
        index = load_index(
            self._path,
            damaged=self._settings.damaged,
            max_pixels=max_pixels,
            verify="ends",
            stream=self._settings.stream,
        )
        return FrameReader(self._path, index, max_pixels=max_pixels)

    def _encode(
        self, encoder: EncoderSettings, suffix: str, audio: AudioPackets | None, note: str, *, exact: bool
    ) -> BuiltChunk:
        """Build the chunk with an encoder. If `exact`, every pixel must equal the source."""
        count = self._cut.end - self._cut.start
        frame_hashes: list[bytes] = []
        rgb_hashes: dict[int, bytes] = {}

        def expected_hash(frame: int) -> bytes | None:
            return frame_hashes[frame] if exact else None

        with self._create_file(suffix) as file:
            frames = self._read_frames(frame_hashes if exact else None, rgb_hashes if exact else None)
            with contextlib.closing(frames):
                encode_chunk(file, frames, encoder, self._pts, self._plan.time_base, self._plan.orientation, audio)
            expected = ExpectedFrames(count, None, expected_hash, rgb_hashes.get)
            return self._verify(file, suffix, expected, note, None)

    def _read_frames(
        self, frame_hashes: list[bytes] | None, rgb_hashes: dict[int, bytes] | None
    ) -> Generator[VideoFrame, None, None]:
        """Yield the source frames of the chunk, and check that they equal those of the scan.

        Args:
            frame_hashes: List to which the hash of each frame is appended, or None.
            rgb_hashes: Dictionary to which the RGB hashes of some frames are added, or None.
        """
        numbers = self._plan.source_frames(self._cut).tolist()
        reformatter = VideoReformatter()
        with contextlib.closing(self._open_reader()) as reader:
            last, digest = -1, b""
            for step, number in enumerate(numbers):
                raise_if_cancelled(self._is_cancelled, self._path)
                frame = reader.read_frame(number)
                if frame_hashes is not None or number != last:
                    digest = frame_hash(frame)
                    # What FFmpeg shows in place of damaged parts may be another thing each time.
                    if not reader.index.damaged and self._scan.frame_hash(number) not in (None, digest):
                        raise CorruptStream(
                            f"{self._path}: frame {number} differs from the one decoded when the video was scanned: "
                            "the file changed since then, or is damaged",
                            stream=self._path,
                            address=self._path,
                            offset=number,
                        )
                if frame_hashes is not None and rgb_hashes is not None:
                    frame_hashes.append(digest)
                    if step % RGB_SAMPLE_EVERY == 0:
                        rgb_hashes[step] = rgb_hash(frame, reformatter)
                last = number
                yield frame

    # --- files -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _create_file(self, suffix: str) -> Iterator[str]:
        """Provide the path of the chunk file, and delete the file after an error."""
        file = os.path.join(self._folder, f"{self._cut.number:06d}.{suffix}")
        try:
            yield file
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise

    def _verify(self, file: str, suffix: str, expected: ExpectedFrames, note: str, packets: int | None) -> BuiltChunk:
        """Verify the chunk file. `packets` is the number of packets written to it, if known."""
        cropping = NOT_CROPPED if packets is None else self._plan.cropping  # encoded frames are cropped already
        try:
            stored = read_stored_packets(file, self._settings.max_pixels, cropping)
        except (MediaLimitExceeded, UnreadableStream, av.error.FFmpegError) as error:
            message = error.message if isinstance(error, StreamloaderError) else str(error)
            raise ChunkRejected(f"it cannot be read back from {suffix.upper()}: {message}") from error
        if packets is not None and len(stored) != packets:
            raise ChunkRejected(f"{packets} packets were written to {suffix.upper()}, but {len(stored)} are in it")
        pts = np.ascontiguousarray(self._pts[:-1])
        index, coding = verify_chunk(stored, expected, pts, int(self._pts[-1]), self._is_cancelled)
        digest = hashlib.sha256()
        with open(file, "rb") as chunk:
            while block := chunk.read(_READ_BLOCK_BYTES):
                digest.update(block)
        return BuiltChunk(file, suffix, index, coding, note, os.path.getsize(file), f"sha256:{digest.hexdigest()}")

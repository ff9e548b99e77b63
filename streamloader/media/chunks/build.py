"""Cutting videos into chunks: ordinary files whose every frame is known, checked before anybody relies on them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from av.video.reformatter import VideoReformatter

from streamloader.errors import CorruptStream, UnreadableStream
from streamloader.media.chunks.encode import Coder, chosen_coder, encode_chunk, lossless_coders, refusal, suffixes
from streamloader.media.chunks.format import ChunkIndex, Coding
from streamloader.media.chunks.frame_hash import pixel_digest, rgb_digest
from streamloader.media.chunks.plan import Cut, CutPlan, plan_cuts
from streamloader.media.chunks.remux import Sound, Unfit, sound_between, write_copy
from streamloader.media.chunks.scan import LOOK, Survey, check_cancelled
from streamloader.media.chunks.settings import CutSettings
from streamloader.media.chunks.verify import Expected, check_chunk, read_back
from streamloader.media.video.index_cache import cached_index
from streamloader.media.video.reader import FrameReader
from streamloader.values import Array

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["Cut", "CutPlan", "CutSettings", "MadeChunk", "make_chunk", "plan_cuts"]

_PIECE: Final = 1 << 20
_GOP: Final = 12


@dataclass(frozen=True, eq=False)
class MadeChunk:
    """A chunk, ready to be stored.

    Attributes:
        file: its path.
        suffix: ``"mp4"`` or ``"mkv"``.
        index: of its frames.
        coding: of its packets.
        note: why it was coded anew although packets were to be copied; else nothing.
        bytes: of the file.
        digest: ``"sha256:"`` and the SHA-256 of the file.
    """

    file: str
    suffix: str
    index: ChunkIndex
    coding: Coding
    note: str
    bytes: int
    digest: str


def make_chunk(
    path: str, plan: CutPlan, settings: CutSettings, number: int, folder: str,
    cancelled: Callable[[], bool] = lambda: False,
) -> MadeChunk:  # fmt: skip
    """Make one chunk of a video, and check every frame of it. Several threads can make different ones.

    Where packets were to be copied and the chunk does not show exactly the frames of the source, it is coded anew
    without any loss, and `note` says why.

    Args:
        path: of the local file.
        plan: what :func:`plan_cuts` made of it with the same settings.
        settings: what the user chose.
        number: of the chunk.
        folder: in which the file is made; nothing is left there if that fails.
        cancelled: is asked now and then.

    Raises:
        CorruptStream: the source is damaged, or was changed since it was planned.
        UnreadableStream: no way was found to keep its frames as they are.
        ConfigError: the encoder that was chosen does not take them.
        ClosedError: the work was cancelled.
    """
    return _Making(path, plan, settings, plan.cuts[number], folder, cancelled).make()


class _Sought:
    """Digests of some frames of a source, which are sought in it when they are asked for."""

    def __init__(self, reader: FrameReader, first: int) -> None:
        self._reader = reader
        self._first = first
        self._digests: dict[int, bytes] = {}
        self._looks: dict[int, bytes] = {}
        self._reformatter = VideoReformatter()

    def digest(self, at: int) -> bytes:
        """Return that of the pixels of a frame; `at` counts from the first of the chunk."""
        if at not in self._digests:
            self._digests[at] = pixel_digest(self._reader.frame(self._first + at))
        return self._digests[at]

    def look(self, at: int) -> bytes | None:
        """Return that of its colours, for some frames."""
        if at % LOOK == 0 and at not in self._looks:
            self._looks[at] = rgb_digest(self._reader.frame(self._first + at), self._reformatter)
        return self._looks.get(at)


class _Making:
    """One chunk while it is made."""

    def __init__(
        self, path: str, plan: CutPlan, settings: CutSettings, cut: Cut, folder: str, cancelled: Callable[[], bool]
    ) -> None:
        self._path = path
        self._plan = plan
        self._survey: Survey = plan.survey
        self._settings = settings
        self._cut = cut
        self._folder = folder
        self._cancelled = cancelled
        self._pts = plan.pts(cut)

    def make(self) -> MadeChunk:
        with self._sound() as sound:
            if self._settings.mode == "encode":
                return self._encoded(sound)
            note = ""
            if self._settings.mode == "copy":
                try:
                    return self._copied(sound)
                except Unfit as reason:
                    note = f"coded anew without loss: {reason}"
            return self._lossless(sound, note)

    @contextlib.contextmanager
    def _sound(self) -> Iterator[Sound | None]:
        if not self._settings.audio:
            yield None
            return
        first, stop = (int(at) * self._plan.time_base for at in (self._pts[0], self._pts[-1]))
        # Where frames are timed by a rate, they begin at 0; sound does when the source's first frame is shown.
        ahead = int(self._survey.pts[0]) * self._survey.time_base - self._plan.first_pts * self._plan.time_base
        with sound_between(
            self._path,
            first + ahead if self._cut.first else None,
            stop + ahead if self._cut.stop < self._plan.frames else None,
            first + ahead,
        ) as sound:
            yield sound

    # --- copying -----------------------------------------------------------------------------------------------------

    def _copied(self, sound: Sound | None) -> MadeChunk:
        if self._survey.note:
            raise Unfit(self._survey.note)
        shown = self._survey.packet[self._cut.first : self._cut.stop]
        stop = int(shown.max()) + 1
        reason = Unfit(f"no key frame at frame {self._cut.first} of the source, nor shortly before it")
        for start in self._starts(int(shown.min())):
            for suffix in suffixes(self._survey.codec, sound):
                try:
                    return self._copy(start, stop, shown - start, suffix, sound)
                except Unfit as refused:
                    reason = refused
        raise reason

    def _starts(self, earliest: int) -> list[int]:
        """Return the packets at which the chunk may begin: at most two, the best first."""
        keys = self._survey.keys[:, 0]
        before = keys[keys <= earliest][::-1][:2].tolist()
        if self._cut.first == 0:
            return list(dict.fromkeys([*before[:1], 0]))
        # What comes before the first frame has to be decoded to get there: not more than the chunk itself.
        most = self._cut.stop - self._cut.first
        return [key for key in before if earliest - key <= max(most, 1)]

    def _copy(self, start: int, stop: int, shown: Array, suffix: str, sound: Sound | None) -> MadeChunk:
        survey, frames = self._survey, (self._cut.first, self._cut.stop)
        with self._new_file(suffix) as file:
            write_copy(self._path, survey, (start, stop), frames, file, self._plan.turn, sound, self._cancelled)
            if survey.digests:
                digest, look = (lambda at: survey.digest(frames[0] + at)), (lambda at: survey.look(frames[0] + at))
                return self._checked(file, suffix, Expected(len(shown), shown, digest, look), "", stop - start)
            hard = survey.keys[survey.keys[:, 5] == 1, 0] - start
            with contextlib.closing(FrameReader(self._path, cached_index(self._path))) as reader:
                sought = _Sought(reader, frames[0])
                expected = Expected(len(shown), shown, sought.digest, sought.look, hard)
                return self._checked(file, suffix, expected, "", stop - start)

    # --- coding anew -------------------------------------------------------------------------------------------------

    def _lossless(self, sound: Sound | None, note: str) -> MadeChunk:
        reason = Unfit("no encoder keeps this pixel format as it is")
        pix_fmt = self._first_frame()[0]
        for coder in lossless_coders(pix_fmt, self._settings.gop or _GOP):
            for suffix in suffixes(coder.codec, sound):  # Matroska keeps some colour tags that MP4 does not
                try:
                    return self._encode(coder, suffix, sound, note, exact=True)
                except Unfit as refused:
                    reason = refused
        raise UnreadableStream(
            f"{self._path}: frames {self._cut.first} to {self._cut.stop - 1} ({pix_fmt}) can neither be copied nor "
            f"coded without loss: {reason}",
            stream=self._path,
            address=self._path,
            offset=self._cut.first,
        )

    def _encoded(self, sound: Sound | None) -> MadeChunk:
        pix_fmt, stored = self._first_frame()
        coder = chosen_coder(self._settings, pix_fmt, stored, self._plan.turn)
        if coder.height is None:
            coder = Coder(coder.codec, coder.pix_fmt, coder.gop, coder.options, *stored)
        try:
            return self._encode(coder, suffixes(coder.codec, sound)[0], sound, "", exact=False)
        except Unfit as reason:
            raise refusal(self._settings, reason, self._path) from reason

    def _first_frame(self) -> tuple[str, tuple[int, int]]:
        """Return pixel format of the chunk's first frame, and the size of the video's as it is stored."""
        index = cached_index(self._path)
        with contextlib.closing(FrameReader(self._path, index)) as reader:
            frame = reader.frame(int(self._plan.source_frames(self._cut)[0]))
            return frame.format.name, (index.height, index.width)

    def _encode(self, coder: Coder, suffix: str, sound: Sound | None, note: str, *, exact: bool) -> MadeChunk:
        count = self._cut.stop - self._cut.first
        digests: list[bytes] = []
        looks: dict[int, bytes] = {}

        def digest(at: int) -> bytes | None:
            return digests[at] if exact else None

        with self._new_file(suffix) as file:
            frames = self._frames(digests if exact else None, looks if exact else None)
            with contextlib.closing(frames):
                encode_chunk(file, frames, coder, self._pts, self._plan.time_base, self._plan.turn, sound)
            return self._checked(file, suffix, Expected(count, None, digest, looks.get), note, None)

    def _frames(self, digests: list[bytes] | None, looks: dict[int, bytes] | None) -> Generator[VideoFrame, None, None]:
        """Yield the chunk's frames of the source, compared with what a decode from the beginning gave."""
        numbers = self._plan.source_frames(self._cut).tolist()
        index, reformatter = cached_index(self._path), VideoReformatter()
        with contextlib.closing(FrameReader(self._path, index)) as reader:
            last, digest = -1, b""
            for at, number in enumerate(numbers):
                check_cancelled(self._cancelled, self._path)
                frame = reader.frame(number)
                if digests is not None or number != last:
                    digest = pixel_digest(frame)
                    if self._survey.digest(number) not in (None, digest):
                        raise CorruptStream(
                            f"{self._path} shows another frame {number} than when it was decoded from the beginning: "
                            "it was changed meanwhile, or is damaged",
                            stream=self._path,
                            address=self._path,
                            offset=number,
                        )
                if digests is not None and looks is not None:
                    digests.append(digest)
                    if at % LOOK == 0:
                        looks[at] = rgb_digest(frame, reformatter)
                last = number
                yield frame

    # --- both --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _new_file(self, suffix: str) -> Iterator[str]:
        file = os.path.join(self._folder, f"{self._cut.number:06d}.{suffix}")
        try:
            yield file
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise

    def _checked(self, file: str, suffix: str, expected: Expected, note: str, packets: int | None) -> MadeChunk:
        stored = read_back(file)
        if packets is not None and len(stored) != packets:
            raise Unfit(f"{packets} packets went into {suffix.upper()}, but {len(stored)} are found in it")
        pts = np.ascontiguousarray(self._pts[:-1])
        index, coding = check_chunk(stored, expected, pts, int(self._pts[-1]), self._cancelled)
        digest = hashlib.sha256()
        with open(file, "rb") as made:
            while piece := made.read(_PIECE):
                digest.update(piece)
        return MadeChunk(file, suffix, index, coding, note, os.path.getsize(file), f"sha256:{digest.hexdigest()}")

"""Open the sound of files with FFmpeg, under the restrictions of :mod:`streamloader.media.video.container`.

FFmpeg may use the demuxers and decoders of sound only: no decoder of pictures or subtitles is ever opened.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import av
import av.error
import numpy as np
from av.codec.context import Flags2
from av.stream import Discard, Disposition

from streamloader.errors import CorruptStream, MediaLimitExceeded, StoreError, StreamloaderError
from streamloader.media.audio.index import MAX_CHANNELS, MAX_RATE, SAMPLE_DTYPES
from streamloader.media.progress import PROGRESS
from streamloader.media.video.container import ALLOWED_CONTAINERS, open_container
from streamloader.media.video.files import open_media_file
from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.remote import Video, VideoFile
from streamloader.media.video.source import IO_BUFFER_BYTES
from streamloader.media.video.source_errors import (
    ffmpeg_message,
    require_source,
    translate_decoding_errors,
    translate_open_errors,
    unreadable_error,
)
from streamloader.values import Array

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

__all__ = [
    "AUDIO_CONTAINERS", "check_frame", "contains_coded_sound", "corrupt_error", "demux_sound",
    "frame_samples", "open_sound", "read_bytes", "starts_like_wav", "translate_sound_errors",
]  # fmt: skip

# FFmpeg's demuxers of sound. None of them opens other files by itself, and none needs to know the sample rate.
AUDIO_CONTAINERS: Final = (
    *ALLOWED_CONTAINERS,
    *"aac ac3 adx aiff amr ape au caf dsf dts dtshd eac3 flac iff ircam loas mlp mp3 mpc mpc8 nistsphere oma "  # noqa: SIM905
    "paf pvf qcp rso shn sol sox tak truehd tta voc w64 wav wv wve xwma".split(),
)
_CHECKED_CODECS: Final = frozenset({"ape", "flac", "mlp", "tak", "truehd", "tta", "wavpack"})  # with checksums
_NO_PROBE: Final = {"probesize": "32", "analyzeduration": "1"}
_WAV_SIGNATURES: Final = (b"RIFF", b"RF64", b"BW64")
# Beginnings of DTS in four forms, and of bursts of IEC 61937.
_CODED_SIGNATURES: Final = re.compile(
    rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\x00|\xff\x1f\x00\xe8|\x72\xf8\x1f\x4e"
)
_MAX_PACKED_BYTES: Final = 1 << 28  # of the samples of one frame


@contextlib.contextmanager
def open_sound(
    video: Video,
    file: VideoFile | None = None,
    *,
    track: int | None = None,
    optional: bool = False,
    tolerant: bool = False,
    probes: bool = True,
) -> Iterator[tuple[InputContainer, AudioStream | None]]:
    """Open a file and one of its audio streams, for decoding in the calling thread only.

    The decoder leaves out nothing: neither priming samples nor padding.

    Args:
        video: Path of a local file, or a file in a store.
        file: Open bytes of a file in a store. They stay open when the container is closed.
        track: Number of the audio stream among those of the file. Defaults to the stream that is marked as the default,
            else the one with the most channels, else the first.
        optional: Whether the file may have no audio stream. The stream is None then.
        tolerant: Whether a decoder of lossless sound returns what its checksums prove to be wrong, as FFmpeg does.
            By default, that is an error.
        probes: Whether FFmpeg reads packets to learn what they are. That takes long for WAV, because PCM may contain
            coded sound (:func:`contains_coded_sound`), and nothing else has to be learnt. Defaults to True.

    Raises:
        StreamNotFound: If the file does not exist.
        UnreadableStream: If FFmpeg cannot open the file, or it contains no sound.
        MediaLimitExceeded: If the file exceeds a limit.
        StoreError: If the store fails to deliver bytes.
    """
    name = str(video)
    with translate_open_errors(video, file, "sound", " of sound"):
        container = open_container(
            require_source(video, file),
            PixelLimit(name=name),
            options={"codec_whitelist": _audio_decoders()} | ({} if probes else _NO_PROBE),
            buffer_bytes=IO_BUFFER_BYTES,
            formats=AUDIO_CONTAINERS,
        )
    with contextlib.closing(container):
        stream = _choose_stream(container, video, file, track, optional=optional)
        for other in container.streams:
            if stream is None or other.index != stream.index:
                other.discard = Discard.all
        if stream is not None:
            context = stream.codec_context
            context.thread_count = 1
            context.flags2 |= Flags2.skip_manual
            if context.name in _CHECKED_CODECS and not tolerant:
                context.options = {"err_detect": "crccheck+explode"}
        yield container, stream


@functools.cache
def _audio_decoders() -> str:
    """Return the names of FFmpeg's decoders of sound, for its whitelist."""
    names = []
    for name in sorted(av.codecs_available):
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            if av.codec.Codec(name, "r").type == "audio":
                names.append(name)
    return ",".join(names)


def _choose_stream(
    container: InputContainer, video: Video, file: VideoFile | None, track: int | None, *, optional: bool
) -> AudioStream | None:
    streams = list(container.streams.audio)
    if track is not None:
        if track < len(streams):
            return _require_decoder(streams[track], video, file)
        if streams or not optional:
            count = f"{len(streams)} audio stream{'' if len(streams) == 1 else 's'}"
            raise unreadable_error(video, file, f"has {count}, and audio_stream={track} was requested")
        return None
    usable = [stream for stream in streams if stream.codec_context is not None]
    if not streams and not optional:
        kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        raise unreadable_error(video, file, f"contains no sound (only: {', '.join(kinds)})")
    if streams and not usable:
        return _require_decoder(streams[0], video, file)
    usable.sort(key=lambda stream: (not stream.disposition & Disposition.default, -_count_channels(stream)))
    return usable[0] if usable else None


def _require_decoder(stream: AudioStream, video: Video, file: VideoFile | None) -> AudioStream:
    if stream.codec_context is None:
        raise unreadable_error(video, file, "cannot be decoded: this build of FFmpeg has no decoder for its sound")
    return stream


def _count_channels(stream: AudioStream) -> int:
    return int(stream.codec_context.channels or 0)


def demux_sound(
    container: InputContainer, stream: AudioStream, file: VideoFile | None
) -> Iterator[Packet[AudioStream]]:
    """Yield the packets of a stream from the demuxer's position on. Only the last one is empty: it flushes the decoder.

    Raises:
        EOFError: If a stream appears that the file did not declare, which PyAV cannot handle.
    """
    packets = container.demux(stream)
    last: Packet[AudioStream] | None = None
    while True:
        try:
            packet = next(packets, None)
        except IndexError as error:
            raise EOFError("a stream appears that the file does not declare") from error
        if packet is None:
            break
        if file is not None:
            file.mark_progress()
        PROGRESS.packets += 1
        if packet.size:
            yield packet
        else:  # the headers of a chained Ogg stream are empty packets, too
            last = packet
    if last is not None:
        yield last


def read_bytes(video: Video, file: VideoFile | None, start: int, count: int) -> bytes:
    """Return `count` bytes of a file from `start` on, or fewer at its end.

    Raises:
        OSError: If a local file cannot be read.
        StreamloaderError: If it is no regular file.
        StoreError: If the store fails to deliver bytes.
    """
    if file is not None:
        return file.remote.read_at(start, count)
    with open(open_media_file(str(video)), "rb") as local:
        local.seek(start)
        return local.read(count)


def starts_like_wav(video: Video, file: VideoFile | None = None) -> bool:
    """Return whether a file begins like WAV. False if it cannot be read, so that opening it shows why."""
    try:
        return read_bytes(video, file, 0, 4) in _WAV_SIGNATURES
    except StoreError:
        raise
    except (OSError, StreamloaderError):
        return False


def contains_coded_sound(packet: bytes) -> bool:
    """Return whether PCM may be coded sound, such as DTS on a CD, which FFmpeg recognizes only if it probes."""
    return _CODED_SIGNATURES.search(packet) is not None


def check_frame(frame: AudioFrame, video: Video) -> tuple[int, int, str, str]:
    """Return the rate, number of channels, layout and packed sample format of a frame.

    Raises:
        MediaLimitExceeded: If they exceed a limit.
    """
    rate, channels = frame.sample_rate, frame.layout.nb_channels
    packed = frame.format.packed
    size = frame.samples * channels * packed.bytes
    if channels > MAX_CHANNELS or rate > MAX_RATE or size > _MAX_PACKED_BYTES:
        name = str(video)
        raise MediaLimitExceeded(
            f"{name} has {channels} channels and {rate} samples per second, but at most {MAX_CHANNELS} and {MAX_RATE} "
            "are allowed",
            stream=name,
            address=name,
            limit="channels" if channels > MAX_CHANNELS else "samples per second",
        )
    return rate, channels, frame.layout.name, packed.name


def frame_samples(frame: AudioFrame) -> Array:
    """Return a copy of the samples of a frame, (samples, channels), contiguous."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar:
        return np.ascontiguousarray(frame.to_ndarray().T)
    dtype = SAMPLE_DTYPES[frame.format.name]
    samples: Array = np.frombuffer(memoryview(frame.planes[0]), dtype, frame.samples * channels)
    return samples.reshape(-1, channels).copy()


# --- errors ----------------------------------------------------------------------------------------------------------


def translate_sound_errors(video: Video, sample: int | None = None, rate: int = 0) -> AbstractContextManager[None]:
    """Translate errors of FFmpeg into :class:`CorruptStream`. Errors of a store pass unchanged.

    Args:
        video: Path of a local file, or a file in a store.
        sample: Number of the sample being decoded, for the message. Defaults to none.
        rate: Number of samples per second, for the message. Defaults to 0, which is unknown.
    """
    return translate_decoding_errors(video, lambda error: corrupt_error(video, ffmpeg_message(error), sample, rate))


def corrupt_error(
    video: Video, problem: str, sample: int | None = None, rate: int = 0, details: Mapping[str, Any] | None = None
) -> CorruptStream:
    """Build the error for a sound that is truncated or damaged at a sample."""
    name = str(video)
    where = "" if sample is None else f" at sample {sample}"
    where += f" ({sample / rate:.3f} s)" if sample is not None and rate else ""
    return CorruptStream(
        f"{name} is truncated or damaged{where}: {problem}. Repair or remove the file, or pass "
        'damaged="keep" to use what can be decoded',
        stream=name,
        address=name,
        offset=sample,
        **(details or {}),
    )

"""Sounds in many codecs and containers, encoded by FFmpeg, and the decodes of the ffmpeg program."""

from __future__ import annotations

import functools
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

RATE = 44100
ENCODED_SAMPLES = 4000  # at a time


def melody(samples: int, channels: int = 2, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Return a sound of sweeps and bursts of noise, float32 (channels, samples), that differs at every position."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    tones = [0.3 * np.sin(2 * np.pi * (200 + 50 * channel) * time * (1 + 0.2 * time)) for channel in range(channels)]
    sound = np.stack(tones) + 0.1 * np.sin(2 * np.pi * 3000 * time)
    noise = 0.05 * rng.standard_normal(sound.shape) * (np.sin(2 * np.pi * 0.7 * time) > 0)
    return (sound + noise).astype(np.float32)


def make_sound(
    path: Path,
    codec: str,
    *,
    rate: int = RATE,
    layout: str = "stereo",
    samples: int = 60_001,
    sound: np.ndarray | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    bit_rate: int | None = None,
    muxer: str | None = None,
) -> Path:
    """Encode a sound, float32 (channels, samples), and return `path`. Its default is a melody."""
    sound = melody(samples, av.AudioLayout(layout).nb_channels, rate) if sound is None else sound
    with av.open(str(path), "w", format=muxer, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.layout = layout
        if bit_rate:
            stream.bit_rate = bit_rate
        for packet in encode_sound(stream, sound, rate, layout):
            output.mux(packet)
    return path


def encode_sound(stream: av.AudioStream, sound: np.ndarray, rate: int, layout: str) -> list[av.Packet]:
    """Return the packets of a sound, float32 (channels, samples)."""
    resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
    packets = []
    for start in range(0, sound.shape[1], ENCODED_SAMPLES):
        block = np.ascontiguousarray(sound[:, start : start + ENCODED_SAMPLES])
        frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        packets += [packet for ready in resampler.resample(frame) for packet in stream.encode(ready)]
    packets += [packet for ready in resampler.resample(None) for packet in stream.encode(ready)]
    return [*packets, *stream.encode(None)]


def ffmpeg_encode(path: Path, *options: str, rate: int = RATE, layout: str = "stereo", samples: int = 60_001) -> Path:
    """Encode a melody with the ffmpeg program, which has encoders that PyAV lacks, and return `path`."""
    sound = melody(samples, av.AudioLayout(layout).nb_channels, rate)
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        "-f",
        "f32le",
        "-ar",
        str(rate),
        "-ac",
        str(len(sound)),
    ]
    subprocess.run([*command, "-i", "-", *options, str(path)], input=sound.T.tobytes(), check=True)
    return path


def split_pages(data: bytes) -> list[bytes]:
    """Return the pages of an Ogg file."""
    pages, start = [], 0
    while start < len(data):
        count = data[start + 26]
        end = start + 27 + count + sum(data[start + 27 : start + 27 + count])
        pages.append(data[start:end])
        start = end
    return pages


def ffmpeg_decode(
    path: Path | str, dtype: str = "float32", rate: int | None = None, channels: int = 2, track: int = 0
) -> np.ndarray:
    """Return what the ffmpeg program decodes of a whole file, (samples, channels)."""
    form = {"float32": "f32le", "int16": "s16le"}[dtype]
    to_rate = [] if rate is None else ["-ar", str(rate)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", f"0:a:{track}"]
    done = subprocess.run([*command, *to_rate, "-ac", str(channels), "-f", form, "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype).reshape(-1, channels)


def pyav_decode(path: Path | str) -> np.ndarray:
    """Return what PyAV decodes of a whole file, (samples, channels), in the decoder's own type."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate(
        [
            frame.to_ndarray().T if frame.format.is_planar else frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            for frame in frames
        ]
    )


def with_itunes_tag(source: Path, target: Path, priming: int, padding: int, samples: int) -> Path:
    """Copy an M4A file whose ``moov`` comes last, with the tag that iTunes writes (``iTunSMPB``)."""
    text = f" 00000000 {priming:08X} {padding:08X} {samples:016X}" + " 00000000" * 8
    data = source.read_bytes()
    start = data.rindex(b"moov") - 4
    assert start + struct.unpack(">I", data[start : start + 4])[0] == len(data), "moov has to be the last box"
    tag = _box(
        b"----",
        _box(b"mean", bytes(4) + b"com.apple.iTunes"),
        _box(b"name", bytes(4) + b"iTunSMPB"),
        _box(b"data", struct.pack(">II", 1, 0) + text.encode()),
    )
    handler = _box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    moov = data[start + 8 :] + _box(b"udta", _box(b"meta", bytes(4), handler, _box(b"ilst", tag)))
    target.write_bytes(data[:start] + _box(b"moov", moov))
    return target


def with_zeroed_packet(source: Path, target: Path, number: int) -> Path:
    """Copy a file, with zeros in place of one packet of its sound."""
    with av.open(str(source)) as container:
        packet = bytes([packet for packet in container.demux(audio=0) if packet.size][number])
    data = source.read_bytes()
    assert data.count(packet) == 1
    target.write_bytes(data.replace(packet, bytes(len(packet))))
    return target


def _box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def _make(codec: str, **options: object) -> Callable[[Path], Path]:
    return functools.partial(make_sound, codec=codec, **options)


_VORBIS = {"options": {"strict": "-2"}}
_48K = {"rate": 48_000}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}

# name -> function that writes the file. Each differs from the others in how samples are found.
SOUNDS: dict[str, Callable[[Path], Path]] = {
    "pcm.wav": _make("pcm_s16le"),
    "float.wav": _make("pcm_f32le"),
    "24_bit.wav": _make("pcm_s24le"),
    "a_law.wav": _make("pcm_alaw", rate=8000, layout="mono"),
    "adpcm.wav": _make("adpcm_ima_wav"),
    "pcm.aiff": _make("pcm_s16be"),
    "pcm.mkv": _make("pcm_s16le"),
    "flac.flac": _make("flac"),
    "flac.ogg": _make("flac"),
    "flac.mkv": _make("flac"),
    "flac_48k.mkv": _make("flac", **_48K),
    "alac.m4a": _make("alac"),
    "wavpack.wv": _make("wavpack"),
    "aac.m4a": _make("aac"),
    "no_noise.m4a": _make("aac", options={"aac_pns": "0"}),
    "surround.m4a": _make("aac", layout="5.1"),
    "fragments.mp4": _make("aac", container_options=_FRAGMENTS),
    "adts.aac": _make("aac"),
    "aac.mkv": _make("aac"),
    "aac.ts": _make("aac"),
    "mp3.mp3": _make("libmp3lame"),
    "low_rate.mp3": _make("libmp3lame", rate=22_050, layout="mono", bit_rate=16_000),
    "no_header.mp3": _make("libmp3lame", container_options={"write_xing": "0"}),
    "mp3.mkv": _make("libmp3lame"),
    "mp3.mp4": _make("libmp3lame"),
    "mp3.avi": _make("libmp3lame"),
    "opus.opus": _make("libopus", **_48K),
    "opus.webm": _make("libopus", **_48K),
    "opus.ts": _make("libopus", **_48K),
    "voice.opus": _make("libopus", **_48K, layout="mono", bit_rate=12_000, options={"application": "voip"}),
    "vorbis.ogg": _make("vorbis", **_VORBIS),
    "blocks.ogg": lambda path: ffmpeg_encode(path, "-c:a", "libvorbis"),  # in blocks of different sizes
    "vorbis.mkv": _make("vorbis", **_VORBIS),
    "ac3.ac3": _make("ac3", **_48K),
    "eac3.ts": _make("eac3", **_48K),
    "wma.wma": _make("wmav2", bit_rate=128_000),
}


def make_flashes(
    path: Path,
    *,
    frames: int = 50,
    flashes: tuple[int, ...] = (10, 23, 41),
    ticks: Callable[[int], int] = lambda number: 40 * number,
    codec: str = "mpeg4",
    sound_codec: str | None = "flac",
    sound_codecs: tuple[str, ...] = (),
    rate: int = 48_000,
    layout: str = "stereo",
    delay: float = 0.0,
    seconds: float | None = None,
    stretch: float = 1.0,
    dropped: range = range(0),
    options: dict[str, str] | None = None,
    size: int = 16,
    noisy: bool = False,
) -> Path:
    """Write a video whose frames flash at the instant at which its sound clicks.

    Args:
        path: File to write.
        frames: Number of frames. Frame k is shown at ticks(k) milliseconds.
        flashes: Numbers of the frames that are white. A click of 1 ms begins with each.
        ticks: Function that returns the time of a frame in milliseconds.
        codec: Codec of the frames.
        sound_codec: Codec of the sound, or None for a video without sound.
        sound_codecs: Codecs of further audio streams, which are silent.
        rate: Samples per second.
        layout: Layout of the sound.
        delay: Time of the first sample after the first frame in seconds; before it, if it is negative.
        seconds: Duration of the sound. Defaults to that of the frames.
        stretch: Seconds by which the clock of the sound's timestamps advances in a second of its samples.
        dropped: Numbers of the sound's packets that are left out.
        options: Options of the encoder of the sound.
        size: Height and width of a frame.
        noisy: Whether there is a soft melody between the clicks.
    """
    end = ticks(frames) / 1000
    count = round(((end - delay) if seconds is None else seconds) * rate / stretch)
    channels = av.AudioLayout(layout).nb_channels
    sound = melody(count, channels, rate) / 10 if noisy else np.zeros((channels, count), np.float32)
    for number in flashes:
        first = round((ticks(number) / 1000 - delay) * rate / stretch)
        if 0 <= first < count:
            sound[:, first : first + rate // 1000] = 0.9
    tick = Fraction(1, 1000)
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"} if delay < 0 else {}) as output:
        video = output.add_stream(codec, rate=25)
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base, video.codec_context.gop_size = tick, 12
        tracks = []
        for name in (sound_codec, *sound_codecs) if sound_codec else ():
            tracks.append(output.add_stream(name, rate=rate, options=options or {}))
            tracks[-1].layout = layout
        packets = []
        for number in range(frames):
            frame = av.VideoFrame(size, size, "yuv420p")
            for plane, value in zip(frame.planes, (235 if number in flashes else 16, 128, 128), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.pts, frame.time_base = ticks(number), tick
            packets += video.encode(frame)
        packets += video.encode(None)
        for track in tracks:
            signal = sound if track is tracks[0] else sound * 0
            for number, packet in enumerate(encode_sound(track, signal, rate, layout)):
                if number not in dropped and packet.size:
                    time = float(packet.pts * packet.time_base) * stretch + delay
                    packet.pts = packet.dts = round(time / packet.time_base)
                    packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return path

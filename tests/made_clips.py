"""Video files with unusual properties, encoded by FFmpeg from frames that all differ."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 25


def moving_frame(number: int, height: int, width: int, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """Return a moving picture with edges and colours that differs for every number."""
    y, x = np.mgrid[0:height, 0:width]
    red = (x * 3 + number * 7) % 256
    green = (y * 2 + x + number * 11) % 256
    blue = ((x // 8 + y // 8 + number) % 2) * 180 + number % 64
    picture = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)


@contextlib.contextmanager
def _same_priority() -> Iterator[None]:
    """Restore the scheduling policy of this thread, which SVT-AV1 raises to real time if the user is root.

    All programs that the thread starts later would inherit it, and starve what else runs on the machine.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


def make_clip(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = 40,
    height: int = 48,
    width: int = 64,
    pix_fmt: str = "yuv420p",
    gop: int = 10,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    ticks: Callable[[int], int] = lambda number: number,
    time_base: Fraction = Fraction(1, RATE),
    picture: Callable[[int], av.VideoFrame] | None = None,
    rotation: float = 0.0,
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    muxer: str | None = None,
) -> Path:
    """Encode `frames` pictures; frame k is shown at ticks(k) x time_base."""
    with _same_priority(), av.open(str(path), "w", format=muxer, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        prepare(stream)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            frame = picture(number) if picture else moving_frame(number, height, width, pix_fmt)
            frame.pts, frame.time_base = ticks(number), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def copy_packets(
    source: Path, target: Path, *, shift: int = 0, options: dict[str, str] | None = None, muxer: str | None = None
) -> Path:
    """Copy the video packets of `source` into another file, all times moved by `shift` ticks of its time base."""
    with av.open(str(source)) as container, av.open(str(target), "w", format=muxer, options=options or {}) as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = copied
            output.mux(packet)
    return target


def zero_packets(path: Path, numbers: Iterable[int]) -> None:
    """Overwrite packets, as a disk does that has lost a few sectors."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        position, packet = packets[number]
        start = data.index(packet, position)
        data[start : start + len(packet)] = bytes(len(packet))
    path.write_bytes(data)


def with_audio_only(path: Path, seconds: float = 0.5) -> Path:
    """Write a file with audio and no video."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=44100)
        samples = np.zeros((1, int(44100 * seconds)), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate, frame.pts = 44100, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def flat_yuv(y: int, u: int, v: int, height: int = 32, width: int = 48, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """Return a frame of one colour, given by its stored values."""
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


def linear_decode(path: Path) -> list[av.VideoFrame]:
    """Return all frames that the decoder shows, using only PyAV."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def as_rgb(frames: Iterable[av.VideoFrame], **size: int) -> np.ndarray:
    """Return the frames as PyAV converts them, (n, H, W, 3)."""
    return np.stack([frame.to_ndarray(format="rgb24", **size) for frame in frames])


def with_hidden_frames(source: Path, target: Path, hidden: Iterable[int]) -> Path:
    """Copy a VP8 clip and clear the show_frame bit of some packets, which are then decoded but not shown."""
    hidden = set(hidden)
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        for number, packet in enumerate(packets):
            data = bytearray(bytes(packet))
            if number in hidden:
                data[0] &= ~0x10
            output.mux(_packet(bytes(data), packet, copied))
    return target


def with_packed_b_frames(source: Path, target: Path) -> Path:
    """Copy an MPEG-4 clip into AVI as DivX wrote it: a B frame shares a packet with the frame that it precedes.

    A small packet without a picture follows each pair, so that the numbers of packets and frames are equal.
    """
    nothing = bytes.fromhex("000001b6504f")
    with av.open(str(source)) as container, av.open(str(target), "w", format="avi") as output:
        stream = container.streams.video[0]
        copied = output.add_stream_from_template(stream)
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        header = _signed_divx(stream.codec_context.extradata)
        data = [(header if packet.is_keyframe else b"") + bytes(packet) for packet in packets]
        number = 0
        while number < len(packets):
            pair = number + 1 < len(packets) and packets[number + 1].pts < packets[number].pts
            output.mux(_packet(data[number] + (data[number + 1] if pair else b""), packets[number], copied))
            if pair:
                output.mux(_packet(nothing, packets[number + 1], copied))
            number += 2 if pair else 1
    return target


def with_another_size(folder: Path) -> Path:
    """Write an H.264 stream of 40 frames, the last 20 of which are smaller."""
    large = make_clip(folder / "large.h264", frames=20)
    small = make_clip(folder / "small.h264", frames=20, height=32, width=48)
    target = folder / "another_size.h264"
    target.write_bytes(large.read_bytes() + small.read_bytes())
    return target


def without_reorder_hint(folder: Path) -> Path:
    """Write an H.264 stream with B frames whose parameter sets do not declare the reordering delay (no VUI)."""
    plain = make_clip(folder / "hinted.h264").read_bytes()
    target = folder / "no_hint.h264"
    units = plain.split(b"\0\0\1")
    target.write_bytes(b"\0\0\1".join(_without_vui(unit) if unit[:1] == b"\x67" else unit for unit in units))
    return target


def _without_vui(unit: bytes) -> bytes:
    """Remove the VUI from a sequence parameter set (ITU-T H.264, 7.3.2.1.1)."""
    bits = "".join(f"{byte:08b}" for byte in unit)
    at = 32

    def number() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    number()
    if unit[1] >= 100:  # the high profiles
        assert number() == 1
        number(), number()
        at += 2
    number()
    assert number() == 0
    number(), number()
    at += 1
    number(), number()
    frames_only = bits[at]
    at += 2 if frames_only == "1" else 3
    cropped = bits[at]
    at += 1
    if cropped == "1":
        number(), number(), number(), number()
    assert bits[at] == "1"
    kept = bits[:at] + "01"
    kept += "0" * (-len(kept) % 8)
    return int(kept, 2).to_bytes(len(kept) // 8, "big") + (b"\0" if unit.endswith(b"\0") else b"")


def _signed_divx(header: bytes) -> bytes:
    """Write the name of an encoder that packs B frames (the final "p") into the user data of an MPEG-4 header."""
    return header[: header.index(b"\0\0\1\xb2") + 4] + b"DivX503b1393p"


def _packet(data: bytes, like: av.Packet, stream: av.VideoStream) -> av.Packet:
    packet = av.Packet(data)
    packet.stream, packet.time_base = stream, like.time_base
    packet.pts = packet.dts = like.dts
    packet.is_keyframe = like.is_keyframe
    return packet


def _b_frames(count: int) -> Callable[[av.VideoStream], None]:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.max_b_frames = count

    return prepare


def _x264(options: str) -> dict[str, str]:
    return {"x264-params": options}


_MS = Fraction(1, 1000)
_OPEN = _x264("open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0")
_REFRESH = _x264("intra-refresh=1:keyint=10:bframes=0")
_X265 = {"x265-params": "log-level=0:open-gop=1:keyint=10:min-keyint=10"}

# name -> function that writes the file into a folder. The name states the unusual property.
VARIANTS: dict[str, Callable[[Path], Path]] = {
    "b_frames.mp4": lambda f: make_clip(f / "b_frames.mp4"),
    "b_frames.mkv": lambda f: make_clip(f / "b_frames.mkv"),
    "b_frames.ts": lambda f: make_clip(f / "b_frames.ts"),
    "b_frames.flv": lambda f: make_clip(f / "b_frames.flv"),
    "no_pts.avi": lambda f: make_clip(f / "no_pts.avi"),
    "no_pts.h264": lambda f: make_clip(f / "no_pts.h264"),
    "fragments.mp4": lambda f: make_clip(
        f / "fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "open_groups.mkv": lambda f: make_clip(f / "open_groups.mkv", options=_OPEN),
    "open_groups.mp4": lambda f: make_clip(f / "open_groups.mp4", options=_OPEN),
    "no_key_frames.mkv": lambda f: make_clip(f / "no_key_frames.mkv", options=_REFRESH),
    "no_key_frames.ts": lambda f: make_clip(f / "no_key_frames.ts", options=_REFRESH),
    "variable_rate.mp4": lambda f: make_clip(f / "variable_rate.mp4", ticks=lambda k: k * k + 3 * k, time_base=_MS),
    "variable_rate.mkv": lambda f: make_clip(f / "variable_rate.mkv", ticks=lambda k: k * k + 3 * k, time_base=_MS),
    "late_start.mp4": lambda f: make_clip(f / "late_start.mp4", ticks=lambda k: k + 125),
    "late_start.mkv": lambda f: make_clip(f / "late_start.mkv", ticks=lambda k: k + 125),
    "late_start.ts": lambda f: make_clip(f / "late_start.ts", ticks=lambda k: k + 125),
    "edit_list.mp4": lambda f: copy_packets(
        make_clip(f / "whole.mp4"), f / "edit_list.mp4", shift=-512 * 7, options={"avoid_negative_ts": "disabled"}
    ),
    "vp9.webm": lambda f: make_clip(f / "vp9.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "hidden_frames.webm": lambda f: with_hidden_frames(
        make_clip(f / "vp8.webm", "libvpx"), f / "hidden_frames.webm", (5, 6, 22)
    ),
    "packed.avi": lambda f: with_packed_b_frames(
        make_clip(f / "b1.mp4", "mpeg4", prepare=_b_frames(1)), f / "packed.avi"
    ),
    "mpeg4.avi": lambda f: make_clip(f / "mpeg4.avi", "mpeg4", prepare=_b_frames(2)),
    "mpeg4.mp4": lambda f: make_clip(f / "mpeg4.mp4", "mpeg4", prepare=_b_frames(2)),
    "mpeg2.ts": lambda f: make_clip(f / "mpeg2.ts", "mpeg2video", prepare=_b_frames(2)),
    "mpeg2.mpg": lambda f: make_clip(f / "mpeg2.mpg", "mpeg2video", prepare=_b_frames(2)),
    "hevc.mp4": lambda f: make_clip(f / "hevc.mp4", "libx265", options=_X265),
    "hevc.mkv": lambda f: make_clip(f / "hevc.mkv", "libx265", options=_X265),
    "hevc_10_bit.mp4": lambda f: make_clip(f / "hevc_10_bit.mp4", "libx265", pix_fmt="yuv420p10le", options=_X265),
    "av1.mp4": lambda f: make_clip(f / "av1.mp4", "libsvtav1", height=64, options={"preset": "11"}),
    "mjpeg.avi": lambda f: make_clip(f / "mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
    "mjpeg.mov": lambda f: make_clip(f / "mjpeg.mov", "mjpeg", pix_fmt="yuvj420p"),
    "odd_size.mkv": lambda f: make_clip(f / "odd_size.mkv", "ffv1", height=47, width=63),
    "odd_size_444.mp4": lambda f: make_clip(f / "odd_size_444.mp4", height=47, width=63, pix_fmt="yuv444p"),
    "422.mkv": lambda f: make_clip(f / "422.mkv", "ffv1", pix_fmt="yuv422p"),
    "interlaced.ts": lambda f: make_clip(f / "interlaced.ts", options=_x264("interlaced=1:tff=1")),
    "rotated.mp4": lambda f: make_clip(f / "rotated.mp4", rotation=90),
    "palette.gif": lambda f: make_clip(f / "palette.gif", "gif", pix_fmt="rgb8"),
    "one_frame.mp4": lambda f: make_clip(f / "one_frame.mp4", frames=1),
}

"""Media files that attack the program that opens them, most of them written byte by byte."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
from made_clips import RATE, copy_packets, make_clip

HUGE = 65_535  # pixels
LARGE = 16_000  # pixels; FFmpeg accepts 16,000 x 16,000 without a limit, and not much more

# --- pictures ----------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """Return a PNG whose data is cut off: what counts is that no decoder allocates its frame."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 16))), (b"IEND", b""))
    )


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG that declares a size, with the data of a small one."""
    return _patched_jpeg(_encode_picture("mjpeg", "yuvj420p"), width, height)


def _patched_jpeg(data: bytes, width: int, height: int) -> bytes:
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def gif(width: int, height: int) -> bytes:
    """Return a GIF of one frame that fills a large screen."""
    size = struct.pack("<HH", width, height)
    screen = size + b"\x80\0\0" + bytes(3) + b"\xff" * 3
    return b"GIF89a" + screen + b",\0\0\0\0" + size + b"\0\x02\x02\x44\x01\0;"


def webp(width: int, height: int) -> bytes:
    """Return a WebP (VP8) that declares a size, without data."""
    frame = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + bytes(64)
    body = b"WEBPVP8 " + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _encode_picture(codec: str, pix_fmt: str, height: int = 48, width: int = 64) -> bytes:
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = width, height, pix_fmt, Fraction(1, 25)
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


# --- Matroska ----------------------------------------------------------------------------------------------------


def element(identifier: int, body: bytes) -> bytes:
    """Return an EBML element."""
    return (
        identifier.to_bytes((identifier.bit_length() + 7) // 8, "big") + (1 << 56 | len(body)).to_bytes(8, "big") + body
    )


def matroska(
    tracks: list[tuple[str, int, int]], packets: list[tuple[int, bytes]] = (), *extra: bytes, private: bytes = b""
) -> bytes:
    """Return a Matroska file.

    Args:
        tracks: Codec, declared width and declared height of each video track.
        packets: Number of the track (from 1) and data of each packet. All are key frames, 40 ms apart.
        *extra: Further elements of the segment.
        private: Codec parameters of the tracks.
    """
    header = element(0x1A45DFA3, element(0x4282, b"matroska") + element(0x4287, b"\4") + element(0x4285, b"\2"))
    entries = b"".join(
        element(
            0xAE,
            element(0xD7, number.to_bytes(2, "big")) + element(0x73C5, number.to_bytes(2, "big")) + element(0x83, b"\1")
            + element(0x86, codec.encode()) + (element(0x63A2, private) if private else b"")
            + element(0xE0, element(0xB0, width.to_bytes(4, "big")) + element(0xBA, height.to_bytes(4, "big"))),
        )
        for number, (codec, width, height) in enumerate(tracks, 1)
    )  # fmt: skip
    blocks = b"".join(
        element(0xA3, bytes([0x80 | track]) + struct.pack(">hB", 40 * index, 0x80) + data)
        for index, (track, data) in enumerate(packets)
    )
    info = element(0x1549A966, element(0x2AD7B1, (1_000_000).to_bytes(4, "big")))
    cluster = element(0x1F43B675, element(0xE7, b"\0") + blocks) if packets else b""
    return header + element(0x18538067, info + element(0x1654AE6B, entries) + b"".join(extra) + cluster)


def leaping(times: list[int], duration: int) -> bytes:
    """Return a Matroska file of MJPEG pictures at these milliseconds, each of which lasts `duration`."""
    picture = b"\x81\0\0\0" + _encode_picture("mjpeg", "yuvj420p")
    clusters = [
        element(
            0x1F43B675,
            element(0xE7, time.to_bytes(8, "big"))
            + element(0xA0, element(0xA1, picture) + element(0x9B, duration.to_bytes(8, "big"))),
        )
        for time in times
    ]
    return matroska([("V_MJPEG", 64, 48)], (), *clusters)


def attachment(name: str, kind: str, data: bytes) -> bytes:
    """Return the Attachments element of a Matroska segment, with one file."""
    body = (
        element(0x466E, name.encode()) + element(0x4660, kind.encode()) + element(0x465C, data) + element(0x46AE, b"\7")
    )
    return element(0x1941A469, element(0x61A7, body))


# --- H.264 -------------------------------------------------------------------------------------------------------


def resized_sps(unit: bytes, width: int, height: int) -> bytes:
    """Return a sequence parameter set of the baseline profile with another size (ITU-T H.264, 7.3.2.1.1)."""
    bits = "".join(f"{byte:08b}" for byte in unit)
    position = 32

    def skip() -> int:
        nonlocal position
        zeros = bits.index("1", position) - position
        position += 2 * zeros + 1
        return int(bits[position - zeros - 1 : position], 2) - 1

    assert unit[1] < 100, "a high profile has further fields"
    skip(), skip()
    order_type = skip()
    assert order_type in (0, 2)
    if order_type == 0:
        skip()
    skip()
    position += 1
    start = position
    skip(), skip()
    kept = bits[:start] + _golomb(width // 16 - 1) + _golomb(height // 16 - 1) + bits[position : position + 2] + "0"
    kept += "0" + "1"  # no cropping, no VUI, and the stop bit
    kept += "0" * (-len(kept) % 8)
    return _escape(int(kept, 2).to_bytes(len(kept) // 8, "big"))


def _golomb(value: int) -> str:
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def _escape(unit: bytes) -> bytes:
    """Add emulation prevention bytes."""
    out = bytearray()
    for byte in unit:
        if out[-2:] == b"\0\0" and byte <= 3:
            out.append(3)
        out.append(byte)
    return bytes(out)


def growing_h264(folder: Path, width: int, height: int, *, name: str = "growing.h264") -> Path:
    """Write an H.264 stream of 40 small frames, whose parameter set grows after 20 frames."""
    small = make_clip(
        folder / f"small_{name}",
        frames=20,
        pix_fmt="yuv420p",
        options={"profile": "baseline", "x264-params": "annexb=1"},
    ).read_bytes()
    units = small.split(b"\0\0\1")
    large = b"\0\0\1".join(
        resized_sps(unit.rstrip(b"\0"), width, height) if unit[:1] in (b"\x67", b"\x27") else unit for unit in units
    )
    target = folder / name
    target.write_bytes(small + large)
    return target


def growing_in(folder: Path, suffix: str, width: int, height: int) -> Path:
    """Write three small frames of H.264 and then large ones into a container in which streams appear late."""
    small = make_clip(folder / "first.h264", frames=3, options={"profile": "baseline"})
    units = small.read_bytes().split(b"\0\0\1")
    large = folder / "then.h264"
    large.write_bytes(
        b"\0\0\1".join(
            resized_sps(unit.rstrip(b"\0"), width, height) if unit[:1] in (b"\x67", b"\x27") else unit for unit in units
        )
    )
    without_decoders = {"codec_whitelist": "none"}
    target = folder / f"growing.{suffix}"
    with av.open(str(small), container_options=without_decoders) as template, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(template.streams.video[0])
        number = 0
        for path in (small, *[large] * 6):
            with av.open(str(path), container_options=without_decoders) as source:
                for packet in source.demux(source.streams.video[0]):
                    if packet.size:
                        copy = av.Packet(bytes(packet))
                        copy.stream, copy.time_base, copy.is_keyframe = stream, Fraction(1, RATE), True
                        copy.pts = copy.dts = number
                        output.mux(copy)
                        number += 1
    return target


def lying_mp4(folder: Path, width: int, height: int) -> Path:
    """Write an MP4 of small frames that declares others in all of its tables."""
    path = make_clip(folder / "honest.mp4", frames=3, height=48, width=64)
    data = bytearray(path.read_bytes())
    for kind in (b"avc1",):
        start = data.index(kind, data.index(b"stsd")) + 4 + 24
        data[start : start + 4] = struct.pack(">HH", width, height)
    start = data.index(b"tkhd") + 4 + 76
    data[start : start + 8] = struct.pack(">II", width << 16, height << 16)
    target = folder / "lying.mp4"
    target.write_bytes(data)
    return target


def with_many_tracks(path: Path, count: int) -> bytes:
    """Return an MP4 whose only track is repeated."""
    data = path.read_bytes()
    movie = data.index(b"moov") - 4
    track = data.index(b"trak", movie) - 4
    (size,) = struct.unpack_from(">I", data, track)
    copies = data[track : track + size] * (count - 1)
    (length,) = struct.unpack_from(">I", data, movie)
    assert movie + length == len(data), "the samples come first"
    return data[:movie] + struct.pack(">I", length + len(copies)) + data[movie + 4 : track] + copies + data[track:]


# --- files that name others --------------------------------------------------------------------------------------


def naming_files(folder: Path, clip: Path) -> dict[str, Path]:
    """Write files that name `canary` files beside them, which are valid videos and pictures.

    Returns:
        Name of the attack -> path of the file.
    """
    (folder / "canary.mp4").write_bytes(clip.read_bytes())
    copy_packets(clip, folder / "canary.ts")
    for number in range(3):
        (folder / f"pic{number}.jpg").write_bytes(jpeg(64, 48))
    (folder / "subtitles.sub").write_bytes(copy_packets(clip, folder / "canary.mpg").read_bytes())
    canary, url = folder / "canary.ts", f"file:{folder / 'canary.mp4'}"
    files = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{canary}\n#EXT-X-ENDLIST\n",
        "hls_data.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\ndata:video/mp2t;base64,Rw==\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {canary}\n",
        "concat_url.mkv": f"ffconcat version 1.0\nfile '{url}'\n",
        "dash.mp4": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        f'bandwidth="1"><BaseURL>{canary}</BaseURL></Representation></AdaptationSet></Period></MPD>\n',
        "subtitles.idx": "# VobSub index file, v7 (do not modify this line!)\nsize: 64x48\nid: en, index: 0\n"
        "timestamp: 00:00:00:000, filepos: 000000000\n",
        "metadata.mp4": f";FFMETADATA1\ntitle={canary}\n",
        "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "filter.mp4": f"movie={canary}\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "pic%d.jpg").write_bytes(jpeg(64, 48))
    (folder / "pic*.jpg").write_bytes(jpeg(64, 48))
    return {name: folder / name for name in [*files, "pic%d.jpg", "pic*.jpg"]}


@contextlib.contextmanager
def watch_opened(folder: Path) -> Iterator[Callable[[], set[str]]]:
    """Yield a function that returns the names of all files in `folder` that any process has opened since."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0
    assert libc.inotify_add_watch(fd, os.fsencode(folder), 0x20) >= 0  # IN_OPEN

    def opened() -> set[str]:
        names = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                data, offset = os.read(fd, 1 << 16), 0
                while offset < len(data):
                    (length,) = struct.unpack_from("I", data, offset + 12)
                    names.add(data[offset + 16 : offset + 16 + length].rstrip(b"\0").decode())
                    offset += 16 + length
        return names - {""}

    try:
        yield opened
    finally:
        os.close(fd)

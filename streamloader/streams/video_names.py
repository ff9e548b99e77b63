"""Find videos by their names, and leave out files that only share an ending with videos."""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from streamloader.common.printable import make_printable
from streamloader.errors import StreamloaderError, StreamNotFound
from streamloader.stores.addresses import Addresses, SourceFile, as_addresses, expand_addresses
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.values import ByteRange

__all__ = ["find_videos", "is_video", "leave_out_text"]

# Endings of the formats in ALLOWED_CONTAINERS, and of cameras that write these formats under names of their own.
_VIDEO_NAME: Final = re.compile(
    r"\.(26[1-6]|26l|360|3g2|3gp2?|3gpp2?|amv|apng|asf|av1|avc|avi|avs|avs[23]|cavs|cine|dav|dif|divx|dnxhd|drc|dv"
    r"|dvr-ms|evc|evo|f4v|flc|fli|flv|gif|gxf|h26[1-6]|h26l|hevc|insv|ismv|ivf|kux|lrf|lrv|lxf|m1v|m2p|m2t|m2ts|m2v"
    r"|m4v|mj2|mjpe?g|mjpg|mk3d|mkv|mod|mov|mp2v|mp4|mp4v|mpe|mpeg|mpeg4|mpegts|mpg|mpg4|mpv|mqv|mts|mxf|nsv|nut|nuv"
    r"|obu|ogm|ogv|pva|qt|rcv|rm|rmvb|ser|tod|tp|trp|ts|vc1|vob|vro|vvc|webm|wm|wmv|wtv|xvid|y4m)$",
    re.IGNORECASE,
)
# Videos whose formats are not accepted: FFmpeg has no demuxer for them, or one that is not in ALLOWED_CONTAINERS.
_REFUSED_NAME: Final = re.compile(
    r"\.(ari|arx|bik|bk2|bmv|braw|crm|cdxl|flm|ipu|ivr|moflex|mve|pdv|r3d|roq|smk|swf|ty|usm|v210|viv|xmv|yop|yuv)$",
    re.IGNORECASE,
)
# Endings that text has too: TypeScript and its modules, modules of Go and Fortran, scripts of AviSynth.
_TEXT_NAME: Final = re.compile(r"\.(ts|mts|mod|avs)$", re.IGNORECASE)
_MODULE_NAME: Final = re.compile(r"\.mod$", re.IGNORECASE)
_VIDEO_STARTS: Final = (b"\0\0\1", b"\x47")  # of MPEG program and transport streams, which cameras write as .mod
_HEAD_BYTES: Final = 512
_TEXT_CONTROLS: Final = frozenset(b"\t\n\r\f\x1b")
_FIRST_TEXT_BYTE: Final = 0x20
_TS_PACKET_BYTES: Final = (188, 192, 204)  # of a transport stream; its size is a multiple of one of these
_READ_THREADS: Final = 32
_MAX_NAMED: Final = 5  # endings and files in a message
_log = logging.getLogger("streamloader")


def is_video(path: str) -> bool:
    """Return whether a path has the extension of a video."""
    return _VIDEO_NAME.search(path) is not None


def find_videos(
    paths: Addresses,
    options: Mapping[str, Any] | None = None,
    unreadable: Unreadable | UnreadableReport = None,
) -> list[SourceFile]:
    """Return the videos that addresses stand for, as :func:`streamloader.stores.addresses.expand_addresses` does.

    Of a directory, the files with a video extension are taken. Text that shares its extension with videos (TypeScript)
    is left out, unless it is named literally. A warning names the extensions of videos that are not accepted. If
    `unreadable` is a report, there may be no video.

    Raises:
        StreamNotFound: If a path does not exist, or if there is no video. Other errors are those of `expand_addresses`.
    """
    refused: dict[str, int] = {}

    def take(path: str) -> bool:
        if (match := _REFUSED_NAME.search(path)) is not None:
            ending = match[0].lower()
            refused[ending] = refused.get(ending, 0) + 1
        return is_video(path)

    try:
        files = expand_addresses(paths, take, options, unreadable=unreadable)
    finally:
        if refused:
            _log.warning(
                "left out %d files in formats that are not accepted (%s): convert them, for example to .mkv",
                sum(refused.values()), ", ".join(f"{ending}: {count}" for ending, count in sorted(refused.items())),
            )  # fmt: skip
    return leave_out_text(files, paths, options) if files else []


def leave_out_text(
    files: Sequence[SourceFile], paths: Addresses, options: Mapping[str, Any] | None = None
) -> list[SourceFile]:
    """Return the files without text whose extension is that of a video, except where `paths` names it literally.

    Raises:
        StreamNotFound: If all files are such text.
    """
    named = set(as_addresses(paths))
    doubtful = [n for n, file in enumerate(files) if file.address not in named and _TEXT_NAME.search(file.address)]
    text = _find_text(files, doubtful, options)
    if not text:
        return list(files)
    names = ", ".join(make_printable(files[number].address) for number in sorted(text)[:_MAX_NAMED])
    more = f" and {len(text) - _MAX_NAMED} more" if len(text) > _MAX_NAMED else ""
    if len(text) == len(files):
        raise StreamNotFound(f"there is no video, only text with the extension of one: {names}{more}")
    _log.info("left out %d files that are text with the extension of a video: %s%s", len(text), names, more)
    return [file for number, file in enumerate(files) if number not in text]


def _find_text(
    files: Sequence[SourceFile], doubtful: Sequence[int], options: Mapping[str, Any] | None
) -> Collection[int]:
    """Return the numbers of the files that are text. A file that cannot be read counts as a video."""
    local = [number for number in doubtful if is_local_file(files[number].address)]
    text = {number for number in local if _is_text(address := files[number].address, _read_local_head(address))}
    remote = [
        number
        for number in doubtful
        if not is_local_file(files[number].address) and not _has_packet_size(files[number])
    ]
    if remote:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(min(_READ_THREADS, len(remote)), thread_name_prefix="video-head") as pool:
            heads = pool.map(lambda number: _read_stored_head(files[number], options), remote)
            text |= {
                number for number, head in zip(remote, heads, strict=True) if _is_text(files[number].address, head)
            }
    return text


def _has_packet_size(file: SourceFile) -> bool:
    size = 0 if file.info is None else file.info.size or 0
    return size > 0 and any(size % packet == 0 for packet in _TS_PACKET_BYTES)


def _read_local_head(address: str) -> bytes:
    from streamloader.media.video.files import open_media_file

    try:
        fd = open_media_file(local_path(address))
        try:
            return os.pread(fd, _HEAD_BYTES, 0)
        finally:
            os.close(fd)
    except (OSError, StreamloaderError):  # it is reported when it is indexed
        return b""


def _read_stored_head(file: SourceFile, options: Mapping[str, Any] | None) -> bytes:
    from streamloader.stores.io_thread import open_shared_store

    size = _HEAD_BYTES if file.info is None or file.info.size is None else min(_HEAD_BYTES, file.info.size)
    if not size:
        return b""
    try:
        store, path = open_shared_store(file.address, options)
        with store:
            data: bytes = store.call(store.store.read(path, ByteRange(0, size)))
    except StreamloaderError:  # it is reported when it is indexed
        return b""
    return data


def _is_text(address: str, head: bytes) -> bool:
    """Return whether a file begins as no video does: with text, or as a .mod of music or of another program."""
    if not head:
        return False
    if _MODULE_NAME.search(address):
        return not head.startswith(_VIDEO_STARTS)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    return all(byte >= _FIRST_TEXT_BYTE or byte in _TEXT_CONTROLS for byte in head)

"""Settings for cutting videos into chunks, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import av
import av.error

from streamloader.errors import ConfigError
from streamloader.media.video.index import validate_stream
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS, validate_max_pixels
from streamloader.media.video.selection import Selection, as_int

__all__ = ["CutSettings"]

_MODES: Final = ("copy", "encode", "lossless")
_VERIFY_MODES: Final = ("frames", "edges")
_DAMAGE_MODES: Final = ("raise", "keep")
_DEFAULT_ENCODER: Final = "libx264"
_DEFAULT_GOP_FRAMES: Final = {"encode": 12, "lossless": 12}
_DEFAULT_OPTIONS: Final[dict[str, dict[str, str]]] = {
    "libx264": {"crf": "18", "preset": "medium"},
    "libx265": {"crf": "20", "preset": "medium"},
    "libsvtav1": {"crf": "28", "preset": "8"},
}


@dataclass(frozen=True)
class CutSettings:
    """Settings for cutting videos into chunks. Equal settings and equal sources give equal chunks, byte for byte.

    Attributes:
        mode: ``"copy"`` cuts at key frames and keeps the packets unchanged; ``"encode"`` re-encodes all frames;
            ``"lossless"`` re-encodes them without changing a pixel. Defaults to ``"copy"``.
        chunk_frames: Target number of frames per chunk. In mode ``"copy"``, chunks start at the nearest key frames.
            Defaults to 1000.
        codec: FFmpeg's name of the encoder for mode ``"encode"``. Defaults to ``"libx264"``.
        options: Options of the encoder. Defaults to a quality suited to the encoder.
        gop: Maximum number of frames from one key frame to the next in re-encoded chunks. Defaults to 12.
        size: (height, width) in pixels of the upright frames in mode ``"encode"``. Defaults to the source's size.
        fps: Frames per second in mode ``"encode"``. Defaults to all frames of the source, with their times.
        audio: Whether to store the best audio stream in the chunks, for video players. Defaults to False.
        verify: ``"frames"`` compares every frame of every chunk with a decode of the source from its start.
            ``"edges"`` compares only the first and the last group of pictures of each chunk, if each packet of the
            source has the timestamp of one frame. Defaults to ``"frames"``.
        stream: Number of the video stream among those of the source, cover pictures left out. Defaults to the one that
            is marked as default, else the first one.
        max_pixels: Maximum number of pixels of a frame of the source. Sources with larger frames are refused. It
            changes no chunk, and is not stored. Defaults to 2^26, which is 8192 x 8192.

        damaged: ``"raise"`` to refuse a truncated or damaged source; ``"keep"`` to take the frames of it that can be
            decoded, as ``VideoStreams(damaged="keep")`` does. Chunks with damage in them are encoded without loss.
            Defaults to ``"raise"``.

    Raises:
        ConfigError: If a setting is invalid, or settings contradict each other.
    """

    mode: str = "copy"
    chunk_frames: int = 1000
    codec: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    gop: int | None = None
    size: tuple[int, int] | None = None
    fps: Fraction | None = None
    audio: bool = False
    verify: str = "frames"
    stream: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    damaged: str = "raise"

    def __post_init__(self) -> None:
        """Validate all settings, and fill in defaults that depend on the mode."""
        if self.mode not in _MODES:
            raise ConfigError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {self.mode!r}")
        if self.verify not in _VERIFY_MODES:
            raise ConfigError(f"verify must be 'frames' or 'edges', got {self.verify!r}")
        if self.damaged not in _DAMAGE_MODES:
            raise ConfigError(f"damaged must be 'raise' or 'keep', got {self.damaged!r}")
        if as_int(self.chunk_frames) < 1:
            raise ConfigError(f"chunk_frames must be a whole number of at least 1, got {self.chunk_frames!r}")
        if not isinstance(self.audio, bool):
            raise ConfigError(f"audio must be True or False, got {self.audio!r}")
        if self.mode != "encode":
            given = [name for name in ("codec", "options", "size", "fps") if getattr(self, name)]
            if given:
                raise ConfigError(f"{given[0]}= needs mode='encode': mode={self.mode!r} changes no pixel of any frame")
        validate_stream(self.stream)
        validate_max_pixels(self.max_pixels)
        gop = self.gop if self.gop is not None else _DEFAULT_GOP_FRAMES.get(self.mode)
        if gop is not None and as_int(gop) < 1:
            raise ConfigError(f"gop must be a whole number of at least 1, got {self.gop!r}")
        self._set(chunk_frames=int(self.chunk_frames), gop=None if gop is None else int(gop))
        if self.mode == "encode":
            self._check_encoding()

    def _check_encoding(self) -> None:
        codec = self.codec or _DEFAULT_ENCODER
        try:
            encoder = av.Codec(codec, "w")
            is_available = encoder.is_encoder and encoder.type == "video"
        except (av.error.FFmpegError, ValueError, TypeError):
            is_available = False
        if not is_available:
            raise ConfigError(f"this build of FFmpeg has no video encoder {codec!r}; try 'libx264'")
        options = self.options
        if not isinstance(options, Mapping) or any(not isinstance(name, str) for name in options):
            raise ConfigError(f"options must map names of FFmpeg's options to values, got {options!r}")
        values = {name: str(value) for name, value in options.items()}
        self._set(codec=codec, options=values or dict(_DEFAULT_OPTIONS.get(codec, {})))
        if self.size is not None:
            size: Any = self.size
            if not isinstance(size, (tuple, list)) or len(size) != 2 or any(as_int(n) < 1 for n in size):
                raise ConfigError(f"size must be (height, width), two whole numbers of at least 1, got {size!r}")
            self._set(size=(int(size[0]), int(size[1])))
        self._set(fps=Selection.from_options(None, False, 1, self.fps).fps)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, equal for equivalent settings."""
        document = {
            "mode": self.mode,
            "chunk_frames": self.chunk_frames,
            "codec": self.codec,
            "options": dict(sorted(self.options.items())),
            "gop": self.gop,
            "size": None if self.size is None else list(self.size),
            "fps": None if self.fps is None else str(self.fps),
            "audio": self.audio,
            "verify": self.verify,
        }
        if self.stream is not None:
            document["stream"] = int(self.stream)
        if self.damaged != "raise":  # chunks of older versions keep their names
            document["damaged"] = self.damaged
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CutSettings:
        """Rebuild the settings from :meth:`to_json`.

        Raises:
            ConfigError: If these are not settings for cutting videos.
        """
        names = {*cls(stream=0).to_json(), "damaged"}
        if not isinstance(document, Mapping) or set(document) - names:
            raise ConfigError(f"these are not settings for cutting videos: {document!r}")
        values = dict(document)
        if values.get("size") is not None:
            values["size"] = tuple(values["size"])
        return cls(**values)

"""How videos are cut into chunks: what the user chose, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import av
import av.error

from streamloader.errors import ConfigError
from streamloader.media.video.selection import Selection, whole

__all__ = ["CutSettings"]

_MODES: Final = ("copy", "encode", "lossless")
_CHECKS: Final = ("frames", "edges")
_CODEC: Final = "libx264"
_GOP: Final = {"encode": 12, "lossless": 12}
_OPTIONS: Final[dict[str, dict[str, str]]] = {
    "libx264": {"crf": "18", "preset": "medium"},
    "libx265": {"crf": "20", "preset": "medium"},
    "libsvtav1": {"crf": "28", "preset": "8"},
}


@dataclass(frozen=True)
class CutSettings:
    """How a video is cut. The same settings and the same source give the same chunks, byte for byte.

    Attributes:
        mode: ``"copy"`` cuts at key frames and leaves packets as they are; ``"encode"`` codes all frames anew;
            ``"lossless"`` does so without changing a pixel.
        chunk_frames: frames that a chunk is to have; where packets are copied, the nearest key frame decides.
        codec: FFmpeg's encoder of ``"encode"``, by default ``"libx264"``.
        options: of that encoder.
        gop: frames from one key frame to the next, of what is encoded; 12 by default.
        size: (height, width) of the frames of ``"encode"`` as they are shown; None leaves them.
        fps: frames per second of ``"encode"``; None keeps every frame and its time.
        audio: keep the best audio stream in the chunks, for players.
        verify: ``"frames"`` compares each frame of each chunk with a decode of the source from its beginning;
            ``"edges"`` only those of the first and the last key frame's group of each chunk, where the source is of a
            kind whose packets tell which frames they show.

    Raises:
        ConfigError: they cannot work.
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

    def __post_init__(self) -> None:
        """Check all of it, and fill in what depends on the mode."""
        if self.mode not in _MODES:
            raise ConfigError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {self.mode!r}")
        if self.verify not in _CHECKS:
            raise ConfigError(f"verify must be 'frames' or 'edges', got {self.verify!r}")
        if whole(self.chunk_frames) < 1:
            raise ConfigError(f"chunk_frames must be a whole number of at least 1, got {self.chunk_frames!r}")
        if not isinstance(self.audio, bool):
            raise ConfigError(f"audio must be True or False, got {self.audio!r}")
        if self.mode != "encode":
            given = [name for name in ("codec", "options", "size", "fps") if getattr(self, name)]
            if given:
                raise ConfigError(f"{given[0]}= needs mode='encode': mode={self.mode!r} changes no pixel of any frame")
        gop = self.gop if self.gop is not None else _GOP.get(self.mode)
        if gop is not None and whole(gop) < 1:
            raise ConfigError(f"gop must be a whole number of at least 1, got {self.gop!r}")
        self._set(chunk_frames=int(self.chunk_frames), gop=None if gop is None else int(gop))
        if self.mode == "encode":
            self._check_encoding()

    def _check_encoding(self) -> None:
        codec = self.codec or _CODEC
        try:
            encoder = av.Codec(codec, "w")
            fits = encoder.is_encoder and encoder.type == "video"
        except (av.error.FFmpegError, ValueError, TypeError):
            fits = False
        if not fits:
            raise ConfigError(f"this build of FFmpeg has no video encoder {codec!r}; try 'libx264'")
        options = self.options
        if not isinstance(options, Mapping) or any(not isinstance(name, str) for name in options):
            raise ConfigError(f"options must map names of FFmpeg's options to values, got {options!r}")
        told = {name: str(value) for name, value in options.items()}
        self._set(codec=codec, options=told or dict(_OPTIONS.get(codec, {})))
        if self.size is not None:
            size: Any = self.size
            if not isinstance(size, (tuple, list)) or len(size) != 2 or any(whole(n) < 1 for n in size):
                raise ConfigError(f"size must be (height, width), two whole numbers of at least 1, got {size!r}")
            self._set(size=(int(size[0]), int(size[1])))
        self._set(fps=Selection.checked(None, False, 1, self.fps).fps)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, the same for settings that mean the same."""
        return {
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

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> CutSettings:
        """Rebuild them.

        Raises:
            ConfigError: these are none.
        """
        known = set(cls().to_json())
        if not isinstance(told, Mapping) or set(told) - known:
            raise ConfigError(f"these are no settings for cutting videos: {told!r}")
        values = dict(told)
        if values.get("size") is not None:
            values["size"] = tuple(values["size"])
        return cls(**values)

"""The ffmpeg program as an independent truth: what it shows of a file, and when."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

PROGRAM = imageio_ffmpeg.get_ffmpeg_exe()


def run(*arguments: object, data: bytes | None = None) -> bytes:
    """Run ffmpeg, and return its output."""
    command = [PROGRAM, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def shown_times(path: Path | str, stream: int = 0) -> np.ndarray:
    """Return when ffmpeg shows each frame, in seconds after the first one."""
    command = [
        PROGRAM, "-v", "info", "-nostdin", "-i", str(path), "-map", f"0:v:{stream}", "-vf", "showinfo", "-fps_mode",
        "passthrough", "-f", "null", "-",
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    times = np.array([float(value) for value in re.findall(r"pts_time:([-\d.]+)", text)])
    return times - times[0]


def shown_pictures(path: Path | str, height: int, width: int, *options: object, stream: int = 0) -> np.ndarray:
    """Return the frames that ffmpeg shows, in gray, (n, H, W)."""
    data = run(
        "-i", path, "-map", f"0:v:{stream}", *options, "-fps_mode", "passthrough", "-pix_fmt", "gray", "-f", "rawvideo",
        "-",
    )  # fmt: skip
    return np.frombuffer(data, np.uint8).reshape(-1, height, width)


def make(path: Path, *options: object, seconds: float = 2, source: str = "testsrc2", size: str = "64x48") -> Path:
    """Encode a test picture that moves, at 25 frames per second, with options of ffmpeg."""
    run("-f", "lavfi", "-i", f"{source}=size={size}:rate=25:duration={seconds}", *options, path)
    return path
